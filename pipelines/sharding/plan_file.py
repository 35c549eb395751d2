"""The plan of a dataset on disk: the photos of each unit, one Parquet row group per unit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from colorcore.dataset.layout import DatasetError, numbers_in, unit_name
from colorcore.storage.location import open_store
from colorcore.storage.store import Store
from pipelines.sources.source import PlannedPhoto

PLAN_UNITS = 1000
"""Units per plan file: few files, and a task still reads its own slice only."""

PLAN_SCHEMA = pa.schema([("root", pa.int32()), ("path", pa.binary())])


def plan_name(first: int) -> str:
    """Name of the file that holds the slices of the units from ``first`` on."""
    return f"units/{unit_name(first)}.parquet"


def write_plan(
    dataset: str | Path | Store, first: int, slices: Sequence[Sequence[PlannedPhoto]]
) -> None:
    """Write the slices of the units ``first``, ``first + 1``, …: one row group each."""
    # In memory, then one write: a reader sees the file whole or not at all, on every store.
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PLAN_SCHEMA, compression="zstd") as writer:
        # A row group per unit lets a task read its own slice and skip the other 999.
        for photos in slices:
            columns = {
                "root": [photo.root for photo in photos],
                "path": [photo.path for photo in photos],
            }
            writer.write_table(pa.table(columns, schema=PLAN_SCHEMA))
    open_store(dataset).write(plan_name(first), buffer.getvalue())


def plans(dataset: str | Path | Store) -> list[int]:
    """The first unit of each plan file, in order."""
    return numbers_in(open_store(dataset), "units")


class PlanFile:
    """One file of the plan; ``photos`` holds the length of each slice."""

    def __init__(self, dataset: str | Path | Store, first: int) -> None:
        """Read the file's footer.

        Raises:
            DatasetError: the file is missing or damaged.
        """
        self.first = first
        self._store = open_store(dataset)
        # The footer alone tells how long each slice is.
        with self._reader() as parquet:
            groups = range(parquet.metadata.num_row_groups)
            self.photos = [parquet.metadata.row_group(group).num_rows for group in groups]

    def slice(self, unit: int) -> list[PlannedPhoto]:
        """The photos of one unit; reads no other slice."""
        with self._reader() as parquet:
            table = parquet.read_row_group(unit - self.first)
        roots, paths = table["root"].to_pylist(), table["path"].to_pylist()
        return [PlannedPhoto(root, path) for root, path in zip(roots, paths, strict=True)]

    @contextmanager
    def _reader(self) -> Iterator[pq.ParquetFile]:
        name = plan_name(self.first)
        try:
            with self._store.open(name) as file:
                yield pq.ParquetFile(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise DatasetError(
                f"the plan {self._store.show(name)} is damaged: {detail}; "
                "restore it or shard into a new folder"
            ) from error
