"""Small studies with real trainings on the local Ray and a real MLflow store."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
import ray
from mlflow import MlflowClient

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import Recipe, load_recipe
from pipelines.errors import JobError, WrongCallError
from pipelines.tracking.model import local_model
from tests.trainings import SPACE, TINY, rows_of, settings_for
from tune.search.search import Search, TrialRecord
from tune.search.settings import StudySettings
from tune.search.space import with_values
from tune.studies.driver import StudyEvents
from tune.study import StudyReport, tune


@pytest.fixture
def run(dataset_with_palette: Path, tracking: str, local_ray: None):
    def call(settings: StudySettings, out: Path, trials: int = 1, **options) -> StudyReport:
        return tune(
            dataset_with_palette, settings, out, trials=trials, tracking_uri=tracking,
            **{"concurrent": 1, **options},
        )  # fmt: skip

    yield call
    # However a study ended, its processes and their places are gone.
    end = time.monotonic() + 10
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < end, ray.available_resources()
        time.sleep(0.1)


def records(out: Path, settings: StudySettings) -> list[TrialRecord]:
    search = Search(settings.space, settings.objective, settings.search, out / "study.log")
    return search.records()


def test_trials_are_sampled_trained_and_recorded(study: StudyReport) -> None:
    rows = rows_of(study.out)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3", "4"]
    first = {path: rows[0][path] for path in SPACE}
    assert first == {"optim.lr": "0.001", "data.batch": "4", "model.channels": "4"}  # the recipe's
    assert {row["outcome"] for row in rows} == {"finished", "stopped"}
    for row in rows:
        assert row["epochs"] == {"finished": "2", "stopped": "1"}[row["outcome"]]
        assert row["reason"].startswith("behind") == (row["outcome"] == "stopped")
        assert row["attempts"] == "1"
    finished = [row for row in rows if row["outcome"] == "finished"]
    best = max(finished, key=lambda row: float(row["auc_balanced"]))
    assert study.best[0].number == int(best["trial"])
    assert sum(study.outcomes.values()) == 5


def test_the_best_recipe_trains_the_best_trial_again(study: StudyReport, tiny: Recipe) -> None:
    best = load_recipe(str(study.out / "best.toml"))
    own = load_checkpoint(study.out / "trials" / f"{study.best[0].number:04d}" / "best")
    assert replace_about(best) == replace_about(own.recipe)
    assert replace_about(best) == replace_about(with_values(tiny, study.best[0].values))
    assert f"{study.best[0].scores['auc_balanced']:.4f}" in best.about


def replace_about(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"about": ""})


def test_only_the_best_keeps_its_checkpoints_with_a_chosen_decoding(study: StudyReport) -> None:
    (kept,) = (study.out / "trials").iterdir()
    assert kept.name == f"{study.best[0].number:04d}"
    best = load_checkpoint(kept / "best")
    assert best.scores == study.best[0].scores
    assert best.decoded["photos"] == best.scores["photos"]


def test_mlflow_holds_the_study_its_trials_and_the_champion(
    study: StudyReport, tracking: str, tmp_path: Path
) -> None:
    client = MlflowClient(tracking_uri=tracking)
    parent = client.get_run(study.run_id)
    assert parent.info.run_name == study.name
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["colorcore.kind"] == "study"
    assert parent.data.tags["colorcore.study"] == study.name
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{study.run_id}'"
    )
    rows = {row["run_id"]: row for row in rows_of(study.out)}
    assert {child.info.run_id for child in children} == rows.keys()
    for child in children:
        row, tags = rows[child.info.run_id], child.data.tags
        assert child.info.run_name == f"{study.name}-{int(row['trial']):04d}"
        assert child.info.status == "FINISHED"
        assert (tags["colorcore.kind"], tags["colorcore.trial"]) == ("trial", row["trial"])
        assert tags["colorcore.outcome"] == row["outcome"]
        assert tags.get("colorcore.reason", "") == row["reason"]
        assert float(child.data.params["optim.lr"]) == float(row["optim.lr"])
        assert len(client.get_metric_history(child.info.run_id, "val/psnr")) == int(row["epochs"])
    best = study.best[0]
    so_far = client.get_metric_history(study.run_id, "best/auc_balanced")
    assert [point.step for point in so_far] == [0, 1, 2, 3, 4]
    assert so_far[-1].value == best.scores["auc_balanced"]
    for metric in ("val/psnr", "val/sign/chroma_ratio"):  # the best trial's curves
        mine, theirs = (
            [(point.step, point.value) for point in client.get_metric_history(run, key)]
            for run, key in (
                (study.run_id, f"trial {best.number}/{metric}"),
                (best.run_id, metric),
            )
        )
        assert mine == theirs
    mine, theirs = (
        [unquote(item.path) for item in client.list_artifacts(run, "images")]
        for run in (study.run_id, best.run_id)
    )
    assert mine == [name.replace("images/", f"images/trial {best.number}~") for name in theirs]
    assert {name.split("+")[0] for name in theirs} == {
        "images/best~grey - predicted - truth", "images/val~grey - predicted - truth"
    }  # fmt: skip
    assert {item.path for item in client.list_artifacts(study.run_id, "study")} == {
        f"study/{name}"
        for name in (
            "trials.csv", "best.toml", "importances.json", "importances.png",
        )
    }  # fmt: skip
    champion = client.get_model_version_by_alias("small-model", "champion")
    assert champion.run_id == best.run_id
    assert study.model == "models:/small-model@champion"
    folder = local_model("models:/small-model@champion", tracking)
    assert load_checkpoint(folder).scores == best.scores


def test_a_study_with_more_trials_continues_as_if_it_had_had_them_from_the_start(
    study: StudyReport, run, tiny: Recipe, tracking: str, tmp_path: Path
) -> None:
    """Three trials, then two more with --resume, give the five trials of ``study``."""
    settings = settings_for(tiny)
    ended: list[int] = []
    run(settings, tmp_path / "s", trials=3, name="again")
    with pytest.raises(WrongCallError, match="already holds a study; continue it with --resume"):
        run(settings, tmp_path / "s", trials=5, name="again")
    other = settings_for(tiny, grace=2, startup=5)
    with pytest.raises(WrongCallError, match=r"search\.grace was 1, now 2; search\.startup was 4"):
        run(other, tmp_path / "s", trials=5, name="again", resume=True)
    # As if the study had been killed just after the third trial's end.
    third = rows_of(tmp_path / "s")[2]["run_id"]
    client = MlflowClient(tracking_uri=tracking)
    client.update_run(third, status="RUNNING")
    client.delete_tag(third, "colorcore.outcome")
    run(
        settings, tmp_path / "s", trials=5, name="again", resume=True,
        events=StudyEvents(on_trial=lambda record: ended.append(record.number)),
    )  # fmt: skip
    assert ended == [3, 4]
    assert client.get_run(third).info.status == "FINISHED"
    assert "colorcore.outcome" in client.get_run(third).data.tags
    for mine, theirs in zip(
        records(tmp_path / "s", settings), records(study.out, settings), strict=True
    ):
        assert (mine.values, mine.outcome, mine.scores) == (
            theirs.values, theirs.outcome, theirs.scores,
        )  # fmt: skip


def kill(name: str) -> bool:
    """Kill one of the processes in which trials train; whether there was one."""
    for process in psutil.Process().children(recursive=True):
        if f"ray::{name}" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


class Killer:
    """Kills one of a trial's processes after each of its first checkpoints.

    process  ``StudyTrial`` for the first rank, ``OtherRank`` for another one
    """

    def __init__(self, last: Path, times: int, process: str = "StudyTrial") -> None:
        self._last, self._times, self._process = last, times, process
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._times:
            if (self._last / "checkpoint.json").exists() and not (self._last / "seen").exists():
                try:
                    (self._last / "seen").touch()
                except OSError:  # the folder is being replaced
                    continue
                self._times -= kill(self._process)
            time.sleep(0.01)


SAME_TRAINING = {"loss_options.ab_huber.beta": {"log": [0.1, 1.0]}}
"""Options of a term that is not in the loss: all trials are the same training."""


def test_a_trial_that_keeps_losing_its_process_fails_once_its_retries_are_used_up(
    run, tiny: Recipe, tmp_path: Path
) -> None:
    recipe = with_values(tiny, {"train.epochs": 12})
    settings = settings_for(recipe, SAME_TRAINING, scheduler="none")
    retried: list[tuple[int, str]] = []
    Killer(tmp_path / "s" / "trials" / "0000" / "last", 2)
    run(
        settings, tmp_path / "s", trials=2, name="dying", retries=1,
        events=StudyEvents(on_retry=lambda number, why: retried.append((number, why))),
    )  # fmt: skip
    trial, following = records(tmp_path / "s", settings)
    assert [number for number, _ in retried] == [0]
    assert (trial.outcome, trial.attempts) == ("failed", 2)
    assert trial.epochs < 12
    assert trial.reason.startswith("lost its processes 2 times; last error: ")
    assert (following.outcome, following.epochs) == ("finished", 12)  # the study continues


@pytest.mark.parametrize("process", ["StudyTrial", "OtherRank"])
def test_two_workers_and_two_metrics_and_a_killed_trial_ends_as_it_would_have(
    run, tiny: Recipe, dataset_with_palette: Path, tmp_path: Path, process: str
) -> None:
    """Each trial fills both CPUs, so the driver's own actors must not take one. One of the first
    trial's two processes is killed, and a trial with only one of them cannot continue.
    """
    recipe = with_values(tiny, {"train.epochs": 8})
    metrics = ("auc_balanced", "cf_gap")
    settings = settings_for(recipe, SAME_TRAINING, metrics=metrics, workers=2)
    retried: list[int] = []
    Killer(tmp_path / "s" / "trials" / "0000" / "last", 1, process)
    report = run(
        settings, tmp_path / "s", trials=2, name="front", concurrent=None,
        events=StudyEvents(on_retry=lambda number, _: retried.append(number)),
    )  # fmt: skip
    assert report.outcomes == {"finished": 2}
    assert retried == [0]
    killed, whole = records(tmp_path / "s", settings)
    assert (killed.attempts, whole.attempts) == (2, 1)
    assert killed.epochs == whole.epochs == 8
    assert killed.scores == whole.scores
    assert killed.scores["photos"] == len(Samples(dataset_with_palette, "val"))
    assert [record.number for record in report.front] == [0, 1]  # neither is better
    assert (report.out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((report.out / "importances.json").read_text()) == {}


def test_diverged_and_collapsed_trials_end_with_the_reason(
    run, tiny: Recipe, tracking: str, tmp_path: Path
) -> None:
    """A loss weight of 1e38 overflows at once; with a learning rate near 0 all stays grey."""
    wild = ["optim.clip=none", "optim.schedule=constant", "train.epochs=40"]
    recipe = load_recipe("unet-l1", [*TINY, *wild])
    tables = {"loss.ab_l1": {"choices": [1e38, 1.0]}, "optim.lr": {"choices": [1e-9, 2e-9]}}
    settings = settings_for(recipe, tables, scheduler="none")  # its seed samples one trial of each
    with pytest.raises(JobError, match=r"no trial finished; the last of 2 .*prune_signs = false"):
        run(settings, tmp_path / "s", trials=2, name="lost", concurrent=2)
    ended = {r.values["loss.ab_l1"]: r for r in records(tmp_path / "s", settings)}
    diverged, grey = ended[1e38], ended[1.0]
    assert (diverged.outcome, diverged.attempts) == ("failed", 1)
    assert diverged.reason.startswith("the loss is ")
    assert (grey.outcome, grey.reason) == ("pruned", "sign grey in 3 consecutive validations")
    assert grey.epochs < 40
    run_of = MlflowClient(tracking_uri=tracking).get_run
    assert run_of(diverged.run_id).info.status == "FAILED"
    assert run_of(diverged.run_id).data.tags["colorcore.reason"] == diverged.reason
    assert run_of(grey.run_id).data.tags["colorcore.outcome"] == "pruned"


def test_the_validation_between_a_checkpoint_and_the_journal_is_not_lost(
    run, tiny: Recipe, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver dies when rank 0 has saved epoch 2, but before the journal has its scores."""
    recipe = with_values(tiny, {"train.epochs": 3})
    settings = settings_for(recipe, SAME_TRAINING, scheduler="none")
    whole = Search.report

    def dies(self: Search, number: int, epoch: int, *args, **options):
        if epoch == 2:
            raise KeyboardInterrupt
        return whole(self, number, epoch, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "report", dies)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "s", name="untold")
    (interrupted,) = records(tmp_path / "s", settings)
    assert (interrupted.outcome, interrupted.epochs) == (None, 1)
    assert load_checkpoint(tmp_path / "s" / "trials" / "0000" / "last").epoch == 2
    heard: list[int] = []

    def hears(self: Search, number: int, epoch: int, *args, **options):
        heard.append(epoch)
        return whole(self, number, epoch, *args, **options)

    monkeypatch.setattr(Search, "report", hears)
    run(settings, tmp_path / "s", name="untold", resume=True)
    assert heard == [2, 3]
    (trial,) = records(tmp_path / "s", settings)
    assert (trial.outcome, trial.epochs) == ("finished", 3)
    told = MlflowClient(tracking_uri=tracking).get_metric_history(trial.run_id, "val/psnr")
    assert len(told) == 3  # no epoch was trained twice


def test_an_error_in_the_driver_ends_the_study_with_it(
    run, tiny: Recipe, tracking: str, tmp_path: Path
) -> None:
    """Ray Tune takes what its hooks raise for the trial's error, and would go on."""

    def fails(record: TrialRecord) -> None:
        raise OSError("no space left on device")

    settings = settings_for(tiny, SAME_TRAINING, scheduler="none")
    with pytest.raises(OSError, match="no space left on device"):
        run(settings, tmp_path / "s", trials=3, name="broken", events=StudyEvents(on_trial=fails))
    ended = [record.outcome for record in records(tmp_path / "s", settings)]
    assert ended[0] == "finished"
    assert len(ended) < 3
    client = MlflowClient(tracking_uri=tracking)
    runs = client.search_runs(
        [client.get_experiment_by_name("colorcore").experiment_id],
        "tags.`colorcore.study` = 'broken'",
    )
    assert "RUNNING" not in {run.info.status for run in runs}


def test_a_time_budget_ends_the_study_with_its_best_so_far(
    run, tiny: Recipe, tmp_path: Path
) -> None:
    recipe = with_values(tiny, {"train.epochs": 4})
    settings = settings_for(recipe, scheduler="none")
    first: list[int] = []
    report = run(
        settings, tmp_path / "s", trials=10_000, name="budget", time_budget_s=25.0,
        events=StudyEvents(on_trial=lambda record: first.append(record.number)),
    )  # fmt: skip
    assert report.outcomes["finished"] == len(first) > 0
    assert report.outcomes.get("interrupted", 0) <= 1
    best = load_checkpoint(tmp_path / "s" / "trials" / f"{report.best[0].number:04d}" / "best")
    assert best.decoded  # also after the budget is used up
    assert load_recipe(report.recipe).train.epochs == 4
    with pytest.raises(JobError, match=r"no trial finished within the time budget; .*--resume"):
        run(settings, tmp_path / "none", name="nothing", time_budget_s=0.1)


def test_wrong_calls_are_refused_before_anything_starts(run, tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(WrongCallError, match="nothing to resume: found no study"):
        run(settings_for(tiny), tmp_path / "s", resume=True)
    large = settings_for(tiny, {"data.batch": {"choices": [4, 1024]}})
    with pytest.raises(
        WrongCallError, match=r"data\.batch = 1024 in the .* does not work: .*lower data\.batch"
    ):
        run(large, tmp_path / "s")
    few = settings_for(tiny, {"data.batch": {"choices": [4, 1]}}, workers=2)
    with pytest.raises(
        WrongCallError, match=r"data\.batch = 1 in the .* does not work: .*2 workers"
    ):
        run(few, tmp_path / "s")
    assert not (tmp_path / "s" / "study.json").exists()
    with pytest.raises(WrongCallError, match="at most 2 concurrent trials with 1 CPU each"):
        run(settings_for(tiny), tmp_path / "s", concurrent=3)
