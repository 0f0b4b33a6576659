"""Weights and tokenizers from the hub, which is a folder in the layout of its cache here: no test asks the network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors
from safetensors.numpy import save_file

from input_pipeline.tokenizer import SHIPPED, load_tokenizer
from ivt_jax import convert
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import digest
from ivt_jax.common.hub import Repository, fetch, look_up
from ivt_jax.conversion import hub
from ivt_jax.run import checkpoint
from tests.conversion.conftest import TINY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"
VIT = {"model_type": "vit", "hidden_size": 12, "num_attention_heads": 3}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the hub is offline."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def store(cache, name, files, commit=COMMIT, branch="main"):
    """Writes a repository as huggingface_hub caches it; files: name -> tensors, JSON content, or a file to copy."""
    folder = cache / ("models--" + name.replace("/", "--"))
    snapshot = folder / "snapshots" / commit
    for path in (folder / "refs", folder / "blobs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    for number, (file, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{commit[:4]}{number}"
        if isinstance(content, Path):
            blob.write_bytes(content.read_bytes())
        elif file.endswith((".safetensors", ".bin")):
            save_file({key: np.ascontiguousarray(value) for key, value in content.items()}, blob)
        else:
            blob.write_text(json.dumps(content))
        (snapshot / file).symlink_to(blob)
    return snapshot


@pytest.fixture
def pair(cache, transformers, bert):
    """A ViT, and a BERT with the shipped vocabulary, in the cache."""
    count = len(SHIPPED.read_text().splitlines())
    words = np.random.default_rng(5).normal(size=(count, 12)).astype(np.float32)
    bert = {**bert, "bert.embeddings.word_embeddings.weight": words}
    pixels = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}
    store(
        cache, "some/vit", {"model.safetensors": transformers, "config.json": VIT, "preprocessor_config.json": pixels}
    )
    store(cache, "some/bert", {"model.safetensors": bert, "config.json": {"model_type": "bert"}, "vocab.txt": SHIPPED})
    return cache


def command(tmp_path, *changes):
    return [
        "--source=vit", "--weights=hf:some/vit", "--source_text=bert", "--weights_text=hf:some/bert",
        f"--out={tmp_path}/out", *TINY, *changes,
    ]  # fmt: skip


def test_weights_of_the_cache_are_converted_and_their_commit_is_recorded(tmp_path, pair, transformers, capsys):
    heads = [flag for flag in TINY if "num_heads" not in flag and "width" not in flag]  # the repository's
    flags = [flag for flag in command(tmp_path) if flag not in TINY] + heads
    assert convert.main(flags) == 0
    out, err = capsys.readouterr()
    assert err == f"written: {tmp_path}/out\n" and "written beside the parameters" in out
    record = json.loads((tmp_path / "out/config.json").read_text())
    for flag, name in (("weights", "some/vit"), ("weights_text", "some/bert")):
        file = pair / f"models--{name.replace('/', '--')}/snapshots/{COMMIT}/model.safetensors"
        expected = {"repository": name, "revision": COMMIT, "files": {"model.safetensors": digest(file)}}
        assert record["weights"]["hub"][flag] == expected
    model = record["config"]["model"]
    assert (model["num_heads"], model["width"]) == (3, 12)
    assert (model["pixel_mean"], model["pixel_deviation"]) == ([0.4, 0.5, 0.6], [0.2, 0.2, 0.3])
    assert record["config"]["text"]["tokenizer"] == f"some/bert@{COMMIT}"
    assert load_tokenizer(str(tmp_path / "out")).digest == record["tokenizer"] == load_tokenizer().digest
    kernel = checkpoint.restore_params(tmp_path / "out").params["blocks"]["mlp_vis"]["fc1"]["kernel"][1]
    np.testing.assert_array_equal(kernel, transformers["vit.encoder.layer.1.intermediate.dense.weight"].T)


def test_flags_take_precedence_over_the_repository(tmp_path, pair):
    flags = ["--config.text.tokenizer=", "--config.model.num_heads=6", "--config.model.pixel_mean=(0.1,0.2,0.3)"]
    assert convert.main(command(tmp_path, *flags)) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())["config"]
    assert (config["text"]["tokenizer"], config["model"]["num_heads"]) == ("", 6)
    assert config["model"]["pixel_mean"] == [0.1, 0.2, 0.3]


def test_a_revision_is_a_branch_or_a_commit(tmp_path, pair, transformers):
    changed = {name: tensor + 1 if "cls_token" in name else tensor for name, tensor in transformers.items()}
    store(pair, "some/vit", {"model.safetensors": changed, "config.json": VIT}, OTHER, "second")
    for number, (revision, commit) in enumerate({"second": OTHER, OTHER: OTHER, "main": COMMIT}.items()):
        flags = command(tmp_path, f"--weights=hf:some/vit@{revision}", f"--out={tmp_path}/out{number}")
        assert convert.main(flags) == 0
        record = json.loads((tmp_path / f"out{number}/config.json").read_text())
        assert record["weights"]["hub"]["weights"]["revision"] == commit


def test_shards_are_read_by_their_index(cache, transformers):
    names = sorted(transformers)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    files = {file: {name: transformers[name] for name in part} for file, part in parts.items()}
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    store(cache, "some/vit", {**files, "model.safetensors.index.json": index, "config.json": VIT})
    fetched = hub.fetch_weights("some/vit")
    tensors = fetched.tensors()
    assert tensors.keys() == transformers.keys() and [path.name for path in fetched.files] == [*parts]
    for name, tensor in transformers.items():
        np.testing.assert_array_equal(tensors[name], tensor)
    store(cache, "half/vit", {"a.safetensors": files["a.safetensors"], "model.safetensors.index.json": index})
    with pytest.raises(UserError, match=r'"half/vit": model.safetensors.index.json names b.safetensors, which is not'):
        hub.fetch_weights("half/vit")


MISTAKES = {
    "not cached": (["--weights=hf:some/other"], 'HF_HUB_OFFLINE is set, and "some/other" is not in the cache '),
    "no such revision": (["--weights=hf:some/vit@v9"], 'HF_HUB_OFFLINE is set, and "some/vit@v9" is not in the cache '),
    "no name": (["--weights=hf:../x y"], "hf:../x y: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, as hf:openai/"),
    "no owner": (["--weights=hf:vit-base"], "hf:vit-base: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, as "),
    "no owner of texts": (["--weights_text=hf:bert@v1"], "hf:bert@v1: expected hf:OWNER/NAME or hf:OWNER/"),
    "an address": (["--weights=hf:https://huggingface.co/some/vit"], "some/vit: expected hf:OWNER/NAME or "),
    "another kind": (["--weights=hf:some/bert"], "has a model of type bert; --source=vit reads vit or deit"),
    "a release": (["--source=release"], "--source=release reads a file; download the weights and name their file"),
    "no description": (["--weights=hf:bare/vit"], "hf:bare/vit has no config.json, which says the number of heads"),
    "no weights": (["--weights=hf:empty/vit"], '"empty/vit" in the hub\'s cache has no weights that can be read: it '),
    "only a pickle": (
        ["--weights=hf:pickled/vit"],
        "has no safetensors, only pytorch_model.bin, which needs PyTorch: pip install -e '.[torch]' in the clone of "
        "this project; or name a revision that has model.safetensors, as hf:pickled/vit@REVISION",
    ),
    "a tokenizer that does not fit": (["--weights_text=hf:small/bert"], "the tokenizer has 6 entries, config.model.v"),
    "integers": (["--weights=hf:whole/vit"], "has dtype int8; weights must be float16, bfloat16, float32 or float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, pair, name, monkeypatch, transformers, capsys):
    changes, message = MISTAKES[name]
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)  # PyTorch is not installed
    store(pair, "bare/vit", {"model.safetensors": transformers})
    store(pair, "empty/vit", {"config.json": VIT})
    store(pair, "pickled/vit", {"config.json": VIT, "pytorch_model.bin": {}})
    integers = {name: tensor.astype(np.int8) for name, tensor in transformers.items()}
    store(pair, "whole/vit", {"config.json": VIT, "model.safetensors": integers})
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    weights = pair / f"models--some--bert/snapshots/{COMMIT}/model.safetensors"
    files = {"model.safetensors": weights, "config.json": {"model_type": "bert"}, "vocab.txt": tmp_path / "vocab.txt"}
    store(pair, "small/bert", files)
    flags = command(tmp_path, *changes)
    if name == "a release":
        flags = [flag for flag in flags if "_text" not in flag]
    before = sorted(tmp_path.iterdir())
    assert convert.main(flags) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def online(cache, monkeypatch):
    """A hub that answers by `answer`: a function of (repository, revision)."""
    state = SimpleNamespace(answer=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info",
        lambda self, repo, revision=None, timeout=None, files_metadata=False: state.answer(repo, revision),
    )  # fmt: skip
    return state


def publish(monkeypatch, cache, snapshot, name, commit=COMMIT):
    """Lets the hub have the files of a folder at a commit; returns the list of requests and downloads.

    As huggingface_hub's, a download by commit leaves no reference of the branch.
    """
    asked = []

    def model_info(self, repo, revision=None, timeout=None, files_metadata=False):
        if constants.HF_HUB_OFFLINE or (repo, revision or "main") not in {(name, "main"), (name, commit)}:
            raise ConnectionError
        asked.append((repo, revision))
        files = sorted(path.name for path in snapshot.iterdir())
        return SimpleNamespace(sha=commit, siblings=[SimpleNamespace(rfilename=file, size=1) for file in files])

    def download(repo, file, revision):
        assert (repo, revision) == (name, commit) and not constants.HF_HUB_OFFLINE
        asked.append(file)
        target = cache / ("models--" + repo.replace("/", "--")) / "snapshots" / revision / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((snapshot / file).read_bytes())
        return str(target)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def raising(kind):
    def answer(repo, revision):
        response = SimpleNamespace(headers={}, status_code=404, request=SimpleNamespace(url="", method="GET"))
        raise (
            kind("on\ntwo lines", response=response) if issubclass(kind, errors.HfHubHTTPError) else kind("two\nlines")
        )

    return answer


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, r'^the hub has no repository "some/vit", or it is private; check the name$'),
        (errors.GatedRepoError, r'^"some/vit" on the hub is gated: accept its terms at .*/some/vit, then log in with'),
        (errors.RevisionNotFoundError, r'^"some/vit" on the hub has no revision "v9"; check the name after @$'),
        (ConnectionError, r'^the hub cannot be reached \(ConnectionError\), and "some/vit@v9" is not in the cache '),
    ],
)
def test_what_the_hub_refuses_is_one_line(online, kind, message):
    online.answer = raising(kind)
    with pytest.raises(UserError, match=message) as error:
        look_up("some/vit@v9")
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_leaves_the_cache(online, cache, transformers, capsys):
    store(cache, "some/vit", {"model.safetensors": transformers, "config.json": VIT})
    online.answer = raising(ConnectionError)
    found = look_up("some/vit")
    assert (found.commit, found.cached, sorted(found.files)) == (COMMIT, True, ["config.json", "model.safetensors"])
    assert capsys.readouterr().err == "some/vit: the hub cannot be reached; using commit 0123456789ab of its cache\n"


def test_only_what_is_needed_is_downloaded_at_the_commit_of_the_hub(online, cache, transformers, monkeypatch, capsys):
    files = {"model.safetensors": 10_000_000, "flax_model.msgpack": 9, "pytorch_model.bin": 9, "config.json": 0}
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
    online.answer = lambda repo, revision: SimpleNamespace(sha=OTHER, siblings=siblings)
    asked = []

    def download(repo, file, revision):
        asked.append((repo, file, revision))
        content = transformers if file == "model.safetensors" else VIT
        return str(store(cache, repo, {file: content}, revision) / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    fetched = hub.fetch_weights("some/vit")
    assert asked == [("some/vit", "config.json", OTHER), ("some/vit", "model.safetensors", OTHER)]
    assert fetched.repository.commit == OTHER and fetched.tensors().keys() == transformers.keys()
    assert capsys.readouterr().err.splitlines() == [
        "fetching config.json of some/vit", "fetching model.safetensors of some/vit, 10.0 MB"
    ]  # fmt: skip


def test_the_hub_s_own_conversion_of_a_pickle_is_taken_without_pytorch(
    online, cache, transformers, monkeypatch, capsys
):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    store(cache, "some/vit", {"model.safetensors": transformers, "config.json": VIT}, OTHER, "x")
    offered = {
        None: (COMMIT, ["pytorch_model.bin", "config.json"]),
        "refs/pr/7": (OTHER, ["model.safetensors", "config.json"]),
    }

    def answer(repo, revision):
        commit, names = offered[revision]
        return SimpleNamespace(sha=commit, siblings=[SimpleNamespace(rfilename=name, size=1) for name in names])

    online.answer = answer
    offers = [
        SimpleNamespace(num=9, author="someone", title="Adding `safetensors` variant of this model"),
        SimpleNamespace(num=8, author="SFconvertbot", title="Something else"),
        SimpleNamespace(num=7, author="SFconvertbot", title="Adding `safetensors` variant of this model"),
    ]
    monkeypatch.setattr(huggingface_hub.HfApi, "get_repo_discussions", lambda *args, **kwargs: iter(offers))
    assert hub.fetch_weights("some/vit").repository.commit == OTHER
    assert capsys.readouterr().err == "some/vit: the safetensors are those of SFconvertbot's pull request 7\n"
    with pytest.raises(UserError, match=r"has no safetensors, only pytorch_model\.bin"):
        offered["main"] = offered[None]
        hub.fetch_weights("some/vit@main")


def fetched_of(description, pixels=None):
    return hub.Fetched(Repository("some/model", COMMIT, {}, True), [], description, pixels or {})


@pytest.mark.parametrize("source", ["clip", "siglip"])
def test_what_a_config_leaves_out_is_as_in_transformers(source):
    from transformers import CLIPConfig, SiglipConfig

    theirs = {"clip": CLIPConfig, "siglip": SiglipConfig}[source]()
    for ours, section in zip(hub.DEFAULTS[source], (theirs.vision_config, theirs.text_config), strict=True):
        assert ours == {name: getattr(section, name) for name in ours}


def test_what_the_published_config_of_clip_says():
    """config.json of openai/clip-vit-base-patch16, shortened to what counts; most sizes are left out."""
    config = {
        "model_type": "clip", "projection_dim": 512, "text_config": {"dropout": 0.0},
        "vision_config": {"patch_size": 16}, "text_config_dict": None,
    }  # fmt: skip
    pixels = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    found = hub.described(fetched_of(config, pixels), "clip")
    assert found == hub.Described(
        {"model.width": 768, "model.num_heads": 12},
        {"model.pixel_mean": tuple(pixels["image_mean"]), "model.pixel_deviation": tuple(pixels["image_std"])},
        {
            "model.towers": 2, "model.text.width": 512, "model.text.num_heads": 8, "text.length.sentence": 77,
            "text.length.phrase": 77, "text.length.word": 77,
        },
        {"model.image_size": (224, 224), "model.stride": 16}, "quick_gelu",
    )  # fmt: skip


def test_what_the_published_configs_of_siglip_and_open_clip_say():
    siglip = {"model_type": "siglip", "text_config": {"vocab_size": 256000}, "vision_config": {"image_size": 384}}
    found = hub.described(fetched_of(siglip), "siglip")
    assert found.geometry == {"model.image_size": (384, 384), "model.stride": 16} and found.activation == "gelu_tanh"
    assert found.text["text.length.sentence"] == 64 and found.text["model.text.num_heads"] == 12
    vision = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
    large = {"model_cfg": {"embed_dim": 768, "vision_cfg": vision, "text_cfg": text}}
    found = hub.described(fetched_of(large), "clip")
    assert (found.image, found.activation) == ({"model.width": 1024, "model.num_heads": 16}, "gelu")
    assert found.geometry == {"model.image_size": (224, 224), "model.stride": 14}
    assert found.text["model.text.width"] == 768
    assert found.text["model.text.num_heads"] == 12


@pytest.mark.parametrize(
    ("description", "source", "message"),
    [
        ({"model_type": "siglip2"}, "siglip", "has a model of type siglip2; --source=siglip reads siglip"),
        ({"model_type": "clip", "text_config": {"hidden_act": "gelu"}}, "clip", "has quick_gelu in images and gelu in"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "clip", "has relu and norms with epsilon"),
        ({"model_cfg": {"vision_cfg": {"timm_model_name": "x"}}}, "clip", "is no CLIP with OpenAI's towers"),
    ],
)
def test_models_of_another_kind_are_refused(description, source, message):
    with pytest.raises(UserError, match=message):
        hub.described(fetched_of(description), source)


def test_a_tokenizer_is_found_by_name_and_commit(cache):
    store(cache, "some/bert", {"vocab.txt": SHIPPED})
    for name in ("some/bert", f"some/bert@{COMMIT}"):
        assert load_tokenizer(name).digest == load_tokenizer().digest


@pytest.fixture
def words(tmp_path):
    """A folder with a small vocabulary and a description, as the hub has it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    return folder


@pytest.mark.parametrize("held", [{"config.json": {}}, {"model.safetensors": {}}, {"merges.txt": {}}])
@pytest.mark.parametrize("name", ["some/bert", f"some/bert@{COMMIT}"])
def test_a_cache_without_the_vocabulary_asks_the_hub(cache, words, name, held, monkeypatch):
    store(cache, "some/bert", held)
    asked = publish(monkeypatch, cache, words, "some/bert")
    for _ in range(2):  # the second time from the cache
        assert load_tokenizer(name).vocab_size == 6
    assert asked == [("some/bert", name.partition("@")[2] or None), "vocab.txt"]


def test_a_cache_without_the_vocabulary_is_one_line_offline(cache):
    store(cache, "some/bert", {"config.json": {}})
    with pytest.raises(UserError, match=r"its copy in the cache has none of tokenizer\.json, vocab\.txt, ") as error:
        load_tokenizer("some/bert")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["some/bert", "bert-alone"])
def test_what_was_fetched_by_a_plain_name_is_found_by_it_offline(cache, words, name, monkeypatch):
    asked = publish(monkeypatch, cache, words, name)
    expected = load_tokenizer(name).digest
    assert asked == [(name, None), "vocab.txt"]
    assert (cache / f"models--{name.replace('/', '--')}/refs/main").read_text() == COMMIT  # huggingface_hub's layout
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in ("", "@main", f"@{COMMIT}"):
        assert load_tokenizer(name + revision).digest == expected
    assert len(asked) == 2


def test_a_commit_names_no_branch_in_the_cache(cache, words, monkeypatch):
    publish(monkeypatch, cache, words, "some/bert")
    assert load_tokenizer(f"some/bert@{COMMIT}").vocab_size == 6
    assert not (cache / "models--some--bert/refs").exists()


def test_a_branch_moves_in_the_cache_with_the_first_file_only(cache, words, transformers, monkeypatch):
    store(cache, "some/vit", {"model.safetensors": transformers, "config.json": VIT}, OTHER)
    publish(monkeypatch, cache, words, "some/vit")
    reference = cache / "models--some--vit/refs/main"
    repository = look_up("some/vit")
    assert (repository.commit, reference.read_text()) == (COMMIT, OTHER)  # what is there can still be found
    fetch(repository, "config.json")
    assert reference.read_text() == COMMIT
    reference.unlink()
    fetch(repository, "config.json")  # which is there: an older cache without the reference
    assert reference.read_text() == COMMIT


def test_a_cache_that_takes_no_reference_is_read(cache, words, monkeypatch):
    publish(monkeypatch, cache, words, "some/bert")
    (cache / "models--some--bert").mkdir()
    (cache / "models--some--bert/refs").write_text("no folder")
    assert load_tokenizer("some/bert").vocab_size == 6


def test_a_new_process_without_a_network_reads_the_cache(tmp_path, pair):
    environment = {**os.environ, "HF_HUB_CACHE": str(pair), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-m", "ivt_jax.convert", *command(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, f"written: {tmp_path}/out\n")


def test_a_pickle_is_read_where_pytorch_is_installed(cache, transformers):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.tensor(tensor) for name, tensor in transformers.items()}, cache / "weights")
    snapshot = store(cache, "some/vit", {"config.json": VIT})
    (cache / "weights").rename(snapshot / "pytorch_model.bin")
    tensors = hub.fetch_weights("some/vit").tensors()
    assert tensors.keys() == transformers.keys()
    for name, tensor in transformers.items():
        np.testing.assert_array_equal(tensors[name], tensor)
