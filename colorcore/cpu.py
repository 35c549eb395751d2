"""What a CPU is told, and asked, before a network runs on it."""

from __future__ import annotations

import os

WAITING = "OMP_WAIT_POLICY"
"""OpenMP's variable; libgomp reads it once, when torch loads it."""
BF16_SETS = ("avx512_bf16", "amx_bf16")
"""Instruction sets with products of bf16 numbers. AVX-512 alone lacks them: bf16 is converted."""


def wait_passively() -> None:
    """Make OpenMP threads that wait sleep, unless the user's environment says otherwise.

    Call it before torch is imported; child processes inherit it. By default a thread that waits
    for the others spins, and takes the core from the thread it waits for as soon as anything else
    runs: a step of a U-Net (32 channels, 16 photos of 128 px, two threads on two cores) took 12.3
    to 13.2 CPU seconds next to a busy process, instead of 8.5 to 9.5. On an idle machine the step
    takes as long either way. Steps of a few milliseconds get slower, by up to the time that waking
    the threads takes.
    """
    os.environ.setdefault(WAITING, "PASSIVE")


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers, which oneDNN's convolutions then use.

    False on an older torch, which cannot tell, and on Arm, where nobody has measured it.
    """
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask is not None and any(ask().get(name) for name in BF16_SETS)


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
