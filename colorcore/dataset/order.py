"""The order of an epoch, one block at a time: it depends only on (seed, epoch) and shard sizes.

Shards are shuffled and cut into blocks of about ``BLOCK_SAMPLES`` samples. A block's samples,
in the order of its shuffled shards, are dealt into up to ``LANES`` lanes of neighbours; each lane
is shuffled, and the order takes one sample from each lane in turn. That is random enough for
training, and it keeps readers apart: if W ranks take every W-th sample and W divides ``LANES``,
each rank reads 1/W of a large block's shards.

Only a block is laid out at a time, so the order of 10⁹ samples needs 24 bytes per shard, and 512 kB
for the block.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_SAMPLES = 65_536
"""Samples that are shuffled together; a smaller dataset is shuffled as a whole."""
BLOCK_SHARDS = 1024
"""A block of tiny shards ends after this many, so that all its shards can be open at once."""
LANES = 64
LANE_SAMPLES = 1024
"""Minimum length of a lane: smaller blocks have fewer lanes, the smallest only one."""


class EpochOrder:
    """A permutation of all positions of a split, laid out one block at a time.

    shard_counts  (S,) samples per shard, in index order, each above 0
    """

    def __init__(self, shard_counts: NDArray[np.int64], seed: int, epoch: int) -> None:
        self._seed, self._epoch = seed, epoch
        self._first = np.cumsum(shard_counts) - shard_counts
        self._counts = shard_counts
        shards = np.random.default_rng([seed, epoch]).permutation(len(shard_counts))
        weights = np.maximum(shard_counts[shards], BLOCK_SAMPLES // BLOCK_SHARDS)
        block_of = (np.cumsum(weights) - weights) // BLOCK_SAMPLES
        cuts = np.flatnonzero(np.diff(block_of)) + 1
        self._blocks = np.split(shards, cuts)
        sizes = [int(shard_counts[members].sum()) for members in self._blocks]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._laid_out = lru_cache(maxsize=2)(self._lay_out)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def blocks(self) -> int:
        """Number of blocks; block b covers places starts[b] to starts[b + 1] of the order."""
        return len(self._blocks)

    def block(self, block: int) -> NDArray[np.int64]:
        """The positions of one block, in order."""
        return self._laid_out(block)

    def slice(self, start: int, stop: int) -> NDArray[np.int64]:
        """The order from ``start`` up to ``stop``: (stop - start,) positions."""
        if start >= stop:
            return np.empty(0, np.int64)
        first, last = np.searchsorted(self.starts, [start, stop - 1], side="right") - 1
        whole = np.concatenate([self.block(block) for block in range(first, last + 1)])
        return whole[start - self.starts[first] : stop - self.starts[first]]

    def _lay_out(self, block: int) -> NDArray[np.int64]:
        shards = self._blocks[block]
        firsts, counts = self._first[shards], self._counts[shards]
        before = np.cumsum(counts) - counts
        positions = np.repeat(firsts - before, counts) + np.arange(counts.sum())
        rng = np.random.default_rng([self._seed, self._epoch, block])
        lanes = max(1, min(LANES, len(positions) // LANE_SAMPLES))
        dealt = len(positions) // lanes * lanes
        shuffled = rng.permuted(positions[:dealt].reshape(lanes, -1), axis=1)
        return np.concatenate([shuffled.T.ravel(), rng.permutation(positions[dealt:])])
