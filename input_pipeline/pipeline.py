"""Makes the batches of training and evaluation.

Training batches are a function of (config.seed, step): row r of epoch e draws its text levels and its augmentation
with a generator keyed by (seed, e, r). So a run can resume at any step, and hosts of any number see the same batches.
"""

import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from input_pipeline import augment
from input_pipeline.joint import JointSource
from input_pipeline.keyed_order import KeyedPlans
from input_pipeline.sampling import EpochPlans, keyed_rng, traded_captions
from input_pipeline.source import Source
from input_pipeline.text_levels import draw_levels
from input_pipeline.tokenizer import Tokenizer
from ivt_jax.common.errors import DataError, UserError

_THREADS = max(1, (os.cpu_count() or 1) // 2)  # the other half is for the training step, if it runs on the CPU

Batch = dict[str, Any]
Plans = EpochPlans | KeyedPlans
_raised: list[UserError] = []  # by functions that TensorFlow calls


def plan_epochs(config: ConfigDict, source: JointSource) -> Plans:
    """Returns the order of a source's pairs that the config asks for. Raises UserError."""
    data, counts = config.data, source.counts
    if not data.identities:
        return KeyedPlans(counts, data.batch_size, config.seed, data.weights or None)
    shares = list(zip(counts, data.weights, strict=True)) if data.weights else ()
    return EpochPlans(source.person_of_pair, data.batch_size, data.sampling, data.instances, config.seed, shares)


def train_batches(
    config: ConfigDict,
    source: JointSource,
    tokenizer: Tokenizer,
    plans: Plans,
    start_step: int = 0,
    host: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Yields one host's rows of every batch from `start_step` on, without end. Close it before the program ends.

    host: its number and the number of hosts. Raises DataError if they do not divide data.batch_size.
    A batch is a dict of NumPy arrays; B = data.batch_size / hosts, V = mla.views:
    images (B, V, H, W, 3) uint8, cropped and flipped, not normalised; erase (B, V, 4) int32, box to fill with noise;
    text {level: (B, text.length[level]) int32} for mla.levels and the sentence, and mask, the same in bool, False at
    padding; words (B, text.length.sentence) int32, the word of each token; person_ids (B,) int32, `source.ids` of the
    whole batch; pair_ids (B,) int32, the numbers of the pairs in the source.
    """
    number, hosts = host
    if config.data.batch_size % hosts:
        raise DataError(f"data.batch_size {config.data.batch_size} is not a multiple of the {hosts} hosts")
    rows, views = config.data.batch_size // hosts, config.mla.views
    lengths = {level: config.text.length[level] for level in ("sentence", *config.mla.levels)}
    load = _loader(config, source, tokenizer, plans, slice(number * rows, (number + 1) * rows))
    specs = [
        tf.TensorSpec((rows,), tf.string),
        tf.TensorSpec((rows, views, 2), tf.int32),
        tf.TensorSpec((rows, views), tf.bool),
        tf.TensorSpec((rows, views, 4), tf.int32),
        tf.TensorSpec((rows,), tf.int32),
        tf.TensorSpec((rows,), tf.int32),
        *(tf.TensorSpec((rows, length), tf.int32) for length in lengths.values()),
    ]
    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    loaded = steps.map(numpy_function(load, specs))
    for images, erase, pairs, ids, *tokens in run_dataset(loaded.map(_cropper(config), num_parallel_calls=_THREADS)):
        text = dict(zip(lengths, tokens, strict=True))
        yield {
            "images": images,
            "erase": erase,
            "text": text,
            "mask": {level: tokenizer.mask(tokens) for level, tokens in text.items()},
            "words": tokenizer.words(text["sentence"]),
            "person_ids": ids,
            "pair_ids": pairs,
        }


def _loader(
    config: ConfigDict, source: JointSource, tokenizer: Tokenizer, plans: Plans, own: slice
) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Returns a function of the step that gives the rows `own` of its batch, with everything random drawn.

    It returns encoded images (B,) bytes, offsets (B, V, 2), flips (B, V), boxes (B, V, 4), pairs (B,), ids (B,), and
    token ids (B, length) of each level, the sentence first.
    """
    size, views, noise = tuple(config.model.image_size), config.mla.views, config.data.label_noise
    traded = traded_captions(source.num_pairs, noise, config.seed) if noise else None

    def load(step: np.ndarray) -> tuple[np.ndarray, ...]:
        epoch, first, batch = plans.rows(int(step))
        rngs = [keyed_rng(config.seed, epoch, first + row) for row in range(own.start, own.stop)]
        batch = batch.copy()
        for row in np.flatnonzero(~source.intact(batch)).tolist():  # on every host, since ids are the whole batch's
            mine = own.start <= row < own.stop
            rng = rngs[row - own.start] if mine else keyed_rng(config.seed, epoch, first + row)
            batch[row] = source.stand_in(int(batch[row]), rng)
        pairs, ids = batch[own], source.ids(batch)[own]
        uniform = np.stack([rng.random((views, augment.UNIFORMS)) for rng in rngs])
        seen = augment.draw_views(uniform, size, **config.augment)
        images = source.encoded(pairs)  # first: pairs of an index come with their texts
        texts = source.texts(pairs if traded is None else traded[pairs])
        return (
            _as_objects(images), *seen, pairs.astype(np.int32), ids,
            *_draw_tokens(config, tokenizer, texts, rngs),
        )  # fmt: skip

    return load


def _draw_tokens(
    config: ConfigDict,
    tokenizer: Tokenizer,
    texts: list[tuple[str, tuple[str, ...]]],
    rngs: list[np.random.Generator],
) -> list[np.ndarray]:
    """Draws captions at the sentence level and mla.levels, each with its own generator.

    texts: captions with their attribute phrases. Returns ids (B, length) for each level.
    """
    levels = tuple(dict.fromkeys(("sentence", *config.mla.levels)))
    rules = config.text.phrase_rule, config.text.word_rule
    drawn = [
        draw_levels(caption, rng, levels, phrases, *rules) for (caption, phrases), rng in zip(texts, rngs, strict=True)
    ]
    return [tokenizer.encode([text[level] for text in drawn], config.text.length[level]) for level in levels]


def _cropper(config: ConfigDict) -> Callable[..., tuple[tf.Tensor, ...]]:
    """Returns the function that decodes the images of a batch and cuts their views; other tensors pass unchanged."""
    size, views = tuple(config.model.image_size), config.mla.views

    def augmented(encoded: tf.Tensor, offset: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
        """One image: () string, (V, 2), (V,) -> (V, H, W, 3) uint8."""
        image = augment.resize(augment.decode(encoded), size, "bicubic")
        return augment.crop_and_flip(image, offset, flipped, config.augment.pad)

    @tf.autograph.experimental.do_not_convert  # it holds no Python branch on tensors; reading its source only costs
    def assemble(encoded: tf.Tensor, offset: tf.Tensor, flipped: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        output = tf.TensorSpec((views, *size, 3), tf.uint8)
        return tf.map_fn(lambda row: augmented(*row), (encoded, offset, flipped), fn_output_signature=output), *rest

    return assemble


def image_batches(source: Source, image_size: tuple[int, int], batch_size: int) -> Iterator[np.ndarray]:
    """Yields all images of a split in order, resized for evaluation: (b, H, W, 3) uint8, b < batch_size in the last."""
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


def _as_objects(encoded: list[bytes]) -> np.ndarray:
    return np.array(encoded, object)  # NumPy's own bytes type would cut trailing zeros


def numpy_function(
    function: Callable[[np.ndarray], tuple[np.ndarray, ...]], specs: list[tf.TensorSpec]
) -> Callable[[tf.Tensor], tuple[tf.Tensor, ...]]:
    """Wraps a function of one NumPy array as a function of tensors whose outputs have these specs.

    If it raises a UserError, `run_dataset` does, instead of TensorFlow's error with its traceback.
    """

    def kept(argument: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return function(argument)
        except UserError as error:
            _raised.append(error)
            raise

    @tf.autograph.experimental.do_not_convert
    def call(argument: tf.Tensor) -> tuple[tf.Tensor, ...]:
        outputs = tf.numpy_function(kept, [argument], [spec.dtype for spec in specs], stateful=False)
        return tuple(tf.ensure_shape(output, spec.shape) for output, spec in zip(outputs, specs, strict=True))

    return call


def run_dataset(dataset: tf.data.Dataset) -> Iterator[Any]:
    """Yields the elements as NumPy arrays, prefetched by _THREADS threads."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = _THREADS
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False  # nothing is to be tuned, and its sleeping thread would hold up the end
    try:
        yield from dataset.prefetch(2).with_options(options).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise next((mistake for mistake in _raised if str(mistake) in str(error)), error) from None
