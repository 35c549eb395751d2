"""The actor through which a training's driver and its first worker talk to each other.

Only plain values pass, and neither this module nor those values import torch: so the actor's
process starts at once and stays small.
"""

from __future__ import annotations

from typing import Any


class Board:
    """The first worker posts its progress here; the driver reads it and asks for a stop."""

    def __init__(self) -> None:
        self._progress: dict[str, Any] = {}
        self._reason: str | None = None
        self._stop = False
        self._stopped: str | None = None

    def post(self, progress: dict[str, Any]) -> bool:
        """Replace the progress; return whether the training should stop. For the first worker."""
        self._progress = progress
        return self._stop

    def read(self, stop: bool = False) -> dict[str, Any]:
        """The last progress, with ``stopping`` added; ``stop`` asks for a stop. For the driver."""
        self._stop = self._stop or stop
        return {**self._progress, "stopping": self._stop}

    def give_up(self, reason: str) -> None:
        """Note an error that a retry would only repeat."""
        self._reason = reason

    def reason(self) -> str | None:
        """The error that was noted, if any."""
        return self._reason

    def stopped(self, where: str) -> None:
        """Note that the workers have stopped on request."""
        self._stopped = where

    def ended(self) -> str | None:
        """Where the workers stopped, if they did so on request."""
        return self._stopped
