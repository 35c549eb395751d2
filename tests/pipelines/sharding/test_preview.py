"""The dry run gives the same verdicts as sharding, on a fair sample, and writes nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from colorcore.dataset.layout import CF_STEP, ShardSettings, read_info
from colorcore.drawing.contact_sheet import COLUMNS, TILE, Section, Tile, draw_contact_sheet
from colorcore.storage.local import LocalStore
from pipelines.errors import JobError
from pipelines.sharding import preview as look
from pipelines.sharding.preview import dry_run, preview_dataset
from pipelines.sources.source import PlannedPhoto
from tests.conftest import jpeg, scene

SETTINGS = ShardSettings(size=64)


def test_a_dry_run_of_all_photos_gives_the_verdicts_of_sharding(
    photo_folder, dataset: Path
) -> None:
    before = {path: path.lstat().st_mtime_ns for path in photo_folder.path.rglob("*")}
    seen = dry_run([photo_folder.path], SETTINGS, 1000)
    # The copy is in another unit of the dataset; in a sample it is told as a duplicate.
    assert seen.refused == Counter(photo_folder.refused.values()) + Counter(["duplicate"])
    assert seen.kept == len(photo_folder.kept) - 1
    assert seen.ignored == photo_folder.ignored
    assert sum(seen.colorfulness) == seen.kept
    info = read_info(dataset)
    assert sum(info.colorfulness or ()) == len(photo_folder.kept)
    least = next(i for i, count in enumerate(seen.colorfulness) if count) * CF_STEP
    assert least >= SETTINGS.min_colorfulness
    assert {path: path.lstat().st_mtime_ns for path in photo_folder.path.rglob("*")} == before


def test_a_sample_is_of_the_size_asked_and_the_same_for_a_seed(photo_folder) -> None:
    one, again = (dry_run([photo_folder.path], SETTINGS, 12, seed=3) for _ in range(2))
    assert one.photos == 12 == one.kept + one.refused.total()
    assert [tile.name for tile in one.kept_tiles] == [tile.name for tile in again.kept_tiles]
    other = dry_run([photo_folder.path], SETTINGS, 12, seed=4)
    assert [tile.name for tile in other.kept_tiles] != [tile.name for tile in one.kept_tiles]


def test_each_photo_has_the_same_chance() -> None:
    photos = [PlannedPhoto(0, b"%d" % number) for number in range(10)]
    rng, counts, rounds = np.random.default_rng(0), Counter[bytes](), 3000
    for _ in range(rounds):
        chosen = look._chosen(iter(photos), 3, rng, lambda *_: None)
        assert len({photo.path for photo in chosen}) == 3
        counts.update(photo.path for photo in chosen)
    share = np.array([counts[photo.path] for photo in photos]) / rounds
    sigma = np.sqrt(0.3 * 0.7 / rounds)
    assert np.abs(share - 0.3).max() < 5 * sigma


def test_no_photos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="found none: it is empty; check the sources"):
        dry_run([tmp_path], SETTINGS, 5)


def test_the_command_reports_what_it_skips(photo_folder, tmp_path: Path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes((photo_folder.path / "garden/000.jpg").read_bytes())
    for name in ("._a.jpg", "a.jxl", "b.jxl"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    sheet = tmp_path / "sheet.png"
    words = ["cc", "shard", str(tmp_path / "photos"), "--dry-run=9", f"--picture={sheet}"]
    assert main(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["skipped:", ".jxl", "2"] in rows
    assert ["skipped:", "._*", "(AppleDouble)", "1"] in rows
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["skipped"] == {"._* (AppleDouble)": 1, ".jxl": 2}


@pytest.mark.parametrize("command", ["shard", "inspect"])
def test_photos_of_which_none_can_be_read_are_an_error(
    command: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"no photo")
    (tmp_path / "photos/b.jpg").write_bytes(b"")
    words = ["cc", command, str(tmp_path / "photos"), f"--picture={tmp_path / 'sheet.png'}"]
    words += ["--dry-run=9"] if command == "shard" else []
    assert main(words) == 1
    shown = capsys.readouterr()
    expected = "error: expected photos, could read none of 2: 1 empty, 1 unreadable; check the"
    assert expected in shown.err
    assert "would be refused: unreadable" in shown.out  # the report is there all the same
    assert main([*words, "--json"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
    (tmp_path / "photos/c.jpg").write_bytes(jpeg(scene(0, 300, 300)))
    assert main(words) == 0


def test_a_datasets_refused_photos_are_shown_by_reason(dataset: Path, photo_folder) -> None:
    seen = preview_dataset(LocalStore(dataset), read_info(dataset))
    assert {reason: len(tiles) for reason, tiles in seen.refused_tiles.items()} == Counter(
        photo_folder.refused.values()
    )
    assert seen.refused_tiles["greyscale"][0].picture is not None
    assert seen.refused_tiles["truncated"][0].picture is None
    names = {Path(name).name for name in photo_folder.kept}
    assert {tile.name for tile in seen.kept_tiles} <= names


def test_the_sheet_has_a_place_for_each_photo() -> None:
    red = np.full((TILE, TILE, 3), (255, 0, 0), np.uint8)
    tiles = [Tile(red, f"{number}.jpg", "CF 50.0") for number in range(COLUMNS + 1)]
    sheet = draw_contact_sheet("photos", [Section("kept", tiles), Section("none", [])])
    assert (sheet == (255, 0, 0)).all(axis=2).sum() == (COLUMNS + 1) * TILE * TILE
    assert sheet.shape[1] < (COLUMNS + 1) * (TILE + 12)
