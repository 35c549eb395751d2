"""Output of commands: results on stdout (a table or JSON), progress and warnings on stderr.

Names of files may hold anything. Control characters in them are escaped, so that they neither
break a line nor reach the terminal, and what a terminal's encoding lacks becomes ``?``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

PLAIN_LINE_EVERY_S = 5.0

UNKNOWN = -1
"""The total of a job that is still counting its work."""
NOT_BEGUN = 0
"""The total of a job before its work begins; the note says what it does instead."""
Advance = Callable[[int, int, str], None]
"""Called with the amount done, the total (or UNKNOWN or NOT_BEGUN) and a note."""
SCORES = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "ab_l1": "ab L1",
    "delta_e2000": "ΔE2000",
    "cf": "CF",
    "cf_gap": "CF gap",
    "auc": "AuC",
    "auc_balanced": "AuC bal.",
}
"""The headings of scores in tables, with units."""
_COUNTS = {"bins_in_use": "bins in use"}


_for_json: IO[str] | None = None
"""Where JSON goes while :func:`json_only` holds; None: to stdout."""
_json_printed = False


def warn(message: str) -> None:
    """Print a warning or notice: one line on stderr."""
    print(escaped(message), file=sys.stderr, flush=True)


def failed(*reasons: str) -> int:
    """Print why a command failed, if it did; returns its exit code. Empty reasons are none."""
    given = [reason for reason in reasons if reason]
    for reason in given:
        warn(f"error: {reason}")
    return int(bool(given))


def line(text: str) -> None:
    """Print a line that names files on stdout."""
    print(escaped(text))


def escaped(text: str) -> str:
    """The text with control characters, line breaks too, escaped as in Python's strings."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    global _json_printed  # noqa: PLW0603 - a process has one stdout
    text = json.dumps(result, ensure_ascii=False, default=str)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        text = json.dumps(result, default=str)  # names that are not UTF-8
    print(text, file=_for_json, flush=True)
    _json_printed = True


@contextmanager
def json_only() -> Iterator[Callable[[], bool]]:
    """Keep stdout for one JSON object: whatever libraries print goes to stderr.

    Yields a function that says whether the object was printed.
    """
    global _for_json, _json_printed  # noqa: PLW0603
    _json_printed = False
    if sys.stdout is not sys.__stdout__ or sys.stdout is None:  # that of a test, or none
        yield lambda: _json_printed
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)  # for what is written in C and by other processes, too
    with os.fdopen(os.dup(kept), "w", encoding="utf-8") as _for_json:
        try:
            yield lambda: _json_printed
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            _for_json = None


def adapt_to_terminal() -> None:
    """Let nothing that is printed raise an error, whatever the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or ""
        if reconfigure := getattr(stream, "reconfigure", None):
            is_utf8 = encoding.lower().replace("-", "") == "utf8"
            reconfigure(errors="backslashreplace" if is_utf8 else "replace")


def pixel_limit(reasons: Iterable[str], limit: int) -> None:
    """Say which option raises the limit on pixels, if it was a reason to refuse a photo.

    reasons  each begins with its class, such as "decompression_bomb: expected …"
    """
    if any(reason.startswith("decompression_bomb") for reason in reasons):
        warn(f"photos of more than {limit:,} pixels are refused; --max-pixels raises the limit")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a short table on stdout: numbers right-aligned, text left-aligned."""
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    columns = [list(column) for column in zip(*cells, strict=True)]
    aligned = [_align(column, numbers=_all_numbers(column[1:])) for column in columns]
    for row in zip(*aligned, strict=True):
        print("  ".join(row).rstrip())


def scores(title: str, own: Mapping[str, float], decoded: Mapping[str, float]) -> None:
    """Print a checkpoint's scores, with the model's own decoding and with the chosen one.

    Scores at equal colourfulness are left out; :func:`equal_cf` prints them.
    """
    columns = [own, decoded] if decoded else [own]
    rows = [
        (heading, *(column.get(name) for column in columns))
        for name, heading in SCORES.items()
        if name in own
    ]
    rows += [
        (heading, *(round(column[name]) if name in column else None for column in columns))
        for name, heading in _COUNTS.items()
        if name in own
    ]
    if "photos" in own:
        title = f"{title}, {counted(round(own['photos']), 'photo')}"
    table([title, "own decoding", "chosen decoding"] if decoded else [title, "score"], rows)
    if "cf_true" in own:
        print(f"CF of the photos: {own['cf_true']:.1f}")


def equal_cf(scores: Mapping[str, float]) -> None:
    """Print a model's scores at equal colourfulness in one line; nothing if it has none."""
    if scores:
        print(
            f"at {scores['cf'] / scores['cf_true']:.0%} of the photos' colorfulness: "
            f"PSNR {scores['psnr']:.2f} dB, ΔE2000 {scores['delta_e2000']:.2f}, "
            f"balanced AuC {scores['auc_balanced']:.4f}"
        )


def facts(pairs: Mapping[str, object]) -> None:
    """Print names and values on stdout, one pair per line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        print(f"{name.ljust(width)}  {_cell(value)}")


def bars(label: str, counts: Mapping[str, int]) -> None:
    """Print a bar chart on stdout: one line per class, with its count and share."""
    total, widest = max(1, sum(counts.values())), max(1, *counts.values())
    name = max(map(len, counts))
    for key, count in counts.items():
        bar = "█" * round(24 * count / widest)
        print(f"{label} {escaped(key):>{name}}  {bar:<24}  {count:,} ({count / total:.0%})")


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A progress bar on a terminal; elsewhere a line every few seconds and one at the end."""
    if sys.stderr.isatty():
        with _bar(label) as advance:
            yield advance
    else:
        with _lines(label) as advance:
            yield advance


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _bar(label: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bars:
        task = bars.add_task(label, total=None, note="starting")

        def advance(done: int, total: int, note: str) -> None:
            bars.update(task, completed=done, total=total if total > 0 else None, note=note)

        yield advance


@contextmanager
def _lines(label: str) -> Iterator[Advance]:
    last, printed, first = "", 0.0, None
    warn(f"{label}: starting")

    def advance(done: int, total: int, note: str) -> None:
        nonlocal last, printed, first
        now = time.monotonic()
        if total == NOT_BEGUN:
            if note and note != last:  # at once: few, and some are passed only once
                warn(f"{label}: {note}")
                last = note
            return
        if first is None and done < total:
            first = (now, done)
        of = f"/{total}" if total != UNKNOWN else ""
        left = ""
        if first is not None and done > first[1] and done < total:
            left = f", {duration((now - first[0]) / (done - first[1]) * (total - done))} left"
        text = f"{label}: {done}{of}{f', {note}' if note else ''}"
        if text != last and (now - printed >= PLAIN_LINE_EVERY_S or done == total):
            warn(text + left)
            printed = now
            last = text

    yield advance


def counted(count: int, what: str) -> str:
    """A number and what it counts, such as "1 photo" and "2 photos"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _align(column: Sequence[str], *, numbers: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in column]


def _all_numbers(cells: Sequence[str]) -> bool:
    return all(cell.rstrip("%").replace(",", "").lstrip("-")[:1].isdigit() for cell in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else escaped(str(value))
