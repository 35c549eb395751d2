"""`trainable` and `search_space` in a Tuner of one's own, with Ray Tune's schedulers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.recipes.recipe import load_recipe
from pipelines.errors import WrongCallError
from tests.trainings import TINY, fit_here
from tune import search_space, trainable
from tune.search.space import with_values

SPACE = """
["optim.lr"]
log = [1e-4, 1e-2]
["data.batch"]
choices = [2, 4]
["model.channels"]
uniform = [3, 5]
["loss.ab_l1"]
uniform = [0.5, 1.5]
"""


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    file = tmp_path / "space.toml"
    file.write_text(SPACE)
    return file


def test_the_search_space_has_the_same_values_as_that_of_a_study(space_file: Path) -> None:
    space = search_space("unet-l1", space_file, TINY)
    drawn = [{path: domain.sample() for path, domain in space.items()} for _ in range(300)]
    rates = [math.log10(values["optim.lr"]) for values in drawn]
    assert -4 <= min(rates) < -3.8
    assert -2.2 < max(rates) <= -2
    assert abs(sum(rates) / len(rates) + 3) < 0.2  # uniform on the logarithmic scale
    assert {values["data.batch"] for values in drawn} == {2, 4}
    assert {values["model.channels"] for values in drawn} == {3, 4, 5}
    assert all(0.5 <= values["loss.ab_l1"] <= 1.5 for values in drawn)
    assert set(search_space("simple")) == {"optim.lr", "data.batch", "model.channels"}
    assert set(search_space("simple", overrides=["optim.lr=1e-4"])) == {
        "data.batch", "model.channels"
    }  # fmt: skip
    with pytest.raises(WrongCallError, match="overrides need a recipe's name"):
        search_space(load_recipe("simple"), overrides=TINY)


@pytest.fixture
def tuner(local_ray: None, dataset_with_palette: Path, tracking: str, tmp_path: Path):
    """Runs trials with a scheduler; returns their results."""
    from ray.tune import RunConfig, TuneConfig, Tuner

    def call(name: str, space, *, epochs: int = 4, trials: int = 3, workers: int = 1, **config):
        cls = trainable(
            dataset_with_palette, "unet-l1", out=tmp_path / name, workers=workers,
            overrides=[*TINY, f"train.epochs={epochs}"], tracking_uri=tracking,
        )  # fmt: skip
        return Tuner(
            cls,
            param_space=space,
            tune_config=TuneConfig(
                metric="auc_balanced", mode="max", num_samples=trials, reuse_actors=True, **config
            ),
            run_config=RunConfig(storage_path=str(tmp_path / "ray"), name=name, verbose=0),
        ).fit()

    return call


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_tuner_trains_what_cc_train_would_and_its_asha_stops_trials(
    tuner, space_file: Path, dataset_with_palette: Path, tracking: str, tmp_path: Path
) -> None:
    from ray.tune.schedulers import ASHAScheduler

    space = search_space("unet-l1", space_file, TINY)
    scheduler = ASHAScheduler(grace_period=1, reduction_factor=2, max_t=4)
    results = tuner("asha", space, trials=5, scheduler=scheduler, max_concurrent_trials=1)
    assert results.num_errors == 0
    epochs = [result.metrics["training_iteration"] for result in results]
    assert max(epochs) == 4
    assert min(epochs) < 4  # stopped exactly after a validation
    best = results.get_best_result()
    folder = tmp_path / "asha" / best.metrics["trial_id"]
    checkpoint = load_checkpoint(folder / "best")
    assert checkpoint.scores["auc_balanced"] >= best.metrics["auc_balanced"]
    assert load_checkpoint(folder / "last").scores["psnr"] == best.metrics["psnr"]

    recipe = with_values(load_recipe("unet-l1", [*TINY, "train.epochs=4"]), best.config)
    fit_here(recipe, dataset_with_palette, tmp_path / "alone")
    alone = load_checkpoint(tmp_path / "alone" / "last")
    assert alone.scores["psnr"] == pytest.approx(best.metrics["psnr"], abs=1e-6)

    client = MlflowClient(tracking_uri=tracking)
    for result in results:
        last = load_checkpoint(tmp_path / "asha" / result.metrics["trial_id"] / "last")
        run = client.get_run(last.run_id)
        whole = result.metrics["training_iteration"] == 4
        assert run.info.status == ("FINISHED" if whole else "KILLED")
        told = client.get_metric_history(run.info.run_id, "val/psnr")
        assert len(told) == result.metrics["training_iteration"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_population_based_training_clones_checkpoints(tuner, tmp_path: Path) -> None:
    """The worse of two trials continues from the weights of the better one."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import PopulationBasedTraining

    scheduler = PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=2, quantile_fraction=0.5,
        hyperparam_mutations={"optim.lr": ray_tune.loguniform(1e-3, 1e-2)},
    )  # fmt: skip
    space = {"optim.lr": ray_tune.grid_search([1e-9, 5e-3])}
    results = tuner("pbt", space, epochs=8, trials=1, scheduler=scheduler)
    assert results.num_errors == 0
    lasts = [load_checkpoint(path / "last") for path in (tmp_path / "pbt").iterdir()]
    assert [last.epoch for last in lasts] == [8, 8]
    # The trial that began with a rate of nearly 0 has left it, or it would have learned nothing.
    assert all(last.recipe.optim.lr > 1e-4 for last in lasts)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_trial_of_two_workers_and_one_that_fails(tuner) -> None:
    from ray import tune as ray_tune

    results = tuner("two", {"optim.lr": 1e-3}, epochs=2, trials=1, workers=2)
    assert results.num_errors == 0
    assert results[0].metrics["epoch"] == 2
    wild = {"loss.ab_l1": ray_tune.choice([1e38]), "optim.clip": None}
    failed = tuner("wild", wild, epochs=2, trials=1)
    assert failed.num_errors == 1
    assert "the training failed: the loss is " in str(failed.errors[0])
