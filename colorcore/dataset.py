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
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from colorcore.files import replace_bytes
from colorcore.photo import PhotoRefused, Reason
from colorcore.sample import Sample, SampleSettings, make_sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
SPLITS = ("train", "val")
SHARD_SAMPLES = 1000
"""A shard is closed after this many samples (197 MB at 256 x 256)."""
_TAR_BLOCK = 512
_COPY = 1 << 20

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


def write_unit(
    scratch: Path,
    unit: int,
    photos: Iterable[PlannedPhoto],
    read: Callable[[PlannedPhoto], bytes],
    settings: ShardSettings,
) -> UnitResult:
    """Turn one slice of photos into one unit's files, under the folder ``scratch``.

    ``read`` gives a photo's bytes; an ``OSError`` or :class:`PhotoRefused` from it refuses that
    photo. Publishing the files is the caller's business (:func:`publish_unit`).
    """
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    seen: set[str] = set()
    histogram = np.zeros((256, 256), np.int64)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(scratch / split, unit_name(unit)))
            for split in SPLITS
        }
        for position, photo in enumerate(photos):
            origin = {"root": photo.root, "source": photo.source}
            try:
                sample = make_sample(_read(photo, read), settings)
                if sample.sha256 in seen:
                    raise PhotoRefused(Reason.DUPLICATE, "the same bytes as an earlier photo")
            except PhotoRefused as refusal:
                rejected.append(
                    {**origin, "reason": refusal.reason.value, "detail": refusal.detail}
                )
                continue
            seen.add(sample.sha256)
            key = f"{unit_name(unit)}-{position:05d}"
            place = writers[sample.split].add(key, sample, photo.source)
            rows.append({"key": key, "split": sample.split, **place, **origin, **sample.facts()})
            if sample.split == "train":
                count_cells(sample.lab_u8, histogram)
    write_table(rejected_path(scratch, unit), pa.Table.from_pylist(rejected, REJECTED_SCHEMA))
    buffer = io.BytesIO()
    np.save(buffer, histogram)
    replace_bytes(histogram_path(scratch, unit), buffer.getvalue())
    write_table(index_path(scratch, unit), pa.Table.from_pylist(rows, INDEX_SCHEMA))
    return UnitResult(
        unit=unit,
        kept={split: sum(row["split"] == split for row in rows) for split in SPLITS},
        refused=dict(sorted(Counter(row["reason"] for row in rejected).items())),
        index_sha256=hashlib.sha256(index_path(scratch, unit).read_bytes()).hexdigest(),
    )


def publish_unit(scratch: Path, dataset: Path, unit: int) -> None:
    """Move a unit's files from ``scratch`` into the dataset, on one file system, index last."""
    index = index_path(scratch, unit)
    for path in sorted(path for path in scratch.rglob("*") if path.is_file() and path != index):
        _move(path, dataset / path.relative_to(scratch))
    _move(index, index_path(dataset, unit))


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


class ShardWriter:
    """Writes samples into the tars of one unit and split, and knows where each one lies."""

    def __init__(self, folder: Path, unit: str) -> None:
        self._folder, self._unit = folder, unit
        self._open_files = ExitStack()
        self._count = 0
        self._name = ""
        self._file: BinaryIO
        self._tar: tarfile.TarFile

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def add(self, key: str, sample: Sample, source: str) -> dict[str, Any]:
        """Append a sample; returns its index columns shard, offset and length.

        ``offset`` and ``length`` are those of the .npy file within the tar, in bytes.
        """
        if self._count % SHARD_SAMPLES == 0:
            self._open(self._count // SHARD_SAMPLES)
        self._count += 1
        array = npy_header(sample.lab_u8.shape) + sample.lab_u8.tobytes()
        offset = self._add_file(f"{key}.lab.npy", array)
        facts = json.dumps({"source": source, **sample.facts()}, ensure_ascii=False)
        self._add_file(f"{key}.json", facts.encode())
        return {"shard": self._name, "offset": offset, "length": len(array)}

    def _open(self, number: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._unit}-{number:03d}.tar"
        self._name = f"{self._folder.name}/{path.name}"
        self._open_files.close()
        self._file = self._open_files.enter_context(path.open("wb"))
        self._tar = self._open_files.enter_context(
            tarfile.TarFile(
                fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPY
            )
        )

    def _add_file(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)  # mtime 0, no owner: the same bytes every time
        info.size = len(data)
        offset = self._file.tell() + _TAR_BLOCK
        self._tar.addfile(info, io.BytesIO(data))
        return offset


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8, C-ordered .npy file (128 bytes up to three dimensions)."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def count_cells(lab_u8: NDArray[np.uint8], histogram: NDArray[np.int64]) -> None:
    """Add a sample's pixels to a (256, 256) histogram of stored (a, b) cells, in place."""
    cells = (lab_u8[1].astype(np.uint16) << 8) | lab_u8[2]
    histogram += np.bincount(cells.ravel(), minlength=65536).reshape(256, 256)


def _read(photo: PlannedPhoto, read: Callable[[PlannedPhoto], bytes]) -> bytes:
    try:
        return read(photo)
    except OSError as error:
        raise PhotoRefused(Reason.UNREADABLE, error.strerror or type(error).__name__) from error


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


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
