"""Photos written like their originals: depth, quality, transparency, and the same bytes."""

import io
from dataclasses import replace

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, JpegImagePlugin, features

from colorcore.photos.jpeg import jpeg_quality
from colorcore.photos.original.encode import Page, nearest_quality
from colorcore.photos.original.metadata import Metadata
from colorcore.photos.original.profiles import srgb_profile
from colorcore.photos.original.read import read_original
from colorcore.photos.write import (
    COLORIZED,
    DRAWN,
    ENCODED_SUFFIXES,
    EncoderLimitError,
    encode_pages,
    encode_picture,
    format_for,
    made_by,
)
from tests.colorcore.photos.photo_files import (
    ALPHA,
    GREY,
    PALETTE,
    RAMP16,
    RGBA,
    SCENE,
    SCENE16,
    difference,
    encode,
    exif,
    opencv,
    over_white,
)

NOISE16 = np.random.default_rng(1).integers(0, 65536, (71, 83, 3)).astype(np.uint16)
NOISE_ALPHA = np.random.default_rng(2).integers(0, 65536, (71, 83)).astype(np.uint16)
SUFFIXES = [suffix for suffix in ENCODED_SUFFIXES if suffix != ".avif" or features.check("avif")]


def only(data):
    (original,) = read_original(data)
    return original


# -- lossless formats ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [None, NOISE_ALPHA])
@pytest.mark.parametrize("channels", [1, 3])
def test_pngs_and_tiffs_are_exact_for_second_readers(bits, alpha, channels):
    pixels = NOISE16 if channels == 3 else NOISE16[..., 0].copy()
    if bits == 8:
        pixels = (pixels >> 8).astype(np.uint8)
        alpha = None if alpha is None else (alpha >> 8).astype(np.uint8)
    whole = pixels if alpha is None else np.dstack([pixels, alpha])
    data = encode_picture(pixels, ".tif", alpha=alpha)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(file.pages[0].asarray(), whole)
        assert file.pages[0].compression == 8
        assert file.pages[0].tags[34675].value == srgb_profile()
    data = encode_picture(pixels, ".png", alpha=alpha)
    decoded = imagecodecs.png_decode(data)
    if channels == 1 and alpha is not None:  # OpenCV has no grey with alpha
        whole = np.dstack([pixels, pixels, pixels, alpha])
    np.testing.assert_array_equal(decoded, whole)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == srgb_profile()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
@pytest.mark.parametrize("pixels", [NOISE16, RAMP16, SCENE, GREY], ids=["16", "16g", "8", "8g"])
def test_round_trips(suffix, pixels):
    original = only(encode_picture(pixels, suffix))
    np.testing.assert_array_equal(original.pixels, pixels)
    assert original.pixels.dtype == pixels.dtype
    assert format_for(original) == suffix


@pytest.mark.parametrize("pixels", [NOISE16, RAMP16, SCENE, GREY], ids=["16", "16g", "8", "8g"])
def test_ppms_are_as_opencv_reads_them(pixels):
    for software in (None, COLORIZED):
        data = np.frombuffer(encode_picture(pixels, "PPM", software=software), np.uint8)
        decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        decoded = decoded if decoded.ndim == 2 else decoded[..., ::-1]
        np.testing.assert_array_equal(decoded, pixels)


def test_bmps():
    data = encode_picture(SCENE, ".bmp", metadata=Metadata(dpi=(300.0, 150.0)))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), SCENE)
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.1)


# -- lossy formats ---------------------------------------------------------------------------------


def tables_and_sampling(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.quantization, JpegImagePlugin.get_sampling(image)


@pytest.mark.parametrize("quality", [5, 50, 92, 100])
@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_tables_and_sampling(quality, sampling, progressive):
    data = encode("JPEG", quality=quality, subsampling=sampling, progressive=progressive)
    original = only(data)
    again = encode_picture(original.pixels, ".jpg", quality=original.quality)
    assert tables_and_sampling(again) == tables_and_sampling(data)
    assert jpeg_quality(again) == original.quality
    with Image.open(io.BytesIO(again)) as image:
        assert ("progression" in image.info) == progressive
    assert difference(only(again).pixels, original.pixels) <= (60 if quality < 50 else 24)


def test_tables_of_another_encoder_are_kept():
    odd = [[3 + (i * 7) % 50 for i in range(64)], [2 + (i * 5) % 90 for i in range(64)]]
    data = encode("JPEG", qtables=odd)
    again = encode_picture(SCENE, ".jpg", quality=only(data).quality)
    assert tables_and_sampling(again)[0] == tables_and_sampling(data)[0]
    assert tables_and_sampling(data)[0] == {0: odd[0], 1: odd[1]}


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_grey_jpeg_comes_out_in_colour_with_its_lightness_quantized_alike(quality):
    data = encode("JPEG", GREY, quality=quality)
    original = only(data)
    again = encode_picture(SCENE, ".jpg", quality=original.quality)
    wanted, _ = tables_and_sampling(encode("JPEG", quality=quality))
    got, sampling = tables_and_sampling(again)
    assert got == wanted
    assert sampling == 2
    assert nearest_quality(original.quality.tables[0]) == quality
    grey = encode_picture(GREY, ".jpg", quality=original.quality)
    with Image.open(io.BytesIO(grey)) as image:
        assert image.mode == "L"
        assert image.quantization == {0: wanted[0]}


def test_cmyk_jpegs_come_out_in_rgb():
    original = only(encode("JPEG", SCENE, "CMYK", quality=80))
    data = encode_picture(original.pixels, ".jpg", quality=original.quality)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
    assert difference(only(data).pixels, original.pixels) < 40


def test_other_qualities():
    small, large = (len(encode_picture(SCENE, ".jpg", quality=q)) for q in (40, 98))
    assert small < large
    assert tables_and_sampling(encode_picture(SCENE, ".jpg")) == tables_and_sampling(
        encode("JPEG", quality=95, subsampling=0)
    )
    lossless = only(encode("WEBP", RGBA, lossless=True, exact=True))
    assert lossless.quality == "lossless"
    again = only(
        encode_picture(lossless.pixels, ".webp", alpha=lossless.alpha, quality=lossless.quality)
    )
    np.testing.assert_array_equal(again.pixels, SCENE)
    np.testing.assert_array_equal(again.alpha, ALPHA)
    lossy = only(encode("WEBP", RGBA, quality=80))
    assert lossy.quality is None
    assert difference(only(encode_picture(SCENE, ".webp")).pixels, SCENE) < 30
    assert only(encode_picture(SCENE, ".jpg", quality="lossless")).quality.sampling == "4:4:4"


def test_what_a_format_lacks():
    """Sixteen bits are rounded; transparency is composited over white."""
    alpha16 = ALPHA.astype(np.uint16) * np.uint16(257)
    data = encode_picture(SCENE16 + 128, ".bmp")
    assert difference(only(data).pixels, SCENE) <= 1
    data = encode_picture(SCENE16, ".bmp", alpha=alpha16)
    assert difference(only(data).pixels, over_white(SCENE, ALPHA)) <= 1
    data = encode_picture(SCENE, ".jpg", alpha=ALPHA, quality=98)
    assert difference(only(data).pixels, over_white(SCENE, ALPHA)) <= 10
    data = encode_picture(GREY, ".ppm", alpha=ALPHA)
    expected = over_white(np.dstack([GREY] * 3), ALPHA)[..., 0]
    assert difference(only(data).pixels, expected) <= 1
    data = encode_picture(SCENE16, ".webp", alpha=alpha16, quality="lossless")
    np.testing.assert_array_equal(only(data).pixels, SCENE)
    np.testing.assert_array_equal(only(data).alpha, ALPHA)


# -- every format ----------------------------------------------------------------------------------

FULL = Metadata(exif(1)[6:], b"<x:xmpmeta/>", b"\x1c\x02\x05\0\x01a", (300.0, 300.0))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_picture_is_the_same_bytes(suffix):
    one, two = (
        encode_picture(SCENE.copy(), name, alpha=ALPHA, metadata=FULL, software=COLORIZED)
        for name in (suffix, suffix.upper())
    )
    assert one == two


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("metadata", [None, FULL])
def test_a_picture_names_the_software_that_made_it(tmp_path, suffix, metadata):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode_picture(SCENE, suffix, metadata=metadata, software=COLORIZED))
    assert made_by(path, COLORIZED) == (suffix != ".bmp")
    assert not made_by(path, DRAWN)
    path.write_bytes(encode_picture(SCENE, suffix, metadata=metadata))
    assert not made_by(path, COLORIZED)


def test_the_format_of_each_original():
    grey_alpha = encode("PNG", RGBA, "LA")
    files = {
        ".jpg": [encode("JPEG"), encode("JPEG", GREY), encode("JPEG", SCENE, "CMYK")],
        ".png": [
            encode("PNG"),
            grey_alpha,
            opencv(".png", SCENE16),
            encode("GIF", PALETTE),
        ],
        ".tif": [encode("TIFF"), opencv(".tif", SCENE16)],
        ".webp": [encode("WEBP"), encode("WEBP", RGBA)],
        ".bmp": [encode("BMP")],
        ".ppm": [encode("PPM"), encode("PPM", GREY), opencv(".ppm", SCENE16)],
    }
    if features.check("avif"):
        files[".avif"] = [encode("AVIF"), encode("AVIF", RGBA)]
    for suffix, each in files.items():
        for data in each:
            original = only(data)
            assert format_for(original) == suffix
            encode_picture(original.pixels, suffix, alpha=original.alpha)
    for name in ("BMP", "PPM", "JPEG", "GIF", "HEIF", "JXL"):
        assert format_for(replace(original, format=name, alpha=ALPHA)) == ".png"
    deep = only(opencv(".tif", SCENE16))
    for name in ("BMP", "AVIF", "WEBP", "HEIF", "JXL"):
        assert format_for(replace(deep, format=name)) == ".png"


def test_wrong_calls():
    for picture in (SCENE.astype(np.float32), SCENE[..., :2], SCENE[0, 0], RGBA):
        with pytest.raises(ValueError, match="expected a picture"):
            encode_picture(picture, ".png")
    with pytest.raises(ValueError, match="expected alpha"):
        encode_picture(SCENE16, ".png", alpha=ALPHA)
    with pytest.raises(ValueError, match=r"expected one of \.jpg"):
        encode_picture(SCENE, ".gif")
    with pytest.raises(ValueError, match="at least one page"):
        encode_pages([])
    with pytest.raises(ValueError, match="expected alpha"):
        encode_pages([Page(SCENE16, ALPHA)])
    with pytest.raises(EncoderLimitError, match="16,383 pixels per side"):
        encode_picture(np.zeros((1, 16_384, 3), np.uint8), ".webp")


@pytest.mark.parametrize("order", [np.s_[::-1], np.s_[:, ::2], np.s_[..., ::-1]])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm", ".bmp"])
def test_arrays_that_are_not_contiguous(order, suffix):
    view = SCENE[order]
    np.testing.assert_array_equal(only(encode_picture(view, suffix)).pixels, view)
    assert encode_picture(view, ".jpg") == encode_picture(view.copy(), ".jpg")
