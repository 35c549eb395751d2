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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from colorcore.checkpoints.card import measure, model_card
from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.inference.decoding_search import choose_decoding
from colorcore.recipes.recipe import Recipe
from colorcore.recipes.schedule import lr_factor, set_lr
from colorcore.step.precision import fast_products
from colorcore.step.profiling import Profile
from colorcore.step.seeds import seed_step
from colorcore.storage.location import open_store
from colorcore.storage.store import Store
from colorcore.training.events import (
    DecodingEvent,
    Observer,
    TrainingStoppedError,
    notify,
)
from colorcore.training.saving import Saving
from colorcore.training.state import FitData, Training
from colorcore.training.steps import Steps

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.dataset.loader import Batch


def fit(
    recipe: Recipe,
    data: FitData,
    out: Path | Store,
    *,
    device: torch.device | str = "cpu",
    resume: Checkpoint | None = None,
    initial: Mapping[str, Tensor] | None = None,
    origin: str = "",
    run_id: str | None = None,
    observers: Sequence[Observer] = (),
    stop: Callable[[], bool] = lambda: False,
    profile: int = 0,
    network: nn.Module | None = None,
) -> dict[str, float]:
    """Train to the end, or out of patience; returns the last scores.

    Writes ``out/last`` and ``out/best``, in the background while the next steps are taken; when it
    returns or raises, they are written.

    ``initial`` are the weights that model and average start from, instead of random ones, and
    ``origin`` says where they are from, for the model card.
    ``network`` is trained in place of the recipe's model, such as a pruned one, from its weights;
    it stays as it is, and what is saved are the weights of a copy.
    ``stop`` is asked after every step and must answer at once; when it is true on any rank, all
    ranks stop after that step.

    ``profile`` steps are measured on rank 0, after a few to warm up: ``out/profile`` gets a trace
    and a table, which observers receive as notices, too.

    ``last`` is written after every validation, every ``train.save_every`` steps, and before a
    stop. A run resumed from it continues exactly as if it had not been interrupted.

    Raises:
        TrainingDivergedError: the loss or its gradient became infinite or NaN.
        TrainingStoppedError: ``stop`` asked for it, and ``last`` is written.
        CheckpointError: ``resume`` belongs to another dataset or model.
        OSError, StorageError: a checkpoint could not be written.
    """
    device, store = torch.device(device), open_store(out)
    training = Training(
        recipe,
        data,
        device,
        resume,
        initial,
        lambda text: notify(observers, "on_notice", text),
        network,
    )
    training.run_id = run_id or training.run_id
    training.origin = origin or training.origin
    notify(observers, "on_start", training.total_steps, training.steps_done)
    steps = Steps(training, observers)
    training.profile = profiler = Profile(
        profile if training.rank == 0 else 0,
        device,
        len(training.loader) * recipe.train.eval_every,
        store,
        lambda text: notify(observers, "on_notice", text),
    )

    batches = training.loader.epoch(training.epoch, start_step=training.step_in_epoch)
    with Saving(training, store, observers) as saving:
        while not training.is_over:
            training.begin_epoch()
            steps.restart_clock()
            for batch in profiler.batches(batches):
                loss, terms, grad_norm = train_step(training, batch)
                stopping = steps.add(batch.positions, loss, terms, grad_norm, stop())
                saving.announce()
                profiler.step_taken()

                # Save within the epoch. Scores are those of the latest validation, if any.
                is_due, is_final = _is_due(training), batch.step + 1 == len(training.loader)
                if stopping or is_due or (is_final and training.world > 1):
                    stopping |= steps.flush()
                if stopping or is_due:
                    saving.save_last()
                    steps.restart_clock()
                if stopping:
                    saving.wait()
                    notify(observers, "on_stop", training.steps_done)
                    raise TrainingStoppedError(training.steps_done, training.total_steps)
            training.epoch, training.step_in_epoch = training.epoch + 1, 0

            # Evaluate and save. Every run ends with a validation, whatever eval_every is, so that
            # runs of different lengths can be compared by their last scores.
            is_last = training.epoch == recipe.train.epochs
            if not is_last:
                batches = training.loader.epoch(training.epoch)  # which reads ahead from now on
            if training.epoch % recipe.train.eval_every == 0 or is_last:
                with profiler.phase("validation"):
                    scoring = training.begin_validation()
                # A GPU computes the scores while the state is copied.
                with profiler.phase("checkpoint"):
                    copied = saving.copy()
                # Not before: the GPU is still at the last step, and the host ahead of it.
                steps.flush()
                with profiler.phase("validation", again=True):
                    validation = training.end_validation(scoring)
                notify(observers, "on_validation", validation)
                with profiler.phase("checkpoint", again=True):
                    saving.save(validation, copied)
                profiler.finish()
        batches.close()  # of an epoch for which patience has run out
        saving.wait()
        profiler.finish(is_end=True)

    # Only now: until here every score uses the model's own decoding, so scores of two steps, or
    # of two runs, differ only by what was learned.
    if decoded := _choose_decoding(training, store):
        notify(observers, "on_decoding", decoded)
    return training.scores


def train_step(training: Training, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """One optimizer step: loss and terms of this rank's photos, and the gradient's norm.

    All are scalars on the training's device, which may still compute them. The norm is not finite
    where fp16 overflowed and the scaler skipped the step.
    """
    recipe, step, adversary = training.recipe, training.steps_done, training.adversary
    generator = seed_step(recipe.train.seed, step, training.rank)
    factor = lr_factor(recipe.optim, step, training.total_steps, len(training.loader))
    set_lr(training.optimizer, recipe.optim.lr * factor)
    if adversary is not None:
        set_lr(adversary.optimizer, adversary.part.lr * factor)
    with training.profile.phase("copy"):
        lab = training.prepare(batch, generator)  # (B, 3, H, W) CIELAB on the device, augmented

    def passes() -> tuple[Tensor, dict[str, Tensor]]:
        seed_step(recipe.train.seed, step, training.rank)  # again: they may be repeated
        with fast_products(training.device, recipe.train.precision):
            return forward_backward(training, lab)

    loss, terms = training.network.attempt(passes, [adversary.model] if adversary else [])

    with training.profile.phase("optimizer"):
        norm = training.clip_and_step(training.optimizer)
        if adversary is not None:
            training.clip_and_step(adversary.optimizer)
        # Once per step: both optimizers share one scale, and either's overflow lowers it.
        training.scaler.update()
    with training.profile.phase("EMA"):
        training.update_average()
    training.step_in_epoch = batch.step + 1
    return loss, terms, norm


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
            with training.profile.phase("forward"):
                prediction = training.forward(part)
                loss, values = training.losses(prediction, part)
            with training.profile.phase("backward"):
                training.backward(loss, share)
                if training.adversary is not None:
                    # Neither backward pass reaches the other network: the discriminator's loss
                    # sees detached predictions, and the model's loss a frozen discriminator.
                    training.backward(values["discriminator"], share)
        total += loss.detach() * share
        for name, value in values.items():
            terms[name] = terms.get(name, 0.0) + value.detach() * share
    return total, terms


def _is_due(training: Training) -> bool:
    every = training.recipe.train.save_every
    return every is not None and training.steps_done % every == 0


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
        model = training.build().eval()
        if best is not None:
            model.load_state_dict(best.weights)
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
            measured = measure(chosen, model, data.val, device=training.device)
            chosen.card = model_card(chosen, (len(data.train), len(data.val)), measured)
            save_checkpoint(chosen, folder, same_as=folder)
    return DecodingEvent(training.steps_done, decoding, scores, equal_cf)
