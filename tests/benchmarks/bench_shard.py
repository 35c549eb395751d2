"""CPU time of a unit task against the naive script, on the same photos, imports aside."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2

from colorcore.dataset import ShardSettings, planned_units, read_info
from pipelines.shard import shard, shard_unit
from tests.benchmarks.naive_shard import naive_shard
from tests.benchmarks.paired import compare


def installed(folder: Path) -> Path:
    """Photos for those who have none at hand: the demo's tiles."""
    from pipelines.demo import installed_photos

    installed_photos(folder, folder.with_name("whole"))
    return folder


def run(photos: Path, work: Path, *, size: int, rounds: int) -> Path:
    """Print the ratio; returns the dataset that was made, for the other benchmarks."""
    cv2.setNumThreads(1)
    dataset = work / "dataset"
    settings = ShardSettings(size=size)
    report = shard([str(photos)], str(dataset), settings)
    readable = [path for path in _files(photos) if _opens(path)]
    scratch = work / "again"
    shutil.copytree(dataset, scratch)
    units = planned_units(scratch)
    assert read_info(scratch).fingerprint == report.fingerprint
    per = report.photos
    print(f"sharding {per} photos of {photos.name} at {size} px", flush=True)

    def clear() -> None:
        for folder in ("train", "val", "index", "rejected", "histogram"):
            shutil.rmtree(scratch / folder, ignore_errors=True)
        (work / "naive.tar").unlink(missing_ok=True)

    def ours() -> None:
        for unit in units:
            shard_unit(scratch, [photos], settings, unit)

    def naive() -> None:
        naive_shard(readable, work / "naive.tar", size)

    compare("shard, CPU-ms a photo", ours, naive, per=per, unit="ms", rounds=rounds, before=clear)
    return dataset


def _files(photos: Path) -> list[Path]:
    from colorcore.photo import PHOTO_SUFFIXES

    return sorted(path for path in photos.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)


def _opens(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as photo:
            photo.load()
    except OSError:
        return False
    return True
