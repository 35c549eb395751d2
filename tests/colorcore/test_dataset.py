"""The dataset on disk, read back with tarfile, NumPy, PyArrow and stock webdataset."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from colorcore import unit as module
from colorcore.dataset import (
    INDEX_SCHEMA,
    DatasetError,
    PlannedPhoto,
    ShardSettings,
    find_duplicates,
    fingerprint,
    histogram_path,
    index_path,
    npy_header,
    plan_path,
    planned_units,
    read_histogram,
    read_info,
    read_plan,
    read_result,
    rejected_path,
    unit_name,
    write_info,
    write_plan,
)
from colorcore.refusal import PhotoRefused, Reason
from colorcore.sample import make_sample, split_of
from colorcore.unit import publish_unit, write_unit

SETTINGS = ShardSettings(size=32, val_percent=30)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(dataset: Path, kind=index_path) -> list[dict]:
    tables = [pq.read_table(kind(dataset, unit)) for unit in planned_units(dataset)]
    return [row for table in tables for row in table.to_pylist()]


def tars_of(dataset: Path) -> list[Path]:
    return sorted([*dataset.glob("train/*.tar"), *dataset.glob("val/*.tar")])


def members_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}


def unit_of(folder: Path, photos: dict[str, bytes], unit: int = 0, settings=SETTINGS):
    """One unit of photos in memory, written under ``folder``."""
    planned = [PlannedPhoto(0, name.encode()) for name in photos]
    return write_unit(folder, unit, planned, lambda photo: photos[photo.source], settings)


@pytest.fixture
def pictures(scene, jpeg) -> dict[str, bytes]:
    return {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(12)}


# What is in a dataset


def test_every_photo_is_kept_or_refused_with_its_reason(dataset, photo_folder):
    rows, refused = rows_of(dataset), rows_of(dataset, rejected_path)
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
        "units": len(planned_units(dataset)),
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
    """The array at the index's offset, with nothing but a file and NumPy."""
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
    units = planned_units(dataset)
    np.testing.assert_array_equal(
        read_histogram(dataset, units[:2]) + read_histogram(dataset, units[2:]), expected
    )
    assert np.load(histogram_path(dataset, 0)).dtype == np.int64


def test_the_index_has_its_schema(dataset):
    for unit in planned_units(dataset):
        assert pq.read_schema(index_path(dataset, unit)).equals(INDEX_SCHEMA)


# The same bytes, every time


def test_no_clock_and_no_machine_in_the_files(dataset, photo_folder):
    for tar in tars_of(dataset):
        with tarfile.open(tar) as opened:
            for info in opened:
                assert (info.mtime, info.uid, info.gid) == (0, 0, 0)
                assert (info.uname, info.gname) == ("", "")
    here = str(photo_folder.path).encode()
    found = [name for name, data in files_of(dataset).items() if here in data]
    assert found == ["dataset.json"]  # the sources as they were named


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
    from pipelines.shard import shard_unit

    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    before = files_of(copy)
    index_path(copy, 1).unlink()
    (copy / "train" / "000001-000.tar").write_bytes(b"half of")
    settings = read_info(copy).settings
    result, _ = shard_unit(copy, [photo_folder.path], settings, 1)
    assert files_of(copy) == before
    assert result == read_result(copy, 1)


def test_read_result_is_what_write_unit_gave(pictures, tmp_path):
    photos = {**pictures, "empty.jpg": b"", "copy.jpg": pictures["3.jpg"], "text.jpg": b"text"}
    result = unit_of(tmp_path, photos, unit=7)
    assert result == read_result(tmp_path, 7)
    assert result.unit == 7
    assert result.photos == len(photos)
    assert result.refused == {"duplicate": 1, "empty": 1, "unreadable": 1}
    assert result.index_sha256 == hashlib.sha256(index_path(tmp_path, 7).read_bytes()).hexdigest()


# Units


def test_shards_roll_over(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_SAMPLES", 3)
    result = unit_of(tmp_path, pictures, unit=4)
    rows = pq.read_table(index_path(tmp_path, 4)).to_pylist()
    for split in ("train", "val"):
        mine = [row["shard"] for row in rows if row["split"] == split]
        assert len(mine) == result.kept[split] > 0
        expected = [f"{split}/000004-{i // 3:03d}.tar" for i in range(len(mine))]
        assert mine == expected
        assert sorted(f"{split}/{p.name}" for p in (tmp_path / split).iterdir()) == sorted(
            set(expected)
        )
    for row in rows:
        members = members_of(tmp_path / row["shard"])
        assert len(members) <= 6
        np.testing.assert_array_equal(
            _at(tmp_path, row), make_sample(pictures[row["source"]], SETTINGS).lab_u8
        )
    assert result.kept["train"] > 3


def test_copies_inside_a_unit_are_refused(pictures, tmp_path):
    one, other = pictures["0.jpg"], pictures["1.jpg"]
    photos = {"a/0.jpg": one, "b/0.jpg": other, "z.jpg": one}
    unit_of(tmp_path, photos)
    assert pq.read_table(index_path(tmp_path, 0))["source"].to_pylist() == ["a/0.jpg", "b/0.jpg"]
    assert pq.read_table(rejected_path(tmp_path, 0)).to_pylist() == [
        {"root": 0, "source": "z.jpg", "reason": "duplicate",
         "detail": "the same bytes as an earlier photo"}
    ]  # fmt: skip


def test_keys_are_the_positions_in_the_slice(pictures, tmp_path):
    photos = {"gone.jpg": b"", **pictures}
    unit_of(tmp_path, photos, unit=12)
    keys = pq.read_table(index_path(tmp_path, 12))["key"].to_pylist()
    assert keys == [f"000012-{position:05d}" for position in range(1, 13)]


def test_a_unit_without_samples_is_done_too(tmp_path):
    result = unit_of(tmp_path, {"a.jpg": b"", "b.jpg": b"text"})
    assert result.kept == {"train": 0, "val": 0}
    assert pq.read_table(index_path(tmp_path, 0)).num_rows == 0
    assert read_histogram(tmp_path, [0]).sum() == 0
    assert not list(tmp_path.rglob("*.tar"))
    assert read_result(tmp_path, 0) == result


def test_what_reading_raises_refuses_that_photo_alone(pictures, tmp_path):
    errors = {
        "a.jpg": PermissionError(13, "Permission denied"),
        "b.jpg": PhotoRefused(Reason.TOO_LARGE, "9 bytes"),
        "c.jpg": OSError(),
        "d.jpg": None,
    }

    def read(photo):
        if error := errors[photo.source]:
            raise error
        return pictures["0.jpg"]

    photos = [PlannedPhoto(0, name.encode()) for name in errors]
    result = write_unit(tmp_path, 0, photos, read, SETTINGS)
    assert sum(result.kept.values()) == 1
    rows = pq.read_table(rejected_path(tmp_path, 0)).to_pylist()
    assert [(row["reason"], row["detail"]) for row in rows] == [
        ("unreadable", "Permission denied"),
        ("file_too_large", "9 bytes"),
        ("unreadable", "OSError"),
    ]


def test_other_errors_are_not_swallowed(tmp_path):
    def read(photo):
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault"):
        write_unit(tmp_path, 0, [PlannedPhoto(0, b"a.jpg")], read, SETTINGS)


def test_the_index_is_published_last(pictures, tmp_path, monkeypatch):
    """Killed after any number of renames, a unit with an index is whole."""
    whole = tmp_path / "whole"
    unit_of(whole, pictures)
    expected = files_of(whole)
    rename = module._move
    for renames in range(len(expected)):
        left = iter(range(renames))

        def move(source, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            rename(source, target)

        scratch, dataset = tmp_path / f"scratch{renames}", tmp_path / f"dataset{renames}"
        unit_of(scratch, pictures)
        monkeypatch.setattr(module, "_move", move)
        with pytest.raises(KeyboardInterrupt):
            publish_unit(scratch, dataset, 0)
        assert not index_path(dataset, 0).exists()
        monkeypatch.setattr(module, "_move", rename)
        unit_of(scratch, pictures)
        publish_unit(scratch, dataset, 0)
        assert files_of(dataset) == expected
        assert not files_of(scratch)


def test_plans_keep_bytes_that_are_no_text(tmp_path):
    photos = [PlannedPhoto(0, b"caf\xe9/\xff.jpg"), PlannedPhoto(3, "写真 ñ.jpg".encode())]
    photos += [PlannedPhoto(1, b"new\nline.jpg"), PlannedPhoto(0, b"")]
    write_plan(tmp_path, 5, photos)
    assert read_plan(tmp_path, 5) == photos
    assert photos[0].source == r"caf\xe9/\xff.jpg"
    assert photos[1].source == "写真 ñ.jpg"


def test_units_are_listed_in_order(tmp_path):
    for unit in (10, 2, 123456, 0):
        write_plan(tmp_path, unit, [])
    (tmp_path / "units" / ".000003.parquet.part").touch()
    assert planned_units(tmp_path) == [0, 2, 10, 123456]
    assert plan_path(tmp_path, 2).name == f"{unit_name(2)}.parquet" == "000002.parquet"


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 256, 256), (3, 4096, 4096), (7,)])
def test_npy_header_is_that_of_numpy(shape):
    buffer = io.BytesIO()
    np.save(buffer, np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (0, *shape[1:])))
    header = npy_header(shape)
    assert len(header) == 128
    read = io.BytesIO(header)
    assert np.lib.format.read_magic(read) == (1, 0)
    assert np.lib.format.read_array_header_1_0(read) == (shape, False, np.dtype("uint8"))
    small = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    buffer = io.BytesIO()
    np.save(buffer, small)
    assert npy_header(small.shape) + small.tobytes() == buffer.getvalue()


# Copies across units


def test_copies_across_units_are_found(dataset, photo_folder):
    copy, original = photo_folder.copies
    key = {row["source"]: row["key"] for row in rows_of(dataset)}
    row = find_duplicates(dataset).to_pylist()
    assert row == [
        {
            "key": key[copy],
            "sha256": hashlib.sha256((photo_folder.path / copy).read_bytes()).hexdigest(),
            "first_key": key[original],
        }
    ]
    assert pq.read_table(dataset / "duplicates.parquet").to_pylist() == row


def test_any_number_of_passes_finds_the_same_copies(pictures, tmp_path):
    for unit in range(4):
        mine = {name: data for i, (name, data) in enumerate(pictures.items()) if i % 3 != unit}
        write_plan(tmp_path, unit, [])
        unit_of(tmp_path, mine, unit=unit)
    expected = find_duplicates(tmp_path)
    seen, copies = {}, []
    for row in rows_of(tmp_path):
        first = seen.setdefault(row["sha256"], row["key"])
        if first != row["key"]:
            copies.append({"key": row["key"], "sha256": row["sha256"], "first_key": first})
    assert expected.to_pylist() == copies
    assert len(copies) == 24
    for passes in (2, 3, 7, 100):
        assert find_duplicates(tmp_path, passes=passes).equals(expected)


def test_a_lost_table_of_copies_is_made_again(dataset, tmp_path):
    from pipelines.shard import finish

    copy = shutil.copytree(dataset, tmp_path / "copy")
    expected = files_of(copy)
    (copy / "duplicates.parquet").unlink()
    finish(copy, read_info(copy), [read_result(copy, unit) for unit in planned_units(copy)])
    assert files_of(copy) == expected


# The fingerprint


def test_the_fingerprint_tells_photos_and_settings(pictures, tmp_path):
    def identity(name, photos, **settings):
        chosen = SETTINGS.model_copy(update=settings)
        return fingerprint(chosen, [unit_of(tmp_path / name, photos, settings=chosen)])

    first = identity("a", pictures)
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert identity("b", pictures) == first
    renamed = {f"x{name}": data for name, data in pictures.items()}
    end = {**pictures, "0.jpg": pictures["0.jpg"] + b"\n"}  # not one pixel differs
    others = [
        identity("c", dict(list(pictures.items())[1:])),
        identity("d", renamed),
        identity("e", end),
        identity("f", pictures, val_percent=31),
        identity("g", pictures, min_colorfulness=14),
        identity("h", pictures, size=48),
        identity("i", pictures, photos_per_unit=251),
    ]
    assert len({first, *others}) == 8


def test_the_fingerprint_tells_units(pictures, tmp_path):
    results = [unit_of(tmp_path, pictures, unit=unit) for unit in (0, 1)]
    assert fingerprint(SETTINGS, results) != fingerprint(SETTINGS, results[:1])


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
