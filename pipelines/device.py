"""The device and the CPUs of a job with a single process."""

from __future__ import annotations

import os

from pipelines.errors import WrongCallError


def best_device() -> str:
    """``"cuda"`` if there is a GPU, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_for(asked: str | None) -> str:
    """The device that is asked for, or the best one.

    Raises:
        WrongCallError: there is no such device here.
    """
    import torch

    if asked is None:
        return best_device()
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise WrongCallError(
            f"expected a device that this machine has, such as cpu, got {asked!r} for --device"
        ) from error
    return asked


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
