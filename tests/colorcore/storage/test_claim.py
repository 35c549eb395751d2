"""One writer per output: in a folder, on a file system without locks, and on a real S3 server."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colorcore.storage import locks
from colorcore.storage.location import open_store
from colorcore.storage.locks import WRITER, BusyError, claim
from colorcore.storage.store import LocationError, Store
from tests.servers.s3 import S3

QUICK = "import colorcore.storage.locks as locks; locks.RENEW_S, locks.SETTLE_S = 0.2, 0.1"
NO_LOCKS = """
def none(descriptor, *, wait): raise OSError(errno.ENOLCK, "No locks available")
locks._take = none
"""


@pytest.fixture(params=["folder", "folder without locks", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(locks, "RENEW_S", 0.2)
    monkeypatch.setattr(locks, "SETTLE_S", 0.1)
    monkeypatch.setattr(locks, "LEASE_S", 2.0)
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3_server")
        name = f"claim-{abs(hash(request.node.name)) % 10**8}"
        return open_store(s3.uri(s3.make_bucket(name), "out"))
    if request.param == "folder without locks":

        def none(descriptor: int, *, wait: bool) -> bool:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks, "_take", none)
    return open_store(tmp_path / "out")


@contextmanager
def claimed_elsewhere(out: Store, without_locks: bool) -> Iterator[subprocess.Popen[str]]:
    """Another process writes to the output."""
    code = (
        f"import errno\n{QUICK}\n{NO_LOCKS if without_locks else ''}\n"
        "from colorcore.storage.location import open_store\n"
        f"with locks.claim(open_store({out.show()!r}), 'cc train'):\n"
        "    print('open', flush=True)\n    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            yield other
        finally:
            other.kill()


def test_the_second_writer_is_refused_at_once_and_learns_who_the_first_is(
    out: Store, request: pytest.FixtureRequest
) -> None:
    with claimed_elsewhere(out, "without" in request.node.name) as other:
        since = time.monotonic()
        with pytest.raises(BusyError) as refused, claim(out, "cc tune"):
            pass
        assert time.monotonic() - since < 2.0
    host = os.uname().nodename
    assert str(refused.value) == (
        f"cc train (process {other.pid} on {host}) is writing to {out.show()}; "
        "wait for it to end, or choose another output"
    )


def test_a_killed_writer_on_this_machine_blocks_nobody(
    out: Store, request: pytest.FixtureRequest
) -> None:
    with claimed_elsewhere(out, "without" in request.node.name) as other:
        other.kill()
        other.wait()
        since = time.monotonic()
        with claim(out, "cc tune"):
            assert time.monotonic() - since < 1.5
            assert json.loads(out.read(WRITER))["command"] == "cc tune"
    assert not out.exists(WRITER)


def test_a_claim_can_be_repeated_and_leaves_nothing(out: Store) -> None:
    for _ in range(2):
        with claim(out, "cc train") as claimed:
            out.write("result", b"done")
            claimed.check()
    assert out.names("") == ["result"]


@pytest.mark.slow
@pytest.mark.parametrize("out", ["folder without locks", "s3"], indirect=True)
def test_a_dead_writer_on_another_machine_is_waited_for_and_replaced(
    out: Store, caplog: pytest.LogCaptureFixture
) -> None:
    out.write(WRITER, json.dumps({"command": "cc train", "host": "elsewhere", "pid": 1}).encode())
    since = time.monotonic()
    with claim(out, "cc train"):
        assert time.monotonic() - since >= 2.0
    (line,) = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert line == (
        f"waiting up to 2 s, in case cc train (process 1 on elsewhere) still writes to {out.show()}"
    )


@pytest.mark.parametrize("out", ["folder without locks", "s3"], indirect=True)
def test_a_writer_that_was_replaced_notices_it(out: Store) -> None:
    with claim(out, "cc train") as claimed:
        other = {"command": "cc tune", "host": "elsewhere", "pid": 7, "owner": "x"}
        out.write(WRITER, json.dumps(other).encode())
        with pytest.raises(BusyError, match=r"cc tune \(process 7 on elsewhere\) is writing to"):
            claimed.check()
        time.sleep(0.6)
    assert json.loads(out.read(WRITER)) == other  # neither renewed over nor removed


def test_a_refused_call_leaves_no_folder(tmp_path: Path) -> None:
    with claim(open_store(tmp_path / "new"), "cc train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(LocationError, match=r"cannot write to .*file: File exists; choose another"),
        claim(open_store(tmp_path / "file"), "cc train"),
    ):
        pass
    with (
        pytest.raises(LocationError, match=r"cannot write to .*: Not a directory; choose another"),
        claim(open_store(tmp_path / "file" / "below"), "cc train"),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("train nowhere --out /proc/out", "cannot write to /proc/out"),
        ("tune nowhere --out /proc/out", "cannot write to /proc/out"),
        ("colorize nowhere a.jpg --out /proc/out", "cannot write to /proc/out"),
        ("shard . /proc/out", "cannot write to /proc/out"),
        ("train nowhere --tracking-uri sqlite:////proc/m.db", "cannot write the tracking store"),
        ("tune nowhere --tracking-uri sqlite:////proc/m.db", "cannot write the tracking store"),
    ],
)
def test_commands_report_it_before_torch_is_imported(
    words: str, error: str, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom cli.main import main\n"
        "code = main(['colorcore', *sys.argv[1:]])\n"
        "sys.exit(100 * ('torch' in sys.modules) + code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert error in done.stderr
    assert done.returncode in (1, 2)
    assert list(tmp_path.iterdir()) == []
