"""Patterns of tars as webdataset writes them: ``photos-{00000..00999}.tar``."""

from __future__ import annotations

import re
from itertools import islice

from braceexpand import braceexpand

from pipelines.errors import WrongCallError

MOST_NAMES = 1_000_000
"""Names that a pattern may stand for: at 10,000 photos per tar, 10¹⁰ photos."""
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}")


def expand_pattern(location: str) -> list[str] | None:
    """The names that a pattern stands for, in its order, or None if it is no pattern.

    The syntax is that of bash and webdataset: ``{00000..00999}``, ``{0..90..10}``, ``{a,b}``, also
    nested and several times. A backslash takes a brace's or comma's special meaning away.

    Raises:
        WrongCallError: it stands for more than ``MOST_NAMES`` names.
    """
    if "{" not in location:
        return None
    # braceexpand holds each range, so look at their lengths before it does.
    ranges = [[int(number or 1) for number in found] for found in _RANGE.findall(location)]
    longest = max((abs(stop - start) // (step or 1) + 1 for start, stop, step in ranges), default=0)
    try:
        names = list(islice(braceexpand(location), MOST_NAMES + 1)) if longest <= MOST_NAMES else []
    except ValueError:  # unbalanced braces
        return None
    if not names or len(names) > MOST_NAMES:
        raise WrongCallError(
            f"expected a pattern of at most {MOST_NAMES:,} names, got more from {location}; "
            "use several patterns, or a folder"
        )
    return names if len(names) > 1 else None
