"""Lists of photos (text, CSV, Parquet) as sources: read their rows, one batch at a time."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import IO

from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.storage.location import open_store
from colorcore.storage.store import LocationError
from pipelines.errors import WrongCallError
from pipelines.sources.source import TAR_SUFFIX, PlannedPhoto, Source

LIST_COLUMNS = ("path", "uri", "url", "file", "filename", "file_name", "image", "source")
"""Accepted names for the column of photos; a list with a single column may use any name."""
DELIMITERS = (",", ";", "\t")
"""What separates the columns of a CSV file; of equally good ones, the first is taken."""
ROWS_CHECKED = 1000
"""Rows of a list that are looked for before any is read, until one is found."""
NO_PATH = "(rows without a path)"
_SAMPLED_ROWS = 20
_SAMPLED_BYTES = 1 << 16


def listed_photos(
    source: Source,
    count: Callable[[str], None] = lambda _: None,
    columns: Callable[[Sequence[str]], None] = lambda _: None,
) -> Iterator[str]:
    """The rows of a list, in order; holds one batch of them.

    ``count`` is called with ``NO_PATH`` for each row without a path; blank lines are no rows.
    ``columns`` is told the names of the columns.

    Raises:
        WrongCallError: the list is damaged, has no column of photos, or names a bad location.
    """
    suffix = source.name.lower().rpartition(".")[2]
    rows = {"txt": _text_rows, "csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows}[suffix]
    try:
        opened = source.store.open if suffix == "parquet" else source.store.stream
        with opened(source.name) as file:
            for row in rows(file, source.location, columns):
                if not row:
                    count(NO_PATH)
                    continue
                if "://" in row:
                    open_store(
                        row
                    )  # refuses unknown schemes, and credentials before they reach the plan
                yield row
    except LocationError as error:
        raise WrongCallError(f"in the list {source.location}: {error}") from error
    except (OSError, ValueError, csv.Error) as error:  # includes Arrow's errors
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise WrongCallError(f"the list {source.location} cannot be read: {detail}") from error


def check_lists(sources: Sequence[Source]) -> None:
    """Refuse a list of which no file exists, before a job writes one refusal per row.

    Raises:
        WrongCallError: none of a list's first ``ROWS_CHECKED`` rows names an existing file; or as
            :func:`listed_photos`.
        StorageError: a store does not answer.
    """
    for source in sources:
        if source.kind == "list":
            _check_list(source)


def _check_list(source: Source) -> None:
    found: list[str] = []
    first, missing = "", 0
    for row in islice(listed_photos(source, columns=found.extend), ROWS_CHECKED):
        if _exists(source, row):
            return
        first, missing = first or row, missing + 1
    if missing:
        place = source.show(PlannedPhoto(0, os.fsencode(first)))
        columns = f"the columns are {', '.join(found)}" if found else "each line is one path"
        raise WrongCallError(
            f"expected a list of photos in {source.location}, found none of the "
            f"{'first ' if missing == ROWS_CHECKED else ''}{missing:,} files that it names; "
            f"{columns}, and the first row is {first!r}, looked for at {place}; "
            "correct the paths, which are relative to the list"
        )


def _exists(source: Source, row: str) -> bool:
    try:
        store, name = source.place(PlannedPhoto(0, os.fsencode(row)))
        return store.kind(name) != "nothing"
    except PermissionError:  # reading says so
        return True
    except (OSError, ValueError):  # a name that no file can have
        return False


def _text_rows(
    file: IO[bytes], location: str, columns: Callable[[Sequence[str]], None]
) -> Iterator[str]:
    with _decoded(file) as lines:
        sample = _first_lines(lines)
        header = _cells(sample, _delimiter(sample))
        if len(header) > 1 and _is_named(header):  # spreadsheets save tables as "Unicode text"
            yield from _rows_of(sample, lines, location, columns)
            return
        for line in chain(sample, lines):
            if name := line.strip():
                yield name


def _csv_rows(
    file: IO[bytes], location: str, columns: Callable[[Sequence[str]], None]
) -> Iterator[str]:
    with _decoded(file) as lines:
        yield from _rows_of(_first_lines(lines), lines, location, columns)


def _rows_of(
    sample: Sequence[str],
    lines: Iterable[str],
    location: str,
    columns: Callable[[Sequence[str]], None],
) -> Iterator[str]:
    delimiter = _delimiter(sample)
    reader = csv.reader(chain(sample, lines), delimiter=delimiter)
    rows = (row for row in reader if any(map(str.strip, row)))
    header = [name.strip() for name in next(rows, [])]
    if not header:
        return
    column = _photo_column(header)
    if column is None:
        columns(header)
        column = header.index(_column(header, location))
    else:  # no header: the first row is a photo
        columns(["(no header)"])
        yield header[column]
    for row in rows:
        # A single column has no delimiters: those in its names belong to the names.
        cells = [delimiter.join(row)] if len(header) == 1 else row
        yield cells[column].strip() if len(cells) > column else ""


def _parquet_rows(
    file: IO[bytes], location: str, columns: Callable[[Sequence[str]], None]
) -> Iterator[str]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    columns(names)
    column = _column(names, location)
    for batch in parquet.iter_batches(batch_size=8192, columns=[column]):
        for value in batch[0].to_pylist():
            yield os.fsdecode(value) if isinstance(value, bytes) else str(value or "")


# -- text --------------------------------------------------------------------------------------


def _decoded(file: IO[bytes]) -> io.TextIOWrapper:
    """A list's text: UTF-8 or UTF-16, as its byte order mark or its NULs say."""
    buffered = io.BufferedReader(_Raw(file), _SAMPLED_BYTES)
    encoding = _encoding(buffered.peek(4))
    # surrogateescape keeps file names that are not UTF-8. Python has no such way for UTF-16.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(buffered, encoding, errors, newline="")  # csv needs them as they are


class _Raw(io.RawIOBase):
    """A stream of any store, for ``io.BufferedReader``, which can look ahead."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _encoding(start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # UTF-16 without a mark: in the ends of lines and all other ASCII, the high bytes are NULs.
    even, odd = start[::2].count(0), start[1::2].count(0)
    if b"\n\0" in start and odd > 3 * even:
        return "utf-16-le"
    if b"\0\n" in start and even > 3 * odd:
        return "utf-16-be"
    return "utf-8-sig"  # drops the byte order mark that editors on Windows write


def _first_lines(lines: io.TextIOWrapper) -> list[str]:
    sample: list[str] = []
    size = 0
    while size < _SAMPLED_BYTES and len(sample) < _SAMPLED_ROWS and (line := lines.readline()):
        sample.append(line)
        size += len(line)
    return sample


def _delimiter(sample: Sequence[str]) -> str:
    """The delimiter with which the header has a column of photos, and most rows its length.

    Not ``csv.Sniffer``: it guesses from frequencies of characters, and takes letters, too.
    """

    def score(delimiter: str) -> tuple[bool, float, int]:
        rows = _parsed(sample, delimiter)
        header = _cells(sample, delimiter)
        alike = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
        return _is_named(header) or _photo_column(header) is not None, alike, len(header)

    return max(DELIMITERS, key=score)  # the first of equally good ones


def _cells(sample: Sequence[str], delimiter: str) -> list[str]:
    return [name.strip() for name in next(iter(_parsed(sample, delimiter)), [])]


def _parsed(sample: Sequence[str], delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    with suppress(csv.Error):
        rows.extend(filter(None, csv.reader(sample, delimiter=delimiter)))
    # The last line of the sample may end within a quoted field.
    return rows[:-1] if len(rows) > 2 else rows


# -- columns -----------------------------------------------------------------------------------


def _is_named(header: Sequence[str]) -> bool:
    return any(name.lower() in LIST_COLUMNS for name in header)


def _photo_column(first: Sequence[str]) -> int | None:
    """The column of photos if the first row has no names, but exactly one photo or tar."""
    if _is_named(first):
        return None
    suffixes = (*PHOTO_SUFFIXES, TAR_SUFFIX)
    photos = [
        column
        for column, cell in enumerate(first)
        if cell.lower().endswith(suffixes) or (len(first) == 1 and "/" in cell)
    ]
    return photos[0] if len(photos) == 1 else None


def _column(names: Sequence[str], location: str) -> str:
    if len(names) == 1:
        return names[0]
    lower = {name.lower(): name for name in reversed(names)}
    for name in LIST_COLUMNS:
        if name in lower:
            return lower[name]
    raise WrongCallError(
        f"expected a column of photos in {location}, found {', '.join(names)}; "
        f"name it one of {', '.join(LIST_COLUMNS)}"
    )
