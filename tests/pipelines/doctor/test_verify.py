"""`cc doctor DATASET --verify`: any wrong byte is found, named, and repaired by what it advises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colorcore.dataset.layout import DatasetError, index_name, read_info
from colorcore.storage.location import open_store
from pipelines.doctor import verify as module
from pipelines.doctor.job import examine
from pipelines.doctor.verify import Verified, verify
from pipelines.errors import WrongCallError
from pipelines.sharding.merge_tasks import merge_units
from pipelines.sharding.task import shard_unit
from pipelines.sources.source import open_sources
from tests.colorcore.dataset.units import files_of, tars_of
from tests.processes import run_cc


def verified(dataset: Path) -> Verified:
    return verify(open_store(dataset), lambda *_: None)


def lines(dataset: Path) -> list[str]:
    return [damage.line() for damage in verified(dataset).damage]


@pytest.fixture
def copied(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copied"))


@pytest.fixture(scope="module", params=["none", "zstd"])
def small(request, photo_folder, build_dataset, tmp_path_factory) -> Path:
    """A dataset whose tars a test may change, and change back."""
    folder = tmp_path_factory.mktemp("small") / request.param
    build_dataset([photo_folder.path], folder, compress=request.param)
    return folder


def without_checksums(dataset: Path) -> None:
    """The dataset as an earlier version wrote it, with the fingerprint that it then had."""
    for path in dataset.glob("index/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["crc32"]), path, compression="zstd")
    merge_units(open_store(dataset), read_info(dataset))


# -- found and named ------------------------------------------------------------------------------


def test_a_sound_dataset(dataset: Path) -> None:
    notes: list[tuple[int, int, str]] = []
    found = verify(open_store(dataset), lambda *note: notes.append(note))
    counts = read_info(dataset).counts
    assert counts is not None
    assert found.damage == []
    assert found.samples == counts["train"] + counts["val"]
    assert found.shards == len(tars_of(dataset))
    assert found.size == sum(tar.stat().st_size for tar in tars_of(dataset))
    assert found.unsummed == 0
    assert found.finding(open_store(dataset)).verdict == "ok"
    assert [note[:2] for note in notes] == [
        (i + 1, counts["units"]) for i in range(counts["units"])
    ]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_wrong_byte_of_a_tar_is_found_and_its_sample_named(
    small: Path, data: st.DataObject
) -> None:
    tar = data.draw(st.sampled_from(tars_of(small)))
    whole = tar.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    wrong = whole[at] ^ data.draw(st.integers(1, 255))
    unit = int(tar.name.partition("-")[0])
    name = tar.relative_to(small).as_posix()
    rows = [
        row for row in pq.read_table(small / index_name(unit)).to_pylist() if row["shard"] == name
    ]
    before = [row["key"] for row in rows if row["offset"] - 512 <= at]
    tar.write_bytes(whole[:at] + bytes([wrong]) + whole[at + 1 :])
    try:
        (damage,) = verified(small).damage
    finally:
        tar.write_bytes(whole)
    assert damage.file == name
    assert damage.remove == index_name(unit)
    # Behind the last sample are only zeros, which belong to none.
    assert damage.key == before[-1] or (before[-1] == rows[-1]["key"] and damage.key == "")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_tar_that_is_cut_anywhere(small: Path, data: st.DataObject) -> None:
    tar = data.draw(st.sampled_from(tars_of(small)))
    whole = tar.read_bytes()
    end = data.draw(st.integers(0, len(whole.rstrip(b"\0"))))
    tar.write_bytes(whole[:end])
    try:
        damage = verified(small).damage
    finally:
        tar.write_bytes(whole)
    assert [place.file for place in damage] == [tar.relative_to(small).as_posix()]


@pytest.mark.parametrize("how", ["cut", "grown"])
def test_the_zeros_at_the_end_of_a_tar_count(how: str, copied: Path) -> None:
    """One block of zeros is no end of a tar, and many more are what a failing disk adds."""
    tar = tars_of(copied)[0]
    whole = tar.read_bytes()
    samples = -(-len(whole.rstrip(b"\0")) // 512) * 512
    tar.write_bytes(whole[: samples + 512] if how == "cut" else whole + bytes(20_480))
    (damage,) = verified(copied).damage
    assert (damage.file, damage.key) == (tar.relative_to(copied).as_posix(), "")
    assert damage.what.startswith("expected the end of a tar behind the last sample")


def test_samples_that_are_swapped(copied: Path) -> None:
    """Each has a checksum of its own, so a sample in the place of another is found."""
    path = copied / index_name(0)
    rows = pq.read_table(path).to_pylist()
    tar = copied / rows[0]["shard"]
    mine = [row for row in rows if row["shard"] == rows[0]["shard"]]
    one, two = mine[0]["offset"], mine[1]["offset"]
    length = mine[0]["length"]
    data = bytearray(tar.read_bytes())
    data[one : one + length], data[two : two + length] = (
        data[two : two + length], data[one : one + length],
    )  # fmt: skip
    tar.write_bytes(bytes(data))
    assert [place.key for place in verified(copied).damage] == [row["key"] for row in mine[:2]]


def swap_column(path: Path, column: str) -> None:
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[0], values[1] = values[1], values[0]
    at = table.schema.get_field_index(column)
    changed = table.set_column(at, table.field(column), pa.array(values, table.field(column).type))
    pq.write_table(changed, path, compression="zstd")


def add_to_histogram(path: Path) -> None:
    histogram = np.load(path)
    histogram[7, 7] += 1
    np.save(path, histogram)


SOURCES = '"sources": ['
OTHER_FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "keys": ("index/000000.parquet", lambda path: swap_column(path, "key"), "000000"),
    "offsets": ("index/000000.parquet", lambda path: swap_column(path, "crc32"), "000000"),
    "sources": ("index/000000.parquet", lambda path: swap_column(path, "source"), "fingerprint"),
    "a unit's histogram": ("histogram/000001.npy", add_to_histogram, "histogram/000001.npy"),
    "the histogram": ("histogram.npy", add_to_histogram, "histogram.npy"),
    "shards": ("shards.parquet", lambda path: swap_column(path, "bytes"), "shards.parquet"),
    "no tar": ("train/000001-000.tar", Path.unlink, "train/000001-000.tar: there is no such file"),
    "no refusals": ("rejected/000001.parquet", Path.unlink, "rejected/000001.parquet"),
    "no index": ("index/000001.parquet", Path.unlink, "fingerprint"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_files_that_do_not_belong_together(what: str, copied: Path) -> None:
    name, change, expected = OTHER_FILES[what]
    if what == "shards":  # sizes of equal shards would be swapped without any effect
        assert len(set(pq.read_table(copied / name)["bytes"].to_pylist()[:2])) == 2
    change(copied / name)
    assert any(expected in line for line in lines(copied)), lines(copied)


@pytest.mark.parametrize("damage", ["empty", "half", "zeros"])
@pytest.mark.parametrize(
    "name",
    [
        "index/000001.parquet", "rejected/000001.parquet", "histogram/000001.npy",
        "shards.parquet", "duplicates.parquet", "histogram.npy",
    ],
)  # fmt: skip
def test_damaged_files_are_named(name: str, damage: str, copied: Path) -> None:
    data = (copied / name).read_bytes()
    changed = {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[damage]
    (copied / name).write_bytes(changed)
    found = lines(copied)
    assert len(found) == 1
    assert name in found[0]


def test_a_damaged_dataset_json_is_an_error(copied: Path) -> None:
    (copied / "dataset.json").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"dataset\.json is damaged"):
        verified(copied)


# -- datasets of earlier versions -----------------------------------------------------------------


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_without_checksums_the_structure_is_checked(
    compress: str, photo_folder, build_dataset, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    build_dataset([photo_folder.path], dataset, compress=compress)
    without_checksums(dataset)
    found = verified(dataset)
    assert found.damage == []
    assert found.unsummed == found.samples > 0
    line = found.finding(open_store(dataset))
    assert line.verdict == "warn"
    assert "no checksums" in line.found
    row = pq.read_table(dataset / index_name(0)).to_pylist()[1]
    tar = dataset / row["shard"]
    whole = tar.read_bytes()
    for at in (row["offset"] - 512, row["offset"] - 400, row["offset"]):
        tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert [place.key for place in verified(dataset).damage] == [row["key"]]


# -- the repair -----------------------------------------------------------------------------------


def test_the_advice_repairs_the_dataset(photo_folder, build_dataset, tmp_path: Path) -> None:
    """What the same `cc shard` does, in this process."""
    dataset = tmp_path / "dataset"
    info = build_dataset([photo_folder.path], dataset)
    expected = files_of(dataset)
    tar = tars_of(dataset)[1]
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 1
    tar.write_bytes(bytes(data))
    (damage,) = verified(dataset).damage
    advice = verified(dataset).finding(open_store(dataset)).advice
    assert str(dataset / damage.remove) in advice
    assert "run the same cc shard command again" in advice
    (dataset / damage.remove).unlink()
    unit = int(Path(damage.remove).stem)
    store = open_store(dataset)
    shard_unit((store, open_sources([photo_folder.path]), info.settings), unit, 0)
    merge_units(store, info)
    assert files_of(dataset) == expected
    assert verified(dataset).damage == []


@pytest.mark.slow
def test_the_commands_from_outside(photo_folder, tmp_path: Path) -> None:
    shard = ("shard", photo_folder.path, "d", "--size=32", "--photos-per-unit=10")
    assert run_cc(*shard, cwd=tmp_path).returncode == 0
    assert run_cc("priors", "d", "--bins=8", cwd=tmp_path).returncode == 0
    sound = files_of(tmp_path / "d")
    doctor = ("doctor", "d", "--verify", "--quick")
    for number, tar in enumerate(tars_of(tmp_path / "d")[:2]):
        data = bytearray(tar.read_bytes())
        data[1000 * (number + 1)] ^= 255
        tar.write_bytes(bytes(data))
    answer = run_cc(*doctor, cwd=tmp_path)
    assert answer.returncode == 1
    assert "damaged\ntrain/000000-000.tar, sample 000000-" in answer.stdout
    found = json.loads(run_cc(*doctor, "--json", cwd=tmp_path).stdout)
    assert len(found["damage"]) == 2
    for place in found["damage"]:
        (tmp_path / "d" / place["remove"]).unlink(missing_ok=True)
    assert run_cc(*shard, cwd=tmp_path).returncode == 0
    assert files_of(tmp_path / "d") == sound
    answer = run_cc(*doctor, "--json", cwd=tmp_path)
    verdicts = {line["check"]: line["verdict"] for line in json.loads(answer.stdout)["checks"]}
    assert verdicts["every sample"] == "ok"


# -- where ----------------------------------------------------------------------------------------


def test_a_dataset_in_a_bucket(dataset: Path, s3_server, monkeypatch, tmp_path: Path) -> None:
    bucket = s3_server.make_bucket("verify")
    s3_server.put_folder(bucket, "set", dataset)
    store = open_store(s3_server.uri(bucket, "set"))
    assert verify(store, lambda *_: None).damage == []
    name = tars_of(dataset)[0].relative_to(dataset).as_posix()
    data = bytearray((dataset / name).read_bytes())
    data[2000] ^= 4
    s3_server.put(bucket, f"set/{name}", bytes(data))
    (damage,) = verify(store, lambda *_: None).damage
    assert damage.file == name
    advice = Verified(damage=[damage]).finding(store).advice
    assert f"remove s3://{bucket}/set/index/000000.parquet" in advice


def test_a_sector_that_cannot_be_read_is_one_sample(copied: Path, monkeypatch) -> None:
    row = pq.read_table(copied / index_name(0)).to_pylist()[1]
    read = module._read

    def broken(file, size, found):
        if file.name.endswith(row["shard"]) and file.tell() == row["offset"] - 512:
            raise OSError(5, "Input/output error")
        return read(file, size, found)

    monkeypatch.setattr(module, "_read", broken)
    (damage,) = verified(copied).damage
    assert (damage.key, damage.what) == (row["key"], "cannot be read: Input/output error")


def test_there_must_be_a_dataset() -> None:
    with pytest.raises(WrongCallError, match="cc doctor DATASET --verify"):
        examine(None, tracking_uri="sqlite://", verify=True)
