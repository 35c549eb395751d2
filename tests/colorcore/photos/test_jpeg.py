"""The marker walk through a JPEG, and its reduced sizes."""

import pytest

from colorcore.photos.jpeg import reduction_for
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import Reason
from tests.colorcore.photos.photo_files import (
    HEIGHT,
    WHOLE,
    WIDTH,
    difference,
    encode,
    exif,
    refusal,
    scene,
)


@pytest.mark.parametrize(
    ("side", "min_size", "factor"),
    [
        (1023, None, 1),
        (511, 256, 1),
        (512, 256, 1),
        (1023, 256, 2),
        (1024, 256, 2),
        (1022, 256, 1),
        (2048, 256, 4),
        (4096, 256, 8),
        (40960, 256, 8),
        (4096, 1024, 2),
    ],
)
def test_the_largest_factor_that_leaves_twice_the_size(side, min_size, factor):
    assert reduction_for(side, min_size) == factor


def test_an_end_marker_in_the_thumbnail_is_not_the_photos():
    thumbnail = encode("JPEG", scene(64, 64))
    data = encode("JPEG", exif=exif(6, thumbnail=thumbnail))
    assert data.count(b"\xff\xd9") == 2
    result = read_photo(data)
    assert (result.width, result.height) == (HEIGHT, WIDTH)
    assert refusal(data[: len(data) * 3 // 4]) == Reason.TRUNCATED
    assert refusal(data[: data.index(b"\xff\xd9") + 2]) == Reason.TRUNCATED


def test_jpegs_padded_with_zeros_after_a_cut_are_truncated():
    whole = WHOLE["jpeg"]
    assert refusal(whole[: len(whole) // 2] + bytes(len(whole) // 2)) == Reason.TRUNCATED


def test_jpeg_markers_as_libjpeg_takes_them():
    """Fill bytes before a marker and junk between segments are skipped."""
    jpeg = WHOLE["jpeg"]
    for between in (b"\xff" * 5, b"\0\0junk", b"\xff\x00\xff\x01\xff\xd0"):
        data = jpeg[:2] + between + jpeg[2:]
        if data.startswith(b"\xff\xd8\xff"):
            assert difference(read_photo(data).rgb, read_photo(jpeg).rgb) == 0
    app0 = 4 + jpeg[5]
    data = jpeg[:app0] + b"\0\0junk" + jpeg[app0:]
    assert difference(read_photo(data).rgb, read_photo(jpeg).rgb) == 0


def test_jpegs_without_a_picture():
    assert refusal(b"\xff\xd8\xff\xd9") == Reason.UNREADABLE
    jpeg = WHOLE["jpeg"]
    frame = jpeg.index(b"\xff\xc0")
    no_frame = jpeg[:frame] + jpeg[frame + 2 + jpeg[frame + 3] :]
    assert refusal(no_frame) == Reason.UNREADABLE
    no_height = jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :]
    assert refusal(no_height) == Reason.UNREADABLE
