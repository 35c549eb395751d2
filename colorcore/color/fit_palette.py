"""Fit a palette to an ab histogram: weighted k-means, or a grid in gamut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from colorcore.color.bins import SIGMA, cell_ab, nearest_bins
from colorcore.color.colorfulness import GREY_CHROMA
from colorcore.color.lab import lab_to_rgb
from colorcore.color.palette import (
    LAM,
    Palette,
    bin_priors,
    bin_weights,
    check_centroids,
    histogram_shares,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


HUE_SECTOR = 15.0
"""Degrees; within a sector, bins are ordered from pale to vivid."""
MAX_ITER = 100
"""Limit of Lloyd iterations; real photos need 20 to 50.

On histograms that fill all 65,536 cells, this limit and scikit-learn's tolerance end at most 0.4%
above the inertia of full convergence, in less than half the time.
"""


def fit_palette(
    histogram: NDArray[np.integer[Any]],
    *,
    bins: int = 313,
    method: Literal["kmeans", "grid"] = "kmeans",
    power: float = 1.0,
    seed: int = 0,
    centroids: ArrayLike | None = None,
    dataset: str = "",
) -> Palette:
    """The palette of a dataset; the same arguments give the same bytes.

    ``kmeans`` puts the bins where the photos have their colours. ``grid`` puts them on the
    square lattice around neutral whose spacing gives exactly ``bins`` points in the sRGB gamut
    (313 points: 8.4 ab units; spacing 10 gives 225, because a point counts only if the gamut
    contains it, not if it shares a 10 × 10 cell with the gamut). Both methods order their bins by
    :func:`hue_order`.

    Only the histogram's proportions matter: counts times 1,000 give the same palette.

    Args:
        histogram: (256, 256) counts of the stored (a, b) cells of the training photos.
        bins: Q; ignored if ``centroids`` are given.
        method: ``kmeans`` or ``grid``.
        power: k-means weighs a cell by count**power, 0..2; 0.5 gives vivid colours more bins.
        seed: random seed of k-means++.
        centroids: (Q, 2) ab units, used unchanged and in this order instead of a fit.
        dataset: fingerprint of the dataset, kept in ``about``.

    Raises:
        ValueError: an argument is out of range, the histogram is empty, or the histogram has fewer
            colours than ``bins``.
    """
    share = histogram_shares(histogram)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    if not 0 <= power <= 2:
        raise ValueError(f"power must be in 0..2, got {power}")
    about: dict[str, Any] = {
        "method": method,
        "power": None,
        "seed": None,
        "sigma": SIGMA,
        "lam": LAM,
        "dataset": dataset,
    }
    if centroids is not None:
        about["method"] = "given"
        points = check_centroids(centroids)
    elif method == "kmeans":
        about |= {"power": power, "seed": seed}
        points = hue_order(_kmeans(share, bins, power, seed))
    elif method == "grid":
        points, spacing = _grid(bins)
        points = hue_order(points)
        about["spacing"] = round(spacing, 4)
    else:
        raise ValueError(f"method must be 'kmeans' or 'grid', got {method!r}")
    stored = points.astype(np.float32)
    bin_of_cell = nearest_bins(stored)
    priors = bin_priors(share, bin_of_cell, len(stored))
    about |= {"bins": len(stored), "rms_error": round(_rms_error(share, stored, bin_of_cell), 4)}
    return Palette(
        centroids=stored,
        priors=priors.astype(np.float32),
        weights=bin_weights(priors).astype(np.float32),
        about=about,
    )


def hue_order(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (Q, 2) sorted by hue, the same for any order of the input.

    First the near-neutral points (chroma up to 6), then 24 hue sectors of 15° from +a through +b
    (reds, yellows, greens, blues, purples), each from pale to vivid.
    """
    chroma = np.hypot(points[:, 0], points[:, 1])
    hue = np.degrees(np.arctan2(points[:, 1], points[:, 0])) % 360.0
    sector = np.where(chroma <= GREY_CHROMA, -1.0, np.floor(hue / HUE_SECTOR))
    return points[np.lexsort((points[:, 1], points[:, 0], chroma, sector))]


def gamut_lightness(ab: NDArray[Any], *, near: float = 65.0) -> NDArray[np.float64]:
    """The integer L in 1..99 closest to ``near`` at which a colour is in sRGB, or NaN.

    ab (N, 2) ab units -> (N,).
    """
    import torch

    points = torch.from_numpy(np.ascontiguousarray(ab, dtype=np.float64).T.copy())
    found = torch.full((points.shape[1],), torch.nan, dtype=torch.float64)
    # sRGB lies within a -86.2..98.3 and b -107.9..94.5; colours outside need no search.
    low, high = torch.tensor([[-87.0], [-109.0]]), torch.tensor([[99.0], [95.0]])
    open_ = torch.nonzero(((points > low) & (points < high)).all(dim=0))[:, 0]
    points = points[:, open_]
    levels = torch.tensor(sorted(range(1, 100), key=lambda L: abs(L - near)), dtype=torch.float64)
    while len(levels) and len(open_):
        # Several levels at a time when few points are left: about 2^17 colours per call of torch.
        bite = max(1, 2**17 // len(open_))
        trial, levels = levels[:bite, None, None], levels[bite:]
        shape = (len(trial), 1, len(open_))
        lab = torch.cat([trial.expand(shape), points.expand(len(trial), 2, -1)], dim=1)
        rgb = lab_to_rgb(lab[:, :, None], clip=False)[:, :, 0]
        fits = ((rgb >= -1e-4) & (rgb <= 1 + 1e-4)).all(dim=1)
        inside = fits.any(dim=0)
        found[open_[inside]] = trial[fits.byte().argmax(dim=0)[inside], 0, 0]
        open_, points = open_[~inside], points[:, ~inside]
    return found.numpy()


def _kmeans(share: NDArray[np.float64], bins: int, power: float, seed: int) -> NDArray[np.float64]:
    """K-means centroids (bins, 2) of the occupied cells, each weighted by share**power.

    One thread: scikit-learn adds the threads' partial sums in the order in which they finish, which
    changes the last digits, and a second thread saves no CPU time here. With many points in two
    dimensions, Lloyd's plain iterations are cheaper than Elkan's bounds (0.9 vs. 1.1 s on a full
    histogram).
    """
    import sklearn.cluster
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    occupied = share.ravel() > 0
    cells = int(occupied.sum())
    if cells < bins:
        raise ValueError(
            f"expected at least {bins} colours for {bins} bins, but the photos have only {cells} "
            "distinct (a, b) values; ask for fewer bins, add photos, or use method 'grid'"
        )
    weight = share.ravel()[occupied] ** power
    kmeans = sklearn.cluster.KMeans(
        bins, n_init=1, init="k-means++", max_iter=MAX_ITER, random_state=seed, algorithm="lloyd"
    )
    with threadpool_limits(limits=1):
        kmeans.fit(cell_ab()[occupied], sample_weight=weight / weight.sum())
    return np.asarray(kmeans.cluster_centers_, dtype=np.float64)


def _grid(bins: int) -> tuple[NDArray[np.float64], float]:
    """The square lattice around neutral with exactly ``bins`` points in the gamut, and its spacing.

    The gamut is star-shaped around neutral with outline r(hue), so the lattice point s·(i, j) is
    inside up to the spacing s = r / |(i, j)|. The ``bins`` points with the largest such spacing
    are the lattice, and the smallest spacing among them is s.
    """
    # The gamut's area of 22,100 and its longest chroma of 134 make s ≈ 149 / √Q, so no
    # point more than 0.9 √Q steps out is inside.
    reach = int(np.ceil(np.sqrt(bins))) + 2
    axis = np.arange(-reach, reach + 1, dtype=np.float64)
    steps = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    length = np.hypot(steps[:, 0], steps[:, 1])
    near = (length > 0) & (length <= reach)
    steps, length = steps[near], length[near]
    direction = steps / length[:, None]
    low, high = np.zeros(len(steps)), np.full(len(steps), 150.0)
    for _ in range(14):  # to 0.01 ab units
        middle = (low + high) / 2
        inside = ~np.isnan(gamut_lightness(direction * middle[:, None]))
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    spacing = low / length
    longest = np.argsort(-spacing, kind="stable")[: bins - 1]
    chosen = float(spacing[longest].min(initial=spacing.max()))
    return np.concatenate([np.zeros((1, 2)), steps[longest] * chosen]), chosen


def _rms_error(
    share: NDArray[np.float64], centroids: NDArray[np.float32], bin_of_cell: NDArray[np.int32]
) -> float:
    """Root mean square distance, in ab units, from the photos' colours to their bins."""
    offset = cell_ab() - centroids[bin_of_cell.ravel()]
    return float(np.sqrt(share.ravel() @ (offset**2).sum(axis=1)))
