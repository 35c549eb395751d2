"""What a study is in MLflow: its trials, objectives and pictures, and links to its page."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from colorcore.scores.metrics import HIGHER_IS_BETTER
from pipelines.errors import WrongCallError
from pipelines.tracking.names import PICTURE_KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


if TYPE_CHECKING:
    from mlflow import MlflowClient
STUDY, KIND = "colorcore.study", "colorcore.kind"
"""Tags: the study's name, and ``study`` (the parent run) or ``trial`` (a child)."""
MOST_TRIALS = 1000
"""By so many of a study's trials, the latest, its page is laid out."""
PICTURED = 10
"""MLflow shows pictures of the first so many visible runs."""
_STEP = re.compile(r"[+%]step[+%](\d+)[+%]")
"""In the name of a picture's file, as ``MlflowClient.log_image`` writes it."""
MOST_AXES = 12


@dataclass(frozen=True, slots=True)
class Study:
    """A study as its runs tell.

    started     when, in milliseconds since 1970
    trials      how many there are
    objectives  metrics of the trials that the study went by, the first one decides the order:
                ``best/NAME``, a trial's best score, where trials have that, else ``val/NAME``, of
                which MLflow takes the last one
    searched    parameters in which the trials differ
    step        at which the pictures by epoch are opened
    """

    name: str
    run_id: str
    started: int
    trials: int
    objectives: tuple[str, ...]
    searched: tuple[str, ...]
    step: int


# -- what a study is -----------------------------------------------------------------------------


def study_names(client: MlflowClient, experiment_id: str) -> list[str]:
    """The names of all studies, the latest first."""
    runs = client.search_runs(
        [experiment_id], f"tags.`{KIND}` = 'study'", order_by=["start_time DESC"], max_results=1000
    )
    return list(dict.fromkeys(run.data.tags.get(STUDY, run.info.run_name) for run in runs))


def read_study(client: MlflowClient, experiment_id: str, name: str) -> Study:
    """The study of this name; of several the latest.

    Raises:
        WrongCallError: there is none.
    """
    if "'" in name and '"' in name:  # MLflow's filters know no escapes, so there is none
        raise WrongCallError(_unknown(name, study_names(client, experiment_id)))
    literal = quoted(name)
    parents = client.search_runs(
        [experiment_id],
        f"tags.`{STUDY}` = {literal} and tags.`{KIND}` = 'study'",
        order_by=["start_time DESC"],
        max_results=1,
    )
    if not parents:
        raise WrongCallError(_unknown(name, study_names(client, experiment_id)))
    trials = list(
        client.search_runs(
            [experiment_id],
            f"tags.`{STUDY}` = {literal} and tags.`{KIND}` = 'trial'",
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


def _unknown(name: str, names: Sequence[str]) -> str:
    if not names:
        return f"no study {name!r}, and no other one: cc tune makes them"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
    return f"no study {name!r}; {'nearest' if len(names) > len(near) else 'there are'}: " + (
        ", ".join(near)
    )


def _objectives(parent: Run, trials: Sequence[Run]) -> tuple[str, ...]:
    """What the study went by: ``best/NAME`` on the parent, else the metric of the recipes."""
    there = {key for run in trials for key in run.data.metrics}
    named = sorted(key[5:] for key in parent.data.metrics if key.startswith("best/"))
    if not named:
        params = (run.data.params for run in trials)
        named = [each["train.metric"] for each in params if "train.metric" in each]
    found = (
        next((key for key in (f"best/{name}", f"val/{name}", name) if key in there), None)
        for name in named
    )
    return tuple(dict.fromkeys(key for key in found if key is not None))


def _searched(trials: Sequence[Run]) -> tuple[str, ...]:
    """The parameters in which the trials differ, those with the most values first."""
    values: dict[str, set[str]] = {}
    for run in trials:
        for key, value in run.data.params.items():
            values.setdefault(key, set()).add(value)
    differing = {key: len(seen) for key, seen in values.items() if len(seen) > 1}
    return tuple(sorted(differing, key=lambda key: (-differing[key], key))[:MOST_AXES])


def _step(client: MlflowClient, trials: Sequence[Run], objectives: Sequence[str]) -> int:
    """The last step (an epoch) of which all trials that are pictured have a picture.

    MLflow shows pictures of one step side by side. Of a later one it would show none of the trials
    that were stopped before, and if it read the pictures of one with a single step before all
    others, it would move to that step.
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
        names = [unquote(file.path) for file in client.list_artifacts(run.info.run_id, "images")]
        key = "images/" + PICTURE_KEY.replace("/", "~")
        found = (_STEP.search(name) for name in names if name.startswith(key))
        return {int(match[1]) for match in found if match}
    return set()


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric, as MLflow names it, is better."""
    return HIGHER_IS_BETTER.get(metric.rpartition("/")[2], True)


def quoted(text: str) -> str:
    """As MLflow's filters take a string: in the quotes that are not in it."""
    return f'"{text}"' if "'" in text else f"'{text}'"
