"""`cc colorize`: colourize photos at their own resolution and depth."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import Address, AsJson, Chroma, Device, Model, Temperature

if TYPE_CHECKING:
    from pipelines.album.settings import ColorizeReport, ColorizeSettings

PIPE = "-"
"""As PHOTO: the photo comes from standard input, and its picture goes to standard output."""


def colorize(
    model: Model,
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO|FOLDER...",
            help="Photos, folders, lists or tars of photos to colourize; - for one photo from "
            "standard input, whose picture goes to standard output.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Output folder.")] = "colorized",
    format_: Annotated[
        Literal["png", "jpg", "tif", "webp", "avif"] | None,
        typer.Option(
            "--format", help="File format of the pictures (default: the photo's, with its quality)."
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing pictures, but never an original."),
    ] = False,
    device: Device = None,
    temperature: Temperature = None,
    chroma: Chroma = None,
    strength: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the model's colours, the rest the photo's."),
    ] = 1.0,
    samples: Annotated[
        int,
        typer.Option(min=1, max=64, help="Versions of each photo, for models that predict bins."),
    ] = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Colourize photos that have colours, too.")
    ] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Write each photo next to its picture.")
    ] = False,
    before_after: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Page that shows each photo before and after."),
    ] = None,
    keep_times: Annotated[
        bool, typer.Option("--keep-times", help="Give pictures the times of their photos.")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Largest photo in pixels (default: 100 million)."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads (default: one per CPU); with --address, per task (default: one)."
        ),
    ] = None,
    address: Address = None,
    json: AsJson = False,
) -> int:
    """Colourize photos, keeping their lightness, depth, format and metadata.

    Photos that have colours are left alone. Pictures that exist are kept, so the same command
    continues an interrupted one. By default temperature and chroma are the values chosen at the end
    of training. With --address, a Ray cluster does the work: all its nodes must see the photos and
    --out by the same names.
    """
    from cli import show
    from colorcore.storage.local import LocalStore
    from colorcore.storage.locks import require_writable
    from pipelines.errors import WrongCallError
    from pipelines.sources.source import local_path

    piped = photos == [PIPE]
    if piped and (address is not None or json):
        option = "--json" if address is None else "--address"
        raise WrongCallError(
            f"expected files with {option}, got standard input; leave {option} out for one photo"
        )
    folder = local_path(out, "--out")
    if not piped:
        require_writable(LocalStore(folder))
    # What imports torch comes after the errors that are certain.
    from pipelines.album.colorize import colorize_photo, colorize_photos
    from pipelines.album.settings import LIMITS, ColorizeReport, ColorizeSettings

    settings = ColorizeSettings(
        suffix=None if format_ is None else f".{format_}",
        overwrite=overwrite,
        device=device,
        temperature=temperature,
        chroma=chroma,
        strength=strength,
        samples=samples,
        force=force,
        side_by_side=side_by_side,
        page=before_after,
        keep_times=keep_times,
        max_pixels=max_pixels or LIMITS.max_pixels,
        threads=threads,
    )
    if piped:
        sys.stdout.buffer.write(colorize_photo(model, sys.stdin.buffer, settings))
        return 0
    report = ColorizeReport(folder)
    try:
        with show.progress("colorize") as advance:
            colorize_photos(
                model,
                photos,
                report.out,
                settings,
                address=address,
                report=report,
                on_progress=lambda done, total: advance(done, total, ""),
            )
    except BaseException as error:  # what was written is reported whatever happens
        if report.decoding is not None:
            _show(report, settings, str(error) or "interrupted", json=json)
        raise
    _show(report, settings, json=json)
    if report.refused:
        show.warn(f"error: {show.counted(len(report.refused), 'photo')} could not be colourized")
    if report.page_error:
        show.warn(f"error: {report.page_error}")
    return 1 if report.refused or report.page_error else 0


def _show(
    report: ColorizeReport, settings: ColorizeSettings, error: str = "", *, json: bool
) -> None:
    from cli import show
    from pipelines.sources.source import describe

    for path, why in report.refused.items():
        show.warn(f"refused {path}: {why}")
    show.pixel_limit(report.refused.values(), settings.max_pixels)
    if report.kept:
        show.warn(f"kept {len(report.kept):,} existing pictures; replace them with --overwrite")
    if report.colored:
        counted = show.counted(len(report.colored), "photo")
        show.warn(
            f"left alone {counted} in colour, such as {report.colored[0]}; "
            "colourize them with --force"
        )
    if report.ignored:
        show.warn(f"skipped files that are not photos: {describe(report.ignored)}")
    if json:
        show.as_json(
            {
                "out": report.out,
                "written": report.written,
                "kept": report.kept,
                "colored": report.colored,
                "refused": report.refused,
                "skipped": report.ignored,
                "left": report.left,
                "decoding": asdict(report.decoding) if report.decoding is not None else None,
                "before_after": settings.page,
                **({"before_after_error": report.page_error} if report.page_error else {}),
                **({"error": error} if error else {}),
            }
        )
        return
    others = {
        "kept": len(report.kept),
        "in colour": len(report.colored),
        "refused": len(report.refused),
        "skipped": report.ignored.total(),
        "left": report.left,
    }
    counts = "".join(f", {count:,} {name}" for name, count in others.items() if count)
    pictures = show.counted(len(report.written), "picture")
    show.line(f"{pictures} in {report.out}{counts}; decoded with {report.decoding}")
    if settings.page is not None and not error and not report.page_error:
        show.line(f"before and after: {settings.page}")
