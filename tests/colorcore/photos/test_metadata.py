"""What belongs to a photo, written and read by exiftool, which shares no code with this project."""

import io
import json
import shutil
import struct
import subprocess

import numpy as np
import pytest
import tifffile
from PIL import Image, features

from colorcore.photos.original import exif as exif_module
from colorcore.photos.original.encode import Page
from colorcore.photos.original.metadata import Metadata, reset
from colorcore.photos.original.read import read_original
from colorcore.photos.write import COLORIZED, encode_pages, encode_picture
from tests.colorcore.photos.photo_files import GREY, SCENE, SCENE16, encode, exif, opencv, tiff

needs_exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None,
    reason="exiftool (Debian: libimage-exiftool-perl) is not installed",
)
DETAILS = {
    "IFD0:Make": "Canon",
    "IFD0:Model": "EOS 5D",
    "IFD0:Artist": "Jürgen Groß",
    "IFD0:Copyright": "free",
    "ExifIFD:DateTimeOriginal": "1999:01:02 03:04:05",
    "ExifIFD:ExposureTime": "1/250",
    "ExifIFD:LensModel": "a lens with a name of more than four bytes",
    "GPS:GPSLatitude": "48 deg 12' 0.00\"",
    "GPS:GPSLatitudeRef": "North",
    "InteropIFD:InteropIndex": "R98 - DCF basic file (sRGB)",
}
PACKET = {
    "XMP-dc:Title": "Großmutter",
    "XMP-xmp:Rating": 4,
    "XMP-photoshop:City": "Graz",
}
RECORDS = {"IPTC:Caption-Abstract": "the album", "IPTC:Keywords": ["a", "b"]}


def exiftool(*arguments):
    command = ["exiftool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tags_of(data, path):
    path.write_bytes(data)
    (tags,) = json.loads(exiftool("-json", "-G1", "-a", path))
    return tags


def described(data, path, *, orientation=6):
    """The file with all metadata, as exiftool writes them."""
    path.write_bytes(data)
    thumbnail = path.with_name("thumbnail.jpg")
    thumbnail.write_bytes(encode("JPEG", SCENE[::2, ::2]))
    exiftool(
        "-overwrite_original",
        *(f"-{name}={value}" for name, value in DETAILS.items() if "Interop" not in name),
        *(f"-{name}={value}" for name, value in PACKET.items()),
        "-IPTC:Caption-Abstract=the album",
        "-IPTC:Keywords=a",
        "-IPTC:Keywords=b",
        f"-IFD0:Orientation#={orientation}",
        f"-XMP-tiff:Orientation#={orientation}",
        "-ExifIFD:ColorSpace#=65535",
        "-XMP-exif:ColorSpace#=65535",
        "-InteropIndex=R03",
        "-ExifImageWidth=128",
        "-ExifImageHeight=96",
        "-IFD0:Software=GIMP",
        "-XResolution=300",
        "-YResolution=200",
        "-ResolutionUnit=inches",
        *(["-ThumbnailImage<=" + str(thumbnail)] if path.suffix == ".jpg" else []),
        path,
    )
    return path.read_bytes()


def again(data, suffix):
    (original,) = read_original(data)
    return encode_picture(
        original.pixels,
        suffix,
        alpha=original.alpha,
        metadata=original.metadata,
        quality=original.quality,
        software=COLORIZED,
    )


def has(tags, wanted):
    got = {name: tags.get(name) for name in wanted}
    assert got == wanted


INPUTS = {
    ".jpg": encode("JPEG", quality=90),
    ".png": encode("PNG"),
    ".tif": tiff(SCENE16, photometric="rgb", compression="lzw"),
    ".webp": encode("WEBP", lossless=True),
}
ROTATED = {
    "IFD0:Software": COLORIZED,
    "ExifIFD:ColorSpace": "sRGB",
    "XMP-exif:ColorSpace": "sRGB",
    "XMP-tiff:Orientation": "Horizontal (normal)",
}


@needs_exiftool
@pytest.mark.parametrize("source", INPUTS)
@pytest.mark.parametrize("target", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_everything_that_the_format_can_hold_is_kept(tmp_path, source, target):
    # Pillow's wheels have it, a Pillow built from source may not.
    if target == ".avif" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    data = described(INPUTS[source], tmp_path / f"in{source}")
    tags = tags_of(again(data, target), tmp_path / f"out{target}")
    has(tags, DETAILS | PACKET | ROTATED)
    assert tags.get("IFD0:Orientation", "Horizontal (normal)") == "Horizontal (normal)"
    assert not [name for name in tags if "Thumbnail" in name or name.startswith("IFD1")]
    assert tags["ICC_Profile:ProfileDescription"].startswith("sRGB")
    if source != ".webp" and target in {".jpg", ".png", ".tif"}:
        has(tags, RECORDS)
    if source != ".tif":  # turned by 90 degrees, where EXIF holds the size
        has(tags, {"ExifIFD:ExifImageWidth": 96, "ExifIFD:ExifImageHeight": 128})
    assert tags["Composite:ImageSize"] == "96x128"
    if target == ".tif" or source != ".tif":
        has(tags, {"IFD0:XResolution": 200, "IFD0:YResolution": 300})
    if target == ".jpg":
        has(
            tags,
            {"JFIF:XResolution": 200, "JFIF:YResolution": 300, "JFIF:ResolutionUnit": "inches"},
        )
    if target == ".png":
        has(tags, {"PNG-pHYs:PixelsPerUnitX": 7874, "PNG-pHYs:PixelsPerUnitY": 11811})
        has(tags, {"PNG:Software": COLORIZED})


@needs_exiftool
@pytest.mark.parametrize("source", INPUTS)
def test_what_is_written_is_valid_and_can_be_written_again(tmp_path, source):
    data = again(described(INPUTS[source], tmp_path / f"in{source}"), source)
    path = tmp_path / f"out{source}"
    first = tags_of(data, path)
    errors = exiftool("-validate", "-error", "-a", path)
    assert "Error" not in errors
    if source == ".jpg":
        assert exiftool("-s3", "-validate", path).strip() == "OK"
    second = tags_of(again(data, source), path)
    for tags in (first, second):
        for name in [n for n in tags if n.startswith(("System", "SourceFile", "File:"))]:
            del tags[name]
    moved = {"IFD0:StripOffsets", "IFD0:StripByteCounts", "RIFF:VP8Version"}
    assert {n: v for n, v in first.items() if n not in moved} == {
        n: v for n, v in second.items() if n not in moved
    }


@needs_exiftool
def test_makers_notes_stay_where_they_are(tmp_path):
    """Notes hold offsets from the start of the block, here one to a text behind the notes."""
    note = b"\x01\x00" + struct.pack("<HHII", 0x0006, 2, 20, 0)
    block = bytearray(b"II*\0" + struct.pack("<I", 8))
    make, model = b"Canon\0", b"Canon EOS 5D\0\0"
    directory = struct.pack("<H", 3)
    at = 8 + 2 + 3 * 12 + 4
    directory += struct.pack("<HHII", 0x010F, 2, len(make), at)
    directory += struct.pack("<HHII", 0x0110, 2, len(model) - 1, at + len(make))
    inner_at = at + len(make) + len(model)
    directory += struct.pack("<HHII", 0x8769, 4, 1, inner_at) + bytes(4)
    note_at = inner_at + 2 + 12 + 4
    text_at = note_at + len(note) + 4
    note = note[:-4] + struct.pack("<I", text_at) + bytes(4)
    inner = struct.pack("<HHHII", 1, 0x927C, 7, len(note) + 20, note_at) + bytes(4)
    block += directory + make + model + inner + note + b"an image type 12345\0"
    data = encode("JPEG", exif=b"Exif\0\0" + bytes(block))
    before = tags_of(data, tmp_path / "in.jpg")
    assert before["Canon:CanonImageType"] == "an image type 12345"
    after = tags_of(again(data, ".jpg"), tmp_path / "out.jpg")
    has(after, {"Canon:CanonImageType": "an image type 12345", "IFD0:Software": COLORIZED})
    after = tags_of(again(data, ".png"), tmp_path / "out.png")
    has(after, {"Canon:CanonImageType": "an image type 12345"})


@needs_exiftool
def test_every_page_keeps_its_own(tmp_path):
    pages = [
        Page(SCENE16, None, Metadata(exif=block_with("first"), dpi=(600.0, 600.0))),
        Page(GREY, GREY, Metadata(exif=block_with("second"), xmp=None, iptc=None)),
        Page(SCENE, None, Metadata()),
    ]
    data = encode_pages(pages, software=COLORIZED)
    tags = tags_of(data, tmp_path / "a.tif")
    has(tags, {"IFD0:Make": "first", "IFD1:Make": "second", "IFD0:XResolution": 600})
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert [page.tags[0x0131].value for page in file.pages] == [COLORIZED] * 3
        stored = [page.asarray() for page in file.pages]
    np.testing.assert_array_equal(stored[0], SCENE16)
    np.testing.assert_array_equal(stored[1], np.dstack([GREY, GREY]))
    np.testing.assert_array_equal(stored[2], SCENE)
    first, second, third = read_original(data)
    np.testing.assert_array_equal(first.pixels, SCENE16)
    np.testing.assert_array_equal(second.alpha, GREY)
    assert first.metadata.dpi == (600.0, 600.0)
    assert exif_module.descriptive(second.metadata.exif).fields[0x010F].value == b"second\0"
    assert third.alpha is None


def block_with(make):
    made = Image.Exif()
    made[0x010F] = make
    return made.tobytes().removeprefix(b"Exif\0\0")


@needs_exiftool
def test_pages_of_both_byte_orders(tmp_path):
    blocks = []
    for order in ("II", "MM"):
        path = tmp_path / f"{order}.jpg"
        path.write_bytes(encode("JPEG"))
        exiftool(
            "-overwrite_original",
            f"-ExifByteOrder={order}",
            *(f"-{name}={value}" for name, value in DETAILS.items() if "Interop" not in name),
            path,
        )
        (original,) = read_original(path.read_bytes())
        assert original.metadata.exif[:2] == order.encode()
        blocks.append(original.metadata)
    wanted = {name: value for name, value in DETAILS.items() if name[:3] in {"IFD", "Exi", "GPS"}}
    for first, second in (blocks, blocks[::-1]):
        data = encode_pages([Page(SCENE, None, first), Page(GREY, None, second)])
        tags = tags_of(data, tmp_path / "a.tif")
        has(tags, wanted)
        assert tags["IFD1:Artist"] == DETAILS["IFD0:Artist"]
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            details = [page.tags["ExifTag"].value for page in file.pages]
        assert details[0] == details[1]
        assert details[0]["ExposureTime"] == (1, 250)


@needs_exiftool
def test_texts_of_a_png_are_kept(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode("PNG"))
    exiftool("-overwrite_original", "-PNG:Title=Ünder", "-PNG:Comment=" + "long " * 99, path)
    before = path.read_bytes()
    tags = tags_of(again(before, ".png"), path)
    has(tags, {"PNG:Title": "Ünder", "PNG:Comment": ("long " * 99)})


@needs_exiftool
def test_iptc_in_the_ways_of_other_programs(tmp_path):
    """Photoshop's resources in a TIFF, and ImageMagick's text in a PNG."""
    path = tmp_path / "a.jpg"
    data = described(encode("JPEG"), path, orientation=1)
    (original,) = read_original(data)
    iptc = original.metadata.iptc
    resource = struct.pack(">4sHHI", b"8BIM", 0x0404, 0, len(iptc)) + iptc + bytes(len(iptc) & 1)
    other = struct.pack(">4sHBB3sI", b"8BIM", 0x03ED, 3, 120, b"yz ", 4) + b"abcd"
    photoshop = other[:6] + b"\x03xyz" + struct.pack(">I", 4) + b"abcd" + resource
    data = tiff(SCENE, photometric="rgb", extratags=[(34377, 7, len(photoshop), photoshop, True)])
    (original,) = read_original(data)
    assert original.metadata.iptc == iptc


# -- without exiftool ------------------------------------------------------------------------------


def test_nothing_is_kept_where_nothing_is():
    for data in (
        encode("JPEG"),
        encode("PNG"),
        encode("WEBP"),
        encode("GIF"),
        opencv(".ppm", SCENE),
    ):
        (original,) = read_original(data)
        assert original.metadata == Metadata()


@pytest.mark.parametrize("order", "<>")
def test_a_thumbnail_is_cut_off(order):
    magic = b"II*\0" if order == "<" else b"MM\0*"
    first = struct.pack(order + "IHHHIHxxI", 8, 1, 0x0112, 3, 1, 6, 26)
    second = struct.pack(order + "HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, 9, 0)
    block = magic + first + second
    assert len(block) == 56
    cut = exif_module.reset_exif(block + b"thumbnail", turned=False)
    assert b"thumbnail" not in cut
    assert len(cut) == 56
    fields, following = exif_module.read_fields(cut, 8)
    assert exif_module.number(fields[0x0112], order) == 1
    assert struct.unpack_from(order + "I", cut, following) == (0,)
    erased = exif_module.reset_exif(block + b"thumbnail and more", turned=False)
    assert erased.endswith(bytes(9) + b" and more")


def test_damaged_metadata_do_not_matter():
    for block in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM", exif(6)[:20]):
        (original,) = read_original(encode("JPEG", exif=block + bytes(1)))
        assert original.pixels.shape == SCENE.shape
        encode_picture(original.pixels, ".jpg", metadata=original.metadata, software="x")
    broken = Metadata(exif=b"no exif", xmp=b"\xff\xfe\0", iptc=b"?", dpi=(0.001, 1e9))
    kept = reset(broken, turned=True)
    assert kept.exif is None
    for suffix in (".jpg", ".png", ".tif", ".webp", ".bmp"):
        for metadata in (broken, kept):
            data = encode_picture(SCENE, suffix, metadata=metadata, software="x")
            (original,) = read_original(data)
            assert original.pixels.shape == SCENE.shape


def test_what_a_segment_cannot_hold():
    """64 kB: longer EXIF, of a PNG, is reduced to names and dates, and longer XMP left out."""
    made = Image.Exif()
    made[0x010F] = "a camera"
    made.get_ifd(0x8769)[0x927C] = bytes(70_000)
    block = made.tobytes().removeprefix(b"Exif\0\0")
    metadata = Metadata(exif=block, xmp=b"x" * 70_000, iptc=b"\x1c\x02" * 40_000)
    data = encode_picture(SCENE, ".jpg", metadata=metadata, software=COLORIZED)
    with Image.open(io.BytesIO(data)) as image:
        tags = image.getexif()
        assert (tags[0x010F], tags[0x0131]) == ("a camera", COLORIZED)
        assert "xmp" not in image.info
    (original,) = read_original(data)
    assert original.metadata.iptc == metadata.iptc
    (original,) = read_original(encode_picture(SCENE, ".png", metadata=metadata))
    assert original.metadata == metadata
