"""The trial of a `ray.tune.Tuner` of one's own; see `tune.own_tuner`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from colorcore.checkpoints.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from pipelines.errors import JobError
from pipelines.run_log.runs import end_run, start_run
from pipelines.tracking.store import TrackedRun
from pipelines.training.job import prepare_job
from tune.search.space import with_values
from tune.trials.rank import Task
from tune.trials.trial import StudyTrial, placement

_CHECKPOINTS = ("last", "best")


class TunerTrial(StudyTrial):
    """Trains the recipe with the values in its config, which are named by dotted paths.

    settings  the base job, whose store holds a folder per trial, ``workers``, ``use_gpu`` and
              ``tracking_uri``
    """

    settings: ClassVar[dict[str, Any]] = {}

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """One bundle per rank, on as few nodes as possible."""
        return placement(cls.settings["workers"], use_gpu=cls.settings["use_gpu"])

    def size_of(self, config: dict[str, Any]) -> tuple[int, bool]:
        """The number of ranks, and whether each has a GPU."""
        return self.settings["workers"], self.settings["use_gpu"]

    def task_of(self, config: dict[str, Any]) -> Task:
        """Train with the config's values, in a folder of the trial's own."""
        self._end_run("KILLED")  # of the trial before, which its scheduler stopped
        base, workers = self.settings["job"], self.settings["workers"]
        store = base.store.below(self.trial_id)
        job = prepare_job(base.dataset, with_values(base.recipe, config), store, workers)
        if (uri := self.settings["tracking_uri"]) is not None:
            self._run = start_run(uri, self.trial_name, job.params, {}, self._run_id(job.store))
        self._job = replace(job, run=self._run, threads=base.threads)
        return Task(self._job, workers, self.settings["use_gpu"])

    def step(self) -> dict[str, Any]:
        """Train to the next validation; scores are reported by their names.

        Raises:
            JobError: the training failed.
        """
        result = super().step()
        if "failure" in result:
            self._end_run("FAILED")
            raise JobError(f"the training failed: {result['failure']}")
        if result["done"]:
            self._end_run("FINISHED")
        return {**result.pop("scores", {}), **result}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the checkpoints, for schedulers that pause or clone trials."""
        for name in _CHECKPOINTS:
            if has_checkpoint(place := self._job.store.below(name)):
                checkpoint = load_checkpoint(place, training=name == "last")
                save_checkpoint(checkpoint, Path(checkpoint_dir) / name)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue from copies, perhaps of another trial's checkpoints."""
        self._untold = None
        for name in _CHECKPOINTS:
            place, copy = self._job.store.below(name), Path(checkpoint) / name
            remove_checkpoint(place)
            if has_checkpoint(copy):
                save_checkpoint(load_checkpoint(copy, training=name == "last"), place)

    def leave(self) -> None:
        """Leave the training, and end its run."""
        super().leave()
        self._end_run("KILLED")

    _run: TrackedRun | None = None

    def _run_id(self, store: Any) -> str | None:
        """The run of a trial that continues."""
        last = store.below("last")
        return load_checkpoint(last).run_id if has_checkpoint(last) else None

    def _end_run(self, status: str) -> None:
        if self._run is not None:
            self.ranks.leave()  # its log must be complete
            end_run(self._run, status, {}, self._job.store)
            self._run = None
