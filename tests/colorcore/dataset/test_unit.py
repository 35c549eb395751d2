"""One unit: its tars, its index, its refusals, and its place in the dataset."""

import io
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from colorcore.dataset import unit as module
from colorcore.dataset.layout import REJECTED_SCHEMA, histogram_name, index_name, rejected_name
from colorcore.dataset.sample import make_sample
from colorcore.dataset.unit import SourcePhoto, publish_unit, write_unit
from colorcore.photos.refusal import DAMAGED, PhotoLimits, PhotoRefused, Reason
from colorcore.photos.thumbnail import PER_REASON, SIDE, VISIBLE, thumbnail
from colorcore.storage.local import LocalStore
from tests.colorcore.dataset.units import SETTINGS, files_of, members_of, unit_of

ZSTD = SETTINGS.model_copy(update={"compress": "zstd"})


def index_of(folder: Path, unit: int = 0) -> list[dict]:
    return pq.read_table(folder / index_name(unit)).to_pylist()


def refused_of(folder: Path, unit: int = 0) -> list[dict]:
    return pq.read_table(folder / rejected_name(unit)).to_pylist()


def bytes_at(folder: Path, row: dict) -> bytes:
    """The array's file, read only by the index."""
    with (folder / row["shard"]).open("rb") as file:
        file.seek(row["offset"])
        return file.read(row["length"])


def unzstd(frame: bytes) -> bytes:
    """Decompress by Arrow's streaming reader, which needs no size."""
    with pa.input_stream(pa.BufferReader(frame), compression="zstd") as stream:
        return stream.read()


@pytest.fixture
def pictures(scene, jpeg) -> dict[str, bytes]:
    return {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(12)}


@pytest.fixture
def misfits(scene, jpeg) -> dict[str, bytes]:
    """Photos that can be decoded but are refused, by reason."""
    picture = scene(900)
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    return {
        "greyscale": jpeg(grey),
        "single_hue": jpeg((grey * [1.0, 0.8, 0.55]).astype(np.uint8)),
        "not_colorful": jpeg((115 + 0.09 * scene(901)).astype(np.uint8)),
        "too_small": jpeg(scene(902, 24, 32)),
        "too_narrow": jpeg(scene(903, 64, 400)),
    }


# Files


def test_the_result_counts_what_is_written(pictures, tmp_path):
    photos = {**pictures, "empty.jpg": b"", "copy.jpg": pictures["3.jpg"], "text.jpg": b"text"}
    result = unit_of(tmp_path, photos, unit=7)
    assert result.unit == 7
    assert result.photos == len(photos)
    assert result.refused == {"duplicate": 1, "empty": 1, "unreadable": 1}
    splits = Counter(row["split"] for row in index_of(tmp_path, 7))
    assert result.kept == splits
    assert Counter(row["reason"] for row in refused_of(tmp_path, 7)) == result.refused


def test_shards_roll_over(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_SAMPLES", 3)
    result = unit_of(tmp_path, pictures, unit=4)
    rows = index_of(tmp_path, 4)
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
            np.load(io.BytesIO(bytes_at(tmp_path, row)), allow_pickle=False),
            make_sample(pictures[row["source"]], SETTINGS).lab_u8,
        )
    assert result.kept["train"] > 3


def test_copies_inside_a_unit_are_refused(pictures, tmp_path):
    one, other = pictures["0.jpg"], pictures["1.jpg"]
    unit_of(tmp_path, {"a/0.jpg": one, "b/0.jpg": other, "z.jpg": one})
    assert [row["source"] for row in index_of(tmp_path)] == ["a/0.jpg", "b/0.jpg"]
    (row,) = refused_of(tmp_path)
    assert row.pop("thumbnail")
    assert row == {
        "root": 0,
        "source": "z.jpg",
        "reason": "duplicate",
        "detail": "the same bytes as an earlier photo",
    }


def test_keys_are_the_positions_in_the_slice(pictures, tmp_path):
    unit_of(tmp_path, {"gone.jpg": b"", **pictures}, unit=12)
    keys = [row["key"] for row in index_of(tmp_path, 12)]
    assert keys == [f"000012-{position:05d}" for position in range(1, 13)]


def test_a_unit_without_samples_is_done_too(tmp_path):
    result = unit_of(tmp_path, {"a.jpg": b"", "b.jpg": b"text"})
    assert result.kept == {"train": 0, "val": 0}
    assert index_of(tmp_path) == []
    assert np.load(tmp_path / histogram_name(0)).sum() == 0
    assert not list(tmp_path.rglob("*.tar"))


def test_a_photo_that_could_not_be_read_is_refused_alone(pictures, tmp_path):
    photos = {
        "a.jpg": PhotoRefused(Reason.UNREADABLE, "Permission denied"),
        "b.jpg": PhotoRefused(Reason.TOO_LARGE, "9 bytes"),
        "d.jpg": pictures["0.jpg"],
    }
    result = unit_of(tmp_path, photos)
    assert sum(result.kept.values()) == 1
    assert refused_of(tmp_path) == [
        {"root": 0, "source": "a.jpg", "reason": "unreadable", "detail": "Permission denied",
         "thumbnail": None},
        {"root": 0, "source": "b.jpg", "reason": "file_too_large", "detail": "9 bytes",
         "thumbnail": None},
    ]  # fmt: skip


def test_other_errors_are_not_swallowed(tmp_path, pictures):
    def photos():
        yield SourcePhoto(0, "0.jpg", pictures["0.jpg"])
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault"):
        write_unit(tmp_path, 0, photos(), SETTINGS)
    assert not (tmp_path / index_name(0)).exists()


def test_the_index_is_published_last(pictures, tmp_path):
    """After a kill at any point, a unit that has an index is complete."""

    class Killed(LocalStore):
        def put_all(self, files: Mapping[str, Path]) -> None:
            for name, path in files.items():
                if next(left, None) is None:
                    raise KeyboardInterrupt
                super().put_all({name: path})

    whole = tmp_path / "whole"
    unit_of(whole, pictures)
    expected = files_of(whole)
    assert len(expected) == 5
    for files in range(len(expected)):
        left = iter(range(files))
        scratch, dataset = tmp_path / f"scratch{files}", tmp_path / f"dataset{files}"
        unit_of(scratch, pictures)
        with pytest.raises(KeyboardInterrupt):
            publish_unit(scratch, Killed(dataset), 0)
        assert len(files_of(dataset)) == files
        assert not (dataset / index_name(0)).exists()
        unit_of(scratch, pictures)
        publish_unit(scratch, LocalStore(dataset), 0)
        assert files_of(dataset) == expected
        assert not files_of(scratch)


def test_a_unit_done_again_leaves_no_shard_of_before(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_SAMPLES", 3)
    dataset = tmp_path / "dataset"
    for folder, photos in (("first", pictures), ("second", dict(list(pictures.items())[:2]))):
        unit_of(tmp_path / folder, photos)
        expected = files_of(tmp_path / folder)
        publish_unit(tmp_path / folder, LocalStore(dataset), 0)
        assert files_of(dataset) == expected


# Compressed


def test_compressed_samples_are_the_same_arrays(pictures, tmp_path):
    """Each array is one zstd frame at the place in the index."""
    raw, packed = tmp_path / "raw", tmp_path / "packed"
    unit_of(raw, pictures)
    unit_of(packed, pictures, settings=ZSTD)
    rows, packed_rows = index_of(raw), index_of(packed)
    assert len(rows) == len(packed_rows) == 12
    for row, packed_row in zip(rows, packed_rows, strict=True):
        frame = bytes_at(packed, packed_row)
        assert frame[:4] == b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
        assert unzstd(frame) == bytes_at(raw, row)
        places = {"shard", "offset", "length", "crc32"}
        assert {k: v for k, v in row.items() if k not in places} == {
            k: v for k, v in packed_row.items() if k not in places
        }
        with tarfile.open(packed / packed_row["shard"]) as tar:
            info = tar.getmember(f"{row['key']}.lab.npy.zst")
            assert (info.offset_data, info.size) == (packed_row["offset"], packed_row["length"])
    assert np.array_equal(np.load(raw / histogram_name(0)), np.load(packed / histogram_name(0)))
    assert sum(r["length"] for r in packed_rows) < sum(r["length"] for r in rows)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_stock_webdataset_reads_compressed_shards(pictures, tmp_path):
    """webdataset does not know .zst; a handler of three lines is enough."""

    def unpack(key: str, data: bytes):
        if key.endswith(".npy.zst"):
            return np.load(io.BytesIO(unzstd(data)))
        return None

    unit_of(tmp_path, pictures, settings=ZSTD)
    seen = {}
    for tar in sorted(tmp_path.rglob("*.tar")):
        for record in webdataset.WebDataset(str(tar), shardshuffle=False).decode(unpack):
            seen[record["json"]["source"]] = record["lab.npy.zst"]
    assert seen.keys() == pictures.keys()
    for name, array in seen.items():
        np.testing.assert_array_equal(array, make_sample(pictures[name], SETTINGS).lab_u8)


@pytest.mark.parametrize("chosen", [SETTINGS, ZSTD], ids=["raw", "zstd"])
def test_shards_are_what_webdataset_would_write(pictures, tmp_path, chosen):
    """TarWriter, given the members of a shard, writes the shard byte for byte."""
    unit_of(tmp_path, pictures, settings=chosen)
    tars = sorted(tmp_path.rglob("*.tar"))
    for tar in tars:
        stock = io.BytesIO()
        options = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}
        with webdataset.TarWriter(stock, **options) as writer:
            for name, data in members_of(tar).items():
                key, _, suffix = name.partition(".")
                writer.write({"__key__": key, suffix: data})
        assert stock.getvalue() == tar.read_bytes()
    assert tars


def test_compressed_units_are_the_same_bytes_every_time(pictures, tmp_path):
    for name in ("one", "two"):
        unit_of(tmp_path / name, pictures, settings=ZSTD)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


# Thumbnails


def test_visible_refusals_have_thumbnails_that_can_be_looked_at(misfits, tmp_path):
    photos = {f"{name}.jpg": data for name, data in misfits.items()}
    damaged = {"cut.jpg": next(iter(photos.values()))[:700], "empty.jpg": b"", "text.jpg": b"text"}
    unit_of(tmp_path, {**photos, **damaged, "gone.jpg": PhotoRefused(Reason.UNREADABLE, "gone")})
    assert pq.read_schema(tmp_path / rejected_name(0)).equals(REJECTED_SCHEMA)
    rows = {row["source"]: row for row in refused_of(tmp_path)}
    assert {name: rows[f"{name}.jpg"]["reason"] for name in misfits} == {n: n for n in misfits}
    for name, data in photos.items():
        with Image.open(io.BytesIO(rows[name]["thumbnail"])) as picture:
            picture.load()
        assert picture.format == "JPEG"
        assert max(picture.size) <= SIDE == 112
        with Image.open(io.BytesIO(data)) as photo:
            width, height = photo.size
            scale = min(1, 112 / max(width, height))
            assert picture.size == (round(width * scale), round(height * scale))
            small = np.asarray(photo.convert("RGB").resize(picture.size, Image.Resampling.BOX))
        difference = np.abs(np.asarray(picture.convert("RGB")).astype(int) - small)
        assert difference.mean() < 8, name  # the photo itself, in its own colours
    for name in [*damaged, "gone.jpg"]:
        assert rows[name]["thumbnail"] is None


def test_a_unit_keeps_a_few_thumbnails_of_each_reason(misfits, tmp_path):
    photos = {
        f"{i}-{name}.jpg": data + b"\0" * i  # no copies of each other
        for i in range(PER_REASON + 3)
        for name, data in misfits.items()
    }
    unit_of(tmp_path, photos)
    rows = refused_of(tmp_path)
    assert len(rows) == len(photos)
    for reason in misfits:
        mine = [row["thumbnail"] is not None for row in rows if row["reason"] == reason]
        assert mine == [True] * PER_REASON + [False] * 3


def test_thumbnails_of_photos_beyond_the_limits(scene, jpeg):
    """A bomb has no thumbnail because it is never decoded; a long strip has one."""
    strip = jpeg(scene(1, 8, 800))
    decoded = cv2.imdecode(np.frombuffer(thumbnail(strip, PhotoLimits()), np.uint8), 1)
    assert decoded.shape == (1, 112, 3)
    assert thumbnail(strip, PhotoLimits(max_pixels=100)) is None
    assert thumbnail(strip[:400], PhotoLimits()) is None
    assert thumbnail(b"", PhotoLimits()) is None
    assert thumbnail(strip, PhotoLimits()) == thumbnail(strip, PhotoLimits())


def test_thumbnails_are_not_enlarged(scene):
    small = scene(2, 40, 60)
    out = io.BytesIO()
    Image.fromarray(small).save(out, "PNG")
    decoded = cv2.imdecode(np.frombuffer(thumbnail(out.getvalue(), PhotoLimits()), np.uint8), 1)
    assert decoded.shape == (40, 60, 3)


def test_every_reason_is_of_a_bad_file_or_has_thumbnails():
    assert VISIBLE.isdisjoint(DAMAGED)
    assert VISIBLE | DAMAGED | {Reason.TOO_LARGE} == set(Reason)
