"""When a training's checkpoints are written, and when its observers hear that they are."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from colorcore.checkpoints.writer import CheckpointWriter, Copied
from colorcore.storage.store import Store
from colorcore.training.events import Observer, ValidationEvent, notify
from colorcore.training.state import Training


class Saving:
    """Writes ``last`` and ``best`` in the background, on rank 0; a context.

    ``on_saved`` comes once both are there, at the first step after that, or before the next epoch
    begins if an observer asks for it (``Observer.waits_for_files``). Ranks other than 0 write
    nothing and hear of it at once. Leaving the context waits for what is being written.

    All methods raise OSError or StorageError if an earlier checkpoint could not be written.
    """

    def __init__(self, training: Training, out: Store, observers: Sequence[Observer]) -> None:
        self._training, self._observers = training, observers
        self._last, self._best = out.below("last"), out.below("best")
        self._writer = CheckpointWriter(training.device) if training.rank == 0 else None
        self._unannounced: ValidationEvent | None = None

    def __enter__(self) -> Saving:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            if kind is None:
                self._writer.wait()

    def save_last(self) -> None:
        """Begin to write ``last`` as the training is now, with the scores of its last validation.

        The steps until now must have been found finite.
        """
        self.wait()
        if self._writer is not None:
            self._writer.submit(self._training.checkpoint(), self._last)

    def copy(self) -> Copied | None:
        """Copies of the training as it is now, for the next :meth:`save`; None on other ranks."""
        self.wait()
        return None if self._writer is None else self._writer.copy(self._training.checkpoint())

    def save(self, validation: ValidationEvent, copied: Copied | None) -> None:
        """Begin to write the checkpoints of a validation, and what was copied when it began."""
        if self._writer is not None and copied is not None:
            best = self._best if validation.is_best else None
            self._writer.write(self._training.checkpoint(), copied, self._last, best)
        self._unannounced = validation
        if any(observer.waits_for_files for observer in self._observers):
            self.wait()
        self.announce()

    def announce(self) -> None:
        """Tell the observers of the latest validation, if its checkpoints are there by now."""
        is_busy = self._writer is not None and self._writer.is_busy
        if self._unannounced is not None and not is_busy:
            validation, self._unannounced = self._unannounced, None
            notify(self._observers, "on_saved", validation)

    def wait(self) -> None:
        """Wait until what was begun is written, and tell the observers."""
        if self._writer is not None:
            self._writer.wait()
        self.announce()
