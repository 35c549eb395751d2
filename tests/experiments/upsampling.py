"""What guidance by lightness gains when ab is upsampled, beside interpolation alone.

    python -m tests.experiments.upsampling --photos DIR

The photos' own ab is reduced to 128, 64 and 32 pixels on the shorter side, as a network would give
it, and upsampled again. The error is the distance in ab units from the photo's own ab, over all
pixels and over the tenth of them where ab changes most: the edges.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from colorcore.color.pixels import lightness
from colorcore.colorizing.upsampling import Upsampled
from colorcore.photos.read import PHOTO_SUFFIXES, read_photo
from colorcore.scores.spread import spread_of

SIDES = (128, 64, 32)
WAYS = ("bilinear", "bicubic", "guided")


def main() -> None:
    """Print the errors, as means over photos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--most", type=int, default=200)
    options = parser.parse_args()
    files = sorted(x for x in options.photos.rglob("*") if x.suffix.lower() in PHOTO_SUFFIXES)
    errors: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for file in files[: options.most]:
        rgb = read_photo(file.read_bytes()).rgb
        for side in SIDES:
            if min(rgb.shape[:2]) >= 2 * side:
                for way, found in errors_of(rgb, side).items():
                    errors[side, way].append(found)
    print("| px | way | photos | error at edges | error |\n|---|---|---|---|---|")
    for (side, way), rows in errors.items():
        edge, whole = (spread_of([row[column] for row in rows]).mean for column in (0, 1))
        print(f"| {side} | {way} | {len(rows)} | {edge:.2f} | {whole:.2f} |")


def errors_of(rgb: NDArray[np.uint8], side: int) -> dict[str, tuple[float, float]]:
    """The errors at edges and everywhere of each way of upsampling, in ab units."""
    height, width = rgb.shape[:2]
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    scale = side / min(height, width)
    size = round(width * scale), round(height * scale)
    small = np.asarray(cv2.resize(lab, size, interpolation=cv2.INTER_AREA), np.float32)
    ab = np.ascontiguousarray(small[..., 1:].transpose(2, 0, 1))
    L = np.ascontiguousarray(small[..., 0])
    guided = Upsampled(L, ab, height, width).strip(lightness(rgb), 0)
    made = {
        "bilinear": cv2.resize(small[..., 1:], (width, height), interpolation=cv2.INTER_LINEAR),
        "bicubic": cv2.resize(small[..., 1:], (width, height), interpolation=cv2.INTER_CUBIC),
        "guided": np.stack(guided, axis=-1),
    }
    edges = edges_of(np.asarray(lab[..., 1:], np.float32))
    result = {}
    for way in WAYS:
        error = np.linalg.norm(made[way] - lab[..., 1:], axis=-1)
        result[way] = float(error[edges].mean()), float(error.mean())
    return result


def edges_of(ab: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The tenth of the pixels where ab (H, W, 2) changes most."""
    smooth = cv2.GaussianBlur(ab, (0, 0), 1.0)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *way) for way in ((1, 0), (0, 1)))
    change = np.hypot(across, down).max(axis=-1)
    return np.asarray(change > np.percentile(change, 90))


if __name__ == "__main__":
    main()
