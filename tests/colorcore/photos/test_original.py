"""Photos at full quality: every format, depth, layout and page; damage and limits.

Files are made here, in memory. What they should decode to is known from how they were made, or from
a second reader: tifffile, scikit-image, OpenCV or Pillow."""

import contextlib
import io
import resource
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import skimage.data
import skimage.io
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from colorcore.photos.original import read as original_module
from colorcore.photos.original.pillow import pillow_limit_raised
from colorcore.photos.original.read import Original, read_original
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason
from colorcore.photos.write import encode_picture, format_for
from tests.colorcore.photos.damage import HUNDREDS, damaged
from tests.colorcore.photos.photo_files import (
    ALPHA,
    GREY,
    HEIGHT,
    NO_LIMITS,
    PALETTE,
    RAMP16,
    RGBA,
    SCENE,
    SCENE16,
    WHOLE,
    WIDTH,
    difference,
    encode,
    exif,
    opencv,
    over_white,
    tiff,
    tiff_with,
)
from tests.colorcore.photos.test_read import BOMBS

DEEP = (
    SCENE.astype(np.uint16) * 251 + 77 * (np.arange(WIDTH) % 7)[:, None].astype(np.uint16)
).astype(np.uint16)
"""Colours of which no 8 bits are enough."""
ALPHA16 = ALPHA.astype(np.uint16) * np.uint16(257)


def only(data, **options):
    pictures = read_original(data, **options)
    assert len(pictures) == 1
    (original,) = pictures
    check(original)
    return original


def check(original):
    assert isinstance(original, Original)
    pixels, alpha = original.pixels, original.alpha
    assert pixels.dtype in (np.uint8, np.uint16)
    assert pixels.ndim == 2 or pixels.shape[2:] == (3,)
    assert pixels.flags["C_CONTIGUOUS"]
    assert pixels.dtype.isnative
    if alpha is not None:
        assert alpha.shape == pixels.shape[:2]
        assert alpha.dtype == pixels.dtype


def same(data, pixels, alpha=None, bits=None, **options):
    original = only(data, **options)
    np.testing.assert_array_equal(original.pixels, pixels)
    assert original.pixels.dtype == pixels.dtype
    if alpha is None:
        assert original.alpha is None
    else:
        np.testing.assert_array_equal(original.alpha, alpha)
    if bits is not None:
        assert original.bits == bits
    return original


# -- 16 bits ---------------------------------------------------------------------------------------

LAYOUTS = [
    {"compression": compression, "predictor": predictor, **layout}
    for compression in (None, "zlib", "lzw", "packbits", "zstd", "lzma")
    for predictor in ((False, True) if compression in {"zlib", "lzw"} else (False,))
    for layout in ({}, {"tile": (32, 48)}, {"planarconfig": "separate"}, {"rowsperstrip": 7})
]


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_of_deep_tiffs(layout, byteorder):
    planes = layout.get("planarconfig") == "separate"
    stored = DEEP.transpose(2, 0, 1) if planes else DEEP
    same(tiff(stored, photometric="rgb", byteorder=byteorder, **layout), DEEP, bits=16)
    if not planes:
        same(tiff(RAMP16, photometric="minisblack", byteorder=byteorder, **layout), RAMP16, bits=16)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_alpha_in_tiffs(depth, planes, compression):
    colours, alpha = (SCENE, ALPHA) if depth == np.uint8 else (DEEP, ALPHA16)
    for picture, photometric in ((colours, "rgb"), (colours[..., 1], "minisblack")):
        stored = np.dstack([picture, alpha])
        options = {"photometric": photometric, "compression": compression}
        options["planarconfig"] = "separate" if planes else "contig"
        stored = np.moveaxis(stored, -1, 0) if planes else stored
        same(tiff(stored, extrasamples=["unassalpha"], **options), picture, alpha)
        same(tiff(stored, extrasamples=["unspecified"], **options), picture)


def test_premultiplied_alpha_is_divided_out():
    share = np.maximum(ALPHA16, 1) / 65535.0
    stored = np.rint(DEEP * share[..., None]).astype(np.uint16)
    data = tiff(np.dstack([stored, ALPHA16]), photometric="rgb", extrasamples=["assocalpha"])
    original = only(data)
    np.testing.assert_array_equal(original.alpha, ALPHA16)
    opaque = ALPHA16 > 30_000
    assert np.abs(original.pixels.astype(int) - DEEP)[opaque].max() <= 2


def test_white_is_zero():
    same(tiff(65535 - RAMP16, photometric="miniswhite"), RAMP16)
    same(tiff(255 - GREY, photometric="miniswhite", compression="lzw"), GREY)


@pytest.mark.parametrize(("top", "ink"), [(255, np.uint8), (65535, np.uint16)])
def test_inks_without_a_profile(top, ink):
    inks = np.zeros((HEIGHT, WIDTH, 4), ink)
    inks[..., 0] = top  # cyan
    inks[: HEIGHT // 2, :, 3] = top // 2
    pixels = only(tiff(inks, photometric="separated", compression="zlib")).pixels
    assert pixels.dtype == ink
    assert (pixels[..., 0] == 0).all()
    assert (pixels[HEIGHT // 2 :, :, 1:] == top).all()
    assert (pixels[: HEIGHT // 2, :, 1:] == top - top // 2).all()


@pytest.mark.parametrize(
    ("picture", "expected", "alpha"),
    [
        (DEEP, DEEP, None),
        (RAMP16, RAMP16, None),
        (np.dstack([DEEP, ALPHA16]), DEEP, ALPHA16),
    ],
)
def test_deep_pngs(picture, expected, alpha):
    same(opencv(".png", picture), expected, alpha, bits=16)


def png16(kind, rows, *chunks):
    """A PNG of 16 bits written by hand (W3C PNG, §5): kind 4 is grey with alpha."""
    height, width = rows.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [header, *chunks, b"IDAT" + zlib.compress(lines), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in parts
    )


def test_deep_pngs_that_opencv_does_not_write():
    same(png16(4, np.dstack([RAMP16, ALPHA16])), RAMP16, ALPHA16)
    key = DEEP[3, 5]
    alpha = np.where((key == DEEP).all(-1), 0, 65535).astype(np.uint16)
    keyed = b"tRNS" + key.astype(">u2").tobytes()
    same(png16(2, DEEP, keyed), DEEP, alpha)
    alpha = np.where(RAMP16[0, 9] == RAMP16, 0, 65535).astype(np.uint16)
    same(png16(0, RAMP16, b"tRNS" + struct.pack(">H", RAMP16[0, 9])), RAMP16, alpha)


def test_second_readers_see_the_same(tmp_path):
    """Real photographs in files of other writers."""
    photo = skimage.data.astronaut()
    deep = cv2.GaussianBlur(photo.astype(np.uint16) * np.uint16(257), (5, 5), 1.2)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, deep, photometric="rgb", compression="lzw", predictor=True)
    np.testing.assert_array_equal(only(path.read_bytes()).pixels, skimage.io.imread(path))
    cv2.imwrite(str(path), deep[..., ::-1])  # LZW
    np.testing.assert_array_equal(only(path.read_bytes()).pixels, tifffile.imread(path))
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), deep[..., ::-1])
    read = imagecodecs.png_decode(path.read_bytes())
    np.testing.assert_array_equal(only(path.read_bytes()).pixels, read)


# -- 8 bits ----------------------------------------------------------------------------------------


def test_grey_stays_grey_and_other_modes():
    same(encode("PNG", GREY), GREY, bits=8)
    same(encode("BMP", GREY), GREY)
    same(encode("TIFF", GREY, compression="tiff_lzw"), GREY)
    same(encode("PNG", SCENE), SCENE)
    same(encode("PNG", RGBA), SCENE, ALPHA)
    same(encode("PNG", RGBA, "LA"), GREY, ALPHA)
    same(encode("WEBP", RGBA, lossless=True, exact=True), SCENE, ALPHA)
    same(encode("GIF", PALETTE), np.asarray(PALETTE.convert("RGB")))
    same(encode("PNG", GREY > 127), ((GREY > 127) * 255).astype(np.uint8), bits=1)
    same(encode("TIFF", PALETTE), np.asarray(PALETTE.convert("RGB")))
    same(encode("TIFF", GREY > 127), ((GREY > 127) * 255).astype(np.uint8), bits=1)
    same(encode("TIFF", SCENE, "CMYK"), SCENE)


def test_a_grey_jpeg_is_grey_and_a_colour_one_is_as_for_training():
    grey = encode("JPEG", GREY, quality=97)
    original = only(grey)
    assert original.pixels.ndim == 2
    assert difference(original.pixels, np.asarray(Image.open(io.BytesIO(grey)))) <= 1
    for name in ("jpeg", "jpeg progressive", "jpeg exif", "jpeg cmyk"):
        np.testing.assert_array_equal(only(WHOLE[name]).pixels, read_photo(WHOLE[name]).rgb)


def test_a_jpeg_with_a_damaged_middle_is_read_as_opencv_reads_it():
    data = bytearray(encode("JPEG", SCENE, quality=90))
    middle = len(data) * 2 // 3
    data[middle : middle + 2] = b"\xff\x14"  # no marker that libjpeg knows
    with pytest.raises(imagecodecs.Jpeg8Error):
        imagecodecs.jpeg8_decode(bytes(data))
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(only(bytes(data)).pixels, expected)


@given(data=damaged({name: WHOLE[name] for name in ("jpeg", "jpeg progressive")}))
@HUNDREDS
def test_damaged_jpegs_have_the_pixels_that_opencv_finds(data: bytes):
    with contextlib.suppress(PhotoRefused):
        found = only(data).pixels
        flag = cv2.IMREAD_GRAYSCALE if found.ndim == 2 else cv2.IMREAD_COLOR_RGB
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        if decoded is not None:
            np.testing.assert_array_equal(found, decoded)


@pytest.mark.parametrize("name", WHOLE)
def test_the_reader_for_training_sees_the_same(name):
    original = only(WHOLE[name])
    pixels = original.pixels if original.pixels.ndim == 3 else np.dstack([original.pixels] * 3)
    alpha = original.alpha
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257.0).astype(np.uint8)
    if alpha is not None:
        pixels = over_white(pixels, alpha)
    assert difference(pixels, read_photo(WHOLE[name]).rgb) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF palette", "PNG 16"])
def test_pictures_are_upright(kind, orientation):
    block = exif(orientation)
    upright = {
        1: SCENE,
        2: SCENE[:, ::-1],
        3: SCENE[::-1, ::-1],
        4: SCENE[::-1],
        5: SCENE.transpose(1, 0, 2),
        6: np.rot90(SCENE, -1),
        7: np.rot90(SCENE, 2).transpose(1, 0, 2),
        8: np.rot90(SCENE),
    }[orientation]
    if kind == "PNG 16":
        data = png16(2, SCENE16, b"eXIf" + block[6:])
        upright = upright.astype(np.uint16) * 257
    elif kind == "TIFF palette":
        data = encode("TIFF", PALETTE, tiffinfo={274: orientation})
        upright = None
    elif kind == "TIFF":
        data = tiff(SCENE, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    elif kind == "JPEG":
        data = encode("JPEG", quality=97, subsampling=0, exif=block)
    else:
        data = encode(kind, exif=block, **({"lossless": True} if kind == "WEBP" else {}))
    original = only(data)
    if upright is None:
        upright = np.asarray(
            Image.open(io.BytesIO(encode("PNG", PALETTE))).convert("RGB")
            if orientation == 1
            else read_photo(data).rgb
        )
    assert difference(original.pixels, upright) <= (6 if kind == "JPEG" else 0)


# -- pages -----------------------------------------------------------------------------------------


def many_pages():
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(DEEP, photometric="rgb", compression="lzw")
        writer.write(GREY[:70, :80], photometric="minisblack", subfiletype=1)  # a thumbnail
        writer.write(GREY, photometric="minisblack", compression="zlib")
        writer.write(SCENE, photometric="rgb", compression="jpeg")
        writer.write(np.packbits(GREY > 127, axis=1) > 0, photometric="minisblack", subfiletype=4)
    return out.getvalue()


def test_every_page_but_thumbnails_and_masks():
    pictures = read_original(many_pages())
    assert len(pictures) == 3
    first, second, third = pictures
    np.testing.assert_array_equal(first.pixels, DEEP)
    np.testing.assert_array_equal(second.pixels, GREY)
    assert difference(third.pixels, SCENE) < 40
    assert [each.bits for each in (first, second, third)] == [16, 8, 8]
    again = [picture.pixels.shape for picture in pictures]
    assert again == [(HEIGHT, WIDTH, 3), (HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)]


def test_a_damaged_page_comes_after_the_whole_ones():
    data = bytearray(many_pages())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[2].dataoffsets[0]
    data[at : at + 40] = bytes(40)
    pages = iter(read_original(bytes(data)))
    np.testing.assert_array_equal(next(pages).pixels, DEEP)
    with pytest.raises(PhotoRefused):
        next(pages)


def test_a_chain_of_pages_that_bites_its_tail():
    data = bytearray(tiff(SCENE, photometric="rgb"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    assert len(read_original(bytes(data))) <= 2


# -- refusals --------------------------------------------------------------------------------------


def refusal(data, **options):
    with pytest.raises(PhotoRefused) as caught:
        for _ in read_original(data, **options):
            pass
    assert "\n" not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_without_memory(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(BOMBS[name]) == Reason.BOMB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


def test_bombs_of_deep_files():
    data = tiff(DEEP, photometric="rgb", tile=(32, 48))
    assert refusal(data, limits=PhotoLimits(max_pixels=32 * 48 - 1)) == Reason.BOMB
    assert refusal(tiff_with(data, t322=48_000_000)) in {Reason.BOMB, Reason.TRUNCATED}
    assert refusal(tiff_with(data, t256=60_000, t257=60_000)) == Reason.BOMB
    assert refusal(b"P6 60000 60000 65535\n") == Reason.BOMB
    assert refusal(b"P6 100 100 65535\n") == Reason.TRUNCATED
    many = tiff_with(tiff(DEEP, photometric="rgb"), t277=60_000)
    assert refusal(many) in {Reason.UNREADABLE, Reason.TRUNCATED}


def test_every_limit_comes_before_the_pixels():
    for name in ("jpeg", "png", "tiff big-endian", "tiff 16 bit", "webp"):
        data = WHOLE[name]
        assert refusal(data, limits=PhotoLimits(max_bytes=len(data) - 1)) == Reason.TOO_LARGE
        pixels = HEIGHT * WIDTH
        assert refusal(data, limits=PhotoLimits(max_pixels=pixels - 1)) == Reason.BOMB
        assert only(data, limits=PhotoLimits(max_pixels=pixels))
        assert refusal(data, limits=PhotoLimits(min_side=HEIGHT + 1)) == Reason.TOO_SMALL
        assert refusal(data, limits=PhotoLimits(max_aspect=1.33)) == Reason.TOO_NARROW
    assert refusal(b"") == Reason.EMPTY


def test_missing_strips_are_no_black_bands():
    data = tiff(DEEP, photometric="rgb", rowsperstrip=16)
    for keep in (0.9, 0.5, 0.05):
        assert refusal(data[: int(keep * len(data))]) in {Reason.TRUNCATED, Reason.UNREADABLE}


def test_formats_without_a_decoder(monkeypatch):
    heic = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(500)
    jxl = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(500)
    for data in (heic, jxl, b"\xff\x0a" + bytes(500)):
        assert refusal(data) == Reason.UNREADABLE
    monkeypatch.setattr(original_module, "_plugin", lambda *_: None)
    with pytest.raises(PhotoRefused, match=r"install colorcore\[formats\]"):
        read_original(heic)
    for data in (b"\0", b"hello", b"P", b"P7\n", b"<svg></svg>" * 9):
        assert refusal(data) == Reason.UNREADABLE


MUTABLE = WHOLE | {
    "deep lzw": tiff(DEEP, photometric="rgb", compression="lzw", predictor=True),
    "deep planes": tiff(DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "deep alpha": tiff(
        np.dstack([DEEP, ALPHA16]), photometric="rgb", extrasamples=["assocalpha"], tile=(32, 48)
    ),
    "deep inks": tiff(np.dstack([DEEP, ALPHA16]), photometric="separated", compression="zlib"),
    "pages": many_pages(),
    "deep png": opencv(".png", np.dstack([DEEP, ALPHA16])),
    "deep avif": imagecodecs.avif_encode(
        np.dstack([SCENE16, ALPHA16]) >> np.uint16(6), level=80, bitspersample=10
    ),
    "ppm": encode("PPM"),
    "plain ppm": b"P3 128 96 255\n" + b" ".join(b"%d" % v for v in SCENE.ravel()),
}


@HUNDREDS
@given(data=damaged(MUTABLE))
def test_no_bytes_raise_anything_else(data):
    limits = PhotoLimits(max_pixels=300_000)
    with contextlib.suppress(PhotoRefused):
        for original in read_original(data, limits=limits):
            check(original)
            assert original.pixels.shape[0] * original.pixels.shape[1] <= limits.max_pixels


@given(st.binary(max_size=200), st.sampled_from(sorted(MUTABLE)), st.integers(2, 64))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_no_garbage_after_a_header_raises_anything_else(garbage, name, kept):
    with contextlib.suppress(PhotoRefused):
        list(read_original(MUTABLE[name][:kept] + garbage, limits=PhotoLimits(max_pixels=300_000)))


# -- size ------------------------------------------------------------------------------------------


def test_pillows_own_limit_is_raised_while_it_is_needed():
    before = Image.MAX_IMAGE_PIXELS
    with pillow_limit_raised(before):
        assert before == Image.MAX_IMAGE_PIXELS
    threads = []

    def decode():
        with pillow_limit_raised(3 * before):
            assert Image.MAX_IMAGE_PIXELS is None

    for _ in range(4):
        threads.append(threading.Thread(target=decode))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", ["tiff jpeg", "tiff", "webp", "webp lossless"])
def test_pictures_over_pillows_own_limit(name, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert only(WHOLE[name]).pixels.shape == SCENE.shape
    assert HEIGHT * WIDTH // 2 - 1 == Image.MAX_IMAGE_PIXELS


PEAK = """
import io, re, sys
from pathlib import Path
import numpy as np
from colorcore.photos.original.read import read_original
from colorcore.photos.refusal import PhotoLimits
from colorcore.photos.write import encode_picture, format_for

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", text)[1]) * 1024

def pixels(side):
    row = np.linspace(0, np.iinfo(kind).max, side).astype(kind)
    return np.broadcast_to(row[None, :, None], (side, side, 3)).copy()

suffix, kind, side = sys.argv[1], np.dtype(sys.argv[2]), int(sys.argv[3])
limits = PhotoLimits(max_pixels=10**9)
data = encode_picture(pixels(64), suffix)
list(read_original(data, limits=limits))
data = encode_picture(pixels(side), suffix)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
(original,) = read_original(data, limits=limits)
print((status("VmHWM") - before) / original.pixels.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of its memory")
@pytest.mark.parametrize(
    ("suffix", "kind", "most"),
    [
        (".tif", "uint16", 1.3),
        (".tif", "uint8", 1.3),
        (".jpg", "uint8", 2.1),  # OpenCV copies the decoded pixels once
        (".png", "uint16", 2.7),  # so does it here, after a copy of the file without its metadata
        (".png", "uint8", 2.8),  # Pillow keeps four bytes per pixel
    ],
)
def test_memory_is_not_much_more_than_the_pixels(suffix, kind, most):
    command = [sys.executable, "-c", PEAK, suffix, kind, "4000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < most


# -- other formats ---------------------------------------------------------------------------------


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif():
    original = only(encode("AVIF", RGBA, quality=95, subsampling="4:4:4", exif=exif(1)))
    assert original.format == "AVIF"
    assert difference(original.pixels, SCENE) < 20
    assert difference(original.alpha, ALPHA) < 12
    assert original.metadata.exif


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
@pytest.mark.parametrize("bits", [10, 12])
def test_deep_avif(bits):
    for picture in (SCENE16, RAMP16, np.dstack([SCENE16, ALPHA16])):
        levels = picture >> (16 - bits)
        data = imagecodecs.avif_encode(levels, level=97, bitspersample=bits, pixelformat="444")
        original = only(data)
        assert (original.bits, original.pixels.dtype) == (bits, np.uint16)
        colours = picture if picture.shape[2:] != (4,) else picture[..., :3]
        assert difference(original.pixels, colours) < 8 * 257
        assert (original.alpha is not None) == (picture.shape[2:] == (4,))
        assert format_for(original) == ".png"


def test_deep_heic():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif (extra formats) is not installed")
    out = io.BytesIO()
    heif.from_bytes("RGB;16", (WIDTH, HEIGHT), SCENE16.tobytes()).save(out, quality=95)
    original = only(out.getvalue())
    assert (original.bits, original.pixels.dtype) == (10, np.uint16)
    assert difference(original.pixels, SCENE16) < 10 * 257


def test_heic():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif (extra formats) is not installed")
    out = io.BytesIO()
    heif.from_pillow(Image.fromarray(SCENE)).save(out, quality=95)
    original = only(out.getvalue())
    assert original.format == "HEIF"
    assert difference(original.pixels, SCENE) < 20


def test_jpeg_xl():
    pytest.importorskip("pillow_jxl", reason="pillow-jxl-plugin (extra formats) is not installed")
    original = only(encode("JXL", SCENE, lossless=True))
    assert original.format == "JXL"
    np.testing.assert_array_equal(original.pixels, SCENE)


def test_first_frames_of_animations():
    frames = [Image.fromarray(SCENE), Image.fromarray(255 - SCENE)]
    for fmt in ("GIF", "WEBP", "PNG"):
        data = encode(fmt, frames[0], save_all=True, append_images=frames[1:], duration=100)
        assert np.abs(only(data).pixels.astype(int) - SCENE).mean() < 12


def test_small_pictures_with_wide_limits():
    for shape in ((1, 1, 3), (1, 7, 3), (7, 1, 3), (1, 1), (5, 1)):
        for kind in (np.uint8, np.uint16):
            picture = np.full(shape, 77, kind)
            for suffix in (".png", ".tif"):
                same(encode_picture(picture, suffix), picture, limits=NO_LIMITS)
