"""Trials on a cluster: each a Ray Train run, in a slot that stays warm from one to the next.

A slot is an actor. A trial of one worker trains in the slot's own process, as a local run of Ray
Train, so torch is imported once a slot and not once a trial. A trial of several workers is a Ray
Train run of its own, whose workers hold the CPUs and the slot none: there are only as many slots
as trials fit into the cluster, so no trial waits for what another one holds.

The driver decides and the trials ask: after each validation every rank waits at the desk, an
actor, until the driver has answered whether the trial goes on.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorcore.fit import Observer, TrainingDivergedError, ValidationEvent
from pipelines.errors import WrongCallError
from pipelines.training_job import Job, train_rank
from tune.search import Verdict

GO_ON = None
"""The answer to a trial that is to go on."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a study lies on its cluster.

    workers     ranks of a trial
    concurrent  trials at a time
    use_gpu     whether a rank has a GPU of its own
    threads     CPU threads a rank; None leaves torch's own choice
    """

    workers: int
    concurrent: int
    use_gpu: bool
    threads: int | None


def layout_for(workers: int, concurrent: int | None) -> Layout:
    """The layout on the cluster that is connected; None fills it.

    Raises:
        WrongCallError: the cluster is too small for it.
    """
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    use_gpu = gpus >= workers
    there, kind = (gpus, "GPU") if use_gpu else (cpus, "CPU")
    if workers > there:
        raise WrongCallError(
            f"expected at most {there} workers a trial, one a {kind} of this cluster, got {workers}"
        )
    fit = there // workers
    if concurrent is not None and concurrent > fit:
        raise WrongCallError(
            f"expected at most {fit} trials at a time, {workers} {kind}{'s' * (workers > 1)} each "
            f"of this cluster's {there}, got --concurrent {concurrent}"
        )
    concurrent = concurrent or fit
    threads = None if use_gpu else max(1, cpus // (concurrent * workers))
    return Layout(workers, concurrent, use_gpu, threads)


@dataclass(frozen=True, slots=True)
class Validated:
    """A trial's news after a validation; seconds are those in its epochs since the last news."""

    number: int
    attempt: int
    epoch: int
    scores: dict[str, float]
    signs: tuple[str, ...]
    is_last: bool
    seconds: float


class Trials:
    """The slots of a study and the desk; used by its driver, inside of a Ray session."""

    def __init__(self, layout: Layout) -> None:
        import ray

        for logger in ("ray.train", "ray.tune", "ray.data"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        self.layout = layout
        # Beside the head, whose loss ends the study anyway.
        desk: Any = ray.remote(_Desk)
        beside = {"node:__internal_head__": 0.001}
        self._desk: Any = desk.options(num_cpus=0, resources=beside).remote()
        self._news: Any = self._desk.news.remote()
        self._free: list[Any] = []
        self._busy: dict[Any, tuple[int, Any]] = {}

    @property
    def running(self) -> list[int]:
        """Numbers of the trials that are in slots."""
        return [number for number, _ in self._busy.values()]

    @property
    def has_room(self) -> bool:
        """Whether another trial can start."""
        return len(self._busy) < self.layout.concurrent

    def start(self, number: int, attempt: int, job: Job, *, decoding: bool = False) -> None:
        """Start a trial, or go on with it from ``job.out/last``.

        With ``decoding`` a finished one chooses what its best checkpoint is decoded with: trials
        are compared without, so all but the best are spared that.
        """
        slot = self._free.pop() if self._free else self._slot()
        future = slot.run.remote(number, attempt, job, self._desk, self.layout, decoding)
        self._busy[future] = (number, slot)

    def wait(self) -> Iterator[Validated | Ended]:
        """Wait for something to happen; what did."""
        import ray

        ready, _ = ray.wait([self._news, *self._busy], num_returns=1)
        for future in ready:
            if future == self._news:
                news = ray.get(future)
                self._news = self._desk.news.remote()
                yield from news
            else:
                yield self._ended(future)

    def answer(self, news: Validated, verdict: Verdict | None) -> None:
        """Let a waiting trial go on, or end it."""
        self._desk.answer.remote((news.number, news.attempt, news.epoch), verdict)

    def close(self) -> None:
        """End all slots, and the trials in them."""
        import ray

        for slot in [*self._free, *(slot for _, slot in self._busy.values()), self._desk]:
            ray.kill(slot)
        self._free, self._busy = [], {}

    def _slot(self) -> Any:
        import ray

        alone = self.layout.workers == 1
        gpus = 1 if alone and self.layout.use_gpu else 0
        return ray.remote(_Slot).options(num_cpus=1 if alone else 0, num_gpus=gpus).remote()

    def _ended(self, future: Any) -> Ended:
        import ray
        from ray.exceptions import RayError

        number, slot = self._busy.pop(future)
        try:
            verdict, failure = ray.get(future)
        except (RayError, RuntimeError) as error:
            ray.kill(slot)  # dead, or in a state that nobody knows
            return Ended(number, None, None, lost=_first_line(error))
        self._free.append(slot)
        return Ended(number, verdict, failure)


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial has left its slot.

    verdict  why it was ended early, if it was
    failure  an error that it would only repeat
    lost     how its processes were lost; it is worth another try
    """

    number: int
    verdict: Verdict | None
    failure: str | None
    lost: str | None = None


class _Desk:
    """Where trials hand in their news and wait for answers; it decides nothing."""

    def __init__(self) -> None:
        import asyncio

        self._inbox: list[Validated] = []
        self._there = asyncio.Event()
        self._answers: dict[tuple[int, int, int], asyncio.Future[Verdict | None]] = {}
        self._failures: dict[int, str] = {}

    async def news(self) -> list[Validated]:
        """Everything new; waits until there is something."""
        await self._there.wait()
        self._there.clear()
        news, self._inbox = self._inbox, []
        return news

    async def hand_in(self, news: Validated) -> Verdict | None:
        """A first rank's news; waits for the answer."""
        for key in [key for key in self._answers if key[0] == news.number]:
            if key[1:] < (news.attempt, news.epoch):
                del self._answers[key]
        self._inbox.append(news)
        self._there.set()
        verdict: Verdict | None = await self._future((news.number, news.attempt, news.epoch))
        return verdict

    async def verdict(self, key: tuple[int, int, int]) -> Verdict | None:
        """The same answer for the other ranks."""
        verdict: Verdict | None = await self._future(key)
        return verdict

    async def answer(self, key: tuple[int, int, int], verdict: Verdict | None) -> None:
        future = self._future(key)
        if not future.done():
            future.set_result(verdict)

    async def fail(self, number: int, why: str) -> None:
        """Note an error that another try would only repeat."""
        self._failures[number] = why

    async def failure(self, number: int) -> str | None:
        return self._failures.pop(number, None)

    def _future(self, key: tuple[int, int, int]) -> Any:
        import asyncio

        if key not in self._answers:
            self._answers[key] = asyncio.get_running_loop().create_future()
        return self._answers[key]


class _Slot:
    """Where trials run, one after the other."""

    def run(
        self, number: int, attempt: int, job: Job, desk: Any, layout: Layout, decoding: bool
    ) -> tuple[Verdict | None, str | None]:
        """Train; returns why it ended early, and an error that it would only repeat."""
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        for logger in ("ray.train", "ray.tune", "ray.data"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        alone = layout.workers == 1
        with tempfile.TemporaryDirectory(prefix="colorcore-trial-") as storage:
            trainer = TorchTrainer(
                _rank,
                train_loop_config={
                    "number": number,
                    "attempt": attempt,
                    "job": job,
                    "desk": desk,
                    "decoding": decoding,
                },
                scaling_config=ScalingConfig(
                    num_workers=0 if alone else layout.workers, use_gpu=layout.use_gpu
                ),
                run_config=RunConfig(
                    name=f"trial-{number:04d}-{attempt}", storage_path=None if alone else storage
                ),
            )
            try:
                trainer.fit()
            except ray.train.TrainingFailedError:
                if (failure := ray.get(desk.failure.remote(number))) is not None:
                    return None, failure
                raise
        verdict = ray.get(desk.verdict.remote((number, attempt, _END)))
        return verdict, ray.get(desk.failure.remote(number))


_END = 2**31
"""In place of an epoch: where a trial's first rank leaves the verdict that ended it."""


class _TrialEndedError(Exception):
    """Raised in every rank of a trial that is to end, or has come to its end."""

    def __init__(self, verdict: Verdict | None) -> None:
        super().__init__()
        self.verdict = verdict


class _Asks(Observer):
    """Tells of every validation once its checkpoint is written, and ends the trial if told to."""

    def __init__(self, number: int, attempt: int, epochs: int, desk: Any, *, first: bool) -> None:
        self._number, self._attempt, self._epochs = number, attempt, epochs
        self._desk, self._first = desk, first
        self._since = time.perf_counter()

    def on_start(self, total_steps: int, first_step: int) -> None:
        self._since = time.perf_counter()

    def on_saved(self, event: ValidationEvent) -> None:
        import ray

        if self._first:
            news = Validated(
                self._number,
                self._attempt,
                event.epoch,
                event.scores,
                tuple(sign.name for sign in event.signs),
                event.epoch == self._epochs,
                time.perf_counter() - self._since,
            )
            verdict = ray.get(self._desk.hand_in.remote(news))
        else:
            key = (self._number, self._attempt, event.epoch)
            verdict = ray.get(self._desk.verdict.remote(key))
        if verdict is not GO_ON or event.epoch == self._epochs:
            raise _TrialEndedError(verdict)
        self._since = time.perf_counter()


def _rank(config: dict[str, Any]) -> None:
    """One rank of a trial, inside of Ray Train."""
    import ray
    from ray import train as ray_train

    number, attempt, desk = config["number"], config["attempt"], config["desk"]
    job: Job = config["job"]
    context = ray_train.get_context()
    first, alone = context.get_world_rank() == 0, context.get_world_size() == 1
    asks = _Asks(number, attempt, job.recipe.train.epochs, desk, first=first)
    verdict: Verdict | None = GO_ON
    try:
        train_rank(job, [] if config["decoding"] else [asks])
    except _TrialEndedError as end:
        verdict = end.verdict
    except Exception as error:
        # A killed rank breaks the others' collectives (RuntimeError): that is worth another try.
        # Whatever else the code raises, it would raise again.
        if alone or not isinstance(error, RuntimeError) or isinstance(error, TrainingDivergedError):
            ray.get(desk.fail.remote(number, _why(error)))
        if not alone:
            raise
    if first:
        ray.get(desk.answer.remote((number, attempt, _END), verdict))


def _why(error: Exception) -> str:
    kind = "" if type(error).__module__.startswith("colorcore") else f"{type(error).__name__}: "
    return f"{kind}{_first_line(error)}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__


@contextmanager
def trials_on(layout: Layout) -> Iterator[Trials]:
    """Slots for the time of the block."""
    trials = Trials(layout)
    try:
        yield trials
    finally:
        trials.close()


def trial_folder(out: Path, number: int) -> Path:
    """Where a trial keeps its checkpoints."""
    return out / "trials" / f"{number:04d}"
