"""`cc inspect`: what is in a dataset, or what is in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TOP_LAYERS = 10


def inspect(
    what: Annotated[str, typer.Argument(metavar="DATASET|MODEL", help="A folder of either kind.")],
    picture: Annotated[
        Path,
        typer.Option(help="Of a dataset: the contact sheet of kept and refused photos."),
    ] = Path("contact-sheet.png"),
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write none.")] = False,
    seed: Annotated[int, typer.Option(help="Other random photos on the sheet.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show counts, reasons and colours of a dataset, or layers and scores of a model."""
    from pipelines.inspect import is_dataset

    if is_dataset(what):
        _dataset(what, None if no_picture else picture, seed, json=json)
    else:
        _model(Path(what), json=json)


def _dataset(dataset: str, picture: Path | None, seed: int, *, json: bool) -> None:
    from cli import show
    from pipelines.inspect import inspect_dataset

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
