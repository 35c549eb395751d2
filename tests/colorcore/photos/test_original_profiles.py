"""Profiles at 16 bits and of grey, against LittleCMS, arithmetic, and pairs of real photos."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import color

from colorcore.photos.original import profiles
from colorcore.photos.original.profiles import cms_srgb, pixels_to_srgb, srgb_profile
from colorcore.photos.original.read import read_original
from colorcore.photos.refusal import PhotoLimits
from tests.colorcore.photos.photo_files import (
    GREY,
    LINEAR,
    RAMP16,
    SCENE,
    SRGB_D50,
    difference,
    encode,
    fixed,
    gamma,
    icc_profile,
    rgb_profile,
    tiff,
)

WIDE_D50 = [(0.67346, 0.27904, -0.00193), (0.16566, 0.67534, 0.02998), (0.12505, 0.04562, 0.79686)]
"""The primaries of ITU-R BT.2020, adapted to D50 (Bradford)."""
PROFILES = {
    "linear": LINEAR,
    "gamma 1.8": rgb_profile(SRGB_D50, gamma(1.8)),
    "wide": rgb_profile(WIDE_D50, gamma(2.2)),
    "wide linear": rgb_profile(WIDE_D50, gamma(1.0)),
    "three curves": rgb_profile(SRGB_D50, gamma(1.8), gamma(2.0), gamma(2.4)),
    "table": rgb_profile(
        WIDE_D50,
        b"curv"
        + struct.pack(">4xI", 1024)
        + (np.linspace(0, 1, 1024) ** 1.8 * 65535).astype(">u2").tobytes(),
    ),
    # A kind of curve that only LittleCMS converts.
    "other": rgb_profile(SRGB_D50, b"para" + bytes(4) + b"\0\1\0\0" + fixed(1.8, 1.0, 0.0)),
}
NOISE = np.random.default_rng(0).integers(0, 65536, (200, 300, 3)).astype(np.uint16)
SMOOTH = SCENE.astype(np.uint16) * np.uint16(257)


def only(data):
    (original,) = read_original(data, limits=PhotoLimits(min_side=1))
    return original.pixels


def encode_srgb(v):
    v = np.clip(v, 0.0, 1.0)
    return np.where(v > 0.0031308, 1.055 * v ** (1 / 2.4) - 0.055, 12.92 * v)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("picture", [NOISE, SMOOTH], ids=["noise", "smooth"])
def test_deep_colours_are_littlecmss(name, picture):
    """A stored profile rounds sRGB's primaries to 16 bits, which shows near black."""
    reference = cms_srgb(picture, PROFILES[name], "RGB")
    converted = pixels_to_srgb(picture.copy(), PROFILES[name])
    assert converted.dtype == np.uint16
    assert difference(converted, reference) <= 64


def colorants(source):
    profile = ImageCms.ImageCmsProfile(source).profile
    each = (profile.red_colorant, profile.green_colorant, profile.blue_colorant)
    return np.array([xyz for xyz, _ in each]).T


@pytest.mark.parametrize(("name", "power"), [("linear", 1.0), ("gamma 1.8", 1.8), ("wide", 2.2)])
def test_deep_colours_are_within_two_levels_of_arithmetic(name, power):
    power = round(power * 256) / 256  # as the profile stores it
    srgb, own = ImageCms.createProfile("sRGB"), io.BytesIO(PROFILES[name])
    matrix = np.linalg.inv(colorants(srgb)) @ colorants(own)
    exact = encode_srgb((NOISE / 65535.0) ** power @ matrix.T) * 65535.0
    converted = pixels_to_srgb(NOISE.copy(), PROFILES[name])
    assert np.abs(converted - exact).max() <= 2


def test_every_level_of_the_tables_is_within_two_levels():
    """All greys of a linear profile, whose conversion is the encoding alone."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    shaper = profiles.DeepShaper(
        np.repeat(np.linspace(0, 1, 65536, dtype=np.float32)[None, :, None], 3, 2),
        np.eye(3, dtype=np.float32),
    )
    converted = shaper(np.dstack([ramp] * 3))
    exact = encode_srgb(ramp / 65535.0) * 65535.0
    assert np.abs(converted[..., 0] - exact).max() <= 2


def test_srgb_changes_nothing():
    assert pixels_to_srgb(NOISE, srgb_profile()) is NOISE
    assert pixels_to_srgb(NOISE, None) is NOISE
    assert pixels_to_srgb(NOISE, b"no profile" * 50) is NOISE


def test_large_pictures_are_converted_in_bands(monkeypatch):
    whole = pixels_to_srgb(NOISE.copy(), PROFILES["wide"])
    monkeypatch.setattr(profiles, "BAND_PIXELS", 1000)
    np.testing.assert_array_equal(pixels_to_srgb(NOISE.copy(), PROFILES["wide"]), whole)


def test_the_profile_of_deep_files_is_used():
    expected = pixels_to_srgb(SMOOTH.copy(), PROFILES["wide"])
    data = tiff(SMOOTH, photometric="rgb", iccprofile=PROFILES["wide"], compression="lzw")
    np.testing.assert_array_equal(only(data), expected)


@pytest.mark.parametrize("power", [1.0, 1.8])
def test_grey_profiles(power):
    icc = icc_profile(b"GRAY", {"kTRC": gamma(power)})
    power = round(power * 256) / 256
    exact = encode_srgb((RAMP16 / 65535.0) ** power)
    data = tiff(RAMP16, photometric="minisblack", iccprofile=icc)
    assert np.abs(only(data) - exact * 65535.0).max() < 16
    exact = encode_srgb((GREY / 255.0) ** power)
    for data in (encode("PNG", GREY, icc_profile=icc), encode("TIFF", GREY, icc_profile=icc)):
        converted = only(data)
        assert converted.ndim == 2
        assert np.abs(converted - exact * 255.0).max() <= 1
    jpeg = encode("JPEG", GREY, quality=97, icc_profile=icc)
    plain = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert np.abs(only(jpeg) - encode_srgb((plain / 255.0) ** power) * 255.0).max() <= 2


def test_grey_with_a_profile_of_colours():
    exact = encode_srgb((GREY / 255.0) ** 1.8)
    converted = only(encode("TIFF", GREY, icc_profile=PROFILES["gamma 1.8"]))
    assert converted.ndim == 2
    assert np.abs(converted - exact * 255.0).max() <= 1
    tinted = only(encode("TIFF", GREY, icc_profile=PROFILES["three curves"]))
    assert tinted.ndim == 3


def test_the_embedded_profile_is_srgb_and_has_no_date():
    profile = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
    assert ImageCms.getProfileDescription(profile).startswith("sRGB")
    assert srgb_profile()[24:36] == struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    transform = ImageCms.buildTransform(
        profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent.PERCEPTUAL
    )
    converted = ImageCms.applyTransform(Image.fromarray(SCENE), transform)
    assert difference(np.asarray(converted), SCENE) <= 1


# -- pairs of real photos --------------------------------------------------------------------------

TESTDATA = Path("/usr/share/libjxl-testdata/external")
_PAIRS = sorted(
    (wide, narrow)
    for folder in ("raw.pixls", "wesaturate/64px")
    for wide in (TESTDATA / folder).glob("*_*.png")
    if (match := re.match(r"(.+)_(709|2020|acescg)", wide.name))
    for narrow in wide.parent.glob(f"{match[1]}_srgb8*.png")
)
DIFFERENT = "Nikon-D300-12bit"
"""The two files of this photo were not made from the same pixels: their noise is different."""


@pytest.mark.skipif(not _PAIRS, reason="Debian's libjxl-testdata is not installed")
def test_there_are_all_pairs():
    assert len(_PAIRS) == 16


@pytest.mark.parametrize(
    ("wide", "narrow"),
    _PAIRS or [pytest.param(None, None, marks=pytest.mark.skip("libjxl-testdata is missing"))],
    ids=lambda path: Path(path).stem if path else "none",
)
def test_wide_gamuts_give_the_same_colours(wide, narrow):
    """16 bits of a wide gamut and 8 bits of sRGB, of the same photo, by other programs.

    Rounding to 8 bits is a difference of up to 0.9 by itself, in dark colours; colours outside
    sRGB have been clipped by those programs and by us.
    """
    one, other = only(wide.read_bytes()), only(narrow.read_bytes())
    assert (one.dtype, other.dtype) == (np.uint16, np.uint8)
    apart = color.deltaE_ciede2000(color.rgb2lab(one / 65535.0), color.rgb2lab(other / 255.0))
    if wide.name.startswith(DIFFERENT):
        assert apart.mean() < 1
        return
    inside = ((other > 0) & (other < 255)).all(-1)
    assert apart.mean() < 0.4
    assert np.percentile(apart, 99) < 1
    assert apart[inside].max(initial=0) < 1.05
