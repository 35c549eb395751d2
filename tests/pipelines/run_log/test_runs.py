from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from colorcore import __version__
from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.inference.equal_colorfulness import SHARE
from colorcore.recipes.advice import advice
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.scores.signs import Sign
from colorcore.training.events import ValidationEvent
from colorcore.training.fit import fit
from pipelines.errors import JobError
from pipelines.evaluation.job import evaluate_model
from pipelines.run_log.observer import READ, NodeObserver, RunObserver
from pipelines.run_log.runs import start_run
from pipelines.tracking.names import EXPERIMENT
from pipelines.tracking.provenance import provenance
from pipelines.tracking.store import client_for, resolve_tracking_uri
from pipelines.training.driver import TrainReport
from pipelines.training.job import prepare_job
from tests.trainings import TINY


def test_where_runs_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert resolve_tracking_uri(None, tmp_path) == "http://team:5000"
    assert resolve_tracking_uri("sqlite:///x.db", tmp_path) == f"sqlite:///{tmp_path}/x.db"
    assert resolve_tracking_uri("sqlite:///x.db?a=b", tmp_path) == f"sqlite:///{tmp_path}/x.db?a=b"
    for uri in ("sqlite:////x.db", "sqlite:///:memory:", "sqlite:///file:x?uri=true"):
        assert resolve_tracking_uri(uri, tmp_path) == uri


FIRST = """
import sys, time
from pathlib import Path
import mlflow
from pipelines.run_log.runs import start_run
Path(sys.argv[2]).touch()
while not Path("go").exists():
    time.sleep(0.005)
start_run(sys.argv[1], sys.argv[2], {}, {}, None)
"""


@pytest.mark.slow
def test_trainings_that_start_together_create_one_store(tmp_path: Path) -> None:
    uri, names = resolve_tracking_uri(None, tmp_path), ["a", "b", "c"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, uri, name],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        for name in names
    ]  # fmt: skip
    while not all((tmp_path / name).exists() for name in names):
        assert not any(each.poll() for each in started)
        time.sleep(0.05)
    (tmp_path / "go").touch()
    assert [each.wait() for each in started] == [0, 0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "go", "mlflow.db"}
    client = client_for(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == names


def test_a_store_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(JobError, match=r"cannot reach the tracking store http://127\.0\.0\.1:9"):
        client_for("http://me:secret@127.0.0.1:9")


def test_artifacts_are_stored_next_to_the_database(trained: TrainReport, tracking: str) -> None:
    run = client_for(tracking).get_run(trained.run_id)
    folder = Path(tracking.removeprefix("sqlite:///")).parent
    assert run.info.artifact_uri.startswith((folder / "mlartifacts").as_uri())


def test_tags_record_when_a_sign_appeared_and_disappeared(tracking: str, tmp_path: Path) -> None:
    """Also across a resume, which starts with a new observer."""
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


@pytest.mark.slow
def test_a_training_logs_its_scores_at_equal_colourfulness(
    dataset_with_palette: Path, tracking: str, tmp_path: Path
) -> None:
    """At a share of the photos' own; told again, with the same values, when it is resumed."""
    vivid = load_recipe("unet-l1", [*TINY, "optim.lr=0.02", "loss={ab = 3.0, saturation = 9.0}"])
    job = prepare_job(dataset_with_palette, vivid, tmp_path / "model", 1)
    run = start_run(tracking, "vivid", {}, {}, None)
    logged = []
    for resume in (False, True):
        last = load_checkpoint(tmp_path / "model/last", training=True) if resume else None
        observer = RunObserver(run, vivid, tmp_path / "model")
        fit(vivid, job.data(), tmp_path / "model", resume=last, observers=[observer])
        assert observer.close() == 0
        metrics = client_for(tracking).get_run(run.run_id).data.metrics
        logged.append({k: v for k, v in metrics.items() if k.startswith("equal_cf/")})
    best = load_checkpoint(tmp_path / "model/best")
    assert logged[0] == pytest.approx({f"equal_cf/{name}": best.equal_cf[name] for name in READ})
    assert logged[0] == logged[1]
    assert logged[0]["equal_cf/cf"] == pytest.approx(SHARE * best.decoded["cf_true"])
    # What cc eval reads on the same photos.
    report = evaluate_model(tmp_path / "model", dataset_with_palette, front=tmp_path / "front.png")
    assert report.front is not None
    reading = report.front.equal[SHARE]
    assert reading is not None
    assert reading.scores == pytest.approx(best.equal_cf, rel=1e-4)


def test_a_run_records_its_provenance(trained: TrainReport, tracking: str, tiny: Recipe) -> None:
    client = client_for(tracking)
    run = client.get_run(trained.run_id)
    tags = run.data.tags
    assert tags["colorcore.kind"] == "train"
    assert tags["colorcore.version"] == __version__
    assert tags["colorcore.torch"] == version("torch")
    assert tags["mlflow.user"]
    path = client.download_artifacts(trained.run_id, "recipe.toml")
    assert load_recipe(path) == tiny
    # More parameters than MLflow takes in one call, and a child run of another kind.
    params = {f"p{number}": number for number in range(250)}
    child = start_run(tracking, "t", params, {"colorcore.kind": "trial"}, None, trained.run_id)
    data = client.get_run(child.run_id).data
    assert {key: int(value) for key, value in data.params.items()} == params
    assert data.tags["mlflow.parentRunId"] == trained.run_id
    assert data.tags["colorcore.kind"] == "trial"


def test_the_revision_is_that_of_the_folder(tmp_path: Path) -> None:
    assert "mlflow.source.git.commit" not in provenance(tmp_path)

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q", "-b", "here")
    assert "mlflow.source.git.commit" not in provenance(tmp_path)
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "One")
    head = git("rev-parse", "HEAD")
    (tmp_path / "b").write_text("untracked")
    assert provenance(tmp_path)["mlflow.source.git.commit"] == head
    assert provenance(tmp_path)["mlflow.source.git.branch"] == "here"
    (tmp_path / "a").write_text("2")
    assert provenance(tmp_path)["mlflow.source.git.commit"] == f"{head}-dirty"


@pytest.mark.parametrize(("node", "prefix"), [(None, "system/"), (1, "system/node_1/")])
def test_a_node_logs_its_system_metrics(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: int | None, prefix: str
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run = start_run(tracking, "system", {}, {}, None)
    observer = NodeObserver(run, tmp_path, node=node, writer="" if node is None else "node1")
    deadline = time.monotonic() + 60
    records = tmp_path / "run-log"
    while not any("network" in path.read_text() for path in records.rglob("records.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert observer.close() == 0
    metrics = client_for(tracking).get_run(run.run_id).data.metrics
    assert 0 < metrics[f"{prefix}system_memory_usage_percentage"] <= 100
    assert {f"{prefix}cpu_utilization_percentage", f"{prefix}disk_usage_percentage"} <= set(metrics)
    assert all(name.startswith(prefix) for name in metrics)
