"""Between ab values and bins: soft encoding, and the annealed mean back."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.lab import AB_OFFSET

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

CELLS = 256
"""Stored values of a, and of b: a histogram is (CELLS, CELLS), indexed by a, then b."""
NEIGHBORS = 5
"""Bins that share a pixel in soft encoding (Zhang et al. 2016, §2.2)."""
SIGMA = 5.0
"""σ in ab units of two Gaussians: soft encoding, and smoothing of the priors."""
TEMPERATURE = 0.38
"""T of the annealed mean; Zhang et al. (2016, §2.3) found it both vivid and smooth."""


def nearest_bins(centroids: NDArray[Any]) -> NDArray[np.int32]:
    """The bin of each stored (a, b) cell: (256, 256) int32, indexed [a + 128, b + 128]."""
    points = np.ascontiguousarray(centroids, dtype=np.float64)
    return _nearest_bins(points.tobytes(), points.shape).copy()


# Each validation of a training asks for those of the same palette several times, and a GPU would
# have nothing to do meanwhile.
@lru_cache(maxsize=4)
def _nearest_bins(centroids: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    from scipy.spatial import cKDTree

    _, index = cKDTree(np.frombuffer(centroids).reshape(shape)).query(cell_ab())
    return np.asarray(index, dtype=np.int32).reshape(CELLS, CELLS)


def soft_table(centroids: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each stored cell as a mixture of its nearest bins (Zhang et al. 2016, §2.2).

    centroids (Q, 2) -> indices (65536, K) int64, nearest first, and shares (65536, K) float32,
    ∝ exp(−d²/2σ²) and summing to 1, with K = min(NEIGHBORS, Q) and σ = SIGMA. The row of cell
    (a, b) is (a + 128)·256 + b + 128.
    """
    from scipy.spatial import cKDTree

    nearest = np.arange(1, min(NEIGHBORS, len(centroids)) + 1)
    distance, index = cKDTree(centroids).query(cell_ab(), k=nearest)
    # Relative to the nearest bin, so that a cell far from all of them does not underflow.
    share = np.exp((distance[:, :1] ** 2 - distance**2) / (2.0 * SIGMA**2))
    share /= share.sum(axis=1, keepdims=True)
    return np.asarray(index, dtype=np.int64), share.astype(np.float32)


class SoftEncoder:
    """Soft encoding of stored ab by table lookup, on the batch's device."""

    def __init__(self, centroids: NDArray[Any]) -> None:
        self.indices, self.shares = soft_table(centroids)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def encode(self, ab_u8: Tensor) -> tuple[Tensor, Tensor]:
        """The K nearest bins of each pixel, and the pixel's share in each.

        ab_u8 (B, 2, H, W) uint8, stored ab -> indices (B, K, H, W) int64 and shares
        (B, K, H, W) float32, nearest bin first, shares summing to 1. Both are channels-last in
        memory, as the lookup produces them.

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
    differentiable. temperature above 0: 1 gives the mean, near 0 the mode.

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


def cell_ab() -> NDArray[np.float64]:
    """The (a, b) of all stored cells, (65536, 2), in the order of a raveled histogram."""
    axis = np.arange(CELLS, dtype=np.float64) - AB_OFFSET
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
