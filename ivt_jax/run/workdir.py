"""The folder of a run: its lock, and config.json with the config, the data, the code and the devices of the run."""

import functools
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from configs import default
from input_pipeline.datasets import source_names
from input_pipeline.tokenizer import NotLoadedError, Tokenizer, load_tokenizer
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import digest, lock_file, write_text
from ivt_jax.common.hub import Repository

# The format of config.json and the files beside it. Raise it if an older ivt_jax would misread a new folder: a key or a
# parameter has another meaning. An added key does not count. Older formats must stay readable; a missing format is 1.
FORMAT = 1
FREE_KEYS = ("runtime.", "data.root", "data.title", "evaluation.")  # do not change what a run learns: they may differ
LENGTH = "train.steps"  # may differ if the run can continue to it, which training/loop.py decides
SOURCES = "data.sources"  # only their folders may differ
flatten = functools.partial(flatten_dict, sep=".")  # {"model": {"width": 128}} as {"model.width": 128}
NO_RUN = (
    "is not the workdir of a run; a model on the hub or a folder of another library has to be converted first "
    "(python -m ivt_jax.convert)"
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "tensorflow")


def make_workdir(workdir: Path) -> Path:
    """Creates the folder if it is missing and returns it. Raises UserError if it cannot be created or written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be made: {error.strerror}") from None
    if not os.access(workdir, os.W_OK):
        raise UserError(f"the workdir {workdir} cannot be written")
    return workdir


@functools.cache  # keeps the lock
def hold_workdir(workdir: Path) -> AbstractContextManager[Any]:
    """Locks the workdir until this process ends. Raises UserError if another run holds it."""
    return lock_folder(workdir, "run", "--workdir")


def lock_folder(folder: Path, who: str, flag: str) -> AbstractContextManager[Any]:
    """Returns a lock on a folder, held until it is closed or the process ends. Warns if the file system has no locks.

    who, flag: for messages, the kind of process and its flag for the folder. Raises UserError if another process holds
    the lock or the folder cannot be written.
    """
    path = folder / "lock"
    try:
        return lock_file(path)
    except BlockingIOError:
        raise UserError(f"another {who} is at work in {folder}: wait for its end, or choose another {flag}") from None
    except PermissionError:
        raise UserError(f"{path} cannot be written: it belongs to another user; choose another {flag}") from None
    except OSError as error:
        advice = f"make sure that no second {who} writes there"
        print(f"warning: {folder} has no locks ({error.strerror}): {advice}", file=sys.stderr)
        return nullcontext()


def is_at_work(workdir: Path) -> bool:
    """Returns whether a run, of this process or another, holds the workdir; False if the lock cannot be read."""
    try:
        lock_file(workdir / "lock", shared=True).close()
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def refuse_other_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError with the keys whose values differ from the run's; FREE_KEYS and LENGTH may differ."""
    if record := _record(workdir):
        recorded = with_later_keys(ConfigDict(record["config"]), config)
        _refuse_differences(workdir, recorded, config, lambda key: key != LENGTH, "Choose another --workdir")


def refuse_other_data(workdir: Path, annotations: Mapping[str, Path]) -> None:
    """Raises UserError if the run was trained with annotations that differ from these files, given by label."""
    record = _record(workdir)
    recorded = _by_label(record.get("annotations"))
    for label, path in annotations.items():
        if record and recorded.get(label) != digest(path):
            raise UserError(f"{workdir} was trained with other annotations than {path}. Choose another --workdir")


def other_data(workdir: Path, label: str, annotations: Path, images_digest: str) -> str:
    """Returns which data differ from the training's: "annotations", "images", "annotations and images" or "".

    label: of the dataset. images_digest: "" if unknown. Data without a known digest do not count as different.
    """
    record, new = _record(workdir), {"annotations": digest(annotations), "pictures": images_digest}
    old = {key: _by_label(record.get(key)).get(label) for key in new}
    names = {"annotations": "annotations", "pictures": "images"}
    return " and ".join(names[key] for key in new if old[key] and new[key] and old[key] != new[key])


def recorded_images_digests(workdir: Path) -> dict[str, str]:
    """Returns the digests of the images that the run began with, by label; {} without a run or a recorded digest."""
    return _by_label(_record(workdir).get("pictures"))


def _by_label(recorded: str | dict[str, str] | None) -> dict[str, str]:
    """Returns digests by label of the dataset. A run with one dataset, labelled "", records its digest alone."""
    return recorded if isinstance(recorded, dict) else {"": recorded} if recorded else {}


def _as_recorded(digests: Mapping[str, str]) -> str | dict[str, str]:
    return digests[""] if [*digests] == [""] else {label: value for label, value in digests.items() if value}


def record_config(
    workdir: Path,
    config: ConfigDict,
    annotations: Mapping[str, Path],
    tokenizer: Tokenizer,
    images_digests: Mapping[str, str] = MappingProxyType({}),
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, which ties the workdir to this config, these data and this tokenizer.

    annotations, images_digests: by label of the dataset; a digest is of the images that the run trains on, "" if not
    known. origin: where the initial parameters come from (`training.init_from.origin_of`); a resumed run, which has
    none, keeps the recorded one.
    """
    more = {"pictures": _as_recorded(images_digests), "start": origin or _record(workdir).get("start")}
    known = {key: value for key, value in more.items() if value}
    digests = _as_recorded({label: digest(path) for label, path in annotations.items()})
    run = {"config": config.to_dict(), "annotations": digests, **environment(), **known}
    write_record(make_workdir(workdir), run, tokenizer)


def record_conversion(
    folder: Path,
    origin: dict[str, Any],
    source: str,
    files: Iterable[Path],
    tokenizer: Tokenizer | None,
    fetched: Mapping[str, tuple[Repository, list[Path]]] | None = None,
) -> None:
    """Writes config.json of a folder of converted weights, with the digests of the weights' `files`.

    origin: the config, and other entries about the source of the weights. fetched: for weights from the hub or in a
    folder of its layout, flag -> repository and files.
    """
    weights: dict[str, Any] = {"source": source, "files": {path.name: digest(path) for path in files}}
    for flag, (found, copies) in (fetched or {}).items():
        digests = {path.name: digest(path) for path in copies}
        if found.folder:
            folder_name = found.folder.absolute().name
            weights.setdefault("folders", {})[flag] = {"folder": folder_name, "files": digests}
            continue
        hub = {"repository": found.name, "revision": found.commit, "files": digests}
        weights.setdefault("hub", {})[flag] = hub
    if before := origin.get("weights"):  # an export of converted weights is converted again
        weights["before"] = before
    write_record(folder, {**environment(), **origin, "weights": weights}, tokenizer)


def write_record(folder: Path, record: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    """Writes config.json: `record`, the format, and the digest of the tokenizer if there is one."""
    known = {"format": FORMAT} | ({"tokenizer": tokenizer.digest} if tokenizer else {})
    write_json(folder / "config.json", {**record, **known})


def load_record(workdir: Path | str) -> dict[str, Any]:
    """Returns the content of config.json. Raises UserError if it cannot be read, has no config or a newer format."""
    path = Path(workdir) / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found: {workdir} {NO_RUN}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {workdir} {NO_RUN}") from None
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise UserError(f"{path} holds no config of ivt_jax: {workdir} {NO_RUN}")
    version = record.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(f"{path} has format {version}, this ivt_jax reads format {FORMAT} and older: update ivt_jax")
    return record


def _record(workdir: Path) -> dict[str, Any]:
    """Returns the content of config.json, {} if there is none. Raises UserError as `load_record` does."""
    return load_record(workdir) if (workdir / "config.json").exists() else {}


def load_config(workdir: Path | str) -> ConfigDict:
    """Returns the config that config.json records."""
    return ConfigDict(load_record(workdir)["config"])


def folder_tokenizer(workdir: Path, config: ConfigDict) -> Tokenizer:
    """Returns the tokenizer saved in the folder, or else the config's.

    Raises UserError if there is none, or config.json records another one; a folder that records none is not checked.
    """
    own = (workdir / "tokenizer.json").is_file()
    try:
        name = str(workdir) if own else config.text.tokenizer
        tokenizer = load_tokenizer(name, config.model.vocab_size, "" if own else config.text.get("clean", ""))
    except NotLoadedError as error:
        record = _record(workdir)
        if not record:  # a new run, whose command has the flag that the error names
            raise
        again = ", or convert again with --config.text.tokenizer=DIR" if "weights" in record else ""
        remedy = f"put its tokenizer.json and tokenizer_config.json into {workdir}{again}"
        raise DataError(f"{workdir} holds no tokenizer, and {error.reason}; {remedy}") from None
    place = str(workdir / "tokenizer.json") if own else f'text.tokenizer="{config.text.tokenizer}"'
    refuse_other_tokenizer(workdir, tokenizer, place, "restore the first one, or choose another --workdir")
    return tokenizer


def refuse_other_tokenizer(workdir: Path, tokenizer: Tokenizer, place: str, remedy: str) -> None:
    """Raises UserError if the folder records another tokenizer than this one, which comes from `place`."""
    recorded = _record(workdir).get("tokenizer")
    if recorded and recorded != tokenizer.digest:
        now = f"{place} is now {tokenizer.digest[:12]}"
        raise UserError(f"{workdir} was made with tokenizer {recorded[:12]}, but {now}: {remedy}")


def config_of_run(workdir: Path, config: ConfigDict, given: Iterable[str]) -> ConfigDict:
    """Returns the recorded config of a run to evaluate or export, with the command's values of given FREE_KEYS.

    A given data.sources counts, too, if its names are those of the run. config: the command's; given: the keys that its
    flags set. Raises UserError if another given key, or data.name, differs from the run's.
    """
    recorded, flat = with_later_keys(load_config(workdir), config), flatten(config.to_dict())
    chosen = {key: flat[key] for key in given if key in flat}
    remedy = "Give the --config that it was started with, without other values of these keys"
    _refuse_differences(workdir, recorded, config, {*chosen, "data.name"}.__contains__, remedy)
    free = {key: value for key, value in chosen.items() if key.startswith((*FREE_KEYS, SOURCES))}
    with recorded.ignore_type():  # a recorded tuple is a list
        recorded.update_from_flattened_dict(free)
    return recorded


def environment() -> dict[str, Any]:
    """Returns the git revision ("-dirty" with local changes, "" outside a clone), package versions and devices."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    git, versions = "", {}
    with suppress(FileNotFoundError):  # git is not installed
        git = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)"
    return {"revision": git.strip(), "versions": versions, "device": device}


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, {} if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def with_later_keys(recorded: ConfigDict, config: ConfigDict) -> ConfigDict:
    """Returns a recorded config with the keys that only `config` has, at their defaults.

    Such keys were added to ivt_jax after the run began, and their defaults change nothing.
    """
    known, defaults = flatten(recorded.to_dict()), flatten(default.get_config().to_dict())
    later = {key: defaults[key] for key in flatten(config.to_dict()) if key in defaults}
    return ConfigDict(unflatten_dict(later | known, sep="."))


def _refuse_differences(
    workdir: Path, old: ConfigDict, new: ConfigDict, counts: Callable[[str], bool], remedy: str
) -> None:
    """Raises UserError for the keys whose values differ in JSON (where a tuple is a list), except FREE_KEYS.

    Of SOURCES, the names are compared. counts: returns whether a key is compared. remedy: what to do, for the error.
    """
    was, now = (flatten(json.loads(json.dumps(config.to_dict()))) for config in (old, new))
    for flat in (was, now):
        flat[SOURCES] = source_names(flat.get(SOURCES, ()))
    keys = sorted(key for key in was | now if counts(key) and not key.startswith(FREE_KEYS))
    named = [f"{k} was {was.get(k)!r}, is {now.get(k)!r}" for k in keys if was.get(k) != now.get(k)]
    if named:
        raise UserError(f"{workdir} belongs to another config: {'; '.join(named)}. {remedy}")
