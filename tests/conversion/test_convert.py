"""The command: what it writes, what it says, and that a mistake leaves nothing behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from input_pipeline.tokenizer import SHIPPED, load_tokenizer
from ivt_jax import convert, search
from ivt_jax.common.config_flag import read_config
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import digest
from ivt_jax.conversion.vit import Source, convert_vit
from ivt_jax.evaluation.run import evaluate
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.pages.report import write_report
from ivt_jax.run import checkpoint
from ivt_jax.training.init_from import initial_params
from tests.conversion.conftest import TINY

PIXELS = ("pixel_mean", "pixel_deviation")


@pytest.fixture
def files(tmp_path, timm, bert):
    """The arguments that name two files; BERT's words are as many as the shipped vocabulary has."""
    count = len(SHIPPED.read_text().splitlines())
    words = np.random.default_rng(5).normal(size=(count, 12)).astype(np.float32)
    bert = {**bert, "bert.embeddings.word_embeddings.weight": words}
    for name, tensors in (("vit", timm), ("bert", bert)):
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / f"{name}.safetensors")
    return [
        "--source=vit", f"--weights={tmp_path}/vit.safetensors", "--source_text=bert",
        f"--weights_text={tmp_path}/bert.safetensors", f"--out={tmp_path}/out", *TINY,
    ]  # fmt: skip


def test_the_default_config_is_found_from_any_folder(tmp_path, files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert.main([flag for flag in files if flag != TINY[0]]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["config"]["data"]["name"] == "cuhk_pedes"


def test_a_folder_is_written_and_can_be_restored(tmp_path, files, capsys, timm):
    assert convert.main(files) == 0
    out, err = capsys.readouterr()
    assert err == f"written: {tmp_path}/out\n"
    line = r"^resized +1  pos_embed +1x10x12 +image_embedding/pos_embed, 3x3 -> 7x3 patches, bilinear$"
    assert re.search(line, out, re.M)
    config, params, step = checkpoint.restore_params(tmp_path / "out")
    assert step == 0 and config.model.mlp_ratio == 20 / 12 and config.model.depth == 2
    np.testing.assert_array_equal(params["blocks"]["mlp_vis"]["fc1"]["kernel"][1], timm["blocks.1.mlp.fc1.weight"].T)
    recorded = json.loads((tmp_path / "out/config.json").read_text())
    assert recorded["weights"]["files"]["vit.safetensors"] == digest(tmp_path / "vit.safetensors")
    shipped = load_tokenizer().digest
    assert (recorded["format"], recorded["tokenizer"]) == (1, shipped) and f"\ntokenizer: {shipped[:12]}, " in out
    assert load_tokenizer(str(tmp_path / "out")).digest == shipped
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert.safetensors", "out", "vit.safetensors"]


def test_the_folder_can_be_searched(tmp_path, files, capsys):
    assert convert.main(files) == 0
    Image.new("RGB", (12, 24), (200, 10, 10)).save(tmp_path / "red.png")
    capsys.readouterr()
    assert search.main([f"--workdir={tmp_path}/out", f"--images={tmp_path}", "a red coat"]) == 0
    assert re.match(r"  1  [+-]\d\.\d{4}  .*/red.png  odd: ", capsys.readouterr().out)


def test_the_folder_can_be_evaluated(tmp_path, files, pedes_root):
    assert convert.main([*files, "--config.data.name=cuhk_pedes", f"--config.data.root={pedes_root}"]) == 0
    summary = evaluate(tmp_path / "out", checkpoint.restore_params(tmp_path / "out").config)["test"]
    assert (summary["step"], summary["queries"], summary["last"]["t2i"]) == (0, 12, summary["t2i"])
    assert "CUHK-PEDES" in write_report(tmp_path / "out").read_text()


def test_clip_is_recorded_searched_and_trained_from(tmp_path, files, openai, capsys):
    save_file({k: np.ascontiguousarray(v) for k, v in openai.items()}, tmp_path / "clip.safetensors")
    assert convert.main([*files, "--source=clip", f"--weights={tmp_path}/clip.safetensors"]) == 0
    assert re.search(r"^ignored +1  visual.proj +12x5 +the projection to CLIP", capsys.readouterr().out, re.M)
    config = checkpoint.restore_params(tmp_path / "out").config
    values = {"image_norm": True, "image_activation": "quick_gelu", "norm_epsilon": 1e-5}
    assert {name: config.model[name] for name in values} == values

    other = ["--source=clip", f"--weights={tmp_path}/clip.safetensors", "--activation=gelu", f"--out={tmp_path}/gelu"]
    assert convert.main([*files, *other]) == 0
    assert checkpoint.restore_params(tmp_path / "gelu").config.model.image_activation == "gelu"

    Image.new("RGB", (12, 24), (200, 10, 10)).save(tmp_path / "red.png")
    assert search.main([f"--workdir={tmp_path}/out", f"--images={tmp_path}", "a red coat"]) == 0

    pixels = [f"--config.model.{name}={tuple(config.model[name])}".replace(" ", "") for name in PIXELS]
    assert pixels[0] == "--config.model.pixel_mean=(0.48145466,0.4578275,0.40821073)"
    flags = [*(f"--config.model.{name}={value}" for name, value in values.items()), *pixels]
    own = [f"--config.model.{name}={config.model[name]}" for name in ("depth", "mlp_ratio", "max_text_length")]
    start = [*TINY[1:], *own, f"--config.train.init_from={tmp_path}/out"]
    with pytest.raises(UserError) as error:
        initial_params(read_config("configs/synth.py", start), shapes_alone=True)
    assert ", ".join([*values, *PIXELS]) in str(error.value)
    assert str(error.value).replace('"', "").endswith(f"; set {' '.join(flags)}")
    count = len(parameter_shapes(IVTConfig.from_config(config.model)))
    initial = initial_params(read_config("configs/synth.py", [*start, *flags]), shapes_alone=True)
    assert initial.summary.endswith(f"{count} loaded")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_towers_are_recorded_and_trained_from(tmp_path, capsys, kind):
    with np.load(Path(__file__).parent.parent / "data/towers_tiny.npz") as given:
        tensors = {name: given[name] for name in given.files}
    prefix = f"{kind}/weights/"
    tensors = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    words, count = "text_model.embeddings.token_embedding.weight", len(SHIPPED.read_text().splitlines())
    tensors[words] = np.resize(tensors[words], (count, tensors[words].shape[1]))
    save_file({name: np.asarray(x, order="C") for name, x in tensors.items()}, tmp_path / "towers.safetensors")
    width = 8 if kind == "clip" else 12
    size = ["--config.model.image_size=(25,15)", "--config=configs/synth.py"]
    heads = ["--config.model.width=12", "--config.model.num_heads=3", "--config.model.text.num_heads=2"]
    command = [f"--source={kind}", f"--weights={tmp_path}/towers.safetensors", f"--out={tmp_path}/out", *size, *heads]
    assert convert.main([*command, f"--config.model.text.width={width}"]) == 0
    assert "image_embedding/pos_embed, 4x4 -> 5x3 patches, bilinear" in capsys.readouterr().out
    config = checkpoint.restore_params(tmp_path / "out").config
    assert (config.model.towers, config.model.stride, config.model.text.depth) == (2, 5, 3)
    assert config.model.text.pooling == ("end" if kind == "clip" else "last")
    assert [*config.text.length.values()] == [9, 9, 9]  # text positions
    assert config.bmm.word_weight == config.bmm.patch_weight == 0
    config.train.init_from = str(tmp_path / "out")
    count = len(parameter_shapes(IVTConfig.from_config(config.model)))
    assert initial_params(config, shapes_alone=True).summary.endswith(f"{count} loaded")

    assert convert.main([*command, f"--out={tmp_path}/wrong", "--config.model.text.width=24"]) == 2
    error = capsys.readouterr().err
    assert f"a tower is {width} wide; set --config.model.text.width={width} and with it" in error
    assert error.count("\n") == 1 and not (tmp_path / "wrong").exists()


def test_the_release_is_converted(tmp_path, capsys, monkeypatch, release):
    """Without the hub, so that the config's tokenizer cannot be loaded: the folder has none."""

    def no_network(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    np.savez(tmp_path / "w.npz", **release)
    tiny = [
        "--config.model.width=48", "--config.model.num_heads=4", "--config.model.image_size=(64,32)",
        "--config.text.length.sentence=32", "--config.text.length.phrase=32", "--config.text.length.word=32",
    ]  # fmt: skip
    assert convert.main(["--source=release", f"--weights={tmp_path}/w.npz", f"--out={tmp_path}/out", *tiny]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ignored +1  encoder_vl.embeddings.position_ids", out, re.M)
    assert re.search(r"^tokenizer: not recorded, so it will not be checked: ", out, re.M)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "params"]
    assert "tokenizer" not in json.loads((tmp_path / "out/config.json").read_text())
    config = checkpoint.restore_params(tmp_path / "out").config
    assert (config.data.name, config.model.vocab_size, config.model.stride) == ("cuhk_pedes", 120, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--source=export"],
            "--source=vit goes with --source_text=bert and --weights_text=FILE, which give the text ",
        ),
        (
            ["--source=siglip"],
            "--source=vit goes with --source_text=bert and --weights_text=FILE, which give the text ",
        ),
        (["--weights=nowhere"], "nowhere is no file or folder; name a file of weights"),
        (["--weights_text=nowhere"], "nowhere is no file or folder"),
        (["--out=."], ". exists already; remove it or name another --out"),
        (["--out=[x]"], '/[x]: a path with "[" is not supported for checkpoints and exports; rename the folder'),
        (["--out=pyproject.toml/out"], "pyproject.toml is not a folder; name another --out"),
        (
            ["--config=configs/cuhk.py:siglip"],
            "configs/cuhk.py:siglip starts from --source=siglip; name another --config",
        ),
        (["--config=configs/rstp.py:vlmo"], "configs/rstp.py:vlmo starts from --source=vlmo; name another --config"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config.model.strid=3"], "the config has no key 'model.strid'"),
        (["--widht=3"], "Unknown command line flag 'widht'"),
        (["more"], "unexpected arguments: more"),
        (["--config.model.width=24"], "the weights are 12 wide, the config 24: set --config.model.width and with it "),
        (["--config.text.length.sentence=20"], "text.length.sentence is 20; expected 3 to model.max_text_length 14"),
        (["--config.model.stride=0"], "model.stride is 0; expected 1 or more"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, files, capsys, changes, message):
    before = sorted(tmp_path.iterdir())
    assert convert.main([*files, *changes]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.iterdir()) == before


def test_the_file_of_an_export_without_its_config_is_refused(tmp_path, capsys):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    call = ["--source=export", f"--weights={tmp_path}/model.safetensors", f"--out={tmp_path}/out"]
    assert convert.main(call) == 2
    expected = f"error: {tmp_path}/config.json not found: --source=export reads it; put the export's beside --weights\n"
    assert capsys.readouterr().err == expected


def test_a_write_that_fails_leaves_nothing(tmp_path, files, monkeypatch):
    def export(path, params):
        Path(path).mkdir()
        (path / "half").touch()
        raise UserError("disk full")

    monkeypatch.setattr(checkpoint, "export_params", export)
    before = sorted(tmp_path.iterdir())
    for out in ("out", "new/deep/out"):
        assert convert.main([*files, f"--out={tmp_path}/{out}"]) == 2
        assert sorted(tmp_path.iterdir()) == before


def test_missing_parent_folders_are_made(tmp_path, files):
    assert convert.main([*files, f"--out={tmp_path}/new/deep/out"]) == 0
    assert (tmp_path / "new/deep/out/config.json").is_file()


OTHERS = [
    "openai",
    "transformers_clip",
    "timm",
    "google",
    "transformers",
    "bert",
    "release",
    "vlmo",
    "siglip",
    "export",
]
ARE = dict(zip(OTHERS, ["clip"] * 2 + ["vit"] * 3 + ["--source_text=bert"] + OTHERS[6:], strict=True))


@pytest.fixture
def other(request, tmp_path):
    """Writes a file of a kind of OTHERS; returns its path."""

    def write(kind):
        if kind == "export":
            tensors = {"blocks.attn.qkv.kernel": np.ones(3, np.float32)}
        elif kind in ("vlmo", "siglip"):
            name, prefix = {"vlmo": ("vlmo", "weights/"), "siglip": ("towers", "siglip/weights/")}[kind]
            with np.load(Path(__file__).parent.parent / f"data/{name}_tiny.npz") as given:
                tensors = {name.removeprefix(prefix): given[name] for name in given.files if name.startswith(prefix)}
        else:
            tensors = request.getfixturevalue(kind)
        save_file({name: np.array(x, order="C") for name, x in tensors.items()}, tmp_path / "other.safetensors")
        return tmp_path / "other.safetensors"

    return write


@pytest.mark.parametrize("kind", OTHERS)
def test_a_wrong_source_is_one_line_with_the_right_one(tmp_path, files, other, capsys, kind):
    file, title = other(kind), {"release": "checkpoint of the IVT release", "vlmo": "VLMo", "clip": "CLIP"}
    for source, name in {**title, "siglip": "SigLIP", "vit": "ImageNet ViT"}.items():
        if source == ARE[kind]:
            continue
        with_text = [flag for flag in files if "_text" in flag] if source == "vit" else []
        call = [f"--source={source}", f"--weights={file}", f"--out={tmp_path}/out", *with_text]
        assert convert.main(call) == 2
        right = ARE[kind] if kind == "bert" else f"--source={ARE[kind]}"
        assert capsys.readouterr().err == f"error: {file} is no {name}, by its names; try {right}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["release", "vlmo", "siglip", "clip"])
def test_unknown_names_are_one_line(tmp_path, capsys, source):
    save_file({name: np.ones(1, np.float32) for name in "abcd"}, tmp_path / "w.safetensors")
    assert convert.main([f"--source={source}", f"--weights={tmp_path}/w.safetensors", f"--out={tmp_path}/out"]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path}/w.safetensors is no " in err and err.endswith(
        "docs/weights.md lists what each --source reads\n"
    )
    assert ": it has a, b, c, ...; " in err


def test_two_towers_config_with_bert_is_refused(tmp_path, files, openai, capsys):
    save_file({k: np.ascontiguousarray(v) for k, v in openai.items()}, tmp_path / "clip.safetensors")
    changes = ["--source=clip", f"--weights={tmp_path}/clip.safetensors", "--config=configs/cuhk.py:clip"]
    assert convert.main([*files, *changes]) == 2
    message = "configs/cuhk.py:clip starts from --source=clip without --source_text; name another --config"
    assert message in capsys.readouterr().err


def test_what_is_drawn_follows_the_seed_of_the_config(tmp_path, files, timm, bert):
    assert convert.main([*files, "--config.seed=8"]) == 0
    restored = checkpoint.restore_params(tmp_path / "out")
    model = IVTConfig.from_config(restored.config.model)
    expected = convert_vit(Source(timm, "vit"), Source(bert, "bert"), model, "bilinear", 8).params
    for part in ("patch_head", "image_embedding"):
        jax.tree.map(np.testing.assert_array_equal, restored.params[part], expected[part])


def test_help_answers_without_jax():
    code = "import sys; from ivt_jax import convert; convert.make_parser().format_help(); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
