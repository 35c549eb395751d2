"""Whether a model gives the same photo the same colours at another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from colorcore.color.lab import rgb_to_lab
from colorcore.inference.predict import predict_lab
from colorcore.photos.square import square

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from colorcore.decoding import Decoding

FACTORS = (0.5, 2.0)
"""Sizes that are compared with the model's own."""
PHOTOS = 32


def size_differences(
    model: nn.Module,
    rgb: NDArray[np.uint8],
    size: int,
    decoding: Decoding,
    *,
    device: torch.device | str = "cpu",
) -> dict[float, float]:
    """Mean distance in the ab plane of the colours at each of ``FACTORS`` times ``size``.

    rgb (H, H, 3) uint8 sRGB is one square photo. The network sees it at ``size`` and at ``size``
    times each factor; the other size's ab is resampled to ``size``, bilinear and antialiased. The
    distance, in ab units, is the mean over pixels. Photos smaller than a size are enlarged for it.
    """
    own = _predicted(model, rgb, size, decoding, device)
    differences = {}
    for factor in FACTORS:
        other = _predicted(model, rgb, max(1, round(size * factor)), decoding, device)
        other = F.interpolate(other, (size, size), mode="bilinear", antialias=True)
        differences[factor] = float(torch.linalg.vector_norm(own - other, dim=1).mean())
    return differences


def _predicted(
    model: nn.Module,
    rgb: NDArray[np.uint8],
    size: int,
    decoding: Decoding,
    device: torch.device | str,
) -> Tensor:
    """The ab (1, 2, size, size) that the model gives the photo at a size."""
    small = torch.from_numpy(square(rgb, size)).permute(2, 0, 1)[None].float() / 255.0
    return predict_lab(model, rgb_to_lab(small.to(device)), decoding)[:, 1:]
