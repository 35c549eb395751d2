"""Locks between processes: who waits, who is refused, and what a killed process leaves."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import pytest

from colorcore.storage.locks import lock, try_lock

SPAWN = multiprocessing.get_context("spawn")


def _hold(path: Path, ready: Path) -> None:
    with lock(path):
        ready.touch()
        time.sleep(60)


@contextmanager
def held_elsewhere(path: Path) -> Iterator[BaseProcess]:
    """Another process holds the lock."""
    ready = path.with_name("ready")
    process = SPAWN.Process(target=_hold, args=(path, ready))
    process.start()
    try:
        while not ready.exists():
            assert process.is_alive()
            process.join(0.01)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture(params=["file", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "file":
        return tmp_path / "new folder" / "lock"
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_a_lock_is_free_again_after_its_block(path: Path) -> None:
    for _ in range(2):
        with try_lock(path) as held:
            assert held
            with try_lock(path) as again:
                assert not again
            with try_lock(path) as again:  # the failed try did not release it
                assert not again


def test_a_lock_goes_with_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), lock(path):
        raise ValueError("wrong")
    with try_lock(path) as held:
        assert held


def test_lock_waits(path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with lock(path):
            order.append("second")

    waiting = Thread(target=wait)
    with lock(path):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]


@pytest.mark.timeout(120)
def test_the_lock_of_a_killed_process_is_free(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with held_elsewhere(path) as process:
        with try_lock(path) as held:
            assert not held
        process.kill()
        process.join()
        with try_lock(path) as held:
            assert held


_BLOCKED = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "fcntl":
            raise ImportError("no fcntl here")

sys.meta_path.insert(0, Blocker())
sys.modules.pop("fcntl", None)
importlib.import_module(sys.argv[1])
try:
    import fcntl
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["colorcore.dataset.loader", "colorcore.training.fit"])
def test_the_library_imports_where_there_is_no_fcntl(module: str) -> None:
    """As on Windows: the last import shows that the blocker works."""
    answer = subprocess.run(
        [sys.executable, "-c", _BLOCKED, module], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "no fcntl here\n"
