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

from colorcore.dataset import loader, order
from colorcore.dataset import samples as samples_module
from colorcore.dataset.layout import DatasetError, done_units, index_name, write_table
from colorcore.dataset.loader import PREFETCH, TrainLoader, val_batches
from colorcore.dataset.order import EpochOrder
from colorcore.dataset.samples import Samples
from colorcore.dataset.shard_cache import ShardCache
from colorcore.storage.local import LocalStore
from colorcore.storage.npy import npy_header

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
    monkeypatch.setattr("colorcore.dataset.unit.SHARD_SAMPLES", 3)
    build_dataset([photo_folder.path], tmp_path / "d", size=16, photos_per_unit=20)
    samples = Samples(tmp_path / "d", "train")
    assert len(samples.shards) > len(done_units(tmp_path / "d"))
    assert samples.shard_counts.max() <= 3
    expected = tar_arrays(tmp_path / "d", "train")
    everything = np.arange(len(samples))
    for key, array in zip(samples.keys(everything), samples.read(everything), strict=True):
        np.testing.assert_array_equal(array, expected[key])


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
    """Ranks take the same number of steps; whoever resumes where, the batches are the same."""
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
    """From two ranks to one to three, in the middle of an epoch: every sample once, as stored."""
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
    """In the order in which it reads them first."""
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


# Compressed


@pytest.fixture(scope="module")
def packed(photo_folder, build_dataset, tmp_path_factory) -> Path:
    """The dataset of ``photo_folder``, compressed."""
    path = tmp_path_factory.mktemp("packed") / "dataset"
    build_dataset([photo_folder.path], path, compress="zstd")
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_compressed_datasets_read_the_same(dataset, packed, split: str):
    raw, small = Samples(dataset, split), Samples(packed, split)
    everything = np.arange(len(raw))
    assert len(small) == len(raw)
    assert small.keys(everything) == raw.keys(everything)
    assert torch.equal(small.read(everything), raw.read(everything))
    batches = [list(TrainLoader(one, 4, seed=1).epoch(2)) for one in (raw, small)]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.lab_u8, other.lab_u8)
    sizes = [one.shard_bytes.sum() for one in (small, raw)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("damage", ["name", "frame", "cut", "other size"])
def test_a_damaged_compressed_shard(packed, tmp_path, damage: str):
    copy = shutil.copytree(packed, tmp_path / "copy")
    row = train_rows(copy)[-1]
    shard, data = copy / row["shard"], bytearray((copy / row["shard"]).read_bytes())
    start, end = row["offset"], row["offset"] + row["length"]
    if damage == "name":
        data[start - 512] ^= 1
    elif damage == "frame":
        data[start + 1] ^= 0xFF
    elif damage == "cut":
        del data[end - 20 :]
    else:  # a good frame of a smaller array
        array = npy_header((3, 16, 16)) + bytes(768)
        frame = pa.Codec("zstd").compress(array, asbytes=True)
        data[start : start + len(frame)] = frame
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match=shard.name) as error:
        read_all(copy)
    assert "run the same cc shard command again" in str(error.value)
    assert threads_left() == 0


# Wrong calls


def test_a_batch_that_ranks_cannot_share(samples):
    with pytest.raises(ValueError, match="a photo for each of the 9 workers, got 8"):
        TrainLoader(samples, 8, world=9)


@pytest.mark.parametrize("world", [2, 3, 5, 7])
def test_ranks_share_a_batch_that_they_do_not_divide(samples, world: int):
    """Every photo of each batch once; shares differ by one photo, and are the same each step."""
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


def train_rows(dataset: Path) -> list[dict]:
    tables = [pq.read_table(dataset / index_name(unit)) for unit in done_units(dataset)]
    return [row for t in tables for row in t.to_pylist() if row["split"] == "train"]


@pytest.mark.parametrize("left", [0, 100, 5_000, 12_000])
def test_a_truncated_tar(copy, left: int):
    shard = last_shard(copy)
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(DatasetError, match="run the same cc shard command again") as error:
        read_all(copy)
    unit = int(shard.name[:6])
    assert str(shard) in str(error.value)
    assert str(copy / index_name(unit)) in str(error.value)
    assert threads_left() == 0


def test_a_tar_that_lacks_its_last_byte_of_pixels(copy):
    shard = last_shard(copy)
    row = pq.read_table(copy / index_name(int(shard.name[:6])))
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
    table = pq.read_table(copy / index_name(0))
    place = table.schema.get_field_index("offset")
    offsets = pc.add(table["offset"], pa.scalar(shift, pa.int64()))
    write_table(copy, index_name(0), table.set_column(place, "offset", offsets))
    with pytest.raises(DatasetError, match=r"000000-000\.tar does not match its index at byte"):
        read_all(copy)


def test_a_missing_shard(copy):
    shard = last_shard(copy)
    shard.unlink()
    with pytest.raises(DatasetError, match="cannot be read") as error:
        read_all(copy)
    assert str(shard) in str(error.value)
    assert "run the same cc shard command again" in str(error.value)


def test_a_tar_of_another_unit(copy):
    """Of the same size and with arrays in the same places: only its names are others."""
    shards = sorted((copy / "train").glob("*.tar"))
    same = [s for s in shards if s.stat().st_size == shards[0].stat().st_size]
    assert len(same) >= 2
    one, other = same[0].read_bytes(), same[1].read_bytes()
    same[0].write_bytes(other)
    same[1].write_bytes(one)
    with pytest.raises(DatasetError, match="does not match its index at byte") as error:
        read_all(copy)
    assert any(str(shard) in str(error.value) for shard in same[:2])


@pytest.mark.parametrize("shift", [-512, 512, 1])
def test_a_shifted_tar(copy, shift: int):
    shard = last_shard(copy)
    data = shard.read_bytes()
    shard.write_bytes(data[-shift:] if shift < 0 else bytes(shift) + data)
    with pytest.raises(DatasetError, match="does not match its index") as error:
        read_all(copy)
    assert str(shard) in str(error.value)


@pytest.mark.parametrize("byte", [0, 7, 60, 127])
def test_a_flipped_byte_in_an_arrays_header(copy, byte: int):
    row = train_rows(copy)[0]
    data = bytearray((copy / row["shard"]).read_bytes())
    data[row["offset"] + byte] ^= 1
    (copy / row["shard"]).write_bytes(data)
    with pytest.raises(DatasetError, match=f"match its index at byte {row['offset']}") as error:
        read_all(copy)
    assert row["shard"] in str(error.value)


def change_index(dataset: Path, unit: int, change) -> None:
    rows = change(pq.read_table(dataset / index_name(unit)).to_pylist())
    schema = pq.read_schema(dataset / index_name(unit))
    write_table(dataset, index_name(unit), pa.Table.from_pylist(rows, schema))


@pytest.mark.parametrize("extra", [-1, 1, 10**6])
def test_a_wrong_length(copy, extra: int):
    change_index(copy, 0, lambda rows: [{**row, "length": row["length"] + extra} for row in rows])
    with pytest.raises(DatasetError, match=r"000000-000\.tar does not match its index"):
        read_all(copy)


@pytest.mark.parametrize("change", ["fewer", "none", "more"])
def test_an_index_with_other_rows_than_the_table_of_shards(copy, change: str):
    def changed(rows):
        last = max(i for i, row in enumerate(rows) if row["split"] == "train")
        if change == "none":
            return [row for row in rows if row["split"] != "train"]
        if change == "fewer":
            return rows[:last] + rows[last + 1 :]
        return [*rows, {**rows[last], "key": "000000-00099"}]

    counts = Samples(copy, "train").shard_counts
    change_index(copy, 0, changed)
    with pytest.raises(DatasetError, match=rf"samples in its index, expected {counts[0]}") as error:
        read_all(copy)
    assert "train/000000-000.tar" in str(error.value)
    samples = Samples(copy, "train")
    with pytest.raises(DatasetError, match="samples in its index"):
        samples.keys(np.arange(len(samples)))


TABLES = ["index/000001.parquet", "duplicates.parquet", "shards.parquet"]


@pytest.mark.parametrize("missing", TABLES)
def test_a_missing_table(copy, missing: str):
    (copy / missing).unlink()
    with pytest.raises(DatasetError, match="found no such file; run the same cc shard") as error:
        read_all(copy)
    assert str(copy / missing) in str(error.value)
    assert threads_left() == 0


@pytest.mark.parametrize("damaged", TABLES)
def test_a_damaged_table(copy, damaged: str):
    (copy / damaged).write_bytes((copy / damaged).read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"is damaged: .* remove it, then run") as error:
        read_all(copy)
    assert str(copy / damaged) in str(error.value)


def test_the_advice_for_a_damaged_shard_works(copy, photo_folder, dataset):
    from colorcore.dataset.layout import read_info
    from pipelines.sharding.task import shard_unit
    from pipelines.sources.source import open_sources

    shard = last_shard(copy)
    shard.write_bytes(b"")
    unit = int(shard.name[:6])
    (copy / index_name(unit)).unlink()
    job = (LocalStore(copy), open_sources([photo_folder.path]), read_info(copy).settings)
    shard_unit(job, unit, 0)
    assert torch.equal(read_all(copy)[0].lab_u8, read_all(dataset)[0].lab_u8)


# What is held


def test_maps_and_rows_are_bounded(photo_folder, build_dataset, tmp_path, monkeypatch):
    """However many shards there are; and what was let go is read again."""
    monkeypatch.setattr("colorcore.dataset.unit.SHARD_SAMPLES", 1)
    build_dataset([photo_folder.path], tmp_path / "d", size=16, photos_per_unit=2)
    monkeypatch.setattr(samples_module, "OPEN_SHARDS", 3)
    samples = Samples(tmp_path / "d", "train")
    everything = np.arange(len(samples))
    assert len(samples.shards) == len(samples) > 12
    expected = tar_arrays(tmp_path / "d", "train")
    for _ in range(2):
        for key, lab_u8 in zip(samples.keys(everything), samples.read(everything), strict=True):
            np.testing.assert_array_equal(lab_u8, expected[key])
        maps = Path("/proc/self/maps").read_text()
        mapped = {line.split()[-1] for line in maps.splitlines() if str(tmp_path) in line}
        assert len(mapped) == 3
        assert len(samples._rows._values) == 3


# Through the cache, as a remote dataset is read


class Far(LocalStore):
    """A folder that says it is not on this machine."""

    local = None

    def fetch(self, name, target):
        FETCHED.append(name)
        super().fetch(name, target)


FETCHED: list[str] = []


@pytest.fixture
def far(photo_folder, build_dataset, tmp_path, monkeypatch) -> Far:
    """A dataset of many small shards, and orders of several blocks of it."""
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
    """With a cache that holds half of the shards, which are fetched ahead and go again."""
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


def test_a_cache_too_small_for_two_blocks_is_said(far, tmp_path):
    """Rather than to fetch every shard anew for each of its samples."""
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
