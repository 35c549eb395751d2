"""The order of an epoch: a permutation that never changes and limits the shards per rank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.dataset import order
from colorcore.dataset.order import EpochOrder

counts = st.lists(st.integers(1, 40), min_size=1, max_size=20).map(np.array)


def epoch_order(shard_counts, seed: int, epoch: int):
    """The whole order at once."""
    whole = EpochOrder(np.asarray(shard_counts), seed, epoch)
    return whole.slice(0, len(whole))


@pytest.fixture
def small(monkeypatch):
    """Set the sizes of blocks and lanes for the rest of a test."""

    def set_sizes(block: int, lane: int, lanes: int = 64, shards: int = 1024) -> None:
        monkeypatch.setattr(order, "BLOCK_SAMPLES", block)
        monkeypatch.setattr(order, "LANE_SAMPLES", lane)
        monkeypatch.setattr(order, "LANES", lanes)
        monkeypatch.setattr(order, "BLOCK_SHARDS", shards)

    return set_sizes


# A permutation, for any slices


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(0, 2**31), st.integers(0, 1000))
def test_an_epoch_is_a_permutation(shard_counts, seed: int, epoch: int):
    whole = epoch_order(shard_counts, seed, epoch)
    np.testing.assert_array_equal(np.sort(whole), np.arange(shard_counts.sum()))
    np.testing.assert_array_equal(whole, epoch_order(shard_counts, seed, epoch))


@settings(max_examples=60, deadline=None)
@given(
    counts,
    st.integers(1, 200),
    st.integers(1, 50),
    st.integers(1, 9),
    st.lists(st.integers(0, 900), max_size=8),
)
def test_any_slices_are_those_of_the_whole(shard_counts, block, lane, lanes, cuts):
    """With blocks and lanes of any size, and slices read in reverse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK_SAMPLES", block)
        patch.setattr(order, "LANE_SAMPLES", lane)
        patch.setattr(order, "LANES", lanes)
        epoch = EpochOrder(shard_counts, 3, 1)
        assert len(epoch) == shard_counts.sum()
        whole = np.concatenate(
            [EpochOrder(shard_counts, 3, 1).block(b) for b in range(epoch.blocks)]
        )
        np.testing.assert_array_equal(np.sort(whole), np.arange(len(epoch)))
        edges = sorted({0, len(epoch), *(cut % len(epoch) for cut in cuts)})
        for start, stop in zip(edges[-2::-1], edges[:0:-1], strict=True):
            np.testing.assert_array_equal(epoch.slice(start, stop), whole[start:stop])
        for at in (0, len(epoch) // 2, len(epoch) - 1):
            assert epoch.slice(at, at + 1).tolist() == [whole[at]]


@pytest.mark.parametrize("block", [1, 2, 7, 16, 50, 10_000])
def test_in_blocks_every_position_occurs_once(block: int, small):
    small(block, lane=4)
    shard_counts = np.array([5, 1, 30, 7, 7, 2, 12, 1])
    for epoch in range(5):
        whole = epoch_order(shard_counts, 3, epoch)
        np.testing.assert_array_equal(np.sort(whole), np.arange(65))


# Blocks


def test_blocks_keep_shards_together(small):
    """A shard belongs to one block, and blocks have about the intended size."""
    small(40, lane=4)
    shard_of = np.repeat(np.arange(50), 10)
    epoch = EpochOrder(np.full(50, 10), 0, 0)
    seen = []
    for block in range(epoch.blocks):
        positions = epoch.block(block)
        assert epoch.starts[block + 1] - epoch.starts[block] == len(positions) <= 50
        shards = np.unique(shard_of[positions]).tolist()
        assert len(shards) * 10 == len(positions)
        seen += shards
    assert sorted(seen) == list(range(50))
    assert seen != sorted(seen)
    assert epoch.blocks == 500 // 40 + 1
    whole = epoch_order(np.full(50, 10), 0, 0)
    assert len(np.unique(shard_of[whole[:40]])) > 1


def test_a_block_of_tiny_shards_has_not_too_many(small):
    small(1000, lane=4, shards=10)
    epoch = EpochOrder(np.full(95, 2), 0, 0)
    members = [len(np.unique(epoch.block(b) // 2)) for b in range(epoch.blocks)]
    assert sum(members) == 95
    assert max(members) <= 10


def test_only_what_is_asked_for_is_laid_out(small, monkeypatch):
    small(100, lane=4)
    laid_out = []
    lay_out = EpochOrder._lay_out

    def watched(self, block):
        laid_out.append(block)
        return lay_out(self, block)

    monkeypatch.setattr(EpochOrder, "_lay_out", watched)
    epoch = EpochOrder(np.full(1000, 10), 0, 0)
    for start in range(4_000, 4_400, 10):
        epoch.slice(start, start + 10)
    assert len(laid_out) <= 6
    assert laid_out == sorted(set(laid_out))


def test_a_million_shards_are_ordered_without_laying_them_out():
    epoch = EpochOrder(np.full(10**6, 1000), 0, 0)
    assert len(epoch) == 10**9
    some = epoch.slice(5 * 10**8, 5 * 10**8 + 256)
    assert len(np.unique(some)) == 256


# Randomness


def test_epochs_and_seeds_differ():
    orders = [epoch_order(np.full(8, 25), seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({whole.tobytes() for whole in orders}) == 16


def test_the_order_is_the_same_for_ever(small):
    """Fixed values: another order would break resuming older runs."""
    assert epoch_order([3, 4, 2], 5, 1).tolist() == FIXED
    small(8, lane=2, lanes=3)
    assert epoch_order([3, 4, 2, 6, 1], 5, 1).tolist() == FIXED_IN_LANES


FIXED = [3, 4, 2, 8, 0, 6, 5, 7, 1]
FIXED_IN_LANES = [0, 15, 11, 7, 10, 14, 1, 9, 12, 8, 2, 13, 4, 6, 3, 5]


@pytest.mark.parametrize("lane", [1024, 8])
def test_a_shuffle_is_uniform(small, lane: int):
    """Each sample is in each quarter of the epoch about equally often, also with lanes."""
    small(65_536, lane)
    shard_counts, epochs = np.full(10, 8), 400
    counted = np.zeros((80, 4))
    for epoch in range(epochs):
        counted[epoch_order(shard_counts, 0, epoch), np.repeat(np.arange(4), 20)] += 1
    expected, sigma = epochs / 4, (epochs * 3 / 16) ** 0.5
    assert np.abs(counted - expected).max() < 5 * sigma


def test_neighbours_in_the_order_are_not_neighbours_on_disk(small):
    """In one block of 64 shards, 64 lanes mix a batch as well as a full shuffle."""
    small(65_536, 1024)
    shard_of = np.repeat(np.arange(64), 1000)
    whole = epoch_order(np.full(64, 1000), 0, 0)
    drawn = [len(np.unique(shard_of[whole[i : i + 256]])) for i in range(0, 64_000, 256)]
    assert min(drawn) >= 60  # all but a few of the 64 shards in each batch of 256


# What ranks read


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("shard", [7, 20, 100])
def test_ranks_keep_to_their_lanes(small, world: int, shard: int):
    """Each of W ranks reads about 1/W of a block's shards, plus at most two per lane."""
    small(1600, lane=25, lanes=16)
    shard_counts = np.full(4800 // shard, shard)
    shard_of = np.repeat(np.arange(len(shard_counts)), shard)
    epoch = EpochOrder(shard_counts, 1, 0)
    assert epoch.blocks >= 3
    batch = 48
    rank_of = (np.arange(len(epoch)) % batch) % world
    checked = 0
    for block in range(epoch.blocks):
        start, stop = epoch.starts[block], epoch.starts[block + 1]
        lanes = max(1, min(16, (stop - start) // 25))
        if lanes % world:
            continue
        positions = epoch.slice(start, stop)
        shards = len(np.unique(shard_of[positions]))
        for rank in range(world):
            mine = len(np.unique(shard_of[positions[rank_of[start:stop] == rank]]))
            left_over = (stop - start) % lanes
            assert mine <= shards / world + 2 * lanes / world + left_over
        checked += 1
    assert checked >= 2
