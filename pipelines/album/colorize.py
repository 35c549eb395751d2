"""The job of `cc colorize`: photos in, colourized photos out; a bad file never stops it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from colorcore.allocator import keep_freed_memory
from colorcore.cpu import usable_cpus
from colorcore.storage.location import open_store
from colorcore.storage.locks import claim
from pipelines.album.cluster import colorize_on_cluster
from pipelines.album.finishing import Done, Finish
from pipelines.album.names import Names, files_of, relative, versions
from pipelines.album.painting import Painting, Work
from pipelines.album.settings import DEFAULTS, ColorizeReport, ColorizeSettings
from pipelines.album.works import Item, Works
from pipelines.errors import JobError, WrongCallError
from pipelines.inference.knobs import open_colorizer
from pipelines.inference.outputs import OutFolder, check_page, why_not_written
from pipelines.pages.before_after import BeforeAfterPage, is_page
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.lists import check_lists
from pipelines.sources.patterns import expand_globs
from pipelines.sources.source import PlannedPhoto, Source, Tally, no_photos_in, open_sources

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer


def colorize_photos(
    model: str | Path,
    photos: Sequence[str],
    out: Path,
    settings: ColorizeSettings = DEFAULTS,
    *,
    address: str | None = None,
    report: ColorizeReport | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ColorizeReport:
    """Colourize photos and folders of photos at their own resolution and depth.

    A single photo becomes OUT/name.jpg; a folder keeps its tree below OUT; the photos of a tar
    become OUT/tar/name.jpg. A picture has the format of its photo, or PNG where no picture can be
    written so. Photos that differ only in their suffix keep it (``a.jpg.png``) where their pictures
    would have the same name, and pictures whose names differ only in case are numbered. An existing
    picture is kept unless ``overwrite`` is set; an original never is one of the files written.
    Holds the list of photos, which is fine up to 10⁶. ``report`` is filled while the job runs, for
    callers that want it although the job fails or is interrupted.

    With the ``address`` of a Ray cluster its nodes do the work; they must see the photos and
    ``out`` by the same names. The model is sent to them.

    Raises:
        CheckpointError: ``model`` is not a checkpoint.
        WrongCallError: a photo or folder is missing, ``out`` holds originals, the model has no
            such setting, or a page is asked of a cluster.
        JobError: a source holds no photos, which is raised after the others are done; or the disk
            is full; or the cluster cannot be reached.
        StorageError: a store of photos does not answer.
        BusyError: another process writes to ``out``.
    """
    report = ColorizeReport(out) if report is None else report
    if address is not None and settings.page is not None:
        raise WrongCallError(
            "expected no --before-after with --address: a page holds a few hundred photos; make "
            "one of some of them without --address"
        )
    check_page(settings.page, "--before-after", is_page)
    try:
        sources = open_sources(expand_globs(photos, out))
    except WrongCallError:
        open_colorizer(model)  # if that is missing too, it is reported first
        raise
    folder = OutFolder(out, sources)
    check_lists(sources)
    tallies = [Tally() for _ in sources]
    planned = list(list_photos(sources, report.ignored, skip=open_store(out), tallies=tallies))
    places = [relative(sources[photo.root], photo) for photo in planned]
    names = Names(out if address is None else out.absolute(), settings.suffix, places)
    targets = [
        None if is_tar(photo) else names.target(place, "")
        for photo, place in zip(planned, places, strict=True)
    ]
    tars = [
        str(names.folder(place))
        for photo, place in zip(planned, places, strict=True)
        if is_tar(photo)
    ]
    pictures = [
        str(path)
        for target in targets
        if target is not None
        for version in versions(target, settings.samples)
        for path in files_of(version)
    ]
    folder.refuse_originals(planned, pictures, tars, overwrite=settings.overwrite)
    colorizer = _colorizer(model, settings if address is None else replace(settings, device="cpu"))
    if not planned:
        _refuse_empty(sources, tallies)
    report.decoding = colorizer.decoding
    works = Works(sources, tallies, names, settings, report)
    report.left = len(planned)
    total = len(planned)
    items = _items(sources, zip(planned, targets, strict=True))
    with claim(open_store(out), "cc colorize"):
        if address is None:
            _colorize_here(colorizer, works, items, lambda done: on_progress(done, total))
        else:
            in_tars = _items(sources, ((photo, None) for photo in planned if is_tar(photo)))
            colorize_on_cluster(
                address, colorizer, works, items, in_tars, lambda done: on_progress(done, total)
            )
    on_progress(total, total)
    _refuse_empty(sources, tallies)
    return report


def _items(
    sources: Sequence[Source], photos: Iterable[tuple[PlannedPhoto, Path | None]]
) -> Iterator[Item]:
    return (Item(photo, sources[photo.root].show(photo), target) for photo, target in photos)


def _colorize_here(
    colorizer: Colorizer, works: Works, items: Iterator[Item], on_progress: Callable[[int], None]
) -> None:
    keep_freed_memory()  # which each photo needs anew
    settings = works.settings
    with _before_after(settings.page, works.report) as page:
        finish = Finish(settings.suffix, settings.strength, settings.side_by_side, page is not None)
        painting = Painting(
            colorizer,
            settings.limits,
            finish,
            threads=settings.threads or usable_cpus(),
            force=settings.force,
        )
        painting.run(works.works(items, on_progress, page), lambda done: works.record(done, page))


def _colorizer(model: str | Path, settings: ColorizeSettings) -> Colorizer:
    colorizer = open_colorizer(
        model, settings.device, temperature=settings.temperature, chroma=settings.chroma
    )
    try:
        return colorizer.with_versions(settings.samples)
    except ValueError as error:
        raise WrongCallError(f"--samples: {error}") from error


@contextmanager
def _before_after(path: Path | None, report: ColorizeReport) -> Iterator[BeforeAfterPage | None]:
    """The page of the job, if there is one; if it cannot be finished, the report says so."""
    if path is None:
        yield None
        return
    page = BeforeAfterPage(path).__enter__()
    try:
        yield page
    except BaseException as error:  # of the job, so nothing of the page's
        page.__exit__(type(error), error, error.__traceback__)
        raise
    try:
        page.__exit__(None, None, None)
    except OSError as error:  # the pictures do not need it
        report.page_error = why_not_written(path, error)


def _refuse_empty(sources: Sequence[Source], tallies: Sequence[Tally]) -> None:
    if empty := no_photos_in(sources, tallies):
        more = f"; {len(empty) - 1:,} more sources have none" if len(empty) > 1 else ""
        raise JobError(f"{empty[0]}{more}; check the sources")


def colorize_photo(model: str | Path, photo: BinaryIO, settings: ColorizeSettings) -> bytes:
    """The picture of one photo, from its file's bytes to those of a picture.

    Raises:
        CheckpointError: ``model`` is not a checkpoint.
        WrongCallError: several versions, a page or times are asked for, of which a stream has none;
            or the model has no such setting.
        JobError: the photo cannot be read or encoded, or has colours already.
    """
    if settings.samples > 1 or settings.page is not None or settings.keep_times:
        raise WrongCallError(
            "expected one picture for standard output; --samples, --before-after and --keep-times "
            "need files: pass the photo's name"
        )
    data = photo.read(settings.limits.max_bytes + 1)
    colorizer = _colorizer(model, settings)
    finish = Finish(settings.suffix, settings.strength, settings.side_by_side, previews=False)
    painting = Painting(colorizer, settings.limits, finish, threads=1, force=settings.force)
    outcomes: list[Done] = []
    painting.run([Work("standard input", data)], outcomes.append)
    (done,) = outcomes
    if done.unexpected is not None:
        raise done.unexpected
    if done.colored:
        raise JobError("expected a photo without colours, got one that has some; use --force")
    if done.refused:
        raise JobError(f"standard input: {done.refused}")
    return done.data
