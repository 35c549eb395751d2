"""`cc export`: write a model as one ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AsJson, Device, Model

if TYPE_CHECKING:
    from pipelines.export.report import ExportReport


def export(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="File to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET|PHOTOS",
            help="Dataset, or a folder, list or tar of photos, for --int8 and the scores; a "
            "dataset for --prune (default: two installed photographs, for the scores).",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantize convolutions to 8 bits, calibrated on --data."),
    ] = False,
    prune: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Remove this share of the widest layers' channels, such as 0.3, and train the "
            "rest on --data.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of training after --prune (default: 3).")
    ] = None,
    photos: Annotated[
        int, typer.Option(min=2, help="Photos to calibrate on, and to score, at most.")
    ] = 32,
    device: Device = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Write a model as one ONNX file that takes lightness and returns colours.

    The file is compared with the model in torch before it is written, and its size, speed and
    scores are shown. cc colorize, cc eval and colorcore.load take it like a checkpoint.
    """
    from cli import show
    from pipelines.errors import WrongCallError
    from pipelines.export.job import EPOCHS, ExportSettings, export_model

    if epochs is not None and prune is None:
        raise WrongCallError("--epochs is for the training after --prune; leave it out")
    settings = ExportSettings(
        data=data,
        int8=int8,
        prune=prune,
        epochs=epochs or EPOCHS,
        photos=photos,
        device=device,
        overwrite=overwrite,
    )
    with show.progress("export") as advance:
        report = export_model(model, file, settings, on_progress=advance)
    if json:
        show.as_json(report.record())
    else:
        _show(report)
    return 0


def _show(report: ExportReport) -> None:
    from cli import show
    from pipelines.export.report import NOTICEABLE

    show.table(
        ["", "MB", "CPU ms per photo", "ΔE2000 to torch", "PSNR dB", "PSNR lost"],
        [
            (
                each.name,
                f"{each.bytes / 1e6:.2f}",
                f"{each.cpu_ms:.0f}",
                f"{each.delta_e:.3f}",
                f"{each.psnr:.2f}",
                f"{each.psnr_lost:+.2f}",
            )
            for each in report.variants
        ],
    )
    show.line(f"scored on {report.photos} at {report.size} px")
    show.line(
        f"float32 in onnxruntime vs. torch, several sizes and batches: |Δab| at most "
        f"{report.difference:.2g} of {report.tolerance:g} allowed"
    )
    if report.norms_left:
        counted = show.counted(report.norms_left, "group norm")
        show.line(f"{counted} not folded into convolutions: they depend on the photo")
    if report.added_by_int8 > NOTICEABLE:
        show.warn(
            f"8 bits change these colours visibly, by ΔE2000 {report.added_by_int8:.1f} on "
            "average on this CPU, and perhaps less on another: measure where the file will "
            "run, or export without --int8"
        )
    show.line(f"written: {report.file}")
