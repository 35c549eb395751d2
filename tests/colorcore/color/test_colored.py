"""Photos that have colours, and the grey, toned and aged prints that have none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage import color, data
from sklearn.datasets import load_sample_images

from colorcore.color.colored import PAPER_SPREAD, SIDE, is_colored, photo_hues
from colorcore.color.colorfulness import SINGLE_HUE_RESIDUAL, HueSpread
from tests.colorcore.color.toned import SCANS, TONED, grey, through_jpeg

NAMES = ("astronaut", "coffee", "chelsea", "china", "flower")


@pytest.fixture(scope="module")
def photos():
    china, flower = load_sample_images().images
    skimage = {name: getattr(data, name)() for name in NAMES[:3]}
    return {**skimage, "china": china, "flower": flower}


def sixteen_bits(picture):
    """The same levels with 16 bits, a little off, as scans are."""
    noise = np.random.default_rng(0).integers(-60, 60, picture.shape)
    return np.clip(picture.astype(np.int64) * 257 + noise, 0, 65535).astype(np.uint16)


def reduced(picture, width: int):
    """``width`` pixels wide; 12 megapixels are 4,000 wide."""
    height = round(picture.shape[0] * width / picture.shape[1])
    kind = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(picture, (width, height), interpolation=kind)


@pytest.mark.parametrize("name", NAMES)
def test_colour_photos_are_colored(photos, name: str):
    photo = photos[name]
    for picture in (photo, through_jpeg(photo, 60), photo[:, ::-1], photo.transpose(1, 0, 2)):
        assert is_colored(picture)
        assert is_colored(sixteen_bits(picture))
    for width in (64, 200, 2000):
        assert is_colored(reduced(photo, width)), width


@pytest.mark.parametrize("rendering", {**SCANS, **TONED})
def test_grey_toned_and_aged_prints_are_not(photos, rendering: str):
    for name, photo in photos.items():
        picture = {**SCANS, **TONED}[rendering](photo)
        assert not is_colored(picture), name
        assert not is_colored(sixteen_bits(picture)), name
        for quality in (60, 75, 90):
            assert not is_colored(through_jpeg(picture, quality)), (name, quality)
        assert not is_colored(through_jpeg(reduced(picture, 1500), 60)), name


def test_grey_photos_of_one_channel_have_no_chroma(photos):
    for dtype in (np.uint8, np.uint16):
        photo = photos["china"][..., 0].astype(dtype)
        assert photo_hues(photo) == HueSpread(coloured=0, spread=0, one_sided=0, residual=0)
        assert not is_colored(photo)


def test_area_decides_about_a_stamp_on_a_grey_photo(photos):
    """An independent count of the pixels with chroma, in scikit-image's LAB."""
    plain = grey(photos["china"])
    for share, expected in ((0.004, False), (0.05, True)):
        stamped = plain.copy()
        side = round((share * plain.shape[0] * plain.shape[1]) ** 0.5)
        stamped[20 : 20 + side, 30 : 30 + side] = (200, 30, 40)
        chroma = np.hypot(*np.moveaxis(color.rgb2lab(stamped)[..., 1:], -1, 0))
        assert (chroma > 6).mean() == pytest.approx(share, rel=0.05)
        assert photo_hues(stamped).coloured == pytest.approx(share, rel=0.2)
        assert is_colored(stamped) is expected


def test_a_red_disc_on_grey_is_colour_and_a_red_veil_is_not():
    """One hue each; the disc's chroma is one of a thing, the veil's one of the paper."""
    y, x = np.mgrid[:300, :400]
    plain = np.repeat((60 + 40 * np.sin(x / 30) * np.cos(y / 20) + y / 4)[..., None], 3, axis=2)
    disc = plain.astype(np.uint8)
    cv2.circle(disc, (290, 150), 80, (220, 60, 60), -1)
    veil = (plain * (1 - (0.2 + 0.5 * x[..., None] / 400) * [0, 0.5, 0.5])).astype(np.uint8)
    assert photo_hues(disc).spread < PAPER_SPREAD
    assert photo_hues(veil).spread < PAPER_SPREAD
    assert photo_hues(veil).residual > SINGLE_HUE_RESIDUAL
    assert is_colored(disc)
    assert not is_colored(veil)


@pytest.mark.parametrize("name", NAMES)
def test_the_measure_of_a_large_photo_is_that_of_its_small_copy(photos, name: str):
    """12 megapixels are sampled; the mean over all pixels is the reference."""
    large = reduced(photos[name], 4000)
    height, width = large.shape[:2]
    scale = SIDE / max(height, width)
    size = round(width * scale), round(height * scale)
    mean = cv2.resize(large, size, interpolation=cv2.INTER_AREA)
    found, expected = photo_hues(large), photo_hues(mean)
    assert found.coloured == pytest.approx(expected.coloured, abs=0.01)
    for field in ("spread", "one_sided", "residual"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=0.05), field


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 20_000), (257, 256)])
def test_photos_of_any_size_are_judged(shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16):
        picture = rng.integers(0, 250, (*shape, 3)).astype(dtype)
        assert isinstance(is_colored(picture), bool)
        assert not is_colored(np.repeat(picture[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_wrong_calls(wrong):
    with pytest.raises(ValueError, match=r"expected a photo \(H, W\) or \(H, W, 3\), uint8 or"):
        is_colored(wrong)
