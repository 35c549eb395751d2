"""The other side of the sharding benchmark: what one writes in an afternoon.

Pillow decodes and resizes, scikit-image converts to LAB, webdataset's TarWriter writes float32.
Single process, no filter, no index.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from skimage.color import rgb2lab


def naive_shard(photos: list[Path], target: Path, size: int) -> int:
    """Write one tar of float32 LAB arrays; returns the number of photos written."""
    written = 0
    with webdataset.TarWriter(str(target)) as tar:
        for number, path in enumerate(photos):
            with Image.open(path) as opened:
                rgb = opened.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
            lab = rgb2lab(np.asarray(rgb)).astype(np.float32)
            tar.write({"__key__": f"{number:06d}", "lab.npy": lab})
            written += 1
    return written
