"""`cc colorize`: colourize photos at their own resolution."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import AsJson, Chroma, Device, Model, Temperature

if TYPE_CHECKING:
    from pipelines.inference.colorize import ColorizeReport


def colorize(
    model: Model,
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO|FOLDER...", help="Photos, folders, lists or tars of photos to colourize."
        ),
    ],
    out: Annotated[str, typer.Option(help="Output folder.")] = "colorized",
    format_: Annotated[
        Literal["png", "jpg", "webp"],
        typer.Option("--format", help="File format; png is lossless, jpg and webp are smaller."),
    ] = "png",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing pictures, but never an original."),
    ] = False,
    device: Device = None,
    temperature: Temperature = None,
    chroma: Chroma = None,
    json: AsJson = False,
) -> int:
    """Colourize photos, keeping their lightness.

    Pictures that exist are kept, so the same command continues an interrupted one.
    By default temperature and chroma are the values chosen at the end of training.
    """
    from cli import show
    from colorcore.storage.local import LocalStore
    from colorcore.storage.locks import require_writable
    from pipelines.sources.source import local_path

    folder = local_path(out, "--out")
    require_writable(LocalStore(folder))
    # What imports torch comes after the errors that are certain.
    from pipelines.inference.colorize import ColorizeReport, colorize_photos

    report = ColorizeReport(folder)
    try:
        with show.progress("colorize") as advance:
            colorize_photos(
                model,
                photos,
                report.out,
                suffix=f".{format_}",
                overwrite=overwrite,
                device=device,
                temperature=temperature,
                chroma=chroma,
                report=report,
                on_progress=lambda done, total: advance(done, total, ""),
            )
    except BaseException as error:  # what was written is reported whatever happens
        if report.decoding is not None:
            _show(report, str(error) or "interrupted", json=json)
        raise
    _show(report, json=json)
    if report.refused:
        show.warn(f"error: {show.counted(len(report.refused), 'photo')} could not be colourized")
        return 1
    return 0


def _show(report: ColorizeReport, error: str = "", *, json: bool) -> None:
    from cli import show
    from pipelines.sources.source import describe

    for path, why in report.refused.items():
        show.warn(f"refused {path}: {why}")
    if report.kept:
        show.warn(f"kept {len(report.kept):,} existing pictures; replace them with --overwrite")
    if report.ignored:
        show.warn(f"skipped files that are not photos: {describe(report.ignored)}")
    if json:
        show.as_json(
            {
                "out": report.out,
                "written": report.written,
                "kept": report.kept,
                "refused": report.refused,
                "skipped": report.ignored,
                "left": report.left,
                "decoding": asdict(report.decoding) if report.decoding is not None else None,
                **({"error": error} if error else {}),
            }
        )
        return
    others = {
        "kept": len(report.kept),
        "refused": len(report.refused),
        "skipped": report.ignored.total(),
        "left": report.left,
    }
    counts = "".join(f", {count:,} {name}" for name, count in others.items() if count)
    pictures = show.counted(len(report.written), "picture")
    show.line(f"{pictures} in {report.out}{counts}; decoded with {report.decoding}")
