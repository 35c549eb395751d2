"""`cc demo`: the whole workflow on real photos, each step a command that a user could type."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    photos: Annotated[
        Path | None, typer.Option(help="Folder of your own photos (default: installed ones).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for all output.")] = Path("demo"),
    seconds: Annotated[
        float, typer.Option(min=1, help="Seconds of training; the rest takes about two minutes.")
    ] = 90.0,
) -> None:
    """Run the whole workflow on a few photos, with pictures."""
    from cli import show
    from pipelines.demo import (
        before_and_after,
        held_out_photos,
        installed_photos,
        own_photos,
        start_demo,
        training_settings,
    )

    if start_demo(out):
        show.warn(f"removed the earlier demo in {out}")
    source, dataset, model = out / "photos", out / "dataset", out / "model"
    pictures, uri = out / "pictures", f"sqlite:///{(out / 'mlflow.db').absolute()}"
    if photos is None:
        whole = installed_photos(source, out / "photographs")
        show.warn(f"cut installed photographs into tiles in {source}; held out {len(whole)}")
    else:
        whole = []
        show.warn(f"linked {own_photos(photos, source)} photos into {source}")
    _step("shard", source, dataset, "--size", 128, "--val-percent", 10, "--photos-per-unit", 50)
    _step("priors", dataset)
    settings, speed = training_settings(dataset, seconds)
    show.warn(f"{speed:.0f} photos/s in a training step here: training with {', '.join(settings)}")
    overrides = [part for each in settings for part in ("--set", each)]
    _step(
        "train", dataset, "--from", "start", *overrides,
        "--out", model, "--tracking-uri", uri, "--name", "demo",
    )  # fmt: skip
    _step("eval", model, dataset, "--picture", out / "validation.png")
    shown = whole or held_out_photos(dataset, source)
    _step("colorize", model, *shown, "--out", pictures, "--format", "png", "--force")
    before_after = before_and_after(shown, pictures, out / "before-after.png")
    show.facts(
        {
            "\nbefore and after": before_after,
            "colourized": pictures,
            "validation": out / "validation.png",
            "palette": dataset / "palette" / "palette.png",
            "runs in MLflow": f"cc ui --tracking-uri {uri}",
        }
    )


def _step(*arguments: Any) -> None:
    """Print and run one cc command; exit if it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ cc {shlex.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "cli.main", *words], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
