"""Prepared splits, and the batches that training and evaluation read from them.

The stream of training batches is a function of (config.seed, step): row r of epoch e draws its text levels and its
augmentation from a generator keyed by (seed, e, r), so a run resumes at any step and every number of hosts sees the
same global batches.
"""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from input_pipeline import augment
from input_pipeline.annotations import Annotations, Record, hold_out_persons, read_annotations
from input_pipeline.builders import prepare
from input_pipeline.prepare import local_copy
from input_pipeline.sampling import EpochPlans, keyed_rng, traded_captions
from input_pipeline.text_levels import draw_levels
from input_pipeline.tokenizer import Tokenizer
from ivt_jax.common.errors import DataError

_THREADS = max(1, (os.cpu_count() or 1) // 2)  # the other half is the training step's, where that runs on the CPU

Batch = dict[str, Any]


class Source:
    """One split of a prepared dataset: who and what is in each image, and random access to the encoded bytes.

    Attributes: name, split; annotations, their file; root, the folder it is in; images, the folder of the images;
    paths, relative to it; persons (persons,) int32, their ids in the annotations, sorted; person_ids (images,) int32,
    index into `persons`; captions and attributes, for each image a tuple with an entry for each caption; copies
    (images,) int64, how many image records name the image; damaged (images,) bool; pairs: (image index, caption index)
    of every pair in record order, two int32 arrays; pictures, the digest of the contents of all images of the dataset,
    "" if it is not known.
    """

    def __init__(
        self, name: str, split: str, annotations: Annotations, records: Sequence[Record], data: Any, rows: Any
    ):
        """data: random access to examples with an "image"; rows (images,): where in it the records' images are."""
        self.name, self.split = name, split
        self.annotations, self.root, self.images = annotations.path, annotations.path.parent, annotations.images
        ids = np.array([record.person_id for record in records], np.int32)
        self.persons, inverse = np.unique(ids, return_inverse=True)
        self.person_ids = inverse.astype(np.int32)
        self.captions = [record.captions for record in records]
        self.attributes = [record.attributes for record in records]
        self.copies = np.array([record.copies for record in records], np.int64)
        self.paths = [record.image_path for record in records]
        pairs = [(image, i) for image, captions in enumerate(self.captions) for i in range(len(captions))]
        images, captions = np.array(pairs, np.int32).reshape(-1, 2).T
        self.pairs = images, captions
        self.damaged = np.zeros(len(records), bool)
        self.pictures = ""
        self._data, self._rows = data, rows

    def set_damaged(self, paths: Sequence[str]) -> None:
        """Makes other pairs stand in for those of damaged images, and says so. Raises DataError outside of train."""
        self.damaged = np.isin(np.array(self.paths), np.array(paths, str))
        count = int(self.damaged.sum())
        if count and self.split != "train":
            first = self.paths[int(self.damaged.argmax())]
            raise DataError(
                f"{self.images}: {count} images of {self.split} are damaged, the first is {first}; mend them, or leave "
                "them out by `python -m input_pipeline.doctor --dataset=NAME --root=DIR --fix_list`"
            )
        if count:
            print(f"{count} damaged training images, others of their person stand in for them", file=sys.stderr)

    def stand_in(self, pair: int, rng: np.random.Generator) -> int:
        """`pair`, or where its image is damaged a random one of the person (else of anybody) whose image is whole."""
        images = self.pairs[0]
        if not self.damaged[images[pair]]:
            return pair
        whole = np.flatnonzero(~self.damaged[images])
        own = whole[self.person_ids[images[whole]] == self.person_ids[images[pair]]]
        candidates = own if len(own) else whole
        return int(candidates[rng.integers(len(candidates))])

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """The encoded images (JPEG, PNG) at `indices`."""
        return [example["image"] for example in self._data.__getitems__(self._rows[np.asarray(indices)].tolist())]


def open_split(config: ConfigDict, split: str, pictures: str = "") -> Source:
    """The split ("train", "val", "test") of the config's dataset, prepared first where that is still to do.

    A dataset without a val split lends `data.val_persons` of its training persons; where that is 0, val is empty.
    data.root may be a portable folder, here or remote (gs://...), which is fetched once. pictures: the digest of the
    images that a run began with; "" opens the images as they are now. Raises UserError, in one line.
    """
    root, name = local_copy(config.data.root), config.data.name
    annotations = read_annotations(root, name)
    original: Sequence[Record] = annotations.records
    records = original
    without_val = not any(record.split == "val" for record in original)
    if without_val:
        records = hold_out_persons(original, config.data.val_persons)
    chosen = [number for number, record in enumerate(records) if record.split == split]
    if without_val and split == "val":
        _say_who_selects(annotations.path, {records[number].person_id for number in chosen})
    if not chosen and split == "val":
        return Source(name, split, annotations, (), (), np.zeros(0, np.int64))
    if not chosen:
        raise DataError(f"{annotations.path} has no {split} records")
    stored = original[chosen[0]].split
    row_of = {number: row for row, number in enumerate(n for n, r in enumerate(original) if r.split == stored)}
    elsewhere = Path(config.runtime.prepared) if config.runtime.prepared else None
    builder = prepare(root, name, elsewhere, config.data.max_damaged, pictures)
    data, damaged = builder.as_data_source(stored), builder.info.metadata["damaged"]
    # Rows are found by their number. A portable folder may state its paths otherwise than the folder that it is of.
    unknown = {*damaged} - {record.image_path for record in original}
    if len(data) != len(row_of) or unknown:
        differ = f"{len(data)} images of {stored} instead of {len(row_of)}"
        if unknown:
            differ = f"the annotations do not name its image {min(unknown)}"
        raise DataError(
            f"{builder.data_path} was not prepared from {annotations.path} and its quarantine.txt ({differ}): "
            "prepare it again where its images are; if these lie in imgs/imgs/, move them into imgs/ first"
        )
    rows = np.array([row_of[number] for number in chosen])
    source = Source(name, split, annotations, [records[n] for n in chosen], data, rows)
    source.pictures = builder.pictures
    source.set_damaged(damaged)
    return source


def _say_who_selects(path: Path, held_out: set[int]) -> None:
    said = f"{len(held_out)} training persons are held out in its place (data.val_persons)"
    nobody = "data.val_persons is 0: all persons train, and the last step counts as the best"
    print(f"{path} has no val split; {said if held_out else nobody}", file=sys.stderr)


def train_batches(
    config: ConfigDict,
    source: Source,
    tokenizer: Tokenizer,
    plans: EpochPlans,
    start_step: int = 0,
    host: int = 0,
    num_hosts: int = 1,
) -> Generator[Batch, None, None]:
    """This host's rows of the batches from `start_step` on, without end; to be closed before the program ends.

    Each is a dict of NumPy arrays; B rows are this host's share of data.batch_size, V = mla.views:
    images (B, V, H, W, 3) uint8, cropped and flipped, not normalised; erase (B, V, 4) int32, box to fill with noise;
    text {level: (B, text.length[level]) int32} for mla.levels and the sentence; words (B, text.length.sentence) int32,
    the whole words of the sentence; person_ids (B,) int32; pair_ids (B,) int32, index into `source.pairs`.
    """
    if config.data.batch_size % num_hosts:
        raise DataError(f"data.batch_size {config.data.batch_size} is not a multiple of the {num_hosts} hosts")
    rows = config.data.batch_size // num_hosts
    size, views = tuple(config.model.image_size), config.mla.views
    lengths = {level: config.text.length[level] for level in ("sentence", *config.mla.levels)}
    shown = traded_captions(len(source.pairs[0]), config.data.label_noise, config.seed)

    def load(step: np.ndarray) -> tuple[np.ndarray, ...]:
        epoch, first, pairs = plans.rows(int(step))
        own = slice(host * rows, (host + 1) * rows)
        rngs = [keyed_rng(config.seed, epoch, row) for row in range(first + own.start, first + own.stop)]
        pairs = np.array([source.stand_in(pair, rng) for pair, rng in zip(pairs[own].tolist(), rngs, strict=True)])
        uniform = np.stack([rng.random((views, augment.UNIFORMS)) for rng in rngs])
        seen = augment.draw_views(uniform, size, **config.augment)
        tokens = _draw_tokens(source, shown[pairs], rngs, tokenizer, lengths, config.text)
        return _as_objects(source.read(source.pairs[0][pairs])), *seen, pairs.astype(np.int32), *tokens

    def augmented(encoded: tf.Tensor, offset: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
        """One image: () string, (V, 2), (V,) -> (V, H, W, 3) uint8."""
        image = augment.resize(augment.decode(encoded), size, "bicubic")
        return augment.crop_and_flip(image, offset, flipped, config.augment.pad)

    @tf.autograph.experimental.do_not_convert  # it holds no Python branch on tensors; reading its source only costs
    def assemble(encoded: tf.Tensor, offset: tf.Tensor, flipped: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        output = tf.TensorSpec((views, *size, 3), tf.uint8)
        return tf.map_fn(lambda row: augmented(*row), (encoded, offset, flipped), fn_output_signature=output), *rest

    specs = [
        tf.TensorSpec((rows,), tf.string),
        tf.TensorSpec((rows, views, 2), tf.int32),
        tf.TensorSpec((rows, views), tf.bool),
        tf.TensorSpec((rows, views, 4), tf.int32),
        tf.TensorSpec((rows,), tf.int32),
        *(tf.TensorSpec((rows, length), tf.int32) for length in lengths.values()),
    ]
    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    loaded = steps.map(numpy_function(load, specs))
    for images, erase, pairs, *tokens in run_dataset(loaded.map(assemble, num_parallel_calls=_THREADS)):
        text = dict(zip(lengths, tokens, strict=True))
        yield {
            "images": images,
            "erase": erase,
            "text": text,
            "words": tokenizer.words(text["sentence"]),
            "person_ids": source.person_ids[source.pairs[0][pairs]],
            "pair_ids": pairs,
        }


def image_batches(source: Source, image_size: tuple[int, int], batch_size: int) -> Iterator[np.ndarray]:
    """All images of a split in order as the evaluation sees them: (b, H, W, 3) uint8, b < batch_size in the last."""
    count = len(source.paths)

    def load(first: np.ndarray) -> tuple[np.ndarray]:
        return (_as_objects(source.read(range(int(first), min(int(first) + batch_size, count)))),)

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return augment.resize(augment.decode(encoded), image_size, "bilinear")

    @tf.autograph.experimental.do_not_convert
    def assemble(encoded: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(decode, encoded, fn_output_signature=tf.uint8)

    firsts = tf.data.Dataset.range(0, count, batch_size)
    loaded = firsts.map(numpy_function(load, [tf.TensorSpec((None,), tf.string)]))
    yield from run_dataset(loaded.map(assemble, num_parallel_calls=_THREADS))


def _draw_tokens(
    source: Source,
    pairs: np.ndarray,
    rngs: list[np.random.Generator],
    tokenizer: Tokenizer,
    lengths: dict[str, int],
    rules: Any,
) -> list[np.ndarray]:
    """The pairs' captions at the levels of `lengths`, each drawn with its row's generator: (rows, length) per level.

    rules: `phrase_rule` and `word_rule` of the config.
    """
    images, captions = (index[pairs] for index in source.pairs)
    texts = [
        draw_levels(
            source.captions[image][caption],
            rng,
            tuple(lengths),
            source.attributes[image][caption],
            rules.phrase_rule,
            rules.word_rule,
        )
        for image, caption, rng in zip(images, captions, rngs, strict=True)
    ]
    return [tokenizer.encode([text[level] for text in texts], length) for level, length in lengths.items()]


def _as_objects(encoded: list[bytes]) -> np.ndarray:
    return np.array(encoded, object)  # of NumPy's own bytes type they would lose trailing zeros


def numpy_function(
    function: Callable[[np.ndarray], tuple[np.ndarray, ...]], specs: list[tf.TensorSpec]
) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """The function, of one NumPy argument, as a function of tensors whose outputs have these specs."""

    @tf.autograph.experimental.do_not_convert
    def call(argument: tf.Tensor) -> tuple[tf.Tensor, ...]:
        outputs = tf.numpy_function(function, [argument], [spec.dtype for spec in specs], stateful=False)
        return tuple(tf.ensure_shape(output, spec.shape) for output, spec in zip(outputs, specs, strict=True))

    return call


def run_dataset(dataset: tf.data.Dataset) -> Iterator[Any]:
    """The elements as NumPy arrays, made ahead by threads that leave the rest of the machine alone."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = _THREADS
    options.threading.max_intra_op_parallelism = 1
    return dataset.prefetch(2).with_options(options).as_numpy_iterator()
