"""The dataset on disk: the only module that knows its layout and schemas.

::

    dataset.json            format, settings, sources; once finished: counts and fingerprint
    units/000000.parquet    the slices of source photos of up to 1,000 units, one row group each
    train/000017-000.tar    WebDataset: <key>.lab.npy (3, H, W) uint8, <key>.json
    val/000017-000.tar      (--compress zstd: <key>.lab.npy.zst)
    index/000017.parquet    one row per kept sample; written last: a unit with an index is done
    rejected/000017.parquet one row per refused photo: source, reason, detail, a few thumbnails
    histogram/000017.npy    (256, 256) int64 counts of the (a, b) cells of its train samples
    skipped/000017.json     what the unit's tars held besides photos, if anything; skipped.json is
                            their sum (``pipelines.sharding.skipped``)
    shards.parquet          one row per shard, with the number of samples the loader reads from it
    duplicates.parquet      samples whose photo is also in an earlier unit: the loader skips them
    histogram.npy           the sum of all units' histograms
    palette/                by `cc priors`

A unit is a pure function of its slice, the bytes of its photos and the settings: it can be redone
anywhere, byte for byte. When all units are done, ``shards.parquet``, ``duplicates.parquet`` and
``histogram.npy`` are merged from their files (``colorcore.dataset.merge``), then ``dataset.json``
is completed. No clock, host name or random number gets into a dataset.

A dataset is a local folder or a prefix in an object store; all functions here take either.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from colorcore.photos.refusal import PhotoLimits
from colorcore.storage.location import open_store
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray


FORMAT = 1
SPLITS = ("train", "val")
CF_STEP = 5
"""Width of a bin of ``DatasetInfo.colorfulness``."""
CF_CLASSES = 31
"""Number of bins: 0 to 5, …, 145 to 150, and above."""
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("root", pa.int32()),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("colorfulness", pa.float32()),
        ("sha256", pa.string()),
        ("crc32", pa.uint32()),
    ]
)
"""``crc32`` is that of the sample's bytes in the tar, from the header of its array to the padding
behind its JSON; datasets of earlier versions lack the column."""
REJECTED_SCHEMA = pa.schema(
    [
        ("root", pa.int32()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("thumbnail", pa.binary()),
    ]
)
SHARDS_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("split", pa.string()),
        ("unit", pa.int32()),
        ("samples", pa.int32()),
        ("bytes", pa.int64()),
    ]
)
DUPLICATES_SCHEMA = pa.schema([("key", pa.string()), ("first_key", pa.string())])


class DatasetError(Exception):
    """A dataset that is missing, unfinished, damaged, or of another format."""


class SampleSettings(BaseModel):
    """Which photos are kept, and how they are stored; part of ``dataset.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(256, ge=16, le=4096, description="samples are size x size pixels")
    min_colorfulness: float = Field(15.0, ge=0, le=200, description="Hasler-Süsstrunk CF")
    val_percent: float = Field(5.0, ge=0, lt=100, description="share of photos held out")
    min_side: int = Field(64, ge=1, description="minimum pixels on the shorter side")
    max_aspect: float = Field(5.0, ge=1, description="longer side / shorter side")
    max_pixels: int = Field(100_000_000, ge=1, description="more counts as a decompression bomb")
    max_bytes: int = Field(268_435_456, ge=1, description="maximum size of a photo's file")

    @property
    def limits(self) -> PhotoLimits:
        """The limits that are checked before a photo is decoded."""
        return PhotoLimits(
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
            min_side=self.min_side,
            max_aspect=self.max_aspect,
        )


class ShardSettings(SampleSettings):
    """The settings of `cc shard`: with the photos, they determine every byte of a dataset."""

    photos_per_unit: int = Field(250, ge=1, le=100_000, description="source photos per unit")
    compress: Literal["none", "zstd"] = Field("none", description="how samples are stored")


class DatasetInfo(BaseModel):
    """``dataset.json``; the fields after ``sources`` are set when sharding has finished.

    counts        photos, train, val, duplicates, units; train and val include duplicates
    refused       photos by reason
    colorfulness  kept photos by colourfulness, in bins of ``CF_STEP``; the last is open-ended
    disk          bytes of the shards by split
    fingerprint   16 hex digits over the settings and every unit's index
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    settings: ShardSettings
    sources: tuple[str, ...]
    counts: dict[str, int] | None = None
    refused: dict[str, int] | None = None
    colorfulness: tuple[int, ...] | None = None
    disk: dict[str, int] | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class UnitResult:
    """The result of one unit: samples kept by split, photos refused by reason."""

    unit: int
    kept: dict[str, int]
    refused: dict[str, int]

    @property
    def photos(self) -> int:
        """Source photos of the unit."""
        return sum(self.kept.values()) + sum(self.refused.values())


# -- names -------------------------------------------------------------------------------------


def unit_name(unit: int) -> str:
    """Six digits or more, so that the names of the first million units sort in order."""
    return f"{unit:06d}"


def index_name(unit: int) -> str:
    """The unit's index; it exists if and only if the unit is done."""
    return f"index/{unit_name(unit)}.parquet"


def rejected_name(unit: int) -> str:
    """The unit's refused photos."""
    return f"rejected/{unit_name(unit)}.parquet"


def histogram_name(unit: int) -> str:
    """The unit's (a, b) histogram."""
    return f"histogram/{unit_name(unit)}.npy"


def done_units(dataset: str | Path | Store) -> list[int]:
    """The units that have an index, in order. Holds one int per unit: fine up to 10⁷ units."""
    return numbers_in(open_store(dataset), "index")


def numbers_in(store: Store, folder: str) -> list[int]:
    """The numbers in the names of a folder's files, sorted."""
    stems = (name.partition(".")[0] for name in store.names(folder))
    return sorted(int(stem) for stem in stems if stem.isdigit())


# -- dataset.json ------------------------------------------------------------------------------


def read_info(dataset: str | Path | Store, *, finished: bool = True) -> DatasetInfo:
    """The dataset's ``dataset.json``, checked.

    Raises:
        DatasetError: there is no dataset, it is unfinished, or of another format.
        StorageError: the store does not answer.
    """
    store = open_store(dataset)
    path = store.show("dataset.json")
    try:
        data = store.read("dataset.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            f"expected a dataset in {store.show()}, found no dataset.json there; "
            f"make one with: cc shard PHOTOS {store.show()}"
        ) from error
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        if record.get("format") != FORMAT:
            raise DatasetError(
                f"expected dataset format {FORMAT}, found {record.get('format')!r} in {path}; "
                "shard the photos again with this version"
            )
        info = DatasetInfo.model_validate(record)
    except ValueError as error:  # the base class of JSON's, Unicode's and pydantic's errors
        detail = str(error).splitlines()[0]
        raise DatasetError(
            f"{path} is damaged: {detail}; "
            "restore it, or remove the whole folder and run cc shard again"
        ) from error
    if finished and info.fingerprint is None:
        raise DatasetError(
            f"the dataset {store.show()} is unfinished; run the same cc shard command again"
        )
    return info


def write_info(dataset: str | Path | Store, info: DatasetInfo) -> None:
    """Write ``dataset.json`` in one step."""
    text = json.dumps(info.model_dump(exclude_none=True), indent=2, ensure_ascii=False)
    open_store(dataset).write("dataset.json", text.encode() + b"\n")


def read_table(
    dataset: str | Path | Store, name: str, columns: list[str], *, unit: int | None = None
) -> pa.Table:
    """Columns of one of the dataset's Parquet files; errors as :func:`reading`."""
    store = open_store(dataset)
    with reading(store, name, unit=unit):
        return pq.read_table(pa.BufferReader(store.read(name)), columns=columns)


@contextmanager
def reading(
    store: Store, name: str, *, unit: int | None = None, remove: str = ""
) -> Iterator[None]:
    """Turn errors from reading a dataset's file into one that names the fix.

    ``unit`` is the unit that the file belongs to: once its index is removed, `cc shard` redoes it.
    ``remove`` is another file whose removal makes `cc shard` write this one again.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    cure = store.show(remove or (name if unit is None else index_name(unit)))
    try:
        yield
    except FileNotFoundError as error:
        first = "" if cure == store.show(name) else f"remove {cure}, then "
        raise DatasetError(
            f"expected {store.show(name)}, found no such file; "
            f"{first}run the same cc shard command again"
        ) from error
    except (OSError, ValueError, pa.ArrowException) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatasetError(
            f"{store.show(name)} is damaged: {detail}; "
            f"remove {'it' if cure == store.show(name) else cure}, "
            "then run the same cc shard command again"
        ) from error


# -- the whole dataset -------------------------------------------------------------------------


def read_histogram(dataset: str | Path | Store) -> NDArray[np.int64]:
    """The (256, 256) histogram of stored (a, b) cells over all train samples, copies included.

    Raises:
        DatasetError: the dataset is not finished.
    """
    return load_histogram(open_store(dataset), "histogram.npy")


def load_histogram(store: Store, name: str, *, unit: int | None = None) -> NDArray[np.int64]:
    """One of the dataset's histograms, (256, 256) counts; errors as :func:`reading`."""
    with reading(store, name, unit=unit):
        data = store.read(name)
        if data[:6] != b"\x93NUMPY":  # NumPy's own error would be about pickles
            raise ValueError(f"expected a .npy file, found {len(data):,} other bytes")
        histogram: NDArray[np.int64] = np.load(io.BytesIO(data), allow_pickle=False)
        if histogram.shape != (256, 256) or histogram.dtype != np.int64:
            raise ValueError(
                f"expected counts (256, 256) int64, found {histogram.shape} {histogram.dtype}"
            )
    return histogram


def iterate_index(dataset: str | Path | Store, columns: list[str]) -> Iterator[pa.Table]:
    """The index, unit by unit."""
    store = open_store(dataset)
    for unit in done_units(store):
        yield read_table(store, index_name(unit), columns, unit=unit)


def fingerprint(settings: ShardSettings, indexes: Iterable[tuple[int, str]]) -> str:
    """16 hex digits over the settings and each unit's index: the dataset's identity.

    indexes  (unit, hex SHA-256 of its index file), in order of units
    """
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for unit, index_sha256 in indexes:
        digest.update(f"{unit}:{index_sha256}\n".encode())
    return digest.hexdigest()[:16]


def write_table(dataset: str | Path | Store, name: str, table: pa.Table) -> None:
    """Write a Parquet file in one step, with the same bytes for the same table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    open_store(dataset).write(name, buffer.getvalue())
