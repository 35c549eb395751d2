"""Kernel distance between the features of predicted and true photos: KID, for paired photos.

Bińkowski et al. 2018 ("Demystifying MMD GANs"), section 4, measure how far two sets of photos are
apart by the squared maximum mean discrepancy (MMD²) of their features with a cubic kernel. FID, by
contrast, fits a Gaussian to thousands of features and is biased if there are fewer.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 500
"""Rows of the kernel matrices in memory at a time: 20 MB per matrix for 5,000 photos."""


class KernelDistance(NamedTuple):
    """MMD², and its standard error; NaN where there are too few photos.

    MMD² needs two photos, the error three.
    """

    value: float
    error: float


@torch.no_grad()
def kernel_distance(features: Tensor, others: Tensor) -> KernelDistance:
    """Unbiased MMD² between features of predictions and of the same photos' truth.

    features, others (N, d): row i of both belongs to photo i. The kernel is that of the paper,
    k(x, y) = (x·y / d + 1)³. The estimate is Gretton et al. 2012 ("A kernel two-sample test"),
    lemma 6, eq. 4: the mean over all i ≠ j of

        h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

    Every term compares two different photos, so it is unbiased for any N although x_i and y_i show
    the same photo, and 0 if they are equal. It may be below 0. The paper's own estimate, for sets
    that have nothing to do with each other, also has the terms k(x_i, y_i): here, these would make
    every prediction look better than it is. The error is the jackknife's, over photos (Arvesen
    1969).

    Raises:
        ValueError: the shapes differ.
    """
    if features.shape != others.shape or features.ndim != 2:
        raise ValueError(
            "expected two tables of features of the same shape (N, d), got "
            f"{tuple(features.shape)} and {tuple(others.shape)}"
        )
    N = len(features)
    x, y = features.double(), others.double()
    # sums_i = Σ_{j ≠ i} h_ij, a few rows of the matrices at a time.
    sums = torch.cat(
        [
            _sums_without_own(x, x, rows)
            + _sums_without_own(y, y, rows)
            - _sums_without_own(x, y, rows)
            - _sums_without_own(y, x, rows)
            for rows in torch.arange(N, device=x.device).split(_ROWS)
        ]
    )
    total, nan = float(sums.sum()), float("nan")
    value = total / (N * (N - 1)) if N > 1 else nan
    if N < 3:
        return KernelDistance(value, nan)
    without = (total - 2.0 * sums) / ((N - 1) * (N - 2))  # the estimate without photo i
    return KernelDistance(value, float(((N - 1) / N * (without - value).square().sum()).sqrt()))


def _sums_without_own(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Σ over j ≠ i of k(x_i, y_j), for each i of ``rows``."""
    kernel = (x[rows] @ y.T / x.shape[1] + 1.0) ** 3
    kernel[torch.arange(len(rows), device=x.device), rows] = 0.0
    return kernel.sum(1)


class Reservoir:
    """A uniform random sample of at most ``limit`` items of a stream of any length.

    Algorithm R (Vitter 1985, "Random sampling with a reservoir"). The sample depends on the order
    and number of the items only: it is the same in every run.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._random = Random(0)  # noqa: S311 - a sample, not a secret
        self._seen = 0
        self.items: list[Tensor] = []

    def add(self, item: Tensor) -> None:
        """Take the next item of the stream, perhaps in place of an earlier one."""
        self._seen += 1
        if len(self.items) < self._limit:
            self.items.append(item)
        elif (place := self._random.randrange(self._seen)) < self._limit:
            self.items[place] = item
