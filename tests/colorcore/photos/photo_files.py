"""Photos in memory for tests of the reader: one scene, in every format."""

import struct
from io import BytesIO

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, features

from colorcore.photos.read import DecodedPhoto, read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused

HEIGHT, WIDTH = 96, 128
NO_LIMITS = PhotoLimits(min_side=1, max_aspect=1e9)


def scene(height=HEIGHT, width=WIDTH):
    """A smooth picture without any symmetry. (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(7 * x + 2 * y), np.sin(5 * y + 1), np.cos(4 * x - 6 * y + 2 * x * y)]
    return np.rint(127.5 + 110 * np.stack(waves, -1)).astype(np.uint8)


SCENE = scene()
GREY = np.asarray(Image.fromarray(SCENE).convert("L"))


def encode(fmt, picture=SCENE, mode=None, **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = BytesIO()
    (image.convert(mode) if mode else image).save(out, fmt, **options)
    return out.getvalue()


def tiff(picture, **options):
    out = BytesIO()
    tifffile.imwrite(out, picture, **options)
    return out.getvalue()


def opencv(suffix, picture):
    """A file written by OpenCV, which can write 16 bits per channel, unlike Pillow."""
    order = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    code = order[picture.shape[2] if picture.ndim == 3 else 2]
    ok, data = cv2.imencode(suffix, picture if code is None else cv2.cvtColor(picture, code))
    assert ok
    return data.tobytes()


def pillow(data):
    """Pillow's own full decode, upright."""
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


def refusal(data, **options):
    with pytest.raises(PhotoRefused) as caught:
        read_photo(data, **options)
    assert caught.value.detail
    assert "\n" not in caught.value.detail
    return caught.value.reason


def difference(one, other):
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def over_white(rgb, alpha):
    share = alpha[..., None] / 255.0
    return np.rint(rgb * share + 255.0 * (1.0 - share)).astype(np.uint8)


def tiff_with(data, **tags):
    """A little-endian TIFF with some tags replaced: t256=60000."""
    out = bytearray(data)
    (directory,) = struct.unpack_from("<I", out, 4)
    (entries,) = struct.unpack_from("<H", out, directory)
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        name = f"t{struct.unpack_from('<H', out, at)[0]}"
        if name in tags:
            struct.pack_into("<HII", out, at + 2, 4, 1, tags.pop(name))
    assert not tags
    return bytes(out)


ALPHA = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))


def three(grey):
    return np.repeat(np.asarray(grey).astype(np.uint8)[..., None], 3, axis=2)


RGBA = np.dstack([SCENE, ALPHA])


def fixed(*values):
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def icc_profile(space, tags, *, kind=b"mntr", pcs=b"XYZ "):
    """A version 2 profile built from its tags (ICC.1:2001-04)."""
    tags = {"desc": b"desc" + struct.pack(">4xI", 5) + b"test\0" + bytes(78), **tags}
    tags["cprt"] = b"text" + bytes(4) + b"none\0"
    tags["wtpt"] = b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)
    table, blob = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        padded = tag + bytes(-len(tag) % 4)
        table += struct.pack(">4sII", name.encode(), start + len(blob), len(tag))
        blob += padded
    header = struct.pack(
        ">I4sI4s4s4s6H4s28x12s48x",
        *(start + len(blob), b"test", 0x02400000, kind, space, pcs),
        *(2026, 11, 1, 0, 0, 0, b"acsp", fixed(0.9642, 1.0, 0.8249)),
    )
    assert len(header) == 128
    return header + table + blob


SRGB_D50 = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]


def gamma(value):
    return b"curv" + struct.pack(">4xIH", 1, round(value * 256))


def rgb_profile(colorants, *curves):
    curves = curves * 3 if len(curves) == 1 else curves
    tags = {
        c + "XYZ": b"XYZ " + bytes(4) + fixed(*v) for c, v in zip("rgb", colorants, strict=True)
    }
    return icc_profile(b"RGB ", tags | {c + "TRC": v for c, v in zip("rgb", curves, strict=True)})


LINEAR = rgb_profile(SRGB_D50, gamma(1.0))


SCENE16 = SCENE.astype(np.uint16) * 257


RAMP16 = np.tile(np.linspace(0, 65535, WIDTH).astype(np.uint16), (HEIGHT, 1))


PALETTE = Image.fromarray(SCENE).quantize(64)


def palette_with_holes():
    """A palette picture with a half and a fully transparent entry, and the expected RGB."""
    image = Image.fromarray(SCENE).quantize(16)
    opacity = bytes({3: 128, 7: 0}.get(i, 255) for i in range(16))
    rgba = np.asarray(image.convert("RGB"))
    alpha = np.frombuffer(opacity, np.uint8)[np.asarray(image)]
    return encode("PNG", image, transparency=opacity), over_white(rgba, alpha)


def exif(orientation, order="<", kind=3, thumbnail=b""):
    """A minimal EXIF block, with another entry before the orientation."""
    entries = [(0x010F, 2, 4, b"cam\0"), (0x0112, kind, 1, orientation)]
    directory = struct.pack(order + "H", len(entries))
    for tag, letter, count, value in entries:
        form = {2: "4s", 3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i"}[letter]
        directory += struct.pack(order + "HHI" + form, tag, letter, count, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + magic + struct.pack(order + "I", 8) + directory + bytes(4) + thumbnail


WHOLE = {
    "jpeg": encode("JPEG", quality=95),
    "jpeg progressive": encode("JPEG", quality=95, progressive=True),
    "jpeg exif": encode("JPEG", exif=exif(6), icc_profile=LINEAR),
    "jpeg cmyk": encode("JPEG", SCENE, "CMYK"),
    "png": encode("PNG"),
    "png palette": palette_with_holes()[0],
    "png 16 bit grey": opencv(".png", RAMP16),
    "webp": encode("WEBP"),
    "webp lossless": encode("WEBP", RGBA, lossless=True, exif=exif(3), icc_profile=LINEAR),
    "gif": encode("GIF", PALETTE),
    "bmp": encode("BMP"),
    "tiff": encode("TIFF"),
    "tiff lzw": encode("TIFF", compression="tiff_lzw", icc_profile=LINEAR),
    "tiff jpeg": encode("TIFF", compression="jpeg"),
    "tiff 16 bit": tiff(SCENE16, photometric="rgb", tile=(32, 48)),
    "tiff big-endian": tiff(SCENE, photometric="rgb", byteorder=">", rowsperstrip=16),
}


if features.check("avif"):
    WHOLE["avif"] = encode("AVIF", RGBA)


def check_photo(result):
    assert isinstance(result, DecodedPhoto)
    assert result.rgb.dtype == np.uint8
    assert result.rgb.shape == (result.height, result.width, 3)
    assert result.rgb.flags["C_CONTIGUOUS"]
    assert result.rgb.flags["WRITEABLE"]
