"""The course of a training's loss: oscillating, flat, diverged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 512
"""Photos per block: losses are averaged over a block before they are compared."""
EPOCHS = 4
"""Epochs per block, if these have fewer photos."""
RECENT = 32
"""Latest blocks, in which oscillation is measured."""
COURSE = 64
"""The whole course is kept in this many parts at most, and half as many at least; even."""
FEW = 8
"""Blocks needed before the loss is judged."""
_NO_LOSS = 1e-12
"""Below this a loss counts as 0."""


class LossHistory:
    """The course of a training's loss, in a small, fixed amount of memory.

    Losses are averaged over blocks of at least :data:`BLOCK` photos, so that the content of a
    single batch matters little, whatever the batch size. The history keeps the latest
    :data:`RECENT` blocks, and the whole course in :data:`COURSE` / 2 to :data:`COURSE` equal
    parts; when these are full, neighbours are merged.

    Args:
        batch: photos per step, over all ranks.
        steps_per_epoch: a block has at most :data:`EPOCHS` epochs.
    """

    def __init__(self, batch: int = 1, steps_per_epoch: int = BLOCK) -> None:
        self.steps = 0
        self.warming_up = False
        self._lr = 0.0
        self._first = 0.0
        self._steps_per_block = min(-(-BLOCK // batch), EPOCHS * steps_per_epoch)
        self._block = _Mean()
        self._recent: list[float] = []
        self._part = _Mean()
        self._blocks_per_part = 1
        self._course: list[float] = []

    def add(self, loss: float, lr: float) -> None:
        """Add a step and its learning rate; a rate above the previous one counts as warm-up."""
        self.steps += 1
        if self.steps == 1:
            self._first = loss
        self.warming_up, self._lr = lr > self._lr and self.steps > 1, lr
        self._block.add(loss)
        if self._block.count < self._steps_per_block:
            return
        mean = self._block.take()
        self._recent = [*self._recent, mean][-RECENT:]
        self._part.add(mean)
        if self._part.count < self._blocks_per_part:
            return
        self._course.append(self._part.take())
        if len(self._course) == COURSE:
            pairs = zip(self._course[::2], self._course[1::2], strict=True)
            self._course = [(one + other) / 2 for one, other in pairs]
            self._blocks_per_part *= 2

    @property
    def young(self) -> bool:
        """Whether the learning rate still rises, or fewer than half of :data:`FEW` blocks exist.

        With 1,000 photos that is the first two epochs.
        """
        return self.warming_up or 2 * self.blocks < FEW

    @property
    def blocks(self) -> int:
        """Complete blocks so far."""
        return self.steps // self._steps_per_block

    def compute(self) -> dict[str, float]:
        """The statistics, without those for which there are too few blocks.

        r_1 … r_n are the means of the latest blocks (n at most :data:`RECENT`), and c_1 … c_m
        those of the parts of the whole course.

        ========== ===========================================================================
        loss_swing 2 · min(Σ rises, Σ falls) / ((n - 1) · mean r), of the differences between
                   neighbouring blocks: how far the loss goes up and down per block, relative
                   to its level. 0 if it only falls or only rises; needs :data:`FEW` blocks
        loss_rise  the mean of r_{n-1} and r_n, divided by the smaller of c_1 and the first
                   step's loss, which is about that of a grey prediction
        loss_fall  1 - (mean of the last quarter of c) / (mean of the quarter before it): the
                   share by which the loss fell recently; needs 2 · :data:`FEW` blocks
        ========== ===========================================================================
        """
        if self.blocks < FEW:
            return {}
        recent, course = self._recent, self._course
        steps = [after - before for before, after in itertools.pairwise(recent)]
        rises = math.fsum(step for step in steps if step > 0)
        falls = -math.fsum(step for step in steps if step < 0)
        level = abs(math.fsum(recent)) / len(recent)
        result = {
            "loss_swing": 2.0 * min(rises, falls) / max(len(steps) * level, _NO_LOSS),
            "loss_rise": (recent[-1] + recent[-2])
            / 2.0
            / max(min(course[0], self._first), _NO_LOSS),
        }
        if self.blocks >= 2 * FEW:
            quarter = len(course) // 4
            before = math.fsum(course[-2 * quarter : -quarter])
            lately = math.fsum(course[-quarter:])
            result["loss_fall"] = 1.0 - lately / max(before, _NO_LOSS)
        return result

    def state(self) -> list[float]:
        """The whole history as a list of numbers of fixed length, for a checkpoint."""
        return [
            float(self.steps),
            float(self.warming_up),
            self._lr,
            self._first,
            float(self._block.count),
            self._block.total,
            float(self._part.count),
            self._part.total,
            float(self._blocks_per_part),
            float(self._steps_per_block),
            float(len(self._recent)),
            float(len(self._course)),
            *self._recent,
            *[0.0] * (RECENT - len(self._recent)),
            *self._course,
            *[0.0] * (COURSE - len(self._course)),
        ]

    def load_state(self, state: Sequence[float]) -> None:
        """Restore a history from :meth:`state`; a state of another length is ignored."""
        if len(state) != len(self.state()):
            return
        steps, warming_up, lr, self._first, count, total, parts, of_parts, *rest = state[:12]
        self.steps, self.warming_up, self._lr = round(steps), round(warming_up) == 1, lr
        self._block, self._part = _Mean(round(count), total), _Mean(round(parts), of_parts)
        self._blocks_per_part, self._steps_per_block, recent, course = map(round, rest)
        self._recent = list(state[12 : 12 + recent])
        self._course = list(state[12 + RECENT : 12 + RECENT + course])


@dataclass(slots=True)
class _Mean:
    """A running mean."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    def take(self) -> float:
        mean = self.total / self.count
        self.count, self.total = 0, 0.0
        return mean
