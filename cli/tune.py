"""`cc tune`: search a recipe's settings on a dataset for the best recipe and model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import (
    Address,
    AsJson,
    Dataset,
    Overrides,
    RecipeName,
    TrackingUri,
    parse_duration,
)

if TYPE_CHECKING:
    from colorcore.recipes.recipe import Recipe
    from tune.search.search import SearchSettings, TrialRecord
    from tune.search.settings import StudySettings
    from tune.search.space import Space
    from tune.studies.driver import StudyProgress
    from tune.study import StudyReport

_SHOWN = 10
"""Rows of the table of trials."""


def tune(
    dataset: Dataset,
    recipe: RecipeName = "lite0-bins",
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
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC<N",
            help="Bound that the best trial must keep, such as 'cf_gap<20'; may be repeated.",
        ),
    ] = None,
    search: Annotated[
        Literal["tpe", "random", "grid", "cmaes"],
        typer.Option(help="How the values of trials are sampled."),
    ] = "tpe",
    scheduler: Annotated[
        Literal["asha", "hyperband", "median", "none"],
        typer.Option(help="How trials that fall behind are stopped."),
    ] = "asha",
    grace: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs before a trial may be stopped (default: about 1/16 of all).",
        ),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Time after which the study ends with what it has, such as 90m or 1d12h.",
        ),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Concurrent trials (default: as many as fit).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Data-parallel workers per trial.")] = 1,
    out: Annotated[
        str, typer.Option(help="Folder of the study, local or s3://bucket/folder.")
    ] = "study",
    name: Annotated[
        str | None,
        typer.Option(help="Study name in MLflow (default: last component of --out)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study in --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampling trials.")] = 0,
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
    from colorcore.storage.location import absolute_store, open_store
    from colorcore.storage.locks import require_writable
    from pipelines.tracking.store import check_store, resolve_tracking_uri

    uri = resolve_tracking_uri(tracking_uri, Path.cwd())
    budget = None if time_budget is None else parse_duration(time_budget, "--time-budget")
    open_store(dataset)  # refuses a location that holds a secret
    if not dry_run:
        require_writable(open_store(out))
        check_store(uri)
    # What imports torch comes after the errors that are certain.
    from colorcore.recipes.recipe import load_recipe
    from tune import study
    from tune.search.objective import objective_of
    from tune.search.search import SearchSettings, default_grace
    from tune.search.settings import StudyOptions, StudySettings, load_space_file
    from tune.search.space import default_space
    from tune.studies.driver import StudyEvents

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
        objective=objective_of(metric or [], require or []),
        search=SearchSettings(
            seed=seed,
            sampler=search,
            startup=options.startup,
            scheduler=scheduler,
            grace=0 if scheduler == "none" else grace,
            reduction=options.reduction,
            prune_signs=options.prune_signs,
        ),
        workers=workers,
    )
    if dry_run:
        study.check_space(absolute_store(dataset), settings)
        _show_search(settings, trials, fixed, as_json=json)
        return
    with show.progress("tune") as advance:
        report = study.tune(
            dataset,
            settings,
            out,
            trials=trials,
            tracking_uri=uri,
            name=name or _last_component(out),
            concurrent=concurrent,
            time_budget_s=budget,
            resume=resume,
            address=address,
            keep=options.keep,
            retries=options.retries,
            register=options.register,
            events=StudyEvents(
                on_trial=lambda record: show.warn(_line(record, settings)),
                on_progress=lambda progress: advance(
                    progress.ended, progress.trials, _note(progress, settings)
                ),
                on_retry=lambda number, why: show.warn(f"trial {number}: retrying ({why})"),
                on_warning=show.warn,
            ),
        )
    if json:
        show.as_json(_as_json(report))
    else:
        _show_report(report, settings, dataset)


def _last_component(out: str) -> str:
    """The last component of the study's location, without the options of a store."""
    if "://" in out:
        return out.partition("?")[0].rstrip("/").rpartition("/")[2]
    return Path(out).absolute().name


def _show_search(settings: StudySettings, trials: int, fixed: set[str], *, as_json: bool) -> None:
    from cli import show
    from tune.search.algorithms import grid_of
    from tune.search.space import shown_values

    search, first = settings.search, settings.first_values()
    if search.sampler == "grid":
        trials = min(trials, len(grid_of(settings.space, search.seed)))
    if as_json:
        show.as_json(
            {
                "space": settings.space.tables(),
                "first": first,
                "metrics": settings.objective.metrics,
                "require": [str(each) for each in settings.objective.requirements],
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
    bounds = "".join(f", {each}" for each in settings.objective.requirements)
    print(f"objective: {metrics}{bounds}; {trials} trials by {search.sampler}, seed {search.seed}")
    if search.is_free and not first:
        print("the recipe's own values lie outside the search space, so every trial is sampled")
    for number, values in enumerate(first):
        print(f"trial {number} (not sampled): {shown_values(values)}")
    if settings.objective.is_single:
        print(_scheduler_line(search, settings.recipe.train.epochs))


def _scheduler_line(search: SearchSettings, epochs: int) -> str:
    """When the study stops trials that fall behind."""
    if search.scheduler == "asha":
        rungs = ", ".join(map(str, _rungs(search.grace, search.reduction, epochs)))
        return (
            f"ASHA promotes about one in {search.reduction} trials after {rungs} of {epochs} epochs"
        )
    if search.scheduler == "hyperband":
        return f"Hyperband stops trials from epoch {search.grace} of {epochs}"
    if search.scheduler == "median":
        return f"trials below the median are stopped from epoch {search.grace} of {epochs}"
    return "no trial is stopped for its score"


def _not_searched(recipe: Recipe, space: Space, fixed: set[str]) -> list[tuple[str, str]]:
    """Paths of the default space that this one leaves out, with the reason."""
    from tune.search.space import default_space

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
    from tune.search.space import shown_values

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
        "recipe": report.recipe,
        "table": report.table,
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


def _show_report(report: StudyReport, settings: StudySettings, dataset: str) -> None:
    from cli import show
    from colorcore.inference.equal_colorfulness import EQUAL

    objective = settings.objective
    paths = [axis.path for axis in settings.space.axes]
    bounds = [each.metric for each in objective.requirements if each.metric not in report.metrics]
    if report.front:
        print("Pareto front: trials that no other trial beats in both metrics")
    shown = (report.front or report.best)[:_SHOWN]
    scores = [*report.metrics, *bounds]
    # A paler trial may have the better score; studies of older versions lack this one.
    if EQUAL not in scores and all(EQUAL in record.scores for record in shown):
        scores.append(EQUAL)
    show.table(
        ["trial", *scores, *paths, "epochs"],
        [
            (
                record.number,
                *(f"{record.scores[metric]:.4f}" for metric in scores),
                *(record.values[path] for path in paths),
                record.epochs,
            )
            for record in shown
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
    if objective.missed(report.best[0].scores):
        show.warn(
            f"no finished trial keeps {' and '.join(map(str, objective.requirements))}; "
            f"the best below is the closest one, trial {report.best[0].number}, and is not "
            "registered as champion"
        )
    show.line(f"all trials: {report.table}")
    show.line(f"best recipe: {report.recipe}")
    show.line(f"train with it: {_train_command(dataset, report.recipe)}")
    if report.model:
        show.line(f"best model: {report.model}")
    show.line(f"study {report.name} in {report.tracking_uri}; open it with: cc ui {report.name}")


def _train_command(dataset: str, recipe: str) -> str:
    import shlex

    return f"cc train {shlex.quote(dataset)} --recipe {shlex.quote(recipe)}"
