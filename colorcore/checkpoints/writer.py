"""Writes a training's checkpoints in a thread of its own, while the training goes on.

The training waits only until its state is copied (:mod:`colorcore.checkpoints.host_copy`) and, if
the previous checkpoint is still being written, for that. So there is one set of copies at most.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from colorcore.checkpoints.checkpoint import Checkpoint, save_checkpoint
from colorcore.checkpoints.host_copy import HostCopies
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Copied:
    """Copies of a checkpoint's tensors; ``finish`` waits until they are made."""

    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    finish: Callable[[], None]


class CheckpointWriter:
    """One thread that writes ``last`` and ``best``; what it raises, the next call raises.

    Args:
        device: where the training's tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._copies = HostCopies(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written.

        Raises:
            OSError, StorageError: it could not be.
        """
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is not None

    def submit(self, checkpoint: Checkpoint, last: Store, best: Store | None = None) -> None:
        """:meth:`copy` and :meth:`write` a checkpoint as it is now.

        Raises:
            OSError, StorageError: the previous checkpoint could not be written.
        """
        self.write(checkpoint, self.copy(checkpoint), last, best)

    def copy(self, checkpoint: Checkpoint) -> Copied:
        """Copy the checkpoint's tensors, which may change once this returns.

        Raises:
            OSError, StorageError: the previous checkpoint could not be written.
        """
        self.wait()
        tensors = {f"w.{name}": value for name, value in checkpoint.weights.items()}
        tensors |= {f"t.{name}": value for name, value in checkpoint.training.items()}
        copies, finish = self._copies.take(tensors)
        weights = {name: copies[f"w.{name}"] for name in checkpoint.weights}
        training = {name: copies[f"t.{name}"] for name in checkpoint.training}
        return Copied(weights, training, finish)

    def write(
        self, checkpoint: Checkpoint, copied: Copied, last: Store, best: Store | None = None
    ) -> None:
        """Begin to write a checkpoint to ``last``, and before that to ``best`` if given.

        Its tensors are ``copied``, the latest ones; everything else is the checkpoint's.
        """
        frozen = replace(checkpoint, weights=copied.weights, training=copied.training)
        self._pending = self._thread.submit(_write, frozen, copied.finish, last, best)

    def wait(self) -> None:
        """Wait until what was submitted is written.

        Raises:
            OSError, StorageError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the thread, whatever it is at; an error of it that nobody has asked for is lost.

        Call :meth:`wait` first to hear of it.
        """
        self._thread.shutdown()


def _write(
    checkpoint: Checkpoint, finish: Callable[[], None], last: Store, best: Store | None
) -> None:
    finish()
    # best before last: a run killed in between resumes from the older last, repeats the epoch
    # and writes the same best again. The other way round, best would be lost.
    if best is not None:
        save_checkpoint(replace(checkpoint, training={}), best)
    save_checkpoint(checkpoint, last, same_as=best)
