"""Several plausible versions of a photo: other likely colours where a bin model is unsure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

STRENGTH = 2.0
"""Standard deviation of what is added to a logit: a bin e² = 7 times as likely, or as unlikely."""
ALIKE = 20.0
"""ab units: bins closer than this become more or less likely together."""


def variations(model: nn.Module, count: int) -> tuple[Tensor | None, ...]:
    """What is added to a bin model's logits for each of ``count`` versions; the first is plain.

    Each version prefers some directions of the ab plane over others, the same ones in the whole
    photo, so that an object has one colour. Where the model is sure, hardly anything changes. A
    sample of a Gaussian process over the palette, with the squared exponential kernel (Rasmussen
    and Williams 2006, eq. 2.16) of length ``ALIKE``; the same versions every time.

    Raises:
        ValueError: more than one version of a model that does not predict bins.
    """
    if count == 1:
        return (None,)
    centroids = getattr(model, "centroids", None)
    if centroids is None:
        raise ValueError(
            f"expected a model that predicts bins for {count} versions, {type(model).__name__} "
            "does not; it has one answer"
        )
    apart = torch.cdist(centroids.double().cpu(), centroids.double().cpu())
    kernel = torch.exp(-0.5 * (apart / ALIKE).square()) + 1e-6 * torch.eye(len(apart))
    root = torch.linalg.cholesky(kernel)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(apart), count - 1, generator=generator, dtype=torch.float64)
    return (None, *(STRENGTH * root @ drawn).float().T)
