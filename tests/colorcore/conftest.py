"""Fixtures for tests of remote stores."""

from __future__ import annotations

import re

import pytest

from colorcore.storage import remote as remote_store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without the pauses that a real server needs."""
    monkeypatch.setattr(remote_store, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def bucket(s3_server, request: pytest.FixtureRequest) -> str:
    """A bucket for this test only, named after its file and the test."""
    asked = f"{request.path.stem}-{request.node.name}".lower()
    name = re.sub(r"[^a-z0-9]+", "-", asked)[:60].strip("-")
    return s3_server.make_bucket(name)
