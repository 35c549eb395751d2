"""`cc tune` on a cluster that grows and shrinks; its nodes share nothing but an S3 server."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.recipes.recipe import load_recipe
from colorcore.storage.location import open_store
from colorcore.storage.store import Store
from pipelines.priors import make_palette
from tests.clusters import several_nodes, wait_for
from tests.mlflow_store import new_store
from tests.servers.s3 import S3
from tests.trainings import TINY, fit_here
from tune.search.journal import JOURNAL
from tune.search.objective import Objective
from tune.search.search import Search, SearchSettings, TrialRecord
from tune.search.space import space_of, with_values
from tune.studies.results import trial_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

EPOCHS = 60
SETTINGS = [*TINY, f"train.epochs={EPOCHS}"]
SPACE = {"optim.lr": {"log": [1e-4, 1e-2]}}


def epoch_of(out: Store, trial: int) -> int:
    try:
        return int(json.loads(trial_folder(out, trial).read("last/checkpoint.json"))["epoch"])
    except (FileNotFoundError, json.JSONDecodeError):  # none yet, or just being replaced
        return 0


def records(out: Store, folder: Path) -> list[TrialRecord]:
    journal = folder / "journal"
    journal.write_bytes(b"".join(out.read(f"{JOURNAL}/{n}") for n in sorted(out.names(JOURNAL))))
    space = space_of(SPACE, load_recipe("unet-l1", SETTINGS))
    return Search(space, Objective(), SearchSettings(), journal).records()


def test_a_study_outlives_nodes_and_the_machine_of_its_driver(
    s3_server: S3, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    make_palette(copy, bins=16)
    tracking = new_store(tmp_path)
    bucket = s3_server.make_bucket("tune-cluster")
    s3_server.put_folder(bucket, "photos.data", copy)
    (tmp_path / "space.toml").write_text(
        '[study]\nprune_signs = false\n["optim.lr"]\nlog = [1e-4, 1e-2]\n'
    )
    location = s3_server.uri(bucket, "study")
    out = open_store(location)
    sets = [word for each in SETTINGS for word in ("--set", each)]
    command = [
        sys.executable, "-m", "cli.main", "tune", s3_server.uri(bucket, "photos.data"),
        "--recipe", "unet-l1", *sets, "--space", str(tmp_path / "space.toml"), "--trials", "3",
        "--concurrent", "2", "--scheduler", "none", "--out", location, "--address", "auto",
        "--tracking-uri", tracking, "--json",
    ]  # fmt: skip

    def machine(name: str) -> dict[str, Any]:
        """What makes a process that of another machine: a temporary folder of its own."""
        (tmp_path / name).mkdir()
        return {"env": {"TMPDIR": str(tmp_path / name)}}

    with several_nodes(1) as cluster:
        # One node, and room for one trial; a second node is used as soon as it is there.
        (first_node,) = cluster.nodes
        driver = cluster.start(command, **machine("one"))
        wait_for(lambda: epoch_of(out, 0) > 1, driver)
        assert epoch_of(out, 1) == 0
        cluster.add()
        wait_for(lambda: epoch_of(out, 1) > 1, driver)
        # The first node is lost: its trial waits for room, and the other one goes on.
        assert epoch_of(out, 0) < EPOCHS
        cluster.kill(first_node)
        reached = epoch_of(out, 1)
        wait_for(lambda: epoch_of(out, 1) > reached, driver)
        # The driver's machine is lost with all its files.
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        shutil.rmtree(tmp_path / "one")
        before = [epoch_of(out, trial) for trial in (0, 1)]
        assert min(before) > 0
        assert max(before) < EPOCHS
        again = cluster.driver([*command, "--resume"], timeout=600, **machine("two"))
        assert again.returncode == 0, again.stdout
    (line,) = [line for line in again.stdout.splitlines() if line.startswith("{")]
    report = json.loads(line)
    assert report["trials"] == {"finished": 3}
    assert report["recipe"] == out.show("best.toml")
    trials = records(out, tmp_path)
    assert [trial.epochs for trial in trials] == [EPOCHS] * 3
    assert not out.exists(".writer")

    # Each trial has the scores that it would have had without any of this, and MLflow the curves.
    best = report["best"][0]
    recipe = load_recipe("unet-l1", SETTINGS)
    fit_here(with_values(recipe, trials[0].values), copy, tmp_path / "alone")
    alone = load_checkpoint(tmp_path / "alone" / "best").scores
    assert trials[0].scores["auc_balanced"] == pytest.approx(alone["auc_balanced"], abs=1e-6)
    client = MlflowClient(tracking)
    for trial in trials:
        told = client.get_metric_history(trial.run_id, "val/psnr")
        assert {point.step for point in told} == {
            each * told[0].step for each in range(1, EPOCHS + 1)
        }
        assert client.get_run(trial.run_id).info.status == "FINISHED"
    assert load_checkpoint(trial_folder(out, best["trial"])).decoded
    assert load_recipe(out.show("best.toml")).optim.lr == best["values"]["optim.lr"]
