"""The job of `cc shard` on a real Ray: what is kept, what is said, what an interruption costs."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from colorcore.dataset import ShardSettings, index_path, plan_path, read_info
from colorcore.loader import Samples
from pipelines.errors import JobError, WrongCallError
from pipelines.shard import ShardProgress, shard

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


def test_a_second_run_does_nothing(copy: Path, photo_folder, local_ray) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    report = shard([str(photo_folder.path)], str(copy), SETTINGS)
    assert report.new_photos == 0
    assert report.fingerprint == read_info(copy).fingerprint
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_units_without_an_index_are_done_again_to_the_same_bytes(
    copy: Path, sharded: Path, photo_folder, local_ray
) -> None:
    index_path(copy, 1).unlink()
    (copy / "train" / "000001-000.tar").write_bytes(b"half a tar")
    (copy / ".unit-000002" / "train").mkdir(parents=True)
    (copy / "index" / ".000002.parquet.part").write_bytes(b"half an index")
    report = shard([str(photo_folder.path)], str(copy), SETTINGS)
    assert report.new_photos == 10
    assert contents(copy) == contents(sharded)


def test_other_settings_are_refused_with_the_difference(copy: Path, photo_folder) -> None:
    other = SETTINGS.model_copy(update={"size": 96})
    with pytest.raises(WrongCallError, match="size is 64 there, 96 asked"):
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
    good = plan_path(copy, 1).read_bytes()
    index_path(copy, 1).unlink()
    index_path(copy, 0).unlink()
    broken = copy / "histogram" / "000001.npy"
    broken.unlink()
    broken.mkdir()  # the unit cannot be put into place
    report = shard([str(photo_folder.path)], str(copy), SETTINGS)
    assert list(report.failed) == [1]
    assert "Error" in report.failed[1]
    assert report.fingerprint == read_info(copy, finished=False).fingerprint
    assert index_path(copy, 0).exists()
    assert not index_path(copy, 1).exists()
    assert plan_path(copy, 1).read_bytes() == good
    broken.rmdir()
    assert not shard([str(photo_folder.path)], str(copy), SETTINGS).failed


def test_a_second_writer_is_refused(copy: Path, photo_folder) -> None:
    folder = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="another cc shard is writing"):
            shard([str(photo_folder.path)], str(copy), SETTINGS)
    finally:
        os.close(folder)


def test_nothing_is_written_over_other_files(photo_folder, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(WrongCallError, match="found other files"):
        shard([str(photo_folder.path)], str(tmp_path), SETTINGS)


def test_no_photos_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("none")
    with pytest.raises(JobError, match=r"found no photos .* \(1 other files\)"):
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


def test_a_killed_command_goes_on_where_it_stopped(
    photo_folder, sharded: Path, tmp_path: Path
) -> None:
    """SIGKILL the whole command as soon as a unit is done; the same command finishes the job."""
    target = tmp_path / "dataset"
    command = [
        sys.executable, "-m", "cli.main", "shard", str(photo_folder.path), str(target),
        "--size", "64", "--photos-per-unit", "10", "--val-percent", "30",
    ]  # fmt: skip
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(target.glob("index/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert list(target.glob("index/*.parquet"))
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert second.returncode == 0, second.stderr
    assert contents(target) == contents(sharded)
