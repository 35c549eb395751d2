"""The weights a training starts from: detected readings, exact models, and that it uses them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from colorcore.checkpoints.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from colorcore.checkpoints.foreign_unet import READINGS, load_old_checkpoint
from colorcore.checkpoints.shipped import START
from colorcore.color.lab import decode_lab
from colorcore.color.palette import Palette, load_palette
from colorcore.dataset.samples import Samples
from colorcore.models import build_model
from colorcore.recipes.recipe import DEFAULT, RecipeError, load_recipe
from pipelines.errors import WrongCallError
from pipelines.training.driver import TrainReport, train
from pipelines.training.start_weights import (
    choose_recipe,
    choose_start_weights,
    measure_readings,
    recipe_of,
)
from tests.colorcore.checkpoints.made_up_unet import UNetColorizer, save
from tests.trainings import TINY

FITS = ["model.channels=4", "model.depth=3", "model.lightness=unit", "data.batch=4"]


@pytest.fixture(scope="module")
def val(dataset_with_palette: Path) -> Samples:
    return Samples(dataset_with_palette, "val")


@pytest.fixture(scope="module")
def palette(dataset_with_palette: Path) -> Palette:
    return load_palette(dataset_with_palette / "palette")


@pytest.fixture(scope="module")
def old_file(dataset_with_palette: Path, tmp_path_factory) -> Path:
    """A .pt file of a network that learned a little from L in 0..1, the skip connections last."""
    torch.manual_seed(0)
    network = UNetColorizer(skip_first=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    samples = Samples(dataset_with_palette, "train")
    lab = decode_lab(samples.read(np.arange(16)))
    for _ in range(40):
        optimizer.zero_grad()
        (network(lab[:, :1] / 100) - lab[:, 1:] / 128).abs().mean().backward()
        optimizer.step()
    return save(tmp_path_factory.mktemp("old") / "best.pt", network)


def test_the_reading_is_found_by_measuring(old_file, val, palette) -> None:
    errors = measure_readings(load_old_checkpoint(old_file), val)
    assert set(errors) == set(READINGS)
    assert next(iter(errors)) == "unit/up-first"
    start = choose_start_weights(old_file, load_recipe("unet-l1", FITS), palette, val, None)
    assert start.reading == "unit/up-first"
    for what in ("106 tensors mapped", "no wrapper", "epoch 9", "loss 0.0421", "unit/up-first"):
        assert what in start.about
    assert start.about.endswith("optimizer state left out")
    expected = load_old_checkpoint(old_file).weights(READINGS["unit/up-first"])
    assert all(torch.equal(value, expected[name]) for name, value in start.weights().items())


def test_a_reading_may_be_said(old_file, val, palette) -> None:
    recipe = load_recipe("unet-l1", FITS)
    start = choose_start_weights(old_file, recipe, palette, val, "percent/skip-first")
    assert start.reading == "percent/skip-first"
    with pytest.raises(WrongCallError, match="expected --from-reading centered/skip-first"):
        choose_start_weights(old_file, recipe, palette, val, "upside-down")


def test_readings_that_cannot_be_told_apart_are_asked_for(tmp_path, val, palette) -> None:
    network = UNetColorizer()
    torch.nn.init.zeros_(network.head.weight)
    with pytest.raises(WrongCallError, match="set it with --from-reading"):
        choose_start_weights(
            save(tmp_path / "blank.pt", network), load_recipe("unet-l1", FITS), palette, val, None
        )


def test_another_model_is_refused_with_what_to_set(old_file, val, palette) -> None:
    with pytest.raises(WrongCallError) as caught:
        choose_start_weights(
            old_file, load_recipe("unet-l1", ["model.norm=group"]), palette, val, "unit/up-first"
        )
    wanted = ["model.channels=4", "model.depth=3", "model.norm=batch", "model.lightness=unit"]
    assert all(f"--set {setting}" in str(caught.value) for setting in wanted)
    assert "head" not in str(caught.value)


def test_dropout_is_free_as_it_has_no_weights(old_file, val, palette) -> None:
    recipe = load_recipe("unet-l1", [*FITS, "model.dropout=0.3"])
    assert choose_start_weights(old_file, recipe, palette, val, "unit/up-first")


def test_weights_that_are_no_numbers_are_refused(tmp_path, val, palette) -> None:
    network = UNetColorizer()
    network.head.bias.data[0] = float("nan")
    path = save(tmp_path / "nan.pt", network)
    with pytest.raises(WrongCallError, match=r"NaN or infinite \(head\.bias\)"):
        choose_start_weights(path, load_recipe("unet-l1", FITS), palette, val, "unit/up-first")


def test_our_own_checkpoints(trained: TrainReport, val, palette, tmp_path) -> None:
    start = choose_start_weights(trained.out, load_recipe("unet-l1", TINY), palette, val, None)
    best = load_checkpoint(trained.out).weights
    assert all(torch.equal(value, best[name]) for name, value in start.weights().items())
    with pytest.raises(WrongCallError, match=r"--set model\.channels=4"):
        choose_start_weights(trained.out, load_recipe("unet-l1"), palette, val, None)
    with pytest.raises(WrongCallError, match="is for an old"):
        choose_start_weights(
            trained.out, load_recipe("unet-l1", TINY), palette, val, "unit/up-first"
        )
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        choose_start_weights(tmp_path / "nowhere", load_recipe("unet-l1"), palette, val, None)


def test_bins_must_be_the_same_colours(trained: TrainReport, val, palette, tmp_path) -> None:
    settings = ["model.name=resnet-unet", f"model.bins={len(palette)}", "model.channels=8"]
    (tmp_path / "bins.toml").write_text("loss = { bins_ce = 1.0 }\n")
    recipe = load_recipe(str(tmp_path / "bins.toml"), settings)
    model = build_model(recipe.model.name, **recipe.model.options())
    model.use_palette(palette)
    checkpoint = replace(
        load_checkpoint(trained.out), recipe=recipe, weights=model.state_dict(), training={}
    )
    save_checkpoint(checkpoint, tmp_path / "bins")
    assert choose_start_weights(tmp_path / "bins", recipe, palette, val, None)
    other = Palette(palette.centroids + 1, palette.priors, palette.weights)
    with pytest.raises(WrongCallError, match="cc priors --centroids"):
        choose_start_weights(tmp_path / "bins", recipe, other, val, None)


def test_a_training_starts_there_and_says_so(
    trained: TrainReport, dataset_with_palette: Path, tracking: str, tmp_path: Path
) -> None:
    """With a learning rate of nearly nothing it ends where it started."""
    recipe = load_recipe("unet-l1", [*TINY, "train.epochs=1", "optim.lr=1e-12"])
    told: list[str] = []
    report = train(
        dataset_with_palette, recipe, tmp_path / "model", tracking_uri=tracking,
        initial=trained.out, on_initial=told.append,
    )  # fmt: skip
    start = load_checkpoint(trained.out).weights
    ended = load_checkpoint(tmp_path / "model" / "last", training=True)
    for name, value in start.items():
        torch.testing.assert_close(ended.training[f"model.{name}"], value, rtol=0, atol=1e-8)
        torch.testing.assert_close(ended.weights[name], value, rtol=0, atol=1e-8)
    (line,) = told
    assert MlflowClient(tracking).get_run(report.run_id).data.tags["colorcore.from"] == line


def test_the_same_command_with_resume_goes_on(
    trained: TrainReport, dataset_with_palette: Path, tracking: str, tmp_path: Path
) -> None:
    """As the message after Ctrl-C says, and as schedulers do: the start weights are not read."""
    out = tmp_path / "model"
    shutil.copytree(trained.out, out)
    told: list[str] = []
    report = train(
        dataset_with_palette, load_checkpoint(trained.best).recipe, out, tracking_uri=tracking,
        resume=True, initial=tmp_path / "gone", on_initial=told.append,
    )  # fmt: skip
    assert told == []
    assert report.run_id == trained.run_id
    ended, before = (load_checkpoint(Path(each) / "last") for each in (out, trained.out))
    assert ended.epoch == before.epoch
    torch.testing.assert_close(ended.weights, before.weights, rtol=0, atol=0)


def test_the_shipped_model_keeps_its_name_and_brings_its_recipe(val, palette) -> None:
    recipe = recipe_of(START, ["train.epochs=2"])
    assert recipe is not None
    assert (recipe.model.name, recipe.train.epochs) == ("lite-unet", 2)
    start = choose_start_weights(START, recipe, palette, val, None)
    assert start.source == START  # not a path, which is another one on another node
    expected = load_checkpoint(START).weights
    assert all(torch.equal(value, expected[name]) for name, value in start.weights().items())
    with pytest.raises(WrongCallError, match=r"--set model\.name=lite-unet"):
        choose_start_weights(START, load_recipe("unet-l1"), palette, val, None)


def test_the_recipe_of_a_checkpoint_is_taken_and_that_of_an_old_file_is_not(
    trained: TrainReport, old_file: Path
) -> None:
    own = load_checkpoint(trained.out).recipe
    assert recipe_of(trained.out, []) == own
    changed = recipe_of(trained.out, ["optim.lr=1e-5", "optim.clip=none"])
    assert changed is not None
    assert (changed.optim.lr, changed.optim.clip) == (1e-5, None)
    assert recipe_of(old_file, []) is None
    with pytest.raises(RecipeError, match=r"the recipe of .*unknown key optim\.lrr"):
        recipe_of(trained.out, ["optim.lrr=1"])


def test_a_training_goes_on_with_the_recipe_that_it_began_with(
    trained: TrainReport, old_file: Path, tmp_path: Path
) -> None:
    own = load_checkpoint(trained.out).recipe
    assert own != load_recipe(DEFAULT)
    out = Path(trained.out)
    assert choose_recipe(None, [], None, out) == (own, out.stem)
    assert choose_recipe(None, [], trained.out, None) == (own, out.stem)
    assert choose_recipe(None, [], START, None) == (load_checkpoint(START).recipe, START)
    # What is named counts, and where nothing is continued, the default.
    assert choose_recipe("simple", [], trained.out, out) == (load_recipe("simple"), "simple")
    for start, resumed in ((None, None), (None, tmp_path / "nowhere"), (old_file, None)):
        assert choose_recipe(None, [], start, resumed) == (load_recipe(DEFAULT), DEFAULT)


def test_mixup_is_free_as_it_has_no_weights(val, palette) -> None:
    recipe = load_recipe("lite0", ["model.mixup=0.1"])
    assert choose_start_weights(START, recipe, palette, val, None).source == START
