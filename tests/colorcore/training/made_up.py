"""Small trainings in memory, and observers that record or end them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.fit_palette import fit_palette
from colorcore.color.lab import encode_lab
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.training.events import (
    DecodingEvent,
    Observer,
    StepEvent,
    ValidationEvent,
)
from colorcore.training.state import FitData

CPU = torch.device("cpu")


class Photos:
    """Smooth, colourful photos in memory, with the methods of Samples that training calls."""

    def __init__(self, photos: int, *, seed: int, size: int = 32) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(photos, 3, 4, 4, generator=generator)
        rgb = nn.functional.interpolate(coarse, size=size, mode="bilinear")
        rgb_u8 = (rgb * 255).byte().permute(0, 2, 3, 1).numpy()
        self.lab_u8 = torch.from_numpy(np.stack([encode_lab(photo) for photo in rgb_u8]))
        self.size = size
        self.shard_counts = np.array([photos // 2, photos - photos // 2])
        self.shards = ["train/000000-000.tar", "train/000001-000.tar"]
        self.cache = None

    def __len__(self) -> int:
        return len(self.lab_u8)

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        return self.lab_u8[torch.from_numpy(positions)]

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        return [f"photo-{position}" for position in positions]


def data_of(train: Photos, val: Photos, fingerprint: str = "0123456789abcdef") -> FitData:
    ab = train.lab_u8[:, 1:].transpose(0, 1).reshape(2, -1).long()
    histogram = torch.bincount(ab[0] * 256 + ab[1], minlength=65_536).reshape(256, 256)
    palette = fit_palette(histogram.numpy(), bins=8, dataset=fingerprint)
    return FitData(train, val, palette, (1.5, -2.5), fingerprint)  # type: ignore[arg-type]


def small_data() -> FitData:
    """Five steps of four, and a number of validation photos that two ranks cannot halve."""
    return data_of(Photos(21, seed=0), Photos(7, seed=1))


def recipe_of(*overrides: str) -> Recipe:
    """A small recipe in fp32: "auto" depends on the CPU, and bf16 rounds what tests compare."""
    small = ["model.channels=4", "model.depth=2", "data.batch=4", "train.epochs=3", "optim.lr=1e-3"]
    return load_recipe("simple", [*small, "train.ema=0.9", "train.precision=fp32", *overrides])


@dataclass
class Diary(Observer):
    """Keeps all that it is told."""

    starts: list[tuple[int, int]] = field(default_factory=list)
    steps: list[StepEvent] = field(default_factory=list)
    validations: list[ValidationEvent] = field(default_factory=list)
    saved: list[ValidationEvent] = field(default_factory=list)
    decodings: list[DecodingEvent] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list, compare=False)

    def on_notice(self, text: str) -> None:
        self.notices.append(text)

    def on_start(self, total_steps: int, first_step: int) -> None:
        self.starts.append((total_steps, first_step))

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def on_validation(self, event: ValidationEvent) -> None:
        self.validations.append(event)

    def on_saved(self, event: ValidationEvent) -> None:
        self.saved.append(event)

    def on_decoding(self, event: DecodingEvent) -> None:
        self.decodings.append(event)

    def on_stop(self, step: int) -> None:
        self.stops.append(step)


class Killed(BaseException):
    """As sudden as a kill: no handler of ours catches it."""


@dataclass
class Killer(Observer):
    """Ends the run in the middle of an epoch."""

    step: int

    def on_step(self, event: StepEvent) -> None:
        if event.step == self.step:
            raise Killed


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every file of a training's folder."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Averaged and raw weights of a checkpoint, and those of its discriminator."""
    checkpoint = load_checkpoint(folder, training=True)
    kinds = ("model.", "discriminator.")
    raw = {name: value for name, value in checkpoint.training.items() if name.startswith(kinds)}
    return {**checkpoint.weights, **raw}


def close(here: dict[str, Tensor], there: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert here.keys() == there.keys()
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], atol=atol, rtol=0, msg=name)


EVERYTHING_RANDOM = (
    "model.dropout=0.3",
    "data.crop=0.6",
    "data.jitter=0.2",
    "data.gamma=0.3",
    "data.flip=true",
    "loss.ab_l1=0.2",
)
JUDGED = (
    "loss.adversarial=0.1",
    "loss.feature_matching=0.5",
    "discriminator.channels=4",
    "discriminator.scales=2",
)


def diverging(step: int, spoil: Callable[[Tensor], Tensor]) -> Callable[..., object]:
    """A stand-in for build_terms: mean |ab|, to which ``spoil(ab)`` is added at one step."""
    calls = []

    class Spoiled:
        needs_discriminator = False

        def prepare(self, device: torch.device) -> None:
            pass

        def __call__(self, *args, influence: float) -> tuple[Tensor, dict[str, Tensor]]:
            return loss(*args)

    def loss(prediction: dict[str, Tensor], lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(lab)
        total = prediction["ab"].abs().mean()
        if len(calls) == step:
            total = total + spoil(prediction["ab"])
        return total, {"ab": total.detach()}

    return lambda *_: Spoiled()


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both have the same names, and the same bits under each."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
