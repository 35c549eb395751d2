"""`cc eval`: a model's scores compared with those of grey and of one constant colour."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import AsJson, Chroma, Device, Model, Overwrite, Temperature

if TYPE_CHECKING:
    from colorcore.models.decoding import Decoding
    from pipelines.inference.evaluate import FrontReport

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
_PERCEPTUAL = {"kid_lite0": "KID Lite0 ×10³", "perceptual_lite0": "perc. Lite0"}
_FRONT = ("psnr", "delta_e2000", "auc_balanced", "cf_gap")
_EQUAL = ("psnr", "delta_e2000", "auc_balanced", "cf", "cf_gap")


def evaluate(
    model: Model,
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET|PHOTO...",
            help="Dataset to score on, or photos: folders, tars, lists, or a quoted pattern of "
            "tars such as 'photos-{000..009}.tar'.",
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(help="Write the first photos as grey | predicted | truth to this file."),
    ] = None,
    front: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Also score a grid of temperatures and chroma factors, and the model at fixed "
            "shares of the photos' colorfulness; write a plot here.",
        ),
    ] = None,
    perceptual: Annotated[
        bool,
        typer.Option(
            "--perceptual",
            help="Also report KID and a perceptual distance in the features of EfficientNet-Lite0; "
            "slower.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    temperature: Temperature = None,
    chroma: Chroma = None,
    device: Device = None,
    json: AsJson = False,
) -> int:
    """Score a model on a dataset or on photos.

    A dataset is scored on its validation split.

    By default temperature and chroma are the values chosen at the end of training.
    """
    from math import isfinite

    from cli import show
    from pipelines.inference.evaluate import evaluate_model

    report = evaluate_model(
        model,
        photos,
        picture=picture,
        device=device,
        temperature=temperature,
        chroma=chroma,
        front=front,
        overwrite=overwrite,
        perceptual=perceptual,
    )
    if report.left_out:
        show.warn(f"left out {' and '.join(_PERCEPTUAL)}: {report.left_out}")
    for reason, count in report.refused.items():
        show.warn(f"refused: {count} {reason}")
    for tar, detail in report.damaged.items():
        show.warn(f"{tar}: {detail}")
    for kind, count in report.skipped.items():
        show.warn(f"skipped: {count:,} {kind}")
    if json:
        show.as_json(
            {
                "scores": report.scores,
                **({"left_out": report.left_out} if report.left_out else {}),
                "decoding": asdict(report.decoding),
                "size": report.size,
                "refused": report.refused,
                "damaged": report.damaged,
                "skipped": report.skipped,
                "statistics": {
                    name: value if isfinite(value) else None
                    for name, value in report.statistics.items()
                },
                "signs": [each.as_record() for each in report.signs],
                **(
                    {"front": _front_rows(report.front), "equal_cf": _equal_rows(report.front)}
                    if report.front
                    else {}
                ),
            }
        )
        return show.failed(*report.failed)
    photos_scored = int(report.scores["model"]["photos"])
    print(
        f"{photos_scored} photos at {report.size} px; true CF "
        f"{report.scores['model']['cf_true']:.1f}; decoded with {report.decoding}"
    )
    names = {**_NAMES, **({} if report.left_out or not perceptual else _PERCEPTUAL)}
    show.table(
        ["", *names.values()],
        [
            (name, *(_number(scores[key]) if key in scores else "" for key in names))
            for name, scores in report.scores.items()
        ],
    )
    for each in report.signs:
        print(f"sign: {each}")
    if report.front:
        _show_front(report.front, report.scores)
    if report.picture and not report.failed:
        show.line(f"pictures: {report.picture}")
    return show.failed(*report.failed)


def _show_front(front: FrontReport, baselines: dict[str, dict[str, float]]) -> None:
    from cli import show

    rows = [
        (name, "", *(_number(baselines[name][key]) for key in _FRONT), "", "")
        for name in ("grey", "constant")
    ]
    print()
    show.table(
        ["T", "chroma", *(_NAMES[key] for key in _FRONT), "optimal", ""],
        [
            *rows,
            *(
                (
                    "" if row["temperature"] is None else f"{row['temperature']:g}",
                    f"×{row['chroma']:g}",
                    *(_number(row["scores"][key]) for key in _FRONT),
                    "*" if row["optimal"] else "",
                    ", ".join(row["marked"]),
                )
                for row in _front_rows(front)
            ),
        ],
    )
    show.line(f"* no other setting is at least as good in all four scores; plot: {front.picture}")
    _show_equal(front)


def _show_equal(front: FrontReport) -> None:
    """The scores at equal colourfulness, which another model's may be compared with."""
    from cli import show

    print()
    show.table(
        ["equal colorfulness", *(_NAMES[key] for key in _EQUAL), "decoding"],
        [
            (
                f"at {share:.0%} of the true CF",
                *(_number(reading.scores[key]) if reading else "" for key in _EQUAL),
                _rounded(reading.decoding) if reading else "out of reach",
            )
            for share, reading in front.equal.items()
        ],
    )


def _front_rows(front: FrontReport) -> list[dict[str, Any]]:
    return [
        {
            **asdict(decoding),
            "scores": scores,
            "optimal": decoding in front.optimal,
            "marked": [name for name, marked in front.marked.items() if marked == decoding],
        }
        for decoding, scores in front.scores.items()
    ]


def _equal_rows(front: FrontReport) -> list[dict[str, Any]]:
    return [
        {"share": share, **(asdict(reading) if reading else {"decoding": None, "scores": None})}
        for share, reading in front.equal.items()
    ]


def _rounded(decoding: Decoding) -> Decoding:
    return replace(decoding, chroma=round(decoding.chroma, 2))


def _number(value: float) -> str:
    return f"{value:.{4 if value < 1 else 2}f}"
