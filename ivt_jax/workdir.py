"""The folder of a run: which config it belongs to, and with what code and hardware it was made."""

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "tensorflow")


def refuse_other_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError where the workdir is another config's, naming the keys that differ.

    Keys under `runtime` may differ: they say where a run computes, not what.
    """
    if not (workdir / "config.json").exists():
        return
    differences = [
        f"{key} was {old!r}, is {new!r}"
        for key, (old, new) in sorted(_differences(load_config(workdir), config).items())
        if not key.startswith("runtime.")
    ]
    if differences:
        raise UserError(f"{workdir} belongs to another config: {'; '.join(differences)}. Choose another --workdir")


def record_config(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir this config's: writes config.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", {"config": config.to_dict(), **environment()})


def load_config(workdir: Path | str) -> ConfigDict:
    """The resolved config that a run wrote into its workdir."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{path} not found: {workdir} is not the workdir of a run")
    return ConfigDict(json.loads(path.read_text())["config"])


def environment() -> dict[str, Any]:
    """The git revision ("" outside a clone), the versions that compute, the devices."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)"
    return {"revision": git.stdout.strip(), "versions": versions, "device": device}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, in UTF-8."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as they look in JSON (where a tuple is a list); a missing key is None."""
    flat_old, flat_new = (flatten(json.loads(json.dumps(c.to_dict()))) for c in (old, new))
    keys = flat_old.keys() | flat_new.keys()
    pairs = {key: (flat_old.get(key), flat_new.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 128}} -> {"model.width": 128}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
