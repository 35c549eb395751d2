"""Names and options that users type: checks, suggestions, and which options a builder takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias

Option: TypeAlias = float | bool | str
"""A value that a recipe may set for an option of a model or loss term."""


def nearest(name: str, known: Iterable[str], table: str = "") -> str:
    """The end of an error message: the nearest known name, or all names if none is similar.

    table  written before a name that is suggested, such as "optim."
    """
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if matches:
        return f"; did you mean {table}{matches[0]}?"
    return f"; known: {', '.join(known) or 'none'}"


def require_known(what: str, names: Collection[str], known: Collection[str]) -> None:
    """Check that all names are known.

    Raises:
        ValueError: a name is unknown; the message suggests the nearest known one.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what}: '{name}'{nearest(name, known)}")


GIVEN = frozenset({"palette"})
"""Arguments that the program passes to builders and no recipe may set."""


def options_of(builder: Callable[..., object]) -> list[str]:
    """The keyword arguments of a model's or loss term's builder that a recipe may set."""
    return [name for name in inspect.signature(builder).parameters if name not in GIVEN]


def takes(builder: Callable[..., object], given: str) -> bool:
    """Whether a builder has an argument of this name; for names in :data:`GIVEN`."""
    return given in inspect.signature(builder).parameters


def require_kinds(where: str, values: Mapping[str, object], builder: Callable[..., object]) -> None:
    """Check that each value has the kind of its option's default: a number, a string or a bool.

    The builder itself checks unknown options, options without a default, and options with a default
    of another kind.

    Raises:
        ValueError: a value has another kind; the message names the option as ``where``.option.
    """
    parameters = inspect.signature(builder).parameters
    for name, value in values.items():
        default = parameters[name].default if name in parameters else None
        for kinds, what in (
            ((bool,), "true or false"),
            ((int, float), "a number"),
            ((str,), "text"),
        ):
            if isinstance(default, kinds):
                if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
                    raise ValueError(f"{where}.{name}: expected {what}, got {value!r}")
                break
