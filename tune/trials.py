"""Trials on a cluster: each a Ray Train run, in a slot that stays warm from one to the next.

A slot is a process a rank, all of which are there at once or not at all (a placement group). A
trial trains in them as Ray Train runs inside of processes that somebody else has started, which
it calls its local mode, so torch is imported once a slot and not once a trial; ranks of a trial
meet anew for each. There are only as many slots as trials fit into the cluster, so no trial waits
for what another one holds.

The driver decides and the trials ask: after each validation every rank waits at the desk, an
actor, until the driver has answered whether the trial goes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.training.events import Observer, TrainingDivergedError, ValidationEvent
from pipelines.errors import WrongCallError
from pipelines.training.job import Job, train_rank
from tune.desk import Desk, Validated, Verdict

if TYPE_CHECKING:
    from pipelines.training.rendezvous import Meeting

GO_ON = None
"""The answer to a trial that is to go on."""
SETTLE_S = 5.0
"""Seconds that the other ranks of a trial have to end once one of them has failed."""


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


class Trials:
    """The slots of a study and the desk; used by its driver, inside of a Ray session."""

    def __init__(self, layout: Layout) -> None:
        import ray

        for logger in ("ray.train", "ray.tune", "ray.data"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        self.layout = layout
        # Beside the head, whose loss ends the study anyway.
        desk: Any = ray.remote(Desk)
        beside = {"node:__internal_head__": 0.001}
        self._desk: Any = desk.options(num_cpus=0, resources=beside).remote()
        self._news: Any = self._desk.news.remote()
        self._free: list[_Slot] = []
        self._busy: dict[Any, tuple[int, _Slot]] = {}

    @property
    def running(self) -> list[int]:
        """Numbers of the trials that are in slots."""
        return sorted({number for number, _ in self._busy.values()})

    @property
    def has_room(self) -> bool:
        """Whether another trial can start."""
        return len(self.running) < self.layout.concurrent

    def start(self, number: int, attempt: int, job: Job, *, decoding: bool = False) -> None:
        """Start a trial, or go on with it from ``job.out/last``.

        With ``decoding`` a finished one chooses what its best checkpoint is decoded with: trials
        are compared without, so all but the best are spared that.
        """
        slot = self._free.pop() if self._free else _Slot(self.layout)
        task = _Task(number, attempt, job, self._desk, decoding=decoding)
        self._busy |= dict.fromkeys(slot.start(task), (number, slot))

    def wait(self) -> Iterator[Validated | Ended]:
        """Wait for something to happen; what did."""
        import ray

        happened = False
        while not happened:
            ready, _ = ray.wait([self._news, *self._busy], num_returns=1)
            for future in ready:
                if future == self._news:
                    news = ray.get(future)
                    self._news = self._desk.news.remote()
                    yield from news
                    happened = True
                else:
                    number, slot = self._busy.pop(future)
                    if (ended := slot.ended(future)) is not None:
                        yield self._ended(number, slot, ended)
                        happened = True

    def answer(self, news: Validated, verdict: Verdict | None) -> None:
        """Let a waiting trial go on, or end it."""
        self._desk.answer.remote((news.number, news.attempt, news.epoch), verdict)

    def close(self) -> None:
        """End all slots, and the trials in them."""
        import ray

        for slot in {*self._free, *(slot for _, slot in self._busy.values())}:
            slot.kill()
        ray.kill(self._desk)
        self._free, self._busy = [], {}

    def _ended(self, number: int, slot: _Slot, told: _Told) -> Ended:
        self._busy = {each: at for each, at in self._busy.items() if at[1] is not slot}
        if told.is_usable:
            self._free.append(slot)
        else:
            slot.kill()
        return Ended(number, told.verdict, told.failure, told.lost)


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


@dataclass(frozen=True, slots=True)
class _Task:
    """What the ranks of a slot are to do."""

    number: int
    attempt: int
    job: Job
    desk: Any
    decoding: bool


@dataclass(frozen=True, slots=True)
class _Told:
    """What a slot's ranks say of a trial: as ``Ended``, and whether they can take another one."""

    verdict: Verdict | None = None
    failure: str | None = None
    lost: str | None = None
    is_usable: bool = True


class _Slot:
    """The processes of a trial, a rank each, for one trial after the other; the driver's side."""

    def __init__(self, layout: Layout) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpus = int(layout.use_gpu)
        bundle = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
        self._group = placement_group([bundle] * layout.workers, strategy="PACK")
        kind: Any = ray.remote(_Rank)
        self._ranks = [
            kind.options(
                num_cpus=1,
                num_gpus=gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=rank
                ),
            ).remote(rank, layout.workers, use_gpu=layout.use_gpu)
            for rank in range(layout.workers)
        ]
        self._futures: list[Any] = []

    def start(self, task: _Task) -> list[Any]:
        """Let the ranks train; a future each."""
        # A future that another process waits for: ranks meet where the first one says.
        meeting = self._ranks[0].meet.remote() if len(self._ranks) > 1 else None
        self._futures = [rank.run.remote(task, meeting) for rank in self._ranks]
        return self._futures

    def ended(self, future: Any) -> _Told | None:
        """What is known of the trial, now that a rank's future is ready.

        None: others still train.
        """
        import ray

        first = _told_by(future)
        all_is_well = first.failure is None and first.lost is None
        ready, others = ray.wait(
            self._futures,
            num_returns=len(self._futures),
            timeout=0 if all_is_well else SETTLE_S,
        )
        told = [_told_by(each) for each in ready]
        # A rank that failed breaks the others: its own reason counts.
        for each in (*told, first):
            if each.failure is not None:
                whole = not others and all(one.lost is None for one in told)
                return _Told(failure=each.failure, is_usable=whole)
        for each in (first, *told):
            if each.lost is not None:
                return _Told(lost=each.lost, is_usable=False)
        return None if others else _told_by(self._futures[0])

    def kill(self) -> None:
        """End the processes, and give back what they held."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for rank in self._ranks:
            ray.kill(rank)
        remove_placement_group(self._group)


def _told_by(future: Any) -> _Told:
    """What one rank says; the future is ready."""
    import ray
    from ray.exceptions import RayError

    try:
        verdict, failure = ray.get(future)
    except (RayError, RuntimeError) as error:
        cause: BaseException | None = getattr(error, "cause", None)  # what the rank itself raised
        return _Told(lost=_first_line(cause or error))
    return _Told(verdict, failure)


class _Rank:
    """One process of a slot: an actor."""

    def __init__(self, rank: int, world: int, *, use_gpu: bool) -> None:
        self._rank, self._world, self._use_gpu = rank, world, use_gpu
        if not use_gpu:  # Ray Train's local mode takes what it sees
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def meet(self) -> Meeting:
        """The first rank's: where the next trial's ranks find each other."""
        from pipelines.training.rendezvous import open_meeting

        return open_meeting()

    def run(self, task: _Task, meeting: Meeting | None) -> tuple[Verdict | None, str | None]:
        """Train; returns why the trial ended early, and an error that it would only repeat."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        for logger in ("ray.train", "ray.tune", "ray.data"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        with self._joined(meeting):
            train: Any = _train  # what it returns is the result's, though its type says None
            trainer: Any = TorchTrainer(
                train,
                train_loop_config={"task": task},
                scaling_config=ScalingConfig(num_workers=0, use_gpu=self._use_gpu),
                run_config=RunConfig(name=f"trial-{task.number:04d}-{task.attempt}"),
            )
            ended: tuple[Verdict | None, str | None] = trainer.fit().return_value
        return ended

    @contextmanager
    def _joined(self, meeting: Meeting | None) -> Iterator[None]:
        """Ray Train's local mode joins other ranks if the environment says where."""
        if meeting is None:
            yield
            return
        from torch import distributed

        from pipelines.training.rendezvous import meeting_variables

        # Each rank's process sees no GPU but its own.
        variables = {
            **meeting_variables(meeting, self._rank, self._world),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
        }
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                os.environ.pop(name, None)
            if distributed.is_initialized():
                distributed.destroy_process_group()


class _TrialEndedError(Exception):
    """Raised in every rank of a trial that is to end, or has come to its end."""

    def __init__(self, verdict: Verdict | None) -> None:
        super().__init__()
        self.verdict = verdict


class _Asks(Observer):
    """Tells of every validation once its checkpoint is written, and ends the trial if told to."""

    def __init__(self, task: _Task, *, first: bool) -> None:
        self._number, self._attempt = task.number, task.attempt
        self._epochs, self._desk = task.job.recipe.train.epochs, task.desk
        self._first = first
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


def _train(config: dict[str, Any]) -> tuple[Verdict | None, str | None]:
    """One rank of a trial, inside of Ray Train; returns as ``_Rank.run``."""
    from ray import train as ray_train

    task: _Task = config["task"]
    context = ray_train.get_context()
    alone = context.get_world_size() == 1
    asks = _Asks(task, first=context.get_world_rank() == 0)
    try:
        train_rank(task.job, [] if task.decoding else [asks])
    except _TrialEndedError as end:
        return end.verdict, None
    except Exception as error:
        # A killed rank breaks the others' collectives (RuntimeError): that is worth another try.
        # Whatever else the code raises, it would raise again.
        if alone or not isinstance(error, RuntimeError) or isinstance(error, TrainingDivergedError):
            return None, _why(error)
        raise
    return GO_ON, None


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
