"""A dataset's samples by their position: index, shards, memory maps."""

from __future__ import annotations

import copy
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from colorcore.dataset.layout import DatasetError, index_name, read_info, read_table, reading
from colorcore.dataset.order import BLOCK_SHARDS
from colorcore.dataset.shard_cache import ShardCache
from colorcore.storage.location import open_store
from colorcore.storage.npy import npy_header
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


OPEN_SHARDS = 2 * BLOCK_SHARDS
"""Shards that stay mapped, and units whose index stays in memory."""
_TAR_BLOCK = 512
_SHARD_NAME = r"\A(train|val)/[0-9]{6,}-[0-9]{3,}\.tar\z"
"""Shard names become paths: a damaged or hostile table must not lead out of the dataset."""

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class _Rows:
    """The samples of one shard: byte offsets, lengths, keys, and member names in the tar."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    keys: list[str]
    members: list[bytes]


class Samples:
    """Random access to the samples of one split.

    Memory holds one row per shard, and the index rows of the units in use: opening a dataset does
    not read its indexes. A position counts the samples in index order, without copies.

    ``cache`` holds the shards of a remote dataset, by default in the user's cache folder; tests
    pass their own. ``suffix`` is that of the arrays in the tars, with its leading dot.

    Raises:
        DatasetError: the dataset is missing or unfinished, the split has no samples, an index is
            missing or damaged, or a tar does not match its index.
        StorageError: a remote dataset's store does not answer.
    """

    def __init__(
        self, dataset: str | Path | Store, split: str, *, cache: ShardCache | None = None
    ) -> None:
        self._dataset, self._split = open_store(dataset), split
        info = read_info(self._dataset)
        self.size = info.settings.size
        self._codec = pa.Codec("zstd") if info.settings.compress == "zstd" else None
        self.suffix = ".lab.npy.zst" if self._codec else ".lab.npy"
        self.cache = cache
        if self._dataset.local is None and cache is None:
            self.cache = ShardCache(self._dataset, info.fingerprint or "")
        self._header = npy_header((3, self.size, self.size))
        self._read_shards()
        self._read_copies()
        # Bounded: each map holds a file descriptor, and a rank visits thousands of shards.
        self._maps = _Recent[int, mmap.mmap](OPEN_SHARDS, self._map)
        self._rows = _Recent[int, dict[str, _Rows]](OPEN_SHARDS, self._read_unit)

    def _read_shards(self) -> None:
        table = read_table(
            self._dataset, "shards.parquet", ["shard", "split", "unit", "samples", "bytes"]
        )
        table = table.filter(
            pc.and_(pc.equal(table["split"], self._split), pc.greater(table["samples"], 0))
        )
        if not table.num_rows:
            raise DatasetError(
                f"expected samples in the split {self._split!r} of {self._dataset.show()}, "
                "found none; shard more photos"
                f"{' or raise --val-percent' if self._split == 'val' else ''}"
            )
        self.shards = table["shard"].combine_chunks()
        if not pc.all(pc.match_substring_regex(self.shards, _SHARD_NAME)).as_py():
            raise DatasetError(
                f"{self._dataset.show('shards.parquet')} is damaged: a shard has an invalid name; "
                "remove it, then run the same cc shard command again"
            )
        self.shard_counts = table["samples"].to_numpy().astype(np.int64)
        self.shard_bytes = table["bytes"].to_numpy()
        self._units = table["unit"].to_numpy()
        # A sample's position is its number within the split; the shard is found by bisection.
        self._starts = np.concatenate([[0], np.cumsum(self.shard_counts)])

    def _read_copies(self) -> None:
        """(unit, position) of the samples to leave out; 12 bytes each, sorted by unit."""
        keys = read_table(self._dataset, "duplicates.parquet", ["key"])["key"].combine_chunks()
        with reading(self._dataset, "duplicates.parquet"):
            parts = pc.split_pattern(keys, "-")
            self._copy_units = pc.list_element(parts, 0).cast(pa.int32()).to_numpy()
            self._copy_positions = pc.list_element(parts, 1).cast(pa.int64()).to_numpy()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def first(self, count: int) -> Samples:
        """The same split cut after the shard of its ``count``-th sample: enough for a preview."""
        shards = int(np.searchsorted(self._starts, min(count, len(self))))
        # A shallow copy shares maps and rows, so the preview reads nothing twice.
        few = copy.copy(self)
        few.shards = self.shards.slice(0, shards)
        few.shard_counts, few.shard_bytes = self.shard_counts[:shards], self.shard_bytes[:shards]
        few._units, few._starts = self._units[:shards], self._starts[: shards + 1]
        return few

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """The samples' keys, as in the index and in `cc inspect`."""
        shards = self.shards_of(positions)
        return [
            self._rows_of(int(shard)).keys[int(position - self._starts[shard])]
            for shard, position in zip(shards, positions, strict=True)
        ]

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        """Stored LAB of some samples. positions (B,) -> (B, 3, H, W) uint8.

        The result is a copy: shards may be unmapped while a batch is still in use.
        """
        batch = np.empty((len(positions), 3, self.size, self.size), np.uint8)
        shards = self.shards_of(positions)
        rows = positions - self._starts[shards]
        for out, shard, row in zip(batch, shards.tolist(), rows.tolist(), strict=True):
            self._copy(shard, row, out)
        return torch.from_numpy(batch)

    def shards_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shards that hold samples: positions (B,) -> (B,) indices into ``shards``."""
        return np.searchsorted(self._starts, positions, side="right") - 1

    def span(self, shard: int, first: int, stop: int) -> tuple[int, list[str]]:
        """The byte at which some samples of a shard begin in its tar, and their keys.

        Copies may lie between them.
        """
        rows = self._rows_of(shard)
        return int(rows.offsets[first]) - _TAR_BLOCK, rows.keys[first:stop]

    def fetch(self, shard: int) -> None:
        """Fetch a remote shard into the cache, and its index rows into memory."""
        if self.cache is not None:
            # The rows too: else the first read of the shard would wait for its index.
            self._rows_of(shard)
            self.cache.path(self.shards[shard].as_py(), int(self.shard_bytes[shard]))

    def _copy(self, shard: int, row: int, out: NDArray[np.uint8]) -> None:
        try:
            self._copy_sample(shard, row, out)
        except DatasetError:
            if self.cache is None:
                raise
            # The copy may be at fault, not the dataset: it is evicted now, so fetch it again.
            self._copy_sample(shard, row, out)

    def _copy_sample(self, shard: int, row: int, out: NDArray[np.uint8]) -> None:
        rows = self._rows_of(shard)
        offset, length = int(rows.offsets[row]), int(rows.lengths[row])
        data, header = self._maps.get(shard), len(self._header)
        # Check name and header at every read: a tar swapped or shifted since it was indexed would
        # otherwise train on other pixels without any error.
        member = rows.members[row]
        if data[offset - _TAR_BLOCK : offset - _TAR_BLOCK + len(member)] != member:
            raise self.damaged(shard, f"does not match its index at byte {offset}")
        if self._codec is None:
            if length != header + out.size or data[offset : offset + header] != self._header:
                raise self.damaged(shard, f"does not match its index at byte {offset}")
            if offset + length > len(data):
                raise self.damaged(shard, f"ends at byte {len(data)}, before its last sample")
            out.reshape(-1)[:] = np.frombuffer(data, np.uint8, out.size, offset + header)
            return
        try:
            array = self._codec.decompress(
                data[offset : offset + length], decompressed_size=header + out.size
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.damaged(shard, f"cannot be decompressed at byte {offset}") from error
        if array.slice(0, header).to_pybytes() != self._header:
            raise self.damaged(shard, f"does not match its index at byte {offset}")
        out.reshape(-1)[:] = np.frombuffer(array, np.uint8, out.size, header)

    def _rows_of(self, shard: int) -> _Rows:
        rows = self._rows.get(int(self._units[shard])).get(self.shards[shard].as_py())
        # Positions follow the table of shards: with one row less, every later one would be wrong.
        if rows is None or len(rows.keys) != self.shard_counts[shard]:
            found = 0 if rows is None else len(rows.keys)
            raise self.damaged(
                shard, f"has {found} samples in its index, expected {self.shard_counts[shard]}"
            )
        return rows

    def _read_unit(self, unit: int) -> dict[str, _Rows]:
        """The rows of a unit's shards in this split, without copies."""
        columns = ["key", "split", "shard", "offset", "length"]
        table = read_table(self._dataset, index_name(unit), columns, unit=unit)
        table = table.filter(pc.equal(table["split"], self._split))
        keys = table["key"].to_pylist()
        names = table["shard"].to_numpy(zero_copy_only=False)
        offsets, lengths = table["offset"].to_numpy(), table["length"].to_numpy()
        # Copies are left out here instead of in the shards, which are never rewritten: a unit's
        # bytes depend on its own photos only.
        start, stop = np.searchsorted(self._copy_units, [unit, unit + 1])
        copies = set(self._copy_positions[start:stop].tolist())
        keep = np.array([int(key.rpartition("-")[2]) not in copies for key in keys], bool)
        found = {}
        for name in sorted(set(names)):
            mine = np.flatnonzero((names == name) & keep)
            chosen = [keys[i] for i in mine]
            members = [f"{key}{self.suffix}\0".encode() for key in chosen]
            found[str(name)] = _Rows(offsets[mine], lengths[mine], chosen, members)
        return found

    def _map(self, shard: int) -> mmap.mmap:
        name = self.shards[shard].as_py()
        if self.cache is not None:
            path = self.cache.path(name, int(self.shard_bytes[shard]))
            self._drop_evicted(self.cache)
        elif self._dataset.local is not None:
            path = self._dataset.local / name
        try:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            if self.cache is not None:  # another process evicted it before it was opened
                return self._map(shard)
            raise self.damaged(shard, f"cannot be read ({error})") from error
        except (OSError, ValueError) as error:
            raise self.damaged(shard, f"cannot be read ({error})") from error

    def _drop_evicted(self, cache: ShardCache) -> None:
        """Unmap evicted shards: a mapped file keeps its disk space after it is removed."""
        self._maps.drop(lambda shard: not cache.holds(self.shards[shard].as_py()))

    def damaged(self, shard: int, what: str) -> DatasetError:
        """The error for a shard. Once its index is removed, `cc shard` redoes the unit.

        A cached copy of it is evicted: whoever reads the shard again fetches what is there then.
        """
        name = self.shards[shard].as_py()
        if self.cache is not None:
            self.cache.evict(name)
            self._maps.drop(lambda mapped: mapped == shard)
        return DatasetError(
            f"the shard {self._dataset.show(name)} {what}; "
            f"remove {self._dataset.show(index_name(int(self._units[shard])))}, "
            "then run the same cc shard command again"
        )


class _Recent(Generic[_K, _V]):
    """The most recently used values, made on demand; several threads may use it.

    Not ``lru_cache``: evicted shards have to be dropped by key. Two threads that miss the same key
    both make the value; a lock held meanwhile would serialize all reads behind one download.
    """

    def __init__(self, limit: int, make: Callable[[_K], _V]) -> None:
        self._limit, self._make = limit, make
        self._values: OrderedDict[_K, _V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _K) -> _V:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
                return value
        value = self._make(key)
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._limit:
                self._values.popitem(last=False)
        return value

    def drop(self, unwanted: Callable[[_K], bool]) -> None:
        """Forget the values of unwanted keys."""
        with self._lock:
            for key in [key for key in self._values if unwanted(key)]:
                del self._values[key]
