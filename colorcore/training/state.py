"""The state of a training: networks, optimizers, EMA, position; and the parts of one step."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
from torch import distributed

from colorcore.allocator import keep_freed_memory
from colorcore.blocks.mixup import blend_next
from colorcore.checkpoints.checkpoint import Checkpoint, CheckpointError, ends
from colorcore.checkpoints.optimizer_state import optimizer_state, restore_optimizer, weights_under
from colorcore.color.lab import decode_lab, normalize_L
from colorcore.dataset.loader import Batch, TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.inference.scoring import Scoring, scoring_batch
from colorcore.losses import build_terms
from colorcore.losses.adversarial import KINDS
from colorcore.models import AnswersInBins, StartsPretrained, build_model
from colorcore.recipes.recipe import Recipe
from colorcore.scores.loss_history import LossHistory
from colorcore.scores.metrics import HIGHER_IS_BETTER
from colorcore.scores.signs import Sign, find_signs
from colorcore.step.augment import augment
from colorcore.step.average import Average
from colorcore.step.precision import autocast
from colorcore.step.profiling import no_profile
from colorcore.training.adversary import Adversary, influence
from colorcore.training.encoder import parameter_groups, set_learning
from colorcore.training.events import ValidationEvent
from colorcore.training.network import Network
from colorcore.transfer import Arriving

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.color.palette import Palette
    from colorcore.models.prediction import Prediction


@dataclass(frozen=True, slots=True)
class FitData:
    """What a training learns from: samples, palette, mean (a, b), the dataset's fingerprint."""

    train: Samples
    val: Samples
    palette: Palette
    mean_ab: tuple[float, float]
    fingerprint: str


class Training:
    """The state of one training.

    Attributes:
        model: the raw network; ``average`` is its EMA, which is scored and saved.
        network: the model as called in a step: compiled where that pays, DDP with several ranks.
        adversary: the discriminator and its optimizer, if a loss term needs one.
        epoch, step_in_epoch: position, as the number of epochs and steps completed.
        best, waited: the best score so far of the recipe's metric, and the validations since then.
        profile: measures the phases of a step, if anything does.
        history: course of the loss, in which signs such as ``diverged`` are found.

    ``notice`` receives what users should know, such as how long the compiler will take.

    Raises:
        CheckpointError: ``resume`` belongs to another dataset or model.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: FitData,
        device: torch.device,
        resume: Checkpoint | None,
        initial: Mapping[str, Tensor] | None = None,
        notice: Callable[[str], None] = lambda _: None,
        network: nn.Module | None = None,
    ) -> None:
        self._like = network
        self.recipe = recipe = recipe.for_palette(len(data.palette))
        self.data, self.device = data, device
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.world = distributed.get_world_size() if distributed.is_initialized() else 1
        if device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(recipe.train.seed)
        self.model = self.build()
        if initial is not None:
            self.model.load_state_dict(initial)
        elif resume is None and network is None and isinstance(self.model, StartsPretrained):
            self.model.load_pretrained()
        self.average = self.build()
        self.average.load_state_dict(self.model.state_dict())
        self.average.requires_grad_(False)
        self._following = Average(self.average, self.model)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe.optim),
            lr=recipe.optim.lr,
            weight_decay=recipe.optim.weight_decay,
            betas=recipe.optim.betas,
            fused=device.type == "cuda",  # one kernel; on a CPU the step gains 1%
        )
        self.loss = build_terms(recipe.loss, recipe.loss_options, data.palette)
        self.loss.prepare(device)
        self.adversary: Adversary | None = None
        if self.loss.needs_discriminator and recipe.discriminator is not None:
            kind = str(recipe.loss_options.get("adversarial", {}).get("kind", KINDS[0]))
            self.adversary = Adversary(recipe.discriminator, kind, data.train.size, device)
        # bf16 has float32's exponent and needs no scaling; fp16's gradients would underflow.
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.train.precision == "fp16")
        self.loader = TrainLoader(
            data.train,
            recipe.data.batch,
            seed=recipe.train.seed,
            rank=self.rank,
            world=self.world,
            pin=device.type == "cuda",
        )
        self.profile = no_profile()
        self.epoch, self.step_in_epoch = 0, 0
        self.scores: dict[str, float] = {}
        self.signs: tuple[Sign, ...] = ()
        self.best: float | None = None
        self.waited = 0
        self.run_id: str | None = None
        self.origin = ""
        self.history = LossHistory(recipe.data.batch, len(self.loader))
        # Before DDP and the compiler wrap the model: wrapped, its parameters have other names.
        if resume is not None:
            self._restore(resume)
        set_learning(self.model, recipe.optim, self.epoch)
        self.network = Network(self.model, recipe, device, data.train.size, notice)
        self.network.decide(self.total_steps - self.steps_done)
        if self.adversary is not None:
            self.adversary.distribute(self.device)
        if self.world > 2 and device.type == "cpu":
            self._settle_buckets()

    def build(self) -> nn.Module:
        """A new network on the device: the recipe's model, or a copy of the one to be trained."""
        part = self.recipe.model
        if self._like is not None:
            model = copy.deepcopy(self._like).to(self.device)
        else:
            model = build_model(part.name, **part.options()).to(self.device)
            if isinstance(model, AnswersInBins):
                model.use_palette(self.data.palette)
        # NHWC: the layout in which half-precision convolutions are fastest.
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def begin_epoch(self) -> None:
        """Let the encoder learn from this epoch on, if the recipe says so."""
        if set_learning(self.model, self.recipe.optim, self.epoch):
            self.network.wrap()

    def _settle_buckets(self) -> None:
        """Make DDP order its gradient buckets now, by a step that leaves nothing behind.

        DDP orders them after the first step it sees, which is a different step after a resume.
        With more than two ranks, the last bits of a sum depend on its place in a bucket, so the
        resumed run would no longer repeat the uninterrupted one.
        """
        models = [self.model, *([self.adversary.model] if self.adversary else [])]
        before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
        size = self.data.train.size
        lab = torch.zeros(2, 3, size, size, device=self.device)
        with torch.compiler.set_stance("force_eager"):
            loss, values = self.losses(self.forward(lab), lab)
            (loss + values.get("discriminator", 0.0)).backward()
        for model, state in zip(models, before, strict=True):
            model.zero_grad(set_to_none=True)
            model.load_state_dict(state)

    @property
    def steps_done(self) -> int:
        """Optimizer steps so far, over all epochs."""
        return self.epoch * len(self.loader) + self.step_in_epoch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.recipe.train.epochs * len(self.loader)

    @property
    def is_over(self) -> bool:
        """Whether the training has ended, after its epochs or out of patience."""
        return ends(self.recipe.train, self.epoch, self.waited)

    @property
    def lr(self) -> float:
        """The model's learning rate in the latest step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def weight(self) -> float:
        """Weight of this rank's mean in the mean over all ranks' photos; 1 on average.

        DDP averages gradients over ranks, whose shares of a batch may differ by one photo. With
        this weight the result is the average over photos.
        """
        return self.loader.share * self.world / self.recipe.data.batch

    # -- the parts of a step, in order; training.fit.train_step puts them together --------------

    def prepare(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """A batch on the device, as CIELAB (B, 3, H, W) float, augmented."""
        # Bytes travel, floats are made on the device: a quarter of the traffic.
        lab = decode_lab(batch.lab_u8.to(self.device, non_blocking=True))
        part = self.recipe.data
        return augment(
            lab,
            flip=part.flip,
            crop=part.crop,
            jitter=part.jitter,
            gamma=part.gamma,
            generator=generator,
        )

    @contextlib.contextmanager
    def gradient_sync(self, enabled: bool) -> Iterator[None]:
        """Whether backward passes in this context sum gradients over the ranks.

        Accumulated parts need one exchange, at the last part, instead of one each.
        """
        with contextlib.ExitStack() as stack:
            for network in (
                self.network.parallel,
                self.adversary.parallel if self.adversary else None,
            ):
                if network is not None and not enabled:
                    stack.enter_context(network.no_sync())
            yield

    def forward(self, lab: Tensor) -> Prediction:
        """The network's prediction from the lightness of lab (B, 3, H, W), ab in float32."""
        with autocast(self.device, self.recipe.train.precision):
            inputs = normalize_L(lab[:, :1]).contiguous(memory_format=torch.channels_last)
            prediction: Prediction = self.network.call(inputs)
        prediction["ab"] = prediction["ab"].float()
        return prediction

    def losses(self, prediction: Prediction, lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss and its terms; with an adversary, ``discriminator`` is its own loss."""
        judged: dict[str, Tensor] = {}
        share = 1.0
        if (shares := prediction.get("shares")) is not None:
            lab = blend_next(lab, shares)
        if self.adversary is not None:
            with autocast(self.device, self.recipe.train.precision):
                judged["discriminator"] = self.adversary.loss(prediction, lab)
                self.adversary.judge(prediction, lab)
            share = influence(self.adversary.part.warmup, self.steps_done, self.total_steps)
        loss, values = self.loss(prediction, lab, influence=share)
        # DDP waits for the gradient of every parameter, and not every recipe's terms use ab.
        return loss + 0.0 * prediction["ab"].sum(), values | judged

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradient of a mean over ``share`` of this rank's photos to that of the step."""
        self.scaler.scale(loss * (share * self.weight)).backward()

    def clip_and_step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip and step; returns the gradient's norm, not finite where the scaler skips."""
        # Unscaled first: optim.clip bounds the true norm, not the norm times fp16's scale.
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clip = self.recipe.optim.clip if self.recipe.optim.clip is not None else math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        return norm

    def update_average(self) -> None:
        """EMA of weights and buffers: avg ← d · avg + (1 - d) · now."""
        # Early on d = (1 + n) / (10 + n) after n steps (as in TensorFlow's
        # ExponentialMovingAverage): with 0.999 throughout, the first validations would score
        # the random weights that the average started from.
        done = self.steps_done
        decay = min(self.recipe.train.ema, (1 + done) / (10 + done))
        self._following.update(decay)

    def exchange(
        self, loss: Tensor, terms: Mapping[str, Tensor], norm: Tensor, stop: bool
    ) -> Arriving:
        """The gradient's norm, the scaler's scale, who wants to stop, loss and terms of all photos.

        The scale is 0 without a scaler. The only exchange of a step besides the gradients'. All
        ranks stop after the same step, and all have the same loss history, so a checkpoint of any
        step can hold it.
        """
        # One transfer for all numbers: on a GPU each would wait for the whole step by itself.
        mine = torch.stack([loss, *(term.to(loss) for term in terms.values())])
        asked = mine.new_full((1,), float(stop))  # filled there: a copy would wait
        scale = mine.new_zeros(())
        if self.scaler.is_enabled():
            scale = self.scaler.scale(torch.ones_like(scale))  # get_scale would wait
        own = torch.stack([norm.to(mine), scale])
        if self.world == 1:
            return Arriving(torch.cat([own, asked, mine]))
        total = torch.cat([asked.double(), mine.double() * self.weight / self.world])
        distributed.all_reduce(total)
        return Arriving(torch.cat([own.to(total), total]))

    # -- validation and checkpoints --------------------------------------------------------------

    def begin_validation(self) -> Scoring:
        """Begin to score the averaged weights on the validation split."""
        if self.world > 1:
            # Batch norm's statistics differ by rank, and rank 0's are the ones that are saved.
            for buffer in self.average.buffers():
                distributed.broadcast(buffer, 0)
        return Scoring(
            self.average,
            self.data.val,
            self.data.palette,
            self.data.mean_ab,
            device=self.device,
            precision=self.recipe.train.precision,
            batch=scoring_batch(self.device, self.loader.share),
            rank=self.rank,
            world=self.world,
        )

    def end_validation(self, scoring: Scoring) -> ValidationEvent:
        """Wait for the scores, and find out whether they are the best and what they are signs of.

        The training must be where it was when they were begun.
        """
        found = scoring.result()
        scores, measured = found.scores, {**found.statistics, **self.history.compute()}
        # A model from before the discriminator had its full say is the generator alone. It may
        # score better, but is not what the recipe is for: it is the best only until then.
        if self._plays(self.epoch) and not self._plays(self.epoch - self.recipe.train.eval_every):
            self.best = None
        score, metric = scores[self.recipe.train.metric], self.recipe.train.metric
        sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
        is_best = self.best is None or sign * score > sign * self.best
        if is_best:
            self.best = score
        self.waited = 0 if is_best else self.waited + 1
        # The last validation checks every sign, however short the training was.
        signs = find_signs(measured, young=self.history.young and not self.is_over)
        self.scores, self.signs = scores, signs
        return ValidationEvent(
            epoch=self.epoch,
            step=self.steps_done,
            scores=scores,
            is_best=is_best,
            pairs=found.pairs,
            statistics=measured,
            signs=signs,
            is_last=self.is_over,
        )

    def _plays(self, epoch: int) -> bool:
        """Whether the adversarial terms have their full influence after an epoch."""
        if self.adversary is None:
            return False
        done = epoch * len(self.loader)
        return influence(self.adversary.part.warmup, done, self.total_steps) >= 1.0

    def checkpoint(self) -> Checkpoint:
        """The complete state of the training, after any step; scores are the latest ones."""
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
            scores=self.scores,
            best=self.best,
            waited=self.waited,
            run_id=self.run_id,
            training=tensors,
            optimizer=numbers,
            history=self.history.state(),
            signs=[asdict(sign) for sign in self.signs],
            origin=self.origin,
        )

    def _restore(self, resume: Checkpoint) -> None:
        if resume.dataset != self.data.fingerprint:
            raise CheckpointError(
                f"the checkpoint was trained on the dataset {resume.dataset}, this one is "
                f"{self.data.fingerprint}; resume on the same dataset, or start a new training"
            )
        if resume.palette.fingerprint != self.data.palette.fingerprint:
            raise CheckpointError(
                f"the checkpoint was trained with the palette {resume.palette.fingerprint}, the "
                f"dataset's is {self.data.palette.fingerprint} now; rebuild the former with "
                "cc priors, or start a new training"
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
                f"{shorten(str(error).splitlines()[-1], 200)}; "
                "resume with the recipe it was trained with"
            ) from error
        self.epoch, self.step_in_epoch = resume.epoch, resume.step
        self.best, self.waited, self.run_id = resume.best, resume.waited, resume.run_id
        self.scores = dict(resume.scores)
        self.origin = resume.origin
        self.signs = tuple(Sign(**values) for values in resume.signs)
        self.history.load_state(resume.history)
