"""The whole job on Ray: two workers against one, and one against a plain loop over its units.

Times are what passes on the clock, so this wants a quiet machine with two cores. Ray is started
and its workers have done a small job before anything is timed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from colorcore.dataset.layout import ShardSettings
from pipelines.cluster import ray_session
from pipelines.sharding.job import shard
from tests.benchmarks.job import PlainJob
from tests.benchmarks.paired import Side, measure, row, wall_ms

TIMES = 10
PER_UNIT = 250


def run(photos: Path, work: Path, *, size: int, rounds: int) -> None:
    """Print both ratios; the photos occur ``TIMES`` times over, by links."""
    links = work / "links"
    files = [path for path in sorted(photos.rglob("*")) if path.is_file()]
    for number in range(TIMES):
        (links / str(number)).mkdir(parents=True)
        for position, path in enumerate(files):
            (links / str(number) / f"{position:07d}{path.suffix}").symlink_to(path.resolve())
    few = work / "few"
    few.mkdir()
    for path in files[:32]:
        (few / path.name).symlink_to(path.resolve())
    settings = ShardSettings(size=size, photos_per_unit=PER_UNIT)

    def fresh(job: Callable[[Path], object]) -> Side:
        def side() -> float:
            shutil.rmtree(work / "workers", ignore_errors=True)
            return wall_ms(lambda: job(work / "workers"), per=TIMES * len(files))()

        return side

    def on_ray(cpus: int) -> Side:
        def side() -> float:
            with ray_session(cpus=cpus):
                shutil.rmtree(work / "warm", ignore_errors=True)
                small = ShardSettings(size=size, photos_per_unit=4)
                shard([str(few)], str(work / "warm"), small)
                return fresh(lambda target: shard([str(links)], str(target), settings))()

        return side

    def plain(target: Path) -> None:
        job = PlainJob(links, target, settings)
        job.do_units()
        job.finish()

    fresh(plain)()  # every photo is in the page cache now
    sides = {"two": on_ray(2), "one": on_ray(1), "plain": fresh(plain)}
    passed = measure(sides, rounds=rounds, warm=False)
    row("job, ms per photo, 2 workers: 1 worker", passed["two"], passed["one"])
    row("job, ms per photo, 1 worker: plain loop", passed["one"], passed["plain"])
    shutil.rmtree(work / "workers")
