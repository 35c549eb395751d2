"""From a step's numbers to its event: read late on a GPU, checked, and told to the observers."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colorcore.losses import steady_loss
from colorcore.training.events import Observer, StepEvent, TrainingDivergedError, notify
from colorcore.training.state import Training
from colorcore.transfer import Arriving, steps_late

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Step:
    """A step whose numbers have not been read, and what the training was like after it."""

    numbers: Arriving
    terms: tuple[str, ...]
    epoch: int
    step: int
    lr: float
    positions: NDArray[np.int64]


class Steps:
    """The steps that were taken, in order.

    On a GPU the host reads a step's numbers after it has launched the next step, so that the GPU
    never waits for it. Before anything is saved or scored, :meth:`flush` reads those of all steps:
    a loss that is not finite never gets into a checkpoint.
    """

    def __init__(self, training: Training, observers: Sequence[Observer]) -> None:
        self._training, self._observers = training, observers
        self._late = steps_late(training.device)
        self._unread: deque[_Step] = deque()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to time the next step."""
        # Waiting for the next batch counts towards its step, so a slow disk shows up in
        # photos_per_s; callbacks and saving don't.
        self._started = time.perf_counter()

    def add(
        self,
        positions: NDArray[np.int64],
        loss: Tensor,
        terms: Mapping[str, Tensor],
        norm: Tensor,
        stop: bool,
    ) -> bool:
        """Add the step that was just taken; returns whether the training should stop now.

        With one rank that is ``stop``. With several, all ranks return True after the same step
        once it was True on any: after this step on a CPU, after the next one on a GPU.

        Raises:
            TrainingDivergedError: the loss or gradient of a step is not finite.
        """
        training = self._training
        self._unread.append(
            _Step(
                numbers=training.exchange(loss, terms, norm, stop),
                terms=tuple(terms),
                epoch=training.epoch,
                step=training.steps_done,
                lr=training.lr,
                positions=positions,
            )
        )
        asked = self._read(self._late)
        return asked or (stop and training.world == 1)

    def flush(self) -> bool:
        """Read the numbers of all steps; returns and raises as :meth:`add`."""
        return self._read(0)

    def _read(self, left: int) -> bool:
        asked = False
        while len(self._unread) > left:
            asked |= self._report(self._unread.popleft())
        return asked

    def _report(self, step: _Step) -> bool:
        training = self._training
        # Every rank needs the mean of all: each must come to the same verdict on NaN, and rank 0
        # saves the loss history for all.
        numbers: list[float] = step.numbers.tensor().tolist()
        norm, scale, asked, loss, *values = numbers
        elapsed = time.perf_counter() - self._started
        terms = dict(zip(step.terms, values, strict=True))
        # The scaler skips a step whose gradient overflows, and then scales less. At a scale below 1
        # the gradient would overflow unscaled, too: the training diverged.
        self._require_finite(step, loss, terms, norm, may_skip=scale >= 1.0)
        event = StepEvent(
            epoch=step.epoch,
            step=step.step,
            total_steps=training.total_steps,
            loss=loss,
            terms=terms,
            lr=step.lr,
            grad_norm=norm,
            photos_per_s=training.recipe.data.batch / max(elapsed, 1e-9),
        )
        training.history.add(steady_loss(terms, training.recipe.loss), step.lr)
        notify(self._observers, "on_step", event)
        self.restart_clock()
        return asked > 0

    def _require_finite(
        self,
        step: _Step,
        loss: float,
        terms: Mapping[str, float],
        norm: float,
        *,
        may_skip: bool,
    ) -> None:
        """Stop before a NaN reaches a checkpoint, and name the photos it came from."""
        finite = all(map(math.isfinite, [loss, *terms.values()]))
        if finite and (math.isfinite(norm) or may_skip):
            return
        training = self._training
        keys = training.data.train.keys(step.positions)
        raise TrainingDivergedError(
            f"the loss is {loss} and the norm of its gradient {norm} "
            f"at step {step.step}; lower optim.lr "
            f"(now {training.recipe.optim.lr:g}) or set optim.clip; "
            f"the batch held {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}"
        )
