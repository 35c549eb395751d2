"""Write pictures as PNG, JPEG or WebP."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.storage.atomic import replace_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
}


def save_picture(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write an sRGB picture (H, W, 3) uint8 without metadata, whole or not at all.

    The suffix selects the format: .png is lossless, .jpg and .webp are smaller and slightly lossy.

    Raises:
        ValueError: the array has another shape or type, or the suffix is not one of the three.
    """
    from PIL import Image

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected a picture (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"expected a name ending in {', '.join(_FORMATS)}, got {path.name}")
    name, options = _FORMATS[path.suffix.lower()]
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format=name, **options)
    replace_bytes(path, buffer.getvalue())
