"""Photos of every format, mode, orientation and profile; damage, limits and bombs.

Files are made here, in memory; what they should decode to is known from how they were made, from
Pillow's own full decode, from published matrices, or from scikit-image."""

import contextlib
import io
import resource
import struct
import subprocess
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from colorcore.photos import read as photo
from colorcore.photos.read import photo_header, read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason
from colorcore.photos.square import square
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
    check_photo,
    difference,
    encode,
    exif,
    opencv,
    over_white,
    palette_with_holes,
    pillow,
    refusal,
    scene,
    three,
    tiff,
    tiff_with,
)

GREY16 = GREY.astype(np.uint16) * 257

RAMP8 = np.tile(np.rint(np.linspace(0, 65535, WIDTH).astype(np.uint16) / 257.0), (HEIGHT, 1))


def keyed(mode, picture, key, **options):
    """A PNG in which the colour of the first pixel means transparent."""
    data = encode("PNG", picture, mode, transparency=key, **options)
    rgb = np.asarray(Image.fromarray(picture).convert(mode).convert("RGB"))
    alpha = np.where((rgb == rgb[0, 0]).all(-1), 0, 255)
    return data, over_white(rgb, alpha)


def animation(fmt):
    frames = [Image.fromarray(SCENE), Image.fromarray(255 - SCENE)]
    return encode(fmt, frames[0], save_all=True, append_images=frames[1:], duration=100)


def tiff_grey_alpha(kind, grey, *, planes=False):
    channels = np.stack([grey, ALPHA], 0 if planes else -1)
    config = "separate" if planes else "contig"
    options = {"extrasamples": [kind], "planarconfig": config, "compression": "zlib"}
    return tiff(channels, photometric="minisblack", **options)


BITS = GREY > 127

EXACT = {
    "png": (encode("PNG"), SCENE),
    "png grey": (encode("PNG", GREY), three(GREY)),
    "png alpha": (encode("PNG", RGBA), over_white(SCENE, ALPHA)),
    "png grey alpha": (encode("PNG", RGBA, "LA"), over_white(three(GREY), ALPHA)),
    "png palette": (encode("PNG", PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "png palette transparent": palette_with_holes(),
    "png colour key": keyed("RGB", SCENE, tuple(int(v) for v in SCENE[0, 0])),
    "png grey key": keyed("L", SCENE, int(GREY[0, 0])),
    "png 1 bit": (encode("PNG", BITS), three(BITS * 255)),
    "png 16 bit": (opencv(".png", SCENE16), SCENE),
    "png 16 bit alpha": (
        opencv(".png", np.dstack([SCENE16, ALPHA.astype(np.uint16) * 257])),
        over_white(SCENE, ALPHA),
    ),
    "png 16 bit grey": (opencv(".png", RAMP16), three(RAMP8)),
    "webp": (encode("WEBP", lossless=True), SCENE),
    "webp alpha": (encode("WEBP", RGBA, lossless=True, exact=True), over_white(SCENE, ALPHA)),
    "webp animation": (animation("WEBP"), None),
    "bmp": (encode("BMP"), SCENE),
    "bmp palette": (encode("BMP", PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "bmp 1 bit": (encode("BMP", BITS), three(BITS * 255)),
    "gif": (encode("GIF", PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "gif animation": (animation("GIF"), None),
    "tiff": (encode("TIFF"), SCENE),
    "tiff lzw": (encode("TIFF", compression="tiff_lzw"), SCENE),
    "tiff deflate": (encode("TIFF", compression="tiff_adobe_deflate"), SCENE),
    "tiff palette": (encode("TIFF", PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "tiff alpha": (encode("TIFF", RGBA), over_white(SCENE, ALPHA)),
    "tiff grey alpha": (tiff_grey_alpha("unassalpha", GREY), over_white(three(GREY), ALPHA)),
    "tiff grey premultiplied": (
        tiff_grey_alpha("assocalpha", np.rint(GREY * (ALPHA / 255.0)).astype(np.uint8)),
        over_white(three(GREY), ALPHA),
    ),
    "tiff cmyk": (encode("TIFF", SCENE, "CMYK"), SCENE),
    "tiff tiles": (tiff(SCENE, photometric="rgb", tile=(32, 48)), SCENE),
    "tiff planes": (
        tiff(SCENE.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        SCENE,
    ),
    "tiff pages": (tiff(np.stack([SCENE, 255 - SCENE]), photometric="rgb"), SCENE),
    "tiff big": (tiff(SCENE, photometric="rgb", bigtiff=True), SCENE),
    "tiff 16 bit": (tiff(SCENE16, photometric="rgb"), SCENE),
    "tiff 16 bit big-endian": (tiff(SCENE16, photometric="rgb", byteorder=">"), SCENE),
    "tiff 16 bit tiles": (tiff(SCENE16, photometric="rgb", tile=(32, 48)), SCENE),
    "tiff 16 bit lzw": (opencv(".tif", SCENE16), SCENE),
    "tiff 16 bit grey": (tiff(RAMP16, photometric="minisblack"), three(RAMP8)),
    "tiff 16 bit grey big-endian": (
        tiff(RAMP16, photometric="minisblack", byteorder=">"),
        three(RAMP8),
    ),
    "tiff 16 bit white is zero": (tiff(65535 - RAMP16, photometric="miniswhite"), three(RAMP8)),
    "tiff white is zero": (tiff(255 - GREY, photometric="miniswhite"), three(GREY)),
}

CLOSE = {
    "jpeg": (encode("JPEG", quality=97, subsampling=0), SCENE, 6),
    "jpeg progressive": (encode("JPEG", quality=97, subsampling=0, progressive=True), SCENE, 6),
    "jpeg subsampled": (encode("JPEG", quality=95), SCENE, 12),
    "jpeg rgb": (encode("JPEG", quality=97, subsampling=0, keep_rgb=True), SCENE, 6),
    "jpeg grey": (encode("JPEG", GREY, quality=97), three(GREY), 6),
    "jpeg cmyk": (encode("JPEG", SCENE, "CMYK", quality=97), SCENE, 6),
    "webp lossy": (encode("WEBP", quality=98), SCENE, 12),
    "tiff jpeg": (encode("TIFF", compression="jpeg", quality=97), SCENE, 14),
}

if features.check("avif"):
    CLOSE["avif"] = (encode("AVIF", quality=98, subsampling="4:4:4"), SCENE, 12)
    CLOSE["avif alpha"] = (encode("AVIF", RGBA, quality=98), over_white(SCENE, ALPHA), 20)


@pytest.mark.parametrize("name", EXACT)
def test_lossless_formats(name):
    data, expected = EXACT[name]
    if expected is None:  # the first frame of an animation
        expected = pillow(data)
        assert np.abs(expected.astype(int) - SCENE).mean() < 12
    result = read_photo(data)
    assert difference(result.rgb, expected) <= 1
    check_photo(result)


@pytest.mark.parametrize("name", CLOSE)
def test_lossy_formats(name):
    data, expected, tolerance = CLOSE[name]
    result = read_photo(data)
    assert difference(result.rgb, expected) <= tolerance
    check_photo(result)


@pytest.mark.parametrize("name", [n for n in CLOSE if n.startswith("jpeg")])
def test_jpegs_decode_as_in_pillow(name):
    data = CLOSE[name][0]
    assert difference(read_photo(data).rgb, pillow(data)) <= 2


def test_cmyk_jpegs_with_and_without_adobes_marker():
    """Adobe writes inverted CMYK, which decoders assume of all files; YCCK is a transform of it."""
    adobe = encode("JPEG", SCENE, "CMYK", quality=97)
    at = adobe.index(b"\xff\xee\x00\x0eAdobe")
    assert adobe[at + 15] == 0
    ycck = adobe[: at + 15] + b"\x02" + adobe[at + 16 :]
    plain = adobe[:at] + adobe[at + 16 :]
    for data in (adobe, ycck, plain):
        assert difference(read_photo(data).rgb, pillow(data)) == 0
    assert difference(read_photo(adobe).rgb, SCENE) <= 6


def test_cyan_ink_is_cyan():
    ink = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    rgb = read_photo(encode("JPEG", ink, quality=97)).rgb
    assert np.abs(rgb.reshape(-1, 3).mean(0) - (0, 255, 255)).max() < 3


def test_wrong_suffix_does_not_matter_and_other_formats_are_unreadable():
    for fmt in ("EPS", "TGA", "PCX", "ICO", "JPEG2000", "PDF"):
        assert refusal(encode(fmt)) == Reason.UNREADABLE
    heic = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(500)
    for data in (b"\0", b"hello", b"<svg></svg>" * 9, b"BMW is a maker of cars" * 9, heic):
        assert refusal(data) == Reason.UNREADABLE


def test_what_cannot_be_shown_is_unreadable():
    planes = tiff(SCENE16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    signed = tiff(GREY.astype(np.int8), photometric="minisblack")
    alpha = tiff_grey_alpha("unassalpha", GREY, planes=True)
    for data in (
        planes,
        alpha,
        signed,
        tiff(GREY / 255.0),
        tiff(SCENE.astype(np.float32), photometric="rgb"),
    ):
        assert refusal(data) == Reason.UNREADABLE


def test_grey_of_twelve_bits():
    levels = np.tile(np.linspace(0, 4095, WIDTH).astype(np.uint16), (HEIGHT, 1))
    high, low = levels[:, ::2], levels[:, 1::2]  # two samples in three bytes
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1).astype(np.uint8)
    data = tiff(packed.reshape(HEIGHT, WIDTH * 3 // 2), photometric="minisblack")
    data = tiff_with(data, t256=WIDTH, t258=12)
    assert difference(read_photo(data).rgb, three(np.rint(levels / 4095 * 255))) == 0


def test_suffixes():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif"} <= photo.PHOTO_SUFFIXES
    assert (".avif" in photo.PHOTO_SUFFIXES) == features.check("avif")
    assert all(s == s.lower() and s.startswith(".") for s in photo.PHOTO_SUFFIXES)


@pytest.mark.parametrize("min_size", [160, 80, 40])
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_photos_look_like_full_ones(min_size, orientation):
    noise = np.random.default_rng(0).normal(0, 8, (645, 901, 3))
    picture = np.clip(scene(645, 901) + noise, 0, 255).astype(np.uint8)
    data = encode("JPEG", picture, exif=exif(orientation), quality=90)
    full, reduced = read_photo(data), read_photo(data, min_size=min_size)
    assert (full.width, full.height) == (reduced.width, reduced.height)
    short = min(reduced.rgb.shape[:2])
    assert 2 * min_size <= short < 4 * min_size
    assert (reduced.rgb.shape[0] > reduced.rgb.shape[1]) == (orientation == 6)
    assert reduced.rgb.flags["C_CONTIGUOUS"]
    one, other = square(full.rgb, min_size), square(reduced.rgb, min_size)
    assert np.abs(one.astype(int) - other).mean() < 2.0


def test_reduction_leaves_other_formats_alone():
    assert read_photo(encode("PNG"), min_size=8).rgb.shape == SCENE.shape


def test_damage_inside_a_png_is_unreadable():
    png = bytearray(WHOLE["png"])
    png[len(png) // 2] ^= 0xFF
    assert refusal(bytes(png)) == Reason.UNREADABLE


@HUNDREDS
@given(data=damaged(WHOLE), min_size=st.sampled_from([None, 8, 64]))
def test_no_bytes_raise_anything_else(data, min_size):
    limits = PhotoLimits(max_pixels=300_000)
    try:
        result = read_photo(data, limits=limits, min_size=min_size)
    except PhotoRefused:
        return
    assert result.rgb.shape[2] == 3
    assert result.width * result.height <= limits.max_pixels


@given(st.binary(max_size=200), st.sampled_from(sorted(WHOLE)), st.integers(2, 64))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_no_garbage_after_a_header_raises_anything_else(garbage, name, kept):
    with contextlib.suppress(PhotoRefused):
        read_photo(WHOLE[name][:kept] + garbage, limits=PhotoLimits(max_pixels=300_000))
    with contextlib.suppress(PhotoRefused):
        photo_header(WHOLE[name][:kept] + garbage)


@pytest.mark.parametrize("name", WHOLE)
def test_a_header_has_format_and_size_as_stored(name):
    """As Pillow, which does not turn photos that are on their side, reads them."""
    with Image.open(io.BytesIO(WHOLE[name])) as opened:
        assert photo_header(WHOLE[name]) == (opened.format, *opened.size)


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff", b"RIFF....WEBP", b"GIF89a"])
def test_bytes_without_a_header_are_refused(data):
    with pytest.raises(PhotoRefused) as refused:
        photo_header(data)
    assert refused.value.reason in {Reason.UNREADABLE, Reason.TRUNCATED}


def test_a_header_costs_no_pixels():
    assert photo_header(png_header(50_000, 50_000)) == ("PNG", 50_000, 50_000)


# ------------------------------------------------------------------------------------ limits


def png_header(width, height):
    """The start of a PNG that claims a size, with some pixels' worth of data."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(4096))
    chunks = [chunk, data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def patched(data, **values):
    """The bytes with some replaced, by offset: o18=b'..'."""
    out = bytearray(data)
    for name, value in values.items():
        out[int(name[1:]) : int(name[1:]) + len(value)] = value
    return bytes(out)


def jpeg_claiming(width, height):
    jpeg = WHOLE["jpeg"]
    frame = jpeg.index(b"\xff\xc0")
    return jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]


GIF, BMP = WHOLE["gif"], WHOLE["bmp"]

FRAME = GIF.index(b"\x2c" + bytes(4) + struct.pack("<HH", WIDTH, HEIGHT))

EXTENDED = encode("WEBP", RGBA, lossless=True, exif=exif(1))

assert EXTENDED[12:16] == b"VP8X"

BOMBS = {
    "png": png_header(60000, 60000),
    "gif": patched(GIF, o6=struct.pack("<HH", 60000, 60000)),
    "gif frame": patched(GIF, **{f"o{FRAME + 5}": struct.pack("<HH", 60000, 60000)}),
    "bmp": patched(BMP, o18=struct.pack("<ii", 60000, 60000)),
    "webp lossless": patched(encode("WEBP", lossless=True), o21=b"\xff\xff\xff\x0f"),
    "webp lossy": patched(encode("WEBP"), o26=struct.pack("<HH", 16383, 16383)),
    "webp extended": patched(EXTENDED, o24=b"\xff\x3f\0\xff\x3f\0"),
    "tiff": tiff_with(tiff(SCENE, photometric="rgb"), t256=60000, t257=60000),
    "jpeg": jpeg_claiming(60000, 60000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_without_memory(name):
    data = BOMBS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(data) == Reason.BOMB
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 30_000  # kB on Linux; the pixels would be gigabytes


def test_a_bomb_that_hides_in_its_tiles():
    data = tiff(SCENE, photometric="rgb", tile=(32, 48))
    assert refusal(data, limits=PhotoLimits(max_pixels=32 * 48 - 1)) == Reason.BOMB
    bomb = tiff_with(data, t322=48_000_000)
    assert refusal(bomb) == Reason.BOMB


PEAK = """
import io, re
from pathlib import Path
from PIL import Image
from colorcore.photos.read import read_photo

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

out = io.BytesIO()
Image.new("RGBA", (4000, 4000), (200, 100, 50, 128)).save(out, "PNG")
read_photo(out.getvalue())
Path("/proc/self/clear_refs").write_text("5")
before = peak()
read_photo(out.getvalue())
print((peak() - before) / 16e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of its memory")
def test_transparency_costs_little_memory():
    """Of a pixel, Pillow holds 4 bytes and the result 3; the rest is converted in bands."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 12


def test_pillows_own_bomb_limit_neither_warns_nor_decides(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in WHOLE.values():
            assert read_photo(data).rgb.size == SCENE.size


@pytest.mark.parametrize("name", [n for n in BOMBS if n.startswith("webp")])
def test_webp_sizes_are_read_without_pillow(name, monkeypatch):
    """Pillow allocates the canvas when it opens the file, up to its own limit."""

    class Opened(photo.WebPImageFile):
        def _open(self):
            raise AssertionError

    monkeypatch.setattr(photo, "WebPImageFile", Opened)
    assert refusal(BOMBS[name]) == Reason.BOMB
    assert refusal(BOMBS[name], limits=PhotoLimits(max_pixels=10**9)) == Reason.UNREADABLE


def test_reading_leaves_the_warning_filters_alone():
    before = list(warnings.filters)
    read_photo(WHOLE["png"])
    assert warnings.filters == before
    assert Image.MAX_IMAGE_PIXELS == 89478485


def test_not_enough_memory_is_a_refusal(monkeypatch):
    def fail(*_):
        raise MemoryError

    def opencv_fails(*_):
        error = cv2.error("Failed to allocate 27000000000 bytes")
        error.code = cv2.Error.StsNoMem
        raise error

    for failure in (fail, opencv_fails):
        monkeypatch.setattr(cv2, "imdecode", failure)
        assert refusal(WHOLE["jpeg"]) == Reason.BOMB
    monkeypatch.setattr(photo, "_flatten", fail)
    assert refusal(WHOLE["png"]) == Reason.BOMB


def test_every_limit_and_its_edge():
    jpeg, png = WHOLE["jpeg"], WHOLE["png"]
    assert refusal(b"") == Reason.EMPTY
    for data in (jpeg, png):
        size = len(data)
        assert refusal(data, limits=PhotoLimits(max_bytes=size - 1)) == Reason.TOO_LARGE
        assert read_photo(data, limits=PhotoLimits(max_bytes=size))
        pixels = HEIGHT * WIDTH
        assert refusal(data, limits=PhotoLimits(max_pixels=pixels - 1)) == Reason.BOMB
        assert read_photo(data, limits=PhotoLimits(max_pixels=pixels))
        assert refusal(data, limits=PhotoLimits(min_side=HEIGHT + 1)) == Reason.TOO_SMALL
        assert read_photo(data, limits=PhotoLimits(min_side=HEIGHT))
        assert refusal(data, limits=PhotoLimits(max_aspect=1.33)) == Reason.TOO_NARROW
        assert read_photo(data, limits=PhotoLimits(max_aspect=4 / 3))


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_default_limits(fmt):
    assert refusal(encode(fmt, scene(63, 80))) == Reason.TOO_SMALL
    assert refusal(encode(fmt, scene(400, 63))) == Reason.TOO_SMALL
    assert refusal(encode(fmt, scene(64, 321))) == Reason.TOO_NARROW
    assert refusal(encode(fmt, scene(321, 64))) == Reason.TOO_NARROW
    assert read_photo(encode(fmt, scene(64, 320))).width == 320
    assert read_photo(encode(fmt, scene(9, 5)), limits=NO_LIMITS).height == 9


def test_limits_come_before_pixels():
    """A photo over a limit is refused for the limit, even if its pixels are missing."""
    for name in ("jpeg", "png", "tiff big-endian"):
        cut = WHOLE[name][: len(WHOLE[name]) // 2]
        if name == "tiff big-endian":  # its directory stands at the front
            assert struct.unpack_from(">I", cut, 4)[0] < len(cut)
        assert refusal(cut, limits=PhotoLimits(min_side=1000)) == Reason.TOO_SMALL
