from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from colorcore.advice import advice
from colorcore.fit import ValidationEvent
from colorcore.recipe import load_recipe
from colorcore.signs import Sign
from pipelines.errors import JobError
from pipelines.run_observer import RunObserver
from pipelines.secrets import without_secrets
from pipelines.tracking import (
    client_for,
    start_run,
    tracking_uri,
    ui_command,
    ui_link,
)
from pipelines.train import TrainReport


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:pw@db/ml", "postgresql://db/ml"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_passwords_are_never_shown(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_where_runs_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert tracking_uri(None, tmp_path) == "http://team:5000"
    assert tracking_uri("sqlite:///x.db", tmp_path) == "sqlite:///x.db"


def test_a_store_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(JobError, match=r"cannot reach the tracking store http://127\.0\.0\.1:9"):
        client_for("http://me:secret@127.0.0.1:9")


def test_artifacts_stay_beside_the_store(trained: TrainReport, tracking: str) -> None:
    run = client_for(tracking).get_run(trained.run_id)
    folder = Path(tracking.removeprefix("sqlite:///")).parent
    assert run.info.artifact_uri.startswith((folder / "mlartifacts").as_uri())


def test_the_ui_serves_the_runs_on_loopback(trained: TrainReport, tracking: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = ui_command(tracking, Path.cwd(), "127.0.0.1", port)
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    link = ui_link(tracking, Path.cwd(), "127.0.0.1", port)
    assert link.startswith(f"http://127.0.0.1:{port}/#/experiments/{trained.experiment_id}/")
    server = subprocess.Popen(
        command, env={**os.environ, **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={trained.run_id}"
        with urllib.request.urlopen(url) as answer:
            assert trained.run_id.encode() in answer.read()
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_a_server_needs_no_server(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is a server already"):
        ui_command("http://user:pw@team:5000", tmp_path, "127.0.0.1", 5000)


def test_tags_say_when_a_sign_appeared_and_when_it_was_gone(tracking: str, tmp_path: Path) -> None:
    """Also over a resume, which begins with a new observer."""
    run = start_run(tracking, "signs", {}, {}, None)
    recipe = load_recipe("simple")
    grey = Sign("grey", 0.1, 0.15, "hardly any colour")

    def validate(observer: RunObserver, step: int, *signs: Sign) -> None:
        pairs = torch.zeros(1, 2, 3, 16, 16)
        event = ValidationEvent(1, step, {"psnr": 20.0}, False, pairs, {"hue_focus": 0.5}, signs)
        observer.on_validation(event)

    def tag(observer: RunObserver) -> str | None:
        assert observer.close() == 0
        return client_for(tracking).get_run(run.run_id).data.tags.get("sign.grey")

    def new() -> RunObserver:
        return RunObserver(run, recipe, tmp_path)

    validate(observer := new(), 5)
    assert tag(observer) is None
    validate(observer := new(), 10, grey)
    validate(observer, 15, grey)
    seen = f"step 10: hardly any colour; {advice(grey, recipe)}"
    assert tag(observer) == seen
    validate(observer := new(), 20, grey)
    assert tag(observer) == seen
    validate(observer := new(), 25)
    assert tag(observer) == f"gone at step 25; {seen}"
    (observer := new()).on_diverged()
    assert tag(observer) == f"gone at step 25; {seen}"
    assert "sign.diverged" in client_for(tracking).get_run(run.run_id).data.tags
    values = client_for(tracking).get_metric_history(run.run_id, "val/sign/hue_focus")
    assert {point.value for point in values} == {0.5}
