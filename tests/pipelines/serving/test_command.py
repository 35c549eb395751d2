"""`cc serve` as a process: what it prints, 50 clients in bounded memory, files, signals, HTTPS."""

from __future__ import annotations

import http.client
import io
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.conftest import jpeg, scene
from tests.processes import listening

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
GREY = jpeg(scene(0, 300, 400).mean(axis=2).astype("uint8"))
MIB = 1024 * 1024


@dataclass
class Served:
    process: subprocess.Popen[str]
    link: str
    errors: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return urlsplit(self.link).port or 0

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST" if data else "GET", path, data, headers)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def served(*words: str, **environment: str) -> Iterator[Served]:
    """`cc serve start` until the block ends."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    env.pop("COLORCORE_SERVE_TOKEN", None) if not environment else None
    command = [sys.executable, "-m", "cli.main", "serve", "start", *words]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        running = Served(process, process.stdout.readline().strip())
        reader = threading.Thread(target=lambda: running.errors.extend(process.stderr))
        reader.start()
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            reader.join(30)


# -- where it listens, and what it prints ----------------------------------------------------------


def test_it_listens_on_this_machine_only_and_ends_on_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with served() as server:
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.link)
            assert listening([server.process.pid]) == {("127.0.0.1", server.port)}
            assert server.ask("/colorize", GREY)[0] == 200
            idle = http.client.HTTPConnection("127.0.0.1", server.port)
            idle.request("GET", "/healthz")
            idle.getresponse().read()
            assert server.stop(number) == 0
            idle.close()
        assert "Traceback" not in "".join(server.errors)


def test_beyond_this_machine_it_makes_a_token_and_prints_it_once(tmp_path: Path) -> None:
    with served("--host", "0.0.0.0") as server:  # noqa: S104
        assert urlsplit(server.link).hostname == socket.gethostname().lower()
        token = server.link.partition("?token=")[2]
        assert len(token) > 40
        assert server.ask("/")[0] == server.ask("/colorize", GREY)[0] == 401
        assert server.ask(f"/?token={token}")[0] == 303
        assert server.ask("/colorize", GREY, Authorization=f"Bearer {token}")[0] == 200
        command = psutil.Process(server.process.pid).cmdline()
        assert server.stop() == 0
    assert token not in " ".join([*command, *server.errors])
    assert any("--tls-cert" in line for line in server.errors)


@pytest.mark.parametrize("by", ["file", "environment"])
def test_a_token_of_ones_own_is_not_printed(by: str, tmp_path: Path) -> None:
    token = "0123456789abcdef0123"  # noqa: S105
    (tmp_path / "token").write_text(token)
    words = ("--token-file", str(tmp_path / "token")) if by == "file" else ()
    environment = {"COLORCORE_SERVE_TOKEN": token} if by == "environment" else {}
    with served(*words, **environment) as server:
        assert token not in server.link
        assert server.ask("/colorize", GREY)[0] == 401
        assert server.ask("/colorize", GREY, Authorization=f"Bearer {token}")[0] == 200
        assert server.stop() == 0
    assert token not in "".join(server.errors)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--token-file", "/nowhere"), "cannot read the token in /nowhere"),
        (("--tls-cert", "/nowhere"), "expected --tls-cert and --tls-key together"),
        (("--host", "203.0.113.7"), "assign requested address; choose another --host"),
        (("--host", "no.such.host.invalid"), "choose another --host"),
        (("--tls-cert", "/nowhere", "--tls-key", "/nowhere"), "cannot use the certificate"),
    ],
)
def test_wrong_calls_are_one_line(words: tuple[str, ...], error: str) -> None:
    with served(*words) as server:
        assert server.process.wait(60) in {1, 2}
    assert server.link == ""
    assert error in "".join(server.errors)
    assert "Traceback" not in "".join(server.errors)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl: found none; install it")
def test_https(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
         str(tmp_path / "key"), "-out", str(tmp_path / "cert")],
        check=True, capture_output=True,
    )  # fmt: skip
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert"))
    words = ("--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"))
    with served(*words) as server:
        assert server.link.startswith("https://")
        request = urllib.request.Request(f"{server.link}colorize", GREY)  # noqa: S310
        with urllib.request.urlopen(request, context=trusted) as answer:  # noqa: S310
            assert answer.read() == server_bytes(GREY)
        assert server.stop() == 0


def server_bytes(data: bytes) -> bytes:
    """What `cc colorize start -` writes."""
    command = [sys.executable, "-m", "cli.main", "colorize", "start", "-"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, input=data, env=env, check=True, capture_output=True).stdout


# -- load ------------------------------------------------------------------------------------------


def megapixel(seed: int, side: int = 1000) -> bytes:
    """A grey JPEG of a megapixel, about 400 kB."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 10, (side, side))
    grey = np.clip(scene(seed, side, side).mean(axis=2) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "JPEG", quality=90)
    return out.getvalue()


class Watch:
    """A process's peak memory and the files it has open, looked at every few milliseconds."""

    def __init__(self, pid: int) -> None:
        self.files: set[str] = set()
        self._process, self._over = psutil.Process(pid), threading.Event()
        self.rss = self.before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.rss = max(self.rss, self._process.memory_info().rss)
            self.files |= {each.path for each in self._process.open_files()}


def test_fifty_clients_in_bounded_memory(tmp_path: Path) -> None:
    """All get the right picture in the end, by coming back when they are told to."""
    photos = [megapixel(seed) for seed in range(5)]
    with served("--queue", "8", TMPDIR=str(tmp_path)) as server:
        expected = [server.ask("/colorize", photo)[2] for photo in photos]
        statuses: Counter[int] = Counter()

        def client(number: int) -> bool:
            for _ in range(400):
                status, headers, data = server.ask("/colorize", photos[number % 5])
                statuses[status] += 1
                if status == 200:
                    return data == expected[number % 5]
                assert status == 429
                time.sleep(float(headers["retry-after"]) * (0.5 + (number % 10) / 10))
            return False

        with Watch(server.process.pid) as watch, ThreadPoolExecutor(50) as pool:
            right = list(pool.map(client, range(50)))
        grown = (watch.rss - watch.before) / MIB
        assert all(right)
        assert statuses[200] == 50
        assert statuses[429] > 0
        assert grown < 100  # one photo of a megapixel takes 30
        assert not [name for name in watch.files if name.startswith(str(tmp_path))]
        assert list(tmp_path.iterdir()) == []
        assert server.stop() == 0
    assert "Traceback" not in "".join(server.errors)


def test_clients_that_send_much_and_read_nothing_in_bounded_memory(tmp_path: Path) -> None:
    """Fifty uploads of 40 MB, of which four have a place; none of them is a photo to its end."""
    with served("--queue", "4", TMPDIR=str(tmp_path)) as server:
        server.ask("/colorize", megapixel(0))
        data = megapixel(0) + bytes(40 * MIB)

        def client(_: int) -> int:
            return server.ask("/colorize", data)[0]

        with Watch(server.process.pid) as watch, ThreadPoolExecutor(50) as pool:
            statuses = Counter(pool.map(client, range(50)))
        grown = (watch.rss - watch.before) / MIB
        assert set(statuses) <= {200, 400, 429}
        assert grown < 4 * 2 * 41 + 200
        assert list(tmp_path.iterdir()) == []
        assert server.ask("/colorize", GREY)[0] == 200
        assert server.stop() == 0


def test_a_signal_while_photos_are_under_way() -> None:
    with served("--queue", "50") as server, ThreadPoolExecutor(20) as pool:
        data = megapixel(1, 2000)
        server.ask("/healthz")
        waiting = [pool.submit(server.ask, "/colorize", data) for _ in range(20)]
        time.sleep(1.0)
        assert server.stop() == 0
        statuses = Counter(each.result()[0] for each in waiting)
    assert set(statuses) <= {200, 503}
    assert statuses[200] > 0
    assert "Traceback" not in "".join(server.errors)
