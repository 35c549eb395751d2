"""`cc colorize`: colourize photos at their own resolution."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from cli.options import AsJson, Chroma, Device, Model, Temperature


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
    device: Device = None,
    temperature: Temperature = None,
    chroma: Chroma = None,
    json: AsJson = False,
) -> int:
    """Colourize photos, keeping their lightness.

    By default temperature and chroma are the values chosen at the end of training.
    """
    from cli import show
    from pipelines.inference.colorize import colorize_photos
    from pipelines.sources.source import local_path

    with show.progress("colorize") as advance:
        report = colorize_photos(
            model,
            photos,
            local_path(out, "--out"),
            suffix=f".{format_}",
            device=device,
            temperature=temperature,
            chroma=chroma,
            on_progress=lambda done, total: advance(done, total, ""),
        )
    for path, why in report.refused.items():
        show.warn(f"refused {path}: {why}")
    if json:
        show.as_json(
            {
                "out": report.out,
                "written": report.written,
                "refused": report.refused,
                "decoding": asdict(report.decoding),
            }
        )
    else:
        print(f"{len(report.written)} pictures in {report.out}, decoded with {report.decoding}")
    if report.refused:
        show.warn(f"error: {len(report.refused)} photos could not be colourized")
        return 1
    return 0
