from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from cli.app import app
from pipelines.errors import JobError, WrongCallError
from pipelines.pages import server, view
from pipelines.pages.study import Study, read_study, study_names
from pipelines.run_log.runs import start_run
from pipelines.tracking.mlflow_internals import VIEW_LIMIT, VIEW_TAG
from pipelines.tracking.names import (
    BEST_PICTURE_KEY,
    EXPERIMENT,
    KIND_TAG,
    PARENT_TAG,
    PICTURE_KEY,
    STUDY_TAG,
)
from pipelines.tracking.store import client_for
from tests.processes import listening

AT = "http://127.0.0.1:5000"


@pytest.fixture(scope="module")
def experiment(tracking: str) -> tuple[MlflowClient, str]:
    run = start_run(tracking, "no study", {"optim.lr": 1}, {KIND_TAG: "train"}, None)
    return client_for(tracking), run.experiment_id


def write(
    uri: str,
    study: str,
    trials: list[tuple[Mapping[str, Any], Mapping[str, float]]],
    best: Mapping[str, float],
) -> list[str]:
    """Write a study of runs with these parameters and metrics; returns ids, the parent first."""
    client = client_for(uri)
    tags = {STUDY_TAG: study, KIND_TAG: "study"}
    ids = [start_run(uri, study, {}, tags, None).run_id]
    for number, (params, metrics) in enumerate(trials):
        tags = {STUDY_TAG: study, KIND_TAG: "trial", PARENT_TAG: ids[0]}
        ids.append(start_run(uri, f"{study}-{number:04d}", params, tags, None).run_id)
        for key, value in metrics.items():
            client.log_metric(ids[-1], key, value, step=10 * (number + 1))
    for key, value in best.items():
        client.log_metric(ids[0], f"best/{key}", value)
    return ids


def state(tag: str) -> dict[str, Any]:
    """The state in a saved view, unpacked as the browser does."""
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    unpacked: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return unpacked


def test_a_study_is_read_from_its_runs(tracking: str, experiment: tuple[MlflowClient, str]) -> None:
    trials = [
        ({"lr": 0.1, "batch": 8, "model": "unet"}, {"val/psnr": 20.0, "val/delta_e2000": 9.0}),
        ({"lr": 0.2, "batch": 16, "model": "unet"}, {"val/psnr": 22.0, "val/delta_e2000": 8.0}),
        ({"lr": 0.3, "batch": 8, "model": "unet"}, {}),  # failed before it was scored
    ]
    ids = write(tracking, "two", trials, {"delta_e2000": 8.0, "psnr": 22.0})
    client, experiment_id = experiment
    for run, steps in zip(ids[1:], ([3, 6, 9], [3, 6], []), strict=True):
        for step in steps:
            client.log_image(run, _dot(), key=PICTURE_KEY, step=step, synchronous=True)
            client.log_image(run, _dot(), key="another", step=99, synchronous=True)
    found = read_study(client, experiment_id, "two")
    assert (found.run_id, found.trials) == (ids[0], 3)
    assert found.objectives == ("val/delta_e2000", "val/psnr")
    assert found.searched == ("lr", "batch")  # most values first; "model" is the same in all trials
    assert found.step == 6  # the last step that all trials with pictures have
    facets = state(view.view(found))
    assert facets["orderByKey"] == "metrics.`val/delta_e2000`"
    assert facets["orderByAsc"] is True  # lower is better


def _dot() -> Any:
    import numpy as np

    return np.zeros((2, 2, 3), np.uint8)


def test_trials_are_ordered_by_their_best_score_where_they_have_one(
    tracking: str, experiment: tuple[MlflowClient, str]
) -> None:
    """MLflow sorts by a metric's last value, which ranks a trial that got worse too low."""
    scores = {"val/psnr": 20.0, "best/psnr": 24.0}
    write(tracking, "scored", [({"lr": 1}, scores), ({"lr": 2}, scores)], {"psnr": 24.0})
    found = read_study(*experiment, "scored")
    assert found.objectives == ("best/psnr",)
    shown = state(view.view(found))
    assert (shown["orderByKey"], shown["orderByAsc"]) == ("metrics.`best/psnr`", False)
    charts = {chart["type"]: chart for chart in reversed(shown["compareRunCharts"])}
    assert charts["PARALLEL"]["selectedMetrics"] == ["best/psnr"]
    assert charts["LINE"]["metricKey"] == "val/psnr"  # its curve over the validations
    columns = shown["selectedColumns"]
    assert columns[:2] == ["metrics.`best/psnr`", "params.`lr`"]


def test_without_a_best_score_the_recipes_metric_counts(
    tracking: str, experiment: tuple[MlflowClient, str]
) -> None:
    write(tracking, "running", [({"train.metric": "psnr"}, {"val/psnr": 20.0})], {})
    write(tracking, "nothing yet", [], {})
    client, experiment_id = experiment
    assert read_study(client, experiment_id, "running").objectives == ("val/psnr",)
    empty = read_study(client, experiment_id, "nothing yet")
    assert (empty.trials, empty.objectives, empty.searched, empty.step) == (0, (), (), 0)
    assert state(view.view(empty))["compareRunCharts"][0]["selectedParams"] == []


def test_the_latest_of_two_studies_with_one_name_is_shown(
    tracking: str, experiment: tuple[MlflowClient, str]
) -> None:
    write(tracking, "twice", [], {})
    second = write(tracking, "twice", [], {})
    assert read_study(*experiment, "twice").run_id == second[0]


@pytest.mark.parametrize("name", ["swep", "sweep'1", "a \"b\" 'c'"])
def test_an_unknown_study_is_one_line_with_the_nearest_names(
    tracking: str, experiment: tuple[MlflowClient, str], name: str
) -> None:
    for known in ("sweep-1", "other"):  # a single study would be listed instead
        if known not in study_names(*experiment):
            write(tracking, known, [], {})
    with pytest.raises(WrongCallError) as error:
        view.study_link(tracking, AT, name)
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)
    if name == "swep":
        assert str(error.value).endswith("nearest: sweep-1")


def test_the_link_leads_to_the_saved_view(
    tracking: str, experiment: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = write(tracking, "linked", [({"lr": 1}, {"val/psnr": 2.0})], {"psnr": 2.0})
    client, experiment_id = experiment
    link = view.study_link(tracking, AT, "linked")
    page, _, query = link.partition("?")
    assert page == f"{AT}/#/experiments/{experiment_id}/runs"
    assert "workflowType=machine_learning&compareRunsMode=CHART" in query
    key = query.rpartition("viewStateShareKey=")[2]
    assert ids[0] in key
    tags = client.get_experiment_by_name(EXPERIMENT).tags
    saved = json.loads(tags[VIEW_TAG + key])
    assert saved["name"] == "study linked"
    assert saved["createdAt"] == client.get_run(ids[0]).info.start_time

    def refuse(*_: object) -> None:
        raise MlflowException("PERMISSION_DENIED")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    plain = view.study_link(tracking, AT, "linked")
    assert "searchFilter=tags.%60colorcore.study%60%20%3D%20%27linked%27" in plain
    assert "orderByKey=metrics.%60val%2Fpsnr%60&orderByAsc=false" in plain


def test_a_view_fits_into_a_tag() -> None:
    """With long names, the last axes are left out."""
    names = tuple(f"loss.{'x' * 400}{base64.b64encode(bytes([n] * 90))}" for n in range(12))
    few = Study("s", "r" * 32, 0, 3, ("val/psnr",), ("lr", "batch"), 5)
    many = replace(few, searched=names, objectives=tuple(f"val/{name}" for name in names[:1]))
    assert state(view.view(few))["compareRunCharts"][0]["selectedParams"] == ["lr", "batch"]
    assert len(view.view(many)) <= VIEW_LIMIT
    images = [c for c in state(view.view(few))["compareRunCharts"] if c["type"] == "IMAGE"]
    assert [(image["imageKeys"], image["step"]) for image in images] == [
        ([BEST_PICTURE_KEY], 0),
        ([PICTURE_KEY], 5),
    ]


def test_a_server_has_pages_of_its_own() -> None:
    """The page address is the server's own, without the password."""
    assert server.is_server("https://team:5000")
    assert server.page_address("https://me:pw@team:5000/", "127.0.0.1", 0) == "https://team:5000"
    assert server.page_address("sqlite:///x.db", "::1", 5001) == "http://[::1]:5001"


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError, match=f"cannot serve on 127.0.0.1:{port}: .*--port"):
            server.free_port("127.0.0.1", port)
        assert server.free_port("127.0.0.1", None) != port
    assert server.free_port("127.0.0.1", port) == port
    with pytest.raises(JobError, match="cannot serve on"):
        server.free_port("no.such.host.invalid", None)


def test_a_browser_opens_only_where_the_user_would_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not server.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert server.has_display()
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 22")
    assert not server.has_display()


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why() -> None:
    port = server.free_port("127.0.0.1", None)
    wrong = "postgresql+nonsense://me:pw@127.0.0.1/x"
    serve = server.served(wrong, "127.0.0.1", port)
    with pytest.raises(JobError, match="MLflow's server ended with code") as error, serve:
        pass
    assert "pw" not in str(error.value)


@pytest.mark.slow
def test_the_pages_are_on_loopback_and_end_with_the_command(
    tracking: str, experiment: tuple[MlflowClient, str]
) -> None:
    run = write(tracking, "served", [], {})[0]
    command = [sys.executable, "-m", "cli.main", "ui", "--tracking-uri", tracking, "--no-open"]
    port = server.free_port("127.0.0.1", None)
    with subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        link = process.stdout.readline()
        assert link.startswith(f"http://127.0.0.1:{port}/#/experiments/{experiment[1]}/runs?")
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run}"
        with urllib.request.urlopen(url) as answer:
            assert run.encode() in answer.read()
        started = psutil.Process(process.pid).children(recursive=True)
        opened = listening([each.pid for each in started])
        assert {address for address, _ in opened} == {"127.0.0.1"}
        assert all(tracking not in " ".join(each.cmdline()) for each in started)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert psutil.wait_procs(started, timeout=60)[1] == []


@pytest.mark.slow
def test_no_store_yet_is_one_line(tmp_path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "cli.main", "ui", "x", "--tracking-uri", f"sqlite:///{tmp_path}/m.db"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert "train first (cc train)" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_study_may_have_any_name(
    tracking: str, experiment: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also "import", which used to be a subcommand of `cc ui`."""
    ids = write(tracking, "import", [({"lr": 1}, {"val/psnr": 2.0})], {"psnr": 2.0})
    monkeypatch.setattr("pipelines.pages.server.is_server", lambda _: True)  # only print the link
    answer = CliRunner().invoke(app, ["ui", "import", "--tracking-uri", tracking, "--no-open"])
    assert answer.exit_code == 0, answer.output
    assert f"viewStateShareKey=colorcore-{ids[0]}" in answer.stdout
