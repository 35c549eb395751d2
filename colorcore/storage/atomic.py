"""Writing files so that a reader sees the old content or the new content, never a part.

What is renamed into place also survives a power cut: the file is synced before the rename, its
folder after it. So whatever is written next may count on it. ``COLORCORE_SYNC=0`` turns this off,
for scratch disks: files are then still written in one step, but the last seconds before a power
cut may be lost, in any order.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SYNC = "COLORCORE_SYNC"
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of file systems that cannot sync: there is nothing to wait for."""


def sync_by_default() -> bool:
    """Whether this process syncs what it writes: unless ``COLORCORE_SYNC`` is 0."""
    return os.environ.get(SYNC) != "0"


def part_of(path: Path, writer: str = "") -> Path:
    """The temporary file of a file that is being written; each ``writer`` has its own."""
    return path.with_name(f".{path.name}.{writer}.part" if writer else f".{path.name}.part")


def replace_bytes(path: Path, data: bytes, *, sync: bool | None = None, writer: str = "") -> None:
    """Write to a temporary file in the same folder, then rename it; creates parent folders.

    sync    whether the file survives a power cut from now on; None means :func:`sync_by_default`
    writer  tells apart processes that may write the same file at the same time
    """
    make_folder(path.parent, sync=sync)
    part = part_of(path, writer)
    part.write_bytes(data)
    move_into_place({part: path}, sync=sync)


def move_into_place(moves: Mapping[Path, Path], *, sync: bool | None = None) -> None:
    """Rename files on the same file system, path -> target, in this order; creates parent folders.

    ``sync`` as above.
    """
    folders = list(dict.fromkeys(target.parent for target in moves.values()))
    for folder in folders:
        make_folder(folder, sync=sync)
    _together(lambda path: sync_file(path, sync=sync), moves)
    for path, target in moves.items():
        path.replace(target)
    _together(lambda folder: sync_folder(folder, sync=sync), folders)


def _together(wait: Callable[[Path], None], paths: Collection[Path]) -> None:
    # Syncs at the same time share one commit of the file system's journal.
    if len(paths) == 1:
        wait(*paths)
        return
    with ThreadPoolExecutor(max(1, len(paths))) as pool:
        list(pool.map(wait, paths))


def make_folder(folder: Path, *, sync: bool | None = None) -> None:
    """Create a folder and its parents, unless they exist. ``sync`` as above."""
    if folder.is_dir():
        return
    missing = [folder, *(parent for parent in folder.parents if not parent.exists())]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent, sync=sync)


def sync_file(path: Path, *, sync: bool | None = None) -> None:
    """Wait until a file's content is on the disk.

    Raises:
        OSError: the disk did not take all of it.
    """
    if sync_by_default() if sync is None else sync:
        # Windows syncs only what it may write to.
        _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def sync_folder(folder: Path, *, sync: bool | None = None) -> None:
    """Wait until the names in a folder are on the disk; a folder that cannot be read is skipped."""
    # Windows cannot open folders; NTFS keeps the order of renames in its own journal.
    if os.name == "nt" or not (sync_by_default() if sync is None else sync):
        return
    try:
        _sync(folder, os.O_RDONLY)
    except PermissionError:
        return


def start_writing(descriptor: int, offset: int, length: int) -> None:
    """Let the disk begin with a range of an open file, so that a later sync waits for less."""
    if hasattr(os, "posix_fadvise"):
        # Linux starts to write such pages out, and keeps them until they are written. Python has
        # no sync_file_range, which would say so in its name.
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
