"""Which output of another tool belongs to which photo, by their names."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Matches:
    """Photos and outputs, both as paths within their folders.

    outputs    photo -> its output
    missing    photos without an output
    ambiguous  photos that several outputs could belong to, or whose output could be another's
    extra      outputs that belong to no photo
    """

    outputs: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def match_outputs(photos: Sequence[str], outputs: Sequence[str]) -> Matches:
    """Find each photo's output.

    In this order:

    1. the whole path with another suffix appended: ``x/a.jpg`` has ``x/a.jpg.png``
    2. the same path without suffix: ``x/a.jpg`` has ``x/a.png``. Photos that differ only in their
       suffix need outputs that keep it, each its own: ``a.jpg`` has ``a.jpg`` or ``a.jpg.png``
    3. the same, in another case
    4. the same name without folders and suffix, in any case, if it is the only photo and the only
       output of that name

    Nothing is guessed: a photo for which a rule finds several outputs, or an output that a rule
    gives several photos, is ambiguous.
    """
    found, free = Matches(), dict.fromkeys(outputs)
    left = _keep_their_suffix(photos, free, found)
    left = _by(stem, left, free, found)
    left = _by(lambda path: folded(stem(path)), left, free, found)
    alone = _alone(photos, outputs)
    found.missing = [
        photo
        for photo in left
        if (output := alone.get(photo)) is None or not _take(photo, output, free, found)
    ]
    found.extra = list(free)
    return found


def stem(path: str) -> str:
    """A path without its suffix."""
    return posixpath.splitext(path)[0]


def folded(path: str) -> str:
    """A path as file systems compare it to which case and the form of accents do not matter."""
    return unicodedata.normalize("NFC", path).casefold()


def _take(photo: str, output: str, free: dict[str, None], found: Matches) -> bool:
    if output not in free:
        return False
    del free[output]
    found.outputs[photo] = output
    return True


def _keep_their_suffix(photos: Sequence[str], free: dict[str, None], found: Matches) -> list[str]:
    """Match photos whose outputs keep their suffix; returns the photos for the next rule.

    An output ``a.png`` of ``a.jpg`` and ``a.png`` may be either's, because most tools write PNGs.
    Only if each photo has its own output is it certain.
    """
    appended = {stem(output): output for output in free if "." in posixpath.basename(stem(output))}
    by_stem, left = _grouped(stem, free), []
    for same, alike in _grouped(stem, photos).items():
        own = [
            photo if photo in free and len(alike) > 1 else appended.get(photo) for photo in alike
        ]
        if len(alike) == 1 and own[0] is None:
            left += alike
        elif all(own) and len(set(own)) == len(alike):
            for photo, output in zip(alike, own, strict=True):
                _take(photo, str(output), free, found)
        else:
            theirs = [*by_stem.get(same, ()), *filter(None, own)]
            (found.ambiguous if theirs else found.missing).extend(alike)
            for output in theirs:
                free.pop(output, None)
    return left


def _by(
    key: Callable[[str], str], photos: Sequence[str], free: dict[str, None], found: Matches
) -> list[str]:
    """Match photos and outputs with the same key; returns the photos for the next rule."""
    by_key, left = _grouped(key, free), []
    for same, alike in _grouped(key, photos).items():
        candidates = by_key.get(same, [])
        if not candidates:
            left += alike
        elif len(alike) == len(candidates) == 1:
            _take(alike[0], candidates[0], free, found)
        else:
            found.ambiguous += alike
            for output in candidates:
                del free[output]
    return left


def _alone(photos: Sequence[str], outputs: Sequence[str]) -> Mapping[str, str]:
    """Photos and outputs that have a name of their own, without folders."""

    def name(path: str) -> str:
        return folded(posixpath.basename(stem(path)))

    named = _grouped(name, outputs)
    return {
        alike[0]: named[same][0]
        for same, alike in _grouped(name, photos).items()
        if len(alike) == 1 and len(named.get(same, ())) == 1
    }


def _grouped(key: Callable[[str], str], paths: Iterable[str]) -> dict[str, list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return groups
