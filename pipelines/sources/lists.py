"""Lists of photos (text, CSV, Parquet) as sources: read their rows, one batch at a time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from typing import IO

from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.storage.location import open_store
from colorcore.storage.store import LocationError
from pipelines.errors import WrongCallError
from pipelines.sources.source import TAR_SUFFIX, Source

LIST_COLUMNS = ("path", "uri", "url", "file", "filename", "file_name", "image", "source")
"""Accepted names for the column of photos; a list with a single column may use any name."""


def listed_photos(source: Source) -> Iterator[str]:
    """The rows of a list, in order; holds one batch of them.

    Raises:
        WrongCallError: the list is damaged, has no column of photos, or names a bad location.
    """
    suffix = source.name.lower().rpartition(".")[2]
    rows = {"txt": _text_rows, "csv": _csv_rows, "parquet": _parquet_rows}[suffix]
    try:
        opened = source.store.open if suffix == "parquet" else source.store.stream
        with opened(source.name) as file:
            for row in filter(None, rows(file, source.location)):
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


def _text_rows(file: IO[bytes], _: str) -> Iterator[str]:
    # "utf-8-sig" drops the byte order mark that editors on Windows write; surrogateescape keeps
    # file names that are not UTF-8.
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape") as lines:
        for line in lines:
            yield line.strip()


def _csv_rows(file: IO[bytes], location: str) -> Iterator[str]:
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as lines:
        rows = filter(None, csv.reader(lines))
        header = next(rows, [])
        suffixes = (*PHOTO_SUFFIXES, TAR_SUFFIX)
        if len(header) == 1 and ("/" in header[0] or header[0].lower().endswith(suffixes)):
            yield header[0].strip()  # no header: the first row is a photo
            column = 0
        else:
            column = header.index(_column(header, location)) if header else 0
        for row in rows:
            yield row[column].strip() if len(row) > column else ""


def _parquet_rows(file: IO[bytes], location: str) -> Iterator[str]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    column = _column(parquet.schema_arrow.names, location)
    for batch in parquet.iter_batches(batch_size=8192, columns=[column]):
        for value in batch[0].to_pylist():
            yield os.fsdecode(value) if isinstance(value, bytes) else str(value or "")


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
