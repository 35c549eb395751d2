"""Batches: the order, the shares of ranks, resuming, the bytes, and every kind of damage."""

import io
import shutil
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore import loader
from colorcore.dataset import (
    DatasetError,
    index_path,
    planned_units,
    write_plan,
    write_table,
)
from colorcore.loader import PREFETCH, Samples, TrainLoader, epoch_order, val_batches

SPLITS = ["train", "val"]


def threads_left() -> int:
    return sum(thread.name == "loader" for thread in threading.enumerate())


def tar_arrays(dataset: Path, split: str) -> dict[str, np.ndarray]:
    """key -> array of every sample in a split's tars, by tarfile and NumPy."""
    arrays = {}
    for path in sorted((dataset / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".lab.npy"):
                    data = tar.extractfile(info).read()
                    arrays[info.name.removesuffix(".lab.npy")] = np.load(io.BytesIO(data))
    return arrays


def duplicate_keys(dataset: Path) -> set[str]:
    return set(pq.read_table(dataset / "duplicates.parquet")["key"].to_pylist())


def stack(batches):
    return np.concatenate([batch.positions for batch in batches])


@pytest.fixture
def samples(dataset) -> Samples:
    return Samples(dataset, "train")


@pytest.fixture
def copy(dataset, tmp_path) -> Path:
    """A dataset that a test may damage."""
    return shutil.copytree(dataset, tmp_path / "copy")


class Numbers(Samples):
    """So many samples without files: a sample's every byte is its position."""

    def __init__(self, shard_counts, size=4):
        self.size = size
        self.shard_counts = np.array(shard_counts, np.int64)
        self.reads = 0

    def __len__(self):
        return int(self.shard_counts.sum())

    def read(self, positions):
        self.reads += 1
        shape = (len(positions), 3, self.size, self.size)
        bytes_ = torch.from_numpy(positions % 256).to(torch.uint8)
        return bytes_.reshape(-1, 1, 1, 1).expand(shape).clone()


# The samples


@pytest.mark.parametrize("split", SPLITS)
def test_every_sample_is_that_of_its_tar(dataset, split: str):
    samples = Samples(dataset, split)
    expected = tar_arrays(dataset, split)
    keys = samples.keys(np.arange(len(samples)))
    assert keys == sorted(expected.keys() - duplicate_keys(dataset))
    lab_u8 = samples.read(np.arange(len(samples)))
    assert lab_u8.dtype == torch.uint8
    assert lab_u8.shape == (len(samples), 3, samples.size, samples.size)
    for key, array in zip(keys, lab_u8, strict=True):
        np.testing.assert_array_equal(array, expected[key])


def test_any_positions_in_any_order(samples):
    positions = np.array([7, 0, 7, len(samples) - 1])
    lab_u8 = samples.read(positions)
    for row, position in zip(lab_u8, positions, strict=True):
        assert torch.equal(row, samples.read(np.array([position]))[0])
    assert torch.equal(lab_u8[0], lab_u8[2])


def test_what_was_read_is_ones_own(samples):
    first = samples.read(np.array([0]))
    before = first.clone()
    first.zero_()
    assert torch.equal(samples.read(np.array([0])), before)
    assert before.any()


def test_copies_across_units_are_left_out(dataset, photo_folder):
    (copy,) = duplicate_keys(dataset)
    both = [Samples(dataset, split) for split in SPLITS]
    keys = [key for samples in both for key in samples.keys(np.arange(len(samples)))]
    assert copy not in keys
    assert len(keys) == len(photo_folder.kept) - 1
    assert any(copy in tar_arrays(dataset, split) for split in SPLITS)


def test_several_shards_a_unit(photo_folder, build_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("colorcore.unit.SHARD_SAMPLES", 3)
    build_dataset([photo_folder.path], tmp_path / "d", size=16, photos_per_unit=20)
    samples = Samples(tmp_path / "d", "train")
    assert len(samples.shards) > len(planned_units(tmp_path / "d"))
    assert samples.shard_counts.max() <= 3
    expected = tar_arrays(tmp_path / "d", "train")
    everything = np.arange(len(samples))
    for key, array in zip(samples.keys(everything), samples.read(everything), strict=True):
        np.testing.assert_array_equal(array, expected[key])


# The order of an epoch


counts = st.lists(st.integers(1, 40), min_size=1, max_size=20).map(np.array)


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(0, 2**31), st.integers(0, 1000))
def test_an_epoch_is_a_permutation(shard_counts, seed: int, epoch: int):
    order = epoch_order(shard_counts, seed, epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(shard_counts.sum()))
    np.testing.assert_array_equal(order, epoch_order(shard_counts, seed, epoch))


@pytest.mark.parametrize("block", [1, 2, 7, 16, 50, 10_000])
def test_in_blocks_every_position_occurs_once(block: int, monkeypatch):
    monkeypatch.setattr(loader, "BLOCK_SAMPLES", block)
    shard_counts = np.array([5, 1, 30, 7, 7, 2, 12, 1])
    for epoch in range(5):
        order = epoch_order(shard_counts, 3, epoch)
        np.testing.assert_array_equal(np.sort(order), np.arange(65))


def test_blocks_keep_shards_together(monkeypatch):
    """A block draws on few shards, so that reading stays near to disk order."""
    monkeypatch.setattr(loader, "BLOCK_SAMPLES", 40)
    shard_of = np.repeat(np.arange(50), 10)
    order = epoch_order(np.full(50, 10), 0, 0)
    for start in range(0, 400, 40):
        assert len(np.unique(shard_of[order[start : start + 40]])) <= 9
    assert len(np.unique(shard_of[order[:40]])) > 1


def test_epochs_and_seeds_differ():
    orders = [epoch_order(np.full(8, 25), seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({order.tobytes() for order in orders}) == 16


def test_the_order_is_the_same_for_ever():
    """Fixed here: another order would break the resuming of runs begun before."""
    assert epoch_order(np.array([3, 4, 2]), 5, 1).tolist() == [3, 4, 2, 8, 0, 6, 5, 7, 1]


def test_a_shuffle_is_uniform():
    """Each sample is about equally often in each quarter of the epoch."""
    shard_counts, epochs = np.full(10, 8), 400
    counted = np.zeros((80, 4))
    for epoch in range(epochs):
        counted[epoch_order(shard_counts, 0, epoch), np.repeat(np.arange(4), 20)] += 1
    expected, sigma = epochs / 4, (epochs * 3 / 16) ** 0.5
    assert np.abs(counted - expected).max() < 5 * sigma


# The shares of ranks


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
                    np.concatenate([share.positions for share in shares]),
                    torch.cat([share.lab_u8 for share in shares]),
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
    positions = [one.positions(epoch) for one in loaders]
    assert {p.shape for p in positions} == {(len(samples) // batch, share)}
    everything = np.concatenate(positions, axis=None)
    assert len(np.unique(everything)) == len(everything) == len(loaders[0]) * batch


def test_batches_say_where_they_stand(samples):
    batches = list(TrainLoader(samples, 4, seed=2).epoch(3))
    assert [batch.step for batch in batches] == list(range(len(samples) // 4))
    assert {batch.epoch for batch in batches} == {3}
    order = epoch_order(samples.shard_counts, 2, 3)
    np.testing.assert_array_equal(stack(batches), order[: len(batches) * 4])
    for batch in batches:
        assert torch.equal(batch.lab_u8, samples.read(batch.positions))
        assert batch.lab_u8.is_contiguous()


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
    rest = [np.concatenate([b.positions for b in shares]) for shares in zip(*ranks, strict=True)]
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
    with pytest.raises(ValueError, match="divisible by the 3 workers, got 8"):
        TrainLoader(samples, 8, world=3)


def test_a_dataset_smaller_than_a_batch(samples):
    with pytest.raises(DatasetError, match=rf"batch of 64 .* found {len(samples)}; shard more"):
        TrainLoader(samples, 64)
    assert len(TrainLoader(samples, len(samples))) == 1


def test_no_samples_in_a_split(photo_folder, build_dataset, tmp_path):
    build_dataset([photo_folder.path / "a b"], tmp_path / "d", val_percent=0)
    assert len(Samples(tmp_path / "d", "train")) == 2
    with pytest.raises(DatasetError, match=r"split 'val' .* found none; .* higher --val-percent"):
        Samples(tmp_path / "d", "val")


# Damage: an error that names the file, and never fewer samples


def read_all(dataset: Path):
    samples = Samples(dataset, "train")
    return list(TrainLoader(samples, len(samples)).epoch(0))


def last_shard(dataset: Path) -> Path:
    return sorted((dataset / "train").glob("*.tar"))[-1]


@pytest.mark.parametrize("left", [0, 100, 5_000, 12_000])
def test_a_truncated_tar(copy, left: int):
    shard = last_shard(copy)
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(DatasetError, match="run the same cc shard command again") as error:
        read_all(copy)
    unit = int(shard.name[:6])
    assert str(shard) in str(error.value)
    assert str(index_path(copy, unit)) in str(error.value)
    assert threads_left() == 0


def test_a_tar_that_lacks_its_last_byte_of_pixels(copy):
    shard = last_shard(copy)
    row = pq.read_table(index_path(copy, int(shard.name[:6])))
    row = row.filter(pc.equal(row["split"], "train")).to_pylist()[-1]
    end = row["offset"] + row["length"]
    data = shard.read_bytes()
    shard.write_bytes(data[: end - 1])
    with pytest.raises(DatasetError, match=shard.name):
        read_all(copy)
    shard.write_bytes(data[:end])
    assert len(read_all(copy)) == 1


@pytest.mark.parametrize("shift", [-512, -1, 1, 512, 10**9])
def test_a_wrong_offset(copy, shift: int):
    index = index_path(copy, 0)
    table = pq.read_table(index)
    place = table.schema.get_field_index("offset")
    offsets = pc.add(table["offset"], pa.scalar(shift, pa.int64()))
    write_table(index, table.set_column(place, "offset", offsets))
    with pytest.raises(DatasetError, match=r"000000-000\.tar does not match its index at byte"):
        read_all(copy)


def test_a_missing_shard(copy):
    shard = last_shard(copy)
    shard.unlink()
    with pytest.raises(DatasetError, match="cannot be read") as error:
        read_all(copy)
    assert str(shard) in str(error.value)
    assert "run the same cc shard command again" in str(error.value)


@pytest.mark.parametrize("missing", ["index/000001.parquet", "duplicates.parquet"])
def test_a_missing_table(copy, missing: str):
    (copy / missing).unlink()
    with pytest.raises(DatasetError, match="found no such file; run the same cc shard") as error:
        Samples(copy, "train")
    assert str(copy / missing) in str(error.value)


def test_a_unit_that_is_planned_and_not_done(copy):
    """`cc shard` was killed while it added photos."""
    write_plan(copy, 99, [])
    with pytest.raises(DatasetError, match=r"000099\.parquet"):
        Samples(copy, "train")


@pytest.mark.parametrize("damaged", ["index/000001.parquet", "duplicates.parquet"])
def test_a_damaged_table(copy, damaged: str):
    (copy / damaged).write_bytes((copy / damaged).read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"is damaged: .* remove it, then run") as error:
        Samples(copy, "train")
    assert str(copy / damaged) in str(error.value)


def test_the_advice_for_a_damaged_shard_works(copy, photo_folder, dataset):
    from colorcore.dataset import read_info
    from pipelines.shard import shard_unit

    shard = last_shard(copy)
    shard.write_bytes(b"")
    unit = int(shard.name[:6])
    index_path(copy, unit).unlink()
    shard_unit(copy, [photo_folder.path], read_info(copy).settings, unit)
    assert torch.equal(read_all(copy)[0].lab_u8, read_all(dataset)[0].lab_u8)


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
    """Also while it waits with a full queue."""
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
