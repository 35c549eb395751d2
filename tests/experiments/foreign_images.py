"""Compare the reader of photos with an independent decoder, libvips, on any folder of images.

    pip install 'pyvips[binary]'
    python -m tests.experiments.foreign_images FOLDER

The test images of other projects are good folders: those of Pillow, libpng, libtiff, ExifTool.
Prints a table by format, then each file that only one of the two reads or whose pixels differ by
more than ``--levels`` of 255. Not every difference is our error: libvips reads no BMP, shows CMYK
without a profile through one of its own, and upsamples the colours of an AVIF in another way.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from colorcore.photos.read import PHOTO_SUFFIXES, photo_header, read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused

LIMITS = PhotoLimits(min_side=1, max_aspect=float("inf"))
COLUMNS = ("files", "same", "differ", "only cc", "only libvips", "neither")


def by_libvips(path: Path) -> np.ndarray | str:
    """Upright sRGB over white (H, W, 3) uint8, or why there is none."""
    import pyvips

    try:
        image = pyvips.Image.new_from_file(str(path), fail_on="error").copy_memory().autorot()
        if image.get_typeof("icc-profile-data"):
            to_srgb = {"intent": "relative", "black_point_compensation": True, "depth": 8}
            image = image.icc_transform("srgb", **to_srgb)
        else:
            image = image.colourspace("srgb")
        image = image.flatten(background=[255, 255, 255]) if image.hasalpha() else image
        pixels = image.cast("uchar").numpy()
    except pyvips.Error as error:
        return " ".join(str(error).split())[:120]
    return np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))


def by_cc(data: bytes) -> np.ndarray | str:
    """The photo as `cc` reads it, or why it is refused."""
    try:
        return read_photo(data, limits=LIMITS).rgb
    except PhotoRefused as refused:
        return str(refused)


def compare(own: np.ndarray | str, other: np.ndarray | str, levels: int) -> tuple[str, str]:
    """The column of a file, and a remark unless both decoders agree."""
    if isinstance(own, str):
        return ("neither", "") if isinstance(other, str) else ("only libvips", own)
    if isinstance(other, str):
        return "only cc", other
    if own.shape != other.shape:
        return "differ", f"{own.shape[1]}x{own.shape[0]}, not {other.shape[1]}x{other.shape[0]}"
    apart = np.abs(own.astype(np.int16) - other)
    remark = f"by {apart.max()} at most, {apart.mean():.2f} on average"
    return ("differ", remark) if apart.max() > levels else ("same", "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--levels", type=int, default=3)
    given = parser.parse_args()
    table: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: Counter[str] = Counter()
    remarks: list[str] = []
    slowest: tuple[float, Any] = (0.0, None)
    for path in sorted(given.folder.rglob("*")):
        if path.suffix.lower() not in PHOTO_SUFFIXES or not path.is_file():
            continue
        data = path.read_bytes()
        try:
            kind = photo_header(data)[0]
        except PhotoRefused:
            kind = "no header"
        start = time.perf_counter()
        own = by_cc(data)
        slowest = max(slowest, (time.perf_counter() - start, path), key=lambda taken: taken[0])
        if isinstance(own, str):
            reasons[own.partition(":")[0]] += 1
        column, remark = compare(own, by_libvips(path), given.levels)
        table[kind].update(["files", column])
        if remark:
            remarks.append(f"{column}: {path.relative_to(given.folder)}: {remark}")
    print(f"{'':12}" + "".join(f"{column:>14}" for column in COLUMNS))
    for kind, counts in sorted(table.items()):
        print(f"{kind:12}" + "".join(f"{counts[column]:14}" for column in COLUMNS))
    print(f"\nrefused: {dict(reasons)}; slowest: {slowest[0]:.1f} s, {slowest[1]}\n")
    print("\n".join(sorted(remarks)))


if __name__ == "__main__":
    main()
