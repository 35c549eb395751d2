"""Connecting to Ray: a private one on this machine, or a cluster by its address.

The local Ray listens on loopback, keeps Ray's token authentication on, sends no usage
statistics, has no dashboard and ends with the process that started it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import JobError


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

    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or "a local Ray"
        raise JobError(f"cannot reach {where}: {_first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
