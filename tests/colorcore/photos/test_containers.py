"""EXIF orientation, and truncated files."""

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from colorcore.photos.read import read_photo
from colorcore.photos.refusal import Reason
from tests.colorcore.photos.photo_files import (
    GREY,
    HEIGHT,
    SCENE,
    SCENE16,
    WHOLE,
    WIDTH,
    check_photo,
    difference,
    encode,
    exif,
    pillow,
    refusal,
    tiff,
)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation, order):
    block = exif(orientation, order)
    options = {
        "JPEG": {"exif": block, "quality": 95},
        "PNG": {"exif": block},
        "WEBP": {"exif": block, "lossless": True},
    }
    for fmt, settings_ in options.items():
        data = encode(fmt, **settings_)
        assert Image.open(BytesIO(data)).getexif()[0x0112] == orientation
        result = read_photo(data)
        assert difference(result.rgb, pillow(data)) <= 2
        check_photo(result)
        expected = (WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)
        assert (result.width, result.height) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_tiffs_cmyk_and_grey(orientation):
    upright = read_photo(encode("JPEG", exif=exif(orientation), quality=97)).rgb
    tag = [(0x0112, "H", 1, orientation, False)]
    assert difference(read_photo(tiff(SCENE16, photometric="rgb", extratags=tag)).rgb, upright) < 12
    cmyk = encode("JPEG", SCENE, "CMYK", exif=exif(orientation), quality=97)
    assert difference(read_photo(cmyk).rgb, upright) < 16
    grey = encode("JPEG", GREY, exif=exif(orientation), quality=97)
    assert difference(read_photo(grey).rgb, pillow(grey)) <= 2


@pytest.mark.parametrize(
    "block",
    [
        exif(0),
        exif(9),
        exif(6, kind=4)[:-6],
        exif(6)[:20],
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0garbage" * 20,
    ],
)
def test_damaged_exif_is_ignored(block):
    for fmt, options in (("JPEG", {"quality": 97}), ("PNG", {})):
        result = read_photo(encode(fmt, exif=block, **options))
        assert difference(result.rgb, SCENE) <= 12


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4, 6, 8, 9])
def test_orientation_stored_as_any_integer(kind, order):
    """EXIF wants a SHORT (3), but some cameras write signed LONGs (9), which viewers take."""
    data = encode("JPEG", exif=exif(6, order, kind))
    assert Image.open(BytesIO(data)).getexif()[0x0112] == 6
    assert read_photo(data).width == HEIGHT


def test_an_orientation_in_xmp_alone_turns_nothing():
    """As in OpenCV and libvips; programs copy XMP along when they turn the pixels upright."""
    xmp = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
        xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
        xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    files = {
        "JPEG": {"xmp": xmp, "quality": 97},
        "PNG": {"pnginfo": text},
        "WEBP": {"xmp": xmp, "lossless": True},
        "TIFF": {"tiffinfo": {700: xmp}},
    }
    for fmt, options in files.items():
        data = encode(fmt, **options)
        assert Image.open(BytesIO(data)).getexif()[0x0112] == 6
        assert difference(read_photo(data).rgb, SCENE) <= 6, fmt
        other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert difference(other, SCENE) <= 6, fmt


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files(name):
    whole = WHOLE[name]
    read_photo(whole)
    tail = 4 if name == "gif" else 2 if name.startswith("jpeg") else 1
    tail = 13 if name.startswith("png") else tail
    cuts = {*range(24, len(whole) - tail, len(whole) // 40), len(whole) - tail}
    for cut in sorted(cuts):
        assert refusal(whole[:cut]) == Reason.TRUNCATED, f"{cut} of {len(whole)} bytes"
    for cut in range(1, 24):
        assert refusal(whole[:cut]) in {Reason.TRUNCATED, Reason.UNREADABLE}


@pytest.mark.parametrize("appendix", [b"\0" * 999, b"SEFT camera data", WHOLE["jpeg progressive"]])
def test_data_after_the_end_is_fine(appendix):
    for name in ("jpeg", "jpeg cmyk", "png", "gif", "tiff"):
        assert difference(read_photo(WHOLE[name] + appendix).rgb, read_photo(WHOLE[name]).rgb) == 0
