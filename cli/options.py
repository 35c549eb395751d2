"""Options that several commands take, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder or the --out of cc train, here or on s3://; runs:/… or models:/…"
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda; default: the best there is.")]
Temperature = Annotated[
    float | None,
    typer.Option(help="Of models of bins: 1 blends colours, towards 0 the likeliest."),
]
Chroma = Annotated[float | None, typer.Option(help="Times this vivid; 1 is as trained.")]
Dataset = Annotated[str, typer.Argument(help="A dataset with a palette (cc shard, cc priors).")]
RecipeName = Annotated[str, typer.Option("--recipe", help="A recipe's name or a .toml file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override: optim.lr=1e-4"),
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow; default: $MLFLOW_TRACKING_URI or ./mlflow.db")
]
Address = Annotated[str | None, typer.Option(help="A Ray cluster; default: this machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
