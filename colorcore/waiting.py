"""Say what a command waits for, once that takes longer than a user would expect."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SAY_AFTER_S = 5.0
"""Seconds of waiting after which a line says what for."""
_log = logging.getLogger(__name__)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Log a warning if the block takes longer than :data:`SAY_AFTER_S`.

    what  completes "waiting for …"
    """
    timer = threading.Timer(SAY_AFTER_S, _log.warning, ("waiting for %s", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
