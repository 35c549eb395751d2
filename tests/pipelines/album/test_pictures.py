"""`cc colorize`: what its pictures are like, with the model that ships; any format, any depth."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from skimage.color import rgb2lab

from cli.main import main
from colorcore.checkpoints.checkpoint import Checkpoint, save_checkpoint
from colorcore.checkpoints.shipped import START
from colorcore.color.palette import Palette
from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe
from pipelines.album import works
from pipelines.album.colorize import colorize_photo, colorize_photos
from pipelines.album.settings import ColorizeReport, ColorizeSettings
from pipelines.errors import JobError, WrongCallError
from pipelines.pages.before_after import BeforeAfterPage

ROUNDING = {8: 0.30, 16: 0.02}
"""ΔL of rounding R, G and B to 8 and to 16 bits, and of what is clipped."""


@pytest.fixture(scope="module")
def grey() -> NDArray[np.uint8]:
    """A real photograph without colour, (240, 300)."""
    return cv2.resize(data.chelsea().mean(axis=2).astype(np.uint8), (300, 240))


@pytest.fixture(scope="module")
def deep(grey) -> NDArray[np.uint16]:
    """The same in 16 bits, with values between those of 8."""
    rng = np.random.default_rng(0)
    return (grey.astype(np.uint16) * 256 + rng.integers(0, 256, grey.shape)).astype(np.uint16)


def lightness(pixels: NDArray) -> NDArray[np.float64]:
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return rgb2lab(rgb / np.iinfo(pixels.dtype).max)[..., 0]


def chroma(pixels: NDArray) -> float:
    return float(
        np.hypot(*np.moveaxis(rgb2lab(pixels / np.iinfo(pixels.dtype).max)[..., 1:], 2, 0)).mean()
    )


def made(folder: Path, name: str, pixels: NDArray, **options) -> Path:
    """A file written by another library."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    if path.suffix == ".tif":
        tifffile.imwrite(
            path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", **options
        )
    elif pixels.dtype == np.uint16 or path.suffix in {".pgm", ".ppm"}:
        cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def read(path: Path) -> NDArray:
    """A picture as a library that did not write it reads it, RGB."""
    if path.suffix == ".tif":
        return tifffile.imread(path)
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found[..., ::-1] if found.shape[2] == 3 else found[..., [2, 1, 0, 3]]


# Formats and depths


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.jpg", "a.pgm"])
def test_eight_bits_keep_their_format_and_lightness(name: str, grey, tmp_path: Path) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    photo = made(tmp_path / "in", name, grey, **options)
    report = colorize_photos(START, [str(photo)], tmp_path / "out")
    (path,) = report.written
    assert path.name == name
    picture = read(path)
    assert picture.dtype == np.uint8
    assert picture.shape == (*grey.shape, 3)
    lossy = 4.0 if name == "a.jpg" else 0.0
    there = cv2.imread(str(photo), cv2.IMREAD_GRAYSCALE)
    assert np.abs(lightness(picture) - lightness(there)).max() < ROUNDING[8] + lossy
    assert chroma(picture) > 5.0  # a cat in its colours


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("colored", [False, True])
def test_sixteen_bits_stay_sixteen(name: str, colored: bool, deep, tmp_path: Path) -> None:
    pixels = np.repeat(deep[..., None], 3, axis=2) if colored else deep
    photo = made(tmp_path / "in", name, pixels)
    (path,) = colorize_photos(START, [str(photo)], tmp_path / "out").written
    picture = read(path)
    assert picture.dtype == np.uint16
    assert np.abs(lightness(picture) - lightness(deep)).max() < ROUNDING[16]
    assert len(np.unique(picture[..., 1])) > 5000  # more than 8 bits in fact, not only in name


def test_every_page_of_a_tiff(grey, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    color = cv2.resize(data.astronaut(), (200, 200))
    with tifffile.TiffWriter(folder / "a.tif") as file:
        for page in (grey, color, grey[::-1]):
            file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack")
    (path,) = colorize_photos(START, [str(folder)], tmp_path / "out").written
    with tifffile.TiffFile(path) as file:
        pages = [page.asarray() for page in file.pages]
    assert [page.shape for page in pages] == [(*grey.shape, 3), color.shape, (*grey.shape, 3)]
    np.testing.assert_array_equal(pages[1], color)  # it has its colours
    assert chroma(pages[0]) > 5.0
    assert np.abs(lightness(pages[2]) - lightness(grey[::-1])).max() < ROUNDING[8]
    # A format of single pictures would need names that another photo may have.
    as_png = ColorizeSettings(suffix=".png")
    report = colorize_photos(START, [str(folder)], tmp_path / "png", as_png)
    assert report.written == []
    (why,) = report.refused.values()
    assert why == "expected one picture for .png, got 3 pages; use --format tif"


@pytest.mark.slow
@pytest.mark.parametrize("other", ["a.png", "A.PNG"])
def test_a_photo_that_becomes_png_to_lose_nothing(other: str, grey, tmp_path: Path) -> None:
    """It takes no other photo's name, and is found again."""
    folder = tmp_path / "in"
    made(folder, other, grey)
    ten_bits = np.repeat((grey.astype(np.uint16) * 4 + 1)[..., None], 3, axis=2)
    (folder / "a.avif").write_bytes(imagecodecs.avif_encode(ten_bits, 100, bitspersample=10))
    report = colorize_photos(START, [str(folder)], tmp_path / "out")
    assert report.refused == {}
    assert len(set(report.written)) == len(list((tmp_path / "out").glob("*.*"))) == 2
    shown = [read(path).dtype for path in report.written]
    assert sorted(shown) == [np.uint8, np.uint16]
    again = colorize_photos(START, [str(folder)], tmp_path / "out")
    assert (again.written, sorted(again.kept)) == ([], sorted(report.written))


def test_a_wrong_suffix_costs_no_bits(deep, tmp_path: Path) -> None:
    photo = made(tmp_path / "in", "a.tif", deep).rename(tmp_path / "in" / "a.jpg")
    report = colorize_photos(START, [str(photo)], tmp_path / "out")
    assert report.written == []
    (why,) = report.refused.values()
    assert why.startswith("expected a photo that .jpg can hold, got TIFF of 16 bits")
    assert why.endswith("rename it")
    asked = colorize_photos(START, [str(photo)], tmp_path / "out", ColorizeSettings(suffix=".jpg"))
    assert len(asked.written) == 1  # who asks for it gets it


def test_transparency_stays(grey, tmp_path: Path) -> None:
    alpha = np.arange(grey.size, dtype=np.uint32).reshape(grey.shape).astype(np.uint8)
    photo = made(tmp_path / "in", "a.png", np.dstack([grey, grey, grey, alpha]))
    (path,) = colorize_photos(START, [str(photo)], tmp_path / "out").written
    picture = read(path)
    np.testing.assert_array_equal(picture[..., 3], alpha)
    assert np.abs(lightness(picture[..., :3]) - lightness(grey)).max() < ROUNDING[8]


def test_a_turned_photo_comes_out_upright(grey, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    photo = made(tmp_path / "in", "a.jpg", grey, exif=exif, quality=95)
    (path,) = colorize_photos(START, [str(photo)], tmp_path / "out").written
    with Image.open(path) as picture:
        assert picture.size == grey.shape  # rows and columns exchanged
        assert picture.getexif().get(0x0112, 1) == 1
        assert picture.getexif()[0x010F] == "A camera"
        assert picture.info["icc_profile"]


def test_the_same_photo_has_the_same_colours_at_any_size(grey, tmp_path: Path) -> None:
    large = cv2.resize(grey, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    for name, pixels in (("a.png", grey), ("b.png", large)):
        made(tmp_path / "in", name, pixels)
    colorize_photos(START, [str(tmp_path / "in")], tmp_path / "out")
    small, big = (rgb2lab(read(tmp_path / "out" / name)) for name in ("a.png", "b.png"))
    reduced = cv2.resize(big.astype(np.float32), (300, 240), interpolation=cv2.INTER_AREA)
    apart = np.hypot(*np.moveaxis(reduced[..., 1:] - small[..., 1:], 2, 0))
    assert apart.mean() < 1.0


# What is asked for


@pytest.fixture
def album(grey, tmp_path: Path) -> Path:
    """A grey photo, a toned one and one in colour."""
    made(tmp_path / "in", "grey.png", grey)
    toned = np.clip(grey[..., None] * np.array([1.0, 0.87, 0.7]), 0, 255).astype(np.uint8)
    made(tmp_path / "in", "toned.png", toned)
    made(tmp_path / "in", "color.png", data.astronaut())
    return tmp_path / "in"


def test_photos_in_colour_are_left_alone(album: Path, tmp_path: Path, capsys) -> None:
    report = colorize_photos(START, [str(album)], tmp_path / "out")
    assert [path.name for path in report.written] == ["grey.png", "toned.png"]
    assert report.colored == [str(album / "color.png")]
    forced = colorize_photos(START, [str(album)], tmp_path / "f", ColorizeSettings(force=True))
    assert len(forced.written) == 3
    words = ["cc", "colorize", START, str(album), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "left alone 1 photo in colour, such as" in shown.err
    assert shown.out.startswith(f"0 pictures in {tmp_path / 'out'}, 2 kept, 1 in colour; ")
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["colored"] == [str(album / "color.png")]


def test_globs(album: Path, tmp_path: Path) -> None:
    """Also those that no shell has expanded; a name with brackets is a name."""
    (album / "g[1].png").write_bytes((album / "grey.png").read_bytes())
    for glob, names in {
        str(album / "g*.png"): ["g[1].png", "grey.png"],
        str(album / "g[1].png"): ["g[1].png"],
        str(tmp_path / "**" / "t?ned.png"): ["toned.png"],
    }.items():
        out = tmp_path.with_name(f"{tmp_path.name}-{len(names)}{names[0]}")
        report = colorize_photos(START, [glob], out)
        assert [path.name for path in report.written] == names
    with pytest.raises(WrongCallError, match=r"expected files that match .*, found none"):
        colorize_photos(START, [str(album / "*.gif")], tmp_path / "out")


def test_strength_mixes_with_the_photos_own_colours(album: Path, tmp_path: Path) -> None:
    photo, chromas = album / "toned.png", {}
    for strength in (0.0, 0.5, 1.0):
        out = tmp_path / f"{strength}"
        (path,) = colorize_photos(
            START, [str(photo)], out, ColorizeSettings(strength=strength)
        ).written
        chromas[strength] = rgb2lab(read(path))[..., 1:]
    own = rgb2lab(read(photo))[..., 1:]
    assert np.abs(chromas[0.0] - own).mean() < 2.0  # the small copy's own, upsampled
    middle = (chromas[0.0] + chromas[1.0]) / 2
    assert np.abs(chromas[0.5] - middle).mean() < 0.5


def test_side_by_side(grey, tmp_path: Path) -> None:
    photo = made(tmp_path / "in", "a.png", grey)
    (path,) = colorize_photos(
        START, [str(photo)], tmp_path / "out", ColorizeSettings(side_by_side=True)
    ).written
    pair = read(path)
    assert pair.shape[0] == 240
    assert pair.shape[1] > 600
    np.testing.assert_array_equal(pair[:, :300], np.repeat(grey[..., None], 3, axis=2))
    assert np.abs(lightness(pair[:, -300:]) - lightness(grey)).max() < ROUNDING[8]


def test_a_page_of_befores_and_afters(album: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "page.html"
    words = ["cc", "colorize", START, str(album), "--out", str(tmp_path / "out")]
    assert main([*words, "--before-after", str(page)]) == 0
    assert f"before and after: {page}" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("grey.png") >= 1 <= text.count("toned.png")
    assert "color.png" not in text
    assert str(album) not in text
    # Run again, it shows the pictures that are there, too.
    assert main([*words, "--before-after", str(page)]) == 0
    assert page.read_text().count("grey.png") >= 1 <= page.read_text().count("toned.png")
    capsys.readouterr()
    page.write_text("mine")
    assert main([*words, "--overwrite", "--before-after", str(page)]) == 2
    assert "expected a new file for --before-after" in capsys.readouterr().err
    assert page.read_text() == "mine"


def test_a_page_that_cannot_be_written_costs_no_picture(
    album: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(BeforeAfterPage, "add", full)
    words = ["cc", "colorize", START, str(album), "--out", str(tmp_path / "out")]
    page = tmp_path / "page.html"
    assert main([*words, "--before-after", str(page)]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("2 pictures in")
    assert f"error: cannot write {page}: No space left on device; free some space" in shown.err
    assert main([*words, "--before-after", str(tmp_path / "page.txt")]) == 2
    assert "expected a name ending in .html" in capsys.readouterr().err


def test_a_failing_job_is_not_taken_for_a_failing_page(
    album: Path, tmp_path: Path, monkeypatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the source is gone")

    monkeypatch.setattr(works, "read_photos", fails)
    report, page = ColorizeReport(tmp_path / "out"), tmp_path / "page.html"
    with pytest.raises(OSError, match="the source is gone"):
        colorize_photos(START, [str(album)], report.out, ColorizeSettings(page=page), report=report)
    assert report.page_error == ""
    assert not page.exists()


def test_a_device_that_is_not_there(album: Path, tmp_path: Path, capsys) -> None:
    for device in ("cuda:99", "foo"):
        words = ["cc", "colorize", START, str(album), "--out", str(tmp_path / "out")]
        assert main([*words, "--device", device]) == 2
        said = capsys.readouterr().err
        assert f"expected a device that this machine has, such as cpu, got '{device}'" in said


def test_a_glob_over_its_own_pictures(album: Path) -> None:
    glob, out = str(album / "**" / "grey.png"), album / "colorized"
    assert len(colorize_photos(START, [glob], out).written) == 1
    again = colorize_photos(START, [glob], out)
    assert (len(again.written), len(again.kept)) == (0, 1)


def test_times_are_kept(grey, tmp_path: Path) -> None:
    photo = made(tmp_path / "in", "a.png", grey)
    os.utime(photo, (1e9, 1e9 + 7))
    for keep in (True, False):
        out = tmp_path / f"{keep}"
        (path,) = colorize_photos(
            START, [str(photo)], out, ColorizeSettings(keep_times=keep)
        ).written
        assert (path.stat().st_mtime == 1e9 + 7) is keep


def test_a_scan_above_the_limit_needs_the_option(grey, tmp_path: Path) -> None:
    photo = made(tmp_path / "in", "a.png", grey)
    few = ColorizeSettings(max_pixels=grey.size - 1)
    report = colorize_photos(START, [str(photo)], tmp_path / "out", few)
    assert f"expected at most {grey.size - 1} pixels" in report.refused[str(photo)]
    enough = replace(few, max_pixels=grey.size)
    assert colorize_photos(START, [str(photo)], tmp_path / "out", enough).refused == {}


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    """A model that predicts bins and is unsure: its logits are small and random."""
    torch.manual_seed(0)
    grid = np.stack(np.meshgrid(np.linspace(-60, 60, 5), np.linspace(-60, 60, 5)), -1)
    palette = Palette(
        grid.reshape(-1, 2).astype(np.float32),
        np.full(25, 1 / 25, np.float32),
        np.ones(25, np.float32),
    )
    recipe = load_recipe("lite0-bins", ["model.channels=8"]).for_palette(25)
    model = build_model(recipe.model.name, **recipe.model.options())
    model.use_palette(palette)
    torch.nn.init.normal_(model.bins.weight, std=0.5)
    checkpoint = Checkpoint(
        recipe=recipe, weights=model.state_dict(), palette=palette, mean_ab=(0.0, 0.0), size=64,
        dataset="0123456789abcdef", epoch=1, step=0, scores={},
    )  # fmt: skip
    save_checkpoint(checkpoint, tmp_path / "bins")
    return tmp_path / "bins"


def test_versions_differ_and_are_the_same_every_time(bins: Path, grey, tmp_path: Path) -> None:
    photo = made(tmp_path / "in", "a.png", grey)
    three = ColorizeSettings(samples=3)
    paths = colorize_photos(bins, [str(photo)], tmp_path / "out", three).written
    assert [path.name for path in paths] == ["a-1.png", "a-2.png", "a-3.png"]
    versions = [rgb2lab(read(path)) for path in paths]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(versions[one] - versions[other])[..., 1:].mean() > 2.0
    (plain,) = colorize_photos(bins, [str(photo)], tmp_path / "plain").written
    assert plain.read_bytes() == paths[0].read_bytes()
    again = colorize_photos(bins, [str(photo)], tmp_path / "again", three).written
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    paths[1].unlink()  # what is missing is made, and nothing else
    rest = colorize_photos(bins, [str(photo)], tmp_path / "out", three)
    assert rest.written == [paths[1]]


def test_a_regression_has_one_version(grey, tmp_path: Path) -> None:
    photo = made(tmp_path / "in", "a.png", grey)
    with pytest.raises(WrongCallError, match="--samples: expected a model that predicts bins"):
        colorize_photos(START, [str(photo)], tmp_path / "out", ColorizeSettings(samples=2))


# A pipe


@pytest.mark.slow
def test_a_pipe_gives_what_a_file_gives(grey, tmp_path: Path) -> None:
    photo = made(tmp_path / "in", "a.png", grey)
    (path,) = colorize_photos(START, [str(photo)], tmp_path / "out").written
    words = [sys.executable, "-c", "import sys; from cli.main import main; sys.exit(main())"]
    ran = subprocess.run(
        [*words, "colorize", START, "-"],
        input=photo.read_bytes(),
        capture_output=True,
        cwd=tmp_path,
        check=True,
    )
    assert ran.stdout == path.read_bytes()
    assert not (tmp_path / "colorized").exists()


def test_what_a_pipe_refuses(grey, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"standard input: empty"):
        colorize_photo(START, io.BytesIO(), ColorizeSettings())
    with pytest.raises(WrongCallError, match="expected one picture for standard output"):
        colorize_photo(START, io.BytesIO(b"x"), ColorizeSettings(samples=2))
    color = cv2.imencode(".png", data.astronaut()[..., ::-1])[1].tobytes()
    with pytest.raises(JobError, match="without colours, got one that has some; use --force"):
        colorize_photo(START, io.BytesIO(color), ColorizeSettings())
