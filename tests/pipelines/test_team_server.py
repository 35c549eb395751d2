"""What a team has: `mlflow server` over PostgreSQL and S3, and a training and a study on a cluster
that log into it from other machines."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipelines.priors import make_palette
from pipelines.tracking.model import local_model
from pipelines.tracking.names import BEST_PICTURE_KEY, BEST_STEP, PARENT_TAG, PICTURE_KEY
from tests.clusters import Network, namespaced_nodes
from tests.servers.mlflow import MlflowServer, serve_mlflow
from tests.servers.postgres import Postgres, serve_postgres, why_no_postgres
from tests.servers.s3 import CREDENTIALS, S3

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUCKET, PREFIX = "team-runs", "mlflow"
SETTINGS = (
    "model.channels=4", "model.depth=2", "model.norm=group", "data.batch=4", "data.flip=false",
    "train.epochs=2", "optim.lr=1e-3",
)  # fmt: skip


@dataclass(frozen=True)
class Team:
    """The servers; what the clients have for a password, and all secrets that there are."""

    postgres: Postgres
    s3: S3
    mlflow: MlflowServer
    password: str
    secrets: tuple[str, ...]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_no_postgres():  # no server, or no client of it
        pytest.skip(reason)
    with namespaced_nodes(2, with_host=True) as network:
        yield network


@pytest.fixture(scope="module")
def team(network: Network, s3_server: S3) -> Iterator[Team]:
    """The database and the store on loopback, where the nodes do not reach them; MLflow's server
    on the nodes' network."""
    s3_server.make_bucket(BUCKET)
    key, password = secrets.token_hex(16), secrets.token_hex(16)
    store = {
        **CREDENTIALS,
        "AWS_SECRET_ACCESS_KEY": key,
        "MLFLOW_S3_ENDPOINT_URL": f"http://{s3_server.endpoint}",
    }
    assert network.host_ip is not None
    with (
        serve_postgres() as postgres,
        serve_mlflow(
            postgres.uri, f"s3://{BUCKET}/{PREFIX}", host=network.host_ip, env=store
        ) as mlflow,
    ):
        yield Team(postgres, s3_server, mlflow, password, (key, password, postgres.password))


@pytest.mark.timeout(900)  # two nodes, servers, a training, a study
def test_a_training_and_a_study_on_two_nodes_land_in_the_database_and_in_the_bucket(
    network: Network, team: Team, dataset: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(dataset, tmp_path / "dataset")
    make_palette(data, bins=16)
    client = team.mlflow.client
    best_picture = f"{BEST_PICTURE_KEY.replace('/', '~')}+step+{BEST_STEP}+"
    words = [data, "--workers", 2]  # one a node
    log = _cc(network, team, "train", *words, "--out", tmp_path / "out", "--name", "one")
    (run,) = client.search_runs([client.get_experiment_by_name("colorcore").experiment_id])

    # In the database: the run's parameters, its metrics step by step, its tags.
    rows = team.postgres.query("SELECT key, value FROM params")
    assert {("optim.lr", "0.001"), ("workers", "2")} <= set(rows)
    steps = team.postgres.query("SELECT step FROM metrics WHERE key = 'val/auc_balanced'")
    assert len(steps) == 2
    assert team.postgres.query("SELECT status FROM runs") == [("FINISHED",)]

    # In the bucket, through the server alone: pictures, the model, the palette.
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    files = [unquote(key) for key in team.s3.keys(BUCKET, f"{PREFIX}/")]
    pictures = [file for file in files if PICTURE_KEY.replace("/", "~") in file]
    assert len([file for file in pictures if file.endswith(".png")]) == 2
    assert any(file.endswith("/model.safetensors") for file in files)
    best = Path(local_model(f"runs:/{run.info.run_id}/model", team.mlflow.uri))
    mine = (tmp_path / "out/best/model.safetensors").read_bytes()
    assert (best / "model.safetensors").read_bytes() == mine

    # A study beside it: its trials, the best one's model, and its page on the server.
    (tmp_path / "space.toml").write_text('["optim.lr"]\nlog = [1e-4, 1e-2]\n')
    words += ["--space", tmp_path / "space.toml", "--trials", 2, "--name", "team"]
    log += _cc(network, team, "tune", *words, "--out", tmp_path / "study", "--scheduler", "none")
    experiment = run.info.experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    parent = runs["team"].info.run_id
    trials = {name for name, run in runs.items() if run.data.tags.get(PARENT_TAG) == parent}
    assert trials == {"team-0000", "team-0001"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    shown = [unquote(file.path) for file in client.list_artifacts(parent, "images")]
    assert sum(best_picture in file for file in shown) >= 2  # the best trial's, and its thumbnail
    champion = client.get_model_version_by_alias("team", "champion")
    (best,) = [name for name in trials if runs[name].info.run_id == champion.run_id]
    chosen = Path(local_model("models:/team@champion", team.mlflow.uri))
    mine = (tmp_path / "study/trials" / best[-4:] / "best/model.safetensors").read_bytes()
    assert (chosen / "model.safetensors").read_bytes() == mine
    answer = network.driver(
        [sys.executable, "-m", "cli.main", "ui", "team", "--no-open"], cwd=ROOT, env=_env(team)
    )
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.startswith(f"{team.mlflow.uri}/#/experiments/{experiment}/runs?")
    assert f"mlflow.sharedViewState.colorcore-{parent}" in team.postgres.dump()

    # And no credential anywhere: in the tables, the objects, what was printed, any log.
    objects = b"".join(team.s3.get(BUCKET, key) for key in team.s3.keys(BUCKET))
    logs = [path for path in network.folder.rglob("*") if path.is_file()]
    written = {
        "the database": team.postgres.dump().encode(),
        "the bucket": objects,
        "cc train and cc tune": log.encode(),
        "cc ui": answer.stdout.encode(),
        "MLflow's log": team.mlflow.log.read_bytes(),
        **{str(path): path.read_bytes() for path in [*logs, *_files(tmp_path)]},
    }
    assert b"val/auc_balanced" in written["the database"]
    found = [
        (where, s) for where, text in written.items() for s in team.secrets if s.encode() in text
    ]
    assert not found


def _cc(network: Network, team: Team, command: str, *given: object) -> str:
    """A command on the cluster; what it printed."""
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    # From a node of the cluster, and as from elsewhere.
    address = {"train": "auto", "tune": f"ray://{network.head.ip}:10001"}[command]
    words = [command, *given, "--recipe", "unet-l1", *changes, "--address", address]
    answer: subprocess.CompletedProcess[str] = network.driver(
        [sys.executable, "-m", "cli.main", *map(str, words)],
        cwd=ROOT,
        env=_env(team),
        timeout=400,
    )
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


def _env(team: Team) -> dict[str, str]:
    """A client knows the server's address and its own password, nothing of what lies behind."""
    return {
        "MLFLOW_TRACKING_URI": team.mlflow.uri,
        "MLFLOW_TRACKING_USERNAME": "someone",
        "MLFLOW_TRACKING_PASSWORD": team.password,
        "PYTHONPATH": str(ROOT),
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
