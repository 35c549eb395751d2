"""Our tar writer beside webdataset's TarWriter: bytes, CPU time, and the memory of a worker.

Guessed before the first run: the bytes are the same from run to run with ``mtime=0``. TarWriter
takes half as much CPU time again as ours for a sample, because it hands 200 kB to the file in
pieces of 10 kB, and that is 2% of a whole photo. A worker needs 130 MB more memory and 1.6 CPU-s
more to start, because importing webdataset imports torch, which sharding does without.
(Found on two busy cores: the same bytes, and even those of our writer; 0.33 instead of 0.19 CPU-ms
for a sample, which is 4% of a whole photo's 3.3; 130 MB more private memory, 187 MB more at the
peak, and 1.2 CPU-s more to start.)
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import psutil

from colorcore.dataset import unit
from colorcore.dataset.layout import ShardSettings
from colorcore.dataset.sample import Sample, make_sample
from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.photos.refusal import PhotoRefused
from tests.benchmarks.job import PlainJob
from tests.benchmarks.paired import Side, cpu_ms, measure, row

WRITTEN = 200
"""Samples that are written in a round."""


class StockWriter(unit.ShardWriter):
    """The same shards through ``webdataset.TarWriter``."""

    def _open(self, number: int) -> None:
        from webdataset import TarWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._unit}-{number:03d}.tar"
        self._name = f"{self._folder.name}/{path.name}"
        self._open_files.close()
        file = self._open_files.enter_context(path.open("wb"))
        options = {"encoder": False, "mtime": 0, "user": "", "group": "", "mode": 0o644}
        self._stock = self._open_files.enter_context(TarWriter(file, **options))

    def _add_file(self, name: str, data: bytes) -> int:
        key, _, suffix = name.partition(".")
        offset = self._stock.tarstream.offset + 512
        self._stock.write({"__key__": key, suffix: data})
        return int(offset)


WRITERS = {"ours": unit.ShardWriter, "TarWriter": StockWriter}


def run(photos: Path, work: Path, *, size: int, rounds: int) -> None:
    """Print the ratios; stop if a writer's bytes differ from one round to the next."""
    cv2.setNumThreads(1)
    settings = ShardSettings(size=size)
    samples = list(islice(_samples(photos, settings), WRITTEN))
    for compress in ("none", "zstd"):
        folders = {who: work / f"{who}-{compress}" for who in WRITERS}
        _compare(
            f"write a sample ({compress}), CPU-ms: TarWriter",
            {who: _writing(WRITERS[who], folders[who], samples, compress) for who in WRITERS},
            3 * rounds,
        )
        _check_bytes(*folders.values())
    job = PlainJob(photos, work / "written", settings)
    _compare(
        "shard a photo, CPU-ms: TarWriter",
        {who: _sharding(writer, job) for who, writer in WRITERS.items()},
        rounds,
    )
    for number, what in enumerate(("peak memory", "private memory")):
        _compare(
            f"{what} of a worker, MB: TarWriter",
            {who: _in_worker(who, number, photos, work, size) for who in WRITERS},
            rounds,
        )
    _compare(
        "import the writer, CPU-ms: TarWriter",
        {who: _in_worker(who, 2, photos, work, size) for who in WRITERS},
        rounds,
    )


def _compare(name: str, sides: dict[str, Side], rounds: int) -> None:
    found = measure(sides, rounds=rounds)
    row(name, found["ours"], found["TarWriter"])


def _samples(photos: Path, settings: ShardSettings) -> Iterator[Sample]:
    for path in sorted(path for path in photos.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES):
        try:
            yield make_sample(path.read_bytes(), settings)
        except PhotoRefused:
            continue


def _writing(
    writer: type[unit.ShardWriter], folder: Path, samples: list[Sample], compress: str
) -> Side:
    written: list[str] = []

    def write() -> None:
        with writer(folder, "000000", compress) as shards:
            for number, sample in enumerate(samples):
                place = shards.add(f"000000-{number:05d}", sample, f"photos/{number}.jpg")
        name = f"000000-{len(samples) - 1:05d}.lab.npy".encode()
        with (folder / "000000-000.tar").open("rb") as tar:  # the index must point at the array
            tar.seek(place["offset"] - 512)
            assert tar.read(len(name)) == name

    def side() -> float:
        spent = cpu_ms(write, per=len(samples))()
        written.append(hashlib.sha256((folder / "000000-000.tar").read_bytes()).hexdigest())
        assert len(set(written)) == 1, f"{writer.__name__} wrote other bytes than in the last round"
        return spent

    return side


def _check_bytes(ours: Path, stock: Path) -> None:
    same = (ours / "000000-000.tar").read_bytes() == (stock / "000000-000.tar").read_bytes()
    print(f"TarWriter's bytes {'are' if same else 'are not'} those of our writer")


def _sharding(writer: type[unit.ShardWriter], job: PlainJob) -> Side:
    def side() -> float:
        assert job.target.local is not None
        for folder in ("train", "val", "index", "rejected", "histogram"):
            shutil.rmtree(job.target.local / folder, ignore_errors=True)
        before, unit.ShardWriter = unit.ShardWriter, writer  # type: ignore[misc]
        try:
            return cpu_ms(job.do_units, per=job.photos)()
        finally:
            unit.ShardWriter = before  # type: ignore[misc]

    return side


# -- a worker of its own --------------------------------------------------------------------------


def _in_worker(who: str, number: int, photos: Path, work: Path, size: int) -> Callable[[], float]:
    """One of the numbers that a process prints after sharding all photos with a writer."""
    command = [
        sys.executable,
        "-m",
        __name__,
        who,
        *map(str, (photos, work / f"worker-{who}", size)),
    ]

    def side() -> float:
        shutil.rmtree(work / f"worker-{who}", ignore_errors=True)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[number])

    return side


def _worker(who: str, photos: Path, target: Path, size: int) -> None:
    """Shard all photos; print peak and private MB, and the CPU-ms of importing the writer."""
    cv2.setNumThreads(1)
    started = time.process_time()
    if who != "ours":
        import webdataset  # noqa: F401
    imported = (time.process_time() - started) * 1e3
    job = PlainJob(photos, target, ShardSettings(size=size))
    _sharding(WRITERS[who], job)()
    # Not ru_maxrss: it counts what the parent held before this program was loaded.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1e3
    private = psutil.Process().memory_full_info().uss / 1e6
    print(peak, private, max(imported, 0.01))


if __name__ == "__main__":
    _worker(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
