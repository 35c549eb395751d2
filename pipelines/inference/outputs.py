"""Where commands may write: never onto a source photo, nor onto a file that is not their own."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from colorcore.photos.write import COLORIZED, DRAWN, PICTURE_SUFFIXES, made_by
from colorcore.storage.local import LocalStore, identity
from colorcore.storage.locks import require_writable
from pipelines.errors import WrongCallError
from pipelines.sources.listing import list_photos
from pipelines.sources.source import PlannedPhoto, Source, open_sources

Identity = tuple[int, int]
"""Device and inode: the same for every path of a file, through links and names in another case."""

PAGE_SUFFIXES = frozenset({".html", ".htm"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FAILING_DISK = _FULL | {errno.EROFS, errno.EIO}
"""Errors that are likely to hit the next picture too."""
_TAKEN = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR})


def _identity(path: str | Path) -> Identity | None:
    """A file's device and inode; None if there is no file."""
    try:
        return identity(path)
    except (OSError, ValueError):
        return None


# -- folders of pictures ---------------------------------------------------------------------------


class OutFolder:
    """The ``--out`` of `cc colorize`; refuses to write where the originals are.

    A folder that does not exist yet holds nothing and costs no checks.
    """

    def __init__(self, path: Path, sources: Sequence[Source]) -> None:
        """Refuse a folder that holds a source, or whose tree contains one.

        Raises:
            WrongCallError: it is such a folder, or no folder.
        """
        self._path, self._sources = path, sources
        self._identity = _identity(path)
        self._passed: set[str] = set()
        if self._identity is None:
            return
        if not path.is_dir():
            raise WrongCallError(f"expected a folder for --out, found the file {path}; choose "
                                 "another --out")  # fmt: skip
        for source in sources:
            top = source.store.local
            if top is not None and not source.names_photos:
                self._refuse_if_below(str(top), str(top / source.name if source.name else top))

    def refuse_originals(
        self,
        planned: Sequence[PlannedPhoto],
        targets: Iterable[str],
        folders: Iterable[str],
        *,
        overwrite: bool,
    ) -> None:
        """Refuse if an original lies in this folder's tree, or is one of the files to be written.

        ``targets`` are the pictures to be written, ``folders`` those that receive the pictures of
        tars. Costs two calls of the file system per photo, and one per target.

        Raises:
            WrongCallError: a photo lies there, or a target is a photo.
        """
        if self._identity is None:
            return
        for path in self._local(planned):
            self._refuse_if_below(os.path.dirname(path), path)  # noqa: PTH120
            if os.path.islink(path):  # noqa: PTH114
                self._refuse_if_below(os.path.dirname(os.path.realpath(path)), path)  # noqa: PTH120
        existing = dict(_existing(targets, folders))
        if not existing:
            return
        for path in self._local(planned):
            if (target := existing.get(_identity(path) or (0, 0))) is not None:
                self._refuse(path, target)
        if overwrite:
            # The listing left this folder out, but it may lie among the photos and hold some.
            for path in self._local(list_photos(self._sources, Counter())):
                target = existing.get(_identity(path) or (0, 0))
                if target is not None and not made_by(Path(target), COLORIZED):
                    self._refuse(path, target)

    def _local(self, photos: Iterable[PlannedPhoto]) -> Iterator[str]:
        return (path for photo in photos if (path := local_path(self._sources, photo)) is not None)

    def _refuse_if_below(self, folder: str, original: str) -> None:
        if folder in self._passed:
            return
        self._passed.add(folder)
        at = os.path.realpath(folder)
        while True:
            if _identity(at) == self._identity:
                raise WrongCallError(
                    f"expected an --out without the originals, found {_shown(original)} in "
                    f"{self._path}; choose another folder, e.g. --out {self._path / 'colorized'}"
                )
            at, below = os.path.dirname(at), at  # noqa: PTH120
            if at == below or at in self._passed:
                return
            self._passed.add(at)

    @staticmethod
    def _refuse(original: str, target: str) -> None:
        raise WrongCallError(
            f"expected to write no original, found that {_shown(target)} is the photo "
            f"{_shown(original)}; choose another --out"
        )


def _existing(targets: Iterable[str], folders: Iterable[str]) -> Iterator[tuple[Identity, str]]:
    for target in targets:
        if (found := _identity(target)) is not None:
            yield found, target
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                paths = [entry.path for entry in entries]
        except OSError:
            continue
        for path in paths:
            if (found := _identity(path)) is not None:
                yield found, path


def local_path(sources: Sequence[Source], photo: PlannedPhoto) -> str | None:
    """A photo's path, if it is a local file."""
    source = sources[photo.root]
    if source.names_photos and b"://" in photo.path and not photo.path.startswith(b"file://"):
        return None
    store, name = source.place(photo)
    return None if store.local is None else os.path.join(store.local, name)  # noqa: PTH118


def _shown(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def why_not_written(target: Path, error: OSError) -> str:
    """Why a picture could not be written, and what to do."""
    said = error.strerror or str(error) or type(error).__name__
    shown = _shown(str(target))
    if error.errno in _FULL:
        return f"cannot write {shown}: {said}; free some space and run the same command again"
    if error.errno == errno.ENAMETOOLONG:
        return f"cannot write {shown}: {said}; rename the photo, or choose a shorter --out"
    if error.errno in _TAKEN:
        return (
            f"cannot write {shown}: another photo's picture or folder has that name; "
            "rename the photo, or choose another --out"
        )
    return f"cannot write {shown}: {said}; choose another --out"


# -- single drawings -------------------------------------------------------------------------------


@contextmanager
def drawing(path: Path, failed: list[str]) -> Iterator[None]:
    """Keep the error of a drawing that the block writes: the figures are there all the same.

    failed  receives one line that names the file
    """
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error) or type(error).__name__
        failed.append(f"cannot write {_shown(str(path))}: {said}; choose another file")


def check_drawing(
    path: Path | None,
    option: str,
    sources: Sequence[str | Path] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Check the file that receives a plot or contact sheet, before anything is read.

    An earlier drawing is replaced, any other file only with ``overwrite``, and a photo of
    ``sources`` never.

    Raises:
        WrongCallError: the file may not be replaced, or its suffix is none of a picture.
        LocationError: its folder cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        expected = ", ".join(PICTURE_SUFFIXES)
        raise WrongCallError(f"expected a name ending in {expected} for {option}, got {path}")
    require_writable(LocalStore(path.parent))
    if not path.is_symlink() and not path.exists():
        return
    if path.is_dir():
        raise WrongCallError(f"expected a file for {option}, found the folder {path}; add a name")
    own = made_by(path, DRAWN)
    this = _identity(path)
    if this is not None and (own or overwrite):
        among = [source for source in open_sources(sources) if source.store.local is not None]
        if own:  # an earlier contact sheet may lie in a folder of photos
            among = [source for source in among if source.kind == "file"]
        for photo in list_photos(among, Counter()):
            place = local_path(among, photo)
            if place is not None and _identity(place) == this:
                raise WrongCallError(
                    f"expected another file for {option}, found that {path} is the photo "
                    f"{_shown(place)}; choose another name"
                )
    if not own and not overwrite:
        raise WrongCallError(
            f"expected a new file for {option}, found {path}, which cc has not drawn; choose "
            "another name, or replace it with --overwrite"
        )


def check_page(
    path: Path | None,
    option: str,
    is_own: Callable[[Path], bool],
    *,
    overwrite: bool | None = None,
) -> None:
    """Check the HTML file that receives a page, before anything is read.

    An earlier page of the same kind is replaced, by which ``is_own`` knows it, any other file only
    with ``overwrite``; None: the command has no such option for pages.

    Raises:
        WrongCallError: the file may not be replaced, or its suffix is not that of a page.
        LocationError: its folder cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() not in PAGE_SUFFIXES:
        raise WrongCallError(f"expected a name ending in .html for {option}, got {path}")
    require_writable(LocalStore(path.parent))
    if path.is_dir():
        raise WrongCallError(f"expected a file for {option}, found the folder {path}; add a name")
    if path.exists() and not overwrite and not is_own(path):
        more = "" if overwrite is None else ", or replace it with --overwrite"
        raise WrongCallError(
            f"expected a new file for {option}, found {path}, which cc has not written; choose "
            f"another name{more}"
        )


def check_table(path: Path, header: str, *, overwrite: bool = False) -> None:
    """Check the CSV file written next to a drawing, which is recognized by its first line.

    Raises:
        WrongCallError: there is another file, and ``overwrite`` is not given.
    """
    if overwrite or not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(header)) != header.encode():
            raise WrongCallError(
                f"expected a new file for the numbers, found {path}, which cc has not written; "
                "choose another --picture, or replace it with --overwrite"
            )
