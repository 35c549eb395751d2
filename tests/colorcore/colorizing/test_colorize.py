from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import rgb2lab
from torch import Tensor, nn

from colorcore.colorizing import compose as module
from colorcore.colorizing.network import NetworkColorizer
from colorcore.models import build_model

HALF_LEVEL = 0.26
"""ΔL of rounding R, G and B by half a level each in the same direction: see the test of it."""
GAMUT_EDGE = 0.01
"""ΔL of clipping what is left outside the gamut."""

SIZES = [(64, 96), (33, 47), (32, 32), (1, 1), (1, 2), (2, 1), (3, 200), (200, 3), (10, 700)]


def colorize(network: nn.Module, rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return NetworkColorizer(network, size).colorize(rgb)


class Painter(nn.Module):
    """ab as a function of L_norm (B, 1, H, W); keeps the shapes that it was asked for."""

    def __init__(self, paint: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.paint, self.shapes = paint, []

    def forward(self, L_norm: Tensor) -> dict[str, Tensor]:
        self.shapes.append(tuple(L_norm.shape))
        return {"ab": self.paint(L_norm)}


def grey_painter() -> Painter:
    return Painter(lambda L_norm: L_norm.new_zeros(len(L_norm), 2, *L_norm.shape[2:]))


def vivid_painter() -> Painter:
    """Strong colours that change across the photo; most of them are out of the gamut."""

    def paint(L_norm: Tensor) -> Tensor:
        height, width = L_norm.shape[2:]
        x = torch.linspace(0, 9, width).expand(1, height, width)
        y = torch.linspace(0, 7, height)[None, :, None].expand(1, height, width)
        return 100 * torch.stack([torch.sin(x + L_norm[:, 0]), torch.cos(y)], dim=1)

    return Painter(paint)


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def noise(height: int, width: int, top: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, top, (height, width, 3), dtype=np.uint8)


def lightness(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    return rgb2lab(rgb)[..., 0]


# Lightness


def test_half_a_level_of_each_channel_is_what_rounding_can_do_to_L():
    """On a lattice of all sRGB colours; the worst are dark, L = 8 and about (0, 27, 30)."""
    levels = np.arange(0, 255, 5.0)
    rgb = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    change = lightness((rgb + 0.5) / 255) - lightness(rgb / 255)
    assert 0.25 < change.max() <= HALF_LEVEL


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("painter", [vivid_painter, grey_painter])
def test_the_photo_keeps_its_size_and_its_lightness(
    painter: Callable[[], Painter], size: tuple[int, int]
):
    rgb = photo(*size)
    out = colorize(painter(), rgb, size=32)
    assert out.shape == rgb.shape
    assert out.dtype == np.uint8
    assert np.abs(lightness(out) - lightness(rgb)).max() <= HALF_LEVEL + GAMUT_EDGE


@pytest.mark.parametrize("top", [256, 40])
def test_lightness_stays_for_colours_of_every_kind(top: int):
    """160,000 random pixels, of which the dark ones are the hardest: see HALF_LEVEL."""
    rgb = noise(400, 400, top)
    out = colorize(vivid_painter(), rgb, size=64)
    assert np.abs(lightness(out) - lightness(rgb)).max() <= HALF_LEVEL + GAMUT_EDGE


def test_a_grey_photo_that_stays_grey_is_the_same_photo():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    out = colorize(grey_painter(), grey, size=32)
    assert np.abs(out.astype(int) - grey).max() <= 1


def test_only_the_lightness_of_a_photo_is_used():
    """A photo and its greyscale copy, equal in L, come out alike."""
    rgb = photo(40, 40)
    grey = colorize(grey_painter(), rgb, size=40)
    there, here = (colorize(vivid_painter(), x, size=40).astype(int) for x in (rgb, grey))
    assert np.abs(there - here).mean() < 1.0
    assert np.abs(there - grey).mean() > 10.0


def test_colours_come_out_where_and_as_they_were_predicted():
    """A moderate colour fits into the gamut, so it must be in the result to rounding."""
    painter = Painter(lambda L: torch.tensor([12.0, -9.0])[None, :, None, None].expand(1, 2, 8, 8))
    rgb = np.full((20, 20, 3), 119, np.uint8)
    lab = rgb2lab(colorize(painter, rgb, size=8))
    assert np.abs(lab[..., 1:] - [12.0, -9.0]).max() < 0.5


def test_a_photo_is_colourized_left_on_the_left_and_top_on_the_top():
    def corner(L_norm: Tensor) -> Tensor:
        ab = L_norm.new_zeros(1, 2, *L_norm.shape[2:])
        ab[:, 0, : L_norm.shape[2] // 2, : L_norm.shape[3] // 2] = 25.0
        return ab

    lab = rgb2lab(colorize(Painter(corner), np.full((60, 100, 3), 128, np.uint8), size=16))
    assert lab[:25, :45, 1].min() > 20.0
    assert np.abs(lab[35:, :, 1]).max() < 1.0
    assert np.abs(lab[:, 55:, 1]).max() < 1.0


def test_a_real_model_colourizes_any_size():
    torch.manual_seed(0)
    model = build_model("unet", channels=4, depth=2).eval()
    for size in SIZES:
        rgb = photo(*size)
        assert colorize(model, rgb, size=16).shape == rgb.shape


# What the network sees


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((300, 200), (48, 32)),
        ((200, 300), (32, 48)),
        ((32, 32), (32, 32)),
        ((8, 10), (32, 40)),
        ((1, 1), (32, 32)),
        ((40, 640), (32, 512)),  # 16:1
    ],
)
def test_the_copy_has_the_size_of_a_training_sample(size: tuple[int, int], seen: tuple[int, int]):
    painter = grey_painter()
    colorize(painter, photo(*size), size=32)
    assert painter.shapes == [(1, 1, *seen)]


@pytest.mark.parametrize("size", [(3, 200), (1, 20_000), (20_000, 1)])
def test_the_copy_of_a_very_long_photo_is_no_larger_than_that_of_one_of_16_to_1(
    size: tuple[int, int],
):
    painter = grey_painter()
    assert colorize(painter, photo(*size), size=32).shape == (*size, 3)
    ((*_, height, width),) = painter.shapes
    assert max(height, width) <= 16 * 32
    if min(height, width) > 1:
        assert height / width == pytest.approx(size[0] / size[1], rel=0.15)


def test_the_copy_of_a_thread_is_at_least_a_pixel_wide():
    painter = grey_painter()
    assert colorize(painter, photo(1, 100_000), size=32).shape == (1, 100_000, 3)
    assert painter.shapes[0][2] == 1


# Strip by strip


@pytest.mark.parametrize("size", [(50, 37), (7, 64), (1, 9)], ids=str)
@pytest.mark.parametrize("strip_pixels", [1, 64, 333, 1850])
def test_the_strips_do_not_show(
    size: tuple[int, int], strip_pixels: int, monkeypatch: pytest.MonkeyPatch
):
    """To the last level: the vector and the scalar path of pow may differ in the last bit."""
    rgb = noise(*size)
    whole = colorize(vivid_painter(), rgb, size=16)
    monkeypatch.setattr(module, "STRIP_PIXELS", strip_pixels)
    strips = colorize(vivid_painter(), rgb, size=16)
    different = whole.astype(int) - strips
    assert np.abs(different).max() <= 1
    assert (different != 0).mean() < 0.01
