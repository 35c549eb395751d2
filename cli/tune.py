"""`cc tune`: search a recipe's settings on a dataset for the best recipe and model."""

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
"""Rows of the table of trials."""


def tune(
    dataset: Dataset,
    recipe: RecipeName = "simple",
    set_: Overrides = None,
    space: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Search space and options of the study (default: search learning rate, batch "
            "size, channels, loss weights).",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Total number of trials.")] = 50,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Validation metric to optimize; give two for a Pareto front "
            "(default: auc_balanced)."
        ),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Concurrent trials (default: as many as fit).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Data-parallel workers per trial.")] = 1,
    out: Annotated[str, typer.Option(help="Folder of the study.")] = "study",
    name: Annotated[
        str | None,
        typer.Option(help="Study name in MLflow (default: last component of --out)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study in --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampling trials.")] = 0,
    grace: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Epochs before ASHA may stop a trial; 0 turns ASHA off (default: about 1/16 of "
            "all).",
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the search without running it.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Search recipe settings for the best model.

    By default: learning rate, batch size, channels and loss weights; a TOML file names others.

    Trials are compared by a validation metric, never by the loss, whose weights are searched.
    """
    from cli import show
    from colorcore.recipes.recipe import load_recipe
    from colorcore.storage.location import absolute_store
    from pipelines.sources.source import local_path
    from pipelines.tracking.store import resolve_tracking_uri
    from tune import study
    from tune.objective import objective_of
    from tune.search import SearchSettings, default_grace
    from tune.settings import StudyOptions, StudySettings, load_space_file
    from tune.space import default_space

    loaded = load_recipe(recipe, set_ or [])
    fixed = {override.partition("=")[0].strip() for override in set_ or []}
    if space is None:
        searched, options = default_space(loaded, fixed), StudyOptions()
    else:
        searched, options = load_space_file(space, loaded, fixed)
    if grace is None:
        grace = default_grace(loaded.train.epochs, loaded.train.eval_every, options.reduction)
    settings = StudySettings(
        recipe=loaded,
        space=searched,
        objective=objective_of(metric or []),
        search=SearchSettings(seed, options.startup, grace, options.reduction, options.prune_signs),
        workers=workers,
    )
    folder = local_path(out, "--out")
    if dry_run:
        study.check_space(absolute_store(dataset), settings)
        _show_search(settings, trials, fixed, as_json=json)
        return
    with show.progress("tune") as advance:
        report = study.tune(
            dataset,
            settings,
            folder,
            trials=trials,
            tracking_uri=resolve_tracking_uri(tracking_uri, Path.cwd()),
            name=name or folder.absolute().name,
            concurrent=concurrent,
            resume=resume,
            address=address,
            keep=options.keep,
            retries=options.retries,
            register=options.register,
            on_trial=lambda record: show.warn(_line(record, settings)),
            on_progress=lambda progress: advance(
                progress.ended, progress.trials, _note(progress, settings)
            ),
            on_retry=lambda number, why: show.warn(f"trial {number}: retrying ({why})"),
            on_unsent=show.warn,
        )
    if json:
        show.as_json(_as_json(report))
    else:
        _show_report(report, settings.space)


def _show_search(settings: StudySettings, trials: int, fixed: set[str], *, as_json: bool) -> None:
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
    for path, reason in _not_searched(settings.recipe, settings.space, fixed):
        print(f"{path} is not searched: {reason}")
    metrics = " and ".join(settings.objective.metrics)
    print(f"objective: {metrics}; {trials} trials, seed {search.seed}")
    if not first:
        print("the recipe's own values lie outside the search space, so every trial is sampled")
    for number, values in enumerate(first):
        print(f"trial {number} (not sampled): {shown_values(values)}")
    if settings.objective.is_single and search.grace:
        epochs = settings.recipe.train.epochs
        rungs = ", ".join(map(str, _rungs(search.grace, search.reduction, epochs)))
        print(
            f"ASHA promotes about one in {search.reduction} trials after {rungs} of {epochs} epochs"
        )


def _not_searched(recipe: Recipe, space: Space, fixed: set[str]) -> list[tuple[str, str]]:
    """Paths of the default space that this one leaves out, with the reason."""
    from tune.space import default_space

    searched = {axis.path for axis in space.axes}
    terms = [name for name, weight in recipe.loss.items() if weight]
    reasons = {
        axis.path: "--set fixes it" for axis in default_space(recipe).axes if axis.path in fixed
    }
    if len(terms) == 1:
        reasons[f"loss.{terms[0]}"] = "with a single loss term AdamW is insensitive to its weight"
    return [(path, reason) for path, reason in reasons.items() if path not in searched]


def _rungs(grace: int, reduction: int, epochs: int) -> list[int]:
    rungs = []
    while grace < epochs:
        rungs.append(grace)
        grace *= reduction
    return rungs


def _line(record: TrialRecord, settings: StudySettings) -> str:
    """One line about a trial that has ended."""
    from tune.space import shown_values

    scores = ", ".join(
        f"{name} {record.scores[name]:.4f}"
        for name in settings.objective.metrics
        if name in record.scores
    )
    epochs = f"{record.epochs} {'epoch' if record.epochs == 1 else 'epochs'}"
    return (
        f"trial {record.number}: {shown_values(record.values)}: {record.outcome} after {epochs}"
        f"{f' ({record.reason})' if record.reason else ''}{f': {scores}' if scores else ''}"
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
        print("Pareto front: trials that no other trial beats in both metrics")
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
        parts = ", ".join(f"{path} {share:.0%}" for path, share in ordered if share >= 0.005)
        print(f"importance for {metric}: {parts}")
    if report.overhead is not None:
        print(f"overhead per trial: {report.overhead:.1f} s")
    best = report.out / "best.toml"
    print(f"best recipe: {best}; train with it: cc train DATASET --recipe {best}")
    if report.model:
        print(f"best model: {report.model}")
    print(f"study {report.name} in {report.tracking_uri}; open it with: cc ui {report.name}")
