"""Connecting to Ray: a private one on this machine, or a cluster by its address.

The local Ray listens on loopback, keeps Ray's token authentication on, sends no usage
statistics, has no dashboard and ends with the process that started it.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import JobError

ANSWER_S = 10.0
"""Seconds within which a cluster's address must take a connection."""
PATIENCE_S = 60.0
"""For so long a head that cannot serve a client of ``ray://`` is asked again."""
FIRST_PAUSE_S = 2.0
"""Pause after the first try, twice as long after each further one."""
_BUSY = ("Starting Ray client server failed", "Proxy failed to Connect to backend", "psutil.")
_REFUSED = ("Unauthenticated", "AuthToken", "authentication token")


@contextmanager
def ray_session(address: str | None = None, *, cpus: int | None = None) -> Iterator[None]:
    """Ray, connected; a Ray that was connected before is used as it is and left running.

    address  None starts a local Ray for the time of the block; else a running cluster's,
             as `ray.init` takes it ("auto", "ray://head:10001", "10.0.0.1:6379")
    cpus     CPUs of the local Ray; None takes this machine's

    Raises:
        JobError: Ray does not start or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        else:
            _knock(address)  # Ray itself tries for minutes
            _join(address)
    except (RayError, RuntimeError, ValueError, OSError) as error:
        raise JobError(f"cannot reach {address or 'a local Ray'}: {_reason(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that starts in the block listen on 127.0.0.1 and nowhere else.

    By default Ray's services listen on all of a Linux machine's addresses, though not on macOS
    and Windows; this is the switch between the two, which Ray reads when it is imported.
    """
    import ray._private.ray_constants as constants

    before = constants.ENABLE_RAY_CLUSTER, os.environ.get(constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    constants.ENABLE_RAY_CLUSTER = False
    os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that it starts
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before[0]
        if before[1] is None:
            del os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR]
        else:
            os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = before[1]


def _knock(address: str) -> None:
    """See whether anything listens at ``host:port`` or ``ray://host:port``.

    Raises:
        OSError: nothing does within ``ANSWER_S``.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()


def _join(address: str) -> None:
    """`ray.init` at an address.

    A head starts a process for each client of ``ray://``, and sends the client away if that does
    not come up, as may happen on a busy machine: then it is asked again.
    """
    import ray

    end, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionAbortedError as error:
            busy = any(sign in str(error) for sign in _BUSY)
            if not busy or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause *= 2


def _reason(error: BaseException) -> str:
    """What went wrong, and what that came from: Ray puts it into a cause, as a whole traceback."""
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
    return text


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[-1 if "Traceback (" in text else 0]
    return line.partition(". ")[0].strip()  # what follows is advice, and long
