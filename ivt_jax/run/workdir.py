"""The folder of a run: which config it belongs to, and with what code and hardware it was made."""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import default
from input_pipeline.tokenizer import Tokenizer, load_tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import write_text

# Of config.json and what lies beside it. Raise it where an older ivt_jax would misread a folder written now: a key or
# a parameter that means something else, not one that is added. What is older must stay readable; none said is 1.
FORMAT = 1
# Keys that say where a run computes, where its data lie, and what is told of the result; not what it learns.
PLACES = ("runtime.", "data.root", "evaluation.")
LENGTH = "train.steps"  # may differ if the run can go on to it: train.py decides
_held: dict[Path, AbstractContextManager[Any]] = {}  # the locks of this process, which it keeps as long as it lives
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "tensorflow")


def make_workdir(workdir: Path) -> Path:
    """The folder, made where it is missing. Raises UserError where it cannot be made or written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be made: {error.strerror}") from None
    if not os.access(workdir, os.W_OK):
        raise UserError(f"the workdir {workdir} cannot be written")
    return workdir


def hold_workdir(workdir: Path) -> None:
    """Makes the workdir this process's until it ends, in whatever way. Raises UserError where another run holds it."""
    path = workdir.resolve()
    if path not in _held:
        _held[path] = lock_folder(workdir, "run", "--workdir")


def lock_folder(folder: Path, who: str, flag: str) -> AbstractContextManager[Any]:
    """Makes a folder the caller's until what is returned is left, or the process ends, in whatever way.

    who: what has such a folder for itself; flag: what names another folder. Raises UserError where another holds it.
    """
    path = folder / "lock"
    try:
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        raise UserError(f"another {who} is at work in {folder}: wait for its end, or choose another {flag}") from None
    except PermissionError:
        raise UserError(f"{path} cannot be written: {folder} is somebody else's") from None
    except OSError as error:
        told = f"{folder} has no locks ({error.strerror}): see to it that no second {who} writes there"
        print(f"warning: {told}", file=sys.stderr)
        return nullcontext()


def is_at_work(workdir: Path) -> bool:
    """Whether a run holds the workdir, this process's own among them; False where that cannot be told."""
    try:
        with (workdir / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def refuse_other_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError where the workdir is another config's, naming the keys that differ; PLACES and LENGTH may."""
    if (workdir / "config.json").exists():
        differences = _differences(_with_later_keys(load_config(workdir), config), config)
        differences.pop(LENGTH, None)
        _refuse(workdir, differences)


def refuse_other_data(workdir: Path, annotations: Path) -> None:
    """Raises UserError where the workdir's run was trained with other annotations than this file's."""
    if (workdir / "config.json").exists() and load_record(workdir).get("annotations") != digest(annotations):
        raise UserError(f"{workdir} was trained with other annotations than {annotations}. Choose another --workdir")


def other_data(workdir: Path, annotations: Path, pictures: str) -> str:
    """Returns which data are not those of the workdir's training: "annotations", "images", both joined by "and", or "".

    pictures: the digest of the images, "" if it is not known. Data without a known digest do not count as different.
    """
    if not (workdir / "config.json").exists():
        return ""
    then = load_record(workdir)
    pairs = {
        "annotations": (then.get("annotations"), digest(annotations)),
        "images": (then.get("pictures"), pictures),
    }
    return " and ".join(name for name, (old, new) in pairs.items() if old and new and old != new)


def recorded_pictures(workdir: Path) -> str:
    """Returns the digest of the images that the workdir's run began with; "" if there is no run or it recorded none."""
    return load_record(workdir).get("pictures", "") if (workdir / "config.json").exists() else ""


def record_config(
    workdir: Path, config: ConfigDict, annotations: Path, tokenizer: Tokenizer, pictures: str = ""
) -> None:
    """Writes config.json, which ties the workdir to this config, these data and this tokenizer.

    pictures: the digest of the images that the run trains on, if it is known.
    """
    run = {"config": config.to_dict(), "annotations": digest(annotations), **environment()}
    if pictures:
        run["pictures"] = pictures
    write_record(make_workdir(workdir), run, tokenizer)


def record_conversion(
    folder: Path, origin: dict[str, Any], source: str, files: Iterable[Path], tokenizer: Tokenizer | None
) -> None:
    """Writes config.json of a folder of converted weights: which they were, by their digest.

    origin: the config, and what else is known of where they come from.
    """
    weights = {"source": source, "files": {path.name: digest(path) for path in files}}
    write_record(folder, {**environment(), **origin, "weights": weights}, tokenizer)


def write_record(folder: Path, record: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    """config.json: `record` with the format, and the digest of the tokenizer where it is known."""
    known = {"format": FORMAT} | ({"tokenizer": tokenizer.digest} if tokenizer else {})
    write_json(folder / "config.json", {**record, **known})


def load_record(workdir: Path | str) -> dict[str, Any]:
    """The whole of config.json: "config", and what was written beside it. Raises UserError where it is not ours."""
    path = Path(workdir) / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found: {workdir} is not the workdir of a run") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {workdir} is not the workdir of a run") from None
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise UserError(f"{path} holds no config of ours: {workdir} is not the workdir of a run")
    version = record.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(f"{path} has format {version}, this ivt_jax reads format {FORMAT} and older: update ivt_jax")
    return record


def load_config(workdir: Path | str) -> ConfigDict:
    """The resolved config that a run wrote into its workdir."""
    return ConfigDict(load_record(workdir)["config"])


def folder_tokenizer(workdir: Path, config: ConfigDict) -> Tokenizer:
    """The tokenizer that texts go through with this folder: the one it carries, or else the config's.

    Raises UserError where config.json records another one. A folder that records none is not checked.
    """
    own = (workdir / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(str(workdir) if own else config.text.tokenizer, config.model.vocab_size)
    if (workdir / "config.json").exists():
        place = str(workdir / "tokenizer.json") if own else f'text.tokenizer="{config.text.tokenizer}"'
        refuse_other_tokenizer(workdir, tokenizer, place, "bring the first back there, or choose another --workdir")
    return tokenizer


def refuse_other_tokenizer(workdir: Path, tokenizer: Tokenizer, place: str, remedy: str) -> None:
    """Raises UserError where the folder records another tokenizer than the one that is found in `place`."""
    recorded = load_record(workdir).get("tokenizer")
    if recorded and recorded != tokenizer.digest:
        now = f"{place} is now {tokenizer.digest[:12]}"
        raise UserError(f"{workdir} was made with tokenizer {recorded[:12]}, but {now}: {remedy}")


def config_of_run(workdir: Path, config: ConfigDict, given: Iterable[str]) -> ConfigDict:
    """The recorded config of a run that is to be evaluated or exported, with the PLACES that the command names.

    config: the command's; given: the keys that its flags set. Raises UserError where another key was given another
    value than the run has, or where the config is one of another dataset.
    """
    recorded, flat = _with_later_keys(load_config(workdir), config), flatten(config.to_dict())
    chosen = {key: flat[key] for key in given if key in flat}
    recorded.update_from_flattened_dict({key: value for key, value in chosen.items() if key.startswith(PLACES)})
    differences = _differences(recorded, config)
    _refuse(workdir, {key: pair for key, pair in differences.items() if key in {*chosen, "data.name"}})
    return recorded


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment() -> dict[str, Any]:
    """The git revision (with -dirty where files were changed, "" outside a clone), the versions, the devices."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        git = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    except FileNotFoundError:  # no git on this machine
        git = ""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)"
    return {"revision": git.strip(), "versions": versions, "device": device}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one where the file lacks."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _with_later_keys(recorded: ConfigDict, config: ConfigDict) -> ConfigDict:
    """A recorded config with the keys that it lacks and `config` has, at their defaults.

    They came after the run began: the default of a new key leaves a run what it was.
    """
    known, defaults = flatten(recorded.to_dict()), flatten(default.get_config().to_dict())
    whole = recorded.copy_and_resolve_references()
    for key in flatten(config.to_dict()):
        if key not in known and key in defaults:
            *sections, name = key.split(".")
            place = whole
            for section in sections:
                if section not in place:
                    place[section] = ConfigDict()
                place = place[section]
            place[name] = defaults[key]
    return whole


def _refuse(workdir: Path, differences: dict[str, tuple[Any, Any]]) -> None:
    named = [f"{k} was {o!r}, is {n!r}" for k, (o, n) in sorted(differences.items()) if not k.startswith(PLACES)]
    if named:
        raise UserError(f"{workdir} belongs to another config: {'; '.join(named)}. Choose another --workdir")


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
