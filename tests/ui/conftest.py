"""A `cc ui` that shows a study, and a browser."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ui.browser import chromium, why_no_browser

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

    from tune.study import StudyReport


@dataclass
class Outside:
    """A proxy that catches every request that would leave this machine."""

    port: int
    calls: list[bytes] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        proxy = f"http://127.0.0.1:{self.port}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy")
        return {**dict.fromkeys(names, proxy), "no_proxy": "127.0.0.1,localhost"}


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    """A proxy that forwards nothing and records every request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Outside(server.getsockname()[1])

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        proxy.calls.append(connection.recv(4096))

        threading.Thread(target=answer, daemon=True).start()
        yield proxy


@dataclass(frozen=True)
class Shown:
    """A running `cc ui STUDY`: the link it printed, and its process."""

    link: str
    process: subprocess.Popen[str]

    @property
    def at(self) -> str:
        return self.link.partition("/#/")[0]


@pytest.fixture(scope="module")
def shown(study: StudyReport, outside: Outside, tmp_path_factory) -> Iterator[Shown]:
    if reason := why_no_browser():  # no Chromium, or no Playwright to drive it
        pytest.skip(reason)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        "ui",
        study.name,
        "--tracking-uri",
        study.tracking_uri,
        "--port",
        str(port),
        "--no-open",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *words],
        env={**os.environ, **outside.env, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path_factory.mktemp("elsewhere"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        yield Shown(process.stdout.readline().strip(), process)
        process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """A browser for the module only: while Playwright runs, nothing else here may use asyncio."""
    with chromium() as context:
        yield context


@pytest.fixture(scope="module")
def requests(browser: BrowserContext) -> list[str]:
    """The URL of every request that any page makes."""
    made: list[str] = []
    browser.on("request", lambda request: made.append(request.url))
    return made


@pytest.fixture
def page(browser: BrowserContext, requests: list[str]) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()
