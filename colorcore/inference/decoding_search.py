"""Search for the decoding of a model on the front between fidelity and colourfulness.

Each setting in a grid of temperatures and chroma scales is scored on validation photos. The
network runs once per batch, whatever the number of settings, and only the sums of each setting's
scores are kept. Then one setting is chosen by the metric that chose the checkpoint, and the same
scores tell how good the model is at a colourfulness at which others can be read, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import distributed

from colorcore.color.lab import decode_lab, normalize_L
from colorcore.dataset.loader import val_batches
from colorcore.decoding import Decoding
from colorcore.inference.equal_colorfulness import EQUAL, JUDGE, SHARE, Reading, read_at_shares
from colorcore.inference.evaluate import evaluation_for
from colorcore.models.decoding import completed, decode, own_decoding, scaled
from colorcore.scores.metrics import HIGHER_IS_BETTER, Evaluation, grey_baseline

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.color.palette import Palette
    from colorcore.dataset.samples import Samples
    from colorcore.inference.evaluate import Watcher

TEMPERATURES = (0.2, 0.38, 0.6, 0.8, 1.0)
"""From nearly the most likely bin to the mean; 0.38 is that of Zhang et al. (2016, §2.3)."""
CHROMAS = (0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
WIDER = (0.5, 2.6, 4.0)
"""Chroma scales that are scored but never chosen.

They reach the colourfulness at which models are compared, for vivid models as for pale ones: small
regressions have a third of the photos' colourfulness at ×1 and need up to ×3.7 for all of it
(tests/experiments/pretrained.py).
"""
PHOTOS = 500
"""Validation photos used at most: enough to choose two values on the same photos.

They are spread evenly over the split, whose order is that of the sources.
"""
KEPT = 0.95
"""Share of the best gain over grey that a setting nearer to the default must keep."""
COLOR = "cf_gap"
FIDELITY = ("psnr", "delta_e2000", "auc_balanced")
"""The axes of the front: the colourfulness gap against each of these."""
_BATCH = 32


def grid(model: nn.Module, extra: Iterable[Decoding] = ()) -> list[Decoding]:
    """The settings to score for a model, ordered by temperature, plus ``extra`` ones."""
    own = own_decoding(model)
    temperatures = [None] if own.temperature is None else TEMPERATURES
    settings = {Decoding(t, c) for t in temperatures for c in (*CHROMAS, *WIDER)}
    settings |= {own, *(completed(model, decoding) for decoding in extra)}
    return sorted(settings, key=lambda setting: (setting.temperature or 0.0, setting.chroma))


@torch.inference_mode()
def sweep(
    model: nn.Module,
    batches: Iterable[Tensor],
    palette: Palette,
    settings: Sequence[Decoding],
    *,
    device: torch.device | str = "cpu",
    also: Mapping[Decoding, Watcher] | None = None,
) -> dict[Decoding, Evaluation]:
    """Score a model with several settings in one pass of the network.

    batches of stored LAB (B, 3, H, W) uint8; the model is in evaluation mode. ``also`` maps
    settings to statistics to update. Memory holds one batch, its prediction and one decoding.
    Neighbouring settings of one temperature are decoded once.

    Raises:
        ValueError: a temperature is given, but the model does not predict bins.
    """
    evaluations = {setting: evaluation_for(palette) for setting in settings}
    for lab_u8 in batches:
        lab = decode_lab(lab_u8.to(device, non_blocking=True))
        prediction = model(normalize_L(lab[:, :1]))
        for temperature, same in groupby(evaluations, key=lambda setting: setting.temperature):
            ab = decode(model, prediction, Decoding(temperature))
            for setting in same:
                predicted = torch.cat([lab[:, :1], scaled(ab, setting.chroma)], dim=1)
                evaluations[setting].update(predicted, lab)
                if also and setting in also:
                    also[setting].update(predicted, lab, prediction.get("rgb"))
    return evaluations


def choose(
    scores: Mapping[Decoding, Mapping[str, float]], metric: str, own: Decoding, grey: float
) -> Decoding:
    """The setting nearest to the model's ``own`` that is about as good as the best one.

    Settings are compared by the recipe's ``metric``, one of ``HIGHER_IS_BETTER``, which chose the
    best checkpoint too; another metric would undo that choice. A setting is about as good if it
    keeps ``KEPT`` of the best setting's gain over the score of ``grey``. Without this margin noise
    would choose, because metrics are flat around their optimum. Balanced AuC is a careful judge,
    since a wrong colour costs more the more vivid it is; the colourfulness gap is a poor one, as
    it turns sepia into a deeper sepia. NaN scores are never chosen; if all are NaN, ``own`` is.
    """
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    known = {d: sign * s[metric] for d, s in scores.items() if not math.isnan(s[metric])}
    if not known:
        return own
    best = max(known.values())
    enough = best - (1.0 - KEPT) * max(0.0, best - sign * grey)
    good = [decoding for decoding, score in known.items() if score >= enough]
    return min(good, key=lambda decoding: (_apart(decoding, own), -known[decoding]))


def _apart(one: Decoding, other: Decoding) -> float:
    """Distance of two settings of one model: the sum of |log| of their ratios."""
    t1, t2 = one.temperature or 1.0, other.temperature or 1.0
    return abs(math.log(t1 / t2)) + abs(math.log(one.chroma / other.chroma))


def undominated(
    scores: Mapping[Decoding, Mapping[str, float]], metrics: Sequence[str]
) -> list[Decoding]:
    """The Pareto-optimal settings: no other is as good in all ``metrics`` and better in one."""
    signs = [1.0 if HIGHER_IS_BETTER[metric] else -1.0 for metric in metrics]
    points = {
        decoding: [sign * s[metric] for sign, metric in zip(signs, metrics, strict=True)]
        for decoding, s in scores.items()
    }

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        return one != other and all(a >= b for a, b in zip(one, other, strict=True))

    return [
        decoding
        for decoding, point in points.items()
        if not any(dominates(other, point) for other in points.values())
    ]


def choose_decoding(
    model: nn.Module,
    samples: Samples,
    palette: Palette,
    metric: str,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> tuple[Decoding, dict[str, float], Reading | None]:
    """Choose a decoding on at most ``PHOTOS`` validation samples, and score it on all of them.

    Also returns the scores on the former at ``SHARE`` of the photos' colourfulness, or None if the
    model cannot be read there (:func:`equal_colorfulness.read_at`). With several ranks, each calls
    this with the same weights, scores its share, and gets the same result.
    """

    def scored(settings: Sequence[Decoding], stride: int) -> list[dict[str, float]]:
        """The scores of grey, then those of the settings."""
        grey = evaluation_for(palette)
        batches = val_batches(samples, _BATCH, rank=rank * stride, world=world * stride)
        watched = scoring(batches, grey, grey_baseline, device)
        swept = sweep(model, watched, palette, settings, device=device)
        evaluations = [grey, *swept.values()]
        if world > 1:
            evaluations = _over_ranks(evaluations, palette, device)
        return [evaluation.compute() for evaluation in evaluations]

    settings, stride = grid(model), -(-len(samples) // PHOTOS)
    grey, *rows = scored(settings, stride)
    scores = dict(zip(settings, rows, strict=True))
    choices = {each: row for each, row in scores.items() if each.chroma in CHROMAS}
    judge = JUDGE if metric == EQUAL else metric  # which no choice of chroma changes
    chosen = choose(choices, judge, own_decoding(model), grey[judge])
    equal = read_at_shares(scores, [SHARE])[SHARE]
    decoded = scores[chosen] if stride == 1 else scored([chosen], 1)[1]
    return chosen, {**decoded, EQUAL: equal.scores[JUDGE] if equal else 0.0}, equal


def scoring(
    batches: Iterable[Tensor],
    evaluation: Evaluation,
    answer: Callable[[Tensor], Tensor],
    device: torch.device | str,
) -> Iterator[Tensor]:
    """Pass the batches through, and score a baseline on them."""
    for lab_u8 in batches:
        lab = decode_lab(lab_u8.to(device, non_blocking=True))
        evaluation.update(answer(lab), lab)
        yield lab_u8


def _over_ranks(
    evaluations: Sequence[Evaluation], palette: Palette, device: torch.device | str
) -> list[Evaluation]:
    """The evaluations summed over all ranks, identical on every rank."""
    total = torch.stack([evaluation.state() for evaluation in evaluations]).to(device)
    distributed.all_reduce(total)
    summed = [evaluation_for(palette) for _ in evaluations]
    for evaluation, state in zip(summed, total, strict=True):
        evaluation.add_state(state)
    return summed
