"""Orders any number of pairs in constant memory: a keyed permutation without a table, and the plan of its epochs.

    permutation(np.arange(32), 100_000_000, key_of(seed, epoch))  # the first 32 of 100 million pairs

The permutation is a Feistel network over the least power of two that is not below `count`. A result beyond `count` goes
through it again ("cycle walking"; Black & Rogaway, CT-RSA 2002), fewer than twice on average.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from ivt_jax.common.errors import UserError

_ROUND_KEYS = np.arange(8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)), (31, np.uint64(1)))


def key_of(*numbers: int) -> np.uint64:
    """Returns a key of 64 bits that depends on all the numbers and their order."""
    digest = hashlib.blake2b(repr(tuple(map(int, numbers))).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def permutation(indices: np.ndarray, count: int, key: np.ndarray | np.uint64) -> np.ndarray:
    """Returns the places of `indices` (n,) in the permutation of [0, count) that the key selects: (n,) int64.

    key: uint64, one for all or (n,), one for each index. Uses memory for n numbers, whatever `count` is.
    """
    places = np.asarray(indices).astype(np.uint64)
    keys = np.broadcast_to(np.asarray(key, np.uint64), places.shape)
    width = (count - 1).bit_length()
    pending = np.arange(len(places))
    while len(pending):
        places[pending] = _network(places[pending], width, keys[pending])
        pending = pending[places[pending] >= count]
    return places.astype(np.int64)


def _network(values: np.ndarray, width: int, keys: np.ndarray) -> np.ndarray:
    """Permutes [0, 2^width): each round adds, without carry, a hash of one half of the bits to the other half."""
    shift = np.uint64(width // 2)
    masks = np.uint64((1 << width // 2) - 1), np.uint64((1 << width - width // 2) - 1)
    low, high = values & masks[0], values >> shift
    for round_key in _ROUND_KEYS:
        low = low ^ _mix(keys + round_key ^ high) & masks[0]
        high = high ^ _mix(~keys + round_key ^ low) & masks[1]
    return high << shift | low


def _mix(values: np.ndarray) -> np.ndarray:
    """Hashes uint64 numbers by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), a bijection."""
    for shift, factor in _MIX:
        values = (values ^ values >> np.uint64(shift)) * factor
    return values


class KeyedPlan:
    """The order of the pairs of one or several sources in every epoch, as a function of (seed, epoch, position).

    Has the methods of `sampling.EpochPlans`. Nothing is stored for a pair or an epoch. Pair numbers are global: those
    of source s begin at sum(counts[:s]).

    Without weights, an epoch has each pair once. With weights, it has as many rows, and each source gets its share of
    them: its pairs are passed through as often as the share needs, each time in another order, the last time in part.
    An incomplete last batch is dropped.

    counts: pairs of each source. weights: share of each source, positive, of any sum; None is without. Raises UserError
    if there is not one full batch.
    """

    def __init__(self, counts: Sequence[int], batch_size: int, seed: int = 0, weights: Sequence[float] | None = None):
        self.batch_size = batch_size
        self._seed, self._total = seed, sum(counts)
        self._counts = np.array(counts, np.int64)
        self._first_pair = np.cumsum(self._counts) - self._counts
        shares = None if weights is None else np.cumsum(weights) / np.sum(weights)
        self._ends = None if shares is None else np.round(shares * self._total).astype(np.int64)
        if self._total < batch_size:
            raise UserError(
                f"data.batch_size {batch_size} is more than the {self._total} (image, caption) pairs of the split. "
                "Lower data.batch_size"
            )

    def epoch_starts(self, num_epochs: int) -> np.ndarray:
        """Returns (num_epochs + 1,) int64: the first step of each epoch, and last the total number of steps."""
        return np.arange(num_epochs + 1, dtype=np.int64) * (self._total // self.batch_size)

    def locate(self, step: int) -> tuple[int, int]:
        """Returns the (epoch, batch within the epoch) of a step, both counted from 0."""
        return divmod(step, self._total // self.batch_size)

    def rows(self, step: int) -> tuple[int, int, np.ndarray]:
        """Returns a step's epoch, the position of its first row in the epoch, and its pair indices (batch_size,)."""
        epoch, batch = self.locate(step)
        first = batch * self.batch_size
        places = np.arange(first, first + self.batch_size)
        mixed = permutation(places, self._total, key_of(self._seed, epoch))
        return epoch, first, mixed if self._ends is None else self._weighted(epoch, mixed)

    def _weighted(self, epoch: int, mixed: np.ndarray) -> np.ndarray:
        """Returns the pairs at the positions `mixed` of an epoch in which each source has one run of positions."""
        assert self._ends is not None
        sources = np.searchsorted(self._ends, mixed, side="right")
        pairs = np.empty_like(mixed)
        for source in np.unique(sources):
            chosen, count = sources == source, int(self._counts[source])
            nth = mixed[chosen] - (int(self._ends[source - 1]) if source else 0)
            keys = _mix(key_of(self._seed, epoch, source) ^ (nth // count).astype(np.uint64))
            pairs[chosen] = self._first_pair[source] + permutation(nth % count, count, keys)
        return pairs
