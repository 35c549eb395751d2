"""What Ray Tune asks and tells during a study, passed on to its driver.

Ray Tune places and starts the trials, keeps their processes warm, replaces lost ones, and asks
after each validation whether a trial continues. What it remembers about a study is never read:
a resumed study is a new run of Ray Tune that gets the unfinished trials first.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray import tune as ray_tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from pipelines.ray_internals import drop_trials, run_tune_here
from pipelines.training.job import describe_error
from tune.studies.driver import Ended, StudyDriver
from tune.trials.layout import Room
from tune.trials.rank import LostError
from tune.trials.trial import TASK, StudyTrial

LEAVE_S = 10.0
"""Seconds to wait, at the end, for the logs of trials that were stopped."""
MANNERS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files per trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C raises KeyboardInterrupt, as everywhere in cc
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # start as many at once as have room: Room decides
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables in spite of verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray Tune's environment during a study."""


def run_study(driver: StudyDriver, deadline: float | None = None) -> None:
    """Run a study's trials on the connected Ray.

    deadline  when to interrupt the trials that still run, on the clock of ``time.monotonic``

    Raises:
        Exception: whatever the driver raised in a hook.
    """
    hooks = _Hooks(driver, Room(driver.layout), deadline)
    for name, value in MANNERS.items():
        os.environ.setdefault(name, value)
    # It calls an error what is a trial's outcome here.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        # Ray Tune wants a folder for its own records, which nothing reads.
        with tempfile.TemporaryDirectory(prefix="colorcore-tune-") as records:
            run_tune_here(
                StudyTrial,
                records,
                name="study",
                search_alg=_StudySearcher(hooks),
                scheduler=_StudyScheduler(hooks),
                callbacks=[_StudyCallback(hooks)],
                stop=_StudyStopper(hooks),
                num_samples=-1,
                reuse_actors=True,
                max_failures=driver.retries,
                raise_on_failed_trial=False,
                verbose=0,
                trial_name_creator=_name_of,
                trial_dirname_creator=_folder_of,
            )
    finally:
        hooks.close_left(LEAVE_S)
        hooks.room.close()
        if hooks.controller is not None:
            with suppress(Exception):  # a cluster that is gone must not hide why the study ended
                drop_trials(hooks.controller)
    if hooks.error is not None:
        raise hooks.error


class _Hooks:
    """What all hooks share.

    error       the first exception that a hook raised. Ray Tune would take it for the trial's.
    is_over     whether the deadline has passed
    placed      trials that have their processes
    controller  Ray Tune's, once it has a trial
    """

    def __init__(self, driver: StudyDriver, room: Room, deadline: float | None) -> None:
        self.driver, self.room, self.deadline = driver, room, deadline
        self.error: Exception | None = None
        self.is_over = False
        self.placed: set[str] = set()
        self.controller: Any = None
        self._leaving: dict[Any, Ended] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its hooks into its records, which nothing reads."""
        return {}

    def leave(self, trial: Trial, ended: Ended) -> None:
        """Let a trial's processes leave the training that was stopped; see :meth:`close_left`."""
        actor = trial.temporary_state.ray_actor
        if actor is None:
            self.driver.close(ended)
        else:
            self._leaving[actor.leave.remote()] = ended

    def close_left(self, timeout: float = 0.0) -> None:
        """Close the trials whose processes have left them, or were lost on the way."""
        if self._leaving:
            futures = list(self._leaving)
            ready, late = ray.wait(futures, num_returns=len(futures), timeout=timeout)
            for future in ready if timeout == 0 else [*ready, *late]:
                self.driver.close(self._leaving.pop(future))


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep an exception of a hook, which then ends the study."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.hooks.error = self.hooks.error or error
            return None

    return call


class _StudySearcher(Searcher):
    """Asks the driver for the next trial whenever the cluster has room for one."""

    def __init__(self, hooks: _Hooks) -> None:
        super().__init__()
        self.hooks = hooks

    @_guarded
    def suggest(self, trial_id: str) -> Any:
        driver = self.hooks.driver
        if self.hooks.error is not None:
            return Searcher.FINISHED
        if not self.hooks.room.has_room(len(driver.running), len(self.hooks.placed)):
            return None
        found = driver.next_task(trial_id)
        if found == "wait":
            return None
        if found == "finished":
            return Searcher.FINISHED
        record, task = found
        return {**record.values, "trial": record.number, TASK: task}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Leave this to the callback, which knows the error, too."""

    def save(self, checkpoint_path: str) -> None:
        """Write the file that Ray Tune expects; the study's journal holds everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study is resumed from its journal")


class _StudyScheduler(FIFOScheduler):
    """Asks the driver whether a trial continues; the rules are in `tune.search.search`."""

    def __init__(self, hooks: _Hooks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hooks = hooks

    @_guarded
    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.hooks.controller = tune_controller
        # Losses in earlier calls of `cc tune` count, too.
        if trial.num_failures == 0:
            trial.max_failures = self.hooks.driver.allowed_failures(trial.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        scores = {
            key.removeprefix("scores/"): value
            for key, value in result.items()
            if key.startswith("scores/")
        }
        stops = self._report(trial.trial_id, {**result, "scores": scores})
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    @_guarded
    def _report(self, trial_id: str, result: Any) -> bool:
        return self.hooks.driver.report(trial_id, result)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave it to Ray Tune, which starts them in order; FIFOScheduler looks at all trials."""


class _StudyCallback(ray_tune.Callback):
    """Tells the driver how trials end."""

    def __init__(self, hooks: _Hooks) -> None:
        self.hooks = hooks

    @_guarded
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any
    ) -> None:
        if result.get("done"):  # about a last result Ray Tune asks no scheduler
            self.hooks.driver.report(trial.trial_id, result)

    @_guarded
    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.hooks.placed.add(trial.trial_id)

    @_guarded
    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.hooks.placed.discard(trial.trial_id)
        self.hooks.driver.retry(trial.trial_id, _error_of(trial))

    @_guarded
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.hooks.placed.discard(trial.trial_id)
        self.hooks.leave(trial, self.hooks.driver.end(trial.trial_id))

    @_guarded
    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.hooks.placed.discard(trial.trial_id)
        driver = self.hooks.driver
        driver.close(driver.end(trial.trial_id, error=_error_of(trial)))

    @_guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.hooks.close_left()


class _StudyStopper(Stopper):
    """Ends the study after an error in a hook, and when its time budget is used up."""

    def __init__(self, hooks: _Hooks) -> None:
        self.hooks = hooks

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.hooks.deadline is not None and time.monotonic() > self.hooks.deadline:
            self.hooks.is_over = self.hooks.driver.is_over_budget = True
        return self.hooks.error is not None or self.hooks.is_over


def _error_of(trial: Trial) -> str:
    """The last failure of a trial's processes, in one line."""
    try:
        # get_pickled_error() would look where the file comes only later.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, TypeError):
        return "its processes could not be started"
    cause: BaseException = getattr(error, "cause", None) or error
    return str(cause) if isinstance(cause, LostError) else describe_error(cause)


def _name_of(trial: Trial) -> str:
    return f"trial-{trial.config['trial']:04d}"


def _folder_of(trial: Trial) -> str:
    return f"{trial.config['trial']:04d}-{trial.trial_id}"
