from __future__ import annotations

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
