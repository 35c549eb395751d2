"""A palette from the histogram of 10⁹ pixels beside k-means on a million of the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min

from colorcore.color.fit_palette import fit_palette
from colorcore.dataset.layout import read_histogram
from tests.benchmarks.paired import cpu_ms, measure, row

BINS = 313
ALL = 10**9
SOME = 10**6


def run(dataset: Path) -> None:
    """Print the ratios of CPU time and of inertia, over all pixels in ab units squared."""
    counts = read_histogram(dataset)
    histogram = np.rint(counts * (ALL / counts.sum())).astype(np.int64)
    cells = np.stack(np.nonzero(histogram), axis=1).astype(np.float64) - 128
    share = histogram[histogram > 0] / histogram.sum()
    drawn = np.random.default_rng(0).choice(len(cells), SOME, p=share)
    kmeans = KMeans(BINS, n_init=1, random_state=0)
    pixels = cells[drawn].astype(np.float32)
    sides = {
        "ours": cpu_ms(lambda: fit_palette(histogram, bins=BINS)),
        "k-means": cpu_ms(lambda: kmeans.fit(pixels)),
    }
    spent = measure(sides, rounds=1, warm=False)
    row(f"palette of {ALL:.0e} pixels, CPU-ms: k-means on {SOME:.0e}", *spent.values())

    def inertia(centroids: np.ndarray) -> float:
        _, distance = pairwise_distances_argmin_min(cells, centroids.astype(np.float64))
        return float(share @ distance**2)

    mine = inertia(fit_palette(histogram, bins=BINS).centroids)
    row("palette, mean squared error: the same", [mine], [inertia(kmeans.cluster_centers_)])
