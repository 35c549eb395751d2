"""make-secrets.sh: secrets are random, private, and in the formats that their readers accept."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.infra.files import INFRA, ROOT, run

SCRIPT = INFRA / "make-secrets.sh"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    answer = run(SCRIPT, folder)
    assert answer.returncode == 0, answer.stderr
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def ini(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(path)
    return parser


def test_only_their_owner_can_read_them(made: Path) -> None:
    assert made.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 8


def test_they_are_random(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(SCRIPT, other)
    first, second = contents(made), contents(other)
    assert all(first[name] != second[name] for name in first)
    assert len(first["ray-token"]) == 64
    assert len(set(first["ray-token"])) > 8


def test_again_they_stay_as_they_are(made: Path) -> None:
    before = contents(made)
    (made / "ray-token").unlink()
    assert run(SCRIPT, made).returncode == 0
    after = contents(made)
    assert after.pop("ray-token") != before.pop("ray-token")
    assert after == before


def test_none_is_printed(tmp_path: Path) -> None:
    answer = run(SCRIPT, tmp_path / "secrets")
    for name, text in contents(tmp_path / "secrets").items():
        for word in text.replace(":", " ").replace('"', " ").split():
            if len(word) >= 16 and word.isalnum():
                assert word not in answer.stdout + answer.stderr, name


def test_servers_and_clients_have_the_same(made: Path) -> None:
    password = (made / "postgres-password").read_text()
    assert (made / "pgpass").read_text() == f"*:*:*:mlflow:{password}\n"
    aws = ini(made / "aws-credentials")["default"]
    (identity,) = json.loads((made / "s3.json").read_text())["identities"]
    assert identity["credentials"] == [
        {"accessKey": aws["aws_access_key_id"], "secretKey": aws["aws_secret_access_key"]}
    ]
    server, client = (
        ini(made / "mlflow-auth.ini")["mlflow"],
        ini(made / "mlflow-credentials")["mlflow"],
    )
    assert server["admin_password"] == client["mlflow_tracking_password"] != ""
    assert server["admin_username"] == client["mlflow_tracking_username"] == "admin"


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi")
def test_their_readers_take_them(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3, the MLflow client and the MLflow server each read their file."""
    import boto3

    aws = ini(made / "aws-credentials")["default"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(made / "aws-credentials"))
    found = boto3.Session().get_credentials()
    assert found.access_key == aws["aws_access_key_id"]

    from mlflow.server.auth.config import read_auth_config
    from mlflow.utils.credentials import read_mlflow_creds

    home = tmp_path / "home"
    (home / ".mlflow").mkdir(parents=True)
    shutil.copy(made / "mlflow-credentials", home / ".mlflow" / "credentials")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(made / "mlflow-auth.ini"))
    server = read_auth_config()
    assert read_mlflow_creds().password == server.admin_password
    assert "@postgres:5432/mlflow_users" in server.database_uri


def test_git_leaves_them_out() -> None:
    if not (ROOT / ".git").exists():  # in an unpacked archive, git ignores nothing
        pytest.skip("not a git checkout")
    paths = ["infra/compose/secrets/ray-token", "infra/compose/.env"]
    answer = subprocess.run(
        ["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.stdout.split() == paths


def test_compose_gets_the_owner_as_its_user(tmp_path: Path) -> None:
    """In compose's own folder, the script also creates .env, and leaves other settings alone."""
    import os

    infra = tmp_path / "infra"
    (infra / "compose").mkdir(parents=True)
    shutil.copy(SCRIPT, infra)
    shutil.copy(INFRA / "compose" / ".env.example", infra / "compose")
    assert run(infra / "make-secrets.sh").returncode == 0
    env = (infra / "compose" / ".env").read_text()
    owner = os.getuid() or 1000
    assert f"\nCOLORCORE_UID={owner}\n" in env
    assert (infra / "compose" / "secrets" / "ray-token").stat().st_uid == owner
    (infra / "compose" / ".env").write_text(env + "RAY_WORKERS=7\n")
    assert run(infra / "make-secrets.sh").returncode == 0
    assert "RAY_WORKERS=7" in (infra / "compose" / ".env").read_text()
