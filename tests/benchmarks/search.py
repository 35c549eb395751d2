"""How soon the search of `cc tune` finds what random search finds: the figures of docs/tuning.md.

::

    python -m tests.benchmarks.search --photos DIR --out FOLDER [--seeds 0 1 2 3 4] [--processes 1]

A seed's random search is 24 trainings of full length, their values drawn from the space that
`cc tune` searches by default (channels divided by 16, so that a core trains one in half a
minute). Its study then has a third of their compute to reach their best score, with the space,
TPE, ASHA and signs of `cc tune`. Compute is counted in photos that were trained on, and in CPU
seconds. Each training leaves a file in ``FOLDER/trainings``; the same command goes on after the
last of them, and prints and draws what there is.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from colorcore.fit import Observer, StepEvent, TrainingDivergedError, ValidationEvent, fit
from colorcore.recipe import Recipe, load_recipe
from tune.objective import Objective
from tune.search import Search, SearchSettings, TrialRecord, Verdict, default_grace
from tune.space import CHANNELS, Axis, Space, default_space, with_values

RANDOM = 24
"""Trials of the random search."""
SHARE = 1 / 3
"""Of its compute, within which the study must reach its best score."""
SIZE = 64
SMALLER = 16
"""What the default channels are divided by."""
RECIPE = (
    "guide",
    "loss.perceptual=0",  # its weights are not the project's to ship
    "model.attention=false",
    "model.depth=3",
    f"model.channels={96 // SMALLER}",
    "optim.warmup_epochs=none",
    "train.epochs=9",
    "train.ema=0.99",
    "train.precision=bf16",
)


def make_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """What is trained, but for the searched values."""
    name, *sets = RECIPE
    return load_recipe(name, [*sets, *overrides])


def make_space(recipe: Recipe) -> Space:
    """The default space, with channels for a small model."""
    small = tuple(channels // SMALLER for channels in CHANNELS)
    return Space(
        tuple(
            Axis(axis.path, axis.kind, small) if axis.path == "model.channels" else axis
            for axis in default_space(recipe).axes
        )
    )


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of a training, as it is kept: its validation, and CPU seconds with it."""

    epoch: int
    scores: dict[str, float]
    signs: tuple[str, ...]
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A training: its epochs, why it ended before its last, and photos trained on."""

    epochs: tuple[Epoch, ...]
    failure: str
    photos: int

    @property
    def cpu_s(self) -> float:
        return sum(epoch.cpu_s for epoch in self.epochs)

    def best(self, metric: str) -> float:
        return max((epoch.scores[metric] for epoch in self.epochs), default=0.0)


class _EndError(Exception):
    """The training is to end."""


class _Record(Observer):
    """Keeps each epoch, and asks whether to go on."""

    def __init__(self, epochs: int, ask: Callable[[Epoch], bool]) -> None:
        self.kept: list[Epoch] = []
        self.photos_a_step, self.steps = 0, 0
        self._epochs, self._ask = epochs, ask
        self._since = time.process_time()

    def on_start(self, total_steps: int, first_step: int) -> None:
        self._since = time.process_time()

    def on_step(self, event: StepEvent) -> None:
        self.steps = event.step

    def on_saved(self, event: ValidationEvent) -> None:
        now = time.process_time()
        names = tuple(sign.name for sign in event.signs)
        self.kept.append(Epoch(event.epoch, event.scores, names, now - self._since))
        # The last one ends here, too: no decoding is chosen, for no model is kept.
        if not self._ask(self.kept[-1]) or event.epoch == self._epochs:
            raise _EndError
        self._since = time.process_time()


def train(recipe: Recipe, dataset: Path, out: Path, ask: Callable[[Epoch], bool]) -> Trained:
    """Train until ``ask`` says no, or what was kept of the same training before."""
    file = out / "trainings" / f"{_key(recipe)}.json"
    if file.exists():
        known = _read(file)
        for at, epoch in enumerate(known.epochs, 1):
            if not ask(epoch):
                return _cut(known, at)
        if known.failure or len(known.epochs) == recipe.train.epochs:
            return known
        file.unlink()  # it is wanted for longer; what it told so far, it will tell again
        skip = len(known.epochs)
        return train(recipe, dataset, out, lambda epoch: epoch.epoch <= skip or ask(epoch))
    import torch

    from tests.benchmarks.guides_run import Photos

    torch.set_num_threads(1)
    record, failure = _Record(recipe.train.epochs, ask), ""
    with TemporaryDirectory() as folder:
        try:
            fit(recipe, Photos(SIZE, dataset, None).fit_data(), Path(folder), observers=[record])
        except _EndError:
            pass
        except TrainingDivergedError as error:
            failure = str(error)
    trained = Trained(tuple(record.kept), failure, record.steps * recipe.data.batch)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({"recipe": recipe.values(), **asdict(trained)}))
    part.replace(file)
    return trained


def _read(file: Path) -> Trained:
    found = json.loads(file.read_text())
    epochs = tuple(Epoch(**{**epoch, "signs": tuple(epoch["signs"])}) for epoch in found["epochs"])
    return Trained(epochs, found["failure"], found["photos"])


def _cut(trained: Trained, epochs: int) -> Trained:
    """The same training, ended earlier."""
    photos = trained.photos * epochs // len(trained.epochs)
    return Trained(trained.epochs[:epochs], "", photos)


def _key(recipe: Recipe) -> str:
    values = recipe.values()
    values.pop("about", None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


Runner = Callable[[Recipe, Callable[[Epoch], bool]], Trained]


def play(search: Search, base: Recipe, record: TrialRecord, run: Runner) -> Trained:
    """One trial, as `cc tune` runs it: ask after each validation, write down how it ended."""
    metric = search.objective.metrics[0]
    recipe = with_values(base, {**record.values, "train.metric": metric})
    verdict: Verdict | None = None

    def ask(epoch: Epoch) -> bool:
        nonlocal verdict
        verdict = search.report(
            record.number,
            epoch.epoch,
            epoch.scores,
            epoch.signs,
            is_last=epoch.epoch == base.train.epochs,
        )
        return verdict is None

    trained = run(recipe, ask)
    if trained.failure:
        verdict = Verdict("failed", trained.failure)
    best = trained.best(metric)
    search.tell(
        replace(
            record,
            outcome=verdict.outcome if verdict else "finished",
            reason=verdict.reason if verdict else "",
            scores={metric: best} if trained.epochs else {},
            epochs=len(trained.epochs),
        )
    )
    return trained


@dataclass(frozen=True, slots=True)
class Point:
    """After a trial: all compute so far, and the best score so far."""

    trials: int
    photos: int
    cpu_s: float
    best: float


def random_search(seed: int, base: Recipe, run: Runner, trials: int = RANDOM) -> Iterator[Point]:
    """Full-length trainings of values drawn at random."""
    settings = SearchSettings(seed=seed, startup=10**9, grace=0, prune_signs=False)
    search = Search(make_space(base), Objective(), settings, None)
    yield from _points(search, base, run, None, lambda point: point.trials < trials)


def study(
    seed: int, base: Recipe, run: Runner, photos: float, settings: SearchSettings | None = None
) -> Iterator[Point]:
    """The study of `cc tune`, until it has trained on so many photos."""
    grace = default_grace(base.train.epochs, base.train.eval_every)
    settings = replace(settings or SearchSettings(grace=grace), seed=seed)
    space = make_space(base)
    search = Search(space, Objective(), settings, None)
    first = space.own_values(base)
    yield from _points(search, base, run, first, lambda point: point.photos < photos)


def _points(
    search: Search,
    base: Recipe,
    run: Runner,
    first: Any,
    goes_on: Callable[[Point], bool],
) -> Iterator[Point]:
    point = Point(0, 0, 0.0, 0.0)
    while goes_on(point):
        trained = play(search, base, search.ask(first), run)
        point = Point(
            point.trials + 1,
            point.photos + trained.photos,
            point.cpu_s + trained.cpu_s,
            max(point.best, trained.best(search.objective.metrics[0])),
        )
        yield point
