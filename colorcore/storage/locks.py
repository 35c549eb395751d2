"""File locks between processes, which the kernel drops when the process that holds one dies.

No lock has to be cleaned up by hand, so a killed worker never blocks the next one. A lock belongs
to an open file: a second lock on the same path waits or fails in the same process too. Locks are
advisory and hold on one machine; some network file systems offer none and raise OSError.

Windows has no ``flock``: there ``msvcrt`` locks the file's first byte. It cannot open folders, so
locking one raises PermissionError.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.05


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold ``path`` locked, waiting for whoever holds it; a missing file is created.

    Raises:
        OSError: the path cannot be opened, or its file system has no locks.
    """
    with _opened(path) as descriptor:
        _take(descriptor, wait=True)
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a file or folder locked if nobody else does: yields whether it is held now.

    Raises:
        OSError: the path cannot be opened, or its file system has no locks.
    """
    with _opened(path) as descriptor:
        yield _take(descriptor, wait=False)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    if path.is_dir():
        descriptor = os.open(path, os.O_RDONLY)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # and with it goes the lock


# The modules are imported here, not at the top: neither exists on every system, and the loader,
# which uses these locks for remote datasets only, has to import everywhere.
if sys.platform == "win32":

    def _take(descriptor: int, *, wait: bool) -> bool:
        import msvcrt

        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            except PermissionError:  # held; LK_LOCK would wait too, but for ten seconds only
                if not wait:
                    return False
                time.sleep(_POLL_S)
            else:
                return True

else:

    def _take(descriptor: int, *, wait: bool) -> bool:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
