"""``colorcore.load(...).colorize``: arrays and Pillow images, one or several, and its settings."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from skimage.color import rgb2lab
from torch import nn

import colorcore
from colorcore.checkpoints.checkpoint import CheckpointError
from colorcore.color.lab import lab_of_srgb
from colorcore.colorizing.colorizer import Colorizer
from colorcore.colorizing.network import NetworkColorizer
from colorcore.decoding import Decoding
from colorcore.models import build_model


class Sunset(nn.Module):
    """Yellow where sRGB can show it, neither dark nor light; keeps the shapes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, L_norm: torch.Tensor) -> dict[str, torch.Tensor]:
        self.shapes.append(tuple(L_norm.shape))
        share = (L_norm + 1) / 2
        return {"ab": torch.cat([6 * share * (1 - share), 30 * share * (1 - share)], dim=1)}


@pytest.fixture
def sunset() -> NetworkColorizer:
    return NetworkColorizer(Sunset(), 16)


def ramp(height: int = 24, width: int = 40, kind: type = np.uint8) -> NDArray:
    """A grey gradient that fills the range of its type."""
    top = 1.0 if np.issubdtype(kind, np.floating) else np.iinfo(kind).max
    return (np.linspace(0, top, height * width).reshape(height, width)).astype(kind)


def eight(picture: NDArray) -> NDArray[np.uint8]:
    if np.issubdtype(picture.dtype, np.floating):
        return np.rint(picture * 255).astype(np.uint8)
    return picture if picture.dtype == np.uint8 else np.rint(picture / 257).astype(np.uint8)


# Arrays


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_an_array_keeps_its_type_and_its_lightness(sunset, kind: type, channels: int) -> None:
    grey = ramp(kind=kind)
    given = grey if channels == 0 else np.repeat(grey[..., None], channels, axis=2)
    before = given.copy()
    picture = sunset.colorize(given)
    assert picture.shape == (24, 40, 3)
    assert picture.dtype == kind
    assert np.array_equal(given, before), "the image given was changed"
    lab, L = rgb2lab(eight(picture)), rgb2lab(eight(np.dstack([grey] * 3)))[..., 0]
    assert np.abs(lab[..., 0] - L).max() < 0.6
    assert lab[12, 20, 2] > 4


def test_16_bits_are_kept(sunset) -> None:
    """Neighbours that differ by one level of 16 bits: 8 bits cannot tell them apart."""
    levels = np.arange(30_000, 30_000 + 24 * 40, dtype=np.uint16).reshape(24, 40)
    assert len(np.unique(sunset.colorize(levels)[..., 1])) > 500


def test_alpha_stays_as_it_is(sunset) -> None:
    given = np.dstack([ramp(), ramp(), ramp(), ramp()[::-1]])
    picture = sunset.colorize(given)
    assert picture.shape == given.shape
    assert np.array_equal(picture[..., 3], given[..., 3])
    assert np.array_equal(picture[..., :3], sunset.colorize(given[..., :3]))


def test_views_that_are_not_contiguous_are_images_too(sunset) -> None:
    grey = ramp()
    assert np.array_equal(sunset.colorize(grey[::-1, ::2]), sunset.colorize(grey[::-1, ::2].copy()))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("photo.jpg", TypeError, "expected an array or a Pillow image, got str; open a file"),
        (torch.zeros(3, 8, 8), TypeError, "got Tensor"),
        (np.full((8, 8), 1.5), ValueError, "expected floats within 0..1, got 1.5 to 1.5"),
        (np.full((8, 8), np.nan), ValueError, "expected floats within 0..1"),
        (np.zeros((8, 8), np.int64), ValueError, "expected a photo .* convert it to uint8$"),
        (np.zeros((8, 8), bool), ValueError, "expected a photo .* convert it to uint8$"),
        (np.zeros((2, 3, 8, 8), np.uint8), ValueError, "expected a photo .* as a list$"),
        (np.zeros((0, 8), np.uint8), ValueError, "expected a photo .* has no pixels$"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, "expected a photo .* without alpha$"),
    ],
)
def test_what_is_no_image_is_refused(sunset, image: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sunset.colorize(image)


# Pillow


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK", "I;16"])
def test_a_pillow_image_becomes_rgb(sunset, mode: str) -> None:
    image = Image.fromarray(ramp(kind=np.uint16 if mode == "I;16" else np.uint8))
    picture = sunset.colorize(image if image.mode == mode else image.convert("RGB").convert(mode))
    assert (picture.mode, picture.size) == ("RGB", (40, 24))
    if mode not in {"1", "P", "CMYK"}:  # which have other lightness than the ramp
        assert np.abs(np.asarray(picture).astype(int) - sunset.colorize(ramp())).max() <= 2


@pytest.mark.parametrize("mode", ["LA", "RGBA", "La"])
def test_transparency_of_a_pillow_image_is_kept(sunset, mode: str) -> None:
    alpha = Image.fromarray(ramp()[::-1])
    image = Image.merge("LA", [Image.fromarray(ramp()), alpha])
    picture = sunset.colorize(image.convert(mode))
    assert picture.mode == "RGBA"
    assert np.array_equal(np.asarray(picture)[..., 3], np.asarray(alpha))


def test_a_photo_from_a_camera_is_turned_upright_and_keeps_its_exif(sunset) -> None:
    image = Image.fromarray(ramp())
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker"
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95, dpi=(300, 300))
    picture = sunset.colorize(Image.open(file))
    assert picture.size == (24, 40)
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=picture.info["exif"], dpi=picture.info["dpi"])
    again = Image.open(out)
    assert again.getexif()[271] == "Maker"
    assert again.getexif().get(274, 1) == 1
    assert again.info["dpi"] == (300, 300)


def test_colours_of_another_profile_are_converted(sunset) -> None:
    """Lightness is that which the profile says, and the picture says that it is sRGB."""
    lab = ImageCms.createProfile("sRGB")
    profile = ImageCms.ImageCmsProfile(lab).tobytes()
    image = Image.fromarray(ramp())
    plain = np.asarray(sunset.colorize(image))
    image.info["icc_profile"] = profile
    picture = sunset.colorize(image.convert("RGB"))
    assert np.abs(np.asarray(picture).astype(int) - plain).max() <= 1
    written = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(written)


def test_a_mode_without_colours_of_a_photo_is_refused(sunset) -> None:
    with pytest.raises(ValueError, match="got mode F; convert the image to RGB"):
        sunset.colorize(Image.new("F", (8, 8)))


# Several


def test_a_list_gives_a_list_in_batches_of_one_shape() -> None:
    network = Sunset()
    model = NetworkColorizer(network, 16)
    images = [ramp(24, 40), ramp(40, 24), *[ramp(48, 80)] * 9, Image.fromarray(ramp(24, 40))]
    pictures = model.colorize(images)
    assert [type(picture) for picture in pictures] == [np.ndarray] * 11 + [Image.Image]
    assert [picture.shape for picture in pictures[:3]] == [(24, 40, 3), (40, 24, 3), (48, 80, 3)]
    assert sorted(network.shapes) == [(1, 1, 27, 16), (3, 1, 16, 27), (8, 1, 16, 27)]
    for image, picture in zip(images, pictures, strict=True):
        alone = model.colorize(image)
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(alone)).max() <= 1


def test_an_empty_list_gives_an_empty_list(sunset) -> None:
    assert sunset.colorize([]) == []


# Settings


def test_strength_and_chroma(sunset) -> None:
    def chroma(picture: NDArray[np.uint8]) -> float:
        return float(np.hypot(*np.moveaxis(rgb2lab(picture)[..., 1:], -1, 0)).mean())

    grey = ramp()
    full = chroma(sunset.colorize(grey))
    assert chroma(sunset.colorize(grey, strength=0.5)) == pytest.approx(full / 2, rel=0.05)
    assert chroma(sunset.colorize(grey, strength=0.0)) < 0.1
    assert chroma(sunset.colorize(grey, chroma=0.5)) == pytest.approx(full / 2, rel=0.05)
    assert sunset.decoding.chroma == 1.0, "a setting of one call stayed"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.5}, "expected a strength within 0..1, got 1.5"),
        ({"strength": float("nan")}, "expected a strength within 0..1"),
        ({"chroma": 0.0}, "chroma must be above 0"),
        ({"temperature": 0.4}, "temperature needs a model that predicts bins, Sunset does not"),
    ],
)
def test_settings_out_of_range_are_refused(sunset, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sunset.colorize(ramp(), **settings)


def test_versions_need_bins(sunset) -> None:
    assert sunset.with_versions(1).versions == 1
    with pytest.raises(ValueError, match="predicts bins for 3 versions, Sunset does not"):
        sunset.with_versions(3)


def test_a_network_that_leaves_lightness_at_a_size_of_its_own() -> None:
    """predict_ab is the network itself: the same ab as in torch, at any size."""
    network = build_model("unet", channels=8, depth=2).eval()
    L = np.random.default_rng(0).uniform(0, 100, (2, 1, 24, 40)).astype(np.float32)
    model = NetworkColorizer(network, 16, Decoding(chroma=1.2))
    with torch.inference_mode():
        expected = 1.2 * network(torch.from_numpy(L) / 50 - 1)["ab"]
    np.testing.assert_allclose(model.predict_ab(L), expected, atol=1e-4)


# Loading


def test_the_shipped_model_loads_by_name_and_colours_a_photo() -> None:
    from skimage.data import coffee

    model = colorcore.load("start", device="cpu")
    assert isinstance(model, Colorizer)
    assert (model.device, model.predicts_bins) == ("cpu", model.decoding.temperature is not None)
    photo = coffee()
    picture = model.colorize(photo)
    assert picture.shape == photo.shape
    ab = rgb2lab(picture)[..., 1:]
    assert np.hypot(ab[..., 0], ab[..., 1]).mean() > 3


def test_a_place_without_a_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint folder") as caught:
        colorcore.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_front_door_opens_what_it_lists() -> None:
    for name in colorcore.__all__:
        assert callable(getattr(colorcore, name)), name
        assert name in dir(colorcore)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        colorcore.colour  # noqa: B018


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, colorcore\n"
        "heavy = {'torch', 'numpy', 'ray', 'mlflow', 'pipelines', 'cv2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# CIELAB without torch


def test_lab_of_srgb_agrees_with_scikit_image() -> None:
    rgb = np.random.default_rng(0).uniform(0, 1, (40, 50, 3))
    rgb[0] = np.linspace(0, 0.05, 50)[:, None]  # the linear parts of both curves
    np.testing.assert_allclose(lab_of_srgb(rgb), np.moveaxis(rgb2lab(rgb), -1, 0), atol=2e-3)


@pytest.mark.parametrize("place", [None, 3, b"start"])
def test_what_is_no_place_of_a_model_is_refused(place: object) -> None:
    with pytest.raises(TypeError, match="expected a model's name, folder or file, got "):
        colorcore.load(place)  # type: ignore[arg-type]
