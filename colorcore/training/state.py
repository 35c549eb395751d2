"""The state of a training: networks, optimiser, EMA, position; a step and a validation of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from colorcore.checkpoints.checkpoint import Checkpoint, CheckpointError
from colorcore.checkpoints.optimizer_state import optimizer_state, restore_optimizer, weights_under
from colorcore.color.lab import decode_lab, normalize_L
from colorcore.dataset.loader import Batch, TrainLoader, val_batches
from colorcore.dataset.samples import Samples
from colorcore.inference.evaluate import evaluate, evaluation_for, statistics_for
from colorcore.losses import build_terms
from colorcore.losses.adversarial import KINDS
from colorcore.models import AnswersInBins, StartsPretrained, build_model
from colorcore.recipes.recipe import Recipe
from colorcore.recipes.schedule import lr_factor
from colorcore.scores.loss_history import LossHistory
from colorcore.scores.metrics import HIGHER_IS_BETTER
from colorcore.scores.signs import Sign, find_signs
from colorcore.training.adversary import Adversary, influence
from colorcore.training.augment import augment
from colorcore.training.events import ValidationEvent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.color.palette import Palette
    from colorcore.models.prediction import Prediction

PICTURES = 8
"""Validation photos that are shown each time, always the same."""
VAL_BATCH = 32


@dataclass(frozen=True, slots=True)
class FitData:
    """What a training learns from: samples, palette, mean (a, b), the dataset's fingerprint."""

    train: Samples
    val: Samples
    palette: Palette
    mean_ab: tuple[float, float]
    fingerprint: str


class Training:
    """The state of one training: model, average, adversary, optimisers, and where it stands."""

    def __init__(
        self,
        recipe: Recipe,
        data: FitData,
        device: torch.device,
        resume: Checkpoint | None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.world = distributed.get_world_size() if distributed.is_initialized() else 1
        torch.manual_seed(recipe.train.seed)
        self.model = self._build()
        if initial is not None:
            self.model.load_state_dict(initial)
        elif resume is None and isinstance(self.model, StartsPretrained):
            self.model.load_pretrained()
        self.average = self._build()
        self.average.load_state_dict(self.model.state_dict())
        self.average.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.optim.lr,
            weight_decay=recipe.optim.weight_decay,
            betas=recipe.optim.betas,
        )
        self.loss = build_terms(recipe.loss, recipe.loss_options, data.palette)
        self.loss.prepare(device)
        self.adversary: Adversary | None = None
        if self.loss.needs_discriminator and recipe.discriminator is not None:
            kind = str(recipe.loss_options.get("adversarial", {}).get("kind", KINDS[0]))
            self.adversary = Adversary(recipe.discriminator, kind, data.train.size, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "fp16")
        self.loader = TrainLoader(
            data.train,
            recipe.data.batch,
            seed=recipe.train.seed,
            rank=self.rank,
            world=self.world,
            pin=device.type == "cuda",
        )
        self.epoch, self.step_in_epoch = 0, 0
        self.stopping = False
        self.scores: dict[str, float] = {}
        self.signs: tuple[Sign, ...] = ()
        self.best: float | None = None
        self.run_id: str | None = None
        self.history = LossHistory(recipe.data.batch, len(self.loader))
        if resume is not None:
            self._restore(resume)
        self.parallel: DistributedDataParallel | None = None
        self.network = self._distribute()
        if self.world > 2 and device.type == "cpu":
            self._settle_buckets()

    def _build(self) -> nn.Module:
        part = self.recipe.model
        model = build_model(part.name, **part.options()).to(self.device)
        if isinstance(model, AnswersInBins):
            model.use_palette(self.data.palette)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _distribute(self) -> nn.Module:
        """The network as it is called in training: compiled on a GPU, DDP with several ranks."""
        network: nn.Module = self.model
        if self.world > 1:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            network = self.parallel = DistributedDataParallel(network, device_ids=ids)
        if self.device.type == "cuda":
            network = torch.compile(network)  # type: ignore[assignment]
        if self.adversary is not None:
            self.adversary.distribute(self.device)
        return network

    def _settle_buckets(self) -> None:
        """Have DDP order its buckets of gradients now, by a step that leaves nothing behind.

        It does so after the first step that it sees, which after a resume is another one; and
        where more than two ranks add up, the last bits of a sum depend on its place in a bucket.
        """
        models = [self.model, *([self.adversary.model] if self.adversary else [])]
        before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
        size = self.data.train.size
        loss, values = self._losses(torch.zeros(2, 3, size, size, device=self.device))
        (loss + values.get("discriminator", 0.0)).backward()
        for model, state in zip(models, before, strict=True):
            model.zero_grad(set_to_none=True)
            model.load_state_dict(state)

    @property
    def steps_done(self) -> int:
        """Optimiser steps so far, over all epochs."""
        return self.epoch * len(self.loader) + self.step_in_epoch

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.recipe.train.epochs * len(self.loader)

    @property
    def weight(self) -> float:
        """What this rank's mean over its photos counts in the mean over the ranks; 1 on average.

        DDP averages gradients over the ranks, whose shares of a batch may differ by one photo:
        so weighted, the average is that over the photos.
        """
        return self.loader.share * self.world / self.recipe.data.batch

    @property
    def skips_overflows(self) -> bool:
        """Whether a gradient that is not finite is fp16's, which a smaller scale will mend."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1.0

    def train_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """One optimiser step; returns loss and terms of this rank, and the gradients' norm."""
        recipe, done = self.recipe, self.steps_done
        generator = torch.Generator().manual_seed(mix_seed(recipe.train.seed, done, self.rank))
        torch.manual_seed(mix_seed(recipe.train.seed, done, self.rank) + 1)  # dropout
        factor = lr_factor(recipe.optim, done, self.total_steps, len(self.loader))
        set_lr(self.optimizer, recipe.optim.lr * factor)
        lab = decode_lab(batch.lab_u8.to(self.device, non_blocking=True))
        lab = augment(
            lab,
            flip=recipe.data.flip,
            crop=recipe.data.crop,
            jitter=recipe.data.jitter,
            generator=generator,
        )
        total, terms = self._forward_backward(lab)
        norm = self._step(self.optimizer)
        if self.adversary is not None:
            set_lr(self.adversary.optimizer, self.adversary.part.lr * factor)
            self._step(self.adversary.optimizer)
        self.scaler.update()
        self._update_average(done)
        self.step_in_epoch = batch.step + 1
        return total, terms, norm

    def _step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip and step; returns the gradients' norm, not finite where the scaler skips."""
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clip = self.recipe.optim.clip if self.recipe.optim.clip is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _forward_backward(self, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the mean loss over ``accumulate`` parts of the batch."""
        parts = lab.chunk(self.recipe.train.accumulate)
        total = lab.new_zeros(())
        terms: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with contextlib.ExitStack() as stack:
                if number < len(parts):
                    self._hold_sync(stack)
                share = len(part) / len(lab)
                loss, values = self._losses(part)
                self.scaler.scale(loss * (share * self.weight)).backward()
                if self.adversary is not None:
                    judged = values["discriminator"] * (share * self.weight)
                    self.scaler.scale(judged).backward()
            total += loss.detach() * share
            for name, value in values.items():
                terms[name] = terms.get(name, 0.0) + value.detach() * share
        return total, terms

    def _losses(self, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss of some photos, its terms, and the judge's loss beside them."""
        precision = self.recipe.train.precision
        with autocast(self.device, precision):
            inputs = normalize_L(lab[:, :1]).contiguous(memory_format=torch.channels_last)
            prediction: Prediction = self.network(inputs)
        prediction["ab"] = prediction["ab"].float()
        judged: dict[str, Tensor] = {}
        share = 1.0
        if self.adversary is not None:
            with autocast(self.device, precision):
                judged["discriminator"] = self.adversary.loss(prediction, lab)
                self.adversary.judge(prediction, lab)
            share = influence(self.adversary.part.warmup, self.steps_done, self.total_steps)
        loss, values = self.loss(prediction, lab, influence=share)
        # Not one head may be without a gradient: DDP waits for all of them.
        return loss + 0.0 * prediction["ab"].sum(), values | judged

    def _hold_sync(self, stack: contextlib.ExitStack) -> None:
        """Let the ranks add up gradients for themselves until the stack ends."""
        for network in (self.parallel, self.adversary.parallel if self.adversary else None):
            if network is not None:
                stack.enter_context(network.no_sync())

    @torch.no_grad()
    def _update_average(self, done: int) -> None:
        """EMA of weights and buffers; early on the decay is (1 + n) / (10 + n)."""
        decay = min(self.recipe.train.ema, (1 + done) / (10 + done))
        now = self.model.state_dict()
        for name, value in self.average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(now[name], 1.0 - decay)
            else:
                value.copy_(now[name])

    def agree(self, values: list[float], stop: bool) -> list[float]:
        """The means of values over all photos of a step, and whether any rank wants to stop.

        The one exchange of a step beside the gradients': so all ranks stop at the same step, and
        all know the same course of the loss, which a checkpoint of any step can then hold.
        """
        if self.world == 1:
            self.stopping = stop
            return values
        mine = [float(stop), *(value * self.weight / self.world for value in values)]
        total = torch.tensor(mine, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        asked, *means = total.tolist()
        self.stopping = asked > 0
        return means

    def validate(self) -> ValidationEvent:
        """Score the averaged weights on the whole validation split, each rank its share."""
        if self.world > 1:
            # Batch norm's statistics differ by rank; rank 0's are those that will be saved.
            for buffer in self.average.buffers():
                distributed.broadcast(buffer, 0)
        statistics = statistics_for(self.data.palette, self.data.mean_ab)
        evaluation, pairs = evaluate(
            self.average,
            val_batches(
                self.data.val,
                VAL_BATCH,
                rank=self.rank,
                world=self.world,
                pin=self.device.type == "cuda",
            ),
            self.data.palette,
            device=self.device,
            pictures=PICTURES,
            statistics=statistics,
        )
        if self.world > 1:
            states = [evaluation.state(), statistics.state()]
            total = torch.cat(states).to(self.device)
            distributed.all_reduce(total)
            sums = total.split([len(state) for state in states])
            evaluation = evaluation_for(self.data.palette)
            evaluation.add_state(sums[0])
            statistics = statistics_for(self.data.palette, self.data.mean_ab)
            statistics.add_state(sums[1])
        scores = evaluation.compute()
        measured = {**statistics.compute(), **self.history.compute()}
        young = self.history.young and self.epoch < self.recipe.train.epochs
        score, metric = scores[self.recipe.train.metric], self.recipe.train.metric
        sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
        is_best = self.best is None or sign * score > sign * self.best
        if is_best:
            self.best = score
        signs = find_signs(measured, young=young)
        self.scores, self.signs = scores, signs
        return ValidationEvent(self.epoch, self.steps_done, scores, is_best, pairs, measured, signs)

    def checkpoint(self, scores: dict[str, float]) -> Checkpoint:
        """All of this training's state, at whatever step it stands."""
        tensors, numbers = optimizer_state(self.optimizer)
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.adversary is not None:
            judge = self.adversary.model.state_dict()
            tensors |= {f"discriminator.{name}": value for name, value in judge.items()}
            more = optimizer_state(self.adversary.optimizer, "discriminator_optimizer")
            tensors, numbers = tensors | more[0], numbers | more[1]
        if self.scaler.is_enabled():
            numbers["scaler"] = self.scaler.state_dict()
        return Checkpoint(
            recipe=self.recipe,
            weights=self.average.state_dict(),
            palette=self.data.palette,
            mean_ab=self.data.mean_ab,
            size=self.data.train.size,
            dataset=self.data.fingerprint,
            epoch=self.epoch,
            step=self.step_in_epoch,
            scores=scores,
            best=self.best,
            run_id=self.run_id,
            training=tensors,
            optimizer=numbers,
            history=self.history.state(),
            signs=[asdict(sign) for sign in self.signs],
        )

    def _restore(self, resume: Checkpoint) -> None:
        if resume.dataset != self.data.fingerprint:
            raise CheckpointError(
                f"the checkpoint was trained on the dataset {resume.dataset}, this one is "
                f"{self.data.fingerprint}; resume on the same dataset or start anew without it"
            )
        if resume.palette.fingerprint != self.data.palette.fingerprint:
            raise CheckpointError(
                f"the checkpoint was trained with the palette {resume.palette.fingerprint}, the "
                f"dataset's is {self.data.palette.fingerprint} now; make the former again with "
                "cc priors, or start anew"
            )
        try:
            self.model.load_state_dict(weights_under(resume.training, "model"))
            self.average.load_state_dict(resume.weights)
            restore_optimizer(self.optimizer, resume)
            if self.adversary is not None:
                judge = weights_under(resume.training, "discriminator")
                self.adversary.model.load_state_dict(judge)
                restore_optimizer(self.adversary.optimizer, resume, "discriminator_optimizer")
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(resume.optimizer["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                "the checkpoint does not fit the recipe's model: "
                f"{str(error).splitlines()[-1].strip()}; resume with the recipe it was trained with"
            ) from error
        self.epoch, self.step_in_epoch = resume.epoch, resume.step
        self.best, self.run_id = resume.best, resume.run_id
        self.scores = dict(resume.scores)
        self.signs = tuple(Sign(**values) for values in resume.signs)
        self.history.load_state(resume.history)


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which the networks run: "auto" is bf16 on a GPU and fp32 on a CPU."""
    enabled = precision in ("bf16", "fp16") or (precision == "auto" and device.type == "cuda")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=enabled)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def mix_seed(*numbers: int) -> int:
    """One seed of several numbers, well spread (SplitMix64's finalizer over each)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 2
