"""The page of a study: links to it, and the saved view of MLflow that lays it out.

MLflow's own page of an experiment hides trials under their study. A view, which MLflow keeps as a
tag of the experiment, shows them side by side to everyone who uses the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.errors import JobError, WrongCallError
from pipelines.pages.study import Study, filter_of, higher_is_better, read_study, unknown_study
from pipelines.tracking.mlflow_internals import (
    VIEW_LIMIT,
    VIEW_TAG,
    pack_view,
    runs_page,
    view_facet,
)
from pipelines.tracking.names import (
    BEST,
    BEST_PICTURE_KEY,
    BEST_STEP,
    EXPERIMENT,
    OUTCOME_TAG,
    PICTURE_KEY,
    REASON_TAG,
    VAL,
)
from pipelines.tracking.store import client_for, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

CURVES = ("val/cf_gap", "val/psnr", "train/loss")
"""Curves that the page shows in addition to the objectives'."""


# -- links ----------------------------------------------------------------------------------------


def runs_link(uri: str, at: str) -> str:
    """The page of all runs with their charts, on the server at ``at``.

    Raises:
        JobError: there is no store yet, or it cannot be reached.
    """
    experiment = _existing(uri).get_experiment_by_name(EXPERIMENT)
    return at if experiment is None else runs_page(at, experiment.experiment_id)


def study_link(uri: str, at: str, name: str) -> str:
    """The page that compares the trials of a study, through a saved view that this call refreshes.

    Users without write access to the store get the same list of trials without the layout.

    Raises:
        WrongCallError: there is no such study; the message names the most similar ones.
        JobError: there is no store yet, or it cannot be reached.
    """
    client = _existing(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise WrongCallError(unknown_study(name, []))
    study = read_study(client, experiment.experiment_id, name)
    key = save_view(client, experiment.experiment_id, study)
    shown = _facets(study) if key is None else view_facet(key)
    return runs_page(at, experiment.experiment_id, **shown)


def _existing(uri: str) -> MlflowClient:
    """A client for a store that exists: looking at runs must not create one."""
    if (file := sqlite_file(uri)) is not None and not file.exists():
        raise JobError(
            f"expected runs in {file}, found no such file; "
            "train first (cc train), or name another store with --tracking-uri"
        )
    return client_for(uri)


# -- the saved view -------------------------------------------------------------------------------


def save_view(client: MlflowClient, experiment_id: str, study: Study) -> str | None:
    """Save the study's view; returns its key, or None if this user may not write to the store."""
    from mlflow.exceptions import MlflowException

    key = f"colorcore-{study.run_id}"
    try:
        client.set_experiment_tag(experiment_id, VIEW_TAG + key, view(study))
    except MlflowException:
        return None
    return key


def view(study: Study) -> str:
    """The saved view of a study, with as many axes as fit into a tag."""
    for axes in range(len(study.searched), -1, -1):
        facets = _facets(study)
        ascending = facets["orderByAsc"] == "true"
        state = {**facets, "orderByAsc": ascending, **_charts(study, study.searched[:axes])}
        tag = pack_view(f"study {study.name}", study.started, state)
        if len(tag) <= VIEW_LIMIT:
            break
    return tag


def _facets(study: Study) -> dict[str, str]:
    """Which runs are listed, and in which order. Sorted by a metric, MLflow does not nest runs."""
    first = study.objectives[0] if study.objectives else None
    return {
        "searchFilter": filter_of(study.name, "trial"),
        "orderByKey": f"metrics.`{first}`" if first else "attributes.`Run Name`",
        "orderByAsc": "false" if first and higher_is_better(first) else "true",
    }


def _charts(study: Study, axes: Sequence[str]) -> dict[str, Any]:
    sections = [
        _section("overview", f"{study.name}: {study.trials} trials", columns=2, height=420),
        _section("pictures", "Pictures", columns=1, height=640),
        _section("curves", "Curves", columns=3, height=360),
    ]
    # A best score is one number per trial; its curve is the validations'.
    objectives = [key.replace(BEST, VAL, 1) for key in study.objectives]
    line = {"type": "LINE", "isGenerated": False, "useGlobalXaxisKey": True, "lineSmoothness": 0}
    pictures = {"type": "IMAGE", "metricSectionId": "pictures", "showRunParams": False}
    charts = [
        {
            "type": "PARALLEL",
            "metricSectionId": "overview",
            "displayName": "Searched settings and the objective",
            "selectedParams": list(axes),
            "selectedMetrics": list(study.objectives),
            "showAllRuns": True,
        },
        *(
            {**line, "metricSectionId": "overview", "metricKey": key, "selectedMetricKeys": [key]}
            for key in objectives
        ),
        {**pictures, "imageKeys": [BEST_PICTURE_KEY], "step": BEST_STEP},
        {**pictures, "imageKeys": [PICTURE_KEY], "step": study.step},
        *(
            {**line, "metricSectionId": "curves", "metricKey": key, "selectedMetricKeys": [key]}
            for key in CURVES
            if key not in objectives
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
            f"tags.`{OUTCOME_TAG}`",
            f"tags.`{REASON_TAG}`",
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
