"""Merging units: sums, copies across units, the table of shards and the fingerprint."""

import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.dataset.layout import (
    CF_CLASSES,
    CF_STEP,
    SHARDS_SCHEMA,
    DatasetError,
    DatasetInfo,
    ShardSettings,
    done_units,
    fingerprint,
    histogram_name,
    index_name,
    read_info,
    rejected_name,
)
from colorcore.dataset.merge import (
    COPIES,
    HASHES,
    Summary,
    _cut,
    find_copies,
    shard_number,
    summarise,
    write_finished,
)
from colorcore.dataset.samples import Samples
from colorcore.storage.local import LocalStore
from tests.colorcore.dataset.units import SETTINGS, files_of, rows_of, unit_of

SPLITS = ("train", "val")


@pytest.fixture
def pictures(scene, jpeg) -> dict[str, bytes]:
    return {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(12)}


@pytest.fixture
def copy(dataset, tmp_path) -> Path:
    """A dataset that a test may damage."""
    return shutil.copytree(dataset, tmp_path / "copy")


@pytest.fixture(scope="module")
def many_units(photo_folder, build_dataset, tmp_path_factory) -> Path:
    """Small units of several shards, with copies of one photo in four of them."""
    top = tmp_path_factory.mktemp("many")
    photos = shutil.copytree(photo_folder.path, top / "photos", symlinks=True)
    for name in ("aaa", "h", "zzz"):
        (photos / f"{name}.jpg").write_bytes((photos / "garden/000.jpg").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("colorcore.dataset.unit.SHARD_SAMPLES", 2)
        build_dataset([photos], top / "d", size=16, photos_per_unit=4)
    return top / "d"


def finished_from(dataset: Path, total: Summary, hashes, target: Path) -> dict[str, bytes]:
    info = read_info(dataset)
    begun = DatasetInfo(settings=info.settings, sources=info.sources)
    write_finished(LocalStore(target), begun, total, find_copies(hashes))
    return files_of(target)


# The sums


def test_a_summary_is_what_the_units_files_say(many_units):
    units = done_units(many_units)
    total, (hashes,) = summarise(LocalStore(many_units), units)
    rows = rows_of(many_units)
    assert total.kept == Counter(row["split"] for row in rows)
    assert total.refused == Counter(row["reason"] for row in rows_of(many_units, rejected_name))
    classes = [min(int(row["colorfulness"] // CF_STEP), CF_CLASSES - 1) for row in rows]
    np.testing.assert_array_equal(total.colorfulness, np.bincount(classes, minlength=CF_CLASSES))
    parts = [np.load(many_units / histogram_name(unit)) for unit in units]
    np.testing.assert_array_equal(total.histogram, sum(parts))
    assert total.indexes == [
        (unit, hashlib.sha256((many_units / index_name(unit)).read_bytes()).hexdigest())
        for unit in units
    ]
    counts = Counter((row["shard"], row["split"], int(row["key"][:6])) for row in rows)
    assert total.shards.to_pylist() == [
        {
            "shard": shard,
            "split": split,
            "unit": unit,
            "samples": count,
            "bytes": (many_units / shard).stat().st_size,
        }
        for (shard, split, unit), count in sorted(counts.items(), key=lambda c: (c[0][2], c[0][0]))
    ]
    assert [int(high) << 64 | int(low) for high, low in hashes[["high", "low"]].tolist()] == [
        int(row["sha256"][:32], 16) for row in rows
    ]


@pytest.mark.parametrize(("size", "pieces"), [(1, 1), (2, 3), (3, 1), (100, 7)])
def test_groups_that_are_added_up_are_one_summary(many_units, tmp_path, size: int, pieces: int):
    store, units = LocalStore(many_units), done_units(many_units)
    assert len(units) > 9
    total, hashes = Summary(), []
    for start in range(0, len(units), size):
        summary, parts = summarise(store, units[start : start + size], pieces)
        assert len(parts) == pieces
        total.add(summary)
        hashes += parts
    files = finished_from(many_units, total, hashes, tmp_path / "again")
    expected = files_of(many_units)
    assert files == {name: expected[name] for name in files}
    assert files.keys() == {
        "dataset.json", "duplicates.parquet", "histogram.npy", "shards.parquet"
    }  # fmt: skip


def test_no_units_add_up_to_nothing(tmp_path):
    total, hashes = summarise(LocalStore(tmp_path), [], 3)
    assert total.kept.total() == total.shards.num_rows == total.histogram.sum() == 0
    assert [len(piece) for piece in hashes] == [0, 0, 0]
    assert len(find_copies([])) == 0


def test_a_unit_without_samples_adds_nothing(pictures, tmp_path):
    unit_of(tmp_path, {"a.jpg": b""}, unit=0)
    unit_of(tmp_path, pictures, unit=1)
    total, (hashes,) = summarise(LocalStore(tmp_path), [0, 1])
    alone, (expected,) = summarise(LocalStore(tmp_path), [1])
    assert total.refused == {"empty": 1}
    assert total.kept == alone.kept
    assert total.shards.equals(alone.shards)
    np.testing.assert_array_equal(hashes, expected)


def test_dataset_json_sizes_and_colours(many_units):
    info = read_info(many_units)
    for split in SPLITS:
        on_disk = sum(path.stat().st_size for path in (many_units / split).iterdir())
        assert info.disk[split] == on_disk > 0
    assert len(info.colorfulness) == CF_CLASSES
    assert sum(info.colorfulness) == info.counts["train"] + info.counts["val"]


# The table of shards


@pytest.mark.parametrize("split", SPLITS)
def test_the_table_of_shards_counts_what_the_loader_reads(many_units, split: str):
    table = pq.read_table(many_units / "shards.parquet")
    assert table.schema.equals(SHARDS_SCHEMA)
    samples = Samples(many_units, split)
    keys = samples.keys(np.arange(len(samples)))
    shard_of = {row["key"]: row["shard"] for row in rows_of(many_units)}
    read = Counter(shard_of[key] for key in keys)
    said = {row["shard"]: row["samples"] for row in table.to_pylist() if row["split"] == split}
    assert {shard: count for shard, count in said.items() if count} == read
    copies = set(pq.read_table(many_units / "duplicates.parquet")["key"].to_pylist())
    assert len(copies) >= 3
    assert copies.isdisjoint(keys)


def test_shards_are_numbered_within_their_unit():
    names = [f"{split}/{unit:06d}-{n:03d}.tar" for unit in (0, 10**7) for split in SPLITS
             for n in (0, 1, 2, 999, 1000)]  # fmt: skip
    assert [shard_number(name) for name in names[:5]] == [0, 2, 4, 1998, 2000]
    assert [shard_number(name) for name in names[5:10]] == [1, 3, 5, 1999, 2001]
    assert [shard_number(name) for name in names[10:]] == [shard_number(n) for n in names[:10]]


# Copies across units


def test_copies_across_units_are_found(dataset, photo_folder):
    copy, original = photo_folder.copies
    key = {row["source"]: row["key"] for row in rows_of(dataset)}
    assert pq.read_table(dataset / "duplicates.parquet").to_pylist() == [
        {"key": key[copy], "first_key": key[original]}
    ]


def test_a_lost_table_of_copies_is_made_again(dataset, copy):
    from pipelines.sharding.merge_tasks import merge_units

    expected = files_of(copy)
    (copy / "duplicates.parquet").unlink()
    (copy / "shards.parquet").unlink()
    merge_units(LocalStore(copy), read_info(copy))
    assert files_of(copy) == expected == files_of(dataset)


def test_copies_are_those_of_a_dictionary(pictures, tmp_path):
    for unit in range(4):
        mine = {name: data for i, (name, data) in enumerate(pictures.items()) if i % 3 != unit}
        unit_of(tmp_path, mine, unit=unit)
    seen, copies = {}, []
    for row in rows_of(tmp_path):
        first = seen.setdefault(row["sha256"], row["key"])
        if first != row["key"]:
            copies.append({"key": row["key"], "first_key": first})
    assert len(copies) == 24
    for pieces in (1, 2, 3, 7, 100):
        total, hashes = summarise(LocalStore(tmp_path), range(4), pieces)
        write_finished(
            LocalStore(tmp_path),
            DatasetInfo(settings=SETTINGS, sources=()),
            total,
            np.concatenate([find_copies([piece]) for piece in hashes]),
        )
        assert pq.read_table(tmp_path / "duplicates.parquet").to_pylist() == copies


def made_up_hashes(values: list[int]) -> np.ndarray:
    """One sample per value, three per unit; the value is spread over the hash's 128 bits."""
    rows = np.zeros(len(values), HASHES)
    for i, value in enumerate(values):
        digest = int(hashlib.sha256(bytes([value // 2])).hexdigest()[:32], 16)
        digest ^= value % 2  # pairs that differ only in their last bit
        rows[i] = (digest >> 64, digest & (2**64 - 1), i // 3, i % 3, value % 5)
    return rows


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 15), max_size=40),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_pieces_find_what_brute_force_finds(values: list[int], pieces: int, random):
    rows = made_up_hashes(values)
    expected, first = [], {}
    for i, value in enumerate(values):
        at = first.setdefault(value, i)
        if at != i:
            expected.append((i // 3, i % 3, value % 5, at // 3, at % 3))
    groups = [_cut(rows[start : start + 6], pieces) for start in range(0, len(rows), 6)]
    random.shuffle(groups)  # the order in which groups come does not matter
    found = [find_copies([group[piece] for group in groups]) for piece in range(pieces)]
    together = np.sort(np.concatenate(found), order=["unit", "position"])
    assert together.dtype == COPIES
    assert together.tolist() == expected
    assert sum(len(piece) for group in groups for piece in group) == len(rows)


def test_pieces_are_even():
    rows = np.zeros(10_000, HASHES)
    rows["high"] = np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)
    for pieces in (1, 2, 7, 100):
        sizes = [len(piece) for piece in _cut(rows, pieces)]
        assert sum(sizes) == 10_000
        assert max(sizes) < 10_000 / pieces + 5 * (10_000 / pieces) ** 0.5


# Damage


def last_row(dataset: Path) -> dict:
    return max(rows_of(dataset), key=lambda row: (row["shard"], row["offset"]))


@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_shard_that_is_shorter_than_its_index_is_named(copy, left: int | None):
    row = last_row(copy)
    shard = copy / row["shard"]
    end = row["offset"] + row["length"]
    data = shard.read_bytes()
    shard.write_bytes(data[:end])
    summarise(LocalStore(copy), done_units(copy))  # all that the index points at is there
    shard.write_bytes(data[: end - 1] if left is None else data[:left])
    with pytest.raises(DatasetError) as error:
        summarise(LocalStore(copy), done_units(copy))
    found = end - 1 if left is None else left
    assert f"the shard {shard} does not match its index" in str(error.value)
    assert f"expected at least {end:,} bytes, found {found:,} bytes" in str(error.value)
    unit = int(row["key"][:6])
    assert f"remove {copy / index_name(unit)}, then run the same cc shard" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_shard_that_is_gone_is_named(copy):
    row = last_row(copy)
    (copy / row["shard"]).unlink()
    with pytest.raises(DatasetError, match="found no such file; remove") as error:
        summarise(LocalStore(copy), done_units(copy))
    assert str(copy / row["shard"]) in str(error.value)


@pytest.mark.parametrize("name", [index_name, rejected_name, histogram_name])
@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_unit_with_a_bad_file_is_named(copy, name, damage: str):
    path = copy / name(1)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    expected = "found no such file" if damage == "gone" else "is damaged"
    with pytest.raises(DatasetError, match=expected) as error:
        summarise(LocalStore(copy), [0, 1, 2])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# The fingerprint


def test_the_fingerprint_tells_photos_and_settings(pictures, tmp_path):
    def identity(name: str, photos: dict[str, bytes], **changes: object) -> str:
        chosen: ShardSettings = SETTINGS.model_copy(update=changes)
        unit_of(tmp_path / name, photos, settings=chosen)
        total, _ = summarise(LocalStore(tmp_path / name), [0])
        return fingerprint(chosen, total.indexes)

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
        identity("j", pictures, compress="zstd"),
    ]
    assert len({first, *others}) == 9


def test_the_fingerprint_tells_units():
    one, two = (0, "a" * 64), (1, "a" * 64)
    prints = [fingerprint(SETTINGS, units) for units in ([one], [two], [one, two], [])]
    assert len(set(prints)) == 4
    by_hand = SETTINGS.model_dump_json() + f"0:{'a' * 64}\n1:{'a' * 64}\n"
    assert prints[2] == hashlib.sha256(by_hand.encode()).hexdigest()[:16]
