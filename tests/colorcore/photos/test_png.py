"""PNGs that are damaged, or have a transparent colour.

OpenCV, which uses libpng, is the other decoder."""

import random
import struct
import zlib

import cv2
import numpy as np
import pytest

from colorcore.photos.read import photo_header, read_photo
from colorcore.photos.refusal import PhotoRefused, Reason
from tests.colorcore.photos.photo_files import (
    HEIGHT,
    LINEAR,
    NO_LIMITS,
    SCENE,
    WIDTH,
    difference,
    encode,
    exif,
    refusal,
    three,
)


def chunk(name, body=b"", checksum=None):
    wanted = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", wanted)


def with_chunk(png, added, before=b"IDAT"):
    at = png.index(before) - 4
    return png[:at] + added + png[at:]


def opencv_rgb(png):
    bgr = cv2.imdecode(
        np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


METADATA = {
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0hello", 0),
    "text of 2 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))),
    "profile by an unknown method": chunk(b"iCCP", b"name\0\1" + zlib.compress(LINEAR)),
    "profile with a wrong checksum": chunk(b"iCCP", b"name\0\0" + zlib.compress(LINEAR), 0),
    "half a profile": chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2 << 20))[:99]),
    "half of the primaries": chunk(b"cHRM", bytes(10)),
    "animation without frames": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fdAT", bytes(4)),
}


PLACES = [(name, b"IDAT") for name in METADATA] + [
    (name, b"IEND") for name in METADATA if "profile" not in name
]


@pytest.mark.parametrize(("name", "before"), PLACES)
def test_a_picture_is_fine_without_its_metadata(name, before):
    png = with_chunk(encode("PNG"), METADATA[name], before)
    if "animation" not in name:  # OpenCV shows what it can of one
        assert difference(opencv_rgb(png), SCENE) == 0
    assert difference(read_photo(png).rgb, SCENE) == 0
    assert photo_header(png) == ("PNG", WIDTH, HEIGHT)


def test_orientation_and_profile_stay_when_other_metadata_is_damaged():
    whole = encode("PNG", exif=exif(6), icc_profile=LINEAR)
    damaged = with_chunk(whole, METADATA["text with a wrong checksum"])
    assert difference(read_photo(damaged).rgb, read_photo(whole).rgb) == 0
    assert difference(read_photo(encode("PNG", exif=exif(6))).rgb, read_photo(whole).rgb) > 20


def test_a_profile_of_more_than_a_megabyte():
    """Those of scanners and printers hold tables; Pillow inflates one megabyte of a PNG's."""
    large = LINEAR + bytes(2 << 20)
    large = struct.pack(">I", len(large)) + large[4:]
    png = with_chunk(encode("PNG"), chunk(b"iCCP", b"name\0\0" + zlib.compress(large)))
    expected = read_photo(encode("PNG", icc_profile=LINEAR)).rgb
    assert difference(expected, SCENE) > 20
    assert difference(read_photo(png).rgb, expected) == 0


def test_no_flipped_bit_changes_a_pixel():
    png = encode("PNG")
    assert difference(read_photo(png).rgb, SCENE) == 0
    first, end = png.index(b"IDAT") + 4, png.index(b"IEND") - 8
    places = [*range(end - 64, end), *random.Random(0).sample(range(first, end), 100)]
    for place in places:
        damaged = bytearray(png)
        damaged[place] ^= 1
        assert refusal(bytes(damaged)) == Reason.UNREADABLE, place


def png(samples, bits, kind, key):
    """A PNG of one row, whose samples are written bit by bit (W3C PNG, §7.2), with a colour key."""
    flat = "".join(f"{int(v):0{bits}b}" for v in np.ravel(samples))
    row = int(flat, 2).to_bytes(len(flat) // 8, "big")
    size = struct.pack(">IIBBBBB", len(samples), 1, bits, kind, 0, 0, 0)
    pixels = chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_transparent_grey(bits):
    top = (1 << bits) - 1
    greys = np.arange(8) if bits < 4 else np.array([0, 1, 2, 7, top // 2, top - 2, top - 1, top])
    greys %= top + 1
    for key in greys:
        expected = np.where(greys == key, 255, np.rint(greys * 255 / top))
        result = read_photo(png(greys, bits, 0, struct.pack(">H", key)), limits=NO_LIMITS)
        assert difference(result.rgb[0], three(expected[None])[0]) <= 1, key


@pytest.mark.parametrize("bits", [8, 16])
def test_one_transparent_colour(bits):
    """Of 16 bits all count: a colour that is nearly the transparent one stays."""
    key = np.array([10, 20, 30]) * (257 if bits == 16 else 1)
    colors = key + np.array([(0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 7, 0)])
    result = read_photo(png(colors, bits, 2, struct.pack(">HHH", *key)), limits=NO_LIMITS)
    assert (result.rgb[0, 0] == 255).all()
    others = result.rgb[0, 1:] / 255.0 * ((1 << bits) - 1)
    assert np.abs(others - colors[1:]).max() < (256 if bits == 16 else 1)


def test_bytes_that_only_begin_like_a_png():
    for end in (8, 12, 20, 33, 45):
        with pytest.raises(PhotoRefused):
            read_photo(encode("PNG")[:end] + b"IEND")
