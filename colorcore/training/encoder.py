"""Which parts of a pretrained encoder learn, from which epoch on, and how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colorcore.models import StartsPretrained
from colorcore.recipes.recipe import OptimPart

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(model: nn.Module, optim: OptimPart) -> list[dict[str, Any]]:
    """The optimizer's groups: what learns at ``optim.lr``, and the encoder if its rate is another.

    The encoder's group has its rate as ``factor`` of the other. Parameters that never learn are in
    no group.
    """
    learning, factor = _learning(model, optim)
    at_own_rate = {id(each) for each in learning} if factor != 1.0 else set()
    never = {id(each) for each in _encoder(model)} - {id(each) for each in learning}
    # In the model's order: checkpoints know an optimizer's parameters by their number.
    others = [each for each in model.parameters() if id(each) not in never | at_own_rate]
    return [{"params": others}, *([{"params": learning, "factor": factor}] if at_own_rate else [])]


def set_learning(model: nn.Module, optim: OptimPart, epoch: int) -> bool:
    """Freeze or free the encoder's parameters for an epoch; returns whether that changed any.

    No gradient is computed for what is frozen, nor passed through it.
    """
    free = epoch >= optim.freeze_epochs
    learning = {id(each) for each in _learning(model, optim)[0]} if free else set()
    changed = False
    for parameter in _encoder(model):
        learns = id(parameter) in learning
        changed |= parameter.requires_grad != learns
        parameter.requires_grad_(learns)
    return changed


def _learning(model: nn.Module, optim: OptimPart) -> tuple[list[nn.Parameter], float]:
    """The encoder's parameters that learn at some time, and their factor of ``optim.lr``."""
    if not isinstance(model, StartsPretrained):
        return [], 1.0
    factor = model.encoder_lr if optim.encoder_lr is None else optim.encoder_lr
    if factor == 0.0:
        return [], factor
    parts = model.encoder_parts()[-optim.encoder_stages if optim.encoder_stages else None :]
    return [parameter for part in parts for parameter in part.parameters()], factor


def _encoder(model: nn.Module) -> list[nn.Parameter]:
    if not isinstance(model, StartsPretrained):
        return []
    return [parameter for part in model.encoder_parts() for parameter in part.parameters()]
