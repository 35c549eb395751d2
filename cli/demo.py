"""`cc demo`: the whole path on real photos, each step the command that a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    photos: Annotated[
        Path | None, typer.Option(help="A folder of your own photos; default: installed ones.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for all that it makes.")] = Path("demo"),
    photo_steps: Annotated[
        int, typer.Option(min=1, help="Photos that pass through the network in training.")
    ] = 18_000,
) -> None:
    """Shard, priors, train, eval, colorize: in one go, in a few minutes, with pictures."""
    import json

    from cli import show
    from pipelines import demo as job

    if job.begin(out):
        show.warn(f"removed the earlier demo in {out}")
    source, dataset, model = out / "photos", out / "dataset", out / "model"
    pictures, uri = out / "pictures", f"sqlite:///{(out / 'mlflow.db').absolute()}"
    if photos is None:
        whole = job.installed_photos(source, out / "photographs")
        show.warn(f"cut {len(whole)} installed photographs into tiles in {source}")
    else:
        whole = []
        show.warn(f"linked {job.own_photos(photos, source)} photos into {source}")
    _step("shard", source, dataset, "--size", 96, "--val-percent", 10, "--photos-per-unit", 50)
    _step("priors", dataset)
    train_samples = json.loads((dataset / "dataset.json").read_text())["counts"]["train"]
    epochs = max(1, round(photo_steps / max(1, train_samples)))
    settings = {
        "model.channels": 16,
        "data.batch": 8,
        "optim.lr": 2e-3,
        "train.epochs": epochs,
        "train.eval_every": max(1, epochs // 10),
        "train.ema": 0.995,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    _step(
        "train", dataset, "--recipe", "simple", *overrides,
        "--out", model, "--tracking-uri", uri, "--name", "demo",
    )  # fmt: skip
    _step("eval", model, dataset, "--picture", out / "validation.png")
    shown = whole or job.held_out_photos(dataset, source)
    _step("colorize", model, *shown, "--out", pictures)
    before_after = job.before_and_after(shown, pictures, out / "before-after.png")
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
    """Show and run one cc command; its failure ends the demo."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ cc {shlex.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "cli.main", *words], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
