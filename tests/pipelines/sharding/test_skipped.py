"""What is no photo is counted across calls, resumed exactly, and old datasets stay as they are."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from cli.main import main
from colorcore.dataset.layout import DatasetInfo, ShardSettings, index_name, read_info, write_info
from colorcore.storage.local import LocalStore
from pipelines.doctor.verify import verify
from pipelines.errors import WrongCallError
from pipelines.sharding.job import ShardReport, shard
from pipelines.sharding.merge_tasks import merge_units
from pipelines.sharding.plan import plan_units
from pipelines.sharding.plan_file import PlanFile, write_plan
from pipelines.sharding.skipped import kinds, read_total, skipped_name
from pipelines.sharding.task import shard_unit
from pipelines.sources.source import PlannedPhoto, open_sources
from tests.conftest import jpeg, scene
from tests.pipelines.sharding.folders import contents
from tests.pipelines.sources.test_litter import apple_double

SETTINGS = ShardSettings(size=32, photos_per_unit=4, val_percent=30, min_colorfulness=0)


def tar(path: Path, **members: bytes) -> Path:
    """A tar of members whose ``__`` stands for a dot."""
    scratch = path.with_suffix(".member")
    with tarfile.open(path, "w") as opened:
        for name, data in members.items():
            scratch.write_bytes(data)
            opened.add(scratch, name.replace("__", "."))
    scratch.unlink()
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, a tar with litter, a tar without photos, litter, and a list's worth of both."""
    top = tmp_path / "photos"
    top.mkdir()
    for number in range(3):
        (top / f"{number}.jpg").write_bytes(jpeg(scene(number)))
        (top / f"._{number}.jpg").write_bytes(apple_double())
    good = {f"k{number}__jpg": jpeg(scene(number)) for number in range(3, 6)}
    tar(top / "x.tar", **good, k3__json=b"{}", k4__json=b"{}", _____k3__jpg=apple_double())
    tar(top / "y.tar", a__jxl=b"x", b__jxl=b"x")
    return top


FOUND = {"._* (AppleDouble)": 3, ".json": 2, ".jxl": 2}


def build(source: Path, dataset: Path, only: int | None = None) -> DatasetInfo | None:
    """Plan and do all units, or one, without Ray."""
    store, sources = LocalStore(dataset), open_sources([source])
    info = DatasetInfo(settings=SETTINGS, sources=(str(source),))
    if not (dataset / "dataset.json").exists():
        write_info(dataset, info)
    for unit in plan_units(store, sources, SETTINGS.photos_per_unit, Counter()):
        if only in (None, unit.unit) and not (dataset / index_name(unit.unit)).exists():
            shard_unit((store, sources, SETTINGS), unit.unit, unit.plan)
    return merge_units(store, info) if only is None else None


def rerun(source: Path, dataset: Path) -> ShardReport:
    """`cc shard` of a finished dataset, which starts no Ray."""
    return shard([str(source)], str(dataset), SETTINGS)


# Counts


def test_members_of_tars_are_counted_in_every_call(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "d")
    for _ in range(2):
        report = rerun(photos, tmp_path / "d")
        assert (report.photos, report.new_photos) == (6, 0)
        assert report.refused == {}
        # k3's AppleDouble in the tar is named "__.k3.jpg" here: its content tells it.
        assert report.ignored == {**FOUND, "._* (AppleDouble)": 4}
        assert report.empty == ()


def test_records_are_the_same_from_run_to_run_and_after_an_interruption(
    photos: Path, tmp_path: Path
) -> None:
    build(photos, tmp_path / "whole")
    build(photos, tmp_path / "cut", only=1)
    build(photos, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / skipped_name(2)).read_bytes()) == {
        "0": {"empty": 1, "files": {".jxl": 2}}
    }
    assert not (tmp_path / "whole" / skipped_name(0)).exists()


def test_a_unit_that_is_done_again_replaces_its_record(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "d")
    tar(photos / "y.tar", a__jpg=jpeg(scene(9)))
    (tmp_path / "d" / index_name(2)).unlink()
    build(photos, tmp_path / "d")
    assert not (tmp_path / "d" / skipped_name(2)).exists()
    assert kinds(read_total(LocalStore(tmp_path / "d"))) == {".json": 2, "._* (AppleDouble)": 1}


@pytest.mark.parametrize(
    ("name", "content", "remove"),
    [
        ("skipped/000001.json", b"{", "index/000001.parquet"),
        ("skipped/000001.json", b'["empty"]', "index/000001.parquet"),
        ("skipped/000001.json", b'{"0": {"empty": 0, "files": {".json": 3}}}', "shards.parquet"),
        ("skipped.json", b"", "shards.parquet"),
        ("skipped.json", b'{"0": {}}', "shards.parquet"),
        ("skipped.json", b"{}", "shards.parquet"),
    ],
)
def test_a_damaged_record_is_named_and_made_again(
    name: str, content: bytes, remove: str, photos: Path, tmp_path: Path
) -> None:
    build(photos, tmp_path / "d")
    expected = contents(tmp_path / "d")
    assert name in expected
    assert verify(LocalStore(tmp_path / "d"), lambda *_: None).damage == []
    (tmp_path / "d" / name).write_bytes(content)
    (damage,) = verify(LocalStore(tmp_path / "d"), lambda *_: None).damage
    assert damage.file in {name, "skipped.json"}  # one that is only wrong may be either
    assert damage.remove == remove
    if len(content) > 30:  # nothing says which of the two is wrong
        return
    (tmp_path / "d" / remove).unlink()
    build(photos, tmp_path / "d")
    assert contents(tmp_path / "d") == expected


def test_units_that_fail_hide_no_count_of_the_others(
    local_ray, photos: Path, tmp_path: Path
) -> None:
    """There is no total then, so what this call did is counted."""
    dataset = tmp_path / "d"
    build(photos, dataset)
    for unit in (1, 2):
        (dataset / index_name(unit)).unlink()
    broken = dataset / "histogram/000002.npy"
    broken.unlink()
    broken.mkdir()  # the unit cannot be put into place
    report = rerun(photos, dataset)
    assert list(report.failed) == [2]
    assert report.ignored == {".json": 2, "._* (AppleDouble)": 4}


# Datasets of earlier versions


def test_an_old_dataset_with_litter_grows_and_keeps_its_units(photos: Path, tmp_path: Path) -> None:
    """Earlier versions planned litter as photos and refused it; the plan is theirs, byte for byte.

    They wrote no records either.
    """
    (photos / "x.tar").unlink()
    (photos / "y.tar").unlink()
    dataset = tmp_path / "d"
    names = sorted(path.name.encode() for path in photos.iterdir())
    assert names[0] == b"._0.jpg"
    slices = [[PlannedPhoto(0, name) for name in names[at : at + 4]] for at in (0, 4)]
    write_plan(dataset, 0, slices)
    store, sources = LocalStore(dataset), open_sources([photos])
    write_info(dataset, DatasetInfo(settings=SETTINGS, sources=(str(photos),)))
    for unit in range(2):
        shard_unit((store, sources, SETTINGS), unit, 0)
    info = merge_units(store, read_info(dataset, finished=False))
    assert info.counts is not None
    before = {
        name: data
        for name, data in contents(dataset).items()
        if name.startswith(("train/", "val/", "index/", "units/", "rejected/"))
    }
    # New photos around the litter, and more litter.
    for number, name in enumerate(("!first.jpg", "0a.jpg", "zz.jpg"), 50):
        (photos / name).write_bytes(jpeg(scene(number)))
    (photos / "._zz.jpg").write_bytes(apple_double())
    build(photos, dataset)
    after = contents(dataset)
    assert {name: after[name] for name in before} == before
    assert [photo.path for photo in PlanFile(dataset, 2).slice(2)] == [
        b"!first.jpg", b"0a.jpg", b"zz.jpg",
    ]  # fmt: skip
    report = rerun(photos, dataset)
    assert report.new_photos == 0
    assert sum(report.kept.values()) == 6


def test_a_finished_dataset_without_records_is_reported_as_before(
    photos: Path, tmp_path: Path
) -> None:
    build(photos, tmp_path / "d")
    for path in (tmp_path / "d").rglob("skipped*.json"):
        path.unlink()
    for path in (tmp_path / "d" / "skipped").glob("*"):
        path.unlink()
    report = rerun(photos, tmp_path / "d")
    assert (report.photos, report.new_photos) == (6, 0)
    assert report.ignored == {"._* (AppleDouble)": 3}


# The command


def call(*places: object) -> int:
    options = ["--size=32", "--photos-per-unit=4", "--val-percent=30", "--min-colorfulness=0"]
    return main(["cc", "shard", *map(str, places), *options])


def test_the_table_and_the_json_say_what_was_skipped(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(photos, tmp_path / "d")
    assert call(photos, tmp_path / "d") == 0
    shown = capsys.readouterr().out
    assert "skipped: .json" in shown
    assert "skipped: ._* (AppleDouble)" in shown
    assert call(photos, tmp_path / "d", "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == {**FOUND, "._* (AppleDouble)": 4}


def test_a_tar_without_photos_is_an_error_in_every_call(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(photos / "y.tar", tmp_path / "d")
    assert call(photos / "y.tar", tmp_path / "d") == 1
    shown = capsys.readouterr()
    assert "nothing to do" not in shown.out
    assert (
        f"error: expected photos in {photos / 'y.tar'}, found none: skipped 2 .jxl; "
        "check the sources" in shown.err
    )


def test_a_source_without_photos_among_others_is_an_error(
    local_ray, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.cr2").write_bytes(b"x")
    for new in (True, False):
        assert call(photos, photos / "y.tar", tmp_path / "raw", tmp_path / "d") == 1
        shown = capsys.readouterr()
        assert ("nothing to do" in shown.out) is not new
        assert f"in {photos / 'y.tar'}, found none: skipped 2 .jxl; 1 more" in shown.err


def test_a_list_of_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("id|path\n1|a.jpg\n")
    with pytest.raises(WrongCallError, match=r"found none of the .* the columns are id\|path"):
        shard([str(tmp_path / "l.csv")], str(tmp_path / "d"), SETTINGS)
    assert not (tmp_path / "d").exists()


def test_a_list_whose_photos_are_done_and_gone_may_grow(
    local_ray, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "l.txt"
    path.write_text("photos/0.jpg\nphotos/1.jpg\n")
    build(path, tmp_path / "d")
    (photos / "0.jpg").unlink()
    (photos / "1.jpg").unlink()
    assert rerun(path, tmp_path / "d").new_photos == 0


def test_a_dataset_that_is_its_own_source_is_refused(photos: Path) -> None:
    before = contents(photos)
    with pytest.raises(WrongCallError, match="expected a dataset outside of its sources"):
        shard([str(photos)], str(photos), SETTINGS)
    assert contents(photos) == before
