"""Names that people type: what is known, what they may have meant, and what a builder takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them when none is near."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {matches[0]}?"
    return f"; known: {', '.join(known) or 'none'}"


def require_known(what: str, names: Collection[str], known: Collection[str]) -> None:
    """Pass if all names are known.

    Raises:
        ValueError: naming ``what`` was asked for, and the nearest known name.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what}: '{name}'{nearest(name, known)}")


def options_of(builder: Callable[..., object]) -> list[str]:
    """The keyword arguments that a model's or loss term's builder takes."""
    return list(inspect.signature(builder).parameters)
