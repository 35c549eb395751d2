"""The guard of `make check` recognizes commands that start Ray, a server or a browser."""

import pytest

from tests.conftest import SERVERS


@pytest.mark.parametrize(
    "command",
    [
        "/opt/ray/core/src/ray/raylet/raylet --node_ip_address=127.0.0.1",
        "python -m mlflow server --port 5000",
        "python -m tests.clusters keep 2 1 0",
        "python -m tests.servers.postgres",
        "/usr/bin/chromium --headless",
        "/site-packages/playwright/driver/node cli.js run-driver",
    ],
)
def test_servers_are_recognized(command: str) -> None:
    assert SERVERS.match(f"{command} ")


@pytest.mark.parametrize(
    "command", ["python -m cli.main recipes", "git init -q raylet", "mlflow --version"]
)
def test_other_commands_are_not(command: str) -> None:
    assert not SERVERS.match(f"{command} ")
