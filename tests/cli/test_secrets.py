"""A real training among secrets, whose tracking server goes away: nothing that it logs is lost, and
none of the secrets is written down.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colorcore.checkpoints.checkpoint import load_checkpoint
from pipelines.priors import make_palette
from pipelines.run_log.resend import resend_runs
from tests.pipelines.tracking_server import TrackingServer

pytestmark = pytest.mark.slow

SETTINGS = {
    "model.channels": 4,
    "model.depth": 2,
    "data.batch": 4,
    "train.epochs": 8,
    "train.eval_every": 2,
}
PASSWORD = "Tracking-Pass-1f3a"  # noqa: S105
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "Aws-Secret-77c1",
    "AWS_SESSION_TOKEN": "Aws-Session-90d2",
    "MLFLOW_TRACKING_TOKEN": "Mlflow-Token-4be8",
    "RAY_AUTH_TOKEN": "Ray-Token-5d6e5d6e5d6e5d6e5d6e5d6e",
}
QUERY = "Query-Secret-a0b9"


def holding(secret: str, *folders: Path) -> list[Path]:
    """Files in which the secret stands."""
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TrackingServer]:
    (tmp_path / "server").mkdir()
    server = TrackingServer(tmp_path / "server")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="s-"))  # short, for the paths of Ray's sockets
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _check_all_is_there(server: TrackingServer, run: str, steps: int) -> None:
    """What a training logs whose server is there all the time: once each."""
    epochs, every = SETTINGS["train.epochs"], SETTINGS["train.eval_every"]
    validated = [steps // epochs * epoch for epoch in range(every, epochs + 1, every)]
    assert [step for step, _ in server.stored(run, "val/psnr")] == validated
    logged = [step for step in range(1, steps + 1) if step % 10 == 0 or step == steps]
    assert [step for step, _ in server.stored(run, "train/loss")] == logged
    pictures = [name for name in server.images(run) if name.endswith(".png")]
    by_epoch = [name for name in pictures if name.startswith("images/val~")]
    assert len(by_epoch) == len(validated)
    assert 0 < len(pictures) - len(by_epoch) <= len(validated)  # the best so far
    stored = server.client().get_run(run)
    assert stored.info.status == "FINISHED"
    assert stored.outputs is not None
    assert len(stored.outputs.model_outputs) == 1


def test_a_training_whose_server_goes_away_loses_nothing_and_tells_no_secret(
    dataset: Path, server: TrackingServer, ray_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    make_palette(copy, bins=16)
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run(["git", "init", "-q", str(work)], check=False)
    remote = f"https://me:{QUERY}@example.org/x.git"
    subprocess.run(["git", "-C", str(work), "remote", "add", "origin", remote], check=False)
    uri = server.uri.replace("://", f"://user:{PASSWORD}@")
    command = [sys.executable, "-m", "cli.main", "train"]
    environment = {
        **os.environ, **SECRETS, "RAY_AUTH_MODE": "token", "MLFLOW_TRACKING_URI": uri,
        "COLORCORE_TRACKING_WAIT_S": "0", "TMPDIR": str(ray_folder),
        "PYTHONPATH": str(Path.cwd()),
    }  # fmt: skip
    given = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    name = f"http://h/x?token={QUERY}"
    process = subprocess.Popen(
        [*command, str(copy), "--recipe", "unet-l1", *given, "--name", name, "--json"],
        cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (work / "model" / "last" / "checkpoint.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.stop()
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    report = json.loads(out)
    run = report["run_id"]
    assert load_checkpoint(work / "model" / "last").epoch == SETTINGS["train.epochs"]
    assert f"cc resend {work / 'model' / 'run-log' / run}" in errors
    assert errors.count("cc resend") == 1
    assert (work / "model" / "run-log").exists()
    seen = [PASSWORD, QUERY, *SECRETS.values()]
    assert not [secret for secret in seen if secret in out + errors]
    for secret in [PASSWORD, *SECRETS.values()]:
        assert not holding(secret, work / "model", server.folder, ray_folder), secret
    assert not holding(QUERY, work / "model", server.folder, ray_folder)

    server.start()
    resend_runs([str(work / "model")], uri)
    _check_all_is_there(server, run, report["steps"])
    assert not (work / "model" / "run-log").exists()
    server.stop()
    for secret in seen:
        assert not holding(secret, work / "model", server.folder), secret

    bad = subprocess.run(
        [*command, f"s3://AKIA:{QUERY}@bucket/data"],
        cwd=work, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bad.returncode == 2
    assert "expected no credentials" in bad.stderr
    assert QUERY not in bad.stdout + bad.stderr
