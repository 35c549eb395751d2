"""Small trainings and studies: what those that many tests look at are made of."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from colorcore.checkpoints.checkpoint import Checkpoint
from colorcore.color.fit_palette import fit_palette
from colorcore.dataset.layout import read_histogram, read_info
from colorcore.decoding import Decoding
from colorcore.models import AnswersInBins, build_model
from colorcore.recipes.recipe import Recipe, parse_recipe
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


def untrained(
    part: Mapping[str, Any], dataset: Path, decoding: Decoding | None = None
) -> Checkpoint:
    """A checkpoint of a model, by its ``[model]`` table, whose random answers are vivid."""
    torch.manual_seed(0)
    recipe = parse_recipe({"model": dict(part), "loss": {"ab_l1": 1.0}}, "here")
    palette = fit_palette(read_histogram(dataset), bins=6)
    model: Any = build_model(recipe.model.name, **recipe.model.options())
    if isinstance(model, AnswersInBins):
        model.use_palette(palette)
        torch.nn.init.normal_(model.bins.weight, std=1.0)
    else:
        torch.nn.init.normal_(model.head.weight, std=0.3)
    return Checkpoint(
        recipe=recipe,
        weights=model.state_dict(),
        palette=palette,
        mean_ab=(3.0, 5.0),
        size=64,
        dataset=read_info(dataset).fingerprint or "",
        decoding=decoding or Decoding(),
    )
