"""`cc colorize` killed at any moment and run again: nothing lost, nothing half, nothing twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from colorcore.checkpoints.shipped import START

PHOTOS, KILLS = 60, 5
COMMAND = [sys.executable, "-c", "import sys; from cli.main import main; sys.exit(main())"]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Grey photos of several formats and sizes, one in colour, and one that is damaged."""
    folder = tmp_path / "album"
    whole = data.chelsea().mean(axis=2).astype(np.uint8)
    for number in range(PHOTOS):
        part = folder / f"{number % 3}"
        part.mkdir(parents=True, exist_ok=True)
        photo = cv2.resize(np.roll(whole, number, axis=0), (600 + 40 * (number % 4), 500))
        suffix = (".jpg", ".png", ".tif")[number % 3]
        Image.fromarray(photo).save(part / f"{number:02}{suffix}")
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    Image.fromarray(data.astronaut()).save(folder / "color.png")
    return folder


@pytest.mark.slow
def test_killed_and_run_again(album: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "out", random.Random(0)
    words = [*COMMAND, "colorize", START, str(album), "--out", str(out)]
    killed = 0
    for _ in range(KILLS):
        run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # From the first picture on, in which a run is at work for a second or two.
        before, began = len(pictures(out)), time.monotonic()
        while run.poll() is None and len(pictures(out)) == before and time.monotonic() < began + 60:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.4))
        killed += run.poll() is None
        run.kill()
        run.communicate()
        for path in pictures(out):
            with Image.open(path) as picture:
                picture.load()  # each is whole
    assert killed >= 2
    there = {path: path.stat().st_mtime_ns for path in pictures(out)}
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1  # for the damaged one
    assert "refused" in done.stderr
    made = pictures(out)
    expected = {path.relative_to(album) for path in album.rglob("*") if path.is_file()}
    expected -= {Path("bad.jpg"), Path("color.png")}
    assert {path.relative_to(out) for path in made} == expected
    assert {path: path.stat().st_mtime_ns for path in there} == there  # kept
    left = [path for path in out.rglob("*") if path.is_file() and path not in set(made)]
    assert [path.name for path in left if path.name.endswith(".part")] == []


def pictures(out: Path) -> list[Path]:
    """What is there under the names of pictures."""
    return [
        path
        for path in out.rglob("*")
        if path.suffix in {".jpg", ".png", ".tif"} and not path.name.startswith(".")
    ]
