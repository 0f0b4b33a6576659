"""The recipes for pre-trained models: what each is made of, and tiny weights of each in every command."""

import base64
import io
import json

import httpx
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

import ivt_jax
from configs import cuhk, icfg, joint, rstp
from configs.starts import STARTS
from input_pipeline.datasets import parse_datasets
from input_pipeline.synthetic.writer import Arguments, generate
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax import convert, index, search
from ivt_jax.conversion.clip import DEVIATION, MEAN
from ivt_jax.conversion.vlmo import vlmo_from_params
from ivt_jax.evaluation.cross_domain import cross_domain
from ivt_jax.export.run import export
from ivt_jax.models.build import build_model
from ivt_jax.run.workdir import config_of_run, flatten
from ivt_jax.training import loop
from ivt_jax.training.optimizer import make_schedules
from tests.conversion.test_first_day import published
from tests.serve.conftest import served

MODULES = (cuhk, icfg, joint, rstp)


@pytest.mark.parametrize("start", STARTS)
def test_the_datasets_have_one_recipe(start):
    """They differ in what says where the data are and, with one tower, in their patches as without a start."""
    first, *others = (flatten(module.get_config(start).to_dict()) for module in MODULES)
    own = {"data.name", "data.root", "data.sources"} | (
        {"model.stride", "bmm.patch_block"} if start == "vlmo" else set()
    )
    for other in others:
        assert {key for key in first if first[key] != other[key]} <= own


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("start", STARTS)
def test_a_config_opens_with_the_commands_that_fetch_and_convert_its_start(module, start):
    lines, name = module.__doc__.splitlines(), f"configs/{module.__name__[8:]}.py"
    train = next(i for i, line in enumerate(lines) if f"ivt_jax.main --config={name}:{start} " in line)
    assert f"ivt_jax.convert --source={start} " in lines[train - 1]
    assert lines[train - 1].endswith(f"--out={module.get_config(start).train.init_from}")


def test_clip_is_irra_s_recipe_by_hand():
    """REFERENCE, section 8: rates by step with ten steps an epoch; the classifier's bias has five times the rate."""
    config = cuhk.get_config("clip")
    schedules = make_schedules(config, np.arange(61) * 10, 600)
    for name, peak in (("weight", 1e-5), ("bias", 2e-5)):
        np.testing.assert_allclose(schedules[name](50), peak, rtol=1e-5)
        np.testing.assert_allclose(schedules[name](325), peak / 2, rtol=1e-5)  # half of the cosine's 550 steps
        np.testing.assert_allclose(schedules[name](600), 0, atol=1e-12)
    np.testing.assert_allclose(schedules["weight"](0), 1e-6, rtol=1e-5)
    assert (config.optimizer.name, config.optimizer.epsilon, config.optimizer.weight_decay) == ("adam", 1e-3, 4e-5)
    assert config.optimizer.multipliers == ("^id_head/bias=2.5", "^id_head/=5")
    assert (config.match.loss, config.match.temperature, config.id.weight) == ("sdm", 0.02, 1.0)
    assert (config.data.batch_size, config.data.sampling, config.train.epochs) == (64, "uniform", 60)
    assert (config.model.pixel_mean, config.model.pixel_deviation) == (MEAN, DEVIATION)
    assert (config.mla.levels, config.mla.views, config.text.length.sentence) == (("sentence",), 1, 77)
    assert (config.model.image_size, config.model.stride) == ((384, 128), 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("synth") / "data"
    sizes = Arguments(persons=14, images_per_person=2, size=(32, 16), val_persons=3, test_persons=3)
    generate(root, sizes, 1, lambda done, total: None)
    return root


PHRASES = ["red coat", "black shoes"]
TINY = {
    "data.name": "pedes_synth", "data.batch_size": 8, "data.instances": 2, "augment.pad": 2, "model.dtype": "float32",
    "train.steps": 5, "runtime.log_every": 1, "runtime.eval_batch_size": 8, "evaluation.robustness": False,
}  # fmt: skip
GRIDS = {"clip": ("(40,20)", 5, 5), "siglip": ("(40,20)", 5, 5), "vlmo": ("(48,24)", 6, 4)}
TERMS = {"clip": {"mla", "id"}, "siglip": {"mla", "id"}, "vlmo": {"mla", "words", "patches"}}


def vlmo_tensors():
    """A random tower under VLMo's names: 16 wide, for squares of 24 pixels, with 0 where VLMo has nothing."""
    config = cuhk.get_config("vlmo").model
    config.update({"image_size": (24, 24), "patch_size": 6, "stride": 6, "width": 16, "depth": 2, "num_heads": 2})
    config.update({"projection": 8, "vocab_size": load_tokenizer().vocab_size, "max_text_length": 64})
    params = jax.device_get(jax.jit(build_model(config).init)(jax.random.key(0))["params"])
    for part, name in (("image", "pos_embed"), ("image", "type_embed"), ("text", "position"), ("text", "token_type")):
        params[f"{part}_embedding"][name] = np.zeros_like(params[f"{part}_embedding"][name])
    return vlmo_from_params(params)


def convert_published(start, module, folder):
    """Writes weights under their published names, and converts them for the start's config; returns the new folder."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    tensors = vlmo_tensors() if start == "vlmo" else published(start, tokenizer)["model.safetensors"]
    (folder / "weights.safetensors").write_bytes(save(tensors))
    image_size, patch_size, stride = GRIDS[start]
    model = {"image_size": image_size, "patch_size": patch_size, "stride": stride, "dtype": "float32"}
    if start == "vlmo":
        model |= {"width": 16, "num_heads": 2}
        more = ["--config.text.tokenizer=", "--max_text_len_of_initckpt=64"]
        more += [f"--config.text.length.{level}=30" for level in ("sentence", "phrase", "word")]
    else:
        text_width = tensors["text_model.embeddings.token_embedding.weight"].shape[1]
        model |= {"width": 12, "num_heads": 3, "text.width": text_width, "text.num_heads": 2}
        more = [f"--config.text.tokenizer={tokenizer}"]
    flags = [f"--config.model.{key}={value}" for key, value in model.items()]
    call = [f"--source={start}", f"--weights={folder}/weights.safetensors", f"--out={folder}/weights"]
    assert convert.main([*call, f"--config=configs/{module.__name__[8:]}.py:{start}", *more, *flags]) == 0
    return folder / "weights"


@pytest.mark.parametrize(("module", "start"), [(cuhk, "clip"), (rstp, "siglip"), (icfg, "vlmo")])
def test_taught_weights_go_through_every_command(module, start, data, tmp_path, capsys):
    """Published names, random weights of squares: converted, indexed, searched, served, scored, trained, exported."""
    weights = convert_published(start, module, tmp_path)
    search_pictures(weights, data, tmp_path / "index", capsys)
    config = config_of_run(weights, module.get_config(start), {})
    config.update_from_flattened_dict({**TINY, "data.root": str(data), "train.init_from": str(weights)})
    (cell,) = cross_domain([weights], parse_datasets([f"synth:{data}"], "--datasets"), config)  # before any training
    assert cell["queries"] == 12
    train(config, start, tmp_path / "run")
    recorded = json.loads((weights / "config.json").read_text())["weights"]
    exported = ivt_jax.load(export(tmp_path / "run", ["safetensors"]))
    assert recorded["files"]["weights.safetensors"] in (tmp_path / "run/export/README.md").read_text()
    pictures = sorted((data / "imgs").rglob("*.jpg"))[:2]
    trained, before = (ivt_jax.load(folder).embed_images(pictures) for folder in (tmp_path / "run", weights))
    np.testing.assert_allclose(exported.embed_images(pictures), trained, atol=1e-6)
    assert np.abs(trained - before).max() > 1e-6


def search_pictures(weights, data, place, capsys):
    assert index.main([f"--workdir={weights}", f"--images={data}/imgs", f"--index={place}"]) == 0
    page = place.with_suffix(".html")
    capsys.readouterr()
    assert search.main([f"--index={place}", "--explain", f"--html={page}", "a man in a red coat, and black shoes"]) == 0
    assert "red coat" in capsys.readouterr().out and page.read_text().count("data:image") >= 10 * (1 + 2)
    with served(ivt_jax.open_index(place)) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/api/about").json()["calibrated"] is False
        asked = {"terms": [{"text": "a red coat and black shoes"}], "top": 3}
        best = client.post("/api/search", json=asked).json()["results"][0]
        assert [phrase["text"] for phrase in best["phrases"]] == PHRASES
        drawn = client.post(f"/api/heat/{best['id']}", json={"phrases": PHRASES}).json()["images"]
        crop = base64.b64encode(next((data / "imgs").rglob("*.jpg")).read_bytes()).decode()
        asked["terms"] = [{"text": "a red coat without a hat"}, {"text": "black shoes", "weight": 2}]
        more = {"image": crop, "image_weight": 0.5, "unlike": [best["id"]], "distinct": 0.98, "fold": True}
        answer = client.post("/api/search", json={**asked, **more}).json()
        assert [term["weight"] for term in answer["terms"]] == [1, -1, 2] and len(answer["results"]) == 3
        assert best["id"] not in {result["id"] for result in answer["results"]}
        assert answer["without_fit"] == "no fit of phrases: no validation shows what this model can tell"
    heat = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image.split(",")[1])))) for image in drawn]
    assert [one.shape[:2] for one in heat] == [(32, 16)] * 2


def train(config, start, workdir):
    loop.train_and_evaluate(config, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert len(trained) == 5 and all(np.isfinite(line["loss"]) for line in trained)
    others = {"step", "loss", "grad_norm", "learning_rate", "pairs_per_second", "input_wait"}
    assert set(trained[0]) - others == TERMS[start]
    assert json.loads((workdir / "test/summary.json").read_text())["last"]["step"] == 5
    table = (workdir / "parameters.txt").read_text()
    assert ("similarity/log_scale" in table) and ("frozen" in table) == (start != "vlmo")
