"""A study as its runs in MLflow describe it: trials, objectives, searched settings, pictures."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colorcore.scores.metrics import HIGHER_IS_BETTER
from pipelines.errors import WrongCallError
from pipelines.tracking.mlflow_internals import PICTURES, picture_step
from pipelines.tracking.names import BEST, KIND_TAG, PICTURE_KEY, STUDY_TAG, VAL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOST_TRIALS = 1000
"""The page is laid out by at most this many trials, the latest."""
PICTURED = 10
"""MLflow shows the pictures of this many visible runs."""
MOST_AXES = 12
"""Axes of the parallel coordinates; more cannot be read."""


@dataclass(frozen=True, slots=True)
class Study:
    """What the page of a study needs to know.

    started     milliseconds since 1970
    trials      number of trials
    objectives  metrics of the trials, the first of which orders them: ``best/NAME``, a trial's best
                score, if the trials have it, else ``val/NAME``, whose last value MLflow takes
    searched    parameters in which the trials differ
    step        the step at which the pictures by epoch open
    """

    name: str
    run_id: str
    started: int
    trials: int
    objectives: tuple[str, ...]
    searched: tuple[str, ...]
    step: int


# -- finding a study ------------------------------------------------------------------------------


def study_names(client: MlflowClient, experiment_id: str) -> list[str]:
    """The names of all studies, the latest first."""
    runs = client.search_runs(
        [experiment_id],
        f"tags.`{KIND_TAG}` = 'study'",
        order_by=["start_time DESC"],
        max_results=1000,
    )
    return list(dict.fromkeys(run.data.tags.get(STUDY_TAG, run.info.run_name) for run in runs))


def read_study(client: MlflowClient, experiment_id: str, name: str) -> Study:
    """The latest study of this name.

    Raises:
        WrongCallError: there is none.
    """
    if "'" in name and '"' in name:  # MLflow's filters have no escapes: such a name cannot exist
        raise WrongCallError(unknown_study(name, study_names(client, experiment_id)))
    parents = client.search_runs(
        [experiment_id],
        filter_of(name, "study"),
        order_by=["start_time DESC"],
        max_results=1,
    )
    if not parents:
        raise WrongCallError(unknown_study(name, study_names(client, experiment_id)))
    trials = list(
        client.search_runs(
            [experiment_id],
            filter_of(name, "trial"),
            order_by=["start_time DESC"],
            max_results=MOST_TRIALS,
        )
    )
    objectives = _objectives(parents[0], trials)
    return Study(
        name=name,
        run_id=parents[0].info.run_id,
        started=parents[0].info.start_time,
        trials=len(trials),
        objectives=objectives,
        searched=_searched(trials),
        step=_step(client, trials, objectives),
    )


def filter_of(name: str, kind: str) -> str:
    """MLflow's filter for a study's own run (``study``) or for its trials (``trial``)."""
    literal = f'"{name}"' if "'" in name else f"'{name}'"  # the quotes that are not in the name
    return f"tags.`{STUDY_TAG}` = {literal} and tags.`{KIND_TAG}` = '{kind}'"


def unknown_study(name: str, names: Sequence[str]) -> str:
    """The error for a study that does not exist, with the names most like it."""
    if not names:
        return f"no study {name!r}: the store has no studies; create one with cc tune"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
    return f"no study {name!r}; {'nearest' if len(names) > len(near) else 'there are'}: " + (
        ", ".join(near)
    )


def higher_is_better(metric: str) -> bool:
    """Whether higher values of a metric, under its name in MLflow, are better."""
    return HIGHER_IS_BETTER.get(metric.rpartition("/")[2], True)


# -- what its runs tell ---------------------------------------------------------------------------


def _objectives(parent: Run, trials: Sequence[Run]) -> tuple[str, ...]:
    """The ``best/NAME`` of the study's own run; before there are any, the recipes' metric."""
    logged = {key for run in trials for key in run.data.metrics}
    names = sorted(key.removeprefix(BEST) for key in parent.data.metrics if key.startswith(BEST))
    if not names:
        params = (run.data.params for run in trials)
        names = [each["train.metric"] for each in params if "train.metric" in each]
    found = (
        next((key for key in (BEST + name, VAL + name, name) if key in logged), None)
        for name in names
    )
    return tuple(dict.fromkeys(key for key in found if key is not None))


def _searched(trials: Sequence[Run]) -> tuple[str, ...]:
    """The parameters in which the trials differ, the ones with the most values first."""
    values: dict[str, set[str]] = {}
    for run in trials:
        for key, value in run.data.params.items():
            values.setdefault(key, set()).add(value)
    differing = {key: len(seen) for key, seen in values.items() if len(seen) > 1}
    return tuple(sorted(differing, key=lambda key: (-differing[key], key))[:MOST_AXES])


def _step(client: MlflowClient, trials: Sequence[Run], objectives: Sequence[str]) -> int:
    """The last step (an epoch) at which all of the pictured trials have a picture.

    MLflow shows the pictures of one step side by side. A later step would show nothing of the
    trials that were stopped before it. A step must be chosen, because MLflow otherwise opens at the
    step of whichever trial has a single picture.
    """
    found = (_picture_steps(client, run) for run in _best_first(trials, objectives)[:PICTURED])
    steps = [each for each in found if each]
    if not steps:
        return 0
    return max(set.intersection(*steps), default=min(set.union(*steps)))


def _best_first(trials: Sequence[Run], objectives: Sequence[str]) -> list[Run]:
    if not objectives:
        return list(trials)
    scored = [run for run in trials if objectives[0] in run.data.metrics]
    higher = higher_is_better(objectives[0])
    return sorted(scored, key=lambda run: run.data.metrics[objectives[0]], reverse=higher)


def _picture_steps(client: MlflowClient, run: Run) -> set[int]:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException, OSError):
        files = client.list_artifacts(run.info.run_id, PICTURES)
        steps = (picture_step(file.path, PICTURE_KEY) for file in files)
        return {step for step in steps if step is not None}
    return set()
