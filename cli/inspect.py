"""`cc inspect`: what is in a dataset, or what is in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TOP_LAYERS = 10


def inspect(
    what: Annotated[Path, typer.Argument(metavar="DATASET|MODEL", help="A folder of either kind.")],
    picture: Annotated[
        Path | None, typer.Option(help="Of a dataset: write a contact sheet of kept samples here.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show counts, reasons and colours of a dataset, or layers and scores of a model."""
    from pipelines.inspect import is_dataset

    if is_dataset(what):
        _dataset(what, picture, json=json)
    else:
        _model(what, json=json)


def _dataset(dataset: Path, picture: Path | None, *, json: bool) -> None:
    from cli import show
    from pipelines.inspect import inspect_dataset

    found = inspect_dataset(dataset, picture=picture)
    if json:
        show.as_json(
            {
                **found.summary,
                "refused": found.refused,
                "colorfulness": found.colorfulness,
                "palette": found.palette,
            }
        )
        return
    show.facts(found.summary)
    if found.refused:
        print()
        show.table(["refused", "photos"], list(found.refused.items()))
    print()
    kept = max(1, sum(found.colorfulness.values()))
    widest = max(1, *found.colorfulness.values())
    for label, count in found.colorfulness.items():
        bar = "█" * round(24 * count / widest)
        print(f"colorfulness {label:>10}  {bar:<24}  {count:,} ({count / kept:.0%})")
    print()
    if found.palette is None:
        print(f"no palette yet: cc priors {dataset}")
    else:
        show.facts({f"palette {key}": value for key, value in found.palette.items()})
    if picture is not None:
        print(f"\ncontact sheet: {picture}")


def _model(model: Path, *, json: bool) -> None:
    from cli import show
    from pipelines.inspect import inspect_model

    found = inspect_model(model)
    if json:
        show.as_json({**found.summary, "scores": found.scores, "layers": found.layers})
        return
    show.facts(found.summary)
    print()
    show.table(["validation", "score"], list(found.scores.items()))
    print()
    total = sum(found.layers.values())
    largest = list(found.layers.items())[:TOP_LAYERS]
    show.table(
        ["largest layers", "parameters", "share"],
        [(name, count, f"{count / total:.1%}") for name, count in largest],
    )
