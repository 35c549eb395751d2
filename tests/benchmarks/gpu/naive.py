"""The loop that a training script starts with: fp32, eager, NCHW, a transfer per number.

It trains the network and the losses of a recipe, and is written without the product's loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from colorcore.blocks.mixup import blend_next
from colorcore.color.lab import decode_lab, normalize_L
from colorcore.losses import build_terms
from colorcore.losses.adversarial import discriminator_loss
from colorcore.models import AnswersInBins, MultiScaleDiscriminator, StartsPretrained, build_model
from colorcore.training.encoder import parameter_groups, set_learning

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.color.palette import Palette
    from colorcore.recipes.recipe import Recipe


class Naive:
    """A recipe's networks, losses and optimizers.

    Raises:
        LossError, ValueError: weights that the recipe starts from are not installed.
    """

    def __init__(self, recipe: Recipe, palette: Palette, device: torch.device) -> None:
        self.recipe = recipe = recipe.for_palette(len(palette))
        self.device = device
        torch.manual_seed(recipe.train.seed)
        self.model = build_model(recipe.model.name, **recipe.model.options()).to(device)
        if isinstance(self.model, AnswersInBins):
            self.model.use_palette(palette)
        if isinstance(self.model, StartsPretrained):
            self.model.load_pretrained()
        optim = recipe.optim
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, optim),
            lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay,
        )  # fmt: skip
        set_learning(self.model, optim, 0)
        self.loss = build_terms(recipe.loss, recipe.loss_options, palette)
        self.loss.prepare(device)
        self.judge: Any = None
        if self.loss.needs_discriminator and (part := recipe.discriminator) is not None:
            self.judge = MultiScaleDiscriminator(channels=part.channels, scales=part.scales)
            self.judge.to(device)
            self.judge_optimizer = torch.optim.Adam(
                self.judge.parameters(), lr=part.lr, betas=part.betas
            )

    def step(self, lab_u8: Tensor) -> dict[str, float]:
        """One step on stored photos (B, 3, H, W) uint8 of the CPU; returns the loss's terms."""
        lab = decode_lab(lab_u8.to(self.device))
        prediction = self.model(normalize_L(lab[:, :1]))
        if (shares := prediction.get("shares")) is not None:
            lab = blend_next(lab, shares)
        numbers = {}
        if self.judge is not None:
            colored = torch.cat([lab[:, :1], prediction["ab"]], dim=1)
            real, fake = self.judge(lab)[0], self.judge(colored.detach())[0]
            kind = self.recipe.loss_options.get("adversarial", {}).get("kind", "hinge")
            judged = discriminator_loss(real, fake, str(kind))
            self.judge_optimizer.zero_grad()
            judged.backward()
            self.judge_optimizer.step()
            numbers["discriminator"] = judged.item()
            self.judge.requires_grad_(False)
            logits, features = self.judge(colored, features=True)
            prediction["fake_logits"], prediction["fake_features"] = logits, features
            prediction["real_features"] = self.judge(lab, features=True)[1]
            self.judge.requires_grad_(True)
        loss, values = self.loss(prediction, lab)
        self.optimizer.zero_grad()
        loss.backward()
        if (clip := self.recipe.optim.clip) is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        return {**numbers, "loss": loss.item(), **{k: v.item() for k, v in values.items()}}


def flops_per_photo(naive: Naive, lab_u8: Tensor) -> float:
    """Multiplications and additions of a step in convolutions and matrix products, per photo."""
    with FlopCounterMode(display=False) as counter:
        naive.step(lab_u8[:2])
    return counter.get_total_flops() / 2


def photos_per_second(naive: Naive, lab_u8: Tensor, *, warm: int = 2, timed: int = 5) -> float:
    """Photos per second of steps on one batch."""
    for _ in range(warm):
        naive.step(lab_u8)
    started = time.perf_counter()
    for _ in range(timed):
        naive.step(lab_u8)  # it ends by reading numbers, so the GPU is done
    return timed * len(lab_u8) / (time.perf_counter() - started)


def allow_tf32(allowed: bool) -> None:
    """Let convolutions and matrix products of fp32 numbers round their inputs to TF32, or not."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def matmul_rate(device: torch.device, *, side: int, dtype: torch.dtype) -> float:
    """Operations per second of the device in products of two square matrices, the best of five."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def product() -> float:
        started = time.perf_counter()
        for _ in range(10):
            one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 10 * 2 * side**3 / (time.perf_counter() - started)

    product()
    return max(product() for _ in range(5))
