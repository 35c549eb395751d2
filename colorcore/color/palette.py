"""The palette: centroids, priors and weights of the colour bins, on disk and in memory."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.bins import CELLS, SIGMA, cell_ab, nearest_bins
from colorcore.color.lab import AB_OFFSET
from colorcore.storage.npy import npy_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from colorcore.storage.store import Store

LAM = 0.5
"""λ, the uniform part of the distribution that the weights invert (Zhang et al. 2016, eq. 4)."""
UNIFORM_SHARE = 1e-4
"""Share of the priors that is spread evenly over the bins, so that no prior is zero.

With 313 bins, an unseen bin has a prior of 3e-7, too little to change any weight at λ = 0.5.
"""

_FORMAT = 1
_ARRAYS = ("centroids", "priors", "weights")


class PaletteError(ValueError):
    """A palette on disk that is damaged; the message is one line for the user."""


@dataclass(frozen=True, eq=False)
class Palette:
    """Colour bins with their priors and loss weights; compare palettes by :attr:`fingerprint`.

    centroids  (Q, 2) float32, ab units, distinct
    priors     (Q,) float32 above 0, sum 1
    weights    (Q,) float32 above 0, mean 1 under the priors: Σ priors·weights = 1
    about      how it was made (method, bins, dataset, ...), plain JSON values

    Raises:
        ValueError: an array has another shape or type, or breaks a condition above.
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
        """16 hex digits that identify the palette, from centroids, priors and weights only."""
        digest = hashlib.sha256()
        for name in _ARRAYS:
            digest.update(getattr(self, name).astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def balance(self) -> NDArray[np.float32]:
        """The weight of each stored (a, b) cell's bin: (256, 256) float32."""
        return self.weights[nearest_bins(self.centroids)]


def check_centroids(centroids: ArrayLike) -> NDArray[np.float64]:
    """Any centroids as (Q, 2) float64.

    Raises:
        ValueError: the centroids are not (Q, 2), finite, within ±128 and distinct.
    """
    points = np.asarray(centroids, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"expected centroids (Q, 2), one row (a, b) per bin, got {points.shape}")
    if not (np.abs(points) <= AB_OFFSET).all():  # false for NaN too
        raise ValueError("expected centroids in ab units, finite and within -128..128")
    distinct = len(np.unique(points.astype(np.float32), axis=0))
    if distinct < len(points):
        raise ValueError(f"expected {len(points)} distinct centroids, only {distinct} differ")
    return points


def bin_priors(
    histogram: NDArray[Any], bin_of_cell: NDArray[np.int32], bins: int
) -> NDArray[np.float64]:
    """How often each bin occurs: (Q,) float64 above 0, sum 1.

    The histogram (256, 256) is smoothed by a Gaussian of ``SIGMA`` ab units (Zhang et al. 2016,
    §2.2; cells are 1 unit wide), summed by bin and mixed with :data:`UNIFORM_SHARE` of the
    uniform distribution.
    """
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(histogram.astype(np.float64), SIGMA, mode="constant")
    mass = np.bincount(bin_of_cell.ravel(), weights=smooth.ravel(), minlength=bins)
    priors: NDArray[np.float64] = (1 - UNIFORM_SHARE) * mass / mass.sum() + UNIFORM_SHARE / bins
    return priors


def bin_weights(priors: NDArray[Any]) -> NDArray[np.float64]:
    """Loss weights that rebalance rare colours (Zhang et al. 2016, eq. 4).

    priors p (Q,) -> w ∝ ((1 − λ)·p + λ/Q)⁻¹ (Q,) with λ = LAM, scaled so that Σ p·w = 1.
    """
    p = priors.astype(np.float64)
    weights = 1.0 / ((1.0 - LAM) * p + LAM / len(p))
    scaled: NDArray[np.float64] = weights / (p @ weights)
    return scaled


def mean_ab(histogram: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Mean (a, b) of the training pixels, (2,) float64 ab units: the constant baseline."""
    mean: NDArray[np.float64] = histogram_shares(histogram).ravel() @ cell_ab()
    return mean


def save_palette(palette: Palette, folder: str | Path | Store) -> None:
    """Write centroids.npy, priors.npy, weights.npy and finally palette.json into a folder.

    Each file is written in one step; the same palette gives the same bytes.
    """
    from colorcore.storage.location import open_store

    store = open_store(folder)
    for name in _ARRAYS:
        store.write(f"{name}.npy", npy_bytes(getattr(palette, name)))
    record = {"format": _FORMAT, "fingerprint": palette.fingerprint, "about": palette.about}
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    store.write("palette.json", text.encode())


def load_palette(folder: str | Path | Store) -> Palette:
    """Read what :func:`save_palette` wrote.

    Raises:
        FileNotFoundError: the palette or one of its files is missing.
        PaletteError: it is damaged, has another format, or its files belong to different palettes.
    """
    advice = "make one with `cc priors DATASET`"
    from colorcore.storage.location import open_store

    store = open_store(folder)
    try:
        text = store.read("palette.json")
        files = {name: store.read(f"{name}.npy") for name in _ARRAYS}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no palette in {store.show()}; {advice}") from error
    file = "palette.json"
    try:
        record = json.loads(text)
        if record["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, found {record['format']}")
        arrays = {}
        for name, data in files.items():
            file = f"{name}.npy"
            if not data.startswith(b"\x93NUMPY"):  # NumPy's own error would be about pickles
                raise ValueError(f"expected a .npy file, found {len(data):,} other bytes")
            arrays[name] = np.load(io.BytesIO(data), allow_pickle=False)
        file = ""
        palette = Palette(**arrays, about=record["about"])
        if palette.fingerprint != record["fingerprint"]:
            raise ValueError("its files belong to different palettes")
    except (ValueError, KeyError, TypeError, EOFError) as error:
        cause = " ".join(str(error).split())
        raise PaletteError(
            f"the palette {store.show(file)} is damaged: {cause}; {advice}"
        ) from error
    return palette


def histogram_shares(histogram: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """A histogram's counts as shares of their sum, (256, 256) float64."""
    if histogram.shape != (CELLS, CELLS) or not np.issubdtype(histogram.dtype, np.integer):
        raise ValueError(
            f"expected a histogram of counts ({CELLS}, {CELLS}), integers, "
            f"got {histogram.shape} {histogram.dtype}"
        )
    total = int(histogram.sum(dtype=np.int64))
    if histogram.min() < 0 or total <= 0:
        raise ValueError(
            "expected a histogram with counts of 0 or more and at least one pixel, "
            f"got a sum of {total} and a smallest count of {histogram.min()}"
        )
    return histogram / total
