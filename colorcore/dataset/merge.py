"""Finishing a dataset: merge the files of its units, in pieces that fit into memory at any size.

:func:`summarise` reads the files of a group of units, on any machine. It returns the hashes of the
samples split by hash prefix, so that one call of :func:`find_copies` sees all copies of a photo,
however many samples there are. :func:`write_finished` needs only the sums and the copies.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colorcore.dataset.layout import (
    CF_CLASSES,
    CF_STEP,
    DUPLICATES_SCHEMA,
    SHARDS_SCHEMA,
    SPLITS,
    DatasetError,
    DatasetInfo,
    fingerprint,
    histogram_name,
    index_name,
    load_histogram,
    read_table,
    reading,
    rejected_name,
    unit_name,
    write_info,
    write_table,
)
from colorcore.photos.refusal import Reason
from colorcore.storage.npy import npy_bytes
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

MERGED = ("histogram.npy", "duplicates.parquet", "shards.parquet")
"""The files merged from all units, before ``dataset.json`` is completed."""
REMOTE_READS = 16
"""Units of a remote dataset that are read at the same time."""
HASHES = np.dtype(
    [("high", "u8"), ("low", "u8"), ("unit", "i4"), ("position", "i4"), ("shard", "i4")]
)
"""A kept sample: the first 128 bits of its SHA-256, its unit, position and shard in the unit.

28 bytes per sample. By the birthday bound, 10⁹ different photos collide in 128 bits with a
probability of about 10⁻²¹.
"""
COPIES = np.dtype(
    [
        ("unit", "i4"),
        ("position", "i4"),
        ("shard", "i4"),
        ("first_unit", "i4"),
        ("first_position", "i4"),
    ]
)
"""A copy of a photo of an earlier unit, and the place of the first one."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Summary:
    """The sums over some units.

    indexes  (unit, hex SHA-256 of its index) in order of units
    shards   rows of SHARDS_SCHEMA; ``samples`` includes copies
    """

    kept: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    colorfulness: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CF_CLASSES, np.int64))
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((256, 256), np.int64))
    indexes: list[tuple[int, str]] = field(default_factory=list)
    shards: pa.Table = field(default_factory=SHARDS_SCHEMA.empty_table)

    def add(self, other: Summary) -> None:
        """Add the summary of later units."""
        self.kept += other.kept
        self.refused += other.refused
        self.colorfulness = self.colorfulness + other.colorfulness
        self.histogram = self.histogram + other.histogram
        self.indexes += other.indexes
        self.shards = pa.concat_tables([self.shards, other.shards])


def summarise(
    dataset: Store, units: Sequence[int], pieces: int = 1
) -> tuple[Summary, list[NDArray[np.void]]]:
    """Read the files of some units -> their sums, and their samples' HASHES in ``pieces``.

    Raises:
        DatasetError: a file is missing or damaged, or a shard is shorter than its index requires.
        StorageError: the store does not answer.
    """
    total = Summary()
    hashes: list[NDArray[np.void]] = []
    shards: list[dict[str, object]] = []
    for unit, read in _each(dataset, units, lambda unit: _read_unit(dataset, unit)):
        total.kept.update(read.kept)
        total.refused.update(read.refused)
        total.colorfulness += read.colorfulness
        total.histogram += read.histogram
        total.indexes.append((unit, read.index_sha256))
        shards += read.shards
        hashes.append(read.hashes)
    total.shards = pa.Table.from_pylist(shards, SHARDS_SCHEMA)
    return total, _cut(np.concatenate(hashes) if hashes else np.empty(0, HASHES), pieces)


def find_copies(hashes: Iterable[NDArray[np.void]]) -> NDArray[np.void]:
    """Samples whose photo also occurs earlier (HASHES) -> COPIES, in no particular order."""
    # Sorted by hash, then by place: copies become neighbours, led by the one that is kept. The
    # order of arrival does not matter, so the same photos give the same bytes.
    rows = np.concatenate([np.empty(0, HASHES), *hashes])
    rows = rows[np.lexsort((rows["position"], rows["unit"], rows["low"], rows["high"]))]
    new = np.ones(len(rows), bool)
    new[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    first = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
    copies = np.empty(int((~new).sum()), COPIES)
    for name in ("unit", "position", "shard"):
        copies[name] = rows[name][~new]
    copies["first_unit"] = rows["unit"][first[~new]]
    copies["first_position"] = rows["position"][first[~new]]
    return copies


def write_finished(
    dataset: Store, info: DatasetInfo, total: Summary, copies: NDArray[np.void]
) -> DatasetInfo:
    """Write the merged files, and the completed ``dataset.json`` last.

    Holds the table of shards and all copies (20 bytes each) in memory: fine up to 10⁷ of either.
    """
    copies = np.sort(copies, order=["unit", "position"])
    duplicates = {
        "key": _keys(copies["unit"], copies["position"]),
        "first_key": _keys(copies["first_unit"], copies["first_position"]),
    }
    # The table of shards comes last of the three: readers start from it, and must find the
    # copies that it leaves out.
    dataset.write("histogram.npy", npy_bytes(total.histogram))
    write_table(dataset, "duplicates.parquet", pa.table(duplicates, schema=DUPLICATES_SCHEMA))
    write_table(dataset, "shards.parquet", _without_copies(total.shards, copies))
    splits = total.shards["split"].to_numpy(zero_copy_only=False)
    sizes = total.shards["bytes"].to_numpy()
    finished = info.model_copy(
        update={
            "counts": {
                "photos": total.kept.total() + total.refused.total(),
                **{split: total.kept[split] for split in SPLITS},
                "duplicates": len(copies),
                "units": len(total.indexes),
            },
            "refused": {r.value: total.refused[r.value] for r in Reason if total.refused[r.value]},
            "colorfulness": tuple(total.colorfulness.tolist()),
            "disk": {split: int(sizes[splits == split].sum()) for split in SPLITS},
            "fingerprint": fingerprint(info.settings, total.indexes),
        }
    )
    write_info(dataset, finished)
    return finished


# -- a unit ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _UnitFiles:
    kept: Counter[str]
    refused: Counter[str]
    colorfulness: NDArray[np.int64]
    histogram: NDArray[np.int64]
    index_sha256: str
    shards: list[dict[str, object]]
    hashes: NDArray[np.void]


def _read_unit(dataset: Store, unit: int) -> _UnitFiles:
    name = index_name(unit)
    with reading(dataset, name, unit=unit):
        data = dataset.read(name)
        index = pq.read_table(
            pa.BufferReader(data),
            columns=["key", "split", "shard", "offset", "length", "colorfulness", "sha256"],
        )
    rejected = read_table(dataset, rejected_name(unit), ["reason"], unit=unit)
    histogram = load_histogram(dataset, histogram_name(unit), unit=unit)
    classes = np.minimum(index["colorfulness"].to_numpy() // CF_STEP, CF_CLASSES - 1).astype(int)
    shards = _shards(dataset, unit, index)
    return _UnitFiles(
        kept=Counter(index["split"].to_pylist()),
        refused=Counter(rejected["reason"].to_pylist()),
        colorfulness=np.bincount(classes, minlength=CF_CLASSES),
        histogram=histogram,
        index_sha256=hashlib.sha256(data).hexdigest(),
        shards=shards,
        hashes=_hashes(unit, index),
    )


def _shards(dataset: Store, unit: int, index: pa.Table) -> list[dict[str, object]]:
    names = index["shard"].to_numpy(zero_copy_only=False)
    ends = index["offset"].to_numpy() + index["length"].to_numpy()
    rows: list[dict[str, object]] = []
    for name in sorted(set(names)):
        mine = names == name
        # One size per shard shows a lost or cut shard here, not hours later in a training.
        try:
            size = dataset.size(name)
        except FileNotFoundError:
            size = -1
        if size < ends[mine].max():
            found = "no such file" if size < 0 else f"{size:,} bytes"
            raise DatasetError(
                f"the shard {dataset.show(name)} does not match its index: expected at least "
                f"{ends[mine].max():,} bytes, found {found}; "
                f"remove {dataset.show(index_name(unit))}, then run the same cc shard command again"
            )
        split = name.partition("/")[0]
        count = int(mine.sum())
        rows.append({"shard": name, "split": split, "unit": unit, "samples": count, "bytes": size})
    return rows


def _hashes(unit: int, index: pa.Table) -> NDArray[np.void]:
    rows = np.empty(index.num_rows, HASHES)
    # One call for all rows, of which there may be millions.
    digests = bytes.fromhex("".join(digest[:32] for digest in index["sha256"].to_pylist()))
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2)
    rows["high"], rows["low"] = halves[:, 0], halves[:, 1]
    rows["unit"] = unit
    rows["position"] = [int(key.rpartition("-")[2]) for key in index["key"].to_pylist()]
    rows["shard"] = [shard_number(name) for name in index["shard"].to_pylist()]
    return rows


def shard_number(name: str) -> int:
    """A shard's number within its unit, counting both splits: ``val/000017-002.tar`` -> 5."""
    split, _, file = name.partition("/")
    return int(file.partition("-")[2].removesuffix(".tar")) * len(SPLITS) + SPLITS.index(split)


def _cut(rows: NDArray[np.void], pieces: int) -> list[NDArray[np.void]]:
    """Rows by hash prefix: piece i holds the i-th of ``pieces`` equal ranges."""
    if pieces == 1:
        return [rows]
    # The upper 32 bits of a hash times ``pieces`` fit into 64 bits, so the ranges are exact.
    piece = ((rows["high"] >> np.uint64(32)) * np.uint64(pieces)) >> np.uint64(32)
    return [rows[piece == i] for i in range(pieces)]


def _without_copies(shards: pa.Table, copies: NDArray[np.void]) -> pa.Table:
    """The table of shards with ``samples`` counting what the loader finds: no copies."""
    numbers = np.array([shard_number(name) for name in shards["shard"].to_pylist()], np.int64)
    units = shards["unit"].to_numpy().astype(np.int64)
    row_of = {pair: row for row, pair in enumerate(zip(units, numbers, strict=True))}
    samples = shards["samples"].to_numpy().copy()
    # Subtract per shard instead of recounting: the merge must not read every index again.
    pairs, counts = np.unique(copies[["unit", "shard"]], return_counts=True)
    for (unit, number), count in zip(pairs, counts, strict=True):
        samples[row_of[int(unit), int(number)]] -= count
    column = shards.schema.get_field_index("samples")
    return shards.set_column(column, "samples", pa.array(samples, pa.int32()))


def _keys(units: NDArray[np.int32], positions: NDArray[np.int32]) -> list[str]:
    return [f"{unit_name(u)}-{p:05d}" for u, p in zip(units, positions, strict=True)]


def _each(
    dataset: Store, units: Sequence[int], read: Callable[[int], _T]
) -> Iterable[tuple[int, _T]]:
    # Threads hide a store's latency. They work on blocks: ``map`` over all units would queue every
    # read at once, and hold the answers until they are consumed.
    if dataset.local is not None:
        yield from ((unit, read(unit)) for unit in units)
        return
    with ThreadPoolExecutor(REMOTE_READS) as pool:
        for start in range(0, len(units), REMOTE_READS * 4):
            block = units[start : start + REMOTE_READS * 4]
            yield from zip(block, pool.map(read, block), strict=True)
