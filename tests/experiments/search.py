"""How soon `cc tune` finds what random search finds: the figures of docs/tuning.md.

::

    python -m tests.experiments.search --photos DIR --out FOLDER [--seeds 0 1 2 3 4] [--processes 1]

For each seed, random search runs 24 trainings of full length, sampled from the default search space
of `cc tune` (channels divided by 16, so that one core needs twenty seconds per training). A study
with the space, TPE and ASHA of `cc tune` then has a third of that compute to reach the same best
score. Compute is measured in training photos and in CPU seconds. Signs of bad colour end no trial
on either side. Both best recipes are then trained with other random seeds. A difference of the best
scores within twice the standard deviation of the study's is called a tie. Both recipes are also
compared at equal colourfulness, because a search may win by being paler. Each training leaves a
file in ``FOLDER/trainings``; the same command resumes after the last one, and prints and draws the
results so far.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from colorcore.checkpoints.checkpoint import has_checkpoint, load_checkpoint
from colorcore.dataset.loader import val_batches
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.training.events import Observer, StepEvent, TrainingDivergedError, ValidationEvent
from colorcore.training.fit import fit
from tests.experiments.equal import Front, equal_table, front_of
from tune.search.objective import Ending, Objective
from tune.search.search import Search, SearchSettings, TrialRecord, default_grace
from tune.search.space import Axis, Space, default_space, with_values

RANDOM = 24
"""Trials of the random search."""
SHARE = 1 / 3
"""Of its compute, within which the study must reach its best score."""
SIZE = 64
METRIC = Objective().metrics[0]
CHANNELS = (3, 4, 6, 8)
"""A sixteenth of the default ones of the guides' recipe."""
SPREAD_SEEDS = 5
"""Trainings of the same recipe, whose scores show how much chance alone changes."""
RECIPE = (
    "unet-l1",  # as docs/training.md has it, whose training ends well ahead of the constant
    "loss.saturation=0.1",  # a second term, so that weights are searched
    "model.depth=3",
    "model.channels=4",
    "model.dropout=0.1",
    "data.batch=16",
    "data.crop=0.5",
    "optim.schedule=onecycle",
    "optim.warmup=0.1",
    "optim.weight_decay=0.05",
    "train.epochs=6",
    "train.ema=0.99",
    "train.precision=bf16",
)


def make_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """What is trained, but for the searched values."""
    name, *sets = RECIPE
    return load_recipe(name, [*sets, *overrides])


def make_space(recipe: Recipe) -> Space:
    """The default space, with channels for a small model."""
    return Space(
        tuple(
            Axis(axis.path, axis.kind, CHANNELS) if axis.path == "model.channels" else axis
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
    """A training: its epochs, why it ended before its last, and photos trained on.

    front  of the best checkpoint on the validation photos, if it was asked for
    """

    epochs: tuple[Epoch, ...]
    failure: str
    photos: int
    front: Front = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        return sum(epoch.cpu_s for epoch in self.epochs)

    def best(self, metric: str) -> float:
        return max((epoch.scores[metric] for epoch in self.epochs), default=0.0)


class _EndError(Exception):
    """The training is to end."""


class _Record(Observer):
    """Keeps each epoch, and asks whether to go on."""

    waits_for_files = True

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


def train(
    recipe: Recipe, dataset: Path, out: Path, ask: Callable[[Epoch], bool], *, front: bool = False
) -> Trained:
    """Train until ``ask`` says no, or what was kept of the same training before.

    With ``front``, a training that was kept without its front is done again.
    """
    file = out / "trainings" / f"{_key(recipe)}.json"
    if file.exists() and (_read(file).front or not front):
        known = _read(file)
        for at, epoch in enumerate(known.epochs, 1):
            if not ask(epoch):
                return _cut(known, at)
        if known.failure or len(known.epochs) == recipe.train.epochs:
            return known
        file.unlink()  # it is wanted for longer; what it told so far, it will tell again
        skip = len(known.epochs)
        return train(
            recipe, dataset, out, lambda epoch: epoch.epoch <= skip or ask(epoch), front=front
        )
    import torch

    from tests.experiments.photos import BATCH, Photos

    torch.set_num_threads(1)
    record, failure = _Record(recipe.train.epochs, ask), ""
    data, kept = Photos(SIZE, dataset, None).fit_data(), {}
    with TemporaryDirectory() as folder:
        try:
            fit(recipe, data, Path(folder), observers=[record])
        except _EndError:
            pass
        except TrainingDivergedError as error:
            failure = str(error)
        if front and has_checkpoint(Path(folder) / "best"):
            model = load_checkpoint(Path(folder) / "best").model()
            kept = front_of(model, val_batches(data.val, BATCH), data.palette)
    trained = Trained(tuple(record.kept), failure, record.steps * recipe.data.batch, kept)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({"recipe": recipe.values(), **asdict(trained)}))
    part.replace(file)
    return trained


def _read(file: Path) -> Trained:
    found = json.loads(file.read_text())
    epochs = tuple(Epoch(**{**epoch, "signs": tuple(epoch["signs"])}) for epoch in found["epochs"])
    return Trained(epochs, found["failure"], found["photos"], found.get("front", {}))


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
    verdict: Ending | None = None

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
        verdict = Ending("failed", trained.failure)
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
    """After a trial: all compute so far, the best score so far, and the values that had it."""

    trials: int
    photos: int
    cpu_s: float
    best: float
    values: dict[str, Any]


def random_search(seed: int, base: Recipe, run: Runner, trials: int = RANDOM) -> Iterator[Point]:
    """Full-length trainings of values drawn at random."""
    settings = SearchSettings(seed=seed, startup=10**9, scheduler="none", prune_signs=False)
    search = Search(make_space(base), Objective(), settings, None)
    yield from _points(search, base, run, (), lambda point: point.trials < trials)


def study(seed: int, base: Recipe, run: Runner, photos: float) -> Iterator[Point]:
    """The study of `cc tune`, until it has trained on so many photos."""
    grace = default_grace(base.train.epochs, base.train.eval_every)
    settings = SearchSettings(seed=seed, grace=grace, prune_signs=False)
    space = make_space(base)
    search = Search(space, Objective(), settings, None)
    first = space.first_values(base)
    yield from _points(search, base, run, first, lambda point: point.photos < photos)


def _points(
    search: Search,
    base: Recipe,
    run: Runner,
    first: Any,
    goes_on: Callable[[Point], bool],
) -> Iterator[Point]:
    point = Point(0, 0, 0.0, 0.0, {})
    while goes_on(point):
        record = search.ask(first)
        trained = play(search, base, record, run)
        score = trained.best(search.objective.metrics[0])
        best, values = point.best, point.values
        if score > best:
            best, values = score, record.values
        photos, cpu_s = point.photos + trained.photos, point.cpu_s + trained.cpu_s
        point = Point(point.trials + 1, photos, cpu_s, best, values)
        yield point


@dataclass(frozen=True, slots=True)
class Measured:
    """A seed's random search and its study, and their best recipes with other seeds.

    spread  the scores of the study's best recipe by seed
    fronts  of both best recipes by seed
    """

    found: list[Point]
    points: list[Point]
    spread: list[float]
    fronts: dict[str, list[Front]]

    @property
    def deviation(self) -> float:
        """Standard deviation of one training."""
        return statistics.stdev(self.spread)


def measure(seed: int, dataset: Path, out: Path) -> Measured:
    """A seed's random search and its study."""
    base = make_recipe()

    def run(recipe: Recipe, ask: Callable[[Epoch], bool]) -> Trained:
        return train(recipe, dataset, out, ask)

    found = list(random_search(seed, base, run))
    print(f"seed {seed}: random search, {_told(found[-1])}", flush=True)
    points = list(study(_STUDY_SEEDS + seed, base, run, SHARE * found[-1].photos))
    print(f"seed {seed}: study, {_told(points[-1])}", flush=True)

    def again(best: Point) -> list[Trained]:
        """The trainings of a search's best recipe with other seeds."""
        recipes = [
            with_values(base, {**best.values, "train.metric": METRIC, "train.seed": other})
            for other in range(1, SPREAD_SEEDS + 1)
        ]
        return [train(recipe, dataset, out, lambda _: True, front=True) for recipe in recipes]

    sides = {"random search": again(found[-1]), "study": again(within(found, points)[-1])}
    scores = {name: [each.best(METRIC) for each in side] for name, side in sides.items()}
    for name, side in scores.items():
        print(f"seed {seed}: best recipe of the {name} with other seeds, {side}", flush=True)
    fronts = {name: [each.front for each in side] for name, side in sides.items()}
    return Measured(found, points, scores["study"], fronts)


def within(found: Sequence[Point], points: Sequence[Point]) -> list[Point]:
    """The study, cut off at its share of the random search's compute."""
    return [point for point in points if point.photos <= SHARE * found[-1].photos]


_STUDY_SEEDS = 1000
"""So that a study draws nothing that its random search drew."""


def _told(point: Point) -> str:
    return (
        f"{point.trials} trials, {point.photos:,} photos, {point.cpu_s:.0f} CPU s: "
        f"best {point.best:.4f}"
    )


def reached(points: Sequence[Point], best: float) -> Point | None:
    """Where a search had found that score, if it did."""
    return next((point for point in points if point.best >= best), None)


def table(results: dict[int, Measured]) -> Iterator[str]:
    """A row a seed, as in docs/tuning.md."""
    yield (
        "| seed | best of random | study, a third | of one training ± | | trials "
        "| reached after | of the CPU time |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    verdicts = []
    for seed, measured in sorted(results.items()):
        whole, study = measured.found[-1], within(measured.found, measured.points)
        best = study[-1].best
        verdicts.append(verdict(best - whole.best, measured.deviation))
        hit = reached(study, whole.best)
        when = "not" if hit is None else f"{hit.photos / whole.photos:.0%} of the photos"
        spent = "" if hit is None else f"{hit.cpu_s / whole.cpu_s:.0%}"
        yield (
            f"| {seed} | {whole.best:.4f} | {best:.4f} | {measured.deviation:.4f} "
            f"| {verdicts[-1]} | {len(study)} | {when} | {spent} |"
        )
    counts = ", ".join(f"{name}: {verdicts.count(name)}" for name in ("won", "tie", "lost"))
    yield f"\n{counts} of {len(results)}"


def verdict(difference: float, deviation: float) -> str:
    """Whether the study won; a difference within twice the deviation of one training is a tie."""
    if abs(difference) <= 2 * deviation:
        return "tie"
    return "won" if difference > 0 else "lost"


def draw(results: dict[int, Measured]) -> bytes:
    """The best so far by compute, a line a search: the bytes of a PNG."""
    from colorcore.drawing.style import plot_png

    def on(figure: Any) -> None:
        axes = figure.add_axes((0.1, 0.13, 0.87, 0.77))
        for number, measured in enumerate(results.values()):
            whole = measured.found[-1].photos
            for course, color, name in (
                (measured.found, "#b9c4cf", f"{RANDOM} random trials"),
                (measured.points, "#b5121b", "the study of cc tune"),
            ):
                axes.step(
                    [point.photos / whole for point in course],
                    [point.best for point in course],
                    where="post",
                    color=color,
                    lw=1.6,
                    label=name if number == 0 else None,
                )
        axes.axvline(SHARE, color="#8a8a8a", lw=0.8, ls="--")
        axes.set_xlabel("photos trained on, as a share of the random search's")
        axes.set_ylabel("best balanced AuC so far")
        axes.set_title(f"{len(results)} seeds; dashed: a third of the compute")
        axes.legend(loc="lower right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)

    return plot_png((9.0, 5.6), on)


def main() -> None:
    """Train what is missing, then print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--out", type=Path, default=Path("search-bench"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--processes", type=int, default=1, help="seeds at a time, a thread each")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from colorcore.dataset.layout import read_info
    from tests.experiments.photos import prepare

    dataset = arguments.out / f"dataset-{SIZE}"
    if not (dataset / "dataset.json").exists() or not read_info(dataset).counts:
        prepare(arguments.photos, None, SIZE, arguments.out)
    results = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        futures = {
            pool.submit(measure, seed, dataset, arguments.out): seed for seed in arguments.seeds
        }
        for future in as_completed(futures):
            results[futures[future]] = future.result()
    print("\n".join(table(results)))
    for seed, measured in sorted(results.items()):
        print("", *equal_table(f"seed {seed}, val", measured.fronts), sep="\n")
    (arguments.out / "search.png").write_bytes(draw(results))


if __name__ == "__main__":
    main()
