"""What a training reports: its events, the callbacks that receive them, and how it can end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from colorcore.decoding import Decoding
from colorcore.scores.signs import Sign

if TYPE_CHECKING:
    from torch import Tensor


class TrainingDivergedError(Exception):
    """The loss or its gradient is NaN or infinite."""


class TrainingStoppedError(Exception):
    """The training stopped on request after ``step``, and saved ``last`` there."""

    def __init__(self, step: int, total_steps: int) -> None:
        super().__init__(step, total_steps)
        self.step, self.total_steps = step, total_steps

    def __str__(self) -> str:
        return f"stopped after step {self.step} of {self.total_steps}; resume from last"


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One optimizer step; ``step`` counts from 1 over all epochs.

    ``loss`` and ``terms`` are means over the photos of all ranks. With a discriminator, ``terms``
    also holds its own loss as ``discriminator``. ``grad_norm`` is not finite where fp16
    overflowed and the step was skipped.
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
    """One validation over all ranks; ``pairs`` (N, 2, 3, H, W) are predicted and true LAB.

    ``is_last`` says that the training ends with it, after its epochs or out of patience.
    ``statistics`` are the measurements in which ``signs`` were found (colorcore.scores.signs).
    """

    epoch: int
    step: int
    scores: dict[str, float]
    is_best: bool
    pairs: Tensor
    statistics: dict[str, float] = field(default_factory=dict)
    signs: tuple[Sign, ...] = ()
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class DecodingEvent:
    """The decoding chosen for ``best``, and the scores with it over all ranks.

    ``equal_cf`` are the scores at a fixed share of the photos' colourfulness
    (:mod:`colorcore.inference.equal_colorfulness`); {} if the model cannot be read there.
    """

    step: int
    decoding: Decoding
    scores: dict[str, float]
    equal_cf: dict[str, float] = field(default_factory=dict)


class Observer:
    """Training callbacks. Override any method; each is called on every rank.

    Attributes:
        waits_for_files: whether ``on_saved`` comes before the next epoch begins. Otherwise the
            checkpoints are written while it is trained.
    """

    waits_for_files: bool = False

    def on_start(self, total_steps: int, first_step: int) -> None:
        """Training starts, or resumes after ``first_step`` steps."""

    def on_notice(self, text: str) -> None:
        """Something to know about this training, in one line, such as a wait; on rank 0 only."""

    def on_step(self, event: StepEvent) -> None:
        """An optimizer step was taken."""

    def on_validation(self, event: ValidationEvent) -> None:
        """The model was scored; ``last``, and ``best`` if it improved, are not written yet."""

    def on_saved(self, event: ValidationEvent) -> None:
        """The checkpoints of this validation are on disk.

        Rank 0 calls it after the first step at which they are; other ranks call it at once.
        """

    def on_stop(self, step: int) -> None:
        """Training stops early on request; ``last`` holds the state after this step."""

    def on_decoding(self, event: DecodingEvent) -> None:
        """Training is over and ``best`` has its decoding; repeated when that run is resumed."""


def notify(observers: Sequence[Observer], callback: str, *args: Any) -> None:
    """Call one method of every observer."""
    for observer in observers:
        getattr(observer, callback)(*args)
