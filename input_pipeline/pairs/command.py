"""Makes an index of image-text pairs and copies it to a bucket: `python -m input_pipeline.prepare --pairs PATTERN`."""

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from input_pipeline.pairs import store
from input_pipeline.pairs.index import index_pairs
from input_pipeline.pairs.rows import ABOUT, ASIDE, SUMS
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_remote, lines_of, lock_file
from ivt_jax.common.messages import counted


def run(args: argparse.Namespace) -> None:
    """Makes the index and prints its counts. Raises UserError."""
    folder, out = _folders(args.pairs, args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / "lock")
    except BlockingIOError:
        raise UserError(f"{folder}: another process makes this index; wait for it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder with --out") from None
    with lock:
        about = index_pairs(args.pairs, folder, args.longest, args.val_pairs, args.workers)
        if is_remote(out):
            _upload(folder, out)
    _print(about, out)


def _folders(patterns: list[str], out: str) -> tuple[Path, str]:
    """Returns the local folder to make the index in, and where it is to be."""
    if not out:
        if any(map(is_remote, patterns)):
            raise UserError("--out is missing: shards in a bucket need it, such as --out=gs://BUCKET/pairs")
        out = os.path.join(os.path.dirname(store.find(patterns[0])[0]), "pairs")
    if not is_remote(out):
        return Path(out).absolute(), out
    url = out.rstrip("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivt_jax" / "pairs"
    return cache / hashlib.sha256(url.encode()).hexdigest()[:16], url


def _upload(folder: Path, url: str) -> None:
    store.remove(f"{url}/{SUMS}")
    names = [line.partition("  ")[2] for line in lines_of((folder / SUMS).read_text())]
    for number, name in enumerate([*names, SUMS], 1):
        print(f"writing {url}/{name} ({number} of {len(names) + 1})", file=sys.stderr)
        store.upload(str(folder / name), f"{url}/{name}")


def _print(about: dict[str, Any], out: str) -> None:
    shards = counted(about["shards"], "shard")
    print(f"{out}/{ABOUT}: {counted(about['train'], 'pair')} to train, {about['val']:,} to validate, in {shards}")
    if about["repeated_images"]:
        print(f"{counted(about['repeated_images'], 'pair')} more of an image that another pair has, on the same side")
    for reason, count in about["set_aside"].items():
        print(f"set aside: {count:,} x {reason}")
    if about["set_aside"]:
        print(f"{out}/{ASIDE} lists them")
