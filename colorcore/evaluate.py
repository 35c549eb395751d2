"""Scoring a model on photos, beside the two answers that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from colorcore.decoding import Decoding, decode
from colorcore.lab import decode_lab, normalize_L
from colorcore.metrics import Evaluation, constant_baseline, grey_baseline
from colorcore.palette import nearest_bins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.palette import Palette

BASELINES = ("grey", "constant")
OWN = Decoding()
"""The model's own answer."""


def evaluation_for(palette: Palette) -> Evaluation:
    """An empty evaluation whose balance and bins are the palette's."""
    return Evaluation(
        torch.from_numpy(palette.balance()),
        torch.from_numpy(nearest_bins(palette.centroids)).long(),
        len(palette.centroids),
    )


@torch.inference_mode()
def predict_lab(model: nn.Module, lab: Tensor, decoding: Decoding = OWN) -> Tensor:
    """The photos with predicted colours. lab (B, 3, H, W) CIELAB; only its L is looked at.

    Raises:
        ValueError: a temperature for a model that answers in no bins.
    """
    ab = decode(model, model(normalize_L(lab[:, :1])), decoding)
    return torch.cat([lab[:, :1], ab], dim=1)


def evaluate(
    model: nn.Module,
    batches: Iterable[Tensor],
    palette: Palette,
    *,
    device: torch.device | str = "cpu",
    pictures: int = 0,
) -> tuple[Evaluation, Tensor]:
    """Score a model.

    batches of stored LAB (B, 3, H, W) uint8. Returns the evaluation, and predicted and true
    LAB of the first ``pictures`` photos as (pictures, 2, 3, H, W) on the CPU.
    """
    was_training = model.training
    model.eval()
    evaluation = evaluation_for(palette)
    shown: list[Tensor] = []
    for lab_u8 in batches:
        lab = decode_lab(lab_u8.to(device, non_blocking=True))
        predicted = predict_lab(model, lab)
        evaluation.update(predicted, lab)
        missing = pictures - sum(len(pairs) for pairs in shown)
        if missing > 0:
            shown.append(torch.stack([predicted, lab], dim=1)[:missing].cpu())
    model.train(was_training)
    return evaluation, torch.cat(shown) if shown else torch.empty(0)


def baselines(mean_ab: tuple[float, float]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The answers that need no model, as functions of a batch of LAB (B, 3, H, W)."""
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
) -> dict[str, dict[str, float]]:
    """The model's scores beside those of grey and of the constant mean ab, in one pass.

    Returns {"grey": {...}, "constant": {...}, "model": {...}}, each as ``Evaluation.compute``.
    """
    answers: dict[str, Callable[[Tensor], Tensor]] = {
        **baselines(mean_ab),
        "model": lambda lab: predict_lab(model, lab, decoding),
    }
    evaluations = {name: evaluation_for(palette) for name in answers}
    for lab_u8 in batches:
        lab = decode_lab(lab_u8.to(device, non_blocking=True))
        for name, answer in answers.items():
            evaluations[name].update(answer(lab), lab)
    return {name: evaluation.compute() for name, evaluation in evaluations.items()}
