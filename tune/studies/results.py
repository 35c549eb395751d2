"""The files that a study writes: tables, the best recipe, importances, plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tune.search.search import TrialRecord, dumps
from tune.search.space import shown_values, with_values
from tune.studies.plots import draw_front, draw_importances

if TYPE_CHECKING:
    from colorcore.recipes.recipe import Recipe
    from colorcore.storage.store import Store
    from tune.search.objective import Objective
    from tune.search.search import Search

TRIALS, BEST, IMPORTANCES = "trials.csv", "best.toml", "importances.json"
IMPORTANCES_PLOT, FRONT, FRONT_PLOT = "importances.png", "front.csv", "front.png"
ARTIFACTS = (TRIALS, BEST, IMPORTANCES, IMPORTANCES_PLOT, FRONT, FRONT_PLOT)
"""Files that are also logged as artifacts of the study's run in MLflow."""
TRIAL_FOLDERS = "trials"


def trial_folder(out: Store, number: int) -> Store:
    """The folder with a trial's checkpoints."""
    return out.below(f"{TRIAL_FOLDERS}/{number:04d}")


def write_results(
    out: Store, search: Search, *, final: bool = False
) -> dict[str, dict[str, float]]:
    """Write the table of trials; with ``final`` also everything else. Returns the importances."""
    records = search.ended()
    out.write(TRIALS, _table(records, search).encode())
    if not final:
        return {}
    importances = search.importances()
    out.write(IMPORTANCES, dumps(importances).encode())
    out.write(IMPORTANCES_PLOT, draw_importances(importances, search.importance_epochs))
    if not search.objective.is_single:
        front = search.front()
        out.write(FRONT, _table(front, search).encode())
        out.write(FRONT_PLOT, draw_front(records, front, search.objective))
    return importances


def write_recipe(out: Store, best: TrialRecord, recipe: Recipe, objective: Objective) -> None:
    """Write a trial's recipe as a file for `cc train --recipe`."""
    metric = objective.metrics[0]
    values = shown_values(best.values)
    about = f"The best trial of a study: {metric} {best.scores[metric]:.4f} with {values}"
    changed = {**best.values, "train.metric": metric, "about": about}
    out.write(BEST, with_values(recipe, changed).to_toml().encode())


def _table(records: Sequence[TrialRecord], search: Search) -> str:
    """A CSV table with one row per trial."""
    paths = [axis.path for axis in search.space.axes]
    metrics = list(search.objective.metrics)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ["epochs", "attempts", "seconds", "seconds_in_epochs", "run_id", "reason"]
    writer.writerow(["trial", "outcome", *metrics, *paths, *facts])
    for record in records:
        writer.writerow(
            [
                record.number,
                record.outcome,
                *(record.scores.get(metric, "") for metric in metrics),
                *(record.values[path] for path in paths),
                record.epochs,
                record.attempts,
                f"{record.seconds:.1f}",
                f"{record.seconds_in_epochs:.1f}",
                record.run_id or "",
                record.reason,
            ]
        )
    return text.getvalue()
