"""Score a model on photos, and the two baselines that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import torch

from colorcore.color.bins import nearest_bins
from colorcore.color.lab import decode_lab
from colorcore.decoding import Decoding
from colorcore.inference.equal_colorfulness import EQUAL, EqualColorfulness
from colorcore.inference.predict import OWN, predict_with_logits
from colorcore.scores.color_statistics import ColorStatistics
from colorcore.scores.metrics import Evaluation, constant_baseline, grey_baseline

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.color.palette import Palette

BASELINES = ("grey", "constant")


class Watcher(Protocol):
    """Receives a model's predictions batch by batch, such as ColorStatistics."""

    def update(self, lab_pred: Tensor, lab_true: Tensor, rgb: Tensor | None = None, /) -> None:
        """Add a batch: LAB (B, 3, H, W) float; rgb is the output of an RGB head, if any."""


class Validation:
    """The scores of a training's validation: those of an ``Evaluation``, and ``EQUAL``.

    It is added up batch by batch and over ranks as its two parts are.
    """

    def __init__(self, palette: Palette) -> None:
        self._own = evaluation_for(palette)
        self._equal = EqualColorfulness(torch.from_numpy(palette.balance()))

    def update(self, lab_pred: Tensor, lab_true: Tensor) -> None:
        """Add a batch, as ``Evaluation.update`` does."""
        self._equal.update(lab_pred, lab_true)
        self._own.update(lab_pred, lab_true)

    def state(self) -> Tensor:
        """The sums so far, as a float64 vector on the CPU; states can be added."""
        return torch.cat([self._own.state(), self._equal.state()])

    def add_state(self, state: Tensor) -> None:
        """Add the state of another validation with the same palette.

        Raises:
            ValueError: the vector has another length, so the palette was another one.
        """
        own = len(self._own.state())
        self._own.add_state(state[:own])
        self._equal.add_state(state[own:])

    def compute(self) -> dict[str, float]:
        """The means over photos, as ``Evaluation.compute`` has them, and ``EQUAL``.

        Raises:
            ValueError: no photo was added.
        """
        return {**self._own.compute(), EQUAL: self._equal.compute()}


def evaluation_for(palette: Palette) -> Evaluation:
    """An empty evaluation whose balance and bins are the palette's."""
    return Evaluation(
        torch.from_numpy(palette.balance()),
        torch.from_numpy(nearest_bins(palette.centroids)).long(),
        len(palette.centroids),
    )


def statistics_for(palette: Palette, mean_ab: tuple[float, float]) -> ColorStatistics:
    """Empty statistics whose balance is the palette's."""
    return ColorStatistics(mean_ab, torch.from_numpy(palette.balance()))


def evaluate(
    model: nn.Module,
    batches: Iterable[Tensor],
    palette: Palette,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    pictures: int = 0,
    statistics: ColorStatistics | None = None,
) -> tuple[Validation, Tensor]:
    """Score a model with its own decoding.

    batches of stored LAB (B, 3, H, W) uint8; ``precision`` is that of the network, as a recipe's.
    Returns the validation, and predicted and true LAB of the first ``pictures`` photos as
    (pictures, 2, 3, H, W). Updates ``statistics`` too.

    A GPU may still compute all of it, and pictures are on the device: the host has not waited.
    """
    was_training = model.training
    model.eval()
    validation = Validation(palette)
    shown: list[Tensor] = []
    for lab_u8 in batches:
        lab = decode_lab(lab_u8.to(device, non_blocking=True))
        predicted, rgb = predict_with_logits(model, lab, OWN, precision)
        if statistics is not None:
            statistics.update(predicted, lab, rgb)
        missing = pictures - sum(len(pairs) for pairs in shown)
        if missing > 0:
            shown.append(torch.stack([predicted[:missing], lab[:missing]], dim=1))
        validation.update(predicted, lab)
    model.train(was_training)
    return validation, torch.cat(shown) if shown else torch.empty(0)


def baselines(mean_ab: tuple[float, float]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The baselines that need no model, as functions of a batch of LAB (B, 3, H, W)."""
    constant = torch.tensor(mean_ab)
    return {"grey": grey_baseline, "constant": lambda lab: constant_baseline(lab, constant)}


def score_with_baselines(
    model: nn.Module,
    batches: Iterable[Tensor],
    palette: Palette,
    mean_ab: tuple[float, float],
    *,
    device: torch.device | str = "cpu",
    decoding: Decoding = OWN,
    statistics: Watcher | None = None,
) -> dict[str, dict[str, float]]:
    """The scores of the model, of grey and of the constant mean ab, in one pass.

    Returns {"grey": {...}, "constant": {...}, "model": {...}}, each from ``Evaluation.compute``.
    Updates the model's ``statistics`` too.
    """
    answers = baselines(mean_ab)
    evaluations = {name: evaluation_for(palette) for name in (*answers, "model")}
    for lab_u8 in batches:
        lab = decode_lab(lab_u8.to(device, non_blocking=True))
        predicted, rgb = predict_with_logits(model, lab, decoding)
        if statistics is not None:
            statistics.update(predicted, lab, rgb)
        for name, answer in answers.items():
            evaluations[name].update(answer(lab), lab)
        evaluations["model"].update(predicted, lab)
    return {name: evaluation.compute() for name, evaluation in evaluations.items()}
