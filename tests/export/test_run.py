"""The export as a folder: what is in it, that it is whole, that others can read it, and the way back."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from input_pipeline.tokenizer import SHIPPED, load_tokenizer
from ivt_jax import convert, search
from ivt_jax.common.errors import UserError
from ivt_jax.encoding.embedding import embed_images, embed_texts
from ivt_jax.evaluation.calibration import Calibration
from ivt_jax.export import run as export_run
from ivt_jax.export.run import export
from ivt_jax.models.build import build_model
from ivt_jax.retrieval.verdict import read_calibration
from ivt_jax.run.checkpoint import restore_params
from tests.conversion.conftest import without_none

ROOT = Path(__file__).parent.parent.parent
BOTH = ["orbax", "safetensors"]
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}


def names(folder):
    return {path.name for path in folder.iterdir()}


def record_of(folder):
    return json.loads((folder / "config.json").read_text())


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == np.float32 and found[path].shape == value.shape, path
        assert found[path].tobytes() == value.tobytes(), path


# ---- what is in it


def test_a_run_is_exported_whole(run, best, write_summary):
    write_summary(run, "val", 20)
    write_summary(run, "test", 20, selected_on="val", robustness={"typos": {}})
    assert export(run, BOTH) == run / "export"
    assert names(run / "export") == {"config.json", "params", "model.safetensors", "README.md"} | TOKENIZER
    same_bits(flatten_dict(restore_params(run / "export").params, sep="/"), best)
    same_bits(load_file(run / "export/model.safetensors"), {k.replace("/", "."): v for k, v in best.items()})
    exported, made = record_of(run / "export"), record_of(run)
    assert {key: exported[key] for key in made} == made  # config, format, tokenizer, annotations, revision, ...
    assert (exported["format"], exported["step"], exported["tokenizer"]) == (1, 20, load_tokenizer().digest)
    val, test = (exported["scores"][split] for split in ("val", "test"))
    assert test["t2i"]["R1"] == 10.0 and val["interval"]["i2t"]["mAP"] == [22, 24.25]
    assert test["selected_on"] == "val" and "robustness" not in test
    assert load_tokenizer(str(run / "export")).digest == exported["tokenizer"]
    card = (run / "export/README.md").read_text()
    assert "| text to image | 10.00 (9.00 to 11.25) | 11.00 (10.00 to 12.25) |" in card and "Its step: 20." in card


def test_figures_of_another_checkpoint_are_left_out(run, write_summary):
    write_summary(run, "val", 20)
    write_summary(run, "test", 40)
    export(run, ["safetensors"])
    assert set(record_of(run / "export")["scores"]) == {"val"}
    assert "Not evaluated on test." in (run / "export/README.md").read_text()


def test_converted_weights_are_exported(converted, params):
    export(converted, BOTH)
    same_bits(flatten_dict(restore_params(converted / "export").params, sep="/"), params)
    record = record_of(converted / "export")
    assert record["weights"]["files"] == {"vit.npz": hashlib.sha256(b"weights").hexdigest()} and record["step"] == 0
    assert "# IVT, from weights of other programs\n" in (converted / "export/README.md").read_text()


def test_an_export_is_exported_again_with_its_step_and_figures(run, write_summary):
    write_summary(run, "test", 20)
    first = export(run, ["orbax"])
    second = export(first, ["safetensors"])
    assert record_of(second) == record_of(first)
    same_bits(*(flatten_dict(restore_params(folder).params, sep="/") for folder in (second, first)))


@pytest.mark.parametrize("formats", [["orbax"], ["safetensors"], ["orbax", "orbax"]])
def test_the_formats_named_are_written(converted, formats, params):
    export(converted, formats)
    written = {"orbax": "params", "safetensors": "model.safetensors"}[formats[0]]
    assert names(converted / "export") == {"config.json", "README.md", written} | TOKENIZER
    same_bits(flatten_dict(restore_params(converted / "export").params, sep="/"), params)
    shapes = flatten_dict(restore_params(converted / "export", shapes_alone=True).params, sep="/")
    assert {k: tuple(v.shape) for k, v in shapes.items()} == {k: v.shape for k, v in params.items()}


def test_the_file_tells_its_format_and_its_config(converted):
    export(converted, ["safetensors"])
    files = {path.stat().st_mode & 0o777 for path in (converted / "export").iterdir() if path.is_file()}
    assert len(files) == 1  # who may read config.json may read the parameters
    with safe_open(converted / "export/model.safetensors", "numpy") as file:
        metadata = file.metadata()
    canonical = json.dumps(record_of(converted / "export")["config"], sort_keys=True)
    assert metadata == {"ivt_jax_format": "1", "config_sha256": hashlib.sha256(canonical.encode()).hexdigest()}


# ---- others read it


@pytest.fixture(scope="module")
def inputs():
    """64 crops and as many sentences of 1 to 30 words, some too long for the model."""
    rng = np.random.default_rng(7)
    words = [entry for entry in SHIPPED.read_text().splitlines() if entry.isalpha()]
    captions = [" ".join(rng.choice(words, 1 + i % 30)) for i in range(64)]
    return rng.integers(0, 256, (64, 14, 10, 3), np.uint8), captions


def test_a_program_that_knows_nothing_of_us_embeds_the_same(converted, config, inputs, tmp_path):
    images, captions = inputs
    folder = export(converted, ["safetensors"])
    np.savez(tmp_path / "in.npz", images=images, captions=np.array(captions))
    command = [sys.executable, "-I", str(Path(__file__).with_name("reader.py")), folder, tmp_path / "in.npz"]
    subprocess.run([*command, tmp_path / "out.npz"], check=True, cwd=tmp_path)
    params, model = restore_params(folder).params, build_model(config.model)
    ids = load_tokenizer().encode(captions, config.text.length.sentence)
    ours = {"image": embed_images(model, params, [images]), "text": embed_texts(model, params, ids, ids > 0, 16)}
    with np.load(tmp_path / "out.npz") as archive:
        theirs = dict(archive)
    for side in ("image", "text"):
        assert (ours[side] * theirs[side]).sum(1).min() >= 0.9999
        assert np.abs(ours[side] @ ours[side].T - np.eye(64)).max() < 0.9999  # no two inputs are embedded alike
    first = [np.argsort(-(e["text"] @ e["image"].T), axis=1, kind="stable")[:, :10] for e in (ours, theirs)]
    np.testing.assert_array_equal(*first)


def test_the_lines_of_the_card_load_it(converted, params):
    folder = export(converted, BOTH)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert [len(block.splitlines()) for block in blocks] == [5, 5]
    found = {}
    for block in blocks:
        exec(block.replace("FOLDER", str(folder)), found)
    same_bits({k: np.asarray(v) for k, v in flatten_dict(found["params"], sep="/").items()}, params)
    same_bits(found["tensors"], {k.replace("/", "."): v for k, v in params.items()})
    assert found["model"] == build_model(found["config"]["model"])
    expected = load_tokenizer().encode(["a woman in a red coat"], 24)[0]
    assert found["ids"] == expected[expected != 0].tolist()


def test_an_export_of_tensors_alone_is_searched_without_the_hub(converted, tmp_path, capsys):
    """Its config names a tokenizer that nobody has: the folder carries its own."""
    folder = export(converted, ["safetensors"])
    changed = record_of(folder)
    changed["config"]["text"]["tokenizer"] = "no-such-name"
    (folder / "config.json").write_text(json.dumps(changed))
    rewrite(folder / "model.safetensors", {})
    Image.new("RGB", (10, 14), (200, 10, 10)).save(tmp_path / "red.png")
    assert search.main([f"--workdir={folder}", f"--images={tmp_path}", "a red coat"]) == 0
    assert re.match(r"  1  [+-]\d\.\d{4}  .*/red.png  odd: ", capsys.readouterr().out)


def test_compiled_forms_lie_in_folders_of_their_own(run, write_summary):
    pytest.importorskip("onnx")
    folder = export(run, ["stablehlo", "onnx"])
    assert names(folder) == {"config.json", "README.md", "stablehlo", "onnx"} | TOKENIZER
    assert names(folder / "onnx") == {"image_encoder.onnx", "text_encoder.onnx", "manifest.json"} | TOKENIZER
    assert "image_encoder.stablehlo" in names(folder / "stablehlo")
    card = (folder / "README.md").read_text()
    assert "from `onnx/`" in card and "ivt_jax.search" not in card  # which needs the parameters


def test_the_export_of_a_run_says_what_a_best_score_means(run, write_summary):
    learned = {"slope": 10.0, "offset": -4.0, "threshold": 0.3, "miss": 0.05, "caught": 0.4, "gallery": 1200}
    write_summary(run, "val", 20, calibration=learned)
    assert read_calibration(export(run, ["orbax"])) == Calibration(**learned)


# ---- the way back


def rewrite(file, changes, metadata=None):
    """Changes tensors of the file: name -> array, or None to leave the tensor out."""
    save_file(without_none(load_file(file) | changes), file, metadata)


def assert_refused(capsys, code, message):
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_tensors_come_back_as_a_folder_bit_for_bit(run, best, write_summary, tmp_path, capsys):
    write_summary(run, "test", 20)
    folder = export(run, ["safetensors"])
    assert convert.main(["--source=export", f"--weights={folder}/model.safetensors", f"--out={tmp_path}/new"]) == 0
    out = capsys.readouterr().out
    assert names(tmp_path / "new") == {"config.json", "params"} | TOKENIZER
    restored = restore_params(tmp_path / "new")
    same_bits(flatten_dict(restored.params, sep="/"), best)
    rows = [line.split() for line in out.splitlines()[1:-1]]
    assert {(row[0], row[2], row[4]) for row in rows} == {("used", k.replace("/", "."), k) for k in best}
    record = record_of(tmp_path / "new")
    assert record.pop("weights")["source"] == "export" and record == record_of(folder) and restored.step == 20


BIAS = "blocks.norm.bias"
CONVERT_FAULTS = {
    "missing": ({BIAS: None}, f'tensor "{BIAS}" is missing'),
    "unexpected": ({"fusion.bias": np.ones(3, np.float32)}, 'unexpected tensor "fusion.bias" of shape (3,)'),
    "shape": ({BIAS: np.ones(13, np.float32)}, f'"{BIAS}" has shape (13,), expected (12)'),
    "nan": ({BIAS: np.full(12, np.nan, np.float32)}, f'"{BIAS}" has values that are not finite'),
    "float8": ({BIAS: np.ones(12, ml_dtypes.float8_e4m3fn)}, f'tensor "{BIAS}" has dtype F8_E4M3; weights must be'),
    "complex": ({BIAS: np.ones(12, np.complex64)}, f'tensor "{BIAS}" has dtype C64; weights'),
    "format": ({}, "has format 2, this ivt_jax reads format 1 and older: update ivt_jax"),
    "config": ({}, "was written with another config than config.json beside it holds"),
    "flags": ({}, "--config does not go with --source=export"),
    "keys": ({}, "unexpected arguments: --config.model.width=3; --source=export takes the config beside --weights"),
    "alone": ({}, "config.json not found"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERT_FAULTS)
def test_the_way_back_refuses_in_one_line(converted, tmp_path, capsys, name):
    changes, message = CONVERT_FAULTS[name]
    file = export(converted, ["safetensors"]) / "model.safetensors"
    metadata = {"format": {"ivt_jax_format": "2"}, "config": {"config_sha256": "0" * 64}}.get(name)
    rewrite(file, changes, metadata)
    more = {"flags": ["--config=configs/cuhk.py"], "keys": ["--config.model.width=3"]}.get(name, [])
    if name == "alone":
        file = file.rename(tmp_path / "model.safetensors")
    code = convert.main(["--source=export", f"--weights={file}", f"--out={tmp_path}/new", *more])
    assert_refused(capsys, code, message)
    assert not [name for name in names(tmp_path) if "new" in name]


@pytest.mark.parametrize(("dtype", "name"), [(np.int32, "I32"), (bool, "BOOL"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")])
@pytest.mark.parametrize("shapes_alone", [False, True])
def test_an_export_with_other_numbers_is_not_searched(converted, dtype, name, shapes_alone):
    file = export(converted, ["safetensors"]) / "model.safetensors"
    rewrite(file, {BIAS: np.ones(12, dtype)}, safe_open(file, "numpy").metadata())
    with pytest.raises(UserError) as error:
        restore_params(file.parent, shapes_alone=shapes_alone)
    line = f'{file}: tensor "{BIAS}" has dtype {name}; weights must be float16, bfloat16, float32 or float64: '
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_an_export_in_another_floating_point_dtype_is_read_as_float32(converted, params, dtype):
    file = export(converted, ["safetensors"]) / "model.safetensors"
    changes = {name: value.astype(dtype) for name, value in load_file(file).items()}
    rewrite(file, changes, safe_open(file, "numpy").metadata())
    expected = {path: value.astype(dtype).astype(np.float32) for path, value in params.items()}
    same_bits(flatten_dict(restore_params(file.parent).params, sep="/"), expected)


def test_formats_are_added_to_an_export_of_the_same_parameters(run, best, write_summary):
    folder = export(run, ["orbax"])
    first = {path: path.stat().st_mtime_ns for path in (folder / "params").rglob("*")}
    assert "model.safetensors" not in names(folder) and "Not evaluated on test." in (folder / "README.md").read_text()
    write_summary(run, "test", 20)
    assert export(run, BOTH) == folder
    assert names(folder) == {"config.json", "params", "model.safetensors", "README.md"} | TOKENIZER
    assert {path: path.stat().st_mtime_ns for path in (folder / "params").rglob("*")} == first
    same_bits(load_file(folder / "model.safetensors"), {k.replace("/", "."): v for k, v in best.items()})
    card = (folder / "README.md").read_text()
    assert "With JAX and the parameters" in card and "With safetensors, without JAX" in card
    assert "| text to image | 10.00 (9.00 to 11.25) |" in card  # the figures are the current ones
    assert not [name for name in names(run) if name.endswith(".partial")]


# ---- whole or not at all


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_format_that_cannot_be_added_leaves_the_export_as_it_was(converted, monkeypatch, failure):
    def fail(folder, trained):
        (folder / "model.safetensors").write_bytes(b"half")
        raise failure

    folder = export(converted, ["orbax"])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setitem(export_run.FORMATS, "safetensors", fail)
    with pytest.raises(UserError if isinstance(failure, OSError) else type(failure)):
        export(converted, BOTH)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not [name for name in names(converted) if name.endswith(".partial")]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), UserError("damaged")])
def test_an_export_that_fails_leaves_nothing(converted, monkeypatch, failure):
    def fail(folder, trained):
        assert (folder / "params").is_dir()
        raise failure

    monkeypatch.setitem(export_run.FORMATS, "safetensors", fail)
    before = names(converted)
    with pytest.raises(UserError if isinstance(failure, OSError) else type(failure)) as error:
        export(converted, BOTH)
    if isinstance(failure, OSError):
        assert str(error.value) == f"{converted}/export cannot be written: No space left on device"
    assert names(converted) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from ivt_jax.export import run
run.FORMATS["safetensors"] = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
run.export(Path(sys.argv[1]), ["orbax", "safetensors"])
"""


def test_an_export_that_is_killed_leaves_no_export(converted, params):
    before = names(converted)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(converted)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in names(converted) - before if not name.startswith(".export.")] == []
    same_bits(flatten_dict(restore_params(export(converted, BOTH)).params, sep="/"), params)


# ---- refusals


@pytest.mark.parametrize(("formats", "unknown"), [(["orbax", "onyx", "pth"], "onyx, pth"), ([], r"\(none\)")])
def test_unknown_formats_are_refused_with_the_known_ones(tmp_path, formats, unknown):
    with pytest.raises(UserError, match=f"^--formats: unknown: {unknown}; name some of orbax, safetensors"):
        export(tmp_path / "nowhere", formats)


def test_an_export_of_other_parameters_is_not_touched(converted):
    folder = export(converted, ["orbax"])
    record = record_of(folder)
    (folder / "config.json").write_text(json.dumps(record | {"model": "0" * 64, "step": 7}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        export(converted, ["safetensors"])
    assert str(error.value) == (
        f"{folder} exists already, with other parameters (step 7) or by an older ivt_jax; "
        "remove it, or move it away, to export step 0"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_export_is_not_touched(converted):
    folder = converted / "export"
    folder.mkdir()
    message = rf"^{folder} exists already, .*; remove it, or move it away, to export step 0$"
    with pytest.raises(UserError, match=message):
        export(converted, ["safetensors"])
    assert not list(folder.iterdir())


def test_an_export_where_its_files_would_be_lost_is_refused(converted, tmp_path):
    (tmp_path / "[x]").mkdir()
    folder = converted.rename(tmp_path / "[x]/converted")
    for formats in (BOTH, ["saved_model"]):
        with pytest.raises(UserError, match=r'/\[x\]/converted: a path with "\[" is not supported'):
            export(folder, formats)
    assert not (folder / "export").exists()
    export(folder, ["safetensors"])
    restore_params(folder / "export")


def test_one_process_exports(converted, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="runs in one process"):
        export(converted, ["orbax"])


def damage(folder, name):
    """Damages an export in safetensors; returns the expected message."""
    file, record = folder / "model.safetensors", record_of(folder)
    metadata = safe_open(file, "numpy").metadata()
    if name == "format":
        (folder / "config.json").write_text(json.dumps({**record, "format": 2}))
        return "config.json has format 2, this ivt_jax reads format 1 and older: update ivt_jax"
    if name == "tokenizer":
        entries = SHIPPED.read_text().splitlines()
        (folder / "vocab.txt").write_text("\n".join([*entries[:-1], "zebra"]) + "\n")
        (folder / "tokenizer.json").unlink()
        load_tokenizer(str(folder)).save(folder)
        digests = record["tokenizer"][:12], load_tokenizer(str(folder)).digest[:12]
        return f"was made with tokenizer {digests[0]}, but {folder}/tokenizer.json is now {digests[1]}: "
    if name == "heads":
        record["config"]["model"]["num_heads"] = 2
        (folder / "config.json").write_text(json.dumps(record))
        return "model.safetensors was written with another config than config.json beside it holds"
    if name == "cut":
        file.write_bytes(file.read_bytes()[:-5])
        return "model.safetensors is cut short: "
    shape = "blocks/norm/bias has shape (13,), the model of its config has (12,)"
    unknown = "fusion/bias has shape (3,), and the model of its config has no such parameter"
    changes, fault = {
        "shape": ({BIAS: np.ones(13, np.float32)}, shape),
        "nan": ({BIAS: np.full(12, np.nan, np.float32)}, "blocks/norm/bias has values that are not finite"),
        "missing": ({BIAS: None}, "blocks/norm/bias is missing"),
        "unexpected": ({"fusion.bias": np.ones(3, np.float32)}, unknown),
    }[name]
    rewrite(file, changes, metadata)
    return f"{folder}, step 0: {fault}; export or convert again"


@pytest.mark.parametrize("name", ["format", "tokenizer", "heads", "cut", "shape", "nan", "missing", "unexpected"])
def test_a_folder_at_fault_is_one_line_and_exit_code_2(converted, tmp_path, capsys, name):
    folder = export(converted, ["safetensors"])
    message = damage(folder, name)
    Image.new("RGB", (10, 14)).save(tmp_path / "black.png")
    assert_refused(capsys, search.main([f"--workdir={folder}", f"--images={tmp_path}", "a red coat"]), message)


def test_the_command_exports_and_refuses(converted):
    command = [sys.executable, "-m", "ivt_jax.main", "--config=configs/synth.py", f"--workdir={converted}"]
    environment = {**os.environ, "XLA_FLAGS": ""}

    def call(formats):
        call = [*command, "--mode=export", formats]
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    line = "error: --formats: unknown: onyx; name some of orbax, safetensors"
    code, out, err = call("--formats=onyx")
    assert (code, out) == (2, "") and err.startswith(line) and err.count("\n") == 1
    assert call("--formats=safetensors") == (0, f"{converted}/export\n", "")
    assert names(converted / "export") == {"config.json", "README.md", "model.safetensors"} | TOKENIZER
