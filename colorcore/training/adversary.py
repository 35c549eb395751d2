"""The discriminator's side of a training: the network, its optimizer, and its loss on a batch.

The generator (the colorizer) and the discriminator are updated in the same step, each against the
other's state before it, so one forward pass of the generator serves both. The discriminator's
loss sees detached predictions; the generator's terms see a frozen discriminator.

An untrained discriminator's gradients are noise to the generator. So it learns alone at first
(``discriminator.warmup``), and the adversarial terms are then faded in over as many steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from colorcore.losses.adversarial import discriminator_loss
from colorcore.losses.term import LossError
from colorcore.models import MultiScaleDiscriminator

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.models.prediction import Prediction
    from colorcore.recipes.recipe import DiscriminatorPart

FINEST = 8
"""Smallest side in pixels of the copy of a photo at the coarsest scale."""


def influence(warmup: float, step: int, total: int) -> float:
    """The factor on the weights of the adversarial terms at a step, 0..1.

    0 for the first ``warmup · total`` steps, then rising linearly to 1 over as many. It is a pure
    function of the step (0 to total - 1), so a run can resume anywhere.
    """
    alone = warmup * total
    return 1.0 if alone <= 0 else min(max((step + 1 - alone) / alone, 0.0), 1.0)


class Adversary:
    """A discriminator in training.

    Attributes:
        part: the recipe's ``discriminator`` table.
        model: the discriminator.
        optimizer: its own Adam. AdamW's weight decay would be pointless, because spectral
            normalization cancels the scale of weights.

    Args:
        part: the recipe's ``discriminator`` table.
        kind: of the loss, one of :data:`colorcore.losses.adversarial.KINDS`.
        size: side of the photos in pixels.
        device: where the training runs.

    Raises:
        LossError: the photos are too small for the number of scales.
    """

    def __init__(self, part: DiscriminatorPart, kind: str, size: int, device: torch.device) -> None:
        if size < (least := FINEST * 2 ** (part.scales - 1)):
            raise LossError(
                f"expected photos of at least {least} pixels per side for {part.scales} "
                f"discriminators, got {size}; lower discriminator.scales"
            )
        self.part, self.kind = part, kind
        self.model = MultiScaleDiscriminator(channels=part.channels, scales=part.scales)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=part.lr, betas=part.betas, fused=device.type == "cuda"
        )
        self.parallel: DistributedDataParallel | None = None

    def distribute(self, device: torch.device) -> None:
        """Average its gradients over the ranks of the group, if there are several."""
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            ids = [device.index or 0] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=ids)

    def loss(self, prediction: Prediction, lab: Tensor) -> Tensor:
        """The discriminator's loss on a batch; the prediction gets no gradient.

        prediction with ab (B, 2, H, W); lab (B, 3, H, W) CIELAB -> scalar.
        """
        self.model.train()
        # One call for both: DDP expects one forward pass per backward pass, and each call in
        # training mode advances spectral norm's power iteration.
        both = torch.cat([lab, _colorized(prediction, lab).detach()])
        logits, _ = (self.parallel or self.model)(both)
        real, fake = zip(*(scale.chunk(2) for scale in logits), strict=True)
        return discriminator_loss(real, fake, self.kind)

    def judge(self, prediction: Prediction, lab: Tensor) -> None:
        """Add the discriminator's outputs to the prediction: fake_logits, fake_ and real_features.

        The discriminator is frozen: it gets no gradient, and its spectral norms are those of the
        last call of :meth:`loss`.
        """
        self.model.eval()
        self.model.requires_grad_(False)
        try:
            logits, features = self.model(_colorized(prediction, lab), features=True)
            with torch.no_grad():
                _, real = self.model(lab, features=True)
        finally:
            self.model.requires_grad_(True)
        prediction["fake_logits"] = logits
        prediction["fake_features"], prediction["real_features"] = features, real


def _colorized(prediction: Prediction, lab: Tensor) -> Tensor:
    return torch.cat([lab[:, :1], prediction["ab"]], dim=1)
