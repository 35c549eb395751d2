"""CPU time of the unit tasks beside img2dataset and a naive script, on the same photos.

Imports and start-up are left out: ours and the naive script run in this process, warmed up; of
img2dataset's whole process tree, what it needs for one photo is taken off; it gets the photos
``TIMES`` times over, as its start-up takes as long as a thousand photos. It reads them by
``file://`` addresses, so there is no network in its time, and stores JPEGs, as it does unasked.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
from PIL import Image

from colorcore.dataset.layout import ShardSettings
from colorcore.photos.read import PHOTO_SUFFIXES
from tests.benchmarks.job import PlainJob
from tests.benchmarks.naive_shard import naive_shard
from tests.benchmarks.others import python_of, tree_cpu_ms
from tests.benchmarks.paired import Side, compare, cpu_ms

TIMES = 3


def run(photos: Path, work: Path, *, size: int, rounds: int, only: set[str]) -> None:
    """Print the ratios."""
    cv2.setNumThreads(1)
    readable = [path for path in _files(photos) if _opens(path)]
    job = PlainJob(photos, work / "plain", ShardSettings(size=size))
    per = job.photos

    def ours() -> float:
        for folder in ("train", "val", "index", "rejected", "histogram"):
            shutil.rmtree(work / "plain" / folder, ignore_errors=True)
        return cpu_ms(job.do_units, per=per)()

    def theirs() -> float:
        (work / "naive.tar").unlink(missing_ok=True)
        return cpu_ms(lambda: naive_shard(readable, work / "naive.tar", size), per=per)()

    others: dict[str, Side] = {"naive script": theirs} if "shard" in only else {}
    if "img2dataset" in only:
        others["img2dataset"] = img2dataset(readable, work, size)
    compare("shard, CPU-ms per photo", ours, others, rounds=rounds)


def img2dataset(photos: list[Path], work: Path, size: int) -> Side:
    """Its CPU milliseconds per photo, start-up aside."""
    command = python_of("img2dataset").with_name("img2dataset")

    def cpu(photos: list[Path]) -> float:
        target = work / "img2dataset"
        shutil.rmtree(target, ignore_errors=True)
        addresses = work / "photos.txt"
        addresses.write_text("\n".join(path.resolve().as_uri() for path in photos))
        options = {
            "url_list": addresses,
            "output_folder": target,
            "output_format": "webdataset",
            "image_size": size,
            "resize_mode": "center_crop",
            "processes_count": 1,
            "thread_count": 4,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        spent = tree_cpu_ms([command, *flags], work / "img2dataset.log")
        stored = sum(tar.stat().st_size for tar in target.glob("*.tar"))
        assert stored > 2000 * len(photos), f"too little stored, see {work / 'img2dataset.log'}"
        return spent

    return lambda: (cpu(photos * TIMES) - cpu(photos[:1])) / (len(photos) * TIMES - 1)


def _files(photos: Path) -> list[Path]:
    return sorted(path for path in photos.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)


def _opens(path: Path) -> bool:
    try:
        with Image.open(path) as photo:
            photo.load()
    except OSError:
        return False
    return True
