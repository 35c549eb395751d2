"""A photo's file through a colorizer in one call; `cc serve` and MLflow's models rely on it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from colorcore.colorizing.colorizer import Colorizer
from colorcore.colorizing.files import color_pages, colorize_file, open_pages
from colorcore.decoding import Decoding
from colorcore.photos.refusal import COLORIZABLE, PhotoLimits, PhotoRefused, Reason
from tests.conftest import jpeg, scene


class Orange(Colorizer):
    """Predicts one colour, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__("Orange", 16, Decoding(), predicts_bins=False)
        self.passes: list[int] = []
        self.fails_with = 99

    @property
    def device(self) -> str:
        return "cpu"

    def predict_ab(self, L):
        self.passes.append(len(L))
        if len(L) >= self.fails_with:
            raise MemoryError
        ab = np.ones((len(L), 2, *L.shape[2:]), np.float32)
        return ab * np.array([20.0, 40.0], np.float32)[:, None, None]


def tiff(*pictures: np.ndarray) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as file:
        for picture in pictures:
            file.write(picture, photometric="minisblack" if picture.ndim == 2 else "rgb")
    return out.getvalue()


GREY = scene(0).mean(axis=2).astype(np.uint8)


def test_a_file_becomes_a_file_of_its_format_with_its_lightness() -> None:
    picture = Image.open(io.BytesIO(colorize_file(Orange(), jpeg(GREY))))
    assert (picture.format, picture.size, picture.mode) == ("JPEG", (128, 96), "RGB")
    red, _, blue = np.asarray(picture.convert("RGB"), float).mean(axis=(0, 1))
    assert red > blue + 30
    assert np.abs(np.asarray(picture.convert("L"), float) - GREY).mean() < 6
    plain = colorize_file(Orange(), jpeg(GREY), strength=0.0)
    assert np.ptp(np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"), int), axis=2).max() <= 2


def test_pages_stay_pages_and_go_through_the_network_together() -> None:
    model = Orange()
    with tifffile.TiffFile(io.BytesIO(colorize_file(model, tiff(GREY, GREY[::-1])))) as file:
        assert len(file.pages) == 2
    assert model.passes == [2]


def test_a_picture_in_colour_stays_unless_it_is_forced() -> None:
    data = tiff(scene(1), scene(2))
    assert [page.copy for page in open_pages(data, COLORIZABLE, 16)] == [None, None]
    pages = open_pages(data, COLORIZABLE, 16, force=True)
    assert all(page.copy is not None for page in pages)
    assert color_pages(Orange(), open_pages(data, COLORIZABLE, 16)) == {}


def test_limits_hold_for_each_page_and_for_all() -> None:
    data, one = tiff(GREY, GREY), GREY.size
    with pytest.raises(PhotoRefused) as refused:
        open_pages(data, PhotoLimits(max_pixels=one - 1), 16)
    assert refused.value.reason == Reason.BOMB
    limits = PhotoLimits(max_pixels=one)
    assert len(open_pages(data, limits, 16)) == 2
    assert len(open_pages(data, limits, 16, most_pixels=2 * one)) == 2
    with pytest.raises(PhotoRefused, match="on all pages") as refused:
        open_pages(data, limits, 16, most_pixels=2 * one - 1)
    assert refused.value.reason == Reason.BOMB


def test_a_batch_that_does_not_fit_goes_page_by_page() -> None:
    model = Orange()
    model.fails_with = 2
    pages = open_pages(tiff(GREY, GREY, GREY), COLORIZABLE, model.size)
    assert color_pages(model, pages) == {}
    assert model.passes == [3, 1, 1, 1]
    assert [len(page.colors) for page in pages] == [1, 1, 1]
    model.fails_with = 1
    with pytest.raises(MemoryError):
        colorize_file(model, jpeg(GREY))
