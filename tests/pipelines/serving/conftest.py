"""The model that ships with colorcore, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colorcore.colorizing.colorizer import Colorizer
from pipelines.inference.knobs import open_colorizer
from tests.pipelines.serving.running import Running, running


@pytest.fixture(scope="session")
def start() -> Colorizer:
    return open_colorizer("start", "cpu")


@pytest.fixture(scope="module")
def server(start: Colorizer) -> Iterator[Running]:
    with running(start) as server:
        yield server
