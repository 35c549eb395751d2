"""The job of `cc shard` on a real Ray: kept and refused photos, errors, and interruptions."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from colorcore.dataset.layout import DatasetError, DatasetInfo, ShardSettings, index_name, read_info
from colorcore.dataset.samples import Samples
from colorcore.storage.local import LocalStore
from colorcore.storage.location import open_store
from colorcore.storage.locks import BusyError, claim
from pipelines.errors import JobError, WrongCallError
from pipelines.sharding import merge_tasks
from pipelines.sharding.job import ShardProgress, shard
from pipelines.sharding.merge_tasks import merge_units
from pipelines.sharding.plan_file import plan_name

SETTINGS = ShardSettings(size=64, photos_per_unit=10, val_percent=30)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def sharded(local_ray, photo_folder, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("sharded") / "dataset"
    shard([str(photo_folder.path)], str(target), SETTINGS)
    return target


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "dataset")


def test_every_photo_is_kept_or_refused_with_its_reason(
    local_ray, photo_folder, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []

    def watch(progress: ShardProgress) -> None:
        seen.append((progress.done, progress.photos))

    report = shard([str(photo_folder.path)], str(tmp_path / "d"), SETTINGS, on_progress=watch)
    kept, refused = len(photo_folder.kept), len(photo_folder.refused)
    expected = Counter(photo_folder.refused.values())
    copies_in_unit = report.refused.get("duplicate", 0)
    assert report.photos == kept + refused
    assert sum(report.kept.values()) == kept - copies_in_unit
    assert {k: v for k, v in report.refused.items() if k != "duplicate"} == dict(expected)
    assert copies_in_unit + report.duplicates == 1
    assert report.ignored == photo_folder.ignored
    assert report.new_photos == report.photos
    assert not report.failed
    assert seen[-1] == (report.photos, report.photos)


def test_the_same_photos_and_settings_give_the_same_bytes(
    sharded: Path, photo_folder, build_dataset, tmp_path: Path
) -> None:
    build_dataset([photo_folder.path], tmp_path / "by-hand", **SETTINGS.model_dump())
    assert contents(tmp_path / "by-hand") == contents(sharded)


def test_units_without_an_index_are_done_again_to_the_same_bytes(
    copy: Path, sharded: Path, photo_folder, local_ray
) -> None:
    (copy / index_name(1)).unlink()
    (copy / "train" / "000001-000.tar").write_bytes(b"half a tar")
    (copy / ".unit-000002" / "train").mkdir(parents=True)
    (copy / "index" / ".000002.parquet.part").write_bytes(b"half an index")
    report = shard([str(photo_folder.path)], str(copy), SETTINGS)
    assert report.new_photos == 10
    assert contents(copy) == contents(sharded)


def test_other_settings_are_refused_with_the_difference(copy: Path, photo_folder) -> None:
    other = SETTINGS.model_copy(update={"size": 96})
    with pytest.raises(WrongCallError, match="size was 64, now 96"):
        shard([str(photo_folder.path)], str(copy), other)


def test_photos_that_are_new_get_units_of_their_own(local_ray, scene, jpeg, tmp_path: Path) -> None:
    source, target = tmp_path / "photos", tmp_path / "dataset"
    source.mkdir()
    for seed in range(25):
        (source / f"m{seed:02d}.jpg").write_bytes(jpeg(scene(seed)))
    first = shard([str(source)], str(target), SETTINGS)
    before = {name: data for name, data in contents(target).items() if name.endswith(".tar")}
    (source / "a-new-one.jpg").write_bytes(jpeg(scene(100)))
    second = shard([str(source)], str(target), SETTINGS)
    assert (first.units, second.units, second.new_photos) == (3, 4, 1)
    assert second.photos == 26
    assert second.fingerprint != first.fingerprint
    after = contents(target)
    assert {name: after[name] for name in before} == before
    assert len(Samples(target, "train")) + len(Samples(target, "val")) == 26


def test_a_unit_that_fails_is_reported_and_the_others_are_done(
    local_ray, photo_folder, copy: Path
) -> None:
    good = (copy / plan_name(0)).read_bytes()
    (copy / index_name(1)).unlink()
    (copy / index_name(0)).unlink()
    broken = copy / "histogram" / "000001.npy"
    broken.unlink()
    broken.mkdir()  # the unit cannot be put into place
    report = shard([str(photo_folder.path)], str(copy), SETTINGS)
    assert list(report.failed) == [1]
    assert "Error" in report.failed[1]
    assert report.fingerprint == read_info(copy, finished=False).fingerprint
    assert (copy / index_name(0)).exists()
    assert not (copy / index_name(1)).exists()
    assert (copy / plan_name(0)).read_bytes() == good
    broken.rmdir()
    assert not shard([str(photo_folder.path)], str(copy), SETTINGS).failed


# Finishing in tasks


@pytest.fixture
def many_units(photo_folder, tmp_path: Path, build_dataset) -> Path:
    """A dataset of more than ten units, with copies of a photo in several of them."""
    photos = shutil.copytree(photo_folder.path, tmp_path / "photos", symlinks=True)
    for name in ("aaa", "h", "zzz"):
        (photos / f"{name}.jpg").write_bytes((photos / "garden/000.jpg").read_bytes())
    build_dataset([photos], tmp_path / "dataset", size=16, photos_per_unit=4)
    return tmp_path / "dataset"


@pytest.mark.parametrize(("group_units", "piece_samples"), [(2, 5_000_000), (2, 7), (5, 20)])
def test_finishing_in_tasks_writes_the_same_bytes(
    local_ray,
    many_units: Path,
    monkeypatch: pytest.MonkeyPatch,
    group_units: int,
    piece_samples: int,
) -> None:
    expected = contents(many_units)
    monkeypatch.setattr(merge_tasks, "GROUP_UNITS", group_units)
    monkeypatch.setattr(merge_tasks, "PIECE_SAMPLES", piece_samples)
    for name in ("histogram.npy", "shards.parquet", "duplicates.parquet"):
        (many_units / name).unlink()
    info = read_info(many_units)
    begun = DatasetInfo(settings=info.settings, sources=info.sources)
    connected: list[bool] = []
    finished = merge_units(LocalStore(many_units), begun, connect=lambda: connected.append(True))
    assert connected == [True]
    assert finished == info
    assert finished.counts is not None
    assert finished.counts["duplicates"] >= 3
    assert contents(many_units) == expected


def test_few_units_are_finished_without_ray(many_units: Path) -> None:
    expected = contents(many_units)

    def connect() -> None:
        raise AssertionError("not for so few units")

    merge_units(LocalStore(many_units), read_info(many_units), connect=connect)
    assert contents(many_units) == expected


def test_what_a_task_finds_damaged_is_said_as_it_is_without_tasks(
    local_ray, many_units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_file = sorted(many_units.glob("train/*.tar"))[-1]
    shard_file.unlink()
    with pytest.raises(DatasetError) as alone:
        merge_units(LocalStore(many_units), read_info(many_units))
    monkeypatch.setattr(merge_tasks, "GROUP_UNITS", 2)
    with pytest.raises(DatasetError) as in_tasks:
        merge_units(LocalStore(many_units), read_info(many_units), connect=lambda: None)
    assert str(in_tasks.value) == str(alone.value)
    assert str(shard_file) in str(alone.value)
    assert "\n" not in str(in_tasks.value)


# Lists and tars


def test_a_list_and_a_tar_are_sharded_as_their_photos_are(
    local_ray, scene, jpeg, tmp_path: Path
) -> None:
    """Rows that are appended later get new units."""
    photos = {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(8)}
    for name, data in photos.items():
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        for name in ("6.jpg", "7.jpg"):
            tar.add(tmp_path / name, name)
    (tmp_path / "list.csv").write_text("key,path\n" + "".join(f"{i},{i}.jpg\n" for i in range(6)))
    sources, target = [str(tmp_path / "list.csv"), str(tmp_path / "more.tar")], tmp_path / "d"
    settings = SETTINGS.model_copy(update={"photos_per_unit": 4, "compress": "zstd"})
    first = shard(sources, str(target), settings)
    assert (first.units, first.photos, first.new_photos) == (3, 8, 8)
    (tmp_path / "8.jpg").write_bytes(jpeg(scene(8)))
    with (tmp_path / "list.csv").open("a") as file:
        file.write("8,8.jpg\n")
    second = shard(sources, str(target), settings)
    assert (second.units, second.photos, second.new_photos) == (4, 9, 1)
    assert not second.failed
    kept = {}
    for unit in range(4):
        for row in pq.read_table(target / index_name(unit)).to_pylist():
            kept[row["source"]] = (unit, row["sha256"])
    names = [*(f"{i}.jpg" for i in range(6)), "more.tar#6.jpg", "more.tar#7.jpg", "8.jpg"]
    content = [*photos.values(), (tmp_path / "8.jpg").read_bytes()]
    assert kept == {
        name: (unit, hashlib.sha256(data).hexdigest())
        for name, unit, data in zip(names, [0, 0, 0, 0, 1, 1, 2, 2, 3], content, strict=True)
    }


def test_a_damaged_tar_is_counted_and_its_photos_kept(
    local_ray, scene, jpeg, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(scene(0)))
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for number in range(3):
            tar.add(tmp_path / "a.jpg", f"{number}.jpg")
    data = (tmp_path / "photos.tar").read_bytes()
    (tmp_path / "photos.tar").write_bytes(data[: 512 + len(jpeg(scene(0))) + 2000])
    report = shard([str(tmp_path / "photos.tar")], str(tmp_path / "d"), SETTINGS)
    assert sum(report.kept.values()) == 1
    assert report.refused == {"truncated": 1}
    assert report.damaged == 1
    (row,) = pq.read_table(tmp_path / "d/rejected/000000.parquet").to_pylist()
    assert row["source"] == "photos.tar"


def test_a_second_writer_is_refused(copy: Path, photo_folder) -> None:
    with (
        claim(open_store(copy), "cc priors"),
        pytest.raises(BusyError, match=r"cc priors \(process \d+ on .*\) is writing to"),
    ):
        shard([str(photo_folder.path)], str(copy), SETTINGS)


def test_nothing_is_written_over_other_files(photo_folder, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(WrongCallError, match="found other files"):
        shard([str(photo_folder.path)], str(tmp_path), SETTINGS)


def test_no_photos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("none")
    with pytest.raises(JobError, match=r"found none: skipped 1 \.txt; check the sources"):
        shard([str(tmp_path / "source")], str(tmp_path / "dataset"), SETTINGS)


def test_a_dataset_inside_its_source_does_not_feed_on_itself(
    local_ray, scene, jpeg, tmp_path: Path
) -> None:
    for seed in range(3):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(scene(seed)))
    target = tmp_path / "dataset"
    shard([str(tmp_path)], str(target), SETTINGS)
    (target / "palette").mkdir()
    (target / "palette" / "palette.png").write_bytes(b"a picture of ours")
    again = shard([str(tmp_path)], str(target), SETTINGS)
    assert (again.photos, again.new_photos) == (3, 0)
