"""Patterns: of tars, as webdataset writes them (``photos-{00000..00999}.tar``), and of photos."""

from __future__ import annotations

import re
from collections.abc import Iterable
from glob import glob, has_magic
from itertools import islice
from pathlib import Path

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


def expand_globs(places: Iterable[str], out: Path) -> list[str]:
    """The places with quoted globs such as ``'album/**/*.tif'`` replaced by the files they match.

    Sorted per glob, without those below ``out``, which are pictures. What exists under its own
    name, or is a URI, is no glob.

    Raises:
        WrongCallError: a glob matches no file.
    """
    found: list[str] = []
    for place in places:
        if not has_magic(place) or "://" in place or "{" in place or Path(place).exists():
            found.append(place)
        elif matched := sorted(glob(place, recursive=True)):  # noqa: PTH207 (paths as given)
            own = out.resolve()
            found += [path for path in matched if not Path(path).resolve().is_relative_to(own)]
        else:
            raise WrongCallError(f"expected files that match {place}, found none")
    return found
