"""Grey and toned renderings of colour photos: what a scanner makes of monochrome prints."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image


def grey_of(photo):
    """Luma in 0..255, (H, W, 1)."""
    return photo @ np.array([[0.299], [0.587], [0.114]])


def in_bytes(picture):
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def sepia(photo, strength):
    """The sepia matrix of the CSS filter, mixed with grey."""
    matrix = [[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]]
    toned = np.clip(photo @ np.transpose(matrix), 0, 255)
    return in_bytes(strength * toned + (1 - strength) * grey_of(photo))


def inks(photo, dark, light):
    """Grey mapped to a ramp from one colour to another."""
    t = grey_of(photo) / 255
    return in_bytes(t * np.array(light) + (1 - t) * np.array(dark))


TONED = {
    **{f"sepia-{s}": lambda photo, s=s: sepia(photo, s) for s in (0.5, 0.75, 1.0)},
    "cyanotype-deep": lambda photo: inks(photo, (0, 25, 80), (245, 250, 245)),
    "cyanotype": lambda photo: inks(photo, (0, 49, 83), (255, 255, 255)),
    "cyanotype-pale": lambda photo: inks(photo, (10, 40, 110), (230, 240, 250)),
    "duotone-violet-peach": lambda photo: inks(photo, (30, 10, 80), (255, 200, 120)),
    "duotone-wine-mint": lambda photo: inks(photo, (90, 0, 40), (120, 255, 220)),
    "tint-cream": lambda photo: inks(photo, (0, 0, 0), (255, 230, 180)),
    "tint-orange": lambda photo: inks(photo, (0, 0, 0), (255, 200, 120)),
    "tint-pink": lambda photo: inks(photo, (0, 0, 0), (255, 128, 128)),
    "overlay-faint": lambda photo: in_bytes(0.85 * grey_of(photo) + [38, 18, 3]),
    "overlay": lambda photo: in_bytes(0.5 * grey_of(photo) + [128, 60, 10]),
}


def grey(photo):
    """Grey stored as RGB."""
    return np.repeat(in_bytes(grey_of(photo)), 3, axis=2)


def noisy(photo):
    """Grey with independent noise of 6 levels per channel."""
    noise = np.random.default_rng(0).normal(0, 6, photo.shape)
    return in_bytes(grey_of(photo) + noise)


def unevenly_yellowed(photo):
    """Paper that has yellowed three times as much at its edges as in its middle."""
    height, width = photo.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    strength = 0.3 + 0.35 * (y**2 + x**2)[..., None]
    return in_bytes(grey_of(photo) * (1 - strength * [0.0, 0.12, 0.38]))


def dated(picture):
    """The picture with the orange date that cameras print into a corner."""
    picture = picture.copy()
    height, width = picture.shape[:2]
    cv2.putText(
        picture, "'94  7 23", (int(width * 0.78), int(height * 0.95)), cv2.FONT_HERSHEY_SIMPLEX,
        width / 1500, (255, 130, 30), max(1, round(width / 600)), cv2.LINE_AA,
    )  # fmt: skip
    return picture


SCANS = {
    "grey": grey,
    "grey, noise": noisy,
    "grey, date": lambda photo: dated(grey(photo)),
    "selenium": lambda photo: inks(photo, (30, 15, 30), (250, 245, 240)),
    "cast, warm": lambda photo: in_bytes(grey_of(photo) * [1.0, 0.9, 0.75]),
    "cast, cold": lambda photo: in_bytes(grey_of(photo) * [0.8, 0.95, 1.0]),
    "yellowed": lambda photo: inks(photo, (35, 25, 15), (245, 225, 170)),
    "yellowed, date": lambda photo: dated(inks(photo, (35, 25, 15), (245, 225, 170))),
    "yellowed unevenly": unevenly_yellowed,
}
"""In addition to ``TONED``: what ages, scanners and cameras add to monochrome prints."""


def encoded(picture, quality: int | None):
    """A PNG, or a JPEG of some quality."""
    out = io.BytesIO()
    image = Image.fromarray(picture)
    image.save(out, "PNG") if quality is None else image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def through_jpeg(picture, quality: int):
    """The picture after JPEG compression, with chroma at half the size."""
    data = np.frombuffer(encoded(picture, quality), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
