"""`cc train`: a dataset and a recipe -> a trained model and a run in MLflow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Address, AsJson, Dataset, Overrides, TrackingUri

if TYPE_CHECKING:
    from cli.show import Advance
    from pipelines.training.trainer import TrainProgress


def train(
    dataset: Dataset,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Name of a built-in recipe, or a .toml file (default: the recipe of --from, or of "
            "the training that is resumed, else lite0-bins).",
        ),
    ] = None,
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
            help="Start from the weights of a checkpoint, or of an old .pt file of a UNet; "
            "--resume does not read it again.",
        ),
    ] = None,
    from_reading: Annotated[
        str | None,
        typer.Option(
            help="Input convention of a .pt file, e.g. unit/skip-first (default: detected)."
        ),
    ] = None,
    profile: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Steps to profile: a table of their phases, and a trace in --out/profile.",
        ),
    ] = 0,
    tracking_uri: TrackingUri = None,
    name: Annotated[str | None, typer.Option(help="Name of the run in MLflow.")] = None,
    address: Address = None,
    json: AsJson = False,
) -> None:
    """Train a recipe on a dataset."""
    from cli import show
    from colorcore.storage.location import open_store
    from colorcore.storage.locks import require_writable
    from pipelines.errors import WrongCallError
    from pipelines.tracking.store import check_store, resolve_tracking_uri

    if from_reading is not None and from_ is None:
        raise WrongCallError("--from-reading says how --from takes its input; add --from FILE.pt")
    uri = resolve_tracking_uri(tracking_uri, Path.cwd())
    open_store(dataset)  # refuses a location that holds a secret
    require_writable(open_store(out))
    check_store(uri)
    # What imports torch comes after the errors that are certain.
    from pipelines.tracking.model import local_model
    from pipelines.training import driver
    from pipelines.training.job import parse_workers
    from pipelines.training.start_weights import choose_recipe

    # A training that is resumed has its weights; where it began may be gone.
    start = None if from_ is None or resume else local_model(from_, uri)
    loaded, title = choose_recipe(recipe, set_ or [], start, out if resume else None)
    with show.progress("train") as advance:
        report = driver.train(
            dataset,
            loaded,
            out,
            tracking_uri=uri,
            name=name or title,
            workers=parse_workers(workers),
            resume=resume,
            initial=start,
            reading=from_reading,
            profile=profile,
            address=address,
            on_progress=Display(advance).update,
            on_initial=lambda about: show.warn(f"starting from {about}"),
            on_warning=show.warn,
        )
    if json:
        show.as_json(
            {
                "out": report.out,
                "steps": report.steps,
                "early": report.is_early,
                "best": report.scores,
                "signs": {
                    "best": [each.as_record() for each in report.signs],
                    "last": [each.as_record() for each in report.last_signs],
                },
                "decoding": asdict(report.decoding),
                "decoded": report.decoded,
                "equal_cf": report.equal_cf,
                "metric": report.metric,
                "tracking_uri": report.tracking_uri,
                "run_id": report.run_id,
            }
        )
        return
    show.scores("best checkpoint", report.scores, report.decoded)
    if report.is_early:
        waited = show.counted(loaded.train.patience or 0, "validation")
        show.line(f"ended early: {waited} in a row without a better {report.metric}")
    show.line(f"{report.steps} steps; best by {report.metric}: {report.best}")
    print(
        f"chosen decoding: {report.decoding}; {report.metric} "
        f"{report.scores[report.metric]:.4f} -> {report.decoded[report.metric]:.4f}"
    )
    show.equal_cf(report.equal_cf)
    show.line(f"run {report.run_id} in {report.tracking_uri}; look at it with: cc ui")


class Display:
    """Shows a training's progress; warns once per change of its signs, and of a stop."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._signs: set[str] = set()
        self._stopping = False
        self._told = 0

    def update(self, progress: TrainProgress) -> None:
        """Show the latest progress."""
        from cli.show import NOT_BEGUN

        self._show_notices(progress)
        self._warn_of_signs(progress)
        self._warn_of_stop(progress)
        if not progress.total_steps:
            self._advance(0, NOT_BEGUN, progress.stage)
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
        self._advance(progress.step, progress.total_steps, ", ".join(notes))

    def _warn_of_signs(self, progress: TrainProgress) -> None:
        from cli import show

        # Workers that have just replaced lost ones report no signs before they have validated,
        # which does not mean that the signs are gone.
        if not progress.scored_step:
            return
        found = {each.sign.name: each for each in progress.signs}
        for name, each in found.items():
            if name not in self._signs:
                show.warn(f"sign after step {progress.scored_step}: {each}")
        for name in sorted(self._signs - found.keys()):
            show.warn(f"sign gone after step {progress.scored_step}: {name}")
        self._signs = set(found)

    def _show_notices(self, progress: TrainProgress) -> None:
        from cli import show

        # Workers that have replaced lost ones begin to count anew.
        self._told = min(self._told, len(progress.notices))
        for text in progress.notices[self._told :]:
            show.warn(text)
        self._told = len(progress.notices)

    def _warn_of_stop(self, progress: TrainProgress) -> None:
        from cli import show

        if progress.stopping and not self._stopping:
            self._stopping = True
            show.warn(
                "stopping after this step and saving a checkpoint; press Ctrl-C again to stop "
                "immediately"
            )
