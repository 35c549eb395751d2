"""`cc eval`: scores of models and of other tools' pictures, compared with two baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import AsJson, Chroma, Device, Model, Overwrite, Temperature
from cli.show import SCORES

if TYPE_CHECKING:
    from colorcore.comparison.per_photo import Difference
    from colorcore.decoding import Decoding
    from pipelines.evaluation.report import EqualScores, EvalReport, FrontReport, SideReport

_PERCEPTUAL = {"kid_lite0": "KID Lite0 ×10³", "perceptual_lite0": "perc. Lite0"}
_PUBLISHED = {"lpips_alex": "LPIPS Alex", "lpips_vgg": "LPIPS VGG", "fid": "FID"}
_LIGHTNESS = {"lightness_error": "|ΔL|"}
_FRONT = ("psnr", "delta_e2000", "auc_balanced", "cf_gap")
_EQUAL = ("psnr", "delta_e2000", "auc_balanced", "cf", "cf_gap")
_FEW = 5
"""Names in a line at most."""


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
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="MODEL", help="Another model to score on the same photos; repeatable."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Another tool's colourized pictures of the same photos, matched by name; "
            "repeatable.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write a report in one self-contained file: intervals, worst and best photos, "
            "error by hue, colorfulness, confidence, size stability.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Write the first photos as grey | predicted | truth to this file."),
    ] = None,
    front: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Also score a grid of temperatures and chroma factors, and the model at fixed "
            "shares of the photos' colorfulness; write a plot here, with --with of all models.",
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
    lpips: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also report LPIPS: once torchvision's weights of AlexNet or VGG16, and once the "
            "package lpips's alex.pth or vgg.pth.",
        ),
    ] = None,
    fid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also report FID, with these weights: pt_inception-2015-12-05-6726825d.pth.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    temperature: Temperature = None,
    chroma: Chroma = None,
    device: Device = None,
    json: AsJson = False,
) -> int:
    """Score models on a dataset or on photos.

    A dataset is scored on its validation split. With --with or --against, all are scored on the
    same photos, also at equal colorfulness, and differences come with 95% intervals.

    By default temperature and chroma are the values chosen at the end of each training.
    """
    from cli import show
    from pipelines.evaluation.job import evaluate_model
    from pipelines.evaluation.report import record_of

    report = evaluate_model(
        model,
        photos,
        others=others or (),
        against=against or (),
        picture=picture,
        html=html,
        device=device,
        temperature=temperature,
        chroma=chroma,
        front=front,
        overwrite=overwrite,
        perceptual=perceptual,
        fid=fid,
        lpips=lpips or (),
    )
    _warn(report)
    if json:
        show.as_json(record_of(report))
        return show.failed(*report.failed)
    _show_scores(report, perceptual=perceptual)
    for side in report.sides:
        of = f" of {side.name}" if report.is_comparison else ""
        for sign in side.signs:
            show.line(f"sign{of}: {sign}")
    if report.front:
        _show_front(report.front, report.scores)
    if report.equal:
        _show_equal_sides(report.equal)
    written = {"plot": report.front_picture if report.fronts else None}
    for what, path in {**written, "pictures": report.picture, "report": report.html}.items():
        if path and not any(str(path) in reason for reason in report.failed):
            show.line(f"{what}: {path}")
    return show.failed(*report.failed)


def _warn(report: EvalReport) -> None:
    """What was left out, and what was found in folders of outputs."""
    from cli import show

    if report.left_out:
        show.warn(f"left out {' and '.join(_PERCEPTUAL)}: {report.left_out}")
    if report.caution:
        show.warn(report.caution)
    for reason, count in report.refused.items():
        show.warn(f"refused: {count} {reason}")
    for tar, detail in report.damaged.items():
        show.warn(f"{tar}: {detail}")
    for kind, count in report.skipped.items():
        show.warn(f"skipped: {count:,} {kind}")
    for side in report.sides:
        for text in _found_in(side):
            show.warn(f"{side.name}: {text}")
    if report.excluded:
        show.warn(
            f"scored only {show.counted(report.photos, 'photo')} that all sides have; "
            f"left out {report.excluded:,}"
        )


def _found_in(side: SideReport) -> list[str]:
    """One line for each thing worth knowing about a folder of outputs."""
    from cli.show import counted

    if (outputs := side.outputs) is None:
        return []
    matches, lines = outputs.matches, []
    if matches.missing:
        lines.append(f"no output of {_some(matches.missing, 'photo')}")
    if matches.ambiguous:
        lines.append(f"not certain which output belongs to {_some(matches.ambiguous, 'photo')}")
    for name, reason in outputs.damaged.items():
        lines.append(f"left out the output {name}: {reason}")
    if matches.extra:
        lines.append(f"ignored {_some(matches.extra, 'output', ' of no photo')}")
    if outputs.resized:
        shape = (
            f"; {len(outputs.reshaped):,} of them had another shape and were stretched to it"
            if outputs.reshaped
            else ""
        )
        size = counted(len(outputs.resized), "output")
        lines.append(f"resized {size} of another size than the photo{shape}")
    return lines


def _some(names: Sequence[str], what: str, more_of_it: str = "") -> str:
    """A number of things, and the first few by name."""
    from cli.show import counted

    more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
    return f"{counted(len(names), what)}{more_of_it}: {', '.join(names[:_FEW])}{more}"


def _show_scores(report: EvalReport, *, perceptual: bool) -> None:
    from cli import show

    decoded = "" if report.is_comparison else f"; decoded with {report.decoding}"
    show.line(
        f"{report.photos} photos at {report.size} px; true CF "
        f"{report.scores['grey']['cf_true']:.1f}{decoded}"
    )
    outputs = any(side.outputs for side in report.sides)
    names = {
        **SCORES,
        **(_LIGHTNESS if outputs else {}),
        **({} if report.left_out or not perceptual else _PERCEPTUAL),
        **{key: name for key, name in _PUBLISHED.items() if key in report.scores["grey"]},
    }
    decodings = {
        side.name: side.decoding or "as they are" for side in report.sides if report.is_comparison
    }
    more = ["decoding"] if decodings else []
    show.table(
        ["", *names.values(), *more],
        [
            (
                name,
                *(_number(scores[key]) if key in scores else "" for key in names),
                *([decodings.get(name, "")] if decodings else []),
            )
            for name, scores in report.scores.items()
        ],
    )
    if not report.intervals:
        return
    print()
    rows = [side.name for side in report.sides]
    show.table(
        ["95% intervals", *(SCORES[key] for key in _FRONT)],
        [
            (
                name,
                *(
                    f"{_number(interval.low)} to {_number(interval.high)}"
                    for interval in (report.intervals[name][key] for key in _FRONT)
                ),
            )
            for name in rows
        ],
    )
    for text in _difference_lines(report.differences):
        show.line(text)


def _difference_lines(differences: Sequence[Difference]) -> list[str]:
    """One line per pair of sides: what is beyond chance, and what is level."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for each in differences:
        pairs.setdefault((each.one, each.other), []).append(each)
    lines = []
    for (one, other), found in pairs.items():
        parts = []
        for word, side in (("better", one), ("worse", other)):
            said = [
                f"{SCORES[each.metric]} by {_number(abs(each.difference))} ({_between(each)})"
                for each in found
                if each.better == side
            ]
            parts += [f"{word} in {', '.join(said)}"] if said else []
        level = [SCORES[each.metric] for each in found if not each.better]
        parts += [f"level in {', '.join(level)}"] if level else []
        lines.append(f"{one} vs. {other}: {'; '.join(parts)}")
    return lines


def _between(difference: Difference) -> str:
    """The interval of a difference's size."""
    ends = sorted(map(abs, difference.interval))
    return f"{_number(ends[0])} to {_number(ends[1])}"


def _show_front(front: FrontReport, baselines: Mapping[str, Mapping[str, float]]) -> None:
    from cli import show
    from pipelines.evaluation.report import front_rows

    rows = [
        (name, "", *(_number(baselines[name][key]) for key in _FRONT), "", "")
        for name in ("grey", "constant")
    ]
    print()
    show.table(
        ["T", "chroma", *(SCORES[key] for key in _FRONT), "optimal", ""],
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
                for row in front_rows(front)
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
        ["equal colorfulness", *(SCORES[key] for key in _EQUAL), "decoding"],
        [
            (
                f"at {share:.0%} of the true CF",
                *(_number(reading.scores[key]) if reading else "" for key in _EQUAL),
                _rounded(reading.decoding) if reading else "out of reach",
            )
            for share, reading in front.equal.items()
        ],
    )


def _show_equal_sides(equal: Sequence[EqualScores]) -> None:
    """The scores of several sides at equal colourfulness, and their differences."""
    from cli import show

    for each in equal:
        print()
        head = f"at {each.share:.0%} of the true CF"
        show.table(
            [head, *(SCORES[key] for key in _EQUAL), "decoding"],
            [
                (
                    name,
                    *(_number(each.scores[name][key]) if decoding else "" for key in _EQUAL),
                    _rounded(decoding) if decoding else "out of reach",
                )
                for name, decoding in each.decodings.items()
            ],
        )
        for text in _difference_lines(
            [found for found in each.differences if found.metric != "cf_gap"]
        ):
            show.line(text)
    show.line(f"equal colorfulness: scored on {show.counted(equal[0].photos, 'photo')}")


def _rounded(decoding: Decoding) -> Decoding:
    return replace(decoding, chroma=round(decoding.chroma, 2))


def _number(value: float) -> str:
    return f"{value:.{4 if value < 1 else 2}f}"
