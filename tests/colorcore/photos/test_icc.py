"""ICC profiles against LittleCMS, published matrices and profiles written out by hand."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from colorcore.photos import icc as icc_module
from colorcore.photos.read import read_photo
from tests.colorcore.photos.photo_files import (
    ALPHA,
    GREY,
    HEIGHT,
    LINEAR,
    RGBA,
    SCENE,
    SRGB_D50,
    WIDTH,
    difference,
    encode,
    fixed,
    gamma,
    icc_profile,
    over_white,
    pillow,
    rgb_profile,
    three,
)

P3_D50 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
SRGB_CURVE = (
    b"para" + bytes(4) + b"\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)


def srgb_decode(rgb):
    v = rgb / 255.0
    return np.where(v > 0.04045, ((v + 0.055) / 1.055) ** 2.4, v / 12.92)


def srgb_encode(light):
    v = np.clip(light, 0.0, 1.0)
    return np.rint(255 * np.where(v > 0.0031308, 1.055 * v ** (1 / 2.4) - 0.055, 12.92 * v))


# CSS Color Module Level 4, sample code: linear Display P3 -> XYZ (D65) -> linear sRGB.
P3_TO_SRGB = np.array(
    [
        [1.2249401762805598, -0.22494017628055996, 0.0],
        [-0.042056954709688163, 1.0420569547096881, 0.0],
        [-0.019637554590334432, -0.078636045550631889, 1.0982736001409663],
    ]
)
SWAPPED = rgb_profile(SRGB_D50[::-1], SRGB_CURVE)
TABLE = b"curv" + struct.pack(">4xI", 1024)
TABLE += (np.linspace(0, 1, 1024) ** 1.8 * 65535).astype(">u2").tobytes()
SOFT = b"para" + bytes(4) + b"\0\0\0\0" + fixed(1.8)
OTHER = b"para" + bytes(4) + b"\0\1\0\0" + fixed(1.8, 1.0, 0.0)  # a kind that LittleCMS converts
IDENTITY = b"curv" + bytes(8)

PROFILES = {
    "swapped": (SWAPPED, lambda rgb: rgb[..., ::-1]),
    "linear": (LINEAR, lambda rgb: srgb_encode(rgb / 255.0)),
    "identity": (rgb_profile(SRGB_D50, IDENTITY), lambda rgb: srgb_encode(rgb / 255.0)),
    "display p3": (
        rgb_profile(P3_D50, SRGB_CURVE),
        lambda rgb: srgb_encode(srgb_decode(rgb) @ P3_TO_SRGB.T),
    ),
    "1.8": (rgb_profile(SRGB_D50, gamma(1.8)), lambda rgb: srgb_encode((rgb / 255.0) ** 1.8)),
    "table": (rgb_profile(SRGB_D50, TABLE), lambda rgb: srgb_encode((rgb / 255.0) ** 1.8)),
    "parametric": (rgb_profile(SRGB_D50, SOFT), lambda rgb: srgb_encode((rgb / 255.0) ** 1.8)),
    "three curves": (
        rgb_profile(SRGB_D50, gamma(1.0), SOFT, SRGB_CURVE),
        lambda rgb: np.dstack(
            [
                srgb_encode(rgb[..., 0] / 255.0),
                srgb_encode((rgb[..., 1] / 255.0) ** 1.8),
                rgb[..., 2],
            ]
        ),
    ),
    "left to littlecms": (
        rgb_profile(SRGB_D50, OTHER),
        lambda rgb: srgb_encode((rgb / 255.0) ** 1.8),
    ),
}


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_converted_to_srgb(name):
    icc, convert = PROFILES[name]
    expected = convert(SCENE)
    assert difference(SCENE, expected) > 15
    for fmt, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        assert difference(read_photo(encode(fmt, icc_profile=icc, **options)).rgb, expected) <= 2
    data = encode("JPEG", icc_profile=icc, quality=95)
    converted = read_photo(data).rgb
    assert difference(converted, convert(pillow(data))) <= 9  # decoders differ by a level
    assert np.abs(converted - convert(pillow(data))).mean() < 0.5


@pytest.mark.parametrize("name", PROFILES)
def test_our_tables_agree_with_littlecms(name):
    icc = PROFILES[name][0]
    conversion = icc_module.conversion(icc)
    assert (conversion.shaper is None) == (name == "left to littlecms")
    cube = np.indices((32, 32, 32)).reshape(3, 256, 128).transpose(1, 2, 0) * 255 // 31
    cube = np.ascontiguousarray(cube.astype(np.uint8))
    theirs = ImageCms.profileToProfile(
        Image.fromarray(cube),
        ImageCms.ImageCmsProfile(BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    assert difference(icc_module.convert(cube, icc), np.asarray(theirs)) <= 2


def test_tables_that_disagree_with_littlecms_are_not_used(monkeypatch):
    icc = rgb_profile(P3_D50, gamma(2.1))
    wrong = icc_module.Shaper(np.arange(256, dtype=np.uint16), np.eye(3, dtype=np.float32))
    monkeypatch.setattr(icc_module, "_shaper", lambda *_: wrong)
    assert icc_module.conversion(icc).shaper is None


def test_srgb_by_any_name_changes_nothing():
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (ours, rgb_profile(SRGB_D50, SRGB_CURVE)):
        assert icc_module.conversion(icc) is None
        assert difference(read_photo(encode("PNG", icc_profile=icc)).rgb, SCENE) == 0


@pytest.mark.parametrize(
    "icc",
    [
        b"garbage",
        b"garbage" * 100,
        LINEAR[:200],
        LINEAR[:131],
        LINEAR[:400] + bytes(len(LINEAR) - 400),
        LINEAR.replace(b"RGB ", b"CMYK"),
        LINEAR.replace(b"RGB ", b"GRAY"),
        LINEAR.replace(b"RGB ", b"LUV "),
        LINEAR.replace(b"rTRC", b"xTRC"),
    ],
)
def test_broken_profiles_are_ignored(icc):
    jpeg = encode("JPEG", quality=95)
    with_profile = encode("JPEG", quality=95, icc_profile=icc)
    assert difference(read_photo(with_profile).rgb, read_photo(jpeg).rgb) == 0
    assert difference(read_photo(encode("PNG", icc_profile=icc)).rgb, SCENE) == 0


def test_a_profile_in_several_segments():
    """Profiles over 64 KB are split into numbered APP2 segments, in any order."""
    icc = rgb_profile(SRGB_D50[::-1], SRGB_CURVE)
    parts = [icc[:200], icc[200:333], icc[333:]]
    jpeg = encode("JPEG", quality=97, subsampling=0)
    segments = [
        b"\xff\xe2"
        + struct.pack(">H", 16 + len(part))
        + b"ICC_PROFILE\0"
        + bytes([i + 1, 3])
        + part
        for i, part in enumerate(parts)
    ]
    data = jpeg[:2] + segments[2] + segments[0] + segments[1] + jpeg[2:]
    assert difference(read_photo(data).rgb, SCENE[..., ::-1]) <= 6


def test_profiles_of_grey_photos():
    grey = icc_profile(b"GRAY", {"kTRC": gamma(1.0)})
    expected = three(srgb_encode(GREY / 255.0))
    alpha = np.full_like(GREY, 255)
    assert difference(read_photo(encode("PNG", GREY, icc_profile=grey)).rgb, expected) <= 2
    with_alpha = encode(
        "PNG", Image.merge("LA", [Image.fromarray(p) for p in (GREY, alpha)]), icc_profile=grey
    )
    assert difference(read_photo(with_alpha).rgb, expected) <= 2
    for icc in (grey, LINEAR):
        data = encode("JPEG", GREY, quality=97, icc_profile=icc)
        expected = srgb_encode(pillow(data) / 255.0)
        assert difference(read_photo(data).rgb, expected) <= 2


def test_black_point_is_compensated():
    """A display whose black glows: the darkest value is black, and white stays white."""
    glow = b"curv" + struct.pack(">4xI", 1024)
    glow += ((0.02 + 0.98 * np.linspace(0, 1, 1024) ** 2.2) * 65535).astype(">u2").tobytes()
    picture = three(np.tile(np.linspace(0, 255, WIDTH), (HEIGHT, 1)))
    rgb = read_photo(encode("PNG", picture, icc_profile=rgb_profile(SRGB_D50, glow))).rgb
    assert rgb[:, 0].max() <= 3
    assert rgb[:, -1].min() >= 253


def test_profile_of_another_colour_space_is_ignored():
    plain, odd = (
        encode("JPEG", SCENE, "CMYK", quality=97, icc_profile=icc) for icc in (None, LINEAR)
    )
    assert difference(read_photo(odd).rgb, read_photo(plain).rgb) == 0


def test_profile_of_a_transparent_photo_is_applied_before_white():
    data = encode("PNG", RGBA, icc_profile=SWAPPED)
    assert difference(read_photo(data).rgb, over_white(SCENE[..., ::-1], ALPHA)) <= 2


def test_profile_of_a_cmyk_photo():
    """A press whose cyan ink prints Lab (60, 50, 40) and whose black prints black."""
    lab = np.zeros((2, 2, 2, 2, 3))
    lab[..., 0] = 100.0
    lab[1] = (60.0, 50.0, 40.0)
    lab[..., 1, :] = (0.0, 0.0, 0.0)
    grid = np.rint(np.stack([lab[..., 0] * 2.55, lab[..., 1] + 128, lab[..., 2] + 128], -1))
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + b"\4\3\2\0" + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += ramp * 4 + grid.astype(np.uint8).tobytes() + ramp * 3
    icc = icc_profile(b"CMYK", {"A2B0": lut}, kind=b"prtr", pcs=b"Lab ")

    # CIELAB relative to D50 -> XYZ -> sRGB, the profile's primaries being sRGB's adapted to D50.
    f = np.array([76 / 116 + 50 / 500, 76 / 116, 76 / 116 - 40 / 200])
    xyz = f**3 * (0.9642, 1.0, 0.8249)
    printed = srgb_encode(np.linalg.solve(np.array(SRGB_D50).T, xyz))
    inks = np.zeros((64, 96, 4), np.uint8)
    inks[:, 32:64, 0] = 255
    inks[:, 64:, 3] = 255
    for fmt, options in (("TIFF", {}), ("JPEG", {"quality": 98})):
        picture = Image.fromarray(inks, "CMYK")
        rgb = read_photo(encode(fmt, picture, icc_profile=icc, **options)).rgb
        assert np.abs(rgb[32, 16] - np.array([255, 255, 255.0])).max() <= 2
        assert np.abs(rgb[32, 48] - printed).max() <= 4
        assert rgb[32, 80].max() <= 2
