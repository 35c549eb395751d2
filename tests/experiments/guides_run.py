"""One training of `tests.experiments.guides`, from recipe to scores, kept as a JSON file."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.lab import decode_lab, normalize_L
from colorcore.color.palette import Palette
from colorcore.inference.evaluate import evaluate, score_with_baselines
from colorcore.inference.predict import predict_lab
from colorcore.losses.inputs import area_mean, true_ab
from colorcore.models import AnswersInBins
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.training.events import Observer, StepEvent, ValidationEvent
from colorcore.training.fit import fit
from tests.experiments.equal import front_of
from tests.experiments.photos import Photos

EPOCHS = 8
LR_SCALE = 5.0
COMMON = (
    "model.channels=16",
    "model.dropout=0.2",
    "data.batch=16",
    "data.crop=0.6",
    "train.eval_every=2",
    "train.ema=0.99",
    "train.precision=bf16",
)
"""What every recipe is shrunk by, all alike; its learning rate times LR_SCALE besides."""
TEMPERATURES = (1.0, 0.7, 0.5, 0.38, 0.25, 0.1, 0.01)
"""Of the annealed mean; at 0.01 the likeliest bin has all."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A recipe with overrides that come after the common ones.

    ``lr`` replaces the recipe's own, which is in any case scaled as the others' are.
    """

    recipe: str
    sets: tuple[str, ...] = ()
    lr: float | None = None

    def build(self, seed: int, epochs: int = EPOCHS) -> Recipe:
        """The recipe as it is trained here."""
        own = load_recipe(self.recipe)
        overrides = [*COMMON, f"train.epochs={epochs}"]
        overrides.append(f"optim.lr={LR_SCALE * (self.lr or own.optim.lr)!r}")
        if own.optim.warmup_epochs is not None:  # 5 of 100 epochs
            share = own.optim.warmup_epochs / own.train.epochs
            overrides += ["optim.warmup_epochs=none", f"optim.warmup={share!r}"]
        if own.discriminator is not None:
            overrides.append("discriminator.channels=16")
        if (
            "perceptual" in own.loss
        ):  # the weights of VGG16 and AlexNet are not the project's to ship
            overrides.append("loss.perceptual=0")
        return load_recipe(self.recipe, [*overrides, *self.sets, f"train.seed={seed}"])


class _Curve(Observer):
    """Mean loss of each epoch, and the scores of each validation."""

    def __init__(self) -> None:
        self.losses: dict[int, list[float]] = {}
        self.norms: dict[int, list[float]] = {}
        self.scores: list[dict[str, float]] = []

    def on_step(self, event: StepEvent) -> None:
        self.losses.setdefault(event.epoch, []).append(event.loss)
        self.norms.setdefault(event.epoch, []).append(event.grad_norm)

    def on_validation(self, event: ValidationEvent) -> None:
        self.scores.append(event.scores)

    def state(self) -> dict[str, Any]:
        return {
            "loss": [float(np.mean(values)) for values in self.losses.values()],
            "grad_norm": [float(np.mean(values)) for values in self.norms.values()],
            "val": self.scores,
        }


def result_of(name: str, seed: int, recipe: Recipe, size: int, out: Path) -> dict[str, Any] | None:
    """What was measured before with the very same settings, if anything was."""
    try:
        found: dict[str, Any] = json.loads(_file(name, seed, recipe, size, out).read_text())
    except FileNotFoundError:
        return None
    return found if found["recipe"] == _settings(recipe) else None


def run(name: str, seed: int, recipe: Recipe, photos: Photos, out: Path) -> dict[str, Any]:
    """Train, take the best checkpoint by validation, score it, and write all of that down."""
    torch.set_num_threads(1)
    data, curve = photos.fit_data(), _Curve()
    folder = out / "models" / f"{photos.size} px, {name}, {recipe.train.epochs} epochs, {seed}"
    started = time.process_time()
    fit(recipe, data, folder, observers=[curve])
    cpu_s = time.process_time() - started
    best = load_checkpoint(folder / "best")
    model = best.model()
    result: dict[str, Any] = {
        "recipe": _settings(recipe),
        "steps": sum(map(len, curve.losses.values())),
        "best_epoch": best.epoch,
        "cpu_s": round(cpu_s, 1),
        "curve": curve.state(),
        "scores": {},
    }
    for split, batches in photos.held_out().items():
        result["scores"][split] = score_with_baselines(model, batches, data.palette, data.mean_ab)
        result.setdefault("front", {})[split] = front_of(model, batches, data.palette)
        if isinstance(model, AnswersInBins):
            result.setdefault("decoding", {})[split] = decodings(model, batches, data.palette)
    path = _file(name, seed, recipe, photos.size, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1))
    part.replace(path)
    return result


def decodings(model: nn.Module, batches: list[Tensor], palette: Palette) -> dict[str, Any]:
    """One answer in bins, decoded at several temperatures and without its residual.

    Besides: how often confidence is right, by tenths of confidence, and the truth's own bins
    decoded, beyond which no answer in bins gets.
    """
    made: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        made[f"T={temperature:g}"] = _scores(_Decoded(model, temperature, 1.0), batches, palette)
    made["no residual"] = _scores(_Decoded(model, None, 0.0), batches, palette)
    made["confidence"] = _confidence(model, batches)
    return made


def _scores(model: nn.Module, batches: list[Tensor], palette: Palette) -> dict[str, float]:
    evaluation, _ = evaluate(model, batches, palette)
    return evaluation.compute()


class _Decoded(nn.Module):
    """A model that answers in bins, decoded otherwise."""

    def __init__(self, model: nn.Module, temperature: float | None, residual: float) -> None:
        super().__init__()
        self.model, self.temperature, self.residual = model, temperature, residual

    def forward(self, L_norm: Tensor) -> dict[str, Tensor]:
        answer = self.model(L_norm)
        options = {} if self.temperature is None else {"temperature": self.temperature}
        ab = self.model.decode(  # type: ignore[operator]
            answer["logits"],
            self.residual * answer["residual"],
            answer["confidence"],
            size=(L_norm.shape[2], L_norm.shape[3]),
            **options,
        )
        return {"ab": ab}


@torch.inference_mode()
def _confidence(model: nn.Module, batches: list[Tensor]) -> list[list[float]]:
    """For each tenth of confidence that occurs: share of pixels, mean confidence, share right."""
    stated, right = [], []
    for lab_u8 in batches:
        lab = decode_lab(lab_u8)
        c = model(normalize_L(lab[:, :1]))["confidence"]
        size = (c.shape[2], c.shape[3])
        error = area_mean(predict_lab(model, lab)[:, 1:], size) - true_ab(lab, size)
        stated.append(c.flatten())
        right.append((torch.linalg.vector_norm(error, dim=1) <= 10.0).float().flatten())
    c, y = torch.cat(stated), torch.cat(right)
    tenth = (c * 10).long().clamp(max=9)
    return [
        [
            float((tenth == k).float().mean()),
            float(c[tenth == k].mean()),
            float(y[tenth == k].mean()),
        ]
        for k in tenth.unique().tolist()
    ]


def _settings(recipe: Recipe) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(recipe.model_dump_json(exclude={"about"}))
    return settings


def _file(name: str, seed: int, recipe: Recipe, size: int, out: Path) -> Path:
    return out / "results" / f"{size} px, {name}, {recipe.train.epochs} epochs, {seed}.json"
