"""A bounded folder of shards fetched from a remote dataset, shared by processes.

Each machine fetches a shard once: processes that want the same shard wait for the one that is
fetching it. That process holds a file lock, which the kernel drops if it dies, so nothing has to be
cleaned up by hand. A reader sees a shard whole or not at all. When the folder would exceed its
limit, the least recently used shards are evicted; a process that has one of them mapped keeps its
pages until it maps another shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colorcore.dataset.layout import DatasetError, index_name
from colorcore.storage.atomic import sync_file
from colorcore.storage.local import cache_folder
from colorcore.storage.locks import lock, try_lock
from colorcore.storage.store import Store
from colorcore.waiting import waiting_for

DEFAULT_BYTES = 50 * 10**9
_POLL_S = 0.05


def default_bytes() -> int:
    """``COLORCORE_CACHE_GB``, or 50 GB.

    Raises:
        DatasetError: the variable is not a positive number.
    """
    given = os.environ.get("COLORCORE_CACHE_GB")
    if given is None:
        return DEFAULT_BYTES
    try:
        size = int(float(given) * 10**9)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise DatasetError(f"expected COLORCORE_CACHE_GB to be a positive number, got {given!r}")
    return size


def gigabytes(size: int) -> str:
    """A size in GB to three digits, never rounded down: users copy it into COLORCORE_CACHE_GB."""
    return f"{size / 1e9 * 1.005:.3g} GB"


class ShardCache:
    """The cache of one dataset in the version that ``fingerprint`` identifies.

    ``limit`` bounds the bytes of the whole folder, for all datasets together and including shards
    that are being fetched. Only tests pass ``folder`` and ``limit``; users set the environment.
    """

    def __init__(
        self,
        dataset: Store,
        fingerprint: str,
        *,
        folder: Path | None = None,
        limit: int | None = None,
    ) -> None:
        self._dataset = dataset
        self.folder = folder or cache_folder()
        self.limit = limit or default_bytes()
        identity = hashlib.sha256(f"{dataset.show()}\n{fingerprint}".encode()).hexdigest()[:16]
        self._mine = self.folder / identity

    def path(self, shard: str, size: int) -> Path:
        """The local copy of a shard of ``size`` bytes, fetched if it is missing.

        Raises:
            DatasetError: the shard is gone, has another size, or is larger than the cache.
            StorageError: the store does not answer.
        """
        target = self._mine / shard
        # Nearly every call ends here, without a lock: a shard appears by a rename, so it is whole.
        # It may be evicted before the caller opens it; the caller then asks again.
        if _touched(target):
            return target
        with contextlib.ExitStack() as stack:
            with waiting_for(f"another process that fetches {self._dataset.show(shard)}"):
                stack.enter_context(lock(target.with_suffix(".lock")))
            if not _touched(target):  # another process may have fetched it while this one waited
                self._fetch(shard, target, size)
        return target

    def holds(self, shard: str) -> bool:
        """Whether the cache has a copy of the shard now."""
        return (self._mine / shard).exists()

    def evict(self, shard: str) -> None:
        """Remove the copy of a shard, because it is damaged."""
        (self._mine / shard).unlink(missing_ok=True)

    def _fetch(self, shard: str, target: Path, size: int) -> None:
        # The name carries the final size, so that other processes can count the whole shard
        # against the limit while its first bytes arrive.
        part = target.with_suffix(f".{size}.part")
        try:
            self._make_room(size, part)
            self._dataset.fetch(shard, part)
            if (found := part.stat().st_size) != size:
                raise self._damaged(shard, f"has {found:,} bytes, expected {size:,}")
            # The size is checked once, here: after a power cut, a file may have it and only zeros.
            sync_file(part)
            # Counting takes the same lock; otherwise a process that lists the folder during the
            # rename could miss the file under both names, and the cache would exceed its limit.
            with lock(self.folder / "lock"):
                part.replace(target)
        except FileNotFoundError as error:
            raise self._damaged(shard, "is gone") from error
        finally:
            part.unlink(missing_ok=True)

    def _damaged(self, shard: str, what: str) -> DatasetError:
        unit = int(shard.rpartition("/")[2].partition("-")[0])
        return DatasetError(
            f"the shard {self._dataset.show(shard)} {what}; remove "
            f"{self._dataset.show(index_name(unit))}, then run the same cc shard command again"
        )

    def _make_room(self, size: int, part: Path) -> None:
        """Evict the least recently used shards until ``size`` more bytes fit, and reserve them."""
        if size > self.limit:
            raise DatasetError(
                f"expected a cache of at least {gigabytes(size)}, one shard's size, "
                f"got {gigabytes(self.limit)}; raise COLORCORE_CACHE_GB"
            )
        while True:
            with lock(self.folder / "lock"):
                # We hold this shard's lock, so an existing part is left from a killed process.
                part.unlink(missing_ok=True)
                files = sorted(_files(self.folder))
                used = sum(file.size for file in files)
                for file in files:
                    if used + size <= self.limit:
                        break
                    # A part that is still being written must stay: its writer counts on the room.
                    if file.path.suffix == ".tar" or _abandoned(file.path):
                        file.path.unlink(missing_ok=True)
                        used -= file.size
                if used + size <= self.limit:
                    part.touch()  # reserves the room: the size is in its name
                    return
            # Shards that others are fetching fill the cache. Wait without the lock until they are
            # complete and can be evicted.
            time.sleep(_POLL_S)


@dataclass(frozen=True, order=True, slots=True)
class _File:
    used_ns: int
    path: Path
    size: int


def _touched(path: Path) -> bool:
    """Whether a shard exists; if it does, mark it as used now."""
    try:
        os.utime(path)  # mtime, not atime: file systems are often mounted with noatime
    except FileNotFoundError:
        return False
    return True


def _files(folder: Path) -> Iterator[_File]:
    """Cached shards, and shards being fetched, which count with their final size."""
    # COLORCORE_CACHE may be a folder with other content, which must be neither counted nor evicted.
    for path in folder.glob(f"{'[0-9a-f]' * 16}/*/*"):
        if path.suffix not in {".tar", ".part"}:
            continue
        with contextlib.suppress(FileNotFoundError):  # evicted or renamed since it was listed
            status = path.stat()
            size = status.st_size if path.suffix == ".tar" else int(path.suffixes[-2][1:])
            yield _File(status.st_mtime_ns, path, size)


def _abandoned(part: Path) -> bool:
    """Whether the process that was fetching into this file is gone: then its lock is free."""
    with try_lock(part.with_name(part.name.partition(".")[0] + ".lock")) as free:
        return free
