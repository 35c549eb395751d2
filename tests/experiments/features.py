"""What KID and the perceptual distance of `cc eval` see: the table of docs/training.md.

    python -m tests.experiments.features --photos DIR [--size 256]

Real photos are compared with changed copies of themselves: grey, hues turned in the ab plane, and
more or less chroma. The row "other photos" compares every other photo with the ones in between: it
is the KID of sets that do not differ. At 256 px, 200 photos take about a minute on one CPU thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colorcore.blocks.features import LiteFeatures, enlarged
from colorcore.color.lab import decode_lab, lab_to_rgb
from colorcore.dataset.sample import lab_of
from colorcore.photos.refusal import PhotoLimits
from colorcore.scores.kid import kernel_distance
from colorcore.scores.metrics import grey_baseline
from colorcore.scores.perceptual import (
    DISTANCE,
    KID,
    KID_ERROR,
    KID_UNIT,
    SMALLEST,
    PerceptualScores,
)
from pipelines.sources.reading import photos_of
from pipelines.sources.source import open_sources

BATCH = 16


def turned(degrees: float) -> Callable[[Tensor], Tensor]:
    """All hues turned by an angle in the ab plane. LAB (B, 3, H, W) -> the same."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turn(lab: Tensor) -> Tensor:
        L, a, b = lab.split(1, dim=1)
        return torch.cat([L, cos * a - sin * b, sin * a + cos * b], dim=1)

    return turn


def chroma(factor: float) -> Callable[[Tensor], Tensor]:
    """All chroma times a factor. LAB (B, 3, H, W) -> the same."""
    return lambda lab: lab * lab.new_tensor([1.0, factor, factor]).reshape(1, 3, 1, 1)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "grey": grey_baseline,
    "hue turned by 90°": turned(90),
    "hue turned by 180°": turned(180),
    "chroma ×0.5": chroma(0.5),
    "chroma ×0.8": chroma(0.8),
    "chroma ×1.5": chroma(1.5),
}


def batches(photos: Path, size: int) -> Iterator[Tensor]:
    """True LAB (B, 3, size, size) of the centre squares of all photos."""
    limits = PhotoLimits()
    found = photos_of(open_sources([str(photos)]), limits.max_bytes, Counter())
    rows = [lab_of(photo.data(), size, limits) for photo in found]
    for batch in torch.from_numpy(np.stack(rows)).split(BATCH):
        yield decode_lab(batch)


def main() -> None:
    """Print a row per change: KID with its standard error, and the perceptual distance."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--size", type=int, default=256, help="side of the photos in pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scores, network = PerceptualScores(CHANGES), LiteFeatures(classifier=True)
    pooled: list[Tensor] = []
    spent = 0.0
    for lab in batches(arguments.photos, arguments.size):
        started = time.process_time()
        scores.update(lab, lab)
        spent += time.process_time() - started
        with torch.no_grad():
            for rgb in enlarged(lab_to_rgb(lab), SMALLEST).split(4):
                pooled += network.pooled(network(rgb))
    truth = torch.stack(pooled)
    half = len(truth) // 2
    apart = kernel_distance(truth[: 2 * half : 2], truth[1 : 2 * half : 2])
    # The photos themselves were scored as the model, too: the network ran on them twice.
    cost = 1000 * spent / len(truth) / (len(CHANGES) + 2)
    print(f"{len(truth)} photos at {arguments.size} px, {cost:.0f} ms of CPU per photo and row\n")
    print("| photos compared with | KID Lite0 ×10³ | perceptual Lite0 |\n|---|---|---|")
    print(f"| other photos | {_kid(apart.value / KID_UNIT, apart.error / KID_UNIT)} | |")
    for name, found in scores.compute().items():
        row = "themselves" if name == "model" else name
        print(f"| {row} | {_kid(found[KID], found[KID_ERROR])} | {found[DISTANCE]:.3f} |")


def _kid(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
