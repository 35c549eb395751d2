"""A bounded folder of shards fetched from a remote dataset, shared by processes.

A shard is fetched once a machine: processes that want the same one wait for the one that
fetches it. A file lock is held meanwhile, and the kernel drops the lock of a process that dies,
so nothing has to be cleaned by hand. A file is there whole or not at all. When the folder
would grow over its bound, the shards that were used longest ago go first; a process that has one
of them mapped keeps its pages until it maps another one.
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
from colorcore.storage.locks import lock, try_lock
from colorcore.storage.store import Store

DEFAULT_BYTES = 50 * 10**9
_POLL_S = 0.05


def default_folder() -> Path:
    """``COLORCORE_CACHE``, or ``colorcore`` in the user's cache folder."""
    if given := os.environ.get("COLORCORE_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "colorcore"


def default_bytes() -> int:
    """``COLORCORE_CACHE_GB``, or 50 GB.

    Raises:
        DatasetError: the variable is no positive number.
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
    """A size in GB to three digits, never too small."""
    return f"{size / 1e9 * 1.005:.3g} GB"


class ShardCache:
    """The cache of one dataset, of the state that ``fingerprint`` names.

    ``limit`` bounds the whole folder, all datasets together; what is being fetched counts.
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
        self.folder = folder or default_folder()
        self.limit = limit or default_bytes()
        identity = hashlib.sha256(f"{dataset.show()}\n{fingerprint}".encode()).hexdigest()[:16]
        self._mine = self.folder / identity

    def path(self, shard: str, size: int) -> Path:
        """The local copy of a shard of ``size`` bytes, fetched if need be.

        Raises:
            DatasetError: the shard is gone, of another size, or larger than the cache.
            StorageError: the store does not answer.
        """
        target = self._mine / shard
        if _touched(target):
            return target
        with lock(target.with_suffix(".lock")):
            if not _touched(target):  # another process may have fetched it meanwhile
                self._fetch(shard, target, size)
        return target

    def holds(self, shard: str) -> bool:
        """Whether a shard's copy is there now."""
        return (self._mine / shard).exists()

    def _fetch(self, shard: str, target: Path, size: int) -> None:
        part = target.with_suffix(f".{size}.part")
        try:
            self._make_room(size, part)
            self._dataset.fetch(shard, part)
            if (found := part.stat().st_size) != size:
                raise self._damaged(shard, f"has {found:,} bytes, its index says {size:,}")
            with lock(self.folder / "lock"):  # so that no count misses it under both names
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
        """Drop the shards used longest ago until ``size`` more bytes fit, and reserve them."""
        if size > self.limit:
            raise DatasetError(
                f"expected a cache of at least {gigabytes(size)}, one shard's size, "
                f"got {gigabytes(self.limit)}; set COLORCORE_CACHE_GB higher"
            )
        while True:
            with lock(self.folder / "lock"):
                part.unlink(missing_ok=True)  # of a process that was killed
                files = sorted(_files(self.folder))
                used = sum(file.size for file in files)
                for file in files:
                    if used + size <= self.limit:
                        break
                    if file.path.suffix == ".tar" or _abandoned(file.path):
                        file.path.unlink(missing_ok=True)
                        used -= file.size
                if used + size <= self.limit:
                    part.touch()  # its name says how much it will take
                    return
            time.sleep(_POLL_S)  # what others are fetching fills the cache; soon it can go


@dataclass(frozen=True, order=True, slots=True)
class _File:
    used_ns: int
    path: Path
    size: int


def _touched(path: Path) -> bool:
    """Whether a shard is there; if so it counts as used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _files(folder: Path) -> Iterator[_File]:
    """The shards in the cache, and those that are being fetched at the size they will have."""
    for path in folder.glob(f"{'[0-9a-f]' * 16}/*/*"):  # what else is there is not ours
        if path.suffix not in {".tar", ".part"}:
            continue
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            status = path.stat()
            size = status.st_size if path.suffix == ".tar" else int(path.suffixes[-2][1:])
            yield _File(status.st_mtime_ns, path, size)


def _abandoned(part: Path) -> bool:
    """Whether nobody is fetching into this file any more: then its lock is free."""
    with try_lock(part.with_name(part.name.partition(".")[0] + ".lock")) as free:
        return free
