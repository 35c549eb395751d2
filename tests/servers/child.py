"""A helper process that lives no longer than the process that started it.

The child holds the read end of a pipe on its standard input. When the test run ends, however it
ends, the kernel closes the other end, the child reads the end of the file, cleans up and exits.
Both sides talk in JSON, one object a line. Standard library only.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]


class Child:
    """The parent's side: ``hello`` is the first object that the child sent."""

    def __init__(self, module: str, *words: str, env: Mapping[str, str] | None = None) -> None:
        self._name = " ".join((module, *words))
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        # A session of its own: an interrupt from the keyboard reaches the test run alone, and
        # the child then ends in order.
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=env,
            start_new_session=True,
        )
        self.hello: dict[str, Any] = {}

    def receive(self, seconds: float = 120) -> dict[str, Any]:
        """The child's next object."""
        assert self.process.stdout is not None
        line, end = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise TimeoutError(f"{self._name}: no answer in {seconds} s; {self._said()}")
            piece = os.read(self.process.stdout.fileno(), 65536)
            if not piece:
                raise RuntimeError(f"{self._name}: ended; {self._said()}")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self._name}: {answer['error']}; {self._said()}")
        return answer

    def ask(self, seconds: float = 120, **request: Any) -> dict[str, Any]:
        """Send an object and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.receive(seconds)

    def close(self, seconds: float = 60) -> None:
        """Let the child end; kill it if it does not."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(seconds)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        finally:
            self.process.stdout.close()
            self._errors.close()

    def _said(self) -> str:
        self._errors.seek(0)
        return "it said: " + self._errors.read()[-2000:].decode(errors="replace")


@contextmanager
def child(
    module: str, *words: str, env: Mapping[str, str] | None = None, seconds: float = 120
) -> Iterator[Child]:
    """``python -m module words``, ready when the block begins and gone when it ends."""
    process = Child(module, *words, env=env)
    try:
        process.hello = process.receive(seconds)
        yield process
    finally:
        process.close()


# -- the child's side ---------------------------------------------------------------------------


class Parent:
    """What the child says and hears. Other output of the process goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        """Send an object."""
        self._out.write(json.dumps(answer).encode() + b"\n")
        self._out.flush()

    def requests(self) -> Iterator[dict[str, Any]]:
        """The objects that the parent sends, till it ends or lets the child end."""
        for line in sys.stdin:
            yield json.loads(line)
