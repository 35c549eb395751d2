"""Extrapolates the driver's and the loader's real code to 10⁹ photos on 1,000 nodes.

    python -m tests.experiments.scale [--photos 1000000] [--units 8000]

Photos and units are made up; the code that handles them is real: listing and planning, scheduling
on a local Ray, merging the units' indexes, finding copies, the loader's table of shards and the
order of an epoch. Each part runs in its own process at two sizes, the second ``GROWTH`` times the
first, to measure the growth instead of assuming it. The last column scales the larger size to 10⁹
photos. ``docs/scale.md`` is written from this.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from colorcore.dataset.merge import Summary

PHOTOS = 10**9
NODES, CPUS_PER_NODE = 1000, 16
PHOTOS_PER_UNIT = 1000
CPU_MS_PER_PHOTO = 2.2
GROWTH = 4
FOLDER = 1000
"""Photos in a folder of the made-up source."""


@dataclass(frozen=True)
class MadeUpStore:
    """A source that exists in arithmetic alone: ``count`` photos, ``folder`` per folder."""

    count: int
    folder: int = FOLDER
    local: Path | None = None
    location: str = "made-up://photos"

    def show(self, name: str = "") -> str:
        return f"{self.location}/{name}"

    def kind(self, name: str = "") -> str:
        return "folder"

    def entries(self, folder: str = "") -> list:
        from colorcore.storage.store import Entry

        if not folder:
            return [Entry(f"{i:07d}", is_dir=True) for i in range(-(-self.count // self.folder))]
        first = int(folder) * self.folder
        stop = min(self.count, first + self.folder)
        return [Entry(f"{folder}/IMG_{i:010d}.jpg", is_dir=False) for i in range(first, stop)]


class Memory:
    """A dataset's small files in memory, so that a disk is not what is measured."""

    local = None
    location = "memory://dataset"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def show(self, name: str = "") -> str:
        return f"{self.location}/{name}"

    def kind(self, name: str = "") -> str:
        return "file" if name in self.files else "nothing"

    def exists(self, name: str) -> bool:
        return name in self.files

    def names(self, folder: str) -> list[str]:
        return [name.partition("/")[2] for name in self.files if name.startswith(f"{folder}/")]

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def read(self, name: str, *, admit: object = None) -> bytes:
        return self.files[name]

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return contextlib.closing(io.BytesIO(self.files[name]))


def _register() -> None:
    from colorcore.storage.store import Store

    Store.register(MadeUpStore)
    Store.register(Memory)


# -- the parts: each does ``count`` of something and returns the seconds that took ---------------


def listing(count: int, *, folder: int = FOLDER) -> float:
    """List and plan photos that are all new."""
    from pipelines.sharding.plan import plan_units
    from pipelines.sources.source import Source

    source = Source("made-up", "folder", MadeUpStore(count, folder))  # type: ignore[arg-type]
    started = time.perf_counter()
    units = sum(1 for _ in plan_units(Memory(), [source], PHOTOS_PER_UNIT, Counter()))  # type: ignore[arg-type, misc]
    assert units == -(-count // PHOTOS_PER_UNIT)
    return time.perf_counter() - started


def listing_one_folder(count: int) -> float:
    """The same, with all photos in one folder, whose names are held together."""
    return listing(count, folder=count)


def listing_again(count: int) -> float:
    """List photos that are all planned already: what resuming costs."""
    from pipelines.sharding.plan import plan_units
    from pipelines.sources.source import Source

    source, dataset = Source("made-up", "folder", MadeUpStore(count)), Memory()  # type: ignore[arg-type]
    first = list(plan_units(dataset, [source], PHOTOS_PER_UNIT, Counter()))  # type: ignore[arg-type]
    started = time.perf_counter()
    second = list(plan_units(dataset, [source], PHOTOS_PER_UNIT, Counter()))  # type: ignore[arg-type]
    assert first == second
    return time.perf_counter() - started


def scheduling(count: int) -> float:
    """Run units that do nothing on a local Ray of two CPUs, as the job does."""
    from colorcore.dataset import layout
    from pipelines.cluster import ray_session
    from pipelines.sharding import job
    from pipelines.sharding.merge_tasks import UNITS_IN_FLIGHT_PER_CPU
    from pipelines.sharding.plan import Listing, PlannedUnit

    job.shard_unit = _nothing  # type: ignore[assignment, attr-defined]
    in_flight = UNITS_IN_FLIGHT_PER_CPU * NODES * CPUS_PER_NODE
    job.units_in_flight = lambda: in_flight  # type: ignore[attr-defined]
    settings = layout.ShardSettings(photos_per_unit=PHOTOS_PER_UNIT)
    info = layout.DatasetInfo(settings=settings, sources=("made-up",))
    with ray_session(cpus=2):
        started = 0.0
        for size in (100, count):  # the first units start the workers
            with tempfile.TemporaryDirectory() as folder:
                from colorcore.storage.location import open_store

                running = job.ShardJob(
                    open_store(folder), [], settings, info, lambda _: None, lambda *_: None
                )
                started = time.perf_counter()
                units = (PlannedUnit(unit, 0, PHOTOS_PER_UNIT) for unit in range(size))
                running.do_units(Listing(units), lambda: None)
                assert running.progress.units_done == size
        return time.perf_counter() - started


def _nothing(_: object, unit: int, __: int) -> tuple[object, float]:
    from pipelines.sharding.skipped import TaskResult

    return TaskResult(unit, {"train": 900, "val": 50}, {"greyscale": 50}, {}), 0.0


def summing_up(count: int) -> float:
    """Read the files of units and cut their hashes by prefix: one task of the merge."""
    from colorcore.dataset.merge import summarise
    from colorcore.storage.location import open_store

    with tempfile.TemporaryDirectory() as folder:
        made = [_make_unit(Path(folder), unit) for unit in range(10)]
        store = open_store(folder)
        started = time.perf_counter()
        for start in range(0, count, len(made)):
            summary, _ = summarise(store, made[: min(len(made), count - start)], 100)
        assert summary.kept["train"]
        return time.perf_counter() - started


def _make_unit(folder: Path, unit: int) -> int:
    from colorcore.dataset.layout import (
        INDEX_SCHEMA,
        REJECTED_SCHEMA,
        histogram_name,
        index_name,
        rejected_name,
        write_table,
    )
    from colorcore.storage.atomic import replace_bytes
    from colorcore.storage.npy import npy_bytes

    stored = 197_632
    rows = [
        {
            "key": f"{unit:06d}-{position:05d}",
            "split": "train",
            "shard": f"train/{unit:06d}-000.tar",
            "offset": position * stored + 512,
            "length": 196_736,
            "root": 0,
            "source": f"{unit:07d}/IMG_{position:010d}.jpg",
            "width": 640,
            "height": 480,
            "colorfulness": 30.0,
            "sha256": hashlib.sha256(f"{unit}/{position}".encode()).hexdigest(),
        }
        for position in range(PHOTOS_PER_UNIT)
    ]
    write_table(folder, index_name(unit), pa.Table.from_pylist(rows, INDEX_SCHEMA))
    write_table(folder, rejected_name(unit), pa.Table.from_pylist([], REJECTED_SCHEMA))
    replace_bytes(folder / histogram_name(unit), npy_bytes(np.ones((256, 256), np.int64)))
    (folder / "train").mkdir(exist_ok=True)
    with (folder / f"train/{unit:06d}-000.tar").open("wb") as tar:
        tar.truncate(stored * PHOTOS_PER_UNIT + 1024)
    return unit


def finding_copies(count: int) -> float:
    """Compare the hashes of samples, one in a hundred a copy: one piece of the merge."""
    from colorcore.dataset.merge import HASHES, find_copies

    rng = np.random.default_rng(0)
    rows = np.zeros(count, HASHES)
    rows["high"], rows["low"] = rng.integers(0, 2**63, (2, count), np.uint64)
    rows["unit"] = np.arange(count) // PHOTOS_PER_UNIT
    rows["position"] = np.arange(count) % PHOTOS_PER_UNIT
    rows[count - count // 100 :] = rows[: count // 100]
    started = time.perf_counter()
    assert len(find_copies([rows])) == count // 100
    return time.perf_counter() - started


def completing(count: int) -> float:
    """Write the table of shards, and of copies (one shard in ten has one)."""
    from colorcore.dataset.layout import DatasetInfo, ShardSettings
    from colorcore.dataset.merge import COPIES, write_finished

    copies = np.zeros(count // 10, COPIES)
    copies["unit"] = np.arange(len(copies))
    total = _summary(count)
    info = DatasetInfo(settings=ShardSettings(), sources=("made-up",))
    started = time.perf_counter()
    write_finished(Memory(), info, total, copies)  # type: ignore[arg-type]
    return time.perf_counter() - started


def opening(count: int) -> float:
    """Open the training samples of a dataset: the loader's table of shards."""
    from colorcore.dataset.layout import DatasetInfo, ShardSettings
    from colorcore.dataset.merge import COPIES, write_finished
    from colorcore.dataset.samples import Samples

    info = DatasetInfo(settings=ShardSettings(), sources=("made-up",))
    with tempfile.TemporaryDirectory() as folder:
        from colorcore.storage.location import open_store

        write_finished(open_store(folder), info, _summary(count), np.zeros(0, COPIES))
        started = time.perf_counter()
        assert len(Samples(folder, "train")) == count * PHOTOS_PER_UNIT
        return time.perf_counter() - started


def _summary(shards: int) -> Summary:
    from colorcore.dataset.layout import SHARDS_SCHEMA
    from colorcore.dataset.merge import Summary

    columns = {
        "shard": [f"train/{unit:06d}-000.tar" for unit in range(shards)],
        "split": ["train"] * shards,
        "unit": np.arange(shards),
        "samples": np.full(shards, PHOTOS_PER_UNIT),
        "bytes": np.full(shards, 197_000_000),
    }
    total = Summary(kept=Counter(train=shards * PHOTOS_PER_UNIT))
    total.indexes = [(unit, "0" * 64) for unit in range(shards)]
    total.shards = pa.table(columns, schema=SHARDS_SCHEMA)
    return total


def ordering(count: int) -> float:
    """Shuffle the shards of an epoch and lay out its first block."""
    from colorcore.dataset.order import EpochOrder

    started = time.perf_counter()
    EpochOrder(np.full(count, PHOTOS_PER_UNIT), 0, 0).slice(0, 64)
    return time.perf_counter() - started


# -- running them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of the work: what it counts, how many at first, and how many there are in all."""

    run: Callable[[int], float]
    counted: str
    first: int
    in_all: int
    where: str


def parts(photos: int, units: int) -> list[Part]:
    """All parts; the first sizes come from the command line."""
    in_all = PHOTOS // PHOTOS_PER_UNIT
    return [
        Part(listing, "photos", photos // GROWTH, PHOTOS, "driver"),
        Part(listing_one_folder, "photos", photos // GROWTH, PHOTOS, "driver"),
        Part(listing_again, "photos", photos // GROWTH, PHOTOS, "driver"),
        Part(scheduling, "units", units // GROWTH, in_all, "driver"),
        Part(summing_up, "units", 100, in_all, "tasks"),
        Part(finding_copies, "samples", 1_000_000, PHOTOS, "tasks"),
        Part(completing, "shards", 25_000, in_all, "driver"),
        Part(opening, "shards", 25_000, in_all, "each rank"),
        Part(ordering, "shards", 250_000, in_all, "each rank"),
    ]


def measure(name: str, count: int) -> tuple[float, float]:
    """Run a part in a process of its own -> (seconds, peak memory in MB)."""
    command = [
        sys.executable,
        "-m",
        "tests.experiments.scale",
        "--part",
        name,
        "--count",
        str(count),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def rows(chosen: list[Part]) -> Iterator[str]:
    """The table, line by line."""
    yield "| part | where | counted | a million take | growth for ×4 | peak memory | in all |"
    yield "|---|---|---|---|---|---|---|"
    for part in chosen:
        name = part.run.__name__
        small, _ = measure(name, part.first)
        large_count = part.first * GROWTH
        large, megabytes = measure(name, large_count)
        in_all = large / large_count * part.in_all
        if part.where == "tasks":
            in_all /= NODES * CPUS_PER_NODE
        yield (
            f"| {name.replace('_', ' ')} | {part.where} | {large_count:,} {part.counted} "
            f"| {large / large_count * 1e6:,.1f} s | ×{large / small:.1f} | {megabytes:,.0f} MB "
            f"| {_duration(in_all)} |"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Print the table, or run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=8_000)
    parser.add_argument("--part")
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    _register()
    chosen = parts(arguments.photos, arguments.units)
    if arguments.part:
        run = {part.run.__name__: part.run for part in chosen}[arguments.part]
        seconds = run(arguments.count)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(json.dumps([seconds, peak]))
        return
    work = PHOTOS * CPU_MS_PER_PHOTO / 1000 / NODES / CPUS_PER_NODE
    print(
        f"{PHOTOS:,} photos, {PHOTOS_PER_UNIT:,} a unit, {NODES:,} nodes of {CPUS_PER_NODE} CPUs: "
        f"the photos themselves take {_duration(work)} at {CPU_MS_PER_PHOTO} CPU-ms each"
    )
    for line in rows(chosen):
        print(line, flush=True)


if __name__ == "__main__":
    main()
