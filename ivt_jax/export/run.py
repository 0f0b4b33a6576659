"""Writes the export, WORKDIR/export, a self-contained folder. Each format is written whole or not at all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from input_pipeline.datasets import folder_of
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE, hidden_folder, refuse_path, write_text
from ivt_jax.export.card import card
from ivt_jax.export.manifest import Trained
from ivt_jax.export.onnx_graph import write_onnx
from ivt_jax.export.saved_model import write_saved_model
from ivt_jax.export.stablehlo import write_stablehlo
from ivt_jax.models.build import model_of
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.checkpoint import export_params, restore_params
from ivt_jax.run.parameter_file import NAME, model_digest, write_parameter_file
from ivt_jax.run.workdir import folder_tokenizer, load_record, read_json, write_record

# Value of --formats -> function that writes the format. Parameters lie beside config.json and the tokenizer, each
# compiled form in a folder of its own.
Write = Callable[[Path, Trained], None]
PARAMETERS: dict[str, Write] = {
    "orbax": lambda folder, trained: export_params(folder / "params", trained.params),
    "safetensors": lambda folder, trained: write_parameter_file(folder / NAME, trained.params, trained.config),
}
COMPILED: dict[str, Write] = {"stablehlo": write_stablehlo, "saved_model": write_saved_model, "onnx": write_onnx}
FORMATS = PARAMETERS | COMPILED
ENTRIES = {"orbax": "params", "safetensors": NAME} | {name: name for name in COMPILED}  # format -> file or folder
PATTERNS = {"orbax", "saved_model"}  # their libraries read a path as a pattern
# Keys of val/summary.json and test/summary.json that the export records.
_SCORES = ("t2i", "i2t", "interval", "protocols", "queries", "gallery", "persons", "oracle_R1", "selected_on", "parts")


def export(workdir: Path, formats: Sequence[str]) -> Path:
    """Writes the best checkpoint's parameters in `formats`, config.json, tokenizer and model card; returns the folder.

    If there is an export of the same parameters, the missing formats are added and the card gets the current scores.
    workdir: of a run, or a folder of parameters. Raises UserError if a format is unknown, the export has other
    parameters, or the files of the workdir do not go together.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"--formats: unknown: {', '.join(unknown) or '(none)'}; name some of {', '.join(FORMATS)}")
    if jax.process_count() > 1:
        raise UserError("--mode=export runs in one process: start it without --coordinator and --distributed")
    if PATTERNS.intersection(formats):
        refuse_path(workdir, UNWRITABLE)
    config, params, step = restore_params(workdir)
    tokenizer = folder_tokenizer(workdir, config)
    record = load_record(workdir)
    record |= {"step": step, "model": model_digest(config, params), "tokenizer": tokenizer.digest}
    record["scores"] = scores(workdir, step) or record.get("scores", {})
    folder = workdir / "export"
    exists = folder.exists()
    if exists:
        refuse_other_export(folder, record)
    present = [name for name, entry in ENTRIES.items() if (folder / entry).exists()]
    missing = [name for name in dict.fromkeys(formats) if name not in present]
    model = dataclasses.replace(IVTConfig.from_config(config.model), attention="xla")  # available on all platforms
    trained = Trained(model_of(model), params, config, tokenizer)
    with hidden_folder(folder) as partial:
        for name in missing:
            place = partial / name if name in COMPILED else partial
            place.mkdir(exist_ok=True)
            FORMATS[name](place, trained)
        write_record(partial, record, tokenizer)
        tokenizer.save(partial)
        write_text(partial / "README.md", card(record, [*present, *missing]))
        if not exists:
            partial.rename(folder.absolute())
        else:  # the card last, because it describes the other files
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "README.md"):
                path.rename(folder / path.name)
    return folder


def refuse_other_export(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises UserError if the export in `folder` has other parameters or another tokenizer than `record`.

    An export of an older ivt_jax has no digest of its parameters and is refused too.
    """
    found = load_record(folder) if (folder / "config.json").is_file() else {}
    if any(found.get(key) != record.get(key) for key in ("model", "tokenizer")):
        was, now = found.get("step", 0), record["step"]
        raise UserError(
            f"{folder} exists already, with other parameters (step {was}) or by an older ivt_jax; "
            f"remove it, or move it away, to export step {now}"
        )


def scores(workdir: Path, step: int) -> dict[str, Any]:
    """Returns scores of the last evaluation by folder of the workdir, in percent; those of another step are left out.

    With several datasets, "val" and "test" have the means and name their "parts"; "val-LABEL" is one of them.
    """
    found: dict[str, Any] = {}
    for split, names in (("val", (*_SCORES, "calibration")), ("test", _SCORES)):
        parts = read_json(workdir / split / "summary.json").get("parts", [])
        for folder in (split, *(folder_of(split, label) for label in parts)):
            summary = read_json(workdir / folder / "summary.json")
            if summary.get("step") == step:
                found[folder] = {name: summary[name] for name in names if name in summary}
    return found
