"""What a study searches: dotted paths of the recipe, each with the values it may take.

A space is a TOML file with a table a path::

    ["optim.lr"]
    log = [1e-5, 1e-3]          # between the two, evenly on a logarithmic scale

    ["model.dropout"]
    uniform = [0.0, 0.4]        # evenly between the two

    ["model.depth"]
    uniform = [2, 5]            # whole numbers, where the recipe's value is one

    ["data.batch"]
    choices = [8, 16, 32]       # one of these

A path is as ``--set`` and a run's parameters in MLflow name it. Everything is checked against the
recipe before anything starts.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from colorcore.options import nearest
from colorcore.recipes.recipe import Recipe, RecipeError, parse_recipe
from pipelines.errors import WrongCallError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Kind = Literal["log", "uniform", "choices"]
KINDS: tuple[Kind, ...] = ("log", "uniform", "choices")
Value = float | int | bool | str

LR = (1e-5, 1e-3)
BATCHES = (8, 16, 32, 64)
CHANNELS = (48, 64, 96, 128)
WEIGHT_SPREAD = 4.0
"""A loss weight w is searched from w / 4 to 4 w."""
NOT_SEARCHED = {
    "about": "it is text",
    "train.metric": "a study has one for all trials: --metric",
}
_PROBES = 5
"""Values of a range that are tried on the recipe before a study starts, both ends among them."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One path of the recipe and the values it may take.

    values   ``low, high`` of a range (``log``, ``uniform``), or the choices
    integer  a range's values are whole numbers
    """

    path: str
    kind: Kind
    values: tuple[Value, ...]
    integer: bool = False

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.kind == "choices":
            return CategoricalDistribution(self.values)
        low, high = self._bounds()
        if self.integer:
            return IntDistribution(int(low), int(high), log=self.kind == "log")
        return FloatDistribution(low, high, log=self.kind == "log")

    def holds(self, value: object) -> bool:
        """Whether the value is one that may be drawn."""
        if self.kind == "choices":
            return any(value == one and isinstance(value, type(one)) for one in self.values)
        low, high = self._bounds()
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and low <= value <= high  # type: ignore[operator]

    def probes(self) -> list[Value]:
        """Values to try before a study starts: all choices, or the ends of a range and between."""
        if self.kind == "choices":
            return list(self.values)
        low, high = self._bounds()
        shares = [index / (_PROBES - 1) for index in range(_PROBES)]
        if self.kind == "log":
            between: list[float] = [low * (high / low) ** share for share in shares]
        else:
            between = [low + (high - low) * share for share in shares]
        between[0], between[-1] = low, high
        return [round(value) for value in between] if self.integer else list(between)

    def extremes(self) -> tuple[Value, Value]:
        """The smallest and the largest value of numbers."""
        numbers = [value for value in self.values if isinstance(value, (int, float))]
        least, most = min(numbers), max(numbers)
        return (round(least), round(most)) if self.integer else (least, most)

    def as_table(self) -> dict[str, list[Value]]:
        """What a TOML file holds under the path."""
        return {self.kind: list(self.values)}

    def __str__(self) -> str:
        if self.kind == "choices":
            return " | ".join(map(_shown, self.values))
        scale = "log" if self.kind == "log" else "uniform"
        whole = ", whole numbers" if self.integer else ""
        return f"{_shown(self.values[0])} … {_shown(self.values[1])} ({scale}{whole})"

    def _bounds(self) -> tuple[float, float]:
        low, high = self.values
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Space:
    """The axes of a search, in the order in which values are drawn."""

    axes: tuple[Axis, ...]

    def distributions(self) -> dict[str, BaseDistribution]:
        """By path, for Optuna."""
        return {axis.path: axis.distribution() for axis in self.axes}

    def tables(self) -> dict[str, dict[str, list[Value]]]:
        """What a TOML file of this space holds."""
        return {axis.path: axis.as_table() for axis in self.axes}

    def own_values(self, recipe: Recipe) -> dict[str, Value] | None:
        """The recipe's own values, if all of them lie in the space."""
        flat = recipe.flat()
        own = {axis.path: flat.get(axis.path) for axis in self.axes}
        inside = all(axis.holds(own[axis.path]) for axis in self.axes)
        return own if inside else None  # type: ignore[return-value]

    def first_values(self, recipe: Recipe) -> list[dict[str, Value]]:
        """What the first trials have, before anything is drawn; nothing without ``own_values``.

        The recipe's own values, and the same with the smallest batch and the widest model: the
        guides' first advice against grey and sepia (docs/guides.md), which costs steps and seldom
        score, and a start from which a short search gets further than from values at random
        (docs/tuning.md has the measurement).
        """
        own = self.own_values(recipe)
        if own is None:
            return []
        advised = dict(own)
        for axis in self.axes:
            if axis.path == "data.batch":
                advised[axis.path] = axis.extremes()[0]
            elif axis.path == "model.channels":
                advised[axis.path] = axis.extremes()[1]
        return [own] if advised == own else [own, advised]


def with_values(recipe: Recipe, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe with other values at some dotted paths.

    Raises:
        RecipeError: an unknown path, or a value that the recipe refuses.
    """
    nested = recipe.values()
    for path, value in values.items():
        table = nested
        *parents, last = path.split(".")
        for name in parents:
            inner = table.get(name)
            if inner is None:
                inner = table[name] = {}
            if not isinstance(inner, dict):
                raise RecipeError(f"{where}: {path}: {name} is a value, not a table")
            table = inner
        table[last] = value
    return parse_recipe(nested, where)


def default_space(recipe: Recipe) -> Space:
    """Learning rate, batch, channels where the model has them, and the loss weights above 0.

    A loss of one term has no weight to search: AdamW's steps do not depend on the loss's scale
    (Kingma and Ba 2015, section 2.1).
    """
    axes = [Axis("optim.lr", "log", LR), Axis("data.batch", "choices", BATCHES)]
    if "channels" in recipe.model.options():
        axes.append(Axis("model.channels", "choices", CHANNELS))
    weights = {name: weight for name, weight in recipe.loss.items() if weight > 0}
    if len([weight for weight in recipe.loss.values() if weight]) > 1:
        axes += [
            Axis(f"loss.{name}", "log", (weight / WEIGHT_SPREAD, weight * WEIGHT_SPREAD))
            for name, weight in weights.items()
        ]
    return Space(tuple(axes))


def load_space(file: Path, recipe: Recipe) -> Space:
    """The space of a TOML file, checked against the recipe.

    Raises:
        WrongCallError: no such file, no valid TOML, an unknown path or kind, a range or choice
            that the recipe refuses.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongCallError(f"cannot read the space {file}: {error}") from error
    return space_of(tables, recipe, str(file))


def space_of(tables: Mapping[str, Any], recipe: Recipe, where: str = "space") -> Space:
    """The space of such tables as a TOML file holds; see :func:`load_space`."""
    axes = tuple(_axis(path, table, recipe, where) for path, table in _paths(tables, where))
    if not axes:
        raise WrongCallError(
            f'{where} holds no path; expected tables such as ["optim.lr"] log = [1e-5, 1e-3]'
        )
    space = Space(axes)
    for axis in axes:
        _try(axis, recipe, where)
    return space


def _paths(
    tables: Mapping[str, Any], where: str, prefix: str = ""
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Path and table of each axis; ``[optim.lr]`` without quotes means the same as with."""
    for name, table in tables.items():
        path = f"{prefix}{name}"
        if not isinstance(table, Mapping):
            raise WrongCallError(
                f"{where}: {path}: expected a table with one of {', '.join(KINDS)}, got {table!r}"
            )
        if table and all(isinstance(inner, Mapping) for inner in table.values()):
            yield from _paths(table, where, f"{path}.")
        else:
            yield path, table


def _axis(path: str, table: Mapping[str, Any], recipe: Recipe, where: str) -> Axis:
    where = f"{where}: {path}"
    for key in table:
        if key not in KINDS:
            raise WrongCallError(f"{where}: unknown key {key}{nearest(key, KINDS)}")
    if len(table) != 1:
        raise WrongCallError(f"{where}: expected one of {', '.join(KINDS)}, got {len(table)}")
    if path in NOT_SEARCHED:
        raise WrongCallError(f"{where}: cannot be searched, {NOT_SEARCHED[path]}")
    ((kind, values),) = table.items()
    if not isinstance(values, list):
        raise WrongCallError(f"{where}: expected a list under {kind}, got {values!r}")
    if kind == "choices":
        return Axis(path, "choices", _choices(values, where))
    return _range(path, kind, values, recipe, where)


def _choices(values: list[Any], where: str) -> tuple[Value, ...]:
    wrong = [value for value in values if not isinstance(value, (bool, int, float, str))]
    if wrong:
        raise WrongCallError(f"{where}: expected numbers, text, true or false, got {wrong[0]!r}")
    if len({(type(value), value) for value in values}) < 2 or len(values) != len(set(values)):
        raise WrongCallError(f"{where}: expected two different choices or more, got {values}")
    return tuple(values)


def _range(path: str, kind: Any, values: list[Any], recipe: Recipe, where: str) -> Axis:
    numbers = [
        value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if len(numbers) != len(values) or len(values) != 2 or not all(map(math.isfinite, numbers)):
        raise WrongCallError(f"{where}: expected {kind} = [low, high], got {values}")
    low, high = numbers
    if low >= high:
        raise WrongCallError(f"{where}: expected low below high, got {low} and {high}")
    if kind == "log" and low <= 0:
        raise WrongCallError(f"{where}: expected low above 0 on a log scale, got {low}")
    own = recipe.flat().get(path)
    whole = isinstance(own, int) and not isinstance(own, bool)
    if whole and not all(isinstance(value, int) for value in numbers):
        raise WrongCallError(f"{where}: expected whole numbers, got {values}")
    return Axis(path, kind, (low, high), integer=whole)


def _try(axis: Axis, recipe: Recipe, where: str) -> None:
    """Whether the recipe takes the axis's values, each with its own others."""
    for value in axis.probes():
        try:
            with_values(recipe, {axis.path: value}, where)
        except RecipeError as error:
            raise WrongCallError(f"{error} ({axis.path} = {_shown(value)})") from error


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown_values(values: Mapping[str, Value]) -> str:
    """A trial's values in one line: ``optim.lr 3.1e-4, data.batch 16``."""
    return ", ".join(f"{path} {_shown(value)}" for path, value in values.items())
