"""Locks between processes, and the claim by which an output has one writer.

File locks belong to the kernel, which drops them when the process that holds one dies.

No lock has to be cleaned up by hand, so a killed worker never blocks the next one. A lock belongs
to an open file: a second lock on the same path waits or fails in the same process too. Locks are
advisory and hold on one machine; some network file systems offer none and raise OSError.

A :func:`claim` says who writes an output, in its file ``.writer``. Locally a lock on the folder
decides. Object stores have no locks, nor have some network file systems: there the writer renews
``.writer`` every few seconds, and one that has not for :data:`LEASE_S` is held to be dead.

Windows has no ``flock``: there ``msvcrt`` locks the file's first byte. It cannot open folders, so
locking one raises PermissionError.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from colorcore.storage.atomic import make_folder
from colorcore.storage.store import LocationError, StorageError, Store

_log = logging.getLogger(__name__)
WRITER = ".writer"
RENEW_S = 5.0
"""Seconds between two renewals of a claim where there are no locks."""
LEASE_S = 20.0
"""Seconds without a renewal after which a writer is held to be dead."""
SETTLE_S = 1.0
"""Seconds after which a new writer makes sure that no other one came at the same moment."""
_POLL_S = 0.05


class BusyError(LocationError):
    """Another process writes this output; the message names it."""


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


def require_writable(out: Store) -> None:
    """Check that a local output can be written, before anything slow starts; creates nothing.

    Raises:
        LocationError: it cannot.
    """
    if out.local is None:
        return
    place = out.local.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Store, error: OSError) -> LocationError:
    why = error.strerror or error
    return LocationError(f"cannot write to {out.show()}: {why}; choose another output")


# -- one writer per output ------------------------------------------------------------------------


class Claim:
    """The right to write to an output; see :func:`claim`."""

    def check(self) -> None:
        """Make sure that no other process has taken over.

        Raises:
            BusyError: one has, because this one did not renew its claim in time.
            StorageError: the store does not answer.
        """


@contextmanager
def claim(out: Store, command: str) -> Iterator[Claim]:
    """Be the only writer of an output during the block; creates a local folder.

    command  for the error of whoever comes second, such as ``cc train``

    Raises:
        BusyError: another process writes to it.
        LocationError: the folder cannot be created or written.
        StorageError: the store does not answer, or refuses.
    """
    with ExitStack() as stack:
        if out.local is None:
            yield stack.enter_context(_leased(out, command))
            return
        is_new = not out.local.exists()
        try:
            make_folder(out.local)
            held = _is_held(out.local, stack)
            if held is True:
                out.write(WRITER, json.dumps(_writer(command)).encode())
        except OSError as error:
            raise _unwritable(out, error) from error
        if held is None:
            yield stack.enter_context(_leased(out, command))
            return
        if not held:
            raise BusyError(_busy(out, _read_writer(out)))
        if is_new:
            stack.callback(_remove_empty, out.local)
        stack.callback(out.remove, WRITER)
        yield Claim()


def _remove_empty(folder: Path) -> None:
    """Remove a folder that was created for nothing, because the call was refused."""
    with suppress(OSError):
        folder.rmdir()


def _is_held(folder: Path, stack: ExitStack) -> bool | None:
    """Whether this process holds the folder's lock now; None on a file system without locks."""
    try:
        return stack.enter_context(try_lock(folder))
    except PermissionError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise


_owners: set[str] = set()
"""The claims that this process renews."""


class _Lease(Claim):
    """A claim that its owner renews in a thread."""

    def __init__(self, out: Store, command: str) -> None:
        self._out = out
        self._writer = {**_writer(command), "owner": secrets.token_hex(8), "renewed": 0}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="claim", daemon=True)
        _owners.add(self._writer["owner"])
        self._write()

    def start(self) -> None:
        """Renew the claim from now on."""
        self._thread.start()

    def check(self) -> None:
        found = _read_writer(self._out)
        if found is not None and found.get("owner") != self._writer["owner"]:
            raise BusyError(_busy(self._out, found))

    def close(self) -> None:
        """Renew it no more, and give it up."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        _owners.discard(self._writer["owner"])
        # A store that is gone must not hide why the block ended; the claim runs out by itself.
        with suppress(StorageError, OSError):
            found = _read_writer(self._out)
            if found is not None and found.get("owner") == self._writer["owner"]:
                self._out.remove(WRITER)

    def _renew(self) -> None:
        while not self._closing.wait(RENEW_S):
            # What fails now is tried again; whoever has taken over is not disturbed.
            with suppress(StorageError, OSError):
                self.check()
                self._writer["renewed"] += 1
                self._write()

    def _write(self) -> None:
        self._out.write(WRITER, json.dumps(self._writer).encode())


@contextmanager
def _leased(out: Store, command: str) -> Iterator[Claim]:
    """The clocks of two machines may differ, so a dead writer is recognized by waiting."""
    found = _read_writer(out)
    if found is not None and not _is_dead_here(found):
        _log.warning(
            "waiting up to %.0f s, in case %s still writes to %s", LEASE_S, _who(found), out.show()
        )
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end:
            time.sleep(min(1.0, LEASE_S / 10))
            if (now := _read_writer(out)) != found:
                raise BusyError(_busy(out, now or found))
    lease = _Lease(out, command)
    try:
        time.sleep(SETTLE_S)
        lease.check()
        lease.start()
        yield lease
    finally:
        lease.close()


def _writer(command: str) -> dict[str, Any]:
    return {"command": command, "host": socket.gethostname(), "pid": os.getpid()}


def _read_writer(out: Store) -> dict[str, Any] | None:
    """Who writes an output, as far as its file says so; None without one."""
    try:
        found = json.loads(out.read(WRITER))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead_here(writer: dict[str, Any]) -> bool:
    """Whether the writer was a process of this machine that is gone."""
    pid = writer.get("pid")
    if writer.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return writer.get("owner") not in _owners
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _busy(out: Store, writer: dict[str, Any] | None) -> str:
    return (
        f"{_who(writer or {})} is writing to {out.show()}; wait for it to end, or choose another "
        "output"
    )


def _who(writer: dict[str, Any]) -> str:
    who = str(writer.get("command", "another process"))
    return f"{who} (process {writer['pid']} on {writer.get('host')})" if "pid" in writer else who


# -- the locks themselves --------------------------------------------------------------------------


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
