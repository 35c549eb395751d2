"""The trials and the search space of `cc tune` for a `ray.tune.Tuner` of one's own.

::

    from ray.tune import TuneConfig, Tuner
    from ray.tune.schedulers import ASHAScheduler

    from tune import search_space, trainable

    tuner = Tuner(
        trainable("photos.data", "lite0-bins", out="trials"),
        param_space=search_space("lite0-bins"),
        tune_config=TuneConfig(
            metric="auc_balanced", mode="max", num_samples=20, scheduler=ASHAScheduler()
        ),
    )
    print(tuner.fit().get_best_result().config)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.recipes.recipe import DEFAULT, Recipe, load_recipe
from colorcore.storage.location import absolute_store
from pipelines.errors import WrongCallError
from tune.search.objective import objective_of
from tune.search.settings import load_space_file
from tune.search.space import Axis, default_space, with_values

if TYPE_CHECKING:
    from tune.trials.trial import StudyTrial


def search_space(
    recipe: str | Recipe = DEFAULT,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
) -> dict[str, Any]:
    """The default search space of a recipe, or that of a file, as Ray Tune's distributions by path.

    file       as for ``cc tune --space``
    overrides  as for ``--set``: what they fix is not searched by default

    Raises:
        RecipeError, WrongCallError: as `cc tune`.
    """
    overrides = list(overrides)
    loaded = _loaded(recipe, overrides)
    fixed = {override.partition("=")[0].strip() for override in overrides}
    if file is None:
        space = default_space(loaded, fixed)
    else:
        space, _ = load_space_file(Path(file), loaded, fixed)
    return {axis.path: _domain(axis) for axis in space.axes}


def trainable(
    dataset: str | Path,
    recipe: str | Recipe = DEFAULT,
    *,
    out: str | Path,
    overrides: Iterable[str] = (),
    metric: str | None = None,
    workers: int = 1,
    use_gpu: bool = False,
    tracking_uri: str | None = None,
) -> type[StudyTrial]:
    """A class for `ray.tune.Tuner` that trains the recipe with the values of a trial's config.

    Each step lasts to the next validation and reports all its scores by name, ``epoch``, and the
    names of the ``signs`` that it shows. Checkpoints are in ``out/TRIAL_ID``, ``last`` and
    ``best``, from which a trial continues after a failure and in a restored Tuner; schedulers
    that pause or clone trials get copies. ``reuse_actors=True`` keeps the processes warm.

    metric        whose best score decides which checkpoint is ``best``; None: balanced AuC
    workers       data-parallel ranks per trial
    tracking_uri  of the MLflow store for a run per trial; None logs nothing

    Raises:
        RecipeError, WrongCallError, DatasetError, FileNotFoundError: as `cc train`.
    """
    from pipelines.training.job import prepare_job
    from tune.trials.tuner_trial import TunerTrial

    loaded = _loaded(recipe, overrides)
    (chosen,) = objective_of([metric] if metric else []).metrics
    base = with_values(loaded, {"train.metric": chosen})
    job = prepare_job(dataset, base, absolute_store(out), workers)  # finds mistakes early
    settings = {
        "job": replace(job, threads=job.threads or 1),
        "workers": workers,
        "use_gpu": use_gpu,
        "tracking_uri": tracking_uri,
    }
    return type("Trial", (TunerTrial,), {"settings": settings})


def _loaded(recipe: str | Recipe, overrides: Iterable[str]) -> Recipe:
    overrides = list(overrides)
    if isinstance(recipe, str):
        return load_recipe(recipe, overrides)
    if overrides:
        raise WrongCallError(
            "overrides need a recipe's name or file, got a Recipe; change it first"
        )
    return recipe


def _domain(axis: Axis) -> Any:
    from ray import tune as ray_tune

    if axis.kind == "choices":
        return ray_tune.choice(list(axis.values))
    low, high = axis.extremes()
    if axis.integer:  # Ray Tune leaves the upper end out
        kind = ray_tune.lograndint if axis.kind == "log" else ray_tune.randint
        return kind(int(low), int(high) + 1)
    uniform = ray_tune.loguniform if axis.kind == "log" else ray_tune.uniform
    return uniform(float(low), float(high))
