"""`cc tune`: search a recipe's settings on a dataset; the best recipe and its model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Address, AsJson, Dataset, Overrides, RecipeName, TrackingUri

if TYPE_CHECKING:
    from colorcore.recipes.recipe import Recipe
    from tune.driver import StudyProgress
    from tune.search import TrialRecord
    from tune.settings import StudySettings
    from tune.space import Space
    from tune.study import StudyReport

_SHOWN = 10
"""Trials in the table."""


def tune(
    dataset: Dataset,
    recipe: RecipeName = "simple",
    set_: Overrides = None,
    space: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="What to search; default: learning rate, batch, channels, loss weights.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all.")] = 50,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="What to go by; twice for a Pareto front. Default: auc_balanced."),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; default: all that fit.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Data-parallel workers a trial.")] = 1,
    out: Annotated[str, typer.Option(help="The study's folder.")] = "study",
    name: Annotated[
        str | None, typer.Option(help="Of the study in MLflow; default: --out's last part.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in --out.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    startup: Annotated[
        int | None, typer.Option(min=1, help="Trials drawn at random before TPE.")
    ] = None,
    grace: Annotated[
        int | None,
        typer.Option(min=0, help="Epochs that ASHA leaves each trial; 0: no ASHA. Default: 1/16."),
    ] = None,
    reduction: Annotated[
        int | None, typer.Option(min=2, help="ASHA keeps one trial in so many at each rung.")
    ] = None,
    prune_signs: Annotated[
        bool,
        typer.Option("--prune-signs/--no-prune-signs", help="End trials whose colours collapse."),
    ] = True,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Best trials whose checkpoints are kept.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="More tries of a trial whose process dies.")
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="Name in MLflow's model registry; default: the study's.")
    ] = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the search, and stop.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Search a recipe's settings: learning rate, batch, channels, loss weights, or any others.

    Scored by a validation metric, never by the loss, whose weights are what is searched.
    """
    from cli import show
    from colorcore.recipes.recipe import load_recipe
    from colorcore.storage.location import absolute_store
    from pipelines.sources.source import local_path
    from pipelines.tracking.store import tracking_uri as choose
    from tune.objective import objective_of
    from tune.search import REDUCTION, STARTUP, SearchSettings, default_grace
    from tune.settings import KEEP, RETRIES, StudySettings
    from tune.space import default_space, load_space
    from tune.study import check_space
    from tune.study import tune as run

    loaded = load_recipe(recipe, set_ or [])
    reduction = reduction or REDUCTION
    if grace is None:
        grace = default_grace(loaded.train.epochs, loaded.train.eval_every, reduction)
    settings = StudySettings(
        recipe=loaded,
        space=load_space(space, loaded) if space else default_space(loaded),
        objective=objective_of(metric or []),
        search=SearchSettings(seed, startup or STARTUP, grace, reduction, prune_signs),
        workers=workers,
    )
    folder = local_path(out, "--out")
    if dry_run:
        check_space(absolute_store(dataset), settings)
        _show_search(settings, trials, as_json=json)
        return
    with show.progress("tune") as advance:
        report = run(
            dataset,
            settings,
            folder,
            trials=trials,
            tracking_uri=choose(tracking_uri, Path.cwd()),
            name=name or folder.absolute().name,
            concurrent=concurrent,
            resume=resume,
            address=address,
            keep=KEEP if keep is None else keep,
            retries=RETRIES if retries is None else retries,
            register=register,
            on_trial=lambda record: show.warn(_line(record, settings)),
            on_progress=lambda progress: advance(
                progress.ended, progress.trials, _note(progress, settings)
            ),
            on_retry=lambda number, why: show.warn(f"trial {number}: goes on, {why}"),
            on_unsent=show.warn,
        )
    if json:
        show.as_json(_as_json(report))
    else:
        _show_report(report, settings.space)


def _show_search(settings: StudySettings, trials: int, *, as_json: bool) -> None:
    from cli import show
    from tune.space import shown_values

    search, first = settings.search, settings.space.first_values(settings.recipe)
    if as_json:
        show.as_json(
            {
                "space": settings.space.tables(),
                "first": first,
                "metrics": settings.objective.metrics,
                "search": asdict(search),
                "trials": trials,
            }
        )
        return
    flat = settings.recipe.flat()
    show.table(
        ["searched", "values", "recipe's own"],
        [(axis.path, str(axis), flat.get(axis.path)) for axis in settings.space.axes],
    )
    for path in _left_out(settings.recipe, settings.space):
        print(f"{path} is not searched: of a loss of one term AdamW takes no notice of the weight")
    print(f"by {' and '.join(settings.objective.metrics)}; {trials} trials, seed {search.seed}")
    if not first:
        print("the recipe's own values lie outside, so all trials are drawn")
    for number, values in enumerate(first):
        print(f"trial {number}, not drawn: {shown_values(values)}")
    if settings.objective.is_single and search.grace:
        rungs = _rungs(search.grace, search.reduction, settings.recipe.train.epochs)
        print(
            f"ASHA: about one trial in {search.reduction} goes on after "
            f"{', '.join(map(str, rungs))} of {settings.recipe.train.epochs} epochs"
        )


def _left_out(recipe: Recipe, space: Space) -> list[str]:
    terms = [name for name, weight in recipe.loss.items() if weight]
    paths = {axis.path for axis in space.axes}
    return [f"loss.{name}" for name in terms if len(terms) == 1 and f"loss.{name}" not in paths]


def _rungs(grace: int, reduction: int, epochs: int) -> list[int]:
    rungs = []
    while grace < epochs:
        rungs.append(grace)
        grace *= reduction
    return rungs


def _line(record: TrialRecord, settings: StudySettings) -> str:
    """What is said of a trial that has ended."""
    from tune.space import shown_values

    scores = ", ".join(
        f"{name} {record.scores[name]:.4f}"
        for name in settings.objective.metrics
        if name in record.scores
    )
    why = f" ({record.reason})" if record.reason else ""
    told = f": {scores}" if scores else ""
    return (
        f"trial {record.number}: {shown_values(record.values)}: {record.outcome} after "
        f"{record.epochs} {'epoch' if record.epochs == 1 else 'epochs'}{why}{told}"
    )


def _note(progress: StudyProgress, settings: StudySettings) -> str:
    note = f"{progress.running} running, {progress.epochs} epochs"
    if progress.best is None:
        return note
    metric = settings.objective.metrics[0]
    best = progress.best
    return f"{note}, best {metric} {best.scores[metric]:.4f} (trial {best.number})"


def _as_json(report: StudyReport) -> dict[str, Any]:
    return {
        "out": report.out,
        "name": report.name,
        "metrics": report.metrics,
        "trials": report.outcomes,
        "best": [_trial(record) for record in report.best[:_SHOWN]],
        "front": [_trial(record) for record in report.front],
        "importances": report.importances,
        "recipe": report.out / "best.toml",
        "model": report.model,
        "overhead_s": report.overhead,
        "tracking_uri": report.tracking_uri,
        "run_id": report.run_id,
    }


def _trial(record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": record.number,
        "values": record.values,
        "scores": record.scores,
        "epochs": record.epochs,
        "run_id": record.run_id,
    }


def _show_report(report: StudyReport, space: Space) -> None:
    from cli import show

    paths = [axis.path for axis in space.axes]
    if report.front:
        print("Pareto front: no other trial is better in both")
    shown = report.front or report.best
    show.table(
        ["trial", *report.metrics, *paths, "epochs"],
        [
            (
                record.number,
                *(f"{record.scores[metric]:.4f}" for metric in report.metrics),
                *(record.values[path] for path in paths),
                record.epochs,
            )
            for record in shown[:_SHOWN]
        ],
    )
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.outcomes.items())
    print(f"trials: {counts}")
    for metric, shares in report.importances.items():
        ordered = sorted(shares.items(), key=lambda item: -item[1])
        told = ", ".join(f"{path} {share:.0%}" for path, share in ordered if share >= 0.005)
        print(f"share in the spread of {metric}: {told}")
    if report.overhead is not None:
        print(f"beside its epochs a trial took {report.overhead:.1f} s")
    print(f"best recipe: {report.out / 'best.toml'}; train it with: cc train DATASET --recipe")
    if report.model:
        print(f"best model: {report.model}")
    print(f"study {report.name} in {report.tracking_uri}; look at it with: cc ui {report.name}")
