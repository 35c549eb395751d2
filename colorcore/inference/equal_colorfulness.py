"""Scores of a model at a given colourfulness, read from its front over chroma and temperature.

A paler answer nearly always has the better PSNR, so scores of two models say little as long as one
is more vivid than the other. Chroma scales move a model along its front without training. So each
model's front is read where its mean colourfulness CF has the same value, a share of the photos'.

The axis is the CF of the predictions and not its gap to the truth: CF grows with chroma, almost in
proportion, whereas the gap falls, turns and grows again, so that one gap may belong to two settings
or to none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import torch

from colorcore.color.colorfulness import colorfulness
from colorcore.color.lab import lab_to_rgb
from colorcore.decoding import Decoding
from colorcore.models.decoding import scaled
from colorcore.scores.metrics import auc, stored_cells
from colorcore.transfer import Sums, to_device

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (0.5, 0.75, 1.0)
"""Shares of the photos' mean CF at which models are compared: pale, lively, as the photos are."""
SHARE = 0.75
"""The share for a single figure per model: even pale regressions reach it, at chroma ×2 to ×2.6."""
JUDGE = "auc_balanced"
"""Chooses among the temperatures of a bin model; higher is better."""
EQUAL = f"{JUDGE}_equal_cf"
"""The judge at ``SHARE`` of the photos' CF, among the scores of a training's validations."""
VALIDATED = (0.5, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Chroma scales of the front that each validation of a training reads."""
SMALL = 64
"""Pixels: from twice this side on, a validation reads the front on every other row and column."""
ROUNDING = 1e-6
"""A rise in CF that a grey model's rounding may cause."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A point on a front.

    decoding  the temperature, and the chroma scale interpolated to the wanted CF
    scores    as from ``Evaluation.compute``, interpolated; ``cf`` is the wanted one
    """

    decoding: Decoding
    scores: dict[str, float]


def read_at(front: Mapping[Decoding, Mapping[str, float]], colorfulness: float) -> Reading | None:
    """The scores that a model has at a mean CF of ``colorfulness``.

    ``front`` holds the scores of each decoding, as :func:`decoding_search.sweep` gives them; each
    temperature is a branch of it, of which only the part counts where CF rises with chroma. On it,
    scores are interpolated over CF by monotone cubics (PCHIP, Fritsch and Carlson 1980): exact for
    straight fronts, never outside the values of the two neighbouring settings, and ten times closer
    than straight lines, which cut off the curve of PSNR by 0.1 dB where chroma scales are 1.7 times
    apart. Of the temperatures, the one with the best balanced AuC at this point counts.

    Returns None if no branch has the wanted CF: the model is never so vivid, or is more vivid at
    all chroma scales. Nothing is extrapolated. A branch with scores that are not finite does not
    count, and a CF of 0, which grey photos have, is no place to compare colours.
    """
    if not colorfulness > 0:
        return None

    def temperature(decoding: Decoding) -> float:
        return decoding.temperature or 0.0

    settings = sorted(front, key=lambda decoding: (temperature(decoding), decoding.chroma))
    found = [
        reading
        for _, branch in groupby(settings, key=temperature)
        if (reading := _on_branch({each: front[each] for each in branch}, colorfulness))
    ]
    return max(found, key=lambda reading: reading.scores[JUDGE], default=None)


def read_at_shares(
    front: Mapping[Decoding, Mapping[str, float]], shares: Sequence[float] = SHARES
) -> dict[float, Reading | None]:
    """A front at shares of the photos' own mean CF, each with its reading or None.

    Raises:
        ValueError: the front is empty.
    """
    if not front:
        raise ValueError("expected a front with at least one decoding, got none")
    true = next(iter(front.values()))["cf_true"]  # of the photos, so the same in every setting
    return {share: read_at(front, share * true) for share in shares}


def _on_branch(
    branch: Mapping[Decoding, Mapping[str, float]], colorfulness: float
) -> Reading | None:
    """The reading on the settings of one temperature, in the order of their chroma."""
    from scipy.interpolate import PchipInterpolator

    rising = list(branch.items())
    for number, ((_, paler), (_, livelier)) in enumerate(pairwise(branch.items()), start=1):
        if not livelier["cf"] - paler["cf"] > ROUNDING:
            rising = rising[:number]
            break
    cf = [scores["cf"] for _, scores in rising]
    if not cf[0] <= colorfulness <= cf[-1]:  # also if NaN
        return None
    if not all(math.isfinite(value) for _, scores in rising for value in scores.values()):
        return None
    if len(rising) == 1:
        return Reading(rising[0][0], dict(rising[0][1]))

    def read(values: list[float]) -> float:
        return float(PchipInterpolator(cf, values)(colorfulness))

    chroma = read([decoding.chroma for decoding, _ in rising])
    scores = {name: read([row[name] for _, row in rising]) for name in rising[0][1]}
    return Reading(Decoding(rising[0][0].temperature, chroma), scores)


class EqualColorfulness:
    """Balanced AuC at ``SHARE`` of the photos' CF, added up batch by batch.

    For the validations of a training, which cannot afford a sweep: one temperature, few chroma
    scales, two metrics, and a quarter of the pixels of large photos. The state is one vector of
    sums, as that of :class:`colorcore.scores.metrics.Evaluation`.

    Args:
        balance: (256, 256) float above 0, the weight of each stored (a, b) cell.
    """

    def __init__(self, balance: Tensor) -> None:
        self._balance = balance.float()
        # Photos, the sum of the true CF, then CF and balanced AuC of each chroma scale.
        self._sums = Sums(2 + 2 * len(VALIDATED))

    @torch.no_grad()
    def update(self, lab_pred: Tensor, lab_true: Tensor) -> None:
        """Add a batch of predictions and truth, LAB (B, 3, H, W) float."""
        self._balance = to_device(self._balance, lab_true.device)
        if min(lab_true.shape[-2:]) >= 2 * SMALL:
            lab_pred, lab_true = lab_pred[..., ::2, ::2], lab_true[..., ::2, ::2]
        L, ab, ab_true = lab_true[:, :1], lab_pred[:, 1:], lab_true[:, 1:]
        weights = self._balance[stored_cells(ab_true)]
        sums = [L.new_full((), len(L)), _colorfulness(lab_true).sum()]
        for chroma in VALIDATED:
            turned = scaled(ab, chroma)
            sums += [
                _colorfulness(torch.cat([L, turned], dim=1)).sum(),
                auc(turned, ab_true, weights).sum(),
            ]
        self._sums.add(torch.stack(sums))

    def state(self) -> Tensor:
        """The sums so far, as a float64 vector on the CPU; states can be added."""
        return self._sums.read()

    def add_state(self, state: Tensor) -> None:
        """Add the state of another one."""
        self._sums.add_read(state)

    def compute(self) -> float:
        """The balanced AuC; 0 for a model that is nowhere as colourful, or has no finite colours.

        Raises:
            ValueError: no photo was added.
        """
        photos, true, *sums = self._sums.read().tolist()
        if not photos:
            raise ValueError("nothing to evaluate: no photo was added")
        pairs = zip(sums[::2], sums[1::2], strict=True)
        front = {
            Decoding(None, chroma): {"cf": cf / photos, JUDGE: judged / photos}
            for chroma, (cf, judged) in zip(VALIDATED, pairs, strict=True)
        }
        reading = read_at(front, SHARE * true / photos)
        return 0.0 if reading is None else reading.scores[JUDGE]


def _colorfulness(lab: Tensor) -> Tensor:
    return colorfulness(lab_to_rgb(lab) * 255.0)
