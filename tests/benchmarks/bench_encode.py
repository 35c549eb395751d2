"""Soft encoding from the table beside distances and top-k, and the loss beside its dense form.

Guessed before the first run, on one core: 32,768 pixels to 313 bins are 10⁷ distances, about
25 ms, and 32,768 top-5 of 313, about 60 ms, against 32,768 look-ups of two rows of 5 numbers,
about 0.5 ms: a ratio of 100 to 200. The loss with its backward: both read and write the logits
(41 MB) about as often in log-softmax and its gradient, the dense form makes and reads a target
of the same size on top: a ratio of 1.5 to 2. (Found: 80 to 90, and, once the gradient was
written by hand, 3. Left to autograd the sparse form was no faster than the dense one.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from colorcore.color.bins import NEIGHBORS, SIGMA, SoftEncoder
from colorcore.color.fit_palette import fit_palette
from colorcore.losses.bins import log_probability
from colorcore.losses.bins_ce import cross_entropy
from tests.benchmarks.paired import compare, cpu_ms

BATCH, SIDE, BINS = 8, 64, 313


def run(*, rounds: int) -> None:
    """Print the ratios of CPU time for 8 photos' ab at 64 x 64 and 313 bins."""
    palette = fit_palette(np.ones((256, 256), np.int64), bins=BINS, method="grid")
    encoder = SoftEncoder(palette.centroids)
    centroids = torch.from_numpy(palette.centroids)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BATCH, 2, SIDE, SIDE, generator=generator)
    ab_u8 = (128 + 25 * noise).round().clamp(0, 255).to(torch.uint8)
    logits = torch.randn(BATCH, BINS, SIDE, SIDE, generator=generator)
    logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    _agree(encoder.encode(ab_u8), by_distance(ab_u8, centroids))

    compare(
        f"soft encoding, {BATCH} x {SIDE} x {SIDE}, CPU-ms",
        cpu_ms(lambda: encoder.encode(ab_u8)),
        {"distances + top-k": cpu_ms(lambda: by_distance(ab_u8, centroids))},
        rounds=rounds,
    )

    def sparse() -> Tensor:
        indices, shares = encoder.encode(ab_u8)
        return cross_entropy(log_probability(logits, indices), shares).mean()

    def dense() -> Tensor:
        indices, shares = encoder.encode(ab_u8)
        target = torch.zeros_like(logits).scatter_(1, indices, shares)
        return -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()

    torch.testing.assert_close(sparse(), dense())
    compare(
        "cross-entropy on bins and gradient, CPU-ms",
        cpu_ms(lambda: torch.autograd.grad(sparse(), logits)),
        {"dense target": cpu_ms(lambda: torch.autograd.grad(dense(), logits))},
        rounds=rounds,
    )


def by_distance(ab_u8: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """What :meth:`SoftEncoder.encode` answers, worked out for each pixel."""
    ab = ab_u8.permute(0, 2, 3, 1).reshape(-1, 2).float() - 128.0
    distance, index = torch.cdist(ab, centroids).topk(NEIGHBORS, dim=1, largest=False)
    shares = (-distance.square() / (2.0 * SIGMA**2)).softmax(dim=1)
    batch, _, height, width = ab_u8.shape
    index, shares = (t.reshape(batch, height, width, NEIGHBORS) for t in (index, shares))
    return index.permute(0, 3, 1, 2), shares.permute(0, 3, 1, 2)


def _agree(ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Stop if the two answers differ; equally near bins may come in any order."""
    torch.testing.assert_close(ours[1], other[1], rtol=0, atol=1e-2)


if __name__ == "__main__":
    from tests.benchmarks import paired

    torch.set_num_threads(1)
    paired.head()
    run(rounds=9)
