"""The whole path as a newcomer goes it: `cc demo`, with a training of a few steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from colorcore.dataset.layout import read_info
from pipelines.demo import GREY, HELD_OUT

pytestmark = pytest.mark.slow


def test_the_demo_goes_from_photos_to_colourized_photos(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", "--out", "demo", "--seconds", "5"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=560,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    demo = tmp_path / "demo"
    info = read_info(demo / "dataset")
    assert info.counts is not None
    assert info.counts["train"] > 100
    assert info.refused is not None
    assert info.refused["greyscale"] >= len(GREY)
    assert "photos/s in a training step here: training with data.batch=16" in answer.stderr
    for name in HELD_OUT:
        original = demo / "photographs" / Path(name).name
        made = demo / "pictures" / f"{original.stem}.png"
        with Image.open(original) as before, Image.open(made) as after:
            assert after.size == before.size
    for step in ("shard", "priors", "train", "eval", "colorize"):
        assert f"$ cc {step}" in answer.stderr
    for made in ("before-after.png", "validation.png", "dataset/palette/palette.png", "mlflow.db"):
        assert (demo / made).is_file()
    assert "cc ui --tracking-uri sqlite:///" in answer.stdout
    assert not (tmp_path / "mlflow.db").exists()
