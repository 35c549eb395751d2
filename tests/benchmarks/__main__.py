"""`make bench`: the figures of docs/performance.md, printed as ratios within one run."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

PARTS = (
    "shard", "img2dataset", "writer", "loader", "palette", "encode", "workers", "step",
    "train", "allocator", "colorize", "serve", "observers", "tracking", "tune", "sync",
    "checkpoint", "export", "start",
)  # fmt: skip


def main() -> None:  # noqa: PLR0912, PLR0915 - one branch per part
    """Measure sharding, reading and the palette on a folder of photos (default: installed ones)."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of photos")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    arguments = parser.parse_args()
    from tests.benchmarks import (
        bench_allocator,
        bench_checkpoint,
        bench_colorize,
        bench_encode,
        bench_export,
        bench_loader,
        bench_observers,
        bench_palette,
        bench_serve,
        bench_shard,
        bench_start,
        bench_step,
        bench_sync,
        bench_tracking,
        bench_train,
        bench_tune,
        bench_workers,
        bench_writer,
        paired,
    )

    size, rounds, only = arguments.size, arguments.rounds, set(arguments.only)
    with tempfile.TemporaryDirectory(prefix="colorcore-bench-") as folder:
        work = Path(folder)
        photos = arguments.photos or _installed(work / "photos")
        paired.head()
        if only & {"shard", "img2dataset"}:
            bench_shard.run(photos, work, size=size, rounds=rounds, only=only)
        if "writer" in only:
            bench_writer.run(photos, work, size=size, rounds=rounds)
        if "sync" in only:
            bench_sync.run(photos, work, size=size, rounds=rounds)
        if only & {"loader", "palette", "tune"}:
            dataset = _dataset(photos, work, size)
            if "loader" in only:
                bench_loader.run(dataset, work, rounds=rounds)
            if "palette" in only:
                bench_palette.run(dataset)
            if "tune" in only:
                from pipelines.priors import make_palette

                make_palette(dataset, bins=16)
                bench_tune.run(dataset, work, rounds=min(rounds, 3))
        if "checkpoint" in only:
            bench_checkpoint.run(work, rounds=rounds)
        if "encode" in only:
            bench_encode.run(rounds=rounds)
        if "workers" in only:
            bench_workers.run(photos, work, size=size, rounds=min(rounds, 3))
        if "tracking" in only:
            bench_tracking.run(work, rounds=rounds)
        if "allocator" in only:
            bench_allocator.run(rounds=rounds)
        if "colorize" in only:
            bench_colorize.run(work, rounds=rounds)
        if "step" in only:
            bench_step.run(rounds=rounds)
        if "serve" in only:
            bench_serve.run(rounds=rounds)
        if "export" in only:
            bench_export.run(photos, work, rounds=rounds)
        if "train" in only:
            bench_train.run(rounds=rounds)
        if "start" in only:
            bench_start.run(rounds=rounds)
        if "observers" in only:
            bench_observers.run(rounds=min(rounds, 3))


def _installed(folder: Path) -> Path:
    """Photos for those who have none at hand: the demo's tiles."""
    from pipelines.demo import installed_photos

    installed_photos(folder, folder.with_name("whole"))
    return folder


def _dataset(photos: Path, work: Path, size: int) -> Path:
    """The photos as `cc shard` stores them."""
    from colorcore.dataset.layout import ShardSettings
    from pipelines.sharding.job import shard

    shard([str(photos)], str(work / "dataset"), ShardSettings(size=size))
    return work / "dataset"


if __name__ == "__main__":
    main()
