"""Errors that a job raises for its user: what was expected, what was found, what to do next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class JobError(Exception):
    """A job cannot start or continue; the message is one line for the user."""


class WrongCallError(JobError):
    """The job was called in a way that cannot work; nothing was done."""


class StoppedError(JobError):
    """A job stopped on request; the message says how to continue it."""


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Collection[str] = ()
) -> str:
    """The settings that differ, for an error: ``optim.lr was 0.001, now 0.002``; "" if none do."""
    return "; ".join(
        f"{key} was {before.get(key)}, now {now.get(key)}"
        for key in sorted((before.keys() | now.keys()) - set(ignored))
        if before.get(key) != now.get(key)
    )
