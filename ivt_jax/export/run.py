"""The export: WORKDIR/export, a folder that can be taken elsewhere. Each format is written whole or not at all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE, hidden_folder, refuse_path, write_text
from ivt_jax.export.card import card
from ivt_jax.export.onnx_graph import write_onnx
from ivt_jax.export.saved_model import write_saved_model
from ivt_jax.export.stablehlo import write_stablehlo
from ivt_jax.export.trained import Trained
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.run.checkpoint import export_params, restore_params
from ivt_jax.run.parameter_file import NAME, model_digest, write_parameter_file
from ivt_jax.run.workdir import folder_tokenizer, load_record, read_json, write_record


def write_orbax(folder: Path, trained: Trained) -> None:
    """Writes params/, an Orbax checkpoint."""
    export_params(folder / "params", trained.params)


def write_safetensors(folder: Path, trained: Trained) -> None:
    """Writes model.safetensors."""
    write_parameter_file(folder / NAME, trained.params, trained.config)


# What --formats may name -> what writes it: the parameters into the folder, beside config.json and the tokenizer;
# the compiled forms, which need neither, into folders of their own.
Write = Callable[[Path, Trained], None]
PARAMETERS: dict[str, Write] = {"orbax": write_orbax, "safetensors": write_safetensors}
COMPILED: dict[str, Write] = {"stablehlo": write_stablehlo, "saved_model": write_saved_model, "onnx": write_onnx}
FORMATS = PARAMETERS | COMPILED
ENTRIES = {"orbax": "params", "safetensors": NAME} | {name: name for name in COMPILED}  # format -> file or folder
PATTERNS = {"orbax", "saved_model"}  # their libraries read a path as a pattern
# Of val/summary.json and test/summary.json, what the export keeps.
_SCORES = ("t2i", "i2t", "interval", "protocols", "queries", "gallery", "persons", "oracle_R1", "selected_on")


def export(workdir: Path, formats: Sequence[str]) -> Path:
    """Writes the best checkpoint's parameters in `formats`, config.json, tokenizer and model card; returns the folder.

    An export of the same parameters gets the formats that are missing, and the current figures in its card.

    workdir: of a run, or a folder of parameters alone. Raises UserError where a format is unknown, the folder has other
    parameters, or what lies in the workdir does not go together.
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
    found = {"step": step, "model": model_digest(config, params), "tokenizer": tokenizer.digest}
    record = {**load_record(workdir), **found}
    record["scores"] = scores(workdir, step) or record.get("scores", {})
    folder = workdir / "export"
    exists = folder.exists()
    if exists:
        refuse_other_export(folder, record)
    present = [name for name, entry in ENTRIES.items() if (folder / entry).exists()]
    missing = [name for name in dict.fromkeys(formats) if name not in present]
    model = dataclasses.replace(IVTConfig.from_config(config.model), attention="xla")  # what all platforms have
    trained = Trained(IVT(model), params, config, tokenizer)
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
        else:  # the card last: it describes what is there
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "README.md"):
                path.rename(folder / path.name)
    return folder


def refuse_other_export(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises UserError if the export in `folder` has other parameters or another tokenizer than `record` names.

    An export of an older ivt_jax does not name its parameters, and is refused too.
    """
    found = load_record(folder) if (folder / "config.json").is_file() else {}
    if any(found.get(key) != record.get(key) for key in ("model", "tokenizer")):
        was, now = found.get("step", 0), record["step"]
        raise UserError(
            f"{folder} exists already, of other parameters (step {was}) or an older ivt_jax; "
            f"remove it, or move it away, to export step {now}"
        )


def scores(workdir: Path, step: int) -> dict[str, Any]:
    """Split -> what the last evaluation told of it, in percent; a split that was scored at another step is left out."""
    told = {}
    for split, names in (("val", (*_SCORES, "calibration")), ("test", _SCORES)):
        summary = read_json(workdir / split / "summary.json")
        if summary.get("step") == step:
            told[split] = {name: summary[name] for name in names if name in summary}
    return told
