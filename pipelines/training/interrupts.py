"""Ctrl-C and SIGTERM while a job runs: the first one asks it to stop, the next one ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The latter is what Slurm and Kubernetes send some time before they kill."""


class Interrupts:
    """What to do about signals, until the block of :func:`catch_interrupts` ends.

    Attributes:
        asked: set by the first signal, if the job can then be stopped.
        can_stop: whether it can, in order; else a signal raises KeyboardInterrupt at once, as any
            second one does.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.can_stop = False

    def install(self) -> None:
        """Take the signals over (again); Ray takes SIGTERM when it connects.

        Nothing happens outside of the main thread, which alone gets signals.
        """
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                signal.signal(each, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.can_stop or self.asked.is_set():
            raise KeyboardInterrupt
        self.asked.set()


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Take the signals over until the block ends."""
    interrupts = Interrupts()
    here = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in SIGNALS} if here else {}
    interrupts.install()
    try:
        yield interrupts
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
