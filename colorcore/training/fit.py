"""The training loop: batch, forward, loss, backward, clip, step, average, log, evaluate, save.

With adversarial terms there is a second network that judges the first one's answers; see
:mod:`colorcore.training.adversary`.

It needs a dataset, a palette and a recipe, and nothing of Ray or MLflow: what it has to say it
tells its observers, and when torch.distributed is up it trains as one rank of the group.
All randomness of a step comes from (seed, step, rank), so a resumed run repeats what an
uninterrupted one does, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.inference.decoding_search import choose_decoding
from colorcore.models import build_model
from colorcore.recipes.recipe import Recipe
from colorcore.scores.loss_history import steady_loss
from colorcore.storage.location import open_store
from colorcore.storage.store import Store
from colorcore.training.events import (
    DecodingEvent,
    Observer,
    StepEvent,
    TrainingDivergedError,
    TrainingStoppedError,
    ValidationEvent,
    notify,
)
from colorcore.training.state import FitData, Training

if TYPE_CHECKING:
    from torch import Tensor


def fit(
    recipe: Recipe,
    data: FitData,
    out: Path | Store,
    *,
    device: torch.device | str = "cpu",
    resume: Checkpoint | None = None,
    initial: Mapping[str, Tensor] | None = None,
    run_id: str | None = None,
    observers: Sequence[Observer] = (),
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train to the end; writes ``out/last`` and ``out/best`` and returns the last scores.

    ``initial`` are the weights that model and average start from, instead of random ones.
    ``stop`` is asked after every step, and must answer at once: where it says so on any rank, all
    of them stop at that step.

    ``last`` is written after every validation, every ``train.save_every`` steps, and before a
    stop; what goes on from it does what would have been done without the interruption.

    At the end a decoding is chosen for ``best``. Until then all is scored as the model itself
    decodes, so that the scores of two steps, or of two runs, differ by what was learned.

    Raises:
        TrainingDivergedError: the loss or its gradient became infinite or NaN.
        TrainingStoppedError: it was asked to stop, and ``last`` is written.
        CheckpointError: ``resume`` belongs to another dataset or model.
    """
    device, store = torch.device(device), open_store(out)
    training = Training(recipe, data, device, resume, initial)
    training.run_id = run_id or training.run_id
    notify(observers, "on_start", training.total_steps, training.steps_done)
    while training.epoch < recipe.train.epochs:
        for event in _epoch(training, stop):
            training.history.add(steady_loss(event.terms, recipe.loss), event.lr)
            notify(observers, "on_step", event)
            if training.rank == 0 and (training.stopping or _is_due(training)):
                save_checkpoint(training.checkpoint(training.scores), store.below("last"))
            if training.stopping:
                notify(observers, "on_stop", event.step)
                raise TrainingStoppedError(event.step, event.total_steps)
        training.epoch, training.step_in_epoch = training.epoch + 1, 0
        is_last = training.epoch == recipe.train.epochs
        if training.epoch % recipe.train.eval_every == 0 or is_last:
            validation = training.validate()
            notify(observers, "on_validation", validation)
            if training.rank == 0:
                _save(training, validation, store)
            notify(observers, "on_saved", validation)
    if decoded := _choose_decoding(training, store):
        notify(observers, "on_decoding", decoded)
    return training.scores


def _is_due(training: Training) -> bool:
    every = training.recipe.train.save_every
    return every is not None and training.steps_done % every == 0


def _epoch(training: Training, stop: Callable[[], bool] = lambda: False) -> Iterator[StepEvent]:
    """The rest of the current epoch, step by step; each step waits for its loss."""
    batches = training.loader.epoch(training.epoch, start_step=training.step_in_epoch)
    started = time.perf_counter()
    for batch in batches:
        loss, terms, norm = training.train_step(batch)
        mine = torch.stack([norm, loss, *(term.to(loss) for term in terms.values())]).tolist()
        grad_norm, (value, *means) = mine[0], training.agree(mine[1:], stop())
        values = dict(zip(terms, means, strict=True))
        finite = all(map(math.isfinite, [value, *means]))
        if not (finite and (math.isfinite(grad_norm) or training.skips_overflows)):
            keys = training.data.train.keys(batch.positions)
            raise TrainingDivergedError(
                f"the loss is {value} and the norm of its gradient {grad_norm} "
                f"at step {training.steps_done}; lower optim.lr "
                f"(now {training.recipe.optim.lr:g}) or set optim.clip; "
                f"the batch held {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}"
            )
        now = time.perf_counter()
        yield StepEvent(
            epoch=training.epoch,
            step=training.steps_done,
            total_steps=training.total_steps,
            loss=value,
            terms=values,
            lr=training.optimizer.param_groups[0]["lr"],
            grad_norm=grad_norm,
            photos_per_s=training.recipe.data.batch / max(now - started, 1e-9),
        )
        started = time.perf_counter()


def _save(training: Training, validation: ValidationEvent, out: Store) -> None:
    """Write ``best`` before ``last``: a run killed in between repeats the epoch, and ``best``."""
    checkpoint = training.checkpoint(validation.scores)
    if validation.is_best:
        save_checkpoint(replace(checkpoint, training={}), out.below("best"))
    save_checkpoint(checkpoint, out.below("last"))


def _choose_decoding(training: Training, out: Store) -> DecodingEvent | None:
    """Choose for ``best`` and write it there, once; None if there is no ``best`` here.

    Only the first rank reads and writes files. It hands its weights on, so that all ranks score
    the same model, each on its share of the photos.
    """
    folder, recipe, data = out.below("best"), training.recipe, training.data
    best = load_checkpoint(folder) if training.rank == 0 and has_checkpoint(folder) else None
    there = [None if best is None else (best.decoding, best.decoded)]
    if training.world > 1:
        distributed.broadcast_object_list(there, 0, device=training.device)
    if there[0] is None:
        return None
    decoding, scores = there[0]
    if not scores:
        model = build_model(recipe.model.name, **recipe.model.options()).eval()
        if best is not None:
            model.load_state_dict(best.weights)
        model.to(training.device)
        if training.world > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, 0)
        decoding, scores = choose_decoding(
            model,
            data.val,
            data.palette,
            recipe.train.metric,
            device=training.device,
            rank=training.rank,
            world=training.world,
        )
        if best is not None:
            save_checkpoint(replace(best, decoding=decoding, decoded=scores), folder)
    return DecodingEvent(training.steps_done, decoding, scores)
