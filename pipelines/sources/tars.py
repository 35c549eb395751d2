"""Read the photos inside tars, from start to end, without unpacking."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Sequence

from colorcore.dataset.unit import SourcePhoto
from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.photos.refusal import PhotoRefused, Reason
from pipelines.sources.litter import APPLE_DOUBLE, is_apple_double, litter_in
from pipelines.sources.source import PlannedPhoto, Source, Tally, kind_of

_END_BYTES = 1024
"""A complete tar ends with at least two blocks of zeros."""
_BUFFER_BYTES = 1 << 20


def tar_photos(
    sources: Sequence[Source],
    photo: PlannedPhoto,
    max_bytes: int,
    tally: Tally,
) -> Iterator[SourcePhoto]:
    """The photos in a tar, in its order; a damaged or truncated tar ends with a refusal of it.

    ``tally`` counts the members that are not photos, by kind, and a whole tar without photos.
    """
    found = 0

    def refused(reason: Reason, detail: str) -> SourcePhoto:
        return SourcePhoto(photo.root, photo.source, PhotoRefused(reason, detail))

    try:
        store, name = sources[photo.root].place(photo)
        size = store.size(name)
        with (
            store.stream(name) as file,
            tarfile.open(fileobj=file, mode="r|", bufsize=_BUFFER_BYTES) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header
                # With a damaged size, tarfile would skip on block by block, perhaps for hours.
                if member.size < 0 or tar.offset >= size + tarfile.BLOCKSIZE:
                    what = f"{_printable(member.name)} has {member.size:,} bytes by its header"
                    raise tarfile.ReadError(f"{what}, the tar has {size:,}")
                suffix = posixpath.splitext(member.name)[1].lower()
                if member.isdir():
                    continue
                kind = litter_in(member.name)
                if kind is None and not (member.isreg() and suffix in PHOTO_SUFFIXES):
                    kind = kind_of(member.name) if member.isreg() else _not_a_file(member)
                if kind is not None:
                    tally.skipped[_printable(kind)] += 1
                    continue
                content = _member(tar, member, max_bytes)
                if is_apple_double(content):
                    tally.skipped[APPLE_DOUBLE] += 1
                    continue
                place = f"{photo.source}#{_printable(member.name)}"
                yield SourcePhoto(photo.root, place, content)
                found += 1
            end = tar.offset
        ending = store.read_range(name, end, _BUFFER_BYTES)
    except (tarfile.TarError, EOFError) as error:
        reason = Reason.TRUNCATED if found else Reason.UNREADABLE
        yield refused(reason, f"the tar is damaged after {found} photos: {error}")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        yield refused(Reason.UNREADABLE, getattr(error, "strerror", None) or str(error))
    else:
        # tarfile ends at the first block of zeros, and at a missing end just as silently.
        if ending.strip(b"\0"):
            what = f"expected its end or a header at byte {end:,}"
            yield refused(Reason.TRUNCATED, f"the tar is damaged after {found} photos: {what}")
        elif len(ending) < _END_BYTES:
            yield refused(Reason.TRUNCATED, f"the tar ends early, after {found} photos")
        elif not found:
            tally.empty += 1


def check_size(max_bytes: int, size: int) -> None:
    """Refuse a photo of more than ``max_bytes``.

    Raises:
        PhotoRefused: it is larger.
    """
    if size > max_bytes:
        raise PhotoRefused(Reason.TOO_LARGE, f"{size:,} bytes, expected at most {max_bytes:,}")


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | PhotoRefused:
    try:
        check_size(max_bytes, member.size)
    except PhotoRefused as refusal:
        return refusal
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} has {len(data):,} of {member.size:,} bytes")
    return data


def _not_a_file(member: tarfile.TarInfo) -> str:
    return "(links in tars)" if member.issym() or member.islnk() else "(devices and pipes in tars)"


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
