"""A study as `cc tune` writes one into MLflow, from real trainings that take a second each.

For tests of what is shown of studies. The trainings run in this process, without Ray: what is
looked at are runs, and they are the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colorcore.fit import Observer, ValidationEvent, fit
from colorcore.metrics import HIGHER_IS_BETTER
from colorcore.recipe import load_recipe
from pipelines.run_observer import RunObserver
from pipelines.tracking import PICTURE_KEY, client_for, end_run, start_run
from pipelines.training_job import Job, prepare_job

SMALL = [
    "model.channels=4",
    "model.depth=2",
    "model.norm=group",
    "data.batch=4",
    "data.flip=false",
    "train.epochs=2",
]
TRIALS: list[dict[str, Any]] = [
    {"optim.lr": 1e-3, "model.channels": 4, "loss.ab_l1": 1.0},
    {"optim.lr": 1e-2, "model.channels": 8, "loss.ab_l1": 2.0},
    {"optim.lr": 3e-3, "model.channels": 4, "loss.ab_l1": 0.5},
    {"optim.lr": 1e-5, "model.channels": 8, "loss.ab_l1": 1.0},
]


@dataclass(frozen=True)
class Study:
    name: str
    experiment_id: str
    run_id: str
    trials: list[str]  # their runs
    values: list[float]  # the best score of each
    searched: list[str]


class _Validations(Observer):
    """Keeps what the parent run shows of its best trial."""

    def __init__(self) -> None:
        self.seen: list[ValidationEvent] = []

    def on_validation(self, event: ValidationEvent) -> None:
        self.seen.append(event)


def make_study(
    uri: str,
    dataset: Path,
    folder: Path,
    name: str,
    *,
    recipe: str = "unet-l1",
    settings: Sequence[str] = SMALL,
    trials: Sequence[Mapping[str, Any]] = TRIALS,
    metric: str = "auc_balanced",
    outcomes: Mapping[int, tuple[str, str]] | None = None,
) -> Study:
    """Train the trials one by one and write them as the study ``name``."""
    kind = {"colorcore.study": name, "colorcore.kind": "study", "colorcore.metric": metric}
    parent = start_run(uri, name, {}, kind, None)
    runs, values, seen = [], [], []
    for number, trial in enumerate(trials):
        changes = [*settings, *(f"{key}={value}" for key, value in trial.items())]
        job = prepare_job(dataset, load_recipe(recipe, changes), folder / str(number), 1)
        tags = {
            "mlflow.parentRunId": parent.run_id,
            "colorcore.kind": "trial",
            "colorcore.study": name,
            "colorcore.trial": str(number),
        }
        run = start_run(uri, f"{name}-{number:04d}", job.params, tags, None)
        told = _Validations()
        _train(job, RunObserver(run, job.recipe), told)
        outcome, reason = (outcomes or {}).get(number, ("finished", "all epochs done"))
        client = client_for(uri)
        client.set_tag(run.run_id, "colorcore.outcome", outcome)
        client.set_tag(run.run_id, "colorcore.reason", reason)
        runs.append(run.run_id)
        values.append(_best(metric, [event.scores[metric] for event in told.seen]))
        client.log_metric(run.run_id, f"best/{metric}", values[-1], synchronous=True)
        end_run(run, "FINISHED", {"best": job.out / "best"})
        seen.append(told.seen)
        client.log_metric(
            parent.run_id, f"best/{metric}", _best(metric, values), step=number, synchronous=True
        )
    _show_best(uri, parent.run_id, seen[values.index(_best(metric, values))])
    files = _files(folder / "study", trials, values)
    end_run(parent, "FINISHED", {"study": files})
    searched = [key for key in trials[0] if len({trial[key] for trial in trials}) > 1]
    return Study(name, parent.experiment_id, parent.run_id, runs, values, searched)


def _best(metric: str, values: Sequence[float]) -> float:
    return max(values) if HIGHER_IS_BETTER[metric] else min(values)


def _train(job: Job, *observers: Observer) -> None:
    torch.manual_seed(0)
    fit(job.recipe, job.data(), job.out, observers=observers)


def _show_best(uri: str, run_id: str, seen: Sequence[ValidationEvent]) -> None:
    """The best trial's curves and pictures, on the parent."""
    from colorcore.pictures import triptychs

    client = client_for(uri)
    for event in seen:
        for key, value in event.scores.items():
            client.log_metric(run_id, f"val/{key}", value, step=event.step, synchronous=False)
        picture = triptychs(event.pairs[:, 0], event.pairs[:, 1])
        client.log_image(run_id, picture, key=PICTURE_KEY, step=event.epoch, synchronous=True)


def _files(folder: Path, trials: Sequence[Mapping[str, Any]], values: Sequence[float]) -> Path:
    """What stands in a study's artifacts, as far as tests look at it."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True)
    with (folder / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", *trials[0], "value"])
        table.writerows(
            [n, *t.values(), v] for n, (t, v) in enumerate(zip(trials, values, strict=True))
        )
    (folder / "importances.json").write_text(json.dumps({}))
    figure = Figure(figsize=(6, 3))
    axes = figure.add_subplot()
    columns = np.array(
        [[*map(float, trial.values()), value] for trial, value in zip(trials, values, strict=True)]
    )
    low, high = columns.min(0), columns.max(0)
    axes.plot(((columns - low) / np.where(high > low, high - low, 1)).T)
    axes.set_xticks(range(columns.shape[1]), [*trials[0], "value"])
    figure.savefig(folder / "parallel_coordinates.png")
    return folder
