"""What a training reports: events, the observer that hears them, and how it can end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from colorcore.models.decoding import Decoding
from colorcore.scores.signs import Sign

if TYPE_CHECKING:
    from torch import Tensor


class TrainingDivergedError(Exception):
    """The loss or its gradient is no finite number any more."""


class TrainingStoppedError(Exception):
    """The training was asked to stop, and did so after ``step``; ``last`` was written there."""

    def __init__(self, step: int, total_steps: int) -> None:
        super().__init__(step, total_steps)
        self.step, self.total_steps = step, total_steps

    def __str__(self) -> str:
        return f"stopped after step {self.step} of {self.total_steps}; last goes on from there"


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One optimiser step; step counts from 1 over all epochs.

    loss and terms are means over the photos of all ranks. terms has ``discriminator`` too, the
    judge's own loss, where there is one. grad_norm is not finite where fp16 overflowed and the
    step was left out.
    """

    epoch: int
    step: int
    total_steps: int
    loss: float
    terms: dict[str, float]
    lr: float
    grad_norm: float
    photos_per_s: float


@dataclass(frozen=True, slots=True)
class ValidationEvent:
    """One validation, over all ranks; pairs (N, 2, 3, H, W) are predicted and true LAB.

    ``statistics`` are those that ``signs`` were found by (colorcore.scores.signs).
    """

    epoch: int
    step: int
    scores: dict[str, float]
    is_best: bool
    pairs: Tensor
    statistics: dict[str, float] = field(default_factory=dict)
    signs: tuple[Sign, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodingEvent:
    """What ``best`` is decoded with, and its scores with that over all ranks."""

    step: int
    decoding: Decoding
    scores: dict[str, float]


class Observer:
    """What a training tells; every method may be overridden, and is called on every rank."""

    def on_start(self, total_steps: int, first_step: int) -> None:
        """Training begins, or goes on after ``first_step`` steps."""

    def on_step(self, event: StepEvent) -> None:
        """An optimiser step was taken."""

    def on_validation(self, event: ValidationEvent) -> None:
        """The model was scored; afterwards ``last``, and perhaps ``best``, are written."""

    def on_saved(self, event: ValidationEvent) -> None:
        """The checkpoints of this validation are on disk."""

    def on_stop(self, step: int) -> None:
        """Training ends early, as it was asked to: ``last`` is on disk, of this very step."""

    def on_decoding(self, event: DecodingEvent) -> None:
        """Training is over and ``best`` has its decoding; told again when that is resumed."""


def notify(observers: Sequence[Observer], what: str, *args: Any) -> None:
    """Call one method of every observer."""
    for observer in observers:
        getattr(observer, what)(*args)
