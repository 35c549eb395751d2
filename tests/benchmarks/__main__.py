"""`make bench`: every figure that the README quotes, printed as a ratio within one run."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path


def main() -> None:
    """Measure sharding, reading and the palette on a folder of photos (default: installed ones)."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("photos", nargs="?", type=Path, help="a folder of photos")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from tests.benchmarks import bench_loader, bench_palette, bench_shard

    with tempfile.TemporaryDirectory(prefix="colorcore-bench-") as folder:
        work = Path(folder)
        photos = arguments.photos or bench_shard.installed(work / "photos")
        dataset = bench_shard.run(photos, work, size=arguments.size, rounds=arguments.rounds)
        bench_loader.run(dataset, rounds=arguments.rounds)
        bench_palette.run(dataset)


if __name__ == "__main__":
    main()
