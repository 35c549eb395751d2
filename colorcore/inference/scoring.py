"""A training's validation: begun, and asked for later, on one rank or on all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed

from colorcore.dataset.loader import val_batches
from colorcore.inference.evaluate import Validation, evaluate, statistics_for
from colorcore.step.precision import scoring_precision
from colorcore.transfer import Arriving

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.color.palette import Palette
    from colorcore.dataset.samples import Samples
    from colorcore.scores.color_statistics import ColorStatistics

PICTURES = 8
"""Validation photos whose predictions are shown after each validation, always the same ones."""
BATCH = 32
"""Photos that are scored at once, at least."""


def scoring_batch(device: torch.device, train_batch: int) -> int:
    """Photos that are scored at once where so many are trained on at once.

    A validation of a few dozen photos keeps a GPU busy for no longer than a host needs to launch
    it, about a thousand kernels per batch. Twice the batch of a step needs less memory than the
    step.
    """
    return max(BATCH, 2 * train_batch) if device.type == "cuda" else BATCH


@dataclass(frozen=True, slots=True)
class Scored:
    """What a validation found.

    scores      means over all photos, as ``Validation.compute`` has them
    statistics  of the colours, as ``ColorStatistics.compute`` has them
    pairs       predicted and true LAB of this rank's first photos, (photos, 2, 3, H, W) on the CPU
    """

    scores: dict[str, float]
    statistics: dict[str, float]
    pairs: Tensor


class Scoring:
    """Scores a network on a validation split, with several ranks each on its share.

    On a GPU it is begun here and computed while the host does something else. Until
    :meth:`result`, the network may be read, and must not change.

    Args:
        network: what is scored; on all ranks the same.
        val: the validation split.
        palette, mean_ab: of the dataset.
        device: where the network is.
        precision: of the training, as in its recipe.
        batch: photos that are scored at once.
        rank, world: of this process, and the number of processes.
    """

    def __init__(
        self,
        network: nn.Module,
        val: Samples,
        palette: Palette,
        mean_ab: tuple[float, float],
        *,
        device: torch.device,
        precision: str = "fp32",
        batch: int = BATCH,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._network, self._val, self._palette, self._mean_ab = network, val, palette, mean_ab
        self._device, self._batch, self._rank, self._world = device, batch, rank, world
        self._precision = scoring_precision(device, precision)
        self._begun = self._begin(self._precision)

    def result(self) -> Scored:
        """Wait for the scores, and add up those of all ranks."""
        found = self._result()
        if self._precision != "fp32" and not all(map(math.isfinite, found.scores.values())):
            # Half precision ends at 65,504, which the activations of a wild network exceed.
            self._begun = self._begin("fp32")
            found = self._result()
        return found

    def _begin(self, precision: str) -> tuple[Validation, ColorStatistics, Arriving]:
        statistics = statistics_for(self._palette, self._mean_ab)
        pin = self._device.type == "cuda"
        validation, pairs = evaluate(
            self._network,
            val_batches(self._val, self._batch, rank=self._rank, world=self._world, pin=pin),
            self._palette,
            device=self._device,
            precision=precision,
            pictures=PICTURES,
            statistics=statistics,
        )
        return validation, statistics, Arriving(pairs)

    def _result(self) -> Scored:
        validation, statistics, pairs = self._begun
        if self._world > 1:
            # Sums, not means: ranks may have different numbers of photos.
            states = [validation.state(), statistics.state()]
            total = torch.cat(states).to(self._device)
            distributed.all_reduce(total)
            sums = total.split([len(state) for state in states])
            validation = Validation(self._palette)
            validation.add_state(sums[0])
            statistics = statistics_for(self._palette, self._mean_ab)
            statistics.add_state(sums[1])
        return Scored(validation.compute(), statistics.compute(), pairs.tensor())
