"""Ctrl-C and SIGTERM during a job: the first one asks it to stop, the second one ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Slurm and Kubernetes send SIGTERM some time before they kill a job."""


class Interrupts:
    """The state of signal handling during a block of :func:`catch_interrupts`.

    Attributes:
        asked: set by the first signal if ``can_stop``.
        can_stop: whether the job can save and stop. While it cannot, a signal raises
            KeyboardInterrupt at once, as a second one always does.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.can_stop = False

    def install(self) -> None:
        """Take over the signals, again if needed: Ray takes SIGTERM when it connects.

        Does nothing outside the main thread, the only one that Python lets handle signals.
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
    """Take over the signals during the block."""
    interrupts = Interrupts()
    here = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in SIGNALS} if here else {}
    interrupts.install()
    try:
        yield interrupts
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
