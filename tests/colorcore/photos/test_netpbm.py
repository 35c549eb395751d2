"""PBM, PGM and PPM against Pillow, OpenCV and cases written out by hand."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from colorcore.photos.original.netpbm import netpbm_header
from colorcore.photos.original.read import read_original
from colorcore.photos.read import photo_header, read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason
from tests.colorcore.photos.photo_files import GREY, RAMP16, SCENE, SCENE16, encode, opencv, three

SMALL = PhotoLimits(min_side=1)


def only(data):
    (original,) = read_original(data, limits=SMALL)
    assert original.format == "PPM"
    return original


@pytest.mark.parametrize("picture", [SCENE, GREY, GREY > 127], ids=["P6", "P5", "P4"])
def test_binary_files_of_pillow(picture):
    data = encode("PPM", Image.fromarray(picture))
    expected = picture if picture.dtype == np.uint8 else (picture * 255).astype(np.uint8)
    np.testing.assert_array_equal(only(data).pixels, expected)
    rgb = expected if expected.ndim == 3 else three(expected)
    np.testing.assert_array_equal(read_photo(data).rgb, rgb)
    assert photo_header(data) == ("PPM", SCENE.shape[1], SCENE.shape[0])


@pytest.mark.parametrize(("suffix", "picture"), [(".ppm", SCENE16), (".pgm", RAMP16)])
def test_sixteen_bits_of_opencv(suffix, picture):
    data = opencv(suffix, picture)
    original = only(data)
    np.testing.assert_array_equal(original.pixels, picture)
    assert (original.bits, original.pixels.dtype) == (16, np.uint16)
    rgb = np.rint(picture / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(read_photo(data).rgb, rgb if rgb.ndim == 3 else three(rgb))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P1 3 2 101\n0 1 0", [[0, 255, 0], [255, 0, 255]]),
        (b"P1\n# a comment\n3 2\n1 0 1 # 1 1\n0 1 0", [[0, 255, 0], [255, 0, 255]]),
        (b"P2 2 2 255 0 1 254 255", [[0, 1], [254, 255]]),
        (b"P2#\n2#\r2 15\n0 5 10 15", [[0, 85], [170, 255]]),
        (b"P2 2 1 1023 0 1023", [[0, 65535]]),
        (b"P3 1 1 255 9 8 7", [[[9, 8, 7]]]),
        (b"P4 9 2\n\x80\x80\x00\x00", [[0, *[255] * 7, 0], [255] * 9]),
        (b"P5 2 1 15\n\x05\xff", [[85, 255]]),  # a level over the largest one
        (b"P5 2 1 4095\n\x00\x00\x0f\xff", [[0, 65535]]),
        (b"P6 1 1 65535\n\x01\x02\x03\x04\x05\x06", [[[0x102, 0x304, 0x506]]]),
        (b"P5 1 2 255\n# ", [[35], [32]]),  # no comment, but pixels
    ],
)
def test_cases_by_hand(data, expected):
    np.testing.assert_array_equal(only(data).pixels, expected)


@pytest.mark.parametrize("data", [b"P2 2 2 255 0 1 254 255", b"P3 1 1 255 9 8 7"])
def test_plain_files_are_as_in_pillow_and_opencv(data):
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(only(data).pixels, expected)
    decoded = cv2.imdecode(np.frombuffer(data + b"\n", np.uint8), cv2.IMREAD_UNCHANGED)
    decoded = decoded if decoded.ndim == 2 else decoded[..., ::-1]
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"P5 2 2 255\nabc", Reason.TRUNCATED),
        (b"P6 2 2 65535\nabc", Reason.TRUNCATED),
        (b"P4 9 2\n\x80\x80\x00", Reason.TRUNCATED),
        (b"P2 2 2 255 1 2 3", Reason.TRUNCATED),
        (b"P2 2 2 255 1 2 3 x", Reason.UNREADABLE),
        (b"P5 2", Reason.UNREADABLE),
        (b"P5 2 2 0\nabcd", Reason.UNREADABLE),
        (b"P5 2 2 65536\nabcd", Reason.UNREADABLE),
        (b"P5 -2 2 255\nabcd", Reason.UNREADABLE),
        (b"P5 0 2 255\nabcd", Reason.UNREADABLE),
        (b"P5 99999 99999 255\nabcd", Reason.BOMB),
        (b"P5 2 2 255", Reason.UNREADABLE),
    ],
)
def test_damage(data, reason):
    for read in (lambda: only(data), lambda: read_photo(data, limits=SMALL)):
        with pytest.raises(PhotoRefused) as caught:
            read()
        assert caught.value.reason == reason


def test_a_header_says_where_the_pixels_begin():
    header = netpbm_header(b"P6\n# by hand\n20 30\n255\nxyz")
    assert (header.kind, header.width, header.height, header.top) == (6, 20, 30, 255)
    assert header.pixels == 23
