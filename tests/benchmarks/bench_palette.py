"""CPU time of fitting a palette to a histogram against k-means on the pixels themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from colorcore.dataset import read_histogram
from colorcore.palette import fit_palette
from tests.benchmarks.paired import compare

PIXELS = 200_000


def run(dataset: Path) -> None:
    """Print the ratio, on a sample of the pixels: all of them would take minutes."""
    histogram = read_histogram(dataset)
    rng = np.random.default_rng(0)
    share = histogram.ravel() / histogram.sum()
    cells = rng.choice(histogram.size, PIXELS, p=share)
    pixels = np.stack(np.unravel_index(cells, histogram.shape), axis=1).astype(np.float32) - 128

    def ours() -> None:
        fit_palette(histogram)

    def naive() -> None:
        KMeans(313, n_init=1, random_state=0).fit(pixels)

    print(f"palette of {histogram.sum():,} pixels against k-means on {PIXELS:,} of them")
    compare("palette, CPU-ms", ours, naive, per=1, unit="ms", rounds=3)
