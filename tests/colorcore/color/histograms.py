"""Histograms for tests of the palette: from a few cells, or from synthetic pixels."""

import numpy as np
from hypothesis import strategies as st

ZHANG_LIKE = [(-50.0, 0.0), (0.0, 0.0), (50.0, 0.0), (0.0, 50.0), (0.0, -50.0), (40.0, 40.0)]


def histogram_of(cells):
    """{(a, b): count} in ab units -> histogram."""
    histogram = np.zeros((256, 256), np.int64)
    for (a, b), count in cells.items():
        histogram[a + 128, b + 128] = count
    return histogram


def scattered(seed=0, photos=8, size=96):
    """Stored ab pixels (N, 2) of synthetic photos, each with a few patches of colour."""
    rng = np.random.default_rng(seed)
    pixels = []
    for _ in range(photos):
        hues = rng.normal(0, 25, (4, 2))
        which = rng.integers(0, 4, size * size)
        pixels.append(hues[which] + rng.normal(0, 6, (size * size, 2)))
    return np.clip(np.rint(np.concatenate(pixels)) + 128, 0, 255).astype(np.uint8)


def histogram_of_pixels(ab_u8):
    flat = ab_u8[:, 0].astype(np.int64) * 256 + ab_u8[:, 1]
    return np.bincount(flat, minlength=65536).reshape(256, 256)


sparse_histograms = st.dictionaries(
    st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
    st.integers(1, 10**12),
    min_size=1,
    max_size=60,
).map(histogram_of)
