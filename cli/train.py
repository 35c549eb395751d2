"""`cc train`: a dataset and a recipe -> a trained model and a run in MLflow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Address, AsJson, Dataset, Overrides, RecipeName, TrackingUri

if TYPE_CHECKING:
    from cli.show import Advance
    from colorcore.recipes.advice import Advised
    from pipelines.training.trainer import TrainProgress


def train(
    dataset: Dataset,
    recipe: RecipeName = "simple",
    set_: Overrides = None,
    workers: Annotated[
        str,
        typer.Option(metavar="N|MIN-MAX", help="Data-parallel workers; 2-8 uses as many as fit."),
    ] = "1",
    out: Annotated[
        str, typer.Option(help="Folder (or s3://… URI) of the checkpoints last and best.")
    ] = "model",
    resume: Annotated[bool, typer.Option("--resume", help="Resume from --out/last.")] = False,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL|FILE.pt",
            help="Start from the weights of a checkpoint, or of an old .pt file of a UNet.",
        ),
    ] = None,
    from_reading: Annotated[
        str | None,
        typer.Option(
            help="Input convention of a .pt file, e.g. unit/skip-first (default: detected)."
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    name: Annotated[str | None, typer.Option(help="Of the run in MLflow.")] = None,
    address: Address = None,
    json: AsJson = False,
) -> None:
    """Train a recipe on a dataset."""
    from cli import show
    from colorcore.recipes.recipe import load_recipe
    from pipelines.tracking.store import tracking_uri as choose
    from pipelines.training.driver import train as run
    from pipelines.training.job import parse_workers

    loaded = load_recipe(recipe, set_ or [])
    signs: dict[str, Advised] = {}
    told: set[str] = set()
    with show.progress("train") as advance:
        report = run(
            dataset,
            loaded,
            out,
            tracking_uri=choose(tracking_uri, Path.cwd()),
            name=name or Path(recipe).stem,
            workers=parse_workers(workers),
            resume=resume,
            initial=from_,
            reading=from_reading,
            address=address,
            on_progress=lambda progress: _display(advance, progress, signs, told),
            on_initial=lambda about: show.warn(f"starts from {about}"),
            on_warning=show.warn,
        )
    if json:
        show.as_json(
            {
                "out": report.out,
                "steps": report.steps,
                "best": report.scores,
                "signs": {
                    "best": [each.as_record() for each in report.signs],
                    "last": [each.as_record() for each in report.last_signs],
                },
                "decoding": asdict(report.decoding),
                "decoded": report.decoded,
                "metric": report.metric,
                "tracking_uri": report.tracking_uri,
                "run_id": report.run_id,
            }
        )
        return
    show.scores("best checkpoint", report.scores, report.decoded)
    print(f"{report.steps} steps; best by {report.metric}: {report.best}")
    print(
        f"chosen decoding: {report.decoding}; {report.metric} "
        f"{report.scores[report.metric]:.4f} -> {report.decoded[report.metric]:.4f}"
    )
    print(f"run {report.run_id} in {report.tracking_uri}; look at it with: cc ui")


def _display(
    advance: Advance, progress: TrainProgress, signs: dict[str, Advised], told: set[str]
) -> None:
    _display_signs(progress, signs)
    _display_stop(progress, told)
    if not progress.total_steps:
        return
    notes = [f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"]
    if progress.workers > 1:
        notes.append(f"{progress.workers} workers")
    if progress.loss is not None:
        notes.append(f"loss {progress.loss:.4f}")
    if progress.photos_per_s is not None:
        notes.append(f"{progress.photos_per_s:.0f} photos/s")
    if progress.scores:
        notes.append(f"val PSNR {progress.scores['psnr']:.2f}")
        notes.append(f"AuC {progress.scores['auc_balanced']:.4f}")
    advance(progress.step, progress.total_steps, ", ".join(notes))


def _display_signs(progress: TrainProgress, signs: dict[str, Advised]) -> None:
    """A line when a sign appears, and one when it is gone; ``signs`` are those shown so far.

    Workers that have only just taken over have not looked for any yet.
    """
    from cli import show

    if not progress.scored_step:
        return
    found = {each.sign.name: each for each in progress.signs}
    for name, each in found.items():
        if name not in signs:
            show.warn(f"sign after step {progress.scored_step}: {each}")
    for name in signs:
        if name not in found:
            show.warn(f"sign gone after step {progress.scored_step}: {name}")
    signs.clear()
    signs.update(found)


def _display_stop(progress: TrainProgress, told: set[str]) -> None:
    """A line, once, when the training was asked to stop."""
    from cli import show

    if progress.stopping and "stopping" not in told:
        told.add("stopping")
        show.warn(
            "stopping after this step and saving a checkpoint; press Ctrl-C again to stop "
            "immediately"
        )
