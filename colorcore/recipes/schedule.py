"""The learning rate over the steps of a training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from colorcore.recipes.recipe import OptimPart

if TYPE_CHECKING:
    import torch


def lr_factor(optim: OptimPart, step: int, total: int, steps_per_epoch: int = 1) -> float:
    """The learning rate of a step as a share of its peak; ``step`` is in 0..total - 1.

    All schedules warm up over the share ``warmup`` of all steps, or over ``warmup_epochs`` epochs
    if that is set.

    - ``onecycle`` follows Smith and Topin (2018), with cosine annealing as in
      torch.optim.lr_scheduler.OneCycleLR: from 1/25 up to 1, down to 1/250,000 at the end.
    - ``cosine`` rises linearly, from the first step's 1/n of n to 1 (Goyal et al. 2017, section
      2.2), and falls as half a cosine to 0 after the last step (Loshchilov and Hutter 2017,
      "SGDR", eq. 5, without restarts).
    - ``constant`` rises like ``cosine`` and stays at the peak.

    It is a pure function of the step, so a run can resume anywhere without scheduler state.
    """
    warmup = optim.warmup * total
    if optim.warmup_epochs is not None:
        warmup = min(optim.warmup_epochs * steps_per_epoch, total)
    if optim.schedule == "onecycle":
        start, end = 1 / 25, 1 / 25e4
        top = warmup - 1
        if step <= top:
            return _cosine(start, 1.0, step / top if top > 0 else 1.0)
        return _cosine(1.0, end, (step - top) / max(total - 1 - top, 1e-9))
    if step + 1 < warmup:
        return (step + 1) / warmup
    if optim.schedule == "constant":
        return 1.0
    peak = max(warmup - 1, 0)  # the step at which the rate is highest
    return _cosine(1.0, 0.0, (step - peak) / max(total - peak, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, times a group's own ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
