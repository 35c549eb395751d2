"""Keep freed memory in the process: a step on a CPU allocates what the step before it freed."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt(3)."""
_LARGEST = 32 << 20
"""Bytes: the largest threshold that glibc takes on 64 bits; most tensors of a step are smaller."""
_PAD = 64 << 20
"""Bytes that the heap grows by at least."""


def keep_freed_memory() -> bool:
    """Tell glibc not to return freed memory to the system; returns whether it is told.

    By default glibc maps each large block anew and unmaps it when it is freed, so every activation
    of every step is zeroed by the kernel, page by page. Kept, the memory of one step serves the
    next: in fp32 a third fewer CPU seconds per photo for ``lite0``, a tenth for a U-Net; in bf16,
    whose tensors are half the size, a twelfth for a U-Net and none for ``lite0``
    (``python -m tests.benchmarks --only allocator``).
    The process stays at its peak size until it ends.

    Nothing changes where the allocator is another one, or where a variable ``MALLOC_…`` says what
    to do.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _PAD))
    return sum(int(mallopt(*setting)) for setting in settings) == len(settings)
