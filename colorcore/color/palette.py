"""The palette: which colours a dataset has, how often, and how a network talks about them.

A network that answers with one (a, b) per pixel hedges towards brown. Answering with a
distribution over Q colour bins lets it say "red or blue, not purple" (Zhang, Isola and Efros
2016, "Colorful image colorization"). A palette is what such a network needs to know:

=============  ========  ======================================================
``centroids``  (Q, 2)    the bins' colours, ab units
``priors``     (Q,)      how often each occurs in the training photos, sum 1
``weights``    (Q,)      what a pixel of each counts for in a loss, mean 1 under the priors
=============  ========  ======================================================

All of it is fitted to the (256, 256) histogram of the stored (a, b) cells, never to pixels:
the photos are stored in these cells, so the histogram holds all that k-means can see, and a
palette of a billion photos costs what a palette of a thousand does. The same 65,536 cells make
nearest bins, balance and soft encoding plain tables.

NumPy is all that importing this needs; scikit-learn, SciPy and torch are imported where used.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from colorcore.color.colorfulness import GREY_CHROMA
from colorcore.color.lab import AB_OFFSET, lab_to_rgb
from colorcore.storage.atomic import npy_bytes

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from colorcore.storage.store import Store

CELLS = 256
"""Stored values of a, and of b: a histogram is (CELLS, CELLS), first a, then b."""
NEIGHBORS = 5
"""Bins that share a pixel in soft encoding (Zhang et al. 2016, §2.2)."""
SIGMA = 5.0
"""Width, in ab units, of both Gaussians: of soft encoding and of the smoothing of priors."""
LAM = 0.5
"""λ, the uniform part of the distribution that the weights invert (Zhang et al. 2016, eq. 4)."""
TEMPERATURE = 0.38
"""T of the annealed mean that Zhang et al. (2016, §2.3) found both vivid and smooth."""
UNIFORM_SHARE = 1e-4
"""Part of the priors that is spread evenly over the bins, so that none of them is zero.

With 313 bins an unseen one has a prior of 3e-7, far too little to move any weight at λ = 0.5.
"""
HUE_SECTOR = 15.0
"""Degrees; within a sector a fitted palette runs from pale to vivid."""
MAX_ITER = 100
"""Limit of Lloyd iterations; real photos take 20 to 50.

On histograms of all 65,536 cells it and scikit-learn's tolerance end at most 0.4% above the
inertia of iterating until nothing moves, in less than half the time.
"""

_FORMAT = 1
_ARRAYS = ("centroids", "priors", "weights")


@dataclass(frozen=True, eq=False)
class Palette:
    """Colour bins with their priors and loss weights; compare two by :attr:`fingerprint`.

    centroids  (Q, 2) float32, ab units, distinct
    priors     (Q,) float32 above 0, sum 1
    weights    (Q,) float32 above 0, mean 1 under the priors: Σ priors·weights = 1
    about      where it comes from (method, bins, dataset, ...), plain JSON values

    Raises:
        ValueError: an array has another shape or type, or does not hold what it says above.
    """

    centroids: NDArray[np.float32]
    priors: NDArray[np.float32]
    weights: NDArray[np.float32]
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bins = len(self.centroids)
        for name, shape in (("centroids", (bins, 2)), ("priors", (bins,)), ("weights", (bins,))):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(
                    f"expected {name} {shape} float32, got {array.shape} {array.dtype}"
                )
        check_centroids(self.centroids)
        for name in ("priors", "weights"):
            array = getattr(self, name)
            if not (np.isfinite(array).all() and (array > 0).all()):
                raise ValueError(f"expected finite {name} above 0, found {array.min()} among them")
        total = float(self.priors.sum(dtype=np.float64))
        mean = float(self.priors.astype(np.float64) @ self.weights)
        if abs(total - 1) > 1e-3 or abs(mean - 1) > 1e-3:
            raise ValueError(
                "expected priors that sum to 1 and weights of mean 1 under them, "
                f"got {total:.4g} and {mean:.4g}"
            )

    def __len__(self) -> int:
        """The number of bins, Q."""
        return len(self.centroids)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell palettes apart: of centroids, priors and weights alone."""
        digest = hashlib.sha256()
        for name in _ARRAYS:
            digest.update(getattr(self, name).astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def balance(self) -> NDArray[np.float32]:
        """The weight of each stored (a, b) cell's bin: (256, 256) float32."""
        return self.weights[nearest_bins(self.centroids)]


def fit_palette(
    histogram: NDArray[np.integer[Any]],
    *,
    bins: int = 313,
    method: Literal["kmeans", "grid"] = "kmeans",
    power: float = 1.0,
    sigma: float = SIGMA,
    lam: float = LAM,
    seed: int = 0,
    centroids: ArrayLike | None = None,
    dataset: str = "",
) -> Palette:
    """The palette of a dataset; the same arguments give the same bytes.

    ``kmeans`` puts the bins where the photos have their colours. ``grid`` puts them on the
    square lattice around neutral whose spacing gives exactly ``bins`` points in the sRGB gamut
    (313 points: 8.4 ab units; spacing 10 gives 225, as colours that only share a 10 × 10 cell
    with the gamut do not count here). The bins of both come in the order of :func:`hue_order`.

    Only the histogram's proportions matter: counts times 1,000 give the same palette.

    Args:
        histogram: (256, 256) counts of the stored (a, b) cells of the training photos.
        bins: Q. With ``centroids`` it is their number instead.
        method: ``kmeans`` or ``grid``.
        power: k-means weighs a cell by count**power, 0..2; 0.5 gives vivid colours more bins.
        sigma: width of the Gaussian that smooths the histogram for the priors, ab units.
        lam: λ of the weights, 0..1: 0 inverts the priors, 1 weighs all bins the same.
        seed: of k-means++.
        centroids: (Q, 2) ab units, used as they are and in their order, in place of a fit.
        dataset: fingerprint of the dataset, kept in ``about``.

    Raises:
        ValueError: an argument is out of range, the histogram is empty, or it has fewer colours
            than ``bins``.
    """
    share = _shares(histogram)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    if not 0 <= power <= 2:
        raise ValueError(f"power must be in 0..2, got {power}")
    about: dict[str, Any] = {
        "method": method,
        "power": None,
        "seed": None,
        "sigma": sigma,
        "lam": lam,
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
    priors = bin_priors(share, bin_of_cell, len(stored), sigma=sigma)
    about |= {"bins": len(stored), "rms_error": round(_rms_error(share, stored, bin_of_cell), 4)}
    return Palette(
        centroids=stored,
        priors=priors.astype(np.float32),
        weights=bin_weights(priors, lam=lam).astype(np.float32),
        about=about,
    )


def check_centroids(centroids: ArrayLike) -> NDArray[np.float64]:
    """Centroids from anywhere as (Q, 2) float64.

    Raises:
        ValueError: they are not (Q, 2), finite, within ±128 and distinct.
    """
    points = np.asarray(centroids, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"expected centroids (Q, 2), a row (a, b) a bin, got {points.shape}")
    if not (np.abs(points) <= AB_OFFSET).all():  # NaN is not <= either
        raise ValueError("expected centroids in ab units, finite and within -128..128")
    distinct = len(np.unique(points.astype(np.float32), axis=0))
    if distinct < len(points):
        raise ValueError(f"expected {len(points)} distinct centroids, only {distinct} differ")
    return points


def hue_order(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (Q, 2) sorted as a painter would lay them out, and always the same.

    First the near-neutral ones (chroma up to 6), then 24 hue sectors of 15° from +a over +b
    (reds, yellows, greens, blues, purples), in each from pale to vivid.
    """
    chroma = np.hypot(points[:, 0], points[:, 1])
    hue = np.degrees(np.arctan2(points[:, 1], points[:, 0])) % 360.0
    sector = np.where(chroma <= GREY_CHROMA, -1.0, np.floor(hue / HUE_SECTOR))
    return points[np.lexsort((points[:, 1], points[:, 0], chroma, sector))]


def bin_priors(
    histogram: NDArray[Any], bin_of_cell: NDArray[np.int32], bins: int, *, sigma: float = SIGMA
) -> NDArray[np.float64]:
    """How often each bin occurs: (Q,) float64 above 0, sum 1.

    The histogram (256, 256) is smoothed by a Gaussian of ``sigma`` ab units (Zhang et al. 2016,
    §2.2; cells are 1 unit wide), summed by bin and mixed with :data:`UNIFORM_SHARE` of the
    uniform distribution.

    Raises:
        ValueError: sigma is negative.
    """
    from scipy.ndimage import gaussian_filter

    if not 0 <= sigma <= CELLS:
        raise ValueError(f"sigma must be in 0..{CELLS}, got {sigma}")
    smooth = gaussian_filter(histogram.astype(np.float64), sigma, mode="constant")
    mass = np.bincount(bin_of_cell.ravel(), weights=smooth.ravel(), minlength=bins)
    priors: NDArray[np.float64] = (1 - UNIFORM_SHARE) * mass / mass.sum() + UNIFORM_SHARE / bins
    return priors


def bin_weights(priors: NDArray[Any], *, lam: float = LAM) -> NDArray[np.float64]:
    """Loss weights that rebalance rare colours (Zhang et al. 2016, eq. 4).

    priors p (Q,) -> w ∝ ((1 − λ)·p + λ/Q)⁻¹ (Q,), scaled so that Σ p·w = 1.

    Raises:
        ValueError: lam is outside 0..1.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be in 0..1, got {lam}")
    p = priors.astype(np.float64)
    weights = 1.0 / ((1.0 - lam) * p + lam / len(p))
    scaled: NDArray[np.float64] = weights / (p @ weights)
    return scaled


def nearest_bins(centroids: NDArray[Any]) -> NDArray[np.int32]:
    """The bin of each stored (a, b) cell: (256, 256) int32, indexed [a + 128, b + 128]."""
    from scipy.spatial import cKDTree

    _, index = cKDTree(centroids).query(_cell_ab())
    return np.asarray(index, dtype=np.int32).reshape(CELLS, CELLS)


def mean_ab(histogram: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Mean (a, b) of the training pixels, (2,) float64 ab units: the constant baseline."""
    mean: NDArray[np.float64] = _shares(histogram).ravel() @ _cell_ab()
    return mean


def soft_table(
    centroids: NDArray[Any], *, neighbors: int = NEIGHBORS, sigma: float = SIGMA
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each stored cell as a mixture of its nearest bins (Zhang et al. 2016, §2.2).

    centroids (Q, 2) -> indices (65536, K) int64, nearest first, and shares (65536, K) float32,
    ∝ exp(−d²/2σ²) and summing to 1, with K = min(neighbors, Q). The row of cell (a, b) is
    (a + 128)·256 + b + 128.

    Raises:
        ValueError: neighbors or sigma are not positive.
    """
    from scipy.spatial import cKDTree

    if neighbors < 1 or not sigma > 0:
        raise ValueError(f"neighbors and sigma must be positive, got {neighbors} and {sigma}")
    nearest = np.arange(1, min(neighbors, len(centroids)) + 1)
    distance, index = cKDTree(centroids).query(_cell_ab(), k=nearest)
    # Relative to the nearest bin, so that a cell far from all of them does not underflow.
    share = np.exp((distance[:, :1] ** 2 - distance**2) / (2.0 * sigma**2))
    share /= share.sum(axis=1, keepdims=True)
    return np.asarray(index, dtype=np.int64), share.astype(np.float32)


class SoftEncoder:
    """Soft encoding of stored ab by table lookup, on whatever device the batch is."""

    def __init__(
        self, centroids: NDArray[Any], *, neighbors: int = NEIGHBORS, sigma: float = SIGMA
    ) -> None:
        self.indices, self.shares = soft_table(centroids, neighbors=neighbors, sigma=sigma)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def encode(self, ab_u8: Tensor) -> tuple[Tensor, Tensor]:
        """The K nearest bins of each pixel and its share in them.

        ab_u8 (B, 2, H, W) uint8, stored ab -> indices (B, K, H, W) int64 and shares
        (B, K, H, W) float32, nearest bin first, shares summing to 1. Both are channels-last in
        memory, which is how the lookup leaves them.

        Raises:
            ValueError: the batch has another shape or type.
        """
        import torch

        if ab_u8.dtype != torch.uint8 or ab_u8.ndim != 4 or ab_u8.shape[1] != 2:
            raise ValueError(
                f"expected stored ab (B, 2, H, W) uint8, got {tuple(ab_u8.shape)} {ab_u8.dtype}"
            )
        indices, shares = self._tables(ab_u8.device)
        # index_select takes a quarter of the time of table[cell] on a CPU.
        cell = ab_u8[:, 0].int() * CELLS + ab_u8[:, 1].int()
        row, shape = cell.flatten(), (*cell.shape, indices.shape[1])
        return (
            indices.index_select(0, row).reshape(shape).permute(0, 3, 1, 2),
            shares.index_select(0, row).reshape(shape).permute(0, 3, 1, 2),
        )

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        import torch

        if device not in self._on_device:
            self._on_device[device] = (
                torch.from_numpy(self.indices).to(device),
                torch.from_numpy(self.shares).to(device),
            )
        return self._on_device[device]


def decode_ab(logits: Tensor, centroids: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Annealed-mean ab of bin logits (Zhang et al. 2016, eq. 5), in float32 under autocast too.

    logits (B, Q, H, W); centroids (Q, 2) in ab units -> ab (B, 2, H, W) in ab units,
    differentiable. temperature above 0: 1 gives the mean, towards 0 the mode.

    Raises:
        ValueError: the shapes do not match, or the temperature is not above 0.
    """
    import torch

    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if logits.ndim != 4 or centroids.shape != (logits.shape[1], 2):
        raise ValueError(
            "expected logits (B, Q, H, W) and centroids (Q, 2), got "
            f"{tuple(logits.shape)} and {tuple(centroids.shape)}"
        )
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits if logits.dtype == torch.float64 else logits.float()
        shares = (wide / temperature).softmax(dim=1)
        return torch.einsum("bqhw,qc->bchw", shares, centroids.to(shares))


def gamut_lightness(ab: NDArray[Any], *, near: float = 65.0) -> NDArray[np.float64]:
    """The L out of 1..99 closest to ``near`` at which a colour is in sRGB; NaN where none is.

    ab (N, 2) ab units -> (N,).
    """
    import torch

    points = torch.from_numpy(np.ascontiguousarray(ab, dtype=np.float64).T.copy())
    found = torch.full((points.shape[1],), torch.nan, dtype=torch.float64)
    # sRGB lies within a -86.2..98.3 and b -107.9..94.5; what is outside needs no search.
    low, high = torch.tensor([[-87.0], [-109.0]]), torch.tensor([[99.0], [95.0]])
    open_ = torch.nonzero(((points > low) & (points < high)).all(dim=0))[:, 0]
    points = points[:, open_]
    levels = torch.tensor(sorted(range(1, 100), key=lambda L: abs(L - near)), dtype=torch.float64)
    while len(levels) and len(open_):
        # As many levels at a time as make a good bite.
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


def save_palette(palette: Palette, folder: str | Path | Store) -> None:
    """Write centroids.npy, priors.npy, weights.npy and, last, palette.json into a folder.

    Each is written in one step; the same palette gives the same bytes.
    """
    from colorcore.storage.store import open_store

    store = open_store(folder)
    for name in _ARRAYS:
        store.write(f"{name}.npy", npy_bytes(getattr(palette, name)))
    record = {"format": _FORMAT, "fingerprint": palette.fingerprint, "about": palette.about}
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    store.write("palette.json", text.encode())


def load_palette(folder: str | Path | Store) -> Palette:
    """Read what :func:`save_palette` wrote.

    Raises:
        FileNotFoundError: there is no palette, or not all of one.
        ValueError: it is damaged, of another format, or its files are not of one palette.
    """
    advice = "make one with `cc priors DATASET`"
    from colorcore.storage.store import open_store

    store = open_store(folder)
    try:
        text = store.read("palette.json")
        files = {name: store.read(f"{name}.npy") for name in _ARRAYS}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no palette in {store.show()}; {advice}") from error
    try:
        record = json.loads(text)
        if record["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, found {record['format']}")
        arrays = {k: np.load(io.BytesIO(v), allow_pickle=False) for k, v in files.items()}
        palette = Palette(**arrays, about=record["about"])
        if palette.fingerprint != record["fingerprint"]:
            raise ValueError("its files are not of one palette")
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise ValueError(f"the palette in {store.show()} is damaged: {error}; {advice}") from error
    return palette


def _cell_ab() -> NDArray[np.float64]:
    """The (a, b) of all stored cells, (65536, 2), in the order of a raveled histogram."""
    axis = np.arange(CELLS, dtype=np.float64) - AB_OFFSET
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def _shares(histogram: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """A histogram's counts as shares of their sum, (256, 256) float64."""
    if histogram.shape != (CELLS, CELLS) or not np.issubdtype(histogram.dtype, np.integer):
        raise ValueError(
            f"expected a histogram of counts ({CELLS}, {CELLS}), integers, "
            f"got {histogram.shape} {histogram.dtype}"
        )
    total = int(histogram.sum(dtype=np.int64))
    if histogram.min() < 0 or total <= 0:
        raise ValueError(
            "expected a histogram with counts of 0 or more and at least one photo in it, "
            f"got a sum of {total} and a smallest count of {histogram.min()}"
        )
    return histogram / total


def _kmeans(share: NDArray[np.float64], bins: int, power: float, seed: int) -> NDArray[np.float64]:
    """K-means centroids (bins, 2) of the occupied cells, each weighted by share**power.

    One thread: scikit-learn adds the threads' partial sums in whatever order they finish, which
    changes last digits, and here a second thread saves no CPU time. On so many points in so few
    dimensions Lloyd's plain iterations are cheaper than Elkan's bounds (0.9 against 1.1 s on a
    full histogram).
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
        kmeans.fit(_cell_ab()[occupied], sample_weight=weight / weight.sum())
    return np.asarray(kmeans.cluster_centers_, dtype=np.float64)


def _grid(bins: int) -> tuple[NDArray[np.float64], float]:
    """The square lattice around neutral with exactly ``bins`` points in the gamut, its spacing.

    Seen from neutral, the gamut's outline r(hue) hides nothing of itself, so the lattice point
    s·(i, j) is inside up to the spacing s = r / |(i, j)|. The points that stay inside longest
    are the lattice, and the spacing at which the last of them touches the outline is its s.
    """
    # The gamut's area of 22,100 and its longest chroma of 134 make s ≈ 149 / √Q, so no point
    # further out than 0.9 √Q steps is inside.
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
    offset = _cell_ab() - centroids[bin_of_cell.ravel()]
    return float(np.sqrt(share.ravel() @ (offset**2).sum(axis=1)))
