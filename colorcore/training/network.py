"""The model as a step calls it: in DDP with several ranks, compiled where that pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from colorcore.models import RepeatsBlocks
from colorcore.recipes.recipe import Recipe
from colorcore.step import compiling
from colorcore.torch_internals import compile_many_shapes, is_of_the_compiler

if TYPE_CHECKING:
    from torch import nn

_T = TypeVar("_T")
_VERSIONS = 64
"""Of one function that the compiler keeps."""


class Network:
    """Wraps a model for training.

    Attributes:
        call: the wrapped model, called as the model is.
        parallel: its DDP wrapper, with several ranks.

    Args:
        model: the raw model.
        recipe: of the training.
        device: where it runs.
        size: side of the photos in pixels.
        notice: receives what users should know; called on rank 0 only.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        size: int,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model, self._recipe, self._device, self._notice = model, recipe, device, notice
        self._world = distributed.get_world_size() if distributed.is_initialized() else 1
        self._rank = distributed.get_rank() if distributed.is_initialized() else 0
        part = recipe.model
        facts = (part.name, part.options(), recipe.data.batch, size, recipe.train.precision)
        self._key = compiling.key_of(device, *facts, self._world)
        self._compiles = self._is_untried = False
        self._blocks: Sequence[nn.Module] = ()
        self.parallel: DistributedDataParallel | None = None
        self.call: Any = model

    def decide(self, steps: int) -> None:
        """Decide whether to compile for so many steps, the same on every rank; then wrap."""
        setting = self._recipe.train.compile
        seconds, self._measured = compiling.expected_seconds(self._recipe.model.name, self._key)
        verdict: list[Any] = [compiling.why_not(setting, self._device, steps, seconds), seconds]
        if self._world > 1 and setting != "off":
            distributed.broadcast_object_list(verdict, 0, device=self._device)
        why, self._seconds = verdict
        self._compiles = why is None
        if why and self._rank == 0:
            self._notice(why)
        if self._compiles:
            compiling.use_cache_folder()
            compile_many_shapes(_VERSIONS)
        self.wrap()

    def wrap(self) -> None:
        """Wrap the model, again after other parameters of it begin to learn."""
        # DDP and the compiler know only what learned when they wrapped the model.
        for block in self._blocks:
            del block.forward
        self._blocks, self.parallel = (), None
        self.call = self._model
        if self._compiles and isinstance(self._model, RepeatsBlocks):
            self._blocks = self._model.blocks_to_compile()
            for block in self._blocks:
                # Blocks of the same shape share one compilation.
                block.forward = torch.compile(block.forward, dynamic=False)
        if self._world > 1:
            ids = [self._device.index or 0] if self._device.type == "cuda" else None
            self.call = self.parallel = DistributedDataParallel(self._model, device_ids=ids)
        if self._compiles and not self._blocks:
            self.call = torch.compile(self.call, dynamic=False)
        self._is_untried = self._compiles

    def attempt(self, work: Callable[[], _T], others: Sequence[nn.Module] = ()) -> _T:
        """Do a step's forward and backward passes; the first time, they may wait for the compiler.

        If it fails, its work is undone and repeated uncompiled, and so are all later steps.

        Args:
            work: must do the same when it is called again.
            others: further networks whose gradients and buffers it changes.
        """
        if not self._is_untried:
            return work()
        self._is_untried = False
        if self._rank == 0:
            self._notice(compiling.announcement(self._seconds, measured=self._measured))
        networks = [self._model, *others]
        before = [[buffer.clone() for buffer in each.buffers()] for each in networks]
        started = time.perf_counter()
        try:
            answer = work()
        except Exception as error:
            # Not every error of the compiler says that it is one, so the repetition tells. With
            # several ranks it may be a lost connection, in which a repetition would hang.
            if self._world > 1 and not is_of_the_compiler(error):
                raise
            failure = _line(error)
        else:
            seconds = time.perf_counter() - started
            if self._rank == 0:
                self._notice(f"compiled the network in {seconds:.0f} s")
                compiling.note_seconds(self._key, seconds)
            return answer
        self._compiles = False
        for each, buffers in zip(networks, before, strict=True):
            each.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, value in zip(each.buffers(), buffers, strict=True):
                    buffer.copy_(value)
        self.wrap()
        answer = work()
        if self._rank == 0:
            self._notice(f"the compiler failed, so training goes uncompiled: {failure}")
        return answer


def _line(error: BaseException) -> str:
    lines = [each.strip() for each in str(error).splitlines() if each.strip()]
    # The compiler's own errors name themselves in the first line, and their cause in the second.
    return f"{type(error).__name__}: {' '.join(lines[:2]) or 'no reason given'}"[:300]
