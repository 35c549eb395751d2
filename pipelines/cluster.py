"""Connect to Ray: start a private one on this machine, or join a cluster by its address.

The local Ray listens on loopback only, keeps Ray's token authentication, sends no usage
statistics, has no dashboard, and ends with the process that started it.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from colorcore.cpu import wait_passively
from colorcore.waiting import waiting_for
from pipelines.errors import JobError
from pipelines.ray_internals import private_node

ANSWER_S = 10.0
"""Seconds within which an address must accept a connection."""
PATIENCE_S = 120.0
"""Seconds for which connecting by ``ray://`` is retried when the head turns the client away."""
FIRST_PAUSE_S = 2.0
"""Pause before the first retry; it doubles for each further one."""
MOST_BYTES = 35
"""Bytes of a folder's path below which Ray's sockets, 72 bytes further down, are within 107."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a private folder is made there
_log = logging.getLogger(__name__)
_CRASHED = "Starting Ray client server failed"
_TURNED_AWAY = (_CRASHED, "Proxy failed to Connect to backend", "psutil.")
_REFUSED = ("Unauthenticated", "AuthToken", "authentication token")


@contextmanager
def ray_session(address: str | None = None, *, cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the block; a Ray that is connected already is used and left running.

    address  of a running cluster, as `ray.init` takes it ("auto", "ray://head:10001",
             "10.0.0.1:6379"); None starts a local Ray
    cpus     of the local Ray, set by tests and benchmarks; None takes this machine's

    Raises:
        JobError: Ray does not start or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    wait_passively()  # a local Ray's workers inherit this process's environment
    import ray

    silence_ray()
    if ray.is_initialized():
        yield
        return
    stack = ExitStack()
    try:
        if address is None:
            stack.enter_context(_short_folder())
            with private_node():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        else:
            host, _, port = address.rpartition("://")[2].rpartition(":")
            if host and port.isdigit():  # Ray itself would try for minutes
                require_listener(host.strip("[]"), int(port))
            with waiting_for(f"the cluster at {address}"):
                _join(address)
    except JobError:
        stack.close()
        raise
    except Exception as error:  # Ray raises bare ones, too: after 30 s of starting, for example
        stack.close()
        what = "start a local Ray" if address is None else f"reach {address}"
        raise JobError(f"cannot {what}: {_reason(error)}") from error
    with stack:
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _short_folder() -> Iterator[None]:
    """A temporary folder for a local Ray, whose sockets need a short path in ASCII.

    Usually it is the one that Ray would take. Otherwise it is a private one, removed afterwards.

    Raises:
        JobError: no folder has a short path and can be written.
    """
    asked = os.environ.get("RAY_TMPDIR")
    usual = asked or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - as Ray has it
    if _is_short(usual) and _is_writable(usual):
        yield
        return
    for place in _SHORT_FOLDERS:
        with suppress(OSError):
            folder = tempfile.mkdtemp(prefix="cc-", dir=place)
            break
    else:
        raise JobError(
            f"expected a temporary folder for Ray's sockets with a path of at most {MOST_BYTES} "
            f"bytes in ASCII, found {usual!r} and none that can be written in "
            f"{', '.join(_SHORT_FOLDERS)}; set RAY_TMPDIR to one"
        )
    os.environ["RAY_TMPDIR"] = folder
    try:
        yield
    finally:
        if asked is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = asked
        shutil.rmtree(folder, ignore_errors=True)


def _is_short(folder: str) -> bool:
    return folder.isascii() and len(folder) <= MOST_BYTES


def _is_writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def silence_ray() -> None:
    """Hide what Ray's libraries log below errors; the commands print their own progress."""
    for name in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def say_if_busy(count: int, *, gpus: bool = False) -> None:
    """Log what a job waits for, if the connected cluster has fewer free CPUs or GPUs than it needs.

    They may be those of a job that is just leaving, so this is no error.
    """
    import ray

    kind = "GPU" if gpus else "CPU"
    free = int(ray.available_resources().get(kind, 0.0))
    if free < count:
        total = int(ray.cluster_resources().get(kind, 0.0))
        _log.warning(
            "waiting for %d %s: other jobs use %d of this cluster's %d",
            count, f"{kind}s" if count > 1 else kind, total - free, total,
        )  # fmt: skip


def require_listener(host: str, port: int) -> None:
    """Check that something accepts connections at an address.

    Raises:
        OSError: nothing does within ``ANSWER_S``.
    """
    socket.create_connection((host, port), timeout=ANSWER_S).close()


def _join(address: str) -> None:
    """Connect to a cluster, with retries while its head turns the client away.

    The head starts one process per client of ``ray://`` and turns the client away if that process
    does not come up. That happens on a busy machine, and at random where gRPC acts on the fork
    (ray-project/ray#63202): the heads in infra/ are started with GRPC_ENABLE_FORK_SUPPORT=0.
    """
    import ray

    end, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionAbortedError as error:
            may_pass = any(sign in str(error) for sign in _TURNED_AWAY)
            if not may_pass or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause *= 2


def _reason(error: BaseException) -> str:
    """The error and its root cause in one line; Ray's causes hold whole tracebacks."""
    lines = [_line(error)]
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
        lines.append(_line(error))
    text = lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1]}"
    if any(sign in text for sign in _REFUSED):
        text += (
            "; a cluster with token authentication needs RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    if _CRASHED in text:
        text += "; try again, and start the cluster's head with GRPC_ENABLE_FORK_SUPPORT=0"
    return text


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[-1 if "Traceback (" in text else 0]
    return line.partition(". ")[0].strip()  # Ray's long advice follows
