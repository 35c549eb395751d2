"""`cc inspect`: the contents of a dataset, or of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import AsJson

TOP_LAYERS = 10


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="DATASET|MODEL", help="Dataset or model folder, or an old .pt file."
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Output file: a dataset's contact sheet (default: contact-sheet.png), or "
            "histograms of a model's weights (default: weights.png, with weights.csv next to it)."
        ),
    ] = None,
    no_picture: Annotated[
        bool, typer.Option("--no-picture", help="Don't write a picture.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed for the photos on the contact sheet.")] = 0,
    json: AsJson = False,
) -> None:
    """Show a dataset's counts and colours, or a model's scores and layers."""
    from pipelines.inference.inspect import is_dataset

    if is_dataset(what):
        sheet = picture or Path("contact-sheet.png")
        _dataset(what, None if no_picture else sheet, seed, json=json)
    else:
        histograms = picture or Path("weights.png")
        _model(what, None if no_picture else histograms, json=json)


def _dataset(dataset: str, picture: Path | None, seed: int, *, json: bool) -> None:
    from cli import show
    from pipelines.inference.inspect import inspect_dataset

    found = inspect_dataset(dataset, picture=picture, seed=seed)
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
        return
    show.facts(found.summary)
    if found.refused:
        print()
        show.table(["refused", "photos"], list(found.refused.items()))
    print()
    show.bars("colorfulness", found.colorfulness)
    print()
    if found.palette is None:
        print(f"no palette yet; create it with: cc priors {dataset}")
    else:
        show.facts({f"palette {key}": value for key, value in found.palette.items()})
    if picture is not None:
        print(f"\ncontact sheet: {picture}")


def _model(model: str, picture: Path | None, *, json: bool) -> None:
    from cli import show
    from colorcore.drawing.weight_stats import stats_facts
    from pipelines.inference.inspect import inspect_model

    found = inspect_model(model, picture=picture)
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
        return
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
    if picture is not None:
        print(f"\nweights: {picture}, {picture.with_suffix('.csv')}")
