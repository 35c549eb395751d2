"""The saved view that lays a study out in MLflow."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from pipelines.errors import JobError, WrongCallError
from pipelines.pages.study import KIND, STUDY, Study, higher_is_better, quoted
from pipelines.tracking.names import BEST_PICTURE_KEY, BEST_STEP, EXPERIMENT, PICTURE_KEY
from pipelines.tracking.store import client_for, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient


if TYPE_CHECKING:
    from mlflow import MlflowClient
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
from pipelines.pages.study import _unknown, read_study

CURVES = ("val/cf_gap", "val/psnr", "train/loss")
"""Shown besides the objective."""
_VIEW_TAG = "mlflow.sharedViewState."
_TAG_LIMIT = 5000
"""Characters that a tag of an experiment may have in all MLflow versions; 3.17 takes 20,000."""


# -- the page ------------------------------------------------------------------------------------


def save_view(client: MlflowClient, experiment_id: str, study: Study) -> str | None:
    """Lay the page out; returns its key, or None where this user may not write to the store."""
    from mlflow.exceptions import MlflowException

    key = f"colorcore-{study.run_id}"
    try:
        client.set_experiment_tag(experiment_id, _VIEW_TAG + key, view(study))
    except MlflowException:
        return None
    return key


def view(study: Study) -> str:
    """The saved view of a study, as MLflow keeps it in a tag."""
    for axes in range(len(study.searched), -1, -1):
        facets = _facets(study)
        ascending = facets["orderByAsc"] == "true"
        state = {**facets, "orderByAsc": ascending, **_charts(study, study.searched[:axes])}
        text = json.dumps(state, separators=(",", ":")).encode()
        packed = base64.b64encode(zlib.compress(text, 9)).decode("ascii")
        value = {
            "name": f"study {study.name}",
            "createdAt": study.started,
            "state": f"deflate;{packed}",
        }
        tag = json.dumps(value, separators=(",", ":"))
        if len(tag) <= _TAG_LIMIT:
            break
    return tag


def _facets(study: Study) -> dict[str, str]:
    """Which runs are listed: this study's trials. Sorted by a metric, they are not nested."""
    query = f"tags.`{STUDY}` = {quoted(study.name)} and tags.`{KIND}` = 'trial'"
    first = study.objectives[0] if study.objectives else None
    return {
        "searchFilter": query,
        "orderByKey": f"metrics.`{first}`" if first else "attributes.`Run Name`",
        "orderByAsc": "false" if first and higher_is_better(first) else "true",
    }


def _charts(study: Study, axes: Sequence[str]) -> dict[str, Any]:
    sections = [
        _section("overview", f"{study.name}: {study.trials} trials", columns=2, height=420),
        _section("pictures", "Pictures", columns=1, height=640),
        _section("curves", "Curves", columns=3, height=360),
    ]
    courses = [key.replace("best/", "val/", 1) for key in study.objectives]
    line = {"type": "LINE", "isGenerated": False, "useGlobalXaxisKey": True, "lineSmoothness": 0}
    pictures = {"type": "IMAGE", "metricSectionId": "pictures", "showRunParams": False}
    charts = [
        {
            "type": "PARALLEL",
            "metricSectionId": "overview",
            "displayName": "What was searched, and what came of it",
            "selectedParams": list(axes),
            "selectedMetrics": list(study.objectives),
            "showAllRuns": True,
        },
        *(
            {**line, "metricSectionId": "overview", "metricKey": key, "selectedMetricKeys": [key]}
            for key in courses
        ),
        {**pictures, "imageKeys": [BEST_PICTURE_KEY], "step": BEST_STEP},
        {**pictures, "imageKeys": [PICTURE_KEY], "step": study.step},
        *(
            {**line, "metricSectionId": "curves", "metricKey": key, "selectedMetricKeys": [key]}
            for key in CURVES
            if key not in courses
        ),
    ]
    return {
        "compareRunSections": sections,
        "compareRunCharts": [
            {"uuid": f"chart-{number}", "deleted": False, "isGenerated": False, **chart}
            for number, chart in enumerate(charts)
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        "groupBy": None,
        "selectedColumns": [
            *(f"metrics.`{key}`" for key in study.objectives),
            *(f"params.`{key}`" for key in axes),
            "tags.`colorcore.outcome`",
            "tags.`colorcore.reason`",
        ],
    }


def _section(key: str, name: str, *, columns: int, height: int) -> dict[str, Any]:
    return {
        "uuid": key,
        "name": name,
        "display": True,
        "isReordered": True,
        "isGenerated": False,
        "deleted": False,
        "columns": columns,
        "cardHeight": height,
    }


# -- links ----------------------------------------------------------------------------------------


def runs_link(uri: str, at: str) -> str:
    """The page of all runs with their charts, on the pages that are at ``at``.

    Raises:
        JobError: there is no store yet, or it cannot be reached.
    """
    experiment = client_of(uri).get_experiment_by_name(EXPERIMENT)
    return at if experiment is None else _page(at, experiment.experiment_id)


def study_link(uri: str, at: str, name: str) -> str:
    """The page on which the trials of a study are compared, as a saved view that is made here.

    Where this user may not write to the store, the trials without the layout.

    Raises:
        WrongCallError: there is no such study; names those that are most like it.
        JobError: there is no store yet, or it cannot be reached.
    """
    client = client_of(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise WrongCallError(_unknown(name, []))
    study = read_study(client, experiment.experiment_id, name)
    key = save_view(client, experiment.experiment_id, study)
    shown = _facets(study) if key is None else {"viewStateShareKey": key}
    return _page(at, experiment.experiment_id, **shown)


def client_of(uri: str) -> MlflowClient:
    """A client for the store, whose database must be there already."""
    if (file := sqlite_file(uri)) is not None and not file.exists():
        raise JobError(
            f"expected runs in {file}, found no such file; "
            "train first (cc train), or name another store with --tracking-uri"
        )
    return client_for(uri)


def _page(at: str, experiment_id: str, **parameters: str) -> str:
    """MLflow's page of runs as charts; unless told the workflow it shows that of chats."""
    words = {"workflowType": "machine_learning", "compareRunsMode": "CHART", **parameters}
    return f"{at}/#/experiments/{experiment_id}/runs?{urlencode(words, quote_via=quote)}"
