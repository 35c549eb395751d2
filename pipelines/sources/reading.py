"""Read the bytes of photos, in order; remote photos are read ahead in threads."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice

from colorcore.dataset.unit import SourcePhoto
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.storage.store import StorageError
from pipelines.errors import JobError
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.lists import check_lists
from pipelines.sources.litter import APPLE_DOUBLE, is_apple_double
from pipelines.sources.source import PlannedPhoto, Source, Tally, no_photos_in
from pipelines.sources.tars import check_size, tar_photos

REMOTE_READS = 16
"""Remote photos that a task reads at a time; twice as many are requested ahead."""
AHEAD_BYTES = 128 << 20
"""Bytes of remote photos that a task holds ahead; a single larger photo is still read."""
READ_TOGETHER = 256
"""Paths that ``photos_of`` holds at a time."""


def read_photos(
    sources: Sequence[Source],
    photos: Sequence[PlannedPhoto],
    max_bytes: int,
    others: Counter[str] | None = None,
    *,
    tallies: Sequence[Tally] | Mapping[int, Tally] | None = None,
) -> Iterator[SourcePhoto]:
    """The bytes of photos and of the photos in tars, in order; remote ones are read ahead.

    A photo that is missing, too large or not a regular file is returned as its refusal. ``others``
    counts what is skipped because it is not a photo, by kind: members of tars, and AppleDouble
    files whatever their name. Without it, such a file is returned like a photo. ``tallies`` counts
    the same for each source, and its tars and files without a photo.

    Raises:
        StorageError: a store does not answer, or denies access.
    """
    others = Counter() if others is None and tallies is not None else others
    # Only remote files gain from threads: tars are streamed, local files answer at once.
    files = [photo for photo in photos if not is_tar(photo)]
    with ExitStack() as stack:
        if any(sources[photo.root].place(photo)[0].local is None for photo in files):
            ahead = stack.enter_context(_ReadAhead(sources, files, max_bytes))
            contents = iter(ahead)
        else:
            contents = (_content(sources, photo, partial(check_size, max_bytes)) for photo in files)
        for photo in photos:
            found = Tally()
            try:
                if is_tar(photo):
                    yield from tar_photos(sources, photo, max_bytes, found)
                elif is_apple_double(content := next(contents)) and others is not None:
                    found.skipped[APPLE_DOUBLE] += 1
                    found.empty += 1
                else:
                    yield SourcePhoto(photo.root, photo.source, content)
            finally:  # also if the consumer has seen enough of a tar
                if others is not None:
                    others.update(found.skipped)
                if tallies is not None:
                    tallies[photo.root].add(found)


def photos_of(
    sources: Sequence[Source],
    max_bytes: int,
    others: Counter[str],
    listed: Callable[[Sequence[PlannedPhoto]], None] = lambda _: None,
) -> Iterator[SourcePhoto]:
    """List and read all photos of some sources.

    ``others`` counts the files that are not photos, by kind, in folders and in tars. ``listed`` is
    told which paths are read next.

    Raises:
        WrongCallError, StorageError: as :func:`list_photos`.
        JobError: a source holds no photos, not even damaged ones; raised after the other sources.
    """
    check_lists(sources)
    tallies = [Tally() for _ in sources]
    paths = list_photos(sources, others, tallies=tallies)
    while photos := list(islice(paths, READ_TOGETHER)):
        listed(photos)
        yield from read_photos(sources, photos, max_bytes, others, tallies=tallies)
    if empty := no_photos_in(sources, tallies):
        more = f"; {len(empty) - 1:,} more sources have none" if len(empty) > 1 else ""
        raise JobError(f"{empty[0]}{more}; check the sources")


def refused_tar(sources: Sequence[Source], photo: SourcePhoto) -> str | None:
    """The location of the tar that a refusal is about, or None if it is about a photo."""
    # The members of tars that are read have a photo's suffix, so no other source ends like this.
    planned = PlannedPhoto(photo.root, photo.source.encode())
    refused = isinstance(photo.content, PhotoRefused) and is_tar(planned)
    return sources[photo.root].show(planned) if refused else None


def _content(
    sources: Sequence[Source], photo: PlannedPhoto, admit: Callable[[int], None]
) -> bytes | PhotoRefused:
    try:
        store, name = sources[photo.root].place(photo)
        return store.read(name, admit=admit)
    except PhotoRefused as refusal:
        return refusal
    except OSError as error:
        detail = error.strerror or str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            detail = "no such file"
        return PhotoRefused(Reason.UNREADABLE, detail)
    except ValueError as error:  # a name that no file can have
        return PhotoRefused(Reason.UNREADABLE, str(error))


class _ReadAhead:
    """Reads photos in threads, in order, at most ``AHEAD_BYTES`` ahead of the consumer.

    A thread knows a photo's size only once the store answers. It then waits in ``_admit`` until
    the bytes fit, so memory stays bounded although many requests are under way.
    """

    def __init__(
        self, sources: Sequence[Source], photos: Sequence[PlannedPhoto], max_bytes: int
    ) -> None:
        self._sources, self._photos, self._max_bytes = sources, photos, max_bytes
        self._pool = ThreadPoolExecutor(REMOTE_READS, "photos")
        self._change = threading.Condition()
        self._held: dict[int, int] = {}
        self._next = 0
        self._stopped = False

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[bytes | PhotoRefused]:
        # Results are taken in the order of submission, so one slow photo delays the ones after
        # it, but the dataset does not depend on which request is answered first.
        running: deque[Future[bytes | PhotoRefused]] = deque()
        submitted = 0
        for number in range(len(self._photos)):
            while submitted < len(self._photos) and submitted - number < 2 * REMOTE_READS:
                running.append(self._pool.submit(self._read, submitted))
                submitted += 1
            yield running.popleft().result()
            # Back here, the consumer is done with the photo: its bytes no longer count.
            with self._change:
                self._held.pop(number, None)
                self._next = number + 1
                self._change.notify_all()

    def _read(self, number: int) -> bytes | PhotoRefused:
        return _content(self._sources, self._photos[number], partial(self._admit, number))

    def _admit(self, number: int, size: int) -> None:
        """Wait until the photo fits; the next one in order always does, or all would wait."""
        check_size(self._max_bytes, size)
        with self._change:
            self._change.wait_for(
                lambda: (
                    self._stopped
                    or number <= self._next
                    or number in self._held  # counted already: the store retries
                    or sum(self._held.values()) + size <= AHEAD_BYTES
                )
            )
            if self._stopped:
                raise StorageError("reading stopped before this photo was needed")
            self._held[number] = size
