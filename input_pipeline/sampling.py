"""Chooses the (image, caption) pairs of each step as a pure function of (seed, epoch), so any step can be resumed."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ivt_jax.common.errors import UserError


def keyed_rng(seed: int, epoch: int, row: int = -1) -> np.random.Generator:
    """Returns the random generator of one row of one epoch; row -1 is for the order of the epoch.

    Philox is counter based: the seed is its key, and (row, epoch) fill the upper half of its counter. Each row has
    2^128 blocks of numbers.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, row + 1, epoch]))


def traded_captions(count: int, share: float, seed: int) -> np.ndarray:
    """Draws label noise: returns (count,) int64, for each pair the index of the pair whose caption it gets.

    round(share * count) captions are exchanged, also between images of one person. Equal arguments give equal results.
    """
    rng = np.random.default_rng([seed, count])
    chosen = rng.permutation(count)[: round(share * count)]
    shown = np.arange(count)
    shown[chosen] = np.roll(chosen, 1)
    return shown


class Plans(Protocol):
    """The order of pairs in every epoch."""

    batch_size: int

    def epoch_starts(self, num_epochs: int) -> np.ndarray:
        """Returns (num_epochs + 1,) int64: the first step of each epoch, and last the total number of steps."""
        ...

    def rows(self, step: int) -> tuple[int, int, np.ndarray]:
        """Returns a step's epoch, the position of its first row in the epoch, and its pairs (batch_size,)."""
        ...


class EpochPlans:
    """The order of pairs in every epoch.

    "identity" (as released, on one GPU): the pairs of a person are shuffled and cut into groups of `instances`; a
    remainder is dropped, and a person with fewer pairs draws `instances` of them with replacement. While at least
    P = batch_size / instances persons have groups left, a batch takes one group each of P persons, drawn uniformly.
    Epochs therefore differ in length.
    "uniform": a permutation of all pairs; an incomplete last batch is dropped.

    With `shares`, an epoch has as many groups (or pairs) as without, and each source gets its share of them: all of its
    own as often as the share needs, the last time a random part of them. Groups are then drawn uniformly, so batches
    have the shares on average throughout the epoch; no person is twice in a batch.

    person_ids: (N,) person of each pair; those of a source follow those of the source before. shares: pairs and weight
    of each source, the weights positive and of any sum; () is without. Raises UserError if there is not one full batch.
    """

    def __init__(
        self,
        person_ids: np.ndarray,
        batch_size: int,
        sampling: str = "identity",
        instances: int = 4,
        seed: int = 0,
        shares: Sequence[tuple[int, float]] = (),
    ):
        if sampling not in ("identity", "uniform"):
            raise UserError(f'data.sampling is "{sampling}"; expected "identity" or "uniform"')
        self.batch_size = batch_size
        self._seed = seed
        self._starts = [0]
        persons, person_of_pair = np.unique(np.asarray(person_ids), return_inverse=True)
        # Around the end of an epoch, several threads need its order and the next one: keep two in memory.
        self.epoch: Callable[[int], np.ndarray] = functools.lru_cache(maxsize=2)(self._epoch)
        self._num_pairs = len(person_of_pair)
        shares = shares or [(self._num_pairs, 1.0)]
        self._passes = _Passes(shares, self._num_pairs)
        self._identity = None
        if sampling == "identity":
            self._identity = _IdentityPlan(person_of_pair, batch_size, instances, shares)
        if self._identity is not None and len(persons) < batch_size // instances:
            raise UserError(
                f"data.batch_size {batch_size} in groups of data.instances {instances} needs "
                f"{batch_size // instances} persons; the split has {len(persons)}. Lower data.batch_size"
            )
        if self._identity is None and self._num_pairs < batch_size:
            raise UserError(
                f"data.batch_size {batch_size} is more than the {self._num_pairs} (image, caption) pairs of the split. "
                "Lower data.batch_size"
            )

    def _epoch(self, epoch: int) -> np.ndarray:
        rng = keyed_rng(self._seed, epoch)
        if self._identity is not None:
            order = self._identity.order(rng)
        else:
            pairs, _ = self._passes.draw(rng)
            order = pairs[rng.permutation(self._num_pairs)[: self._num_pairs // self.batch_size * self.batch_size]]
        order.flags.writeable = False
        return order

    def _num_batches(self, epoch: int) -> int:
        if self._identity is None:
            return self._num_pairs // self.batch_size
        return len(self._identity.draw(keyed_rng(self._seed, epoch))[1])

    def epoch_starts(self, num_epochs: int) -> np.ndarray:
        """Returns (num_epochs + 1,) int64: the first step of each epoch, and last the total number of steps."""
        while len(self._starts) <= num_epochs:
            self._starts.append(self._starts[-1] + self._num_batches(len(self._starts) - 1))
        return np.array(self._starts[: num_epochs + 1], np.int64)

    def locate(self, step: int) -> tuple[int, int]:
        """Returns the (epoch, batch within the epoch) of a step, both counted from 0."""
        while self._starts[-1] <= step:
            self.epoch_starts(len(self._starts))
        epoch = int(np.searchsorted(self._starts, step, side="right")) - 1
        return epoch, step - self._starts[epoch]

    def rows(self, step: int) -> tuple[int, int, np.ndarray]:
        """Returns a step's epoch, the position of its first row in the epoch, and its pair indices (batch_size,)."""
        epoch, batch = self.locate(step)
        first = batch * self.batch_size
        return epoch, first, self.epoch(epoch)[first : first + self.batch_size]


class _Passes:
    """How often an epoch takes the items of each source, which are numbered one source after the other.

    shares: items and weight of each source; its quota is its share of `total`. With the quotas equal to the items, an
    epoch takes each item once, and nothing is drawn.
    """

    def __init__(self, shares: Sequence[tuple[int, float]], total: int):
        self._items, weights = np.array(shares, float).T
        ends = np.round(np.cumsum(weights) / weights.sum() * total)
        self._quotas = np.diff(ends, prepend=0).astype(np.int64)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns the items of an epoch (total,), by source and pass, and the pass of each, from 0."""
        drawn, passes, first = [], [], 0
        for items, quota in zip(self._items.astype(np.int64).tolist(), self._quotas.tolist(), strict=True):
            whole, rest = divmod(quota, items)
            part = rng.permutation(items)[:rest] if rest else np.arange(0)
            drawn.append(first + np.concatenate([np.tile(np.arange(items), whole), part]))
            passes.append(np.arange(quota) // items)
            first += items
        return np.concatenate(drawn), np.concatenate(passes)


class _IdentityPlan:
    """Draws the order of an epoch in groups of one person's pairs. shares: as for EpochPlans."""

    def __init__(
        self, person_of_pair: np.ndarray, batch_size: int, instances: int, shares: Sequence[tuple[int, float]]
    ):
        if batch_size % instances:
            raise UserError(f"data.batch_size {batch_size} is not a multiple of data.instances {instances}")
        self._instances = instances
        self._persons_per_batch = batch_size // instances
        self._person_of_pair = person_of_pair
        self._pairs = np.bincount(person_of_pair)
        self._first_pair = np.cumsum(self._pairs) - self._pairs
        self._groups = np.maximum(self._pairs // instances, 1)
        self._first_group = np.cumsum(self._groups) - self._groups
        self._person_of_group = np.repeat(np.arange(len(self._groups)), self._groups)
        self._weighted = len(shares) > 1
        self._passes = _Passes(self._shares_of_groups(shares), len(self._person_of_group))

    def _shares_of_groups(self, shares: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """Returns groups and weight of each source, from pairs and weight."""
        ends = np.cumsum([pairs for pairs, _ in shares])
        last_persons = np.maximum.accumulate(self._person_of_pair)[ends - 1]
        groups = np.diff(np.cumsum(self._groups)[last_persons], prepend=0)
        return [(count, weight) for count, (_, weight) in zip(groups.tolist(), shares, strict=True)]

    def draw(self, rng: np.random.Generator) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Returns the groups of an epoch with the pass of each, and its batches (batches, P) of persons."""
        groups, passes = self._passes.draw(rng)
        if not self._weighted:
            return (groups, passes), self._draw_persons(rng)
        batches = self._deal(rng.permutation(self._person_of_group[groups]).tolist())
        if not len(batches):
            raise UserError(
                f"data.weights leave an epoch fewer than {self._persons_per_batch} persons, as many as one batch has "
                "(data.batch_size / data.instances): choose weights that are closer to each other"
            )
        return (groups, passes), batches

    def _deal(self, persons: list[int]) -> np.ndarray:
        """Returns (batches, P): fills batches in the order of `persons`; one who is in a batch waits for the next."""
        P, left = self._persons_per_batch, collections.deque(persons)
        batches: list[list[int]] = []
        while True:
            batch: dict[int, None] = {}
            waiting = []
            while left and len(batch) < P:
                person = left.popleft()
                if person in batch:
                    waiting.append(person)
                batch[person] = None
            if len(batch) < P:
                return np.array(batches, np.int64).reshape(-1, P)
            left.extendleft(reversed(waiting))
            batches.append(list(batch))

    def _draw_persons(self, rng: np.random.Generator) -> np.ndarray:
        """Returns (batches, P) persons, each batch drawn uniformly and without replacement from those with groups."""
        P = self._persons_per_batch
        left, available = self._groups.tolist(), list(range(len(self._groups)))
        batches: list[list[int]] = []
        uniform = iter(rng.random((int(self._groups.sum()) // P, P)).tolist())
        # A partial Fisher-Yates shuffle draws the first P of `available`. Plain lists are ten times faster here than
        # rng.choice, and `epoch_starts` runs this loop for every epoch.
        while (num := len(available)) >= P:
            for i, u in enumerate(next(uniform)):
                j = i + int(u * (num - i))
                available[i], available[j] = available[j], available[i]
            batches.append(available[:P])
            for i in reversed(range(P)):
                left[available[i]] -= 1
                if left[available[i]] == 0:
                    available[i] = available[-1]
                    available.pop()
        return np.array(batches, np.int64).reshape(-1, P)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the pair indices of one epoch, batch by batch, group by group."""
        (groups, passes), batches = self.draw(rng)
        persons = batches.ravel()
        cut = np.empty((len(groups), self._instances), np.int64)
        for number in range(int(passes.max()) + 1):  # each pass cuts a person's pairs into other groups
            chosen = passes == number
            cut[chosen] = self._cut_groups(rng)[groups[chosen]]
        cut = cut[np.argsort(self._person_of_group[groups], kind="stable")]
        # A person's n-th appearance takes the person's n-th group.
        available = np.bincount(self._person_of_group[groups], minlength=len(self._groups))
        by_person = np.argsort(persons, kind="stable")
        appearances = np.bincount(persons, minlength=len(self._groups))
        nth = np.empty_like(persons)
        nth[by_person] = np.arange(len(persons)) - np.repeat(np.cumsum(appearances) - appearances, appearances)
        return cut[(np.cumsum(available) - available)[persons] + nth].ravel()

    def _cut_groups(self, rng: np.random.Generator) -> np.ndarray:
        """Returns (groups, instances) pair indices; groups of one person are adjacent."""
        K = self._instances
        shuffled = np.argsort(self._person_of_pair + rng.random(len(self._person_of_pair)))  # sorted by person
        person = self._person_of_group
        nth = np.arange(len(person)) - self._first_group[person]
        place = nth[:, None] * K + np.arange(K)
        few = self._pairs[person] < K
        place[few] = (rng.random((int(few.sum()), K)) * self._pairs[person[few], None]).astype(np.int64)
        return shuffled[self._first_pair[person][:, None] + place]
