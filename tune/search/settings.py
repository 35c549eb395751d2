"""The settings of a study: what identifies it, and the ``[study]`` table of a space file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from colorcore.options import nearest
from colorcore.recipes.recipe import Recipe
from pipelines.errors import WrongCallError
from tune.search.objective import Objective
from tune.search.search import REDUCTION, STARTUP, SearchSettings
from tune.search.space import Space, Value, default_space, read_tables, space_of

KEEP = 5
"""Number of best trials whose checkpoints are kept, ``best`` and ``last``."""
RETRIES = 2
"""Retries of a trial whose processes are lost."""
TABLE = "study"
"""The table of a space file with options of the study; no recipe has a key of this name."""
_LEAST = {"startup": 1, "reduction": 2, "keep": 1, "retries": 0}


@dataclass(frozen=True, slots=True)
class StudySettings:
    """What identifies a study, compared when it is resumed; see :func:`tune.study.tune`."""

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
            "require": [str(each) for each in self.objective.requirements],
            "search": asdict(self.search),
            "workers": self.workers,
        }

    def first_values(self) -> list[dict[str, Value]]:
        """The values of the first trials, which are not sampled; see :meth:`Space.first_values`."""
        return self.space.first_values(self.recipe) if self.search.is_free else []


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """Options that few studies change: the ``[study]`` table of a space file.

    startup, reduction, prune_signs  as in :class:`tune.search.search.SearchSettings`
    keep                             number of best trials whose checkpoints are kept
    retries                          retries of a trial whose processes are lost
    register                         name in MLflow's model registry; None: the study's name
    """

    startup: int = STARTUP
    reduction: int = REDUCTION
    prune_signs: bool = True
    keep: int = KEEP
    retries: int = RETRIES
    register: str | None = None


def load_space_file(
    file: Path, recipe: Recipe, fixed: Collection[str] = ()
) -> tuple[Space, StudyOptions]:
    """The search space and the options of a TOML file, checked against the recipe.

    A file with nothing but ``[study]`` leaves the default space, without the ``fixed`` paths.

    Raises:
        WrongCallError: the file cannot be read, holds an unknown name, or a value that the recipe
            or the study refuses.
    """
    tables = read_tables(file)
    has_options = TABLE in tables
    options = options_of(tables.pop(TABLE, {}), f"{file}: {TABLE}")
    if has_options and not tables:
        return default_space(recipe, fixed), options
    return space_of(tables, recipe, str(file)), options


def options_of(table: Any, where: str = TABLE) -> StudyOptions:
    """The options of a ``[study]`` table.

    Raises:
        WrongCallError: an unknown name, or a value of the wrong type or out of range.
    """
    if not isinstance(table, Mapping):
        raise WrongCallError(f"{where}: expected a table, got {table!r}")
    known = [field.name for field in fields(StudyOptions)]
    for name, value in table.items():
        if name not in known:
            raise WrongCallError(f"{where}: unknown key {name}{nearest(name, known)}")
        if name in _LEAST:
            valid = type(value) is int and value >= _LEAST[name]
            expected = f"an integer of at least {_LEAST[name]}"
        elif name == "prune_signs":
            valid, expected = isinstance(value, bool), "true or false"
        else:
            valid, expected = isinstance(value, str) and bool(value), "a model name"
        if not valid:
            raise WrongCallError(f"{where}.{name}: expected {expected}, got {value!r}")
    return StudyOptions(**table)
