"""The result of a check of `cc doctor`: a verdict, the facts, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table; ``advice`` is the next step, empty if there is nothing to do."""

    verdict: Verdict
    found: str
    advice: str = ""


Check = tuple[str, Callable[[], Finding]]
"""A check's name and function; any exception counts as a failure."""


def ok(found: str) -> Finding:
    """The check passed."""
    return Finding("ok", found)


def warn(found: str, advice: str) -> Finding:
    """It works, but may cause trouble."""
    return Finding("warn", found, advice)


def fail(found: str, advice: str) -> Finding:
    """It will not work."""
    return Finding("FAIL", found, advice)


def from_error(error: Exception) -> Finding:
    """A failure from one of our own errors, whose advice follows the last semicolon."""
    found, _, advice = " ".join(str(error).split()).rpartition("; ")
    return fail(found, advice) if found else fail(advice, "fix the cause and rerun cc doctor")
