"""`cc eval`: a model's scores beside those of grey and of the constant mean colour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_NAMES = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "ab_l1": "ab L1",
    "delta_e2000": "ΔE2000",
    "cf": "CF",
    "cf_gap": "CF gap",
    "auc": "AuC",
    "auc_balanced": "AuC bal.",
}


def evaluate(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder, or the --out of cc train.")],
    photos: Annotated[str, typer.Argument(metavar="DATASET|FOLDER", help="What to score it on.")],
    picture: Annotated[
        Path | None, typer.Option(help="Write grey | predicted | truth of the first photos here.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda; default: the best there is.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a model on a dataset's validation split, or on a folder of photos."""
    from cli import show
    from pipelines.evaluate import evaluate_model

    report = evaluate_model(model, photos, picture=picture, device=device)
    for reason, count in report.refused.items():
        show.warn(f"refused: {count} {reason}")
    if json:
        show.as_json({"scores": report.scores, "size": report.size, "refused": report.refused})
        return
    photos_scored = int(report.scores["model"]["photos"])
    print(
        f"{photos_scored} photos at {report.size} px; CF of the truth "
        f"{report.scores['model']['cf_true']:.1f}"
    )
    show.table(
        ["", *_NAMES.values()],
        [
            (name, *(f"{scores[key]:.{4 if scores[key] < 1 else 2}f}" for key in _NAMES))
            for name, scores in report.scores.items()
        ],
    )
    if report.picture:
        print(f"pictures: {report.picture}")
