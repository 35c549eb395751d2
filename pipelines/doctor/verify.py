"""`cc doctor DATASET --verify`: read every byte of a dataset, and name what is damaged.

A shard is read from its start to its end. Each sample's bytes, from the header of its array to the
padding behind its JSON, must have the CRC-32 that the index has of them; what follows the last one
must be empty. So a single wrong byte anywhere in a tar is found. In units of earlier versions,
whose index has no checksums, only the tar's headers and the arrays' are checked, and compressed
arrays are decompressed. The other files are compared with each other: a unit's histogram with its
samples, the dataset's fingerprint with its indexes, and its totals with those of the units. How
many files were skipped is checked the same way.
"""

from __future__ import annotations

import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, Any

import numpy as np
import pyarrow as pa

from colorcore.dataset.layout import (
    DatasetError,
    DatasetInfo,
    done_units,
    fingerprint,
    histogram_name,
    index_name,
    read_histogram,
    read_info,
    read_table,
)
from colorcore.dataset.merge import Summary, summarise
from colorcore.storage.npy import npy_header
from colorcore.storage.store import Store
from pipelines.doctor.finding import Finding, fail, ok, warn
from pipelines.sharding.skipped import (
    TOTAL,
    Skipped,
    add,
    read_total,
    skipped_name,
    sum_of_units,
    units_with_skipped,
)

THREADS = 4
"""Units that are read at the same time."""
FACTS = 1 << 20
"""Bytes of a sample's JSON that no real one reaches."""
_BLOCK = tarfile.BLOCKSIZE
_COLUMNS = ["key", "shard", "offset", "length"]


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged place.

    file   in the dataset, such as train/000017-000.tar
    key    of the sample; "" if it is the file as a whole
    what   is wrong
    remove  the file to remove so that the same cc shard command makes it again
    """

    file: str
    key: str
    what: str
    remove: str

    def line(self) -> str:
        """One line for the user."""
        return f"{self.file}{f', sample {self.key}' if self.key else ''}: {self.what}"


@dataclass(slots=True)
class Verified:
    """What was read; ``unsummed`` counts samples without a checksum."""

    shards: int = 0
    samples: int = 0
    unsummed: int = 0
    size: int = 0
    damage: list[Damage] = field(default_factory=list)

    def finding(self, dataset: Store) -> Finding:
        """The line of the table."""
        read = f"{self.samples:,} samples in {self.shards:,} shards, {self.size / 1e9:.2f} GB"
        if self.damage:
            remove = list(dict.fromkeys(damage.remove for damage in self.damage))
            more = f" and {len(remove) - 3:,} more listed below" if len(remove) > 3 else ""
            return fail(
                f"{len(self.damage):,} damaged places in {read}: {self.damage[0].line()}",
                f"remove {', '.join(map(dataset.show, remove[:3]))}{more}, "
                "then run the same cc shard command again",
            )
        if self.unsummed:
            return warn(
                f"{read}: only the structure of {self.unsummed:,} samples could be checked, they "
                "have no checksums",
                "shard the photos into a new folder to get checksums",
            )
        return ok(f"{read}, all as their checksums say")


def verify(store: Store, on_progress: Callable[[int, int, str], None]) -> Verified:
    """Read a finished dataset to its end; ``on_progress`` gets units done, units and a note.

    Raises:
        DatasetError: the dataset is unfinished, or its dataset.json is damaged.
        StorageError: the store does not answer.
    """
    info = read_info(store)
    units = done_units(store)
    found, total = Verified(), Summary()
    for done, unit in enumerate(_in_threads(units, lambda unit: _read_unit(store, unit, info))):
        found.shards += unit.verified.shards
        found.samples += unit.verified.samples
        found.unsummed += unit.verified.unsummed
        found.size += unit.verified.size
        found.damage += unit.verified.damage
        if unit.summary is not None:
            total.add(unit.summary)
        damaged = f", {len(found.damage)} damaged" if found.damage else ""
        on_progress(done + 1, len(units), f"{found.size / 1e9:.1f} GB{damaged}")
    # Units that are damaged are redone, and merged again with the others.
    found.damage += _totals(store, info, None if found.damage else total)
    found.damage += _skipped(store, units)
    return found


@dataclass(frozen=True, slots=True)
class _Unit:
    verified: Verified
    summary: Summary | None


def _in_threads(units: list[int], read: Callable[[int], _Unit]) -> Iterator[_Unit]:
    """Units in order; few are ahead, because each holds a histogram."""
    running: deque[Future[_Unit]] = deque()
    with ThreadPoolExecutor(THREADS, "verify") as pool:
        try:
            for unit in units:
                running.append(pool.submit(read, unit))
                if len(running) > 2 * THREADS:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_unit(store: Store, unit: int, info: DatasetInfo) -> _Unit:
    found, index = Verified(), index_name(unit)
    try:
        table = _rows(store, unit)
    except DatasetError as error:
        found.damage.append(_from_error(error, store, index, index))
        return _Unit(found, None)
    for shard in sorted(set(table["shard"].to_pylist())):
        rows = table.filter(pa.compute.equal(table["shard"], shard)).to_pylist()
        _read_shard(store, shard, rows, info, found, index)
    try:
        summary, _ = summarise(store, [unit])
    except DatasetError as error:
        if not found.damage:  # otherwise it is about a shard that is named already
            found.damage.append(_from_error(error, store, index, index))
        return _Unit(found, None)
    pixels = summary.kept["train"] * info.settings.size**2
    if summary.histogram.sum() != pixels or (summary.histogram < 0).any():
        what = f"expected counts of {pixels:,} pixels, found {summary.histogram.sum():,}"
        found.damage.append(Damage(histogram_name(unit), "", what, index))
    return _Unit(found, summary)


def _rows(store: Store, unit: int) -> pa.Table:
    try:
        return read_table(store, index_name(unit), [*_COLUMNS, "crc32"], unit=unit)
    except DatasetError:
        # Of an earlier version, or damaged: then this raises as well.
        return read_table(store, index_name(unit), _COLUMNS, unit=unit)


def _from_error(error: DatasetError, store: Store, file: str, remove: str) -> Damage:
    what = str(error).rpartition("; ")[0]
    return Damage(file, "", what.removeprefix(f"{store.show(file)} is damaged: "), remove)


# -- shards ---------------------------------------------------------------------------------------


class _WrongError(Exception):
    """What is wrong with a sample."""


class _CutError(Exception):
    """The tar ends within a sample."""


def _read_shard(
    store: Store,
    shard: str,
    rows: list[dict[str, Any]],
    info: DatasetInfo,
    found: Verified,
    index: str,
) -> None:
    def damaged(key: str, what: str) -> None:
        found.damage.append(Damage(shard, key, what, index))

    rows.sort(key=lambda row: row["offset"])
    found.shards += 1
    # Bounds of each sample. The last one's end is known only from its own headers.
    starts = [row["offset"] - _BLOCK for row in rows]
    most = 2 * 3 * info.settings.size**2 + tarfile.RECORDSIZE
    lengths = [row["length"] for row in rows] + [two - one for one, two in pairwise(starts)]
    if starts[0] != 0 or min(lengths) <= 0 or max(lengths) > most + FACTS:
        damaged("", f"its rows in {index} do not fit any tar")
        return
    try:
        with store.stream(shard) as file:
            for number, row in enumerate(rows):
                found.samples += 1
                following = starts[number + 1] if number + 1 < len(rows) else None
                try:
                    _read_sample(file, row, following, info, found)
                except _WrongError as error:
                    damaged(row["key"], str(error))
                    if following is None:  # its end is unknown
                        return
                except _CutError:
                    behind = len(rows) - number - 1
                    damaged(row["key"], f"the tar ends in it; {behind:,} more should follow")
                    return
                except OSError as error:  # a bad sector: the rest may be readable
                    damaged(row["key"], f"cannot be read: {error.strerror or error}")
                    if following is None:
                        return
                    file.seek(following)
            end = _read(file, tarfile.RECORDSIZE + 2 * _BLOCK, found)
            if not 2 * _BLOCK <= len(end) <= tarfile.RECORDSIZE + _BLOCK or any(end):
                damaged("", "expected the end of a tar behind the last sample, found other bytes")
    except FileNotFoundError:
        damaged("", "there is no such file")
    except OSError as error:
        damaged("", f"cannot be read: {error.strerror or error}")


def _read_sample(
    file: IO[bytes], row: dict[str, Any], following: int | None, info: DatasetInfo, found: Verified
) -> None:
    """Read a sample up to where the next one begins, and raise if something is wrong with it."""
    size = 2 * _BLOCK + _padded(row["length"])
    if following is not None:
        size = following - row["offset"] + _BLOCK
    data = _read_exactly(file, size, found)
    if following is None:
        facts = min(FACTS, _header(data[-_BLOCK:]).size)
        data += _read_exactly(file, _padded(facts), found)
    if row.get("crc32") is None:
        found.unsummed += 1
        _header(data)
        _header(data[_BLOCK + _padded(row["length"]) :])
    elif zlib.crc32(data) != row["crc32"]:
        raise _WrongError("its bytes do not match their checksum")
    suffix = ".lab.npy.zst" if info.settings.compress == "zstd" else ".lab.npy"
    if not data.startswith(f"{row['key']}{suffix}\0".encode()):
        raise _WrongError("its name is another one than in the index")
    if row.get("crc32") is None:
        _decode(data[_BLOCK : _BLOCK + row["length"]], info)


def _decode(array: bytes, info: DatasetInfo) -> None:
    header = npy_header((3, info.settings.size, info.settings.size))
    size = len(header) + 3 * info.settings.size**2
    if info.settings.compress == "zstd":
        try:
            array = pa.Codec("zstd").decompress(array, decompressed_size=size, asbytes=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _WrongError("it cannot be decompressed") from error
    if len(array) != size or not array.startswith(header):
        raise _WrongError("it is no array of the dataset's size")


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block[:_BLOCK], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError as error:
        raise _WrongError(f"a tar header is damaged: {error}") from error


def _read_exactly(file: IO[bytes], size: int, found: Verified) -> bytes:
    data = _read(file, size, found)
    if len(data) < size:
        raise _CutError
    return data


def _read(file: IO[bytes], size: int, found: Verified) -> bytes:
    data = file.read(size)
    found.size += len(data)
    return data


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


# -- the dataset's own files ----------------------------------------------------------------------


def _totals(store: Store, info: DatasetInfo, total: Summary | None) -> Iterator[Damage]:
    """Damage of the files merged from the units; ``total`` is None if a unit is damaged."""
    merged = "shards.parquet"
    try:
        table = read_table(store, merged, ["shard", "unit", "bytes"])
        expected = None if total is None else total.shards.select(["shard", "unit", "bytes"])
        if expected is not None and not table.equals(expected):
            yield Damage(merged, "", "it is not the table of the units' shards", merged)
    except DatasetError as error:
        yield _from_error(error, store, merged, merged)
    try:
        read_table(store, "duplicates.parquet", ["key", "first_key"])
    except DatasetError as error:
        yield _from_error(error, store, "duplicates.parquet", "duplicates.parquet")
    try:
        histogram = read_histogram(store)
        if total is not None and not np.array_equal(histogram, total.histogram):
            what = "it is not the sum of the units' histograms"
            yield Damage("histogram.npy", "", what, "histogram.npy")
    except DatasetError as error:
        yield _from_error(error, store, "histogram.npy", "histogram.npy")
    if total is not None and fingerprint(info.settings, total.indexes) != info.fingerprint:
        what = f"its fingerprint {info.fingerprint} is not that of the units' indexes"
        yield Damage("dataset.json", "", what, merged)


def _skipped(store: Store, units: list[int]) -> Iterator[Damage]:
    """Damage of the records of what the dataset's tars held besides photos."""
    total, recorded, is_sound = Skipped(), units_with_skipped(store), True
    for unit in units:
        if unit not in recorded:
            continue
        try:
            add(total, sum_of_units(store, [unit]))
        except DatasetError as error:
            is_sound = False
            yield _from_error(error, store, skipped_name(unit), index_name(unit))
    try:
        if read_total(store) != total and is_sound:
            yield Damage(TOTAL, "", "it is not the sum of the units' records", "shards.parquet")
    except DatasetError as error:
        yield _from_error(error, store, TOTAL, "shards.parquet")
