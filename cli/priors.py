"""`cc priors`: a dataset -> its palette: centroids, priors, weights, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import AsJson


def priors(
    dataset: Annotated[str, typer.Argument(help="Dataset made by cc shard.")],
    bins: Annotated[int, typer.Option(min=2, max=4096, help="Number of colour bins.")] = 313,
    method: Annotated[
        Literal["kmeans", "grid"], typer.Option(help="Cluster the data, or use a uniform grid.")
    ] = "kmeans",
    power: Annotated[
        float,
        typer.Option(
            min=0.0, max=2.0, help="Power of the counts; 0.5 gives vivid colours more bins."
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed of k-means.")] = 0,
    centroids: Annotated[
        Path | None, typer.Option(help="Use the (Q, 2) ab centroids in this .npy file.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Fit colour bins, priors and weights to a dataset."""
    from cli import show
    from pipelines.priors import make_palette

    report = make_palette(
        dataset, bins=bins, method=method, power=power, seed=seed, centroids=centroids
    )
    palette = report.palette
    result = {
        "bins": len(palette.centroids),
        "pixels": report.pixels,
        "occupied cells": report.cells,
        "most common": f"{palette.priors.max():.1%} of the pixels",
        "weights": f"{palette.weights.min():.2f} to {palette.weights.max():.2f}",
        "fingerprint": palette.fingerprint,
        "picture": report.picture,
    }
    if json:
        show.as_json({name.replace(" ", "_"): value for name, value in result.items()})
    else:
        show.facts(result)
