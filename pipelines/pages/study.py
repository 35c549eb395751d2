"""MLflow's pages: what serves them, and the page on which a study's trials are compared.

MLflow's own page of an experiment opens on chat traces, or on runs of any kind with children
folded away below their parents. What is to be seen of a study is therefore laid out in a saved
view: its trials alone, best first, over parallel coordinates of what was searched, the curves of
the objective, and the pictures. MLflow keeps saved views as tags of the experiment
(``mlflow.sharedViewState.KEY``: a name, a time, and the page's state as deflated JSON; format of
MLflow 3.17, see mlflow/demo/generators/saved_views.py) and lists them under "Views".
"""

from __future__ import annotations

import base64
import difflib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from colorcore.scores.metrics import HIGHER_IS_BETTER
from pipelines.errors import JobError, WrongCallError
from pipelines.run_log.runs import (
    BEST_PICTURE_KEY,
    BEST_STEP,
    EXPERIMENT,
    PICTURE_KEY,
    client_for,
    sqlite_file,
)
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STUDY, KIND = "colorcore.study", "colorcore.kind"
"""Tags: the study's name, and ``study`` (the parent run) or ``trial`` (a child)."""
PORT = 5000
START_S = 120.0
MOST_TRIALS = 1000
"""By so many of a study's trials, the latest, its page is laid out."""
MOST_AXES = 12
PICTURED = 10
"""MLflow shows pictures of the first so many visible runs."""
CURVES = ("val/cf_gap", "val/psnr", "train/loss")
"""Shown besides the objective."""
_VIEW_TAG = "mlflow.sharedViewState."
_TAG_LIMIT = 5000
"""Characters that a tag of an experiment may have in all MLflow versions; 3.17 takes 20,000."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Judges of chat traces, in a handful of processes.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
_STEP = re.compile(r"[+%]step[+%](\d+)[+%]")
"""In the name of a picture's file, as ``MlflowClient.log_image`` writes it."""


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


# -- what serves the pages ------------------------------------------------------------------------


def is_server(uri: str) -> bool:
    """Whether the store has pages of its own already."""
    return uri.startswith(("http://", "https://"))


def free_port(host: str, asked: int | None) -> int:
    """The port asked for; if none was, 5000 or whichever is free.

    Raises:
        JobError: the one asked for is taken, or there is no such host.
    """
    for port in (PORT, 0) if asked is None else (asked,):
        try:
            with socket.create_server((host, port), family=_family(host)) as server:
                return int(server.getsockname()[1])
        except OSError as error:
            reason = error.strerror or error
    raise JobError(
        f"cannot serve on {_joined(host, asked or PORT)}: {reason}; choose another --port"
    )


def place(uri: str, host: str, port: int) -> str:
    """Where the store's pages are: at its own server, else at host and port."""
    return without_secrets(uri).rstrip("/") if is_server(uri) else f"http://{_joined(host, port)}"


@contextmanager
def served(uri: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's pages of a store that is no server, ready when the block begins; ends with it.

    The store's URI goes through the environment: others on this machine see commands.

    Raises:
        JobError: it does not start.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            env={**os.environ, **_QUIET, "MLFLOW_BACKEND_STORE_URI": uri},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if reason := _wait(process, f"http://{_joined(host, port)}/health"):
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                raise JobError(
                    f"{reason}; it said last: {without_secrets(lines[-1] if lines else 'nothing')}"
                )
            yield process
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str) -> str:
    """Until the server answers; what went wrong if it does not."""
    end = time.monotonic() + START_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end:
        if process.poll() is not None:
            return f"MLflow's server ended with code {process.returncode}"
        with suppress(OSError), direct.open(url, timeout=5):
            return ""
        time.sleep(0.1)
    return f"MLflow's server did not answer within {START_S:.0f} s"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def has_display() -> bool:
    """Whether a browser that is opened here would be seen by who asked for it."""
    if "SSH_CONNECTION" in os.environ:
        return False
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


# -- links ----------------------------------------------------------------------------------------


def runs_link(uri: str, at: str) -> str:
    """The page of all runs with their charts, on the pages that are at ``at``.

    Raises:
        JobError: there is no store yet, or it cannot be reached.
    """
    experiment = _client(uri).get_experiment_by_name(EXPERIMENT)
    return at if experiment is None else _page(at, experiment.experiment_id)


def study_link(uri: str, at: str, name: str) -> str:
    """The page on which the trials of a study are compared, as a saved view that is made here.

    Where this user may not write to the store, the trials without the layout.

    Raises:
        WrongCallError: there is no such study; names those that are most like it.
        JobError: there is no store yet, or it cannot be reached.
    """
    client = _client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise WrongCallError(_unknown(name, []))
    study = read_study(client, experiment.experiment_id, name)
    key = _save_view(client, experiment.experiment_id, study)
    shown = _facets(study) if key is None else {"viewStateShareKey": key}
    return _page(at, experiment.experiment_id, **shown)


def _client(uri: str) -> MlflowClient:
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
    quoted = _quoted(name)
    parents = client.search_runs(
        [experiment_id],
        f"tags.`{STUDY}` = {quoted} and tags.`{KIND}` = 'study'",
        order_by=["start_time DESC"],
        max_results=1,
    )
    if not parents:
        raise WrongCallError(_unknown(name, study_names(client, experiment_id)))
    trials = list(
        client.search_runs(
            [experiment_id],
            f"tags.`{STUDY}` = {quoted} and tags.`{KIND}` = 'trial'",
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
    higher = _higher(objectives[0])
    return sorted(scored, key=lambda run: run.data.metrics[objectives[0]], reverse=higher)


def _picture_steps(client: MlflowClient, run: Run) -> set[int]:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException, OSError):
        names = [unquote(file.path) for file in client.list_artifacts(run.info.run_id, "images")]
        key = "images/" + PICTURE_KEY.replace("/", "~")
        found = (_STEP.search(name) for name in names if name.startswith(key))
        return {int(match[1]) for match in found if match}
    return set()


def _higher(metric: str) -> bool:
    return HIGHER_IS_BETTER.get(metric.rpartition("/")[2], True)


# -- the page ------------------------------------------------------------------------------------


def _save_view(client: MlflowClient, experiment_id: str, study: Study) -> str | None:
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
    query = f"tags.`{STUDY}` = {_quoted(study.name)} and tags.`{KIND}` = 'trial'"
    first = study.objectives[0] if study.objectives else None
    return {
        "searchFilter": query,
        "orderByKey": f"metrics.`{first}`" if first else "attributes.`Run Name`",
        "orderByAsc": "false" if first and _higher(first) else "true",
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


def _quoted(text: str) -> str:
    """As MLflow's filters take a string: in the quotes that are not in it."""
    return f'"{text}"' if "'" in text else f"'{text}'"
