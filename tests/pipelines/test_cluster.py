"""Connecting to Ray: the errors, and how soon they come, when there is none."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import cluster
from pipelines.errors import JobError


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_where_nothing_listens_fails_at_once(form: str) -> None:
    """In a process of its own, because this one may be connected to a Ray already."""
    code = (
        "import sys\nfrom pipelines.cluster import ray_session\n"
        "from pipelines.errors import JobError\n"
        "try:\n    with ray_session(sys.argv[1]): pass\n"
        "except JobError as error: print(error)\n"
    )
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # a port of ours that takes no connection
        address = form.format(port=closed.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", code, address],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,  # Ray itself would try for two minutes
        )
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cannot reach {address}: ")
    assert "refused" in line


# Busy heads


class Head:
    """Stands in for `ray.init`: gives its answers in turn; ``pauses`` are those in between."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *answers: object, each_s: float = 0
    ) -> None:
        import ray

        self.now, self.each_s, self.pauses = 0.0, each_s, list[float]()
        self.answers = iter(answers)
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(cluster, "time", clock)
        monkeypatch.setattr(ray, "init", self.init)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def init(self, **_: object) -> None:
        self.now += self.each_s
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            text = (
                f"Initialization failure from server:\nTraceback (most recent call last):\n{answer}"
            )
            raise ConnectionAbortedError(text)


TURNED_AWAY = [
    "RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for more",
    "RuntimeError: Proxy failed to Connect to backend! Check `ray_client_server.err`",
    "psutil.ZombieProcess: PID still exists but it's a zombie (pid=23951)",
]


def test_a_head_that_turns_clients_away_is_asked_again_ever_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = Head(monkeypatch, *TURNED_AWAY, None)
    cluster._join("ray://head:10001")
    assert head.pauses == [2, 4, 8]


@pytest.mark.parametrize(("each_s", "tries"), [(0, 6), (45, 3), (130, 1)])
def test_a_head_that_turns_all_clients_away_is_given_up(
    each_s: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two minutes, or after one try that takes longer."""
    head = Head(monkeypatch, *[TURNED_AWAY[0]] * 9, each_s=each_s)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's Ray may run
    with (
        pytest.raises(
            JobError,
            match=r"cannot reach ray://head: .* failed; try .* GRPC_ENABLE_FORK_SUPPORT=0$",
        ),
        cluster.ray_session("ray://head"),
    ):
        pass
    assert len(head.pauses) == tries - 1


def test_what_would_fail_again_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch, "RuntimeError: no such runtime environment")
    with pytest.raises(ConnectionAbortedError, match="runtime environment"):
        cluster._join("ray://head:10001")
    assert not head.pauses


def test_the_installed_ray_uses_the_words_that_such_heads_are_recognized_by() -> None:
    from ray.util.client.server import proxier

    source = inspect.getsource(proxier)
    assert [words for words in cluster._TURNED_AWAY if words not in source] == []


def test_a_local_ray_that_does_not_start_in_time_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray gives its node 30 s, which a busy machine may exceed, and raises a bare Exception."""
    Head(monkeypatch, Exception("The current node timed out during startup. This could happen"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with (
        pytest.raises(JobError, match=r"^cannot start a local Ray: .* timed out during startup$"),
        cluster.ray_session(),
    ):
        pass


# Temporary folders


@pytest.mark.parametrize("kind", ["long", "not ASCII", "not writable"])
def test_a_local_ray_gets_a_short_folder_where_the_usual_one_does_not_do(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = {
        "long": tmp_path / "scratch_of_this_very_job_on_that_very_node",
        "not ASCII": Path(tempfile.gettempdir()) / "é",
        "not writable": Path("/proc"),
    }[kind]
    if kind != "not writable":  # else that alone would be the reason
        unfit.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(unfit))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with cluster._short_folder():
        folder = Path(os.environ["RAY_TMPDIR"])
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder)) <= cluster.MOST_BYTES
        session = f"{folder}/ray/session_2026-11-27_11-29-27_798049_4194304/sockets/plasma_store"
        assert len(session) <= 107
    assert not folder.exists()
    assert "RAY_TMPDIR" not in os.environ


def test_a_fit_folder_is_left_as_it_is_and_without_any_the_error_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # noqa: S108
    with cluster._short_folder():
        assert os.environ["RAY_TMPDIR"] == "/tmp"  # noqa: S108
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 40)))
    monkeypatch.setattr(cluster, "_SHORT_FOLDERS", ("/proc",))
    with (
        pytest.raises(JobError, match=r"at most 35 bytes in ASCII, found .*; set RAY_TMPDIR"),
        cluster._short_folder(),
    ):
        pass


@pytest.mark.slow
def test_ray_starts_below_a_long_folder_that_is_not_ascii(tmp_path: Path) -> None:
    folder = tmp_path / "people" / "someone" / "slurm_jobdir" / "scratch é of this very job"
    folder.mkdir(parents=True)
    before = set(Path("/tmp").glob("cc-*"))  # noqa: S108
    code = (
        "import ray\nfrom pipelines.cluster import ray_session\n"
        "with ray_session(): print(ray.get(ray.remote(lambda: 6 * 7).remote()))\n"
    )
    env = {**os.environ, "TMPDIR": str(folder)}
    env.pop("RAY_TMPDIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env
    )
    assert done.stdout.splitlines()[-1:] == ["42"], done.stderr
    assert set(Path("/tmp").glob("cc-*")) <= before  # noqa: S108
