"""What the suite found: its table, its targets, its JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

NO = "–"
MIN_OF_STEP = 0.95
"""Share of the speed within steps that is kept over epochs (issue "Speed", Numbers)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe; None is what was not measured, and ``note`` says why.

    naive, tf32   photos per second of the naive loop, in fp32 and with TF32 allowed
    in_step       ours, within steps
    over_epochs   ours, over epochs with validation and checkpoints
    memory        bytes at the peak: of the GPU, or of the process on a CPU
    cold_s, warm_s  seconds to the end of the first step, with an empty and a filled compile cache
    parts         seconds that the host spends in parts of a training (``ours.Parts``)
    flops         operations per photo and step, in convolutions and matrix products
    """

    recipe: str
    channels: int | None = None
    batch: int | None = None
    naive: float | None = None
    tf32: float | None = None
    in_step: float | None = None
    over_epochs: float | None = None
    memory: float | None = None
    cold_s: float | None = None
    warm_s: float | None = None
    flops: float | None = None
    parts: dict[str, float] | None = None
    note: str = ""

    @property
    def step_ms(self) -> float | None:
        """Milliseconds per step."""
        return self.batch * 1e3 / self.in_step if self.batch and self.in_step else None

    @property
    def times_naive(self) -> float | None:
        """How many times the naive loop's speed."""
        return self.in_step / self.naive if self.in_step and self.naive else None

    def share(self, rate: float) -> float | None:
        """Share of the device's rate in matrix products, in operations per second."""
        return self.in_step * self.flops / rate if self.in_step and self.flops else None


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that a recipe should reach: at least ``value``, or at most."""

    recipe: str
    what: str
    value: float
    figure: Callable[[Row, float], float | None]
    at_most: bool = False

    def reached(self, row: Row, rate: float) -> bool | None:
        """Whether it is; None if it was not measured."""
        found = self.figure(row, rate)
        if found is None:
            return None
        return found <= self.value if self.at_most else found >= self.value


def _kept(row: Row, _: float) -> float | None:
    return row.over_epochs / row.in_step if row.over_epochs and row.in_step else None


def _first_steps(recipe: str, cold: float) -> tuple[Target, Target]:
    return (
        Target(recipe, "first step, cold cache, s", cold, lambda row, _: row.cold_s, at_most=True),
        Target(recipe, "first step, warm cache, s", 10, lambda row, _: row.warm_s, at_most=True),
    )


TARGETS = (
    Target("unet-l1", "photos/s in the step", 1230, lambda row, _: row.in_step),
    Target("unet-l1", "over epochs, share of that", MIN_OF_STEP, _kept),
    Target("unet-l1", "share of the matrix rate", 0.6, lambda row, rate: row.share(rate)),
    *_first_steps("unet-l1", 20),
    Target("simple", "photos/s in the step", 560, lambda row, _: row.in_step),
    *_first_steps("simple", 20),
    Target("gan", "times the naive loop", 5, lambda row, _: row.times_naive),
    *_first_steps("gan", 45),
    Target("bins", "times the naive loop", 5, lambda row, _: row.times_naive),
    *_first_steps("bins", 45),
)
"""For one H100 or H200, at the recipes' own sizes and ``simple`` at batch 64."""
_COLUMNS: tuple[tuple[str, Callable[[Row, float], Any]], ...] = (
    ("recipe", lambda row, _: row.recipe),
    ("channels", lambda row, _: row.channels),
    ("batch", lambda row, _: row.batch),
    ("naive fp32", lambda row, _: _number(row.naive)),
    ("naive TF32", lambda row, _: _number(row.tf32)),
    ("in the step", lambda row, _: _number(row.in_step)),
    ("over epochs", lambda row, _: _number(row.over_epochs)),
    ("step ms", lambda row, _: _number(row.step_ms)),
    ("GiB", lambda row, _: None if row.memory is None else f"{row.memory / 2**30:.1f}"),
    ("cold s", lambda row, _: _number(row.cold_s)),
    ("warm s", lambda row, _: _number(row.warm_s)),
    ("of matmul", lambda row, rate: _percent(row.share(rate))),
    ("x naive", lambda row, _: None if row.times_naive is None else f"{row.times_naive:.2f}"),
    ("note", lambda row, _: row.note or None),
)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def table_of(rows: Sequence[Row], rate: float) -> str:
    """The rows as a Markdown table; ``rate`` is the device's in matrix products."""
    cells = [[name for name, _ in _COLUMNS]]
    cells += [
        [NO if (value := cell(row, rate)) is None else str(value) for _, cell in _COLUMNS]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def part_lines(rows: Sequence[Row]) -> str:
    """What the first step and an epoch's end consist of, a line per recipe that was measured."""
    return "\n".join(
        f"{row.recipe}, host ms: "
        + ", ".join(f"{name} {seconds * 1e3:,.0f}" for name, seconds in row.parts.items())
        for row in rows
        if row.parts
    )


def verdicts(rows: Sequence[Row], rate: float) -> list[dict[str, Any]]:
    """Each target with what was found: ``reached`` is None where nothing was."""
    by_name = {row.recipe: row for row in rows}
    return [
        {
            "recipe": target.recipe,
            "what": target.what,
            "target": target.value,
            "at_most": target.at_most,
            "found": target.figure(by_name.get(target.recipe, Row(target.recipe)), rate),
            "reached": target.reached(by_name.get(target.recipe, Row(target.recipe)), rate),
        }
        for target in TARGETS
    ]


def verdict_lines(found: Sequence[dict[str, Any]]) -> str:
    """The targets, a line each."""
    words = {True: "pass", False: "miss", None: "not measured"}
    return "\n".join(
        f"{words[each['reached']]:<13}{each['recipe']}: {each['what']}, expected "
        f"{'at most' if each['at_most'] else 'at least'} {each['target']:g}, found "
        f"{NO if each['found'] is None else format(each['found'], '.4g')}"
        for each in found
    )


def report(rows: Sequence[Row], rate: float, machine: dict[str, Any]) -> dict[str, Any]:
    """All of it as plain values for JSON."""
    derived = [
        {"step_ms": row.step_ms, "times_naive": row.times_naive, "share": row.share(rate)}
        for row in rows
    ]
    return {
        "machine": machine,
        "matmul_per_s": rate,
        "rows": [{**asdict(row), **more} for row, more in zip(rows, derived, strict=True)],
    }
