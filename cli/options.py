"""Options that several commands share, each defined once."""

from __future__ import annotations

import re
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="Checkpoint folder or the --out of cc train (a path or an s3:// URI), a model in "
        "MLflow (runs:/… or models:/…), start, the model that ships with colorcore, or an ONNX "
        "file from cc export."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Device, cpu or cuda (default: cuda if available).")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Softmax temperature for bin models: 1 averages the colours, near 0 picks the most "
        "likely."
    ),
]
Chroma = Annotated[
    float | None, typer.Option(help="Multiply chroma by this factor (1 = as trained).")
]
Dataset = Annotated[
    str, typer.Argument(help="Dataset with a palette (from cc shard and cc priors).")
]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="Name of a built-in recipe, or a .toml file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe setting, e.g. optim.lr=1e-4."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow tracking URI (default: $MLFLOW_TRACKING_URI or ./mlflow.db)."),
]
Address = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster (default: this machine only).")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing files, but never a photo.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse_duration(text: str, option: str) -> float:
    """Seconds of a duration such as ``90m`` or ``1d12h``; a number alone is in seconds.

    Raises:
        BadParameter: it is none, or not positive.
    """
    parts = re.fullmatch(r"(?:\d+(?:\.\d+)?[dhms])+", text)
    seconds = 0.0
    if parts is not None:
        found = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in found)
    elif re.fullmatch(r"\d+(?:\.\d+)?", text):
        seconds = float(text)
    if seconds <= 0:
        raise typer.BadParameter(
            f"expected a duration such as 90m, 8h or 1d12h, got {text!r}", param_hint=option
        )
    return seconds
