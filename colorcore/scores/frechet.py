"""Fréchet distance between the features of two sets of photos, as Gaussians: the formula of FID."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """mean (d,) and covariance (d, d), float64."""

    mean: Matrix
    covariance: Matrix

    @cached_property
    def root(self) -> Matrix:
        """The symmetric square root of the covariance."""
        from scipy.linalg import eigh

        values, vectors = eigh(self.covariance)
        scaled = vectors * np.sqrt(values.clip(0.0))
        return np.asarray(scaled @ vectors.T)


class FeatureSums:
    """The mean and covariance of features, batch by batch; memory is (d, d) float64, for any N."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = np.zeros(width)
        self._products = np.zeros((width, width))

    def add(self, features: NDArray[np.float32]) -> None:
        """Add rows (B, d)."""
        rows = features.astype(np.float64)
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows

    def gaussian(self) -> Gaussian:
        """The sample mean and covariance (with N - 1, as all FID programs have it).

        Raises:
            ValueError: fewer than two rows were added.
        """
        if self.count < 2:
            raise ValueError(f"expected features of two photos or more, got {self.count}")
        mean = self._sum / self.count
        products = self._products - np.outer(mean, self._sum)
        return Gaussian(mean, products / (self.count - 1))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), at least 0 (Dowson and Landau 1982, eq. 4).

    Σ₁ Σ₂ and Σ₁^½ Σ₂ Σ₁^½ have the same eigenvalues, but the second one is symmetric. So the trace
    of its root is the sum of the roots of real eigenvalues, none below 0 but by rounding. FID
    programs take the root of the first one, which fails or turns complex where a covariance is
    singular, as it is with fewer photos than features; then they add 10⁻⁶ to the diagonals.
    """
    from scipy.linalg import eigvalsh

    apart = one.mean - other.mean
    inner = one.root @ other.covariance @ one.root
    shared = np.sqrt(eigvalsh((inner + inner.T) / 2.0).clip(0.0)).sum()
    total = np.trace(one.covariance) + np.trace(other.covariance)
    return max(0.0, float(apart @ apart + total - 2.0 * shared))
