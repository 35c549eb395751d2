"""The dataset on disk, read back with tarfile, NumPy, PyArrow and stock webdataset."""

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from colorcore.dataset.layout import (
    INDEX_SCHEMA,
    DatasetError,
    done_units,
    histogram_name,
    index_name,
    iterate_index,
    read_histogram,
    read_info,
    rejected_name,
    write_info,
)
from colorcore.dataset.sample import make_sample, split_of
from colorcore.photos.refusal import Reason
from colorcore.storage.location import open_store
from tests.colorcore.dataset.units import files_of, members_of, rows_of, tars_of

# Contents


def test_every_photo_is_kept_or_refused_with_its_reason(dataset, photo_folder):
    rows, refused = rows_of(dataset), rows_of(dataset, rejected_name)
    assert sorted(row["source"] for row in rows) == photo_folder.kept
    assert {row["source"]: row["reason"] for row in refused} == photo_folder.refused
    assert all(row["detail"] for row in refused)


def test_dataset_json_counts_what_is_there(dataset, photo_folder):
    info = read_info(dataset)
    splits = Counter(row["split"] for row in rows_of(dataset))
    assert info.counts == {
        "photos": len(photo_folder.kept) + len(photo_folder.refused),
        "train": splits["train"],
        "val": splits["val"],
        "duplicates": 1,
        "units": len(done_units(dataset)),
    }
    assert splits["train"]
    assert splits["val"]
    assert info.refused == Counter(photo_folder.refused.values())
    assert list(info.refused) == [reason for reason in Reason if reason in info.refused]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_stock_webdataset_reads_every_shard(dataset):
    rows = {row["key"]: row for row in rows_of(dataset)}
    seen = set()
    for tar in tars_of(dataset):
        for record in webdataset.WebDataset(str(tar), shardshuffle=False).decode():
            row = rows[record["__key__"]]
            array = record["lab.npy"]
            assert row["shard"] == str(tar.relative_to(dataset))
            assert array.dtype == np.uint8
            assert array.shape == (3, 64, 64)
            assert record["json"] == {
                name: pytest.approx(row[name]) if name == "colorfulness" else row[name]
                for name in ("source", "width", "height", "colorfulness", "sha256")
            }
            np.testing.assert_array_equal(array, _at(dataset, row))
            seen.add(record["__key__"])
    assert seen == set(rows)


def _at(dataset: Path, row: dict):
    """The array at the index's offset can be read with a file and NumPy alone."""
    with (dataset / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        return np.load(io.BytesIO(file.read(row["length"])), allow_pickle=False)


def test_the_index_points_at_the_samples_of_its_photos(dataset, photo_folder):
    settings = read_info(dataset).settings
    for row in rows_of(dataset):
        data = (photo_folder.path / row["source"]).read_bytes()
        sample = make_sample(data, settings)
        np.testing.assert_array_equal(_at(dataset, row), sample.lab_u8)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["split"] == split_of(row["sha256"], settings.val_percent)
        assert row["shard"].startswith(f"{row['split']}/{row['key'][:6]}-")
        assert (row["width"], row["height"]) == (128, 96)
        assert row["length"] == 128 + 3 * 64 * 64


def test_tars_are_plain_and_whole(dataset):
    rows = {row["key"]: row for row in rows_of(dataset)}
    seen = []
    for tar in tars_of(dataset):
        with tarfile.open(tar) as opened:
            infos = opened.getmembers()
        keys = [info.name.partition(".")[0] for info in infos]
        names = [name for key in keys[::2] for name in (f"{key}.lab.npy", f"{key}.json")]
        assert [info.name for info in infos] == names
        assert tar.stat().st_size % 512 == 0
        for info in infos[::2]:
            row = rows[info.name.partition(".")[0]]
            assert (info.offset_data, info.size) == (row["offset"], row["length"])
        seen += keys[::2]
    assert sorted(seen) == sorted(rows)


def test_the_histogram_is_a_recount_of_the_train_shards(dataset):
    expected = np.zeros((256, 256), np.int64)
    for tar in sorted(dataset.glob("train/*.tar")):
        for name, data in members_of(tar).items():
            if name.endswith(".npy"):
                _, a, b = np.load(io.BytesIO(data))
                np.add.at(expected, (a.ravel(), b.ravel()), 1)
    np.testing.assert_array_equal(read_histogram(dataset), expected)
    units = [np.load(dataset / histogram_name(unit)) for unit in done_units(dataset)]
    np.testing.assert_array_equal(sum(units), expected)
    assert {units[0].dtype, read_histogram(dataset).dtype} == {np.dtype("int64")}


def test_the_index_has_its_schema(dataset):
    for unit in done_units(dataset):
        assert pq.read_schema(dataset / index_name(unit)).equals(INDEX_SCHEMA)
    columns = ["key", "sha256"]
    read = [row for table in iterate_index(dataset, columns) for row in table.to_pylist()]
    assert read == [{name: row[name] for name in columns} for row in rows_of(dataset)]


# Reproducibility


def test_no_clock_and_no_machine_in_the_files(dataset, photo_folder):
    for tar in tars_of(dataset):
        with tarfile.open(tar) as opened:
            for info in opened:
                assert (info.mtime, info.uid, info.gid) == (0, 0, 0)
                assert (info.uname, info.gname) == ("", "")
    here = str(photo_folder.path).encode()
    found = [name for name, data in files_of(dataset).items() if here in data]
    assert found == ["dataset.json"]  # it holds the sources as written


def test_elsewhere_and_later_the_bytes_are_the_same(dataset, photo_folder, build_dataset, tmp_path):
    moved, other = tmp_path / "moved photos", tmp_path / "size=64"
    shutil.copytree(photo_folder.path, moved, symlinks=True)
    for name in photo_folder.kept:
        (moved / name).touch()
    (moved / "garden/loop").unlink()
    (moved / "garden/loop").symlink_to(moved, target_is_directory=True)
    build_dataset([moved], other)
    one, two = files_of(dataset), files_of(other)
    assert read_info(dataset).fingerprint == read_info(other).fingerprint
    assert {name for name in one if one[name] != two[name]} == {"dataset.json"}  # its sources
    assert one.keys() == two.keys()


def test_a_unit_done_again_is_the_same(dataset, photo_folder, tmp_path):
    from pipelines.sharding.task import shard_unit
    from pipelines.sources.source import open_sources

    copy = shutil.copytree(dataset, tmp_path / "copy")
    before = files_of(copy)
    (copy / index_name(1)).unlink()
    (copy / "train" / "000001-000.tar").write_bytes(b"half of")
    job = (open_store(copy), open_sources([photo_folder.path]), read_info(copy).settings)
    result, _ = shard_unit(job, 1, 0)
    assert files_of(copy) == before
    assert result.unit == 1
    mine = [row["split"] for row in pq.read_table(copy / index_name(1)).to_pylist()]
    assert result.kept == {split: mine.count(split) for split in ("train", "val")}


# dataset.json


def test_info_survives_a_round_trip(dataset, tmp_path):
    info = read_info(dataset)
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    assert (tmp_path / "dataset.json").read_bytes() == (dataset / "dataset.json").read_bytes()


def test_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"found no dataset.json there; make one with: cc shard"):
        read_info(tmp_path)
    with pytest.raises(DatasetError, match="expected a dataset"):
        read_info(tmp_path / "nowhere")


def test_an_unfinished_dataset(dataset, tmp_path):
    info = read_info(dataset).model_copy(update={"fingerprint": None, "counts": None})
    write_info(tmp_path, info)
    assert read_info(tmp_path, finished=False).fingerprint is None
    with pytest.raises(DatasetError, match="unfinished; run the same cc shard command again"):
        read_info(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format(dataset, tmp_path, version):
    record = json.loads((dataset / "dataset.json").read_bytes())
    (tmp_path / "dataset.json").write_text(json.dumps({**record, "format": version}))
    with pytest.raises(DatasetError, match=r"expected dataset format 1, .*shard the photos again"):
        read_info(tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"1", b"\xff\xfe", b'{"format": 1}', b'{"format": 1, "settings": 2}'],
)
def test_a_damaged_dataset(tmp_path, damaged: bytes):
    (tmp_path / "dataset.json").write_bytes(damaged)
    with pytest.raises(DatasetError, match=r"dataset\.json is damaged: ") as error:
        read_info(tmp_path)
    assert "\n" not in str(error.value)
    assert "cc shard" in str(error.value)
