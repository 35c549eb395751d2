"""Other projects, each in an environment of its own: their pins and ours need not agree."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".bench"
ALONE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "http_proxy": "http://127.0.0.1:9",  # nobody listens there
    "https_proxy": "http://127.0.0.1:9",
}
"""One thread, and nothing is sent out."""


def python_of(name: str) -> Path:
    """The Python of ``.bench/NAME``, which is made from ``NAME.txt`` when it is not there yet."""
    pins, folder = HERE / f"{name}.txt", ENVIRONMENTS / name
    python, made_from = folder / "bin" / "python", folder / "made-from.txt"
    if not made_from.exists() or made_from.read_text() != pins.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*install, "--no-deps", "--requirement", str(pins)], check=True)
        made_from.write_text(pins.read_text())
    return python


def tree_cpu_ms(command: list[str | Path], log: Path) -> float:
    """CPU milliseconds (user and system) of a command and of all the processes it waits for."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | ALONE, cwd=log.parent, stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed, see\n{log.read_text()[-2000:]}")
    return (used.ru_utime + used.ru_stime) * 1e3


class Peer:
    """A script under another environment's Python that measures once for each line it gets."""

    def __init__(self, python: Path, script: Path, *arguments: str | Path) -> None:
        self._process = subprocess.Popen(
            [python, script, *arguments],
            env=os.environ | ALONE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def __call__(self) -> float:
        """Its next measurement."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())
