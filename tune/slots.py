"""Slots for trials on a Ray cluster: processes that stay warm from one trial to the next.

A slot has one process per rank, all placed at once or not at all (a placement group). A trial
trains in them with Ray Train's local mode, which works in processes that already exist, so torch
is imported once per slot and not once per trial. The ranks rendezvous anew for each trial. There
are only as many slots as fit on the cluster, so no trial waits for another's resources.

The driver decides: after each validation every rank waits at the mailbox, an actor, until the
driver has answered whether the trial continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import WrongCallError
from pipelines.training.job import Job, describe_error
from tune.messages import Mailbox
from tune.objective import Ending, ValidationReport
from tune.worker import Rank, Task

SETTLE_S = 5.0
"""Seconds that the other ranks of a trial have to end once one of them has failed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a study uses its cluster.

    workers     ranks per trial
    concurrent  trials at the same time
    use_gpu     whether each rank has a GPU
    threads     CPU threads per rank; None leaves torch's default
    """

    workers: int
    concurrent: int
    use_gpu: bool
    threads: int | None


def layout_for(workers: int, concurrent: int | None) -> Layout:
    """The layout on the connected cluster; ``concurrent`` None fills it.

    Raises:
        WrongCallError: the cluster is too small.
    """
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    use_gpu = gpus >= workers
    total, kind = (gpus, "GPU") if use_gpu else (cpus, "CPU")
    if workers > total:
        raise WrongCallError(
            f"expected at most {total} workers per trial, one per {kind} of this cluster, "
            f"got --workers {workers}"
        )
    fit = total // workers
    if concurrent is not None and concurrent > fit:
        raise WrongCallError(
            f"expected at most {fit} concurrent trials with {workers} {kind}{'s' * (workers > 1)} "
            f"each (this cluster has {total}), got --concurrent {concurrent}"
        )
    concurrent = concurrent or fit
    threads = None if use_gpu else max(1, cpus // (concurrent * workers))
    return Layout(workers, concurrent, use_gpu, threads)


@dataclass(frozen=True, slots=True)
class Exit:
    """A trial has left its slot.

    ending   why it was ended early, if it was
    failure  an error that a retry would only repeat
    lost     how its processes were lost, which is worth a retry
    """

    number: int
    ending: Ending | None
    failure: str | None
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a trial's ranks: as in ``Exit``, and whether they can take another trial."""

    ending: Ending | None = None
    failure: str | None = None
    lost: str | None = None
    is_usable: bool = True


class Slots:
    """The slots of a study and its mailbox; used by the driver, inside a Ray session."""

    def __init__(self, layout: Layout) -> None:
        import ray

        self.layout = layout
        # On the head node: losing that ends the study anyway.
        mailbox: Any = ray.remote(Mailbox)
        on_head = {"node:__internal_head__": 0.001}
        self._mailbox: Any = mailbox.options(num_cpus=0, resources=on_head).remote()
        self._reports: Any = self._mailbox.reports.remote()
        self._free: list[_Slot] = []
        self._busy: dict[Any, tuple[int, _Slot]] = {}

    @property
    def running(self) -> list[int]:
        """Numbers of the trials in slots."""
        return sorted({number for number, _ in self._busy.values()})

    @property
    def has_room(self) -> bool:
        """Whether another trial can start."""
        return len(self.running) < self.layout.concurrent

    def start(self, number: int, attempt: int, job: Job, *, decoding: bool = False) -> None:
        """Start a trial, or resume it from its last checkpoint.

        With ``decoding``, a finished trial chooses the decoding of its best checkpoint: trials are
        compared without one, so only the best pays for it.
        """
        slot = self._free.pop() if self._free else _Slot(self.layout)
        task = Task(number, attempt, job, self._mailbox, decoding=decoding)
        self._busy |= dict.fromkeys(slot.start(task), (number, slot))

    def wait(self) -> Iterator[ValidationReport | Exit]:
        """Wait for reports or exits, at least one."""
        import ray

        happened = False
        while not happened:
            ready, _ = ray.wait([self._reports, *self._busy], num_returns=1)
            for future in ready:
                if future == self._reports:
                    reports = ray.get(future)
                    self._reports = self._mailbox.reports.remote()
                    yield from reports
                    happened = True
                else:
                    number, slot = self._busy.pop(future)
                    if (result := slot.result(future)) is not None:
                        yield self._exit(number, slot, result)
                        happened = True

    def answer(self, report: ValidationReport, ending: Ending | None) -> None:
        """Let a waiting trial continue (None), or end it."""
        self._mailbox.answer.remote((report.number, report.attempt, report.epoch), ending)

    def close(self) -> None:
        """End all slots, and the trials in them."""
        import ray

        for slot in {*self._free, *(slot for _, slot in self._busy.values())}:
            slot.kill()
        ray.kill(self._mailbox)
        self._free, self._busy = [], {}

    def _exit(self, number: int, slot: _Slot, result: Result) -> Exit:
        self._busy = {each: at for each, at in self._busy.items() if at[1] is not slot}
        if result.is_usable:
            self._free.append(slot)
        else:
            slot.kill()
        return Exit(number, result.ending, result.failure, result.lost)


@contextmanager
def slots_for(layout: Layout) -> Iterator[Slots]:
    """Slots for the duration of the block."""
    slots = Slots(layout)
    try:
        yield slots
    finally:
        slots.close()


class _Slot:
    """The driver's handle of one process per rank, used for one trial after another."""

    def __init__(self, layout: Layout) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpus = int(layout.use_gpu)
        bundle = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
        self._group = placement_group([bundle] * layout.workers, strategy="PACK")
        actor: Any = ray.remote(Rank)
        self._ranks = [
            actor.options(
                num_cpus=1,
                num_gpus=gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=rank
                ),
            ).remote(rank, layout.workers, use_gpu=layout.use_gpu)
            for rank in range(layout.workers)
        ]
        self._futures: list[Any] = []

    def start(self, task: Task) -> list[Any]:
        """Let the ranks train; one future per rank."""
        # Never awaited here: it goes to the ranks as it is, and they meet where rank 0 says.
        meeting = self._ranks[0].meet.remote() if len(self._ranks) > 1 else None
        self._futures = [rank.run.remote(task, meeting) for rank in self._ranks]
        return self._futures

    def result(self, future: Any) -> Result | None:
        """The trial's result, now that one rank's future is ready; None while others train."""
        return result_of(self._futures, future)

    def kill(self) -> None:
        """End the processes and release their resources."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for rank in self._ranks:
            ray.kill(rank)
        remove_placement_group(self._group)


def result_of(futures: list[Any], ready: Any) -> Result | None:
    """The result of a trial whose ranks run as ``futures``, one of which is ready.

    None: the others still train.
    """
    import ray

    first = _result_of_rank(ready)
    succeeded = first.failure is None and first.lost is None
    done, others = ray.wait(futures, num_returns=len(futures), timeout=0 if succeeded else SETTLE_S)
    results = [_result_of_rank(each) for each in done]
    # A rank that fails breaks the connections of the others: report its reason, not theirs.
    for each in (*results, first):
        if each.failure is not None:
            intact = not others and all(one.lost is None for one in results)
            return Result(failure=each.failure, is_usable=intact)
    for each in (first, *results):
        if each.lost is not None:
            return Result(lost=each.lost, is_usable=False)
    return None if others else _result_of_rank(futures[0])


def _result_of_rank(future: Any) -> Result:
    """The result of one rank, whose future is ready."""
    import ray
    from ray.exceptions import RayError

    try:
        ending, failure = ray.get(future)
    except (RayError, RuntimeError) as error:
        cause: BaseException | None = getattr(error, "cause", None)  # what the rank itself raised
        return Result(lost=describe_error(cause or error))
    return Result(ending, failure)


def trial_folder(out: Path, number: int) -> Path:
    """The folder with a trial's checkpoints."""
    return out / "trials" / f"{number:04d}"
