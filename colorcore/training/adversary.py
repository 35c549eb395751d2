"""The discriminator's side of a training: the judge, its optimiser, and what it says of a batch.

The generator (the colorizer) and the judge are updated in the same step, each against the other
as it stood before: one forward pass of the generator serves both. The judge's own loss sees the
answers detached; the generator's terms see a judge that does not learn from them.

At first the judge has seen nothing, and its gradients are noise to a generator that could use
none. So it learns alone for a while (``discriminator.warmup``), and its terms are then faded in
over as many steps.
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
"""Pixels a side that the coarsest judge's copy must have at least."""


def influence(warmup: float, step: int, total: int) -> float:
    """The share of their weight that the adversarial terms have at a step, 0..1.

    0 for the first ``warmup · total`` steps, then rising linearly to 1 over as many. A pure
    function of the step (0 to total - 1), so a run resumes anywhere.
    """
    alone = warmup * total
    return 1.0 if alone <= 0 else min(max((step + 1 - alone) / alone, 0.0), 1.0)


class Adversary:
    """A judge in training.

    Attributes:
        part: of the recipe.
        model: the discriminator.
        optimizer: its own, Adam; AdamW's decay of weights would fight spectral normalization,
            which is indifferent to their scale.

    Args:
        part: of the recipe.
        kind: of the game, one of :data:`colorcore.losses.adversarial.KINDS`.
        size: side of the photos in pixels.
        device: where the training runs.

    Raises:
        LossError: the photos are too small for the judges.
    """

    def __init__(self, part: DiscriminatorPart, kind: str, size: int, device: torch.device) -> None:
        if size < (least := FINEST * 2 ** (part.scales - 1)):
            raise LossError(
                f"expected photos of at least {least} pixels a side for {part.scales} "
                f"discriminators, got {size}; set discriminator.scales lower"
            )
        self.part, self.kind = part, kind
        self.model = MultiScaleDiscriminator(channels=part.channels, scales=part.scales)
        self.model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=part.lr, betas=part.betas)
        self.parallel: DistributedDataParallel | None = None

    def distribute(self, device: torch.device) -> None:
        """Train it with the other ranks of the group, which see other photos."""
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            ids = [device.index or 0] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=ids)

    def loss(self, prediction: Prediction, lab: Tensor) -> Tensor:
        """What the judge has to learn from a batch; the prediction gets no gradient.

        prediction with ab (B, 2, H, W); lab (B, 3, H, W) CIELAB -> scalar.
        """
        self.model.train()
        # One call for both: DDP, and spectral norm's iteration, count calls.
        both = torch.cat([lab, _answer(prediction, lab).detach()])
        logits, _ = (self.parallel or self.model)(both)
        real, fake = zip(*(scale.chunk(2) for scale in logits), strict=True)
        return discriminator_loss(real, fake, self.kind)

    def judge(self, prediction: Prediction, lab: Tensor) -> None:
        """Put what the judge says into the prediction: fake_logits, fake_ and real_features.

        The judge is held still: it gets no gradient, and its spectral norms are those of the last
        call of :meth:`loss`.
        """
        self.model.eval()
        self.model.requires_grad_(False)
        try:
            logits, features = self.model(_answer(prediction, lab), features=True)
            with torch.no_grad():
                _, real = self.model(lab, features=True)
        finally:
            self.model.requires_grad_(True)
        prediction["fake_logits"] = logits
        prediction["fake_features"], prediction["real_features"] = features, real


def _answer(prediction: Prediction, lab: Tensor) -> Tensor:
    return torch.cat([lab[:, :1], prediction["ab"]], dim=1)
