"""`cc inspect`: the contents of a dataset or model, or photos before they are sharded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cli.options import AsJson, Overwrite

TOP_LAYERS = 10
DAMAGED_SHOWN = 20


def inspect(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="DATASET|MODEL|PHOTO...",
            help="Dataset or model folder, an ONNX or old .pt file, or photos: folders, tars, "
            "lists, or a quoted pattern of tars such as 'photos-{000..009}.tar'.",
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Output file: a contact sheet of a dataset or of photos (default: "
            "contact-sheet.png), or histograms of a model's weights (default: weights.png, with "
            "weights.csv next to it)."
        ),
    ] = None,
    no_picture: Annotated[
        bool, typer.Option("--no-picture", help="Don't write a picture.")
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of random photos to judge as cc shard would, with its default settings.",
        ),
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed for choosing photos.")] = 0,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> int:
    """Show a dataset's counts and colours, a model's scores and layers, or photos in tars."""
    from pipelines.errors import WrongCallError
    from pipelines.inference.inspect import is_dataset
    from pipelines.inference.inspect_photos import are_photos

    sheet = None if no_picture else picture or Path("contact-sheet.png")
    if len(what) == 1 and is_dataset(what[0]):
        return _dataset(what[0], sheet, seed, overwrite=overwrite, json=json)
    if other := next((each for each in what if not are_photos(each)), None):
        if len(what) > 1:
            raise WrongCallError(
                f"expected one dataset or model, or photos, got {len(what)} places, of which "
                f"{other} holds no photos; inspect it by itself"
            )
        weights = None if no_picture else picture or Path("weights.png")
        return _model(other, weights, overwrite=overwrite, json=json)
    return _photos(what, sheet, sample, seed, overwrite=overwrite, json=json)


def _dataset(dataset: str, picture: Path | None, seed: int, *, overwrite: bool, json: bool) -> int:
    from cli import show
    from pipelines.inference.inspect import inspect_dataset

    found = inspect_dataset(dataset, picture=picture, overwrite=overwrite, seed=seed)
    if json:
        show.as_json(
            {
                **found.summary,
                "refused": found.refused,
                "colorfulness": found.colorfulness,
                "palette": found.palette,
                "picture": found.picture,
            }
        )
        return show.failed(*found.failed)
    show.facts(found.summary)
    if found.refused:
        print()
        show.table(["refused", "photos"], list(found.refused.items()))
    print()
    show.bars("colorfulness", found.colorfulness)
    print()
    if found.palette is None:
        show.line(f"no palette yet; create it with: cc priors {dataset}")
    else:
        show.facts({f"palette {key}": value for key, value in found.palette.items()})
    if picture is not None and not found.failed:
        print()
        show.line(f"contact sheet: {picture}")
    return show.failed(*found.failed)


def _photos(
    places: list[str],
    picture: Path | None,
    sample: int,
    seed: int,
    *,
    overwrite: bool,
    json: bool,
) -> int:
    from cli import show
    from pipelines.inference.inspect import colorfulness_rows, size_text
    from pipelines.inference.inspect_photos import inspect_photos, side_classes

    with show.progress("inspect") as advance:
        found = inspect_photos(
            places,
            sample=sample,
            picture=picture,
            overwrite=overwrite,
            seed=seed,
            on_progress=lambda photos: advance(photos, show.UNKNOWN, ""),
        )
    judged = found.preview
    sides = {name: found.sides[name] for name in side_classes()}
    for tar, detail in list(found.damaged.items())[:DAMAGED_SHOWN]:
        show.warn(f"{tar}: {detail}")
    if len(found.damaged) > DAMAGED_SHOWN:
        show.warn(f"and {len(found.damaged) - DAMAGED_SHOWN:,} more damaged tars; see --json")
    if json:
        show.as_json(
            {
                "photos": found.photos,
                "bytes": found.bytes,
                "tars": found.tars,
                "damaged": found.damaged,
                "unreadable": found.unreadable,
                "formats": found.formats,
                "shorter_side": sides,
                "other_files": found.others,
                "judged": judged.photos,
                "would_be_kept": judged.kept,
                "would_be_refused": judged.refused,
                "colorfulness": colorfulness_rows(judged.colorfulness),
                "picture": found.picture,
            }
        )
        return show.failed(judged.why_none_is_readable(), *found.failed)
    show.facts(
        {
            "photos": found.photos,
            "size": size_text(found.bytes),
            "formats": _counts(found.formats),
            "unreadable": found.unreadable,
            "tars": found.tars,
            "damaged tars": len(found.damaged),
            "other files": _counts(found.others),
        }
    )
    print()
    show.bars("shorter side", sides)
    print()
    rows = [("would be kept", judged.kept)]
    rows += [(f"would be refused: {reason}", n) for reason, n in judged.refused.most_common()]
    which = "all photos" if judged.photos == found.photos else f"{judged.photos:,} random photos"
    show.table(
        [f"cc shard, of {which}", "count", "share"],
        [(name, count, f"{count / judged.photos:.1%}") for name, count in rows],
    )
    if judged.photos < found.photos:
        print(f"of all {found.photos:,} photos, about {found.kept:,} would be kept")
    print()
    show.bars("colorfulness", colorfulness_rows(judged.colorfulness))
    if found.picture is not None and not found.failed:
        print()
        show.line(f"contact sheet: {found.picture}")
    return show.failed(judged.why_none_is_readable(), *found.failed)


def _counts(counts: Counter[str]) -> str | None:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or None


def _model(model: str, picture: Path | None, *, overwrite: bool, json: bool) -> int:
    from cli import show
    from colorcore.drawing.weight_stats import stats_facts
    from pipelines.inference.inspect import inspect_model

    found = inspect_model(model, picture=picture, overwrite=overwrite)
    if found.not_finite:
        names = ", ".join(found.not_finite[:3])
        show.warn(f"{len(found.not_finite)} tensors contain NaN or infinite weights: {names}")
    if json:
        rows = [stats_facts(row) for row in found.weights]
        show.as_json(
            {
                **found.summary,
                "scores": found.scores,
                "decoded": found.decoded,
                "layers": found.layers,
                "weights": rows,
                "picture": found.picture,
            }
        )
        return show.failed(*found.failed)
    show.facts(found.summary)
    if found.scores:
        print()
        show.scores("validation", found.scores, found.decoded)
    print()
    total = sum(found.layers.values())
    largest = list(found.layers.items())[:TOP_LAYERS]
    show.table(
        ["largest layers", "parameters", "share"],
        [(name, count, f"{count / total:.1%}") for name, count in largest],
    )
    if picture is not None and not found.failed:
        print()
        show.line(f"weights: {picture}, {picture.with_suffix('.csv')}")
    return show.failed(*found.failed)
