"""Batches: the shares of ranks, resuming, the cache, and the reading thread."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.dataset import loader, order
from colorcore.dataset.layout import DatasetError
from colorcore.dataset.loader import PREFETCH, TrainLoader, val_batches
from colorcore.dataset.order import EpochOrder
from colorcore.dataset.samples import Samples
from colorcore.dataset.shard_cache import ShardCache
from colorcore.storage.local import LocalStore
from tests.colorcore.dataset.units import tar_arrays, threads_left


def stack(batches):
    return np.concatenate([batch.positions for batch in batches])


class Numbers(Samples):
    """Samples without files: each byte of a sample is its position."""

    def __init__(self, shard_counts, size=4):
        self.size = size
        self.shard_counts = np.array(shard_counts, np.int64)
        self.shards = [f"train/{i:06d}-000.tar" for i in range(len(shard_counts))]
        self.cache = None
        self.reads = 0

    def __len__(self):
        return int(self.shard_counts.sum())

    def read(self, positions):
        self.reads += 1
        shape = (len(positions), 3, self.size, self.size)
        bytes_ = torch.from_numpy(positions % 256).to(torch.uint8)
        return bytes_.reshape(-1, 1, 1, 1).expand(shape).clone()


# The shares of ranks


counts = st.lists(st.integers(1, 40), min_size=1, max_size=20).map(np.array)


@pytest.mark.parametrize(("batch", "worlds"), [(8, (1, 2, 4, 8)), (6, (1, 2, 3, 6)), (5, (1, 5))])
def test_global_batches_do_not_depend_on_the_number_of_ranks(samples, batch, worlds):
    for epoch in range(2):
        of_world = {}
        for world in worlds:
            ranks = [
                list(TrainLoader(samples, batch, seed=1, rank=rank, world=world).epoch(epoch))
                for rank in range(world)
            ]
            assert {len(batches) for batches in ranks} == {len(samples) // batch}
            of_world[world] = [
                (
                    np.stack([share.positions for share in shares], 1).ravel(),
                    torch.stack([share.lab_u8 for share in shares], 1).flatten(0, 1),
                )
                for shares in zip(*ranks, strict=True)
            ]
        for world in worlds[1:]:
            for one, other in zip(of_world[1], of_world[world], strict=True):
                np.testing.assert_array_equal(one[0], other[0])
                assert torch.equal(one[1], other[1])


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_an_epoch_has_no_sample_twice(shard_counts, share: int, world: int, epoch: int):
    samples = Numbers(shard_counts)
    batch = share * world
    if len(samples) < batch:
        return
    loaders = [TrainLoader(samples, batch, rank=rank, world=world) for rank in range(world)]
    assert {len(one) for one in loaders} == {len(samples) // batch}
    steps = range(len(samples) // batch)
    positions = [one.positions(epoch, step) for one in loaders for step in steps]
    assert {p.shape for p in positions} == {(share,)}
    everything = np.concatenate(positions)
    assert len(np.unique(everything)) == len(everything) == len(loaders[0]) * batch


def test_batches_say_where_they_stand(samples):
    batches = list(TrainLoader(samples, 4, seed=2).epoch(3))
    assert [batch.step for batch in batches] == list(range(len(samples) // 4))
    assert {batch.epoch for batch in batches} == {3}
    expected = EpochOrder(samples.shard_counts, 2, 3).slice(0, len(batches) * 4)
    np.testing.assert_array_equal(stack(batches), expected)
    for batch in batches:
        assert torch.equal(batch.lab_u8, samples.read(batch.positions))
        assert batch.lab_u8.is_contiguous()


WORLDS = (1, 2, 3, 8)


@pytest.fixture
def small_blocks(monkeypatch):
    """Orders of many blocks and lanes from a few hundred samples."""
    monkeypatch.setattr(order, "BLOCK_SAMPLES", 100)
    monkeypatch.setattr(order, "LANE_SAMPLES", 10)
    monkeypatch.setattr(order, "LANES", 8)


def of_ranks(samples, world: int, start: int = 0) -> list[list[np.ndarray]]:
    """Positions by rank and step."""
    loaders = [TrainLoader(samples, 24, seed=3, rank=r, world=world) for r in range(world)]
    return [[b.positions for b in one.epoch(1, start_step=start)] for one in loaders]


def test_worlds_share_the_very_same_global_batches(small_blocks):
    """Ranks take the same number of steps, and resume with the same batches from any step."""
    samples = Numbers(np.random.default_rng(0).integers(1, 30, 40))
    whole = [b.tolist() for b in of_ranks(samples, 1)[0]]
    assert len(whole) == len(samples) // 24 > 20
    everything = [position for batch in whole for position in batch]
    assert len(set(everything)) == len(everything)
    for world in WORLDS:
        for start in (0, 1, 7, len(whole) - 1, len(whole)):
            ranks = of_ranks(samples, world, start)
            assert {len(steps) for steps in ranks} == {len(whole) - start}
            assert {len(share) for steps in ranks for share in steps} <= {24 // world}
            for step, shares in enumerate(zip(*ranks, strict=True), start=start):
                assert sorted(np.concatenate(shares).tolist()) == sorted(whole[step])
                for rank, share in enumerate(shares):
                    assert share.tolist() == whole[step][rank::world]


def test_resuming_on_another_world_reads_the_very_same_bytes(dataset, small_blocks):
    """From two ranks to one to three within an epoch: every sample once, as stored."""
    samples = Samples(dataset, "train")
    expected = tar_arrays(dataset, "train")
    batch = 6
    steps = len(samples) // batch
    assert steps >= 3
    seen = []
    for world, start, stop in ((2, 0, 1), (1, 1, 2), (3, 2, steps)):
        for rank in range(world):
            loader_ = TrainLoader(Samples(dataset, "train"), batch, rank=rank, world=world)
            for part in loader_.epoch(0, start_step=start):
                if part.step >= stop:
                    break
                keys = samples.keys(part.positions)
                for key, lab_u8 in zip(keys, part.lab_u8, strict=True):
                    np.testing.assert_array_equal(lab_u8, expected[key])
                seen += part.positions.tolist()
    assert len(seen) == len(set(seen)) == steps * batch


def test_the_shards_that_a_rank_fetches_are_those_it_reads(small_blocks):
    """In the order of their first read."""
    samples = Numbers(np.full(60, 9))
    samples._starts = np.concatenate([[0], np.cumsum(samples.shard_counts)])
    for world, start in ((1, 0), (2, 0), (4, 5), (8, 21)):
        for rank in range(world):
            one = TrainLoader(samples, 24, rank=rank, world=world)
            whole = EpochOrder(samples.shard_counts, 0, 2)
            fetched = list(dict.fromkeys(one._shards(whole, start)))
            read = np.concatenate([one.positions(2, s) for s in range(start, len(one))])
            shards = list(dict.fromkeys(samples.shards_of(read).tolist()))
            assert [shard for shard in fetched if shard in set(shards)] == shards
            assert len(fetched) <= len(shards) + 8  # the rest of the epoch, less than a batch


def test_samples_left_over_come_in_another_epoch(samples):
    batch = len(samples) - 1
    seen = set()
    for epoch in range(8):
        seen.update(stack(TrainLoader(samples, batch).epoch(epoch)).tolist())
    assert seen == set(range(len(samples)))


@pytest.mark.parametrize("world", [1, 2])
def test_resuming_gives_the_rest_of_the_epoch(dataset, world: int):
    for rank in range(world):
        options = {"seed": 4, "rank": rank, "world": world}
        whole = list(TrainLoader(Samples(dataset, "train"), 4, **options).epoch(2))
        for start in range(len(whole) + 1):
            again = TrainLoader(Samples(dataset, "train"), 4, **options)
            rest = list(again.epoch(2, start_step=start))
            assert [batch.step for batch in rest] == list(range(start, len(whole)))
            for one, other in zip(whole[start:], rest, strict=True):
                np.testing.assert_array_equal(one.positions, other.positions)
                assert torch.equal(one.lab_u8, other.lab_u8)


def test_resuming_on_other_ranks_gives_the_same_global_batches(samples):
    """Two ranks to step 3, then four."""
    whole = [batch.positions for batch in TrainLoader(samples, 4).epoch(0)]
    ranks = [TrainLoader(samples, 4, rank=r, world=4).epoch(0, start_step=3) for r in range(4)]
    rest = [np.stack([b.positions for b in four], 1).ravel() for four in zip(*ranks, strict=True)]
    np.testing.assert_array_equal(np.stack(whole[3:]), np.stack(rest))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_validation_covers_each_sample_once(dataset, world: int, batch: int):
    samples = Samples(dataset, "val")
    everything = samples.read(np.arange(len(samples)))
    seen = []
    for rank in range(world):
        mine = list(val_batches(samples, batch, rank=rank, world=world))
        assert all(len(b) == batch for b in mine[:-1])
        assert torch.equal(torch.cat(mine), everything[rank::world])
        seen += [bytes(lab_u8.numpy()) for b in mine for lab_u8 in b]
    assert sorted(seen) == sorted(bytes(lab_u8.numpy()) for lab_u8 in everything)


def test_validation_with_more_ranks_than_samples():
    samples = Numbers([2])
    assert [len(list(val_batches(samples, 4, rank=r, world=3))) for r in range(3)] == [1, 1, 0]


# Wrong calls


def test_a_batch_that_ranks_cannot_share(samples):
    with pytest.raises(ValueError, match="one photo for each of the 9 workers, got 8"):
        TrainLoader(samples, 8, world=9)


@pytest.mark.parametrize("world", [2, 3, 5, 7])
def test_ranks_share_a_batch_that_they_do_not_divide(samples, world: int):
    """Every photo of each batch once; shares differ by at most one photo and stay the same."""
    loaders = [TrainLoader(samples, 7, seed=2, rank=rank, world=world) for rank in range(world)]
    alone = TrainLoader(samples, 7, seed=2)
    shares = [loader.share for loader in loaders]
    assert sum(shares) == 7
    assert max(shares) - min(shares) <= 1
    for batches in zip(*(one.epoch(1) for one in loaders), strict=True):
        assert [len(batch.lab_u8) for batch in batches] == shares
        together = np.concatenate([batch.positions for batch in batches])
        assert sorted(together) == sorted(alone.positions(1, batches[0].step))


def test_a_dataset_smaller_than_a_batch(samples):
    with pytest.raises(DatasetError, match=rf"batch of 64 .* found {len(samples)}; shard more"):
        TrainLoader(samples, 64)
    assert len(TrainLoader(samples, len(samples))) == 1


# Through the cache, like a remote dataset


class Far(LocalStore):
    """A local folder that claims to be remote."""

    local = None

    def fetch(self, name, target):
        FETCHED.append(name)
        super().fetch(name, target)


FETCHED: list[str] = []


@pytest.fixture
def far(photo_folder, build_dataset, tmp_path, monkeypatch) -> Far:
    """A dataset of many small shards, whose epoch order has several blocks."""
    FETCHED.clear()
    monkeypatch.setattr("colorcore.dataset.unit.SHARD_SAMPLES", 2)
    build_dataset([photo_folder.path], tmp_path / "d", size=16, photos_per_unit=4)
    for module in (order, loader):
        monkeypatch.setattr(module, "BLOCK_SAMPLES", 4)
    monkeypatch.setattr(order, "LANE_SAMPLES", 2)
    return Far(tmp_path / "d")


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_a_cached_dataset_reads_the_same(far, tmp_path, world: int, start: int):
    """With a cache for half of the shards, which are fetched ahead and evicted again."""
    near = Samples(far.path, "train")
    cache = ShardCache(far, "0", folder=tmp_path / "c", limit=int(near.shard_bytes.sum()) // 2)
    for rank in range(world):
        remote = Samples(far, "train", cache=cache)
        loaders = [TrainLoader(one, 4, rank=rank, world=world) for one in (near, remote)]
        for epoch in range(2):
            batches = [list(one.epoch(epoch, start_step=start)) for one in loaders]
            assert len(batches[0]) == len(near) // 4 - start
            for one, other in zip(*batches, strict=True):
                np.testing.assert_array_equal(one.positions, other.positions)
                assert torch.equal(one.lab_u8, other.lab_u8)
    held = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*.tar"))
    assert 0 < held <= cache.limit
    assert set(FETCHED) <= set(near.shards.to_pylist())
    assert threads_left() == 0


def test_a_cached_validation_reads_the_same(far, tmp_path):
    near = Samples(far.path, "val")
    cache = ShardCache(far, "0", folder=tmp_path / "c", limit=int(near.shard_bytes.sum()))
    batches = [list(val_batches(one, 3)) for one in (near, Samples(far, "val", cache=cache))]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one, other)
    assert sorted(FETCHED) == near.shards.to_pylist()


def test_a_cache_too_small_for_two_blocks_is_refused(far, tmp_path):
    """Otherwise every shard would be fetched again for each of its samples."""
    cache = ShardCache(far, "0", folder=tmp_path / "c", limit=30_000)
    with pytest.raises(DatasetError, match=r"expected a cache of at least .* COLORCORE_CACHE_GB"):
        TrainLoader(Samples(far, "train", cache=cache), 4)


def test_a_remote_shard_that_is_gone(far, tmp_path):
    samples = Samples(far, "train", cache=ShardCache(far, "0", folder=tmp_path / "c"))
    name = samples.shards[3].as_py()
    (far.path / name).unlink()
    with pytest.raises(DatasetError, match="is gone") as error:
        list(TrainLoader(samples, 4).epoch(0))
    assert name in str(error.value)
    assert threads_left() == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch")]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_fetching_ends_when_the_consumer_stops(far, tmp_path, taken: int):
    half = int(Samples(far.path, "train").shard_bytes.sum()) // 2
    cache = ShardCache(far, "0", folder=tmp_path / "c", limit=half)
    batches = TrainLoader(Samples(far, "train", cache=cache), 4).epoch(0)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert threads_left() == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch")]


# The reading thread


def reads_within_seconds(samples: Numbers, reads: int) -> bool:
    deadline = time.monotonic() + 5
    while samples.reads < reads and time.monotonic() < deadline:
        time.sleep(0.01)
    return samples.reads == reads


def test_the_thread_ends_with_the_epoch(samples):
    list(TrainLoader(samples, 4).epoch(0))
    assert threads_left() == 0


@pytest.mark.parametrize("taken", [1, 2])
def test_the_thread_ends_when_the_consumer_stops(taken: int):
    """Even while it waits for room in the queue."""
    samples = Numbers([100])
    batches = TrainLoader(samples, 2).epoch(0)
    for _ in range(taken):
        next(batches)
    assert reads_within_seconds(samples, taken + PREFETCH + 1)
    assert threads_left() == 1
    batches.close()
    assert threads_left() == 0
    assert samples.reads <= taken + PREFETCH + 1


def test_the_thread_ends_when_the_consumer_fails(samples):
    def train():
        for _ in TrainLoader(samples, 4).epoch(0):
            raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError, match="the step failed"):
        train()
    assert threads_left() == 0


def test_an_epoch_that_is_never_begun_starts_no_thread(samples):
    TrainLoader(samples, 4).epoch(0)
    assert threads_left() == 0


def test_batches_are_read_ahead():
    samples = Numbers([40])
    batches = TrainLoader(samples, 10).epoch(0)
    next(batches)
    assert reads_within_seconds(samples, 4)
    assert [batch.step for batch in batches] == [1, 2, 3]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), MemoryError()])
def test_an_exception_in_the_thread_reaches_the_consumer(error):
    class Failing(Numbers):
        def read(self, positions):
            if self.reads == 2:
                raise error
            return super().read(positions)

    taken = []
    with pytest.raises(type(error)) as caught:
        taken.extend(batch.step for batch in TrainLoader(Failing([40]), 4).epoch(0))
    assert caught.value is error
    assert threads_left() == 0


def test_what_was_read_before_an_exception_is_delivered():
    class Failing(Numbers):
        def read(self, positions):
            if self.reads == 2:
                raise ValueError("bad")
            return super().read(positions)

    batches = TrainLoader(Failing([40]), 4).epoch(0)
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(ValueError, match="bad"):
        next(batches)
