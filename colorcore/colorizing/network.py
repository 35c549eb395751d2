"""A colorizer whose network runs in torch: that of a checkpoint.

It can make several plausible versions of a photo: other likely colours where a bin model is unsure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from colorcore.color.lab import normalize_L
from colorcore.colorizing.colorizer import Colorizer
from colorcore.decoding import Decoding
from colorcore.models import AnswersInBins
from colorcore.models.decoding import completed, decode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from colorcore.colorizing.colorizer import AB, Lab

SPREAD = 2.0
"""Standard deviation of what is added to a logit: a bin e² = 7 times as likely, or as unlikely."""
ALIKE = 20.0
"""ab units: bins closer than this become more or less likely together."""


class NetworkColorizer(Colorizer):
    """A network in torch as a colorizer.

    Attributes:
        network: from L_norm (B, 1, h, w) to a :class:`~colorcore.models.prediction.Prediction`.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int,
        decoding: Decoding | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        decoding = completed(network, decoding or Decoding())
        bins = isinstance(network, AnswersInBins)
        super().__init__(type(network).__name__, size, decoding, predicts_bins=bins)
        self.network = network.to(device).eval()
        self._device = str(device)
        self._variations: tuple[Tensor | None, ...] = (None,)

    @property
    def device(self) -> str:
        """Where the network runs."""
        return self._device

    def to(self, device: str) -> Self:
        """Move the network; returns the colorizer itself."""
        self.network.to(device)
        self._device = device
        return self

    def use_threads(self, count: int) -> Self:
        """Let torch use ``count`` threads, in all of this process."""
        torch.set_num_threads(count)
        return self

    def with_versions(self, count: int) -> Self:
        """The same network, which makes ``count`` plausible versions of each photo.

        Raises:
            ValueError: more than one of a network that does not predict bins.
        """
        other = self.with_decoding()
        other._variations = variations(self.network, count)
        other.versions = count
        return other

    def predict_ab(self, L: NDArray[np.float32]) -> AB:
        """The colours of one batch; see :meth:`Colorizer.predict_ab`."""
        return self._predict_ab(L, None)

    def predict(self, copies: Sequence[Lab]) -> list[tuple[AB, ...]]:
        """The colours of small copies as one batch; see :meth:`Colorizer.predict`."""
        L = np.stack([lab[:1] for lab in copies])
        return list(zip(*[self._predict_ab(L, each) for each in self._variations], strict=True))

    @torch.inference_mode()
    def _predict_ab(self, L: NDArray[np.float32], variation: Tensor | None) -> AB:
        """``variation`` (Q,) is added to the logits of each pixel."""
        prediction = self.network(normalize_L(torch.from_numpy(L).to(self._device)))
        if variation is not None:
            varied = prediction["logits"] + variation.to(self._device)[:, None, None]
            prediction = {**prediction, "logits": varied}
        ab: AB = decode(self.network, prediction, self.decoding).cpu().numpy()
        return ab


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
    return (None, *(SPREAD * root @ drawn).float().T)
