"""The dataset on disk: the one place that knows its layout, schemas and how a unit is written.

::

    dataset.json            format, settings, sources; once finished: counts and fingerprint
    units/000017.parquet    the unit's slice of source photos: (root, path), in order
    train/000017-000.tar    WebDataset: <key>.lab.npy (3, H, W) uint8, <key>.json
    val/000017-000.tar
    index/000017.parquet    a row a kept sample; written last: a unit with an index is done
    rejected/000017.parquet a row a refused photo: source, reason, detail
    histogram/000017.npy    (256, 256) int64 counts of the (a, b) cells of its train samples
    duplicates.parquet      samples whose photo is in an earlier unit too: the loader skips them
    palette/                by `cc priors`

A unit is a pure function of its slice, the bytes of those photos and the settings: it can be
done again anywhere, byte for byte. No clock, host name or random number gets into a dataset.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from colorcore.files import replace_bytes
from colorcore.refusal import PhotoLimits

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
SPLITS = ("train", "val")

PLAN_SCHEMA = pa.schema([("root", pa.int32()), ("path", pa.binary())])
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
    ]
)
REJECTED_SCHEMA = pa.schema(
    [
        ("root", pa.int32()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
DUPLICATES_SCHEMA = pa.schema(
    [("key", pa.string()), ("sha256", pa.string()), ("first_key", pa.string())]
)


class DatasetError(Exception):
    """A dataset that is missing, unfinished, of another make, or damaged."""


class SampleSettings(BaseModel):
    """What decides whether a photo is kept, and how it is stored; part of ``dataset.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(256, ge=16, le=4096, description="samples are size x size pixels")
    min_colorfulness: float = Field(15.0, ge=0, le=200, description="Hasler-Süsstrunk CF")
    val_percent: float = Field(5.0, ge=0, lt=100, description="share of photos held out")
    min_side: int = Field(64, ge=1, description="pixels of a photo's shorter side")
    max_aspect: float = Field(5.0, ge=1, description="longer side / shorter side")
    max_pixels: int = Field(100_000_000, ge=1, description="beyond: a decompression bomb")
    max_bytes: int = Field(268_435_456, ge=1, description="of a photo's file")

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
    """The settings of `cc shard`: with the photos, they decide every byte of a dataset."""

    photos_per_unit: int = Field(250, ge=1, le=100_000, description="source photos a unit")


class DatasetInfo(BaseModel):
    """``dataset.json``. ``counts`` and ``fingerprint`` are there once sharding has finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    settings: ShardSettings
    sources: tuple[str, ...]
    counts: dict[str, int] | None = None
    refused: dict[str, int] | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedPhoto:
    """One photo of a unit's slice: which source it is in, and its path there, in bytes."""

    root: int
    path: bytes

    @property
    def source(self) -> str:
        """The path for people: bytes that are no UTF-8 are shown as backslash escapes."""
        return self.path.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What became of a unit: samples kept by split, photos refused by reason."""

    unit: int
    kept: dict[str, int]
    refused: dict[str, int]
    index_sha256: str

    @property
    def photos(self) -> int:
        """Source photos of the unit."""
        return sum(self.kept.values()) + sum(self.refused.values())


# -- names -------------------------------------------------------------------------------------


def unit_name(unit: int) -> str:
    """Six digits, so that names sort as units do."""
    return f"{unit:06d}"


def plan_path(dataset: Path, unit: int) -> Path:
    """The unit's slice of source photos."""
    return dataset / "units" / f"{unit_name(unit)}.parquet"


def index_path(dataset: Path, unit: int) -> Path:
    """The unit's index; its presence says that the unit is done."""
    return dataset / "index" / f"{unit_name(unit)}.parquet"


def rejected_path(dataset: Path, unit: int) -> Path:
    """The unit's refused photos."""
    return dataset / "rejected" / f"{unit_name(unit)}.parquet"


def histogram_path(dataset: Path, unit: int) -> Path:
    """The unit's (a, b) histogram."""
    return dataset / "histogram" / f"{unit_name(unit)}.npy"


def planned_units(dataset: Path) -> list[int]:
    """The units of a dataset, in order. Holds one int a unit: fine up to 10⁷ units."""
    return sorted(int(path.stem) for path in (dataset / "units").glob("[0-9]*.parquet"))


# -- dataset.json ------------------------------------------------------------------------------


def read_info(dataset: Path, *, finished: bool = True) -> DatasetInfo:
    """The dataset's ``dataset.json``, checked.

    Raises:
        DatasetError: there is no dataset, it is unfinished, or of another format.
    """
    path = dataset / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            f"expected a dataset in {dataset}, found no dataset.json there; "
            f"make one with: cc shard PHOTOS {dataset}"
        )
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        if record.get("format") != FORMAT:
            raise DatasetError(
                f"expected dataset format {FORMAT}, found {record.get('format')!r} in {path}; "
                "shard the photos again with this version"
            )
        info = DatasetInfo.model_validate(record)
    except ValueError as error:  # of JSON, Unicode and pydantic too
        detail = str(error).splitlines()[0]
        raise DatasetError(
            f"{path} is damaged: {detail}; "
            "restore it, or remove the whole folder and run cc shard again"
        ) from error
    if finished and info.fingerprint is None:
        raise DatasetError(
            f"the dataset {dataset} is unfinished; run the same cc shard command again"
        )
    return info


def write_info(dataset: Path, info: DatasetInfo) -> None:
    """Write ``dataset.json`` atomically."""
    text = json.dumps(info.model_dump(exclude_none=True), indent=2, ensure_ascii=False)
    replace_bytes(dataset / "dataset.json", text.encode() + b"\n")


# -- a unit ------------------------------------------------------------------------------------


def write_plan(dataset: Path, unit: int, photos: list[PlannedPhoto]) -> None:
    """Write the unit's slice of source photos."""
    table = pa.table(
        {"root": [photo.root for photo in photos], "path": [photo.path for photo in photos]},
        schema=PLAN_SCHEMA,
    )
    write_table(plan_path(dataset, unit), table)


def read_plan(dataset: Path, unit: int) -> list[PlannedPhoto]:
    """The unit's slice of source photos."""
    table = pq.read_table(plan_path(dataset, unit), schema=PLAN_SCHEMA)
    roots, paths = table["root"].to_pylist(), table["path"].to_pylist()
    return [PlannedPhoto(root, path) for root, path in zip(roots, paths, strict=True)]


def read_result(dataset: Path, unit: int) -> UnitResult:
    """The result of a unit that is done already, from its index and rejections."""
    index = index_path(dataset, unit)
    splits = Counter(pq.read_table(index, columns=["split"])["split"].to_pylist())
    reasons = pq.read_table(rejected_path(dataset, unit), columns=["reason"])["reason"]
    return UnitResult(
        unit=unit,
        kept={split: splits[split] for split in SPLITS},
        refused=dict(sorted(Counter(reasons.to_pylist()).items())),
        index_sha256=hashlib.sha256(index.read_bytes()).hexdigest(),
    )


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8, C-ordered .npy file (128 bytes up to three dimensions)."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


# -- the whole dataset -------------------------------------------------------------------------


def read_histogram(dataset: Path, units: Iterable[int] | None = None) -> NDArray[np.int64]:
    """The (256, 256) histogram of stored (a, b) cells over all train samples."""
    total = np.zeros((256, 256), np.int64)
    for unit in planned_units(dataset) if units is None else units:
        total += np.load(histogram_path(dataset, unit), allow_pickle=False)
    return total


def iterate_index(dataset: Path, columns: list[str]) -> Iterator[pa.Table]:
    """The index, unit by unit."""
    for unit in planned_units(dataset):
        yield pq.read_table(index_path(dataset, unit), columns=columns)


def find_duplicates(dataset: Path, *, passes: int = 1) -> pa.Table:
    """Samples whose photo is, byte for byte, in an earlier unit too (DUPLICATES_SCHEMA).

    The indexes are read once a pass; a pass holds the hashes of one 1/passes of the samples
    (about 150 bytes each: one pass is fine up to 10⁷ samples).
    """
    rows: list[dict[str, str]] = []
    for current in range(passes):
        first: dict[str, str] = {}
        for table in iterate_index(dataset, ["key", "sha256"]):
            keys, hashes = table["key"].to_pylist(), table["sha256"].to_pylist()
            for key, sha256 in zip(keys, hashes, strict=True):
                if int(sha256[:8], 16) % passes != current:
                    continue
                if first.setdefault(sha256, key) != key:
                    rows.append({"key": key, "sha256": sha256, "first_key": first[sha256]})
    rows.sort(key=lambda row: row["key"])
    return pa.Table.from_pylist(rows, DUPLICATES_SCHEMA)


def fingerprint(settings: ShardSettings, results: Iterable[UnitResult]) -> str:
    """16 hex digits over the settings and every unit's index: the dataset's identity."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for result in results:
        digest.update(f"{result.unit}:{result.index_sha256}\n".encode())
    return digest.hexdigest()[:16]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file atomically, with the same bytes for the same table."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    replace_bytes(path, buffer.getvalue())
