"""What a check of `cc doctor` finds: how it stands, what was seen, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table; ``advice`` is what to do next, empty where all is well."""

    verdict: Verdict
    found: str
    advice: str = ""


Check = tuple[str, Callable[[], Finding]]
"""A check's name, and what looks; whatever that raises counts as a failure."""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding("ok", found)


def warn(found: str, advice: str) -> Finding:
    """It works, but something may surprise."""
    return Finding("warn", found, advice)


def fail(found: str, advice: str) -> Finding:
    """Something will not work."""
    return Finding("FAIL", found, advice)


def from_error(error: Exception) -> Finding:
    """A failure of one of the project's own errors: what to do stands behind the last semicolon."""
    found, _, advice = " ".join(str(error).split()).rpartition("; ")
    return fail(found, advice) if found else fail(advice, "see the line above")
