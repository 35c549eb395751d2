"""What a training's driver and its first worker tell each other, by way of a tiny actor.

Only plain values pass, and nothing of torch is imported here or by what passes: so the actor's
process is there at once, and small.
"""

from __future__ import annotations

from typing import Any


class Board:
    """The first worker pins up its progress, the driver notes what is wanted."""

    def __init__(self) -> None:
        self._progress: dict[str, Any] = {}
        self._reason: str | None = None
        self._stop = False
        self._stopped: str | None = None

    def pin(self, progress: dict[str, Any]) -> bool:
        """The first worker's; returns whether the training shall stop."""
        self._progress = progress
        return self._stop

    def read(self, stop: bool = False) -> dict[str, Any]:
        """The driver's, which says whether the training shall stop: what was pinned last.

        ``stopping`` is added to it.
        """
        self._stop = self._stop or stop
        return {**self._progress, "stopping": self._stop}

    def give_up(self, reason: str) -> None:
        """Note an error that another try would only repeat."""
        self._reason = reason

    def reason(self) -> str | None:
        """The error that was noted, if one was."""
        return self._reason

    def stopped(self, where: str) -> None:
        """Note that the workers did stop."""
        self._stopped = where

    def ended(self) -> str | None:
        """Where the workers stopped, if they did."""
        return self._stopped
