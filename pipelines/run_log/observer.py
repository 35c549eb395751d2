"""Observers of a training, which log into its run: losses, scores, pictures, signs, the node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.drawing.triptychs import triptychs
from colorcore.recipes.advice import Advised, advised
from colorcore.scores.signs import NOT_FINITE
from colorcore.storage.location import open_store
from colorcore.storage.store import StorageError, Store
from colorcore.training.events import DecodingEvent, Observer, StepEvent, ValidationEvent
from pipelines.run_log.log import HANDOVER_S, RunLog
from pipelines.run_log.spool import spool_folder, upload
from pipelines.run_log.system_metrics import SystemMetrics
from pipelines.tracking.names import (
    BEST_PICTURE_KEY,
    BEST_STEP,
    DECODING,
    EQUAL_CF,
    PICTURE_KEY,
    SIGN_TAG,
    TRAIN,
    VAL,
    VAL_SIGN,
)
from pipelines.tracking.store import TrackedRun

if TYPE_CHECKING:
    from colorcore.recipes.recipe import Recipe
    from colorcore.scores.signs import Sign

LOG_EVERY = 10
"""Steps between two logged points of the loss."""
READ = ("psnr", "ssim", "ab_l1", "delta_e2000", "cf", "cf_gap", "auc", "auc_balanced")
"""Scores that are logged at equal colourfulness: those that are means over photos."""
_GONE = "gone at step "


class NodeObserver(Observer):
    """Logs CPUs, memory, disk, network and GPUs of a node; there is one per node with a rank.

    ``node`` is the node's number if there are several. ``writer`` names the spool of an observer
    on another node than rank 0's.
    """

    def __init__(
        self,
        run: TrackedRun,
        out: Path | str | Store | None = None,
        *,
        node: int | None = None,
        writer: str = "",
    ) -> None:
        self._run = run
        self._out = None if out is None else open_store(out)
        self._folder = spool_folder(run.run_id, out, writer)
        self._log = RunLog(run.uri, run.run_id, self._folder, warn=_warn)
        self._system = SystemMetrics(self._log, started_ms=run.started_ms, node=node)

    def on_diverged(self) -> None:
        """Log that :func:`colorcore.training.fit.fit` raised TrainingDivergedError."""

    def close(self) -> int:
        """Send the rest, if the server answers soon; returns the number of unsent records.

        They stay in the spool, for the job's end to send. If ``out`` is in an object store, the
        spool is copied there, because the job may end on another node; that costs a longer wait
        first.
        """
        self._system.stop()
        remote = self._out is not None and self._out.local is None
        left = self._log.close(self._run.patience_s if remote else HANDOVER_S)
        if left and remote and self._out is not None:
            try:
                upload(self._folder, self._out)
            except StorageError as error:
                _warn(f"{left} unsent records stay in {self._folder}: {error}")
        return left


class RunObserver(NodeObserver):
    """Logs a training: losses, validation scores and pictures, and signs of bad colour as tags.

    No training step waits for it.
    """

    def __init__(
        self,
        run: TrackedRun,
        recipe: Recipe,
        out: Path | str | Store | None = None,
        *,
        node: int | None = None,
    ) -> None:
        super().__init__(run, out, node=node)
        self._recipe = recipe
        self._step = 0

    @cached_property
    def _signs(self) -> dict[str, str]:
        """The signs that the run has now: a resumed one may lose some that it has from before.

        Asked for at the first validation, when the server has long answered; asking earlier would
        keep the first step waiting.
        """
        return {
            name.removeprefix(SIGN_TAG): text
            for name, text in self._log.tags().items()
            if name.startswith(SIGN_TAG) and not text.startswith(_GONE)
        }

    def on_notice(self, text: str) -> None:
        """Write it into the log of the process: a trial has no other display."""
        sys.stderr.write(f"train: {text}\n")

    def on_step(self, event: StepEvent) -> None:
        """Log loss, terms, learning rate, gradient norm and photos/s, every tenth step."""
        self._step = event.step
        if event.step % LOG_EVERY and event.step != event.total_steps:
            return
        values = {
            f"{TRAIN}loss": event.loss,
            **{TRAIN + name: value for name, value in event.terms.items()},
            f"{TRAIN}lr": event.lr,
            f"{TRAIN}grad_norm": event.grad_norm,
            f"{TRAIN}photos_per_s": event.photos_per_s,
        }
        self._log.metrics(values, event.step)

    def on_validation(self, event: ValidationEvent) -> None:
        """Log all scores, the measurements behind signs, and the same validation photos each time.

        MLflow compares pictures of equal step. Pictures are therefore logged by epoch, because runs
        with different batch sizes have no steps in common. A run that ended early has no late epoch
        either, so the pictures of the best validation have the same number in all runs.
        """
        self._log.metrics({VAL + name: value for name, value in event.scores.items()}, event.step)
        measured = {VAL_SIGN + name: value for name, value in event.statistics.items()}
        self._log.metrics(measured, event.step)
        self._tag(event.signs, event.step)
        pairs = event.pairs
        names = [(PICTURE_KEY, event.epoch)]
        if event.is_best:
            names.append((BEST_PICTURE_KEY, BEST_STEP))
        self._log.picture(lambda: triptychs(pairs[:, 0], pairs[:, 1]), *names)

    def on_decoding(self, event: DecodingEvent) -> None:
        """Log the chosen knobs and the scores with them as metrics, for comparing runs.

        And the scores at equal colourfulness, unless the model cannot be read there: a missing
        value leaves the run out of a sorted column, where NaN or 0 would rank it.
        """
        decoding = event.decoding
        knobs = {"temperature": decoding.temperature, "chroma": decoding.chroma}
        values = {name: value for name, value in knobs.items() if value is not None}
        named = {DECODING + name: value for name, value in {**values, **event.scores}.items()}
        named |= {EQUAL_CF + name: event.equal_cf[name] for name in READ if name in event.equal_cf}
        self._log.metrics(named, event.step)

    def on_diverged(self) -> None:
        """Tag the run as diverged, after the last step that had a finite loss."""
        self._appeared(advised([NOT_FINITE], self._recipe)[0], self._step + 1)

    def _tag(self, signs: Sequence[Sign], step: int) -> None:
        """Set a tag for each sign that appeared or disappeared."""
        found = {each.sign.name: each for each in advised(signs, self._recipe)}
        for name in found.keys() - self._signs.keys():
            self._appeared(found[name], step)
        for name in self._signs.keys() - found.keys():
            text = f"{_GONE}{step}; {self._signs.pop(name)}"
            self._log.tag(SIGN_TAG + name, text)

    def _appeared(self, each: Advised, step: int) -> None:
        name = each.sign.name
        self._signs[name] = f"step {step}: {each.sign.meaning}; {each.advice}"
        self._log.tag(SIGN_TAG + name, self._signs[name])


def observer_of_rank(
    run: TrackedRun, recipe: Recipe, out: Path | str | Store | None
) -> NodeObserver | None:
    """The observer of this rank of a Ray Train job.

    Rank 0 logs the training, the first rank of every other node logs that node, and the other ranks
    log nothing.
    """
    from ray import train as ray_train

    context = ray_train.get_context()
    several = context.get_world_size() != context.get_local_world_size()
    node = context.get_node_rank() if several else None
    if context.get_world_rank() == 0:
        return RunObserver(run, recipe, out, node=node)
    if context.get_local_rank() == 0:
        return NodeObserver(run, out, node=node, writer=f"node{node}")
    return None


def _warn(text: str) -> None:
    sys.stderr.write(f"tracking: {text}\n")
