"""The training loop: batch, forward, terms, backward, clip, step, average, log, evaluate, save.

``fit`` is the loop over epochs and ``train_step`` is one pass through the networks. Both are
plain PyTorch: results go to callbacks (:mod:`colorcore.training.events`) instead of Ray or
MLflow, and under torch.distributed the process trains as one rank of its group.
With adversarial terms a second network is trained in the same step; see
:mod:`colorcore.training.adversary`.

All randomness of a step derives from (seed, step, rank), so on a CPU a resumed run repeats an
uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from colorcore.losses import steady_loss
from colorcore.models import build_model
from colorcore.recipes.recipe import Recipe
from colorcore.recipes.schedule import lr_factor, set_lr
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
from colorcore.training.seeds import seed_step
from colorcore.training.state import FitData, Training

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.dataset.loader import Batch


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
    """Train to the end, or out of patience; returns the last scores.

    Writes ``out/last`` and ``out/best``.

    ``initial`` are the weights that model and average start from, instead of random ones.
    ``stop`` is asked after every step and must answer at once; when it is true on any rank, all
    ranks stop after that step.

    ``last`` is written after every validation, every ``train.save_every`` steps, and before a
    stop. A run resumed from it continues exactly as if it had not been interrupted.

    Raises:
        TrainingDivergedError: the loss or its gradient became infinite or NaN.
        TrainingStoppedError: ``stop`` asked for it, and ``last`` is written.
        CheckpointError: ``resume`` belongs to another dataset or model.
    """
    device, store = torch.device(device), open_store(out)
    training = Training(recipe, data, device, resume, initial)
    training.run_id = run_id or training.run_id
    notify(observers, "on_start", training.total_steps, training.steps_done)

    while not training.is_over:
        training.begin_epoch()
        started = time.perf_counter()
        for batch in training.loader.epoch(training.epoch, start_step=training.step_in_epoch):
            loss, terms, grad_norm = train_step(training, batch)

            # Log. Every rank needs the mean of all: each must come to the same verdict on NaN,
            # and rank 0 saves the loss history for all.
            loss, terms, stopping = training.mean_over_ranks(loss, terms, stop())
            _require_finite(training, batch, loss, terms, grad_norm)
            event = StepEvent(
                epoch=training.epoch,
                step=training.steps_done,
                total_steps=training.total_steps,
                loss=loss,
                terms=terms,
                lr=training.lr,
                grad_norm=grad_norm,
                photos_per_s=recipe.data.batch / max(time.perf_counter() - started, 1e-9),
            )
            training.history.add(steady_loss(terms, recipe.loss), training.lr)
            notify(observers, "on_step", event)

            # Save within the epoch. Scores are those of the latest validation, if any.
            if training.rank == 0 and (stopping or _is_due(training)):
                save_checkpoint(training.checkpoint(training.scores), store.below("last"))
            if stopping:
                notify(observers, "on_stop", event.step)
                raise TrainingStoppedError(event.step, event.total_steps)
            # Waiting for the next batch counts towards its step, so a slow disk shows up in
            # photos_per_s; callbacks and saving don't.
            started = time.perf_counter()
        training.epoch, training.step_in_epoch = training.epoch + 1, 0

        # Evaluate and save. Every run ends with a validation, whatever eval_every is, so that
        # runs of different lengths can be compared by their last scores.
        is_last = training.epoch == recipe.train.epochs
        if training.epoch % recipe.train.eval_every == 0 or is_last:
            validation = training.validate()
            notify(observers, "on_validation", validation)
            if training.rank == 0:
                _save(training, validation, store)
            notify(observers, "on_saved", validation)

    # Only now: until here every score uses the model's own decoding, so scores of two steps, or
    # of two runs, differ only by what was learned.
    if decoded := _choose_decoding(training, store):
        notify(observers, "on_decoding", decoded)
    return training.scores


def train_step(training: Training, batch: Batch) -> tuple[float, dict[str, float], float]:
    """One optimizer step: loss and terms of this rank's photos, and the gradient's norm.

    The norm is not finite where fp16 overflowed and the scaler skipped the step.
    """
    recipe, step, adversary = training.recipe, training.steps_done, training.adversary
    generator = seed_step(recipe.train.seed, step, training.rank)
    factor = lr_factor(recipe.optim, step, training.total_steps, len(training.loader))
    set_lr(training.optimizer, recipe.optim.lr * factor)
    if adversary is not None:
        set_lr(adversary.optimizer, adversary.part.lr * factor)
    lab = training.prepare(batch, generator)  # (B, 3, H, W) CIELAB on the device, augmented
    loss, terms = forward_backward(training, lab)

    norm = training.clip_and_step(training.optimizer)
    if adversary is not None:
        training.clip_and_step(adversary.optimizer)
    # Once per step: both optimizers share one scale, and either's overflow lowers it.
    training.scaler.update()
    training.update_average()
    training.step_in_epoch = batch.step + 1

    # One transfer for all numbers: on a GPU each would wait for the whole step by itself.
    numbers = torch.stack([norm, loss, *(term.to(loss) for term in terms.values())]).tolist()
    return numbers[1], dict(zip(terms, numbers[2:], strict=True)), numbers[0]


def forward_backward(training: Training, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss and terms of lab (B, 3, H, W), with their gradients left in the parameters."""
    # Gradient accumulation: a batch that does not fit into memory goes through in parts. Each
    # part counts by its share of the photos, so the sum is the gradient of the whole batch.
    total = lab.new_zeros(())
    terms: dict[str, Tensor] = {}
    parts = lab.chunk(training.recipe.train.accumulate)
    for number, part in enumerate(parts, start=1):
        share = len(part) / len(lab)
        with training.gradient_sync(number == len(parts)):
            prediction = training.forward(part)
            loss, values = training.losses(prediction, part)
            training.backward(loss, share)
            if training.adversary is not None:
                # Neither backward pass reaches the other network: the discriminator's loss sees
                # detached predictions, and the model's loss a discriminator that is frozen.
                training.backward(values["discriminator"], share)
        total += loss.detach() * share
        for name, value in values.items():
            terms[name] = terms.get(name, 0.0) + value.detach() * share
    return total, terms


def _require_finite(
    training: Training, batch: Batch, loss: float, terms: Mapping[str, float], grad_norm: float
) -> None:
    """Stop before a NaN reaches a checkpoint, and name the photos it came from."""
    finite = all(map(math.isfinite, [loss, *terms.values()]))
    if finite and (math.isfinite(grad_norm) or training.skips_overflows):
        return
    keys = training.data.train.keys(batch.positions)
    raise TrainingDivergedError(
        f"the loss is {loss} and the norm of its gradient {grad_norm} "
        f"at step {training.steps_done}; lower optim.lr "
        f"(now {training.recipe.optim.lr:g}) or set optim.clip; "
        f"the batch held {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}"
    )


def _is_due(training: Training) -> bool:
    every = training.recipe.train.save_every
    return every is not None and training.steps_done % every == 0


def _save(training: Training, validation: ValidationEvent, out: Store) -> None:
    checkpoint = training.checkpoint(validation.scores)
    # best before last: a run killed in between resumes from the older last, repeats the epoch
    # and writes the same best again. The other way round, best would be lost.
    if validation.is_best:
        save_checkpoint(replace(checkpoint, training={}), out.below("best"))
    save_checkpoint(checkpoint, out.below("last"))


def _choose_decoding(training: Training, out: Store) -> DecodingEvent | None:
    """Choose a decoding for ``best`` and store it there, once; None if there is no ``best``."""
    folder, recipe, data = out.below("best"), training.recipe, training.data
    # Only rank 0 touches files, which the other nodes may not share. It broadcasts the weights,
    # so all ranks score the same model, each on its share of the photos.
    best = load_checkpoint(folder) if training.rank == 0 and has_checkpoint(folder) else None
    there = [None if best is None else (best.decoding, best.decoded, best.equal_cf)]
    if training.world > 1:
        distributed.broadcast_object_list(there, 0, device=training.device)
    if there[0] is None:
        return None
    decoding, scores, equal_cf = there[0]
    # A resumed run that is finished has its decoding already; it is reported again, in case the
    # process was killed between storing and reporting it.
    if not scores:
        model = build_model(recipe.model.name, **recipe.model.options()).eval()
        if best is not None:
            model.load_state_dict(best.weights)
        model.to(training.device)
        if training.world > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, 0)
        decoding, scores, reading = choose_decoding(
            model,
            data.val,
            data.palette,
            recipe.train.metric,
            device=training.device,
            rank=training.rank,
            world=training.world,
        )
        equal_cf = {} if reading is None else reading.scores
        if best is not None:
            chosen = replace(best, decoding=decoding, decoded=scores, equal_cf=equal_cf)
            save_checkpoint(chosen, folder)
    return DecodingEvent(training.steps_done, decoding, scores, equal_cf)
