"""What a study is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from colorcore.recipes.recipe import Recipe
from tune.objective import Objective
from tune.search import SearchSettings
from tune.space import Space

KEEP = 5
"""Best trials whose checkpoints are kept, ``best`` and ``last``."""
RETRIES = 2
"""Further tries of a trial whose processes are lost."""


@dataclass(frozen=True, slots=True)
class StudySettings:
    """What a study is; see :func:`tune`. It is compared on resuming."""

    recipe: Recipe
    space: Space
    objective: Objective
    search: SearchSettings
    workers: int

    def as_record(self) -> dict[str, Any]:
        """As nested plain values, for ``study.json``."""
        return {
            "recipe": self.recipe.values(),
            "space": self.space.tables(),
            "metrics": list(self.objective.metrics),
            "search": asdict(self.search),
            "workers": self.workers,
        }
