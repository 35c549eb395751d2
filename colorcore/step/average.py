"""The moving average of a network's weights and buffers, a few launches for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.torch_internals import copy_all, lerp_all

if TYPE_CHECKING:
    from torch import Tensor, nn


class Average:
    """Follows a network: avg ← d · avg + (1 - d) · now, for weights and buffers alike.

    The tensors are listed once, so they must stay the same: load into them, don't replace them.

    Args:
        average: the network that follows.
        model: the network that is followed, of the same shape.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        now = model.state_dict()
        self._averaged: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]]
        self._averaged = {}
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, value in average.state_dict().items():
            ours, theirs = self._copied  # counters such as num_batches_tracked
            if value.dtype.is_floating_point:
                key = (value.dtype, value.device)
                ours, theirs = self._averaged.setdefault(key, ([], []))
            ours.append(value)
            theirs.append(now[name])

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average towards the network as it is now; 0 makes it the same."""
        for ours, theirs in self._averaged.values():
            lerp_all(ours, theirs, 1.0 - decay)
        if self._copied[0]:
            copy_all(*self._copied)
