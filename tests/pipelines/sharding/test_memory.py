"""Peak memory with large photos, and with many photos."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.colorcore.photos.photo_files import SRGB_D50, gamma, rgb_profile
from tests.servers.child import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]

GIB = 1 << 30
WIDTH, HEIGHT = 8660, 5774
"""Fifty megapixels."""

MEASURE = """
import json, re, sys, time
from pathlib import Path

def megabytes():  # not getrusage: the peak of the process that started this one gets into that
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
"""

UNIT = """
from collections import Counter
from colorcore.dataset.layout import ShardSettings
from colorcore.storage.location import open_store
from pipelines.sharding.plan import plan_units
from pipelines.sharding.task import shard_unit
from pipelines.sources.source import open_sources
settings = ShardSettings()
store, sources = open_store(sys.argv[1]), open_sources(sys.argv[2:])
before = megabytes()
(unit,) = plan_units(store, sources, settings.photos_per_unit, Counter())
result, _ = shard_unit((store, sources, settings), unit.unit, unit.plan)
print(json.dumps({"before": before, "peak": megabytes(), "kept": sum(result.kept.values()),
                  "refused": result.refused}))
"""

DRIVER = """
from collections import Counter
import ray  # which the job needs anyway
from pipelines.sharding import job as sharding, plan
from concurrent.futures import Future
from colorcore.dataset.layout import DatasetInfo, ShardSettings
from pipelines.sharding.skipped import TaskResult
from tests.experiments import scale
from pipelines.sources.source import Source
scale._register()
count = int(sys.argv[1])
settings = ShardSettings()
info = DatasetInfo(settings=settings, sources=("made-up",))
source = Source("made-up", "folder", scale.MadeUpStore(count))
before, started = megabytes(), time.perf_counter()
dataset = scale.Memory()
job = sharding.ShardJob(dataset, [source], settings, info, lambda _: None, lambda *_: None)
class Done:  # no Ray: a unit is done as soon as it is begun
    def __init__(self, unit):
        self.result = TaskResult(unit.unit, {"train": unit.photos}, {}, {})
    def future(self):
        future = Future()
        future.set_result((self.result, 0.0))
        return future
job._start_task = lambda: Done
job._room = lambda: 8
with plan.planning(dataset, [source], settings.photos_per_unit, Counter()) as listing:
    job.do_units(listing, lambda: None)
assert job.progress.photos == job.progress.done == count
# The same call again: everything is planned and done.
again = sharding.ShardJob(dataset, [source], settings, info, lambda _: None, lambda *_: None)
again._done = set(range(job.progress.units))
with plan.planning(dataset, [source], settings.photos_per_unit, Counter()) as listing:
    again.do_units(listing, lambda: None)
assert again.progress.done == count
print(json.dumps({"before": before, "peak": megabytes(), "units": job.progress.units,
                  "plan": sum(map(len, dataset.files.values())),
                  "seconds": time.perf_counter() - started}))
"""


def measured(code: str, *words: object) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE + code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print("\n", Path(str(words[0])).name, found)  # noqa: T201 (pytest -s shows it)
    return found


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Fifty megapixels of smooth colours with some grain, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 235, (6, 8, 3), np.uint8)
    large = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    grain = rng.integers(0, 12, (64, WIDTH, 3), np.uint8)
    for top in range(0, HEIGHT - 63, 256):
        large[top : top + 64] += grain
    return large


def _pillow(kind: str, **options: object) -> Callable[[np.ndarray], bytes]:
    def encode(picture: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, kind, **options)
        return out.getvalue()

    return encode


def _png16(picture: np.ndarray) -> bytes:
    ok, data = cv2.imencode(
        ".png", picture[..., ::-1].astype(np.uint16) * 257, [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    assert ok
    return data.tobytes()


PROFILE = rgb_profile([SRGB_D50[1], SRGB_D50[0], SRGB_D50[2]], gamma(1.8))
KINDS = {
    "baseline.jpg": _pillow("JPEG", quality=90),
    "profile.jpg": _pillow("JPEG", quality=90, icc_profile=PROFILE),
    "progressive.jpg": _pillow("JPEG", quality=90, progressive=True, subsampling=0),
    "plain.png": _pillow("PNG", compress_level=1, icc_profile=PROFILE),
    "deep.png": _png16,
}


@pytest.fixture(scope="module")
def large(picture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for name, encode in KINDS.items():
        (folder / name).write_bytes(encode(picture))
    return folder


def test_a_unit_of_photos_of_fifty_megapixels_stays_below_a_gibibyte(
    large: Path, tmp_path: Path
) -> None:
    found = measured(UNIT, tmp_path / "dataset", large)
    assert found["kept"] == len(KINDS), found
    assert found["peak"] * 2**20 < GIB, found


def test_the_driver_of_a_million_photos_stays_below_a_gibibyte() -> None:
    found = measured(DRIVER, 1_000_000)
    assert found["units"] == 4000
    assert found["peak"] * 2**20 < GIB, found
    # Units and one folder's names, never the photos: a list of these alone takes 150 MB.
    assert found["peak"] - found["before"] < 100, found
