"""The image's entry point and go-on.sh: the commands they build, refuse and run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.infra.files import INFRA, options_of, program, ray_start_options, run
from tests.servers.s3 import S3

ENTRY = INFRA / "docker" / "entrypoint.sh"
GO_ON = INFRA / "go-on.sh"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment with Ray's token, and no other variables for Ray or MLflow."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }


def dry(env: dict[str, str], *words: str) -> list[str]:
    answer = run(ENTRY, "--dry-run", *words, env=env)
    assert answer.returncode == 0, answer.stderr
    return shlex.split(answer.stdout)


def test_the_head_listens_on_loopback_for_its_dashboard_unless_told(env: dict[str, str]) -> None:
    words = dry(env, "head")
    assert words[:2] == ["ray", "start"]
    assert {"--head", "--block", "--port=6379", "--dashboard-host=127.0.0.1"} <= set(words)
    told = {"RAY_DASHBOARD_HOST": "10.0.0.1", "RAY_NUM_CPUS": "3"}
    words = dry({**env, **told}, "head", "--labels=a=b")
    assert {"--dashboard-host=10.0.0.1", "--num-cpus=3", "--labels=a=b"} <= set(words)


def test_the_head_serves_clients_without_grpcs_acts_on_forks(
    env: dict[str, str], tmp_path: Path
) -> None:
    """Else the process that serves ray:// crashes when it starts a client's process."""
    program(tmp_path / "bin" / "ray", '#!/bin/sh\necho "$GRPC_ENABLE_FORK_SUPPORT"\n')
    path = f"{tmp_path / 'bin'}:{env['PATH']}"
    assert run(ENTRY, "head", env={**env, "PATH": path}).stdout == "0\n"


def test_a_worker_joins_the_head_it_is_told(env: dict[str, str]) -> None:
    assert "--address=head:6379" in dry(env, "worker")
    told = dry({**env, "RAY_HEAD": "10.0.0.7:6379", "RAY_NUM_GPUS": "2"}, "worker")
    assert {"--address=10.0.0.7:6379", "--num-gpus=2"} <= set(told)


def test_ray_knows_every_option_it_is_given(env: dict[str, str]) -> None:
    more = {"RAY_NUM_CPUS": "1", "RAY_NUM_GPUS": "1", "RAY_OBJECT_STORE_BYTES": "100000000"}
    words = dry({**env, **more}, "head") + dry({**env, **more}, "worker")
    assert options_of(words) <= ray_start_options()
    assert len(options_of(words)) > 8


def test_a_job_is_submitted_to_the_dashboard_as_it_is(env: dict[str, str]) -> None:
    words = dry(env, "job", "cc", "train", "s3://datasets/a b", "--address", "auto")
    assert words[:5] == ["ray", "job", "submit", "--address", "http://head:8265"]
    assert words[5:] == ["--", "cc", "train", "s3://datasets/a b", "--address", "auto"]


def test_anything_else_is_a_command(env: dict[str, str], tmp_path: Path) -> None:
    answer = run(ENTRY, "echo", "two words", env=env)
    assert answer.stdout == "two words\n"
    assert run(ENTRY, "health", env=env).returncode == 0
    assert run(ENTRY, "false", env=env).returncode == 1


@pytest.mark.parametrize("role", ["head", "worker", "job"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RAY_AUTH_MODE": ""}, "RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": ""}, "RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "/nowhere/token"),
        ({"RAY_USE_TLS": "1"}, "RAY_TLS_SERVER_CERT"),
    ],
)
def test_no_ray_starts_without_a_token_or_half_its_certificates(
    env: dict[str, str], tmp_path: Path, role: str, change: dict[str, str], said: str
) -> None:
    started = tmp_path / "started"
    program(tmp_path / "bin" / "ray", f"#!/bin/sh\ntouch {started}\n")
    path = f"{tmp_path / 'bin'}:{env['PATH']}"
    answer = run(ENTRY, role, "true", env={**env, "PATH": path, **change})
    assert answer.returncode == 2
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not started.exists()
    assert run(ENTRY, role, "true", env={**env, "PATH": path}).returncode == 0
    assert started.exists()


def test_an_empty_token_file_is_none(env: dict[str, str]) -> None:
    Path(env["RAY_AUTH_TOKEN_PATH"]).write_text("")
    assert run(ENTRY, "head", env=env).returncode == 2


MLFLOW = {
    "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://mlflow@postgres:5432/mlflow",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
}


def test_mlflow_is_on_loopback_unless_told_and_its_options_exist(env: dict[str, str]) -> None:
    words = dry({**env, **MLFLOW}, "mlflow")
    assert words[:4] == ["mlflow", "server", "--host", "127.0.0.1"]
    assert "--app-name" not in words
    full = {
        **env,
        **MLFLOW,
        "MLFLOW_HOST": "10.0.0.1",
        "MLFLOW_ALLOWED_HOSTS": "mlflow:5000",
        "MLFLOW_AUTH_CONFIG_PATH": "/secret/auth.ini",
        "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE": "/secret/key",
        "MLFLOW_TLS_CERT": "/tls/node.crt",
        "MLFLOW_TLS_KEY": "/tls/node.key",
    }
    words = dry(full, "mlflow")
    assert words[words.index("--app-name") + 1] == "basic-auth"
    at = words.index("--uvicorn-opts")
    assert words[at + 1] == "--ssl-certfile /tls/node.crt --ssl-keyfile /tls/node.key"
    assert MLFLOW["MLFLOW_BACKEND_STORE_URI"] not in words
    from mlflow.cli import server

    known = {option for each in server.params for option in each.opts}
    assert options_of(words[:at] + words[at:][:1]) <= known
    by_variable = {each.envvar for each in server.params if each.envvar}
    assert set(MLFLOW) <= by_variable  # MLflow reads them from the environment


def test_mlflow_gets_no_password_on_its_command_line_or_in_the_address(
    env: dict[str, str], tmp_path: Path
) -> None:
    address = "postgresql+psycopg2://mlflow:hush@postgres:5432/mlflow"
    answer = run(ENTRY, "mlflow", env={**env, **MLFLOW, "MLFLOW_BACKEND_STORE_URI": address})
    assert answer.returncode == 2
    assert "PGPASSFILE" in answer.stderr
    assert "hush" not in answer.stderr


def test_mlflow_reads_its_secrets_from_files(env: dict[str, str], tmp_path: Path) -> None:
    """libpq ignores a password file that others can read, as files mounted from Secrets are."""
    files = {"pgpass": "*:*:*:mlflow:hush\n", "auth.ini": "[mlflow]\n", "key": "signing key"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
    program(
        tmp_path / "bin" / "mlflow",
        '#!/bin/sh\necho "$@"\necho "$MLFLOW_FLASK_SERVER_SECRET_KEY"\n'
        'stat -c %a "$PGPASSFILE"\ncat "$PGPASSFILE"\n',
    )
    told = {
        "PATH": f"{tmp_path / 'bin'}:{env['PATH']}",
        "PGPASSFILE": str(tmp_path / "pgpass"),
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE": str(tmp_path / "key"),
    }
    answer = run(ENTRY, "mlflow", env={**env, **MLFLOW, **told})
    assert answer.returncode == 0, answer.stderr
    arguments, key, mode, password = answer.stdout.splitlines()
    assert "hush" not in arguments
    assert "signing" not in arguments
    assert (key, mode, password) == ("signing key", "600", "*:*:*:mlflow:hush")


def test_with_arguments_mlflow_is_its_own_command(env: dict[str, str]) -> None:
    assert dry(env, "mlflow", "runs", "list") == ["mlflow", "runs", "list"]


def test_health_asks_what_was_started(env: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "bin" / "ray", '#!/bin/sh\necho "$@"\n')
    env = {**env, "PATH": f"{tmp_path / 'bin'}:{env['PATH']}"}
    assert run(ENTRY, "health", env=env).returncode == 2
    run(ENTRY, "worker", env={**env, "RAY_HEAD": "10.0.0.7:6379"})
    assert run(ENTRY, "health", env=env).stdout == "health-check --address 10.0.0.7:6379\n"
    run(ENTRY, "head", env=env)
    assert run(ENTRY, "health", env=env).stdout.startswith("health-check --address ")


def test_buckets_are_made_where_they_are_missing(env: dict[str, str], s3_server: S3) -> None:
    told = {
        **env,
        "AWS_ENDPOINT_URL": f"http://{s3_server.endpoint}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    told["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    first = run(ENTRY, "buckets", "infra-one", "infra-two", env=told)
    assert first.stdout.splitlines() == ["created infra-one", "created infra-two"], first.stderr
    again = run(ENTRY, "buckets", "infra-two", "infra-three", env=told)
    assert again.stdout.splitlines() == ["found infra-two", "created infra-three"]


# -- go-on.sh ----------------------------------------------------------------------------------

CC = """#!/usr/bin/env python3
# Behaves like `cc train`: --resume needs a checkpoint, SIGINT writes one.
import pathlib, signal, sys, time
log, checkpoint, mode = pathlib.Path("log"), pathlib.Path("checkpoint"), sys.argv[1]
log.open("a").write(" ".join(sys.argv[1:]) + "\\n")
if "--resume" in sys.argv and not checkpoint.exists():
    sys.exit(2)
if mode == "wait":
    pathlib.Path("running").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.3)
        checkpoint.touch()
        sys.exit(130)
sys.exit(int(mode))
"""


@pytest.fixture
def cc(tmp_path: Path) -> Path:
    return program(tmp_path / "cc", CC)


def test_go_on_resumes_where_there_is_something_and_starts_anew_where_not(cc: Path) -> None:
    folder = cc.parent
    assert run(GO_ON, cc, "0", cwd=folder).returncode == 0
    (folder / "checkpoint").touch()
    assert run(GO_ON, cc, "0", cwd=folder).returncode == 0
    assert (folder / "log").read_text().splitlines() == ["0 --resume", "0", "0 --resume"]


def test_go_on_tells_how_the_command_ended_and_repeats_no_failure(cc: Path) -> None:
    (cc.parent / "checkpoint").touch()
    assert run(GO_ON, cc, "1", cwd=cc.parent).returncode == 1
    assert (cc.parent / "log").read_text().splitlines() == ["1 --resume"]
    assert run(GO_ON).returncode == 2


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_go_on_stops_the_command_with_a_checkpoint(cc: Path, sent: signal.Signals) -> None:
    folder = cc.parent
    process = subprocess.Popen([GO_ON, cc, "wait"], cwd=folder)
    try:
        wait_for(folder / "running")
        process.send_signal(sent)
        assert process.wait(30) == 130
    finally:
        process.kill()
    assert (folder / "checkpoint").exists()


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.02)
