"""What a dataset's tars held besides photos: counts per unit, and their sum.

``skipped/000017.json`` belongs to a unit and is moved into place before the unit's index.
``skipped.json`` is their sum, made with the dataset's other totals. A unit without such files has
no record, and units of earlier versions never have one: both count as nothing skipped. Folders are
counted by each call's listing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from colorcore.dataset.layout import UnitResult, numbers_in, reading, unit_name
from colorcore.storage.local import LocalStore
from colorcore.storage.store import Store
from pipelines.sources.source import Tally

TOTAL = "skipped.json"
REMOTE_READS = 16
"""Records of a remote dataset that are read at the same time."""

Skipped = dict[int, Tally]
"""Per source, by its number: tars and files without photos, and skipped files by kind."""


@dataclass(frozen=True, slots=True)
class TaskResult(UnitResult):
    """The result of a unit's task: with what was skipped, for jobs that have no totals."""

    skipped: Skipped


def skipped_name(unit: int) -> str:
    """The unit's record; it exists if something was skipped."""
    return f"skipped/{unit_name(unit)}.json"


def write_unit_skipped(scratch: Path, dataset: Store, unit: int, skipped: Skipped) -> None:
    """Write a unit's record to its scratch folder, or remove the one of an earlier attempt."""
    if any(_is_worth_a_record(tally) for tally in skipped.values()):
        here = LocalStore(scratch, sync=False)  # publishing the unit syncs it
        here.write(skipped_name(unit), _to_json(skipped))
    elif dataset.exists(skipped_name(unit)):
        dataset.remove(skipped_name(unit))


def units_with_skipped(dataset: Store) -> frozenset[int]:
    """The units that have a record."""
    return frozenset(numbers_in(dataset, "skipped"))


def sum_of_units(dataset: Store, units: Sequence[int]) -> Skipped:
    """The sum of some units' records.

    Raises:
        DatasetError: a record is damaged.
        StorageError: the store does not answer.
    """
    total: Skipped = {}
    if dataset.local is not None:
        for unit in units:
            add(total, _read(dataset, skipped_name(unit), unit))
        return total
    with ThreadPoolExecutor(REMOTE_READS) as pool:
        names = map(skipped_name, units)
        for record in pool.map(_read, repeat(dataset), names, units):
            add(total, record)
    return total


def add(total: Skipped, more: Mapping[int, Tally]) -> None:
    """Add tallies per source, in place."""
    for root, tally in more.items():
        total.setdefault(root, Tally()).add(tally)


def kinds(skipped: Mapping[int, Tally]) -> Counter[str]:
    """Skipped files by kind, over all sources."""
    total: Counter[str] = Counter()
    for tally in skipped.values():
        total.update(tally.skipped)
    return total


def write_total(dataset: Store, total: Skipped) -> None:
    """Write the sum over all units; nothing if nothing was skipped."""
    if total:
        dataset.write(TOTAL, _to_json(total))
    elif dataset.exists(TOTAL):
        dataset.remove(TOTAL)


def read_total(dataset: Store) -> Skipped:
    """The sum over all units of a finished dataset.

    Raises:
        DatasetError: the file is damaged.
        StorageError: the store does not answer.
    """
    return _read(dataset, TOTAL) if dataset.exists(TOTAL) else {}


def _is_worth_a_record(tally: Tally) -> bool:
    return bool(tally.empty or tally.skipped)


def _to_json(skipped: Skipped) -> bytes:
    record = {
        str(root): {"empty": tally.empty, "files": dict(sorted(tally.skipped.items()))}
        for root, tally in sorted(skipped.items())
        if _is_worth_a_record(tally)
    }
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _read(dataset: Store, name: str, unit: int | None = None) -> Skipped:
    # Without the table of shards all totals are made again; without this file none were skipped.
    with reading(dataset, name, unit=unit, remove="" if unit is not None else "shards.parquet"):
        record = json.loads(dataset.read(name))
        try:
            return {
                int(root): Tally(0, int(each["empty"]), Counter(each["files"]))
                for root, each in record.items()
            }
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("expected counts of skipped files per source") from error
