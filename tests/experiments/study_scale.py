"""What the driver of a study costs with 10,000 trials on 1,000 slots, and what breaks first.

    python -m tests.experiments.study_scale [--trials 10000] [--slots 1000]

Nobody starts a thousand processes to test a driver: the trials only sleep, and on paper at that.
Real are Ray Tune's controller, our hooks and driver, the search with its journal on disk, and the
tables. Made up are the processes (their events come in the order of a simulated clock, as fast as
the driver takes them), the dataset, and MLflow, which is measured by itself. Each part runs in a
process of its own, with the number of trials twice, the second ``GROWTH`` times the first.
``docs/scale.md`` is written from this.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

EPOCHS = 16
EPOCH_S = 60.0
"""Simulated seconds per epoch."""
GROWTH = 4
SPACE = {
    "optim.lr": {"log": [1e-5, 1e-3]},
    "data.batch": {"choices": [8, 16, 32, 64]},
    "model.channels": {"choices": [48, 64, 96, 128]},
    "loss.weighted_mse": {"log": [0.25, 4.0]},
}


class SleepingActors:
    """In place of Ray Tune's actor manager: processes that exist in arithmetic alone."""

    def __init__(self, resource_manager: object = None) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._epochs: dict[Any, int] = {}
        self._values: dict[Any, dict[str, Any]] = {}
        self._clock = 0.0
        self._random = random.Random(0)
        self._live_actors_to_ray_actors_resources: dict[Any, tuple[None, None]] = {}

    num_live_actors = property(lambda self: len(self._epochs))
    num_total_actors = property(lambda self: 0)
    num_pending_actors = property(lambda self: 0)
    num_actor_tasks = property(lambda self: len(self._events))

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._clock + seconds, next(self._count), event))

    def add_actor(self, cls, kwargs, resource_request, *, on_start, on_stop, on_error):
        from ray.air.execution._internal import TrackedActor

        actor = TrackedActor(next(self._count), on_start=on_start, on_stop=on_stop)
        self._live_actors_to_ray_actors_resources[actor] = (None, None)
        self._epochs[actor] = 0
        self._values[actor] = kwargs["config"]
        self._later(20.0, lambda: on_start(actor))
        return actor

    def schedule_actor_task(
        self, tracked_actor, method_name, args=(), kwargs=None, on_result=None, on_error=None,
        _return_future=False,
    ):  # fmt: skip
        if method_name == "stop":
            return
        if method_name == "reset":
            self._epochs[tracked_actor] = 0
            self._values[tracked_actor] = args[0]
            self._later(0.3, lambda: on_result(tracked_actor, True))
            return
        seconds = EPOCH_S * self._random.uniform(0.5, 2.0)
        self._later(seconds, lambda: on_result(tracked_actor, self._result(tracked_actor)))

    def _result(self, actor) -> dict[str, Any]:
        import math

        self._epochs[actor] += 1
        epoch = self._epochs[actor]
        miss = abs(math.log10(self._values[actor]["optim.lr"] / 2e-4))
        score = 0.9 - 0.1 * miss - 0.3 / epoch + self._random.gauss(0, 0.003)
        return {
            "epoch": epoch, "training_iteration": epoch, "scores": {"auc_balanced": score},
            "signs": [], "seconds": EPOCH_S, "done": epoch == EPOCHS,
        }  # fmt: skip

    def next(self, timeout=None) -> bool:
        if not self._events:
            return False
        self._clock, _, event = heapq.heappop(self._events)
        event()
        return True

    def remove_actor(self, tracked_actor, kill=False, stop_future=None) -> bool:
        self._epochs.pop(tracked_actor, None)
        self._values.pop(tracked_actor, None)
        return False

    def is_actor_started(self, tracked_actor) -> bool:
        return True

    def is_actor_failed(self, tracked_actor) -> bool:
        return False

    def clear_actor_task_futures(self, tracked_actor) -> None:
        """A trial has one task at a time, which is over when this is called."""

    def get_live_actors_resources(self) -> dict[str, float]:
        return {}

    def cleanup(self) -> None:
        """Nothing runs."""


def _search(journal: Path | None, sampler: str) -> Any:
    from colorcore.recipes.recipe import load_recipe
    from tune.search.objective import Objective
    from tune.search.search import Search, SearchSettings
    from tune.search.space import space_of

    settings = SearchSettings(sampler=sampler, grace=1)  # type: ignore[arg-type]
    space = space_of(SPACE, load_recipe("simple", ["loss.ab_l1=0.5"]))
    return Search(space, Objective(), settings, journal, EPOCHS)


def whole_study(trials: int, slots: int) -> dict[str, float]:
    """A study of the simulated trials, sampled at random; MLflow and checkpoints left out."""
    import ray.tune.execution.tune_controller as controller

    from colorcore.recipes.recipe import load_recipe
    from colorcore.storage.location import open_store
    from pipelines.cluster import ray_session
    from pipelines.training.job import Job
    from tune.search.journal import Journal
    from tune.search.settings import StudySettings
    from tune.studies import driver as driver_module
    from tune.studies.driver import StudyDriver
    from tune.studies.hooks import run_study
    from tune.trials.layout import Layout, Room

    controller.RayActorManager = SleepingActors  # type: ignore[assignment, attr-defined]
    Room.has_room = lambda self, running, placed: running < slots  # type: ignore[method-assign]
    driver_module.has_checkpoint = lambda _: False  # type: ignore[assignment, attr-defined]
    with tempfile.TemporaryDirectory() as folder, ray_session(cpus=1):
        out = open_store(folder)
        search = _search(Path(folder) / "study.log", "random")
        recipe = load_recipe("simple", [f"train.epochs={EPOCHS}"])
        settings = StudySettings(recipe, search.space, search.objective, search.settings, 1)
        silent = SimpleNamespace(
            trial_ended=lambda *_: None, close_trial=lambda *_: None, interrupted=lambda *_: None
        )
        driver = StudyDriver(
            out, settings, out, search, Journal(Path(folder) / "study.log"), silent,  # type: ignore[arg-type]
            "study", trials, 5, 2, Layout(1, slots, use_gpu=False, threads=1),
        )  # fmt: skip
        job = Job(out, recipe, out, "", (0.0, 0.0), 10, {})
        scores: dict[int, dict[str, float]] = {}
        driver_module.StudyDriver._job = lambda self, record: job  # type: ignore[method-assign]

        def told(self: Any, number: int, ending: Any) -> tuple[dict[str, float], Any]:
            values = search._trials()[number].intermediate_values
            scores[number] = {"auc_balanced": max(values.values())}
            return scores[number], ending

        driver_module.StudyDriver._scores = told  # type: ignore[method-assign]
        started, cpu = time.perf_counter(), time.process_time()
        run_study(driver)
        seconds = time.perf_counter() - started
        records = search.records()
        decisions = sum(record.epochs for record in records)
        return {
            "trials": len(records),
            "decisions": decisions,
            "seconds": seconds,
            "cpu_s": time.process_time() - cpu,
            "decisions_per_s": decisions / seconds,
            "trials_per_s": len(records) / seconds,
            "journal_mb": (Path(folder) / "study.log").stat().st_size / 1e6,
            "memory_mb": _peak_mb(),
        }


def draws(trials: int, slots: int) -> dict[str, float]:
    """TPE's time per draw once so many trials have ended, and the time to read the journal."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "study.log"
        search = _search(journal, "random")
        _play(search, trials)
        started = time.perf_counter()
        search = _search(journal, "tpe")
        search.count()
        opened = time.perf_counter() - started
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            search.ask()
            seconds.append(time.perf_counter() - started)
        return {
            "trials": trials,
            "s_per_draw": sorted(seconds)[2],
            "s_to_resume": opened,
            "memory_mb": _peak_mb(),
        }


def tracking(trials: int, slots: int) -> dict[str, float]:
    """MLflow's part of a trial in the driver: the start and the end of its run, in SQLite."""
    from colorcore.storage.location import open_store
    from pipelines.run_log.runs import end_run, start_run
    from tests.mlflow_store import new_store

    trials = min(trials, 200)
    with tempfile.TemporaryDirectory() as folder:
        uri = new_store(Path(folder))
        params = {f"setting.{number}": number for number in range(60)}
        started = time.perf_counter()
        for number in range(trials):
            run = start_run(uri, f"study-{number:04d}", params, {}, None)
            end_run(run, "FINISHED", {}, open_store(folder).below(str(number)), {"a": "b"})
        seconds = time.perf_counter() - started
        return {"trials": trials, "s_per_trial": seconds / trials, "memory_mb": _peak_mb()}


def _play(search: Any, trials: int) -> None:
    from dataclasses import replace

    chance = random.Random(0)
    for _ in range(trials):
        record = search.ask()
        scores = {"auc_balanced": 0.8 + chance.gauss(0, 0.02)}
        ending = search.report(record.number, 1, scores)
        outcome = "finished" if ending is None else ending.outcome
        search.tell(replace(record, outcome=outcome, scores=scores, epochs=1))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS = {"study": whole_study, "draws": draws, "tracking": tracking}


def measure(trials: int, slots: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Every part, in a process of its own, at two sizes."""
    for part in PARTS:
        for size in (trials // GROWTH, trials):
            words = [sys.executable, "-m", __spec__.name, "--part", part]
            words += ["--trials", str(size), "--slots", str(slots)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            yield part, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the figures of each part."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1_000)
    parser.add_argument("--part", choices=PARTS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments.trials, arguments.slots)))
        return
    for part, figures in measure(arguments.trials, arguments.slots):
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
        print(f"{part}: {shown}", flush=True)


if __name__ == "__main__":
    main()
