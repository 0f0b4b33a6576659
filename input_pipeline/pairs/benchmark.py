"""Measures how fast pairs are read and decoded on one core, beside webdataset's loader, and how an index starts.

    pip install webdataset; python -m input_pipeline.pairs.benchmark           # pairs/s of both, some minutes
    python -m input_pipeline.pairs.benchmark --startup --json=startup.json     # 10 M pairs: seconds and memory

Both sides read the same shards, in the form of img2dataset (256 x 256, quality 95), and decode and resize each image
once by the same code. They alternate in one process on one core; the medians of their turns are compared. webdataset
reads front to back with its own shuffling (a buffer of 1,000). --startup measures an index of sparse shards: each has
10 real images, which its 10,000 rows share.
"""

import argparse
import io
import itertools
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from input_pipeline.keyed_order import KeyedPlans
from input_pipeline.pairs.index import index_pairs
from input_pipeline.pairs.rows import ABOUT, DIRECT, FORMAT, ROW, SHARDS
from input_pipeline.pairs.source import IndexedPairs
from input_pipeline.source import key_of_bytes, key_of_caption
from ivt_jax.common.command import exit_code, filled_path, positive
from ivt_jax.common.errors import UserError

_BATCH = 64
_WARM_UP = 3  # batches of each side
_REAL = 10  # images of a sparse shard
_STRIDE = 40_000_000  # bytes between them
_CAPTION = b"A person in a red coat crosses a street."

Encoded = tuple[Sequence[bytes], Sequence[Any]]  # images and captions of a batch


def picture(number: int) -> bytes:
    """Returns a JPEG of 256 x 256 with noise, about 30 kB, other pixels for each number."""
    rng = np.random.default_rng(number)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((256, 256), 3)
    noisy = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 6, (256, 256, 3)).astype(np.int16), 0, 255)
    file = io.BytesIO()
    PIL.Image.fromarray(noisy.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_shards(folder: Path, shards: int, pairs: int) -> None:
    """Writes shards as img2dataset does: .jpg, .json and .txt of each pair. 100 different images are repeated."""
    images = [picture(number) for number in range(100)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(pairs):
                about = {"caption": _CAPTION.decode(), "status": "success", "width": 256, "height": 256}
                contents = {"jpg": images[number % 100], "json": json.dumps(about).encode(), "txt": _CAPTION}
                for suffix, content in contents.items():
                    info = tarfile.TarInfo(f"{shard:05d}{number:04d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def indexed_batches(source: IndexedPairs) -> Iterator[Encoded]:
    """Yields batches by an index, in the keyed order, without end."""
    plan = KeyedPlans([source.num_pairs], _BATCH)
    for step in itertools.count():
        _, _, pairs = plan.rows(step)
        yield source.encoded(pairs), source.texts(pairs)


def webdataset_batches(folder: Path) -> Iterator[Encoded]:
    """Yields batches by webdataset, shuffled, without end. Raises UserError if it is not installed."""
    try:
        import webdataset
    except ImportError:
        raise UserError("webdataset is not installed: pip install webdataset") from None
    paths = sorted(map(str, folder.glob("*.tar")))
    samples = webdataset.WebDataset(paths, shardshuffle=len(paths)).repeat().shuffle(1000).to_tuple("jpg", "txt")
    stream = iter(samples)
    while batch := list(itertools.islice(stream, _BATCH)):
        images, captions = zip(*batch, strict=True)
        yield images, [caption.decode() for caption in captions]


def compare(batches: int, turns: int, size: int) -> dict[str, float]:
    """Returns pairs per second of both sides, the ratio of the medians, and its range over the turns."""
    import tensorflow as tf

    from input_pipeline import augment

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        def one(image: tf.Tensor) -> tf.Tensor:
            return augment.resize(augment.decode(image), (size, size), "bicubic")

        return tf.map_fn(one, encoded, fn_output_signature=tf.uint8, parallel_iterations=1)

    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), 4, 1000)
        index_pairs([f"{folder}/*.tar"], Path(folder) / "pairs", 1000, 0, 1)
        source = IndexedPairs(f"{folder}/pairs")
        sides = {"index": indexed_batches(source), "webdataset": webdataset_batches(Path(folder))}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(turns + 1):
            for name, side in sides.items():
                start = time.perf_counter()
                for encoded, _ in itertools.islice(side, batches if turn else _WARM_UP):
                    decode(tf.constant([*encoded]))
                rates[name].append(batches * _BATCH / (time.perf_counter() - start))
    ours, theirs = (np.array(rates[name][1:]) for name in sides)
    ratio = float(np.median(ours) / np.median(theirs))
    least, most = np.quantile(ours / theirs, [0, 1]).tolist()
    return {
        "index": float(np.median(ours)),
        "webdataset": float(np.median(theirs)),
        "ratio": ratio,
        "least": least,
        "most": most,
    }


def write_sparse(folder: Path, shards: int, pairs: int) -> None:
    """Writes sparse shards and an index of `shards` * `pairs` rows."""
    index = folder / "pairs"
    index.mkdir()
    images = [picture(number) for number in range(_REAL)]
    rows = np.zeros(pairs, ROW)
    which = np.arange(pairs) % _REAL
    sizes = np.array([len(image) for image in images])
    rows["image"], rows["image_size"] = which * _STRIDE, sizes[which]
    rows["text"], rows["text_size"] = rows["image"] + sizes[which], len(_CAPTION)
    rows["image_key"] = np.array([key_of_bytes(image) for image in images], np.uint64)[which]
    rows["text_key"], rows["flags"] = key_of_caption(_CAPTION.decode()), DIRECT
    entries = []
    with (index / "train.npy").open("wb") as table:
        header = {"descr": ROW.descr, "fortran_order": False, "shape": (shards * pairs,)}
        np.lib.format.write_array_header_1_0(table, header)
        for shard in range(shards):
            path = folder / f"{shard:05d}.tar"
            with path.open("wb") as file:
                for number, image in enumerate(images):
                    file.seek(number * _STRIDE)
                    file.write(image + _CAPTION)
            entries.append(
                {"path": f"../{path.name}", "size": path.stat().st_size, "mark": str(path.stat().st_mtime_ns)}
            )
            rows["shard"] = shard
            table.write(rows.tobytes())
    (index / SHARDS).write_text(json.dumps(entries))
    about = {"format": FORMAT, "train": shards * pairs, "val": 0, "shards": shards, "digests": {"train": "0" * 64}}
    (index / ABOUT).write_text(json.dumps(about))


def start_up(pairs: int, batches: int) -> dict[str, float]:
    """Returns seconds to open an index of `pairs` and to read a batch; resident MB at the start and after batches."""
    with tempfile.TemporaryDirectory() as folder:
        write_sparse(Path(folder), pairs // 10_000, 10_000)
        before, start = _resident(), time.perf_counter()
        source = IndexedPairs(f"{folder}/pairs")
        stream, opened = indexed_batches(source), time.perf_counter()
        next(stream)
        first, memory = time.perf_counter(), {"MB_before": before, "MB_after_1_batch": _resident()}
        for taken, more in ((batches // 10, batches // 10 - 1), (batches, batches - batches // 10)):
            next(itertools.islice(stream, more - 1, None))
            memory[f"MB_after_{taken}_batches"] = _resident()
        seconds = {"seconds_to_open": opened - start, "seconds_to_first_batch": first - opened}
        return {"pairs": source.num_pairs, **seconds, **memory}


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def run(options: argparse.Namespace) -> None:
    """Measures and prints a line for each figure."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before TensorFlow counts the cores
    startup = options.startup
    result = start_up(options.pairs, 1000) if startup else compare(options.batches, options.turns, options.size)
    for name, value in result.items():
        print(f"{name}: {value:,.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.pairs.benchmark", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--batches", type=positive, default=10, help="batches of 64 pairs in a turn")
    parser.add_argument("--turns", type=positive, default=11)
    parser.add_argument("--size", type=positive, default=224, help="side of the resized image, pixels")
    parser.add_argument("--startup", action="store_true", help="measure the start of a large index instead")
    parser.add_argument("--pairs", type=positive, default=10_000_000, help="of --startup, in shards of 10,000")
    parser.add_argument("--json", type=filled_path, help="write the results to this file, too")
    options = parser.parse_args(argv)
    return exit_code(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
