"""Plots and contact sheets replace earlier ones, other files only when asked, photos never."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from cli.main import main
from colorcore.drawing.style import plot_png
from colorcore.photos.write import COLORIZED, DRAWN, made_by, save_picture
from pipelines.errors import WrongCallError
from pipelines.inference.inspect import inspect_dataset, inspect_model
from pipelines.inference.outputs import check_drawing
from tests.colorcore.checkpoints.made_up_unet import UNetColorizer, save
from tests.conftest import jpeg, scene

DRAWING = [
    ["inspect", "{photos}", "--picture"],
    ["inspect", "{dataset}", "--picture"],
    ["inspect", "{model}", "--picture"],
    ["eval", "{model}", "{photos}", "--picture"],
    ["eval", "{model}", "{dataset}", "--front"],
    ["shard", "{photos}", "--dry-run=5", "--picture"],
]
"""The commands that draw; a file's name follows."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(scene(1)))
    Image.fromarray(scene(2)).save(folder / "b.png")
    return folder


def test_a_new_file_and_an_earlier_drawing(photos: Path) -> None:
    for suffix in (".png", ".jpg", ".webp"):
        check_drawing(photos / f"sheet{suffix}", "--picture", [str(photos)])
        save_picture(photos / f"sheet{suffix}", scene(3), software=DRAWN)
        check_drawing(photos / f"sheet{suffix}", "--picture", [str(photos)])
    plot = photos / "plot.png"
    plot.write_bytes(plot_png((1, 1), lambda _: None, software=DRAWN))
    check_drawing(plot, "--front", [str(photos)])


def test_another_file_is_replaced_only_when_asked(photos: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    for make in (
        lambda: Image.fromarray(scene(4)).save(mine),
        lambda: mine.write_bytes(b"words"),
        lambda: save_picture(mine, scene(4), software=COLORIZED),
        lambda: save_picture(mine, scene(4)),
    ):
        make()
        with pytest.raises(WrongCallError, match=r"--picture, found .*mine\.png, which cc has not"):
            check_drawing(mine, "--picture", [str(photos)])
        check_drawing(mine, "--picture", [str(photos)], overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("how", ["photo", "in folder", "list", "hard link", "link", "own drawing"])
def test_a_source_is_never_replaced(how: str, overwrite: bool, photos: Path) -> None:
    picture, source = photos / "b.png", photos
    if how == "photo":
        source = picture
    elif how == "list":
        source = photos / "list.txt"
        source.write_text("a.jpg\nb.png\n")
    elif how == "own drawing":
        save_picture(picture, scene(5), software=DRAWN)
        source = picture
    elif how != "in folder":
        picture = photos.parent / "other.png"
        (os.link if how == "hard link" else os.symlink)(photos / "b.png", picture)
    with pytest.raises(WrongCallError, match="choose another name") as refused:
        check_drawing(picture, "--picture", [str(source)], overwrite=overwrite)
    if overwrite:
        assert f"{picture} is the photo {photos / 'b.png'}" in str(refused.value)


def test_names_that_no_picture_can_have(photos: Path) -> None:
    with pytest.raises(WrongCallError, match=r"ending in \.png, \.jpg, \.webp for --picture"):
        check_drawing(photos / "a.gif", "--picture")
    (photos / "c.png").mkdir()
    with pytest.raises(WrongCallError, match="found the folder"):
        check_drawing(photos / "c.png", "--picture", overwrite=True)
    (photos / "gone.png").symlink_to(photos / "nothing")
    with pytest.raises(WrongCallError, match="choose another name"):
        check_drawing(photos / "gone.png", "--picture")


@pytest.mark.parametrize("words", DRAWING)
def test_every_command_refuses_before_it_reads(
    words: list[str], photos: Path, dataset: Path, tmp_path: Path, capsys
) -> None:
    """The model is a folder that does not exist."""
    places = {"photos": photos, "dataset": dataset, "model": tmp_path / "nowhere"}
    before = (photos / "b.png").read_bytes()
    assert main(["cc", *(word.format(**places) for word in words), str(photos / "b.png")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert f"found {photos / 'b.png'}, which cc has not drawn; choose another name, or" in line
    assert (photos / "b.png").read_bytes() == before


@pytest.mark.parametrize("words", DRAWING)
def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_read(
    words: list[str], photos: Path, dataset: Path, tmp_path: Path, capsys
) -> None:
    """Not after hours of reading. Folders that do not exist yet are fine, and made later."""
    places = {"photos": photos, "dataset": dataset, "model": tmp_path / "nowhere"}
    call = ["cc", *(word.format(**places) for word in words)]
    for unfit in (Path("/proc"), photos / "a.jpg"):
        assert main([*call, str(unfit / "sheet.png")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith(f"error: cannot write to {unfit}: ")
        assert line.endswith("; choose another output")
    check_drawing(tmp_path / "new" / "sheet.png", "--picture")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{photos}", "--picture"],
        ["eval", "{model}", "{photos}", "--picture"],
        ["eval", "{model}", "{photos}", "--front"],
        ["shard", "{photos}", "--dry-run=5", "--picture"],
    ],
)
def test_no_command_replaces_a_photo_that_it_reads(
    words: list[str], photos: Path, tmp_path: Path, capsys
) -> None:
    """Not even with --overwrite. The model is a folder that does not exist."""
    places = {"photos": photos, "model": tmp_path / "nowhere"}
    before = (photos / "b.png").read_bytes()
    call = [*(word.format(**places) for word in words), str(photos / "b.png"), "--overwrite"]
    assert main(["cc", *call]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert f"found that {photos / 'b.png'} is the photo {photos / 'b.png'}; choose another" in line
    assert (photos / "b.png").read_bytes() == before


@contextmanager
def full_disk() -> Iterator[None]:
    """No file gets longer than a few bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["inspect", "{photos}", "--picture"], "shorter side"),
        (["inspect", "{dataset}", "--picture"], "fingerprint"),
        (["inspect", "{model}", "--picture"], "largest layers"),
        (["shard", "{photos}", "--dry-run=5", "--picture"], "would be kept"),
    ],
)
def test_a_drawing_that_cannot_be_written_takes_no_figures_along(
    words: list[str], shown: str, photos: Path, dataset: Path, tmp_path: Path, capsys
) -> None:
    model = save(tmp_path / "best.pt", UNetColorizer())
    places = {"photos": photos, "dataset": dataset, "model": model}
    call = ["cc", *(word.format(**places) for word in words), str(tmp_path / "sheet.png")]
    with full_disk():
        assert main(call) == 1
    answer = capsys.readouterr()
    assert shown in answer.out
    said = answer.err.strip().splitlines()[-1]
    assert said.startswith(f"error: cannot write {tmp_path / 'sheet.png'}: File too large; choose")
    assert str(tmp_path / "sheet.png") not in answer.out
    assert not list(tmp_path.glob("*sheet*"))


def test_inspect_replaces_what_it_drew(photos: Path, dataset: Path, tmp_path: Path) -> None:
    sheet, mine = tmp_path / "sheet.png", tmp_path / "mine.png"
    words = ["cc", "inspect", str(photos), "--picture"]
    assert main([*words, str(sheet)]) == 0
    assert main([*words, str(sheet)]) == 0
    inspect_dataset(dataset, picture=sheet)
    mine.write_bytes(b"mine")
    assert main([*words, str(mine)]) == 2
    assert main([*words, str(mine), "--overwrite"]) == 0
    assert made_by(mine, DRAWN)


@pytest.mark.slow
def test_the_table_next_to_the_histograms(tmp_path: Path) -> None:
    model = save(tmp_path / "best.pt", UNetColorizer())
    inspect_model(model, picture=tmp_path / "w.png")
    numbers = (tmp_path / "w.csv").read_bytes()
    inspect_model(model, picture=tmp_path / "w.png")
    (tmp_path / "w.csv").write_text("path\na.jpg\n")
    with pytest.raises(WrongCallError, match=r"found .*w\.csv, which cc has not written"):
        inspect_model(model, picture=tmp_path / "w.png")
    inspect_model(model, picture=tmp_path / "w.png", overwrite=True)
    assert (tmp_path / "w.csv").read_bytes() == numbers
