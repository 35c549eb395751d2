"""Samples read by position: their bytes, and every kind of damage."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from colorcore.dataset import samples as samples_module
from colorcore.dataset.layout import DatasetError, done_units, index_name, write_table
from colorcore.dataset.loader import TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.storage.local import LocalStore
from colorcore.storage.npy import npy_header
from tests.colorcore.dataset.units import tar_arrays, threads_left

SPLITS = ["train", "val"]


def duplicate_keys(dataset: Path) -> set[str]:
    return set(pq.read_table(dataset / "duplicates.parquet")["key"].to_pylist())


@pytest.fixture
def copy(dataset, tmp_path) -> Path:
    """A dataset that a test may damage."""
    return shutil.copytree(dataset, tmp_path / "copy")


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


def test_no_samples_in_a_split(photo_folder, build_dataset, tmp_path):
    build_dataset([photo_folder.path / "a b"], tmp_path / "d", val_percent=0)
    assert len(Samples(tmp_path / "d", "train")) == 2
    with pytest.raises(DatasetError, match=r"split 'val' .* found none; .* raise --val-percent"):
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
    """With the same size and arrays in the same places: only the names differ."""
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


# Memory


def test_maps_and_rows_are_bounded(photo_folder, build_dataset, tmp_path, monkeypatch):
    """For any number of shards; a shard that was unmapped can be read again."""
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
