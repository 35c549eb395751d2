"""`cc train` on a cluster of several nodes, dataset and checkpoints in a bucket: nodes are lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import load_recipe
from colorcore.storage.location import open_store
from pipelines.errors import JobError
from pipelines.evaluation.job import evaluate_model
from pipelines.priors import make_palette
from pipelines.training.job import _check_shared, prepare_job
from tests.clusters import several_nodes, wait_for
from tests.mlflow_store import new_store
from tests.trainings import TINY

EPOCHS = 16
SETTINGS = [
    *TINY, "model.channels=8", f"train.epochs={EPOCHS}", "train.eval_every=8", "train.save_every=10"
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a cluster, and two trainings on it
def test_trainings_outlive_nodes_with_fewer_workers_or_on_another_one(
    s3_server, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    make_palette(copy, bins=16)
    tracking = new_store(tmp_path)
    bucket = s3_server.make_bucket("train-cluster")
    s3_server.put_folder(bucket, "photos.data", copy)
    there = s3_server.uri(bucket, "photos.data")
    an_epoch = len(Samples(copy, "train")) // 4
    settings = [word for each in SETTINGS for word in ("--set", each)]

    def command(out: str, workers: str) -> list[str]:
        return [
            sys.executable, "-m", "cli.main", "train", there, "--recipe", "unet-l1", *settings,
            "--workers", workers, "--out", out, "--address", "auto", "--json",
            "--tracking-uri", tracking,
        ]  # fmt: skip

    def steps(out: str) -> int:
        try:
            record = json.loads(open_store(out).read("last/checkpoint.json"))
        except (FileNotFoundError, json.JSONDecodeError):  # none yet, or just being replaced
            return 0
        return int(record["epoch"] * an_epoch + record["step"])

    def result(driver: subprocess.Popen[str]) -> tuple[str, dict[str, object]]:
        output, _ = driver.communicate(timeout=400)
        assert driver.returncode == 0, output
        (line,) = [line for line in output.splitlines() if line.startswith("{")]
        return output, json.loads(line)

    with several_nodes(2) as cluster:
        # With one to two workers: a node is lost, and it goes on with one.
        out = s3_server.uri(bucket, "elastic")
        driver = cluster.start(command(out, "1-2"))
        wait_for(lambda: steps(out) > 20, driver)
        assert load_checkpoint(open_store(out).below("last")).epoch < EPOCHS
        cluster.kill(cluster.nodes[0])
        said, report = result(driver)
        assert ", 2 workers, loss" in said
        assert report["out"] == out
        assert load_checkpoint(open_store(out).below("last")).epoch == EPOCHS
        assert evaluate_model(out, there).scores["model"]["photos"] == report["best"]["photos"]  # type: ignore[index]

        # With two, not fewer: a node is lost, it waits for another, and goes on there.
        cluster.add()
        out = s3_server.uri(bucket, "fixed")
        driver = cluster.start(command(out, "2"))
        wait_for(lambda: steps(out) > 20, driver)
        cluster.kill(cluster.nodes[-1])
        cluster.add()
        _, report = result(driver)
        assert report["steps"] == EPOCHS * an_epoch
        assert load_checkpoint(open_store(out).below("last")).epoch == EPOCHS


def test_a_folder_that_nodes_do_not_share_is_said(
    local_ray: None, dataset_with_palette: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("unet-l1", TINY)
    job = prepare_job(dataset_with_palette, recipe, tmp_path / "model", 2)
    _check_shared(job)  # nothing to look for
    job.store.write(".training-1", b"")
    _check_shared(replace(job, mark=".training-1"))
    with pytest.raises(JobError, match=r"model on all nodes.*disk that all nodes share, or to s3"):
        _check_shared(replace(job, mark=".training-2"))
