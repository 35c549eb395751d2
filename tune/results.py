"""What a study leaves in its folder: tables, the best recipe, shares of importance, plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.storage.atomic import replace_bytes
from tune.plots import draw_front, draw_importances, draw_parallel, parallel_page
from tune.search import TrialRecord, dumps
from tune.space import shown_values, with_values

if TYPE_CHECKING:
    from colorcore.recipes.recipe import Recipe
    from tune.objective import Objective
    from tune.search import Search

TRIALS, BEST, IMPORTANCES = "trials.csv", "best.toml", "importances.json"
PARALLEL, PARALLEL_PAGE = "parallel_coordinates.png", "parallel_coordinates.html"
IMPORTANCES_PLOT, FRONT, FRONT_PLOT = "importances.png", "front.csv", "front.png"
ARTIFACTS = (
    TRIALS, BEST, IMPORTANCES, PARALLEL, PARALLEL_PAGE, IMPORTANCES_PLOT, FRONT, FRONT_PLOT,
)  # fmt: skip
"""Files that the study's run in MLflow holds, too."""


def write_results(out: Path, search: Search, *, final: bool = False) -> dict[str, dict[str, float]]:
    """Write the table of trials; when the study is over everything else. Returns importances."""
    records = [record for record in search.records() if record.outcome is not None]
    replace_bytes(out / TRIALS, _table(records, search).encode())
    if not final:
        return {}
    importances = search.importances()
    replace_bytes(out / IMPORTANCES, dumps(importances).encode())
    replace_bytes(out / PARALLEL, draw_parallel(records, search.space, search.objective))
    page = parallel_page(records, search.space, search.objective)
    replace_bytes(out / PARALLEL_PAGE, page.encode())
    replace_bytes(out / IMPORTANCES_PLOT, draw_importances(importances, search.importance_epochs))
    if not search.objective.is_single:
        front = search.front()
        replace_bytes(out / FRONT, _table(front, search).encode())
        replace_bytes(out / FRONT_PLOT, draw_front(records, front, search.objective))
    return importances


def write_recipe(out: Path, best: TrialRecord, recipe: Recipe, objective: Objective) -> None:
    """The recipe of a trial as a file that `cc train --recipe` takes."""
    metric = objective.metrics[0]
    told = shown_values(best.values)
    about = f"The best of a study: {metric} {best.scores[metric]:.4f} with {told}"
    values = {**best.values, "train.metric": metric, "about": about}
    replace_bytes(out / BEST, with_values(recipe, values).to_toml().encode())


def _table(records: Sequence[TrialRecord], search: Search) -> str:
    """A row a trial."""
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
