"""The search space: dotted paths of the recipe, each with the values it may take.

A space is a TOML file with one table per path::

    ["optim.lr"]
    log = [1e-5, 1e-3]          # a range, sampled uniformly on a logarithmic scale

    ["model.dropout"]
    uniform = [0.0, 0.4]        # a range, sampled uniformly

    ["model.depth"]
    uniform = [2, 5]            # integers if the recipe's value is an integer

    ["data.batch"]
    choices = [8, 16, 32]       # one of these

Paths are named as for ``--set`` and in a run's parameters in MLflow. Everything is checked against
the recipe before anything starts.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
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

BATCHES = (8, 16, 32, 64)
CHANNEL_FACTORS = (1 / 2, 2 / 3, 1, 4 / 3)
"""Channels as multiples of the recipe's own: 48, 64, 96 and 128 for the guides' 96."""
LR_SPREAD = 10.0
"""The range of the learning rate is a tenth to ten times the recipe's own."""
SPREAD = 4.0
"""The range of a loss weight w is w / 4 to 4 w."""
NOT_SEARCHED = {
    "about": "it is a description",
    "train.metric": "all trials of a study share it; set --metric",
}
_PROBES = 5
"""Values of a range that are checked before a study starts, including both ends."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One path of the recipe and the values it may take.

    values   ``low, high`` of a range (``log``, ``uniform``), or the choices
    integer  whether a range holds integers only
    """

    path: str
    kind: Kind
    values: tuple[Value, ...]
    integer: bool = False

    def distribution(self) -> BaseDistribution:
        """The values as Optuna's distribution."""
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
        """Whether the value lies in the axis."""
        if self.kind == "choices":
            return any(value == one and isinstance(value, type(one)) for one in self.values)
        low, high = self._bounds()
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and low <= value <= high  # type: ignore[operator]

    def probes(self) -> list[Value]:
        """Values to check before a study starts: all choices, or some of a range."""
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
        """The smallest and the largest number."""
        numbers = [value for value in self.values if isinstance(value, (int, float))]
        least, most = min(numbers), max(numbers)
        return (round(least), round(most)) if self.integer else (least, most)

    def as_table(self) -> dict[str, list[Value]]:
        """The path's table in a TOML file."""
        return {self.kind: list(self.values)}

    def __str__(self) -> str:
        if self.kind == "choices":
            return " | ".join(map(_shown, self.values))
        scale = "log" if self.kind == "log" else "uniform"
        kind = ", integers" if self.integer else ""
        return f"{_shown(self.values[0])} … {_shown(self.values[1])} ({scale}{kind})"

    def _bounds(self) -> tuple[float, float]:
        low, high = self.values
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Space:
    """The axes of a search, in the order in which their values are sampled."""

    axes: tuple[Axis, ...]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions by path."""
        return {axis.path: axis.distribution() for axis in self.axes}

    def tables(self) -> dict[str, dict[str, list[Value]]]:
        """The tables of a TOML file with this space."""
        return {axis.path: axis.as_table() for axis in self.axes}

    def own_values(self, recipe: Recipe) -> dict[str, Value] | None:
        """The recipe's own values, if all of them lie in the space; else None."""
        flat = recipe.flat()
        own = {axis.path: flat.get(axis.path) for axis in self.axes}
        inside = all(axis.holds(own[axis.path]) for axis in self.axes)
        return own if inside else None  # type: ignore[return-value]

    def first_values(self, recipe: Recipe) -> list[dict[str, Value]]:
        """The values of the first trials, which are not sampled; [] without ``own_values``.

        The recipe's own values, and these with the smallest batch and the widest model: the guides'
        first advice against grey and sepia colours (docs/guides.md). It costs time but seldom
        score, and a short search that starts from it ends higher than one that starts from random
        values (measured in docs/tuning.md).
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
    """The recipe with other values at the given dotted paths.

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


def default_space(recipe: Recipe, fixed: Collection[str] = ()) -> Space:
    """Learning rate, batch size, channels if the model has them, and the loss weights above 0.

    All ranges hold the recipe's own values; those on a log scale are centred on them.

    Paths in ``fixed`` are left out: whoever sets a value on the command line means that value. The
    weight of a single loss term is left out too, because AdamW's steps do not depend on the scale
    of the loss (Kingma and Ba 2015, section 2.1).

    Raises:
        WrongCallError: nothing is left to search.
    """
    rate, batch = recipe.optim.lr, recipe.data.batch
    axes = [
        Axis("optim.lr", "log", (rate / LR_SPREAD, rate * LR_SPREAD)),
        Axis("data.batch", "choices", tuple(sorted({*BATCHES, batch}))),
    ]
    if "channels" in recipe.model.options():
        channels = _channels_around(recipe.model.options()["channels"])
        if len(channels) > 1:
            axes.append(Axis("model.channels", "choices", channels))
    if len([weight for weight in recipe.loss.values() if weight]) > 1:
        axes += [
            Axis(f"loss.{name}", "log", (weight / SPREAD, weight * SPREAD))
            for name, weight in recipe.loss.items()
            if weight > 0
        ]
    searched = tuple(axis for axis in axes if axis.path not in fixed)
    if not searched:
        raise WrongCallError(
            "--set fixes every setting that is searched by default; "
            "list the settings to search in a file and pass it with --space"
        )
    return Space(searched)


def _channels_around(own: int) -> tuple[int, ...]:
    """Numbers of channels around a recipe's own; above 32, multiples of 8, which GPUs prefer."""
    step = 8 if own >= 32 else 1
    near = {max(1, round(own * factor / step) * step) for factor in CHANNEL_FACTORS}
    return tuple(sorted(near - {round(own / step) * step} | {own}))


def read_tables(file: Path) -> dict[str, Any]:
    """The tables of a space file, unchecked.

    Raises:
        WrongCallError: the file cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongCallError(f"cannot read the search space {file}: {error}") from error


def space_of(tables: Mapping[str, Any], recipe: Recipe, where: str = "space") -> Space:
    """The space of the tables of a TOML file, checked against the recipe.

    Raises:
        WrongCallError: no table, an unknown path or kind, or a range or choice that the recipe
            refuses.
    """
    axes = tuple(_axis(path, table, recipe, where) for path, table in _paths(tables, where))
    if not axes:
        raise WrongCallError(
            f'{where} is empty; expected tables such as ["optim.lr"] log = [1e-5, 1e-3]'
        )
    space = Space(axes)
    for axis in axes:
        _try(axis, recipe, where)
    return space


def _paths(
    tables: Mapping[str, Any], where: str, prefix: str = ""
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Path and table of each axis; ``[optim.lr]`` means the same as ``["optim.lr"]``."""
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
        raise WrongCallError(
            f"{where}: expected exactly one of {', '.join(KINDS)}, got {len(table)}"
        )
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
        raise WrongCallError(f"{where}: expected numbers, strings or booleans, got {wrong[0]!r}")
    if len({(type(value), value) for value in values}) < 2 or len(values) != len(set(values)):
        raise WrongCallError(f"{where}: expected at least two different choices, got {values}")
    return tuple(values)


def _range(path: str, kind: Any, values: list[Any], recipe: Recipe, where: str) -> Axis:
    numbers = [
        value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if len(numbers) != len(values) or len(values) != 2 or not all(map(math.isfinite, numbers)):
        raise WrongCallError(f"{where}: expected {kind} = [low, high], got {values}")
    low, high = numbers
    if low >= high:
        raise WrongCallError(f"{where}: expected low < high, got {low} and {high}")
    if kind == "log" and low <= 0:
        raise WrongCallError(f"{where}: expected low > 0 on a log scale, got {low}")
    own = recipe.flat().get(path)
    is_integer = isinstance(own, int) and not isinstance(own, bool)
    if is_integer and not all(isinstance(value, int) for value in numbers):
        raise WrongCallError(f"{where}: expected integers, got {values}")
    return Axis(path, kind, (low, high), integer=is_integer)


def _try(axis: Axis, recipe: Recipe, where: str) -> None:
    """Check that the recipe accepts the axis's values, one at a time."""
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
    """A trial's values on one line: ``optim.lr 3.1e-4, data.batch 16``."""
    return ", ".join(f"{path} {_shown(value)}" for path, value in values.items())
