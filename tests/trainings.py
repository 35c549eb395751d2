"""Small trainings and studies: what those that many tests look at are made of."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colorcore.recipes.recipe import Recipe
from colorcore.training.events import Observer
from colorcore.training.fit import fit
from pipelines.training.job import prepare_job
from tune.search.objective import objective_of
from tune.search.search import SearchSettings
from tune.search.settings import StudySettings
from tune.search.space import space_of

TINY = [
    "model.channels=4",
    "model.depth=2",
    "model.norm=group",
    "data.batch=4",
    "data.flip=false",
    "train.epochs=2",
    "optim.lr=1e-3",
    "train.precision=fp32",  # so that results do not depend on what the CPU has
]
"""Of the recipe ``unet-l1``."""
SPACE: dict[str, dict[str, Any]] = {
    "optim.lr": {"log": [1e-4, 1e-2]},
    "data.batch": {"choices": [2, 4]},
    "model.channels": {"uniform": [3, 5]},
}


def settings_for(
    recipe: Recipe,
    space: Mapping[str, Mapping[str, Any]] = SPACE,
    metrics: Sequence[str] = (),
    workers: int = 1,
    **search: Any,
) -> StudySettings:
    """What a study is, with four trials at random before the search by default."""
    return StudySettings(
        recipe=recipe,
        space=space_of(space, recipe),
        objective=objective_of(metrics),
        search=SearchSettings(**{"startup": 4, **search}),
        workers=workers,
    )


def fit_here(recipe: Recipe, dataset: Path, out: Path, *observers: Observer) -> None:
    """Train as one worker of a job does, in this process and without Ray."""
    fit(recipe, prepare_job(dataset, recipe, out, 1).data(), out, observers=observers)


def rows_of(study: Path) -> list[dict[str, str]]:
    """The table of a study's trials that it wrote."""
    with (study / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))
