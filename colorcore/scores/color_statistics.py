"""Statistics of predicted and true colours, in which signs of bad colour are found."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import rgb_to_lab
from colorcore.scores.metrics import auc, constant_baseline, stored_cells
from colorcore.transfer import Sums, to_device

if TYPE_CHECKING:
    from torch import Tensor

PURPLE = (290.0, 345.0)
"""Hues in degrees that look purple: bluer below, pinker above."""
_COLOR_SUMS = ("a", "b", "chroma", "weight", "cos", "sin", "cos2", "sin2")
_SUMS = (
    "pixels",
    "photos",
    "auc",
    "auc_constant",
    "L_pixels",
    "L_error",
    "L_bias",
    *(f"{name}_pred" for name in _COLOR_SUMS),
    *(f"{name}_true" for name in _COLOR_SUMS),
)
"""Quantities that are summed, in the order of the state."""
_NO_CHROMA = 1e-6
"""ab units; a smaller chroma counts as no colour and no hue."""
VIVID = 25.0
"""Chroma in ab units above which more does not count: that of skin or of a pale sky."""


class ColorStatistics:
    """The colours a model uses, compared with those of the photos; added up batch by batch.

    The state is one vector of sums, so states of ranks can be added, as with
    :class:`~colorcore.scores.metrics.Evaluation`.

    Args:
        mean_ab: (a, b) of the training photos, ab units: the constant baseline.
        balance: (256, 256), the palette weight of each stored (a, b) cell.
    """

    def __init__(self, mean_ab: tuple[float, float], balance: Tensor) -> None:
        self._mean_ab = torch.tensor(mean_ab)
        self._balance = balance.float()
        self._sums = Sums(len(_SUMS))

    @torch.no_grad()
    def update(self, lab_pred: Tensor, lab_true: Tensor, rgb: Tensor | None = None) -> None:
        """Add a batch.

        lab_pred, lab_true (B, 3, H, W) CIELAB float on one device, lab_pred with the truth's L;
        rgb (B, 3, H, W) sRGB in 0..1, the output of an RGB head before its L was replaced.
        """
        self._balance = to_device(self._balance, lab_true.device)
        self._mean_ab = to_device(self._mean_ab, lab_true.device)
        lab_pred, lab_true = lab_pred.float(), lab_true.float()
        weights = self._balance[stored_cells(lab_true[:, 1:])]
        constant = constant_baseline(lab_true, self._mean_ab)
        sums = {
            "pixels": weights.new_full((), weights.numel()),
            "photos": weights.new_full((), len(lab_true)),
            "auc": auc(lab_pred[:, 1:], lab_true[:, 1:], weights).sum(),
            "auc_constant": auc(constant[:, 1:], lab_true[:, 1:], weights).sum(),
            **{f"{name}_pred": value for name, value in color_sums(lab_pred[:, 1:]).items()},
            **{f"{name}_true": value for name, value in color_sums(lab_true[:, 1:]).items()},
        }
        if rgb is not None:
            error = rgb_to_lab(rgb.float())[:, :1] - lab_true[:, :1]
            sums["L_pixels"] = sums["pixels"]
            sums["L_error"], sums["L_bias"] = error.abs().sum(), error.sum()
        none = weights.new_zeros(())
        self._sums.add(torch.stack([sums.get(name, none) for name in _SUMS]))

    def state(self) -> Tensor:
        """The sums so far, as a float64 vector on the CPU; states can be added."""
        return self._sums.read()

    def add_state(self, state: Tensor) -> None:
        """Add the state of statistics of other photos.

        Raises:
            ValueError: the vector has another length.
        """
        if state.shape != (len(_SUMS),):
            raise ValueError(f"expected {len(_SUMS)} sums, got shape {tuple(state.shape)}")
        self._sums.add_read(state)

    def compute(self) -> dict[str, float]:
        """The statistics; empty if no photo was added.

        ========================= ==========================================================
        chroma_ratio, chroma_true mean C_p / mean C_t, 1 being as vivid as the photos; mean C_t
        hue_focus, hue_focus_true |Σ w e^(iθ)| / Σ w with w = min(C, 25): 1 when all colour has
                                  one hue, 0 when hues balance. The mean resultant length of
                                  directional statistics (Mardia and Jupp 2000, section 2.3),
                                  of weighted hues
        axis_focus, ..._true      |Σ w e^(2iθ)| / Σ w: the same for doubled angles, as usual for
                                  axes: 1 when all colour has one hue or its opposite
        hue, axis                 their directions in degrees: 0..360, and 0..180
        cast, cast_hue            length and hue of mean ab_p - mean ab_t, ab units
        purple                    min(|mean ab_p|, cast), ab units, where both have a hue in
                                  :data:`PURPLE`, else 0: how much more purple predictions
                                  are than the photos
        gain                      balanced AuC minus that of the constant mean ab
        lightness_error, ..._bias mean |L_p - L_t| and mean (L_p - L_t), units of L; only for
                                  models with an RGB head
        ========================= ==========================================================
        """
        sums = dict(zip(_SUMS, self._sums.read().tolist(), strict=True))
        if not sums["pixels"]:
            return {}
        pred, true = colors_of(sums, "pred"), colors_of(sums, "true")
        cast = pred.mean - true.mean
        purple = is_purple(pred.mean) and is_purple(cast)
        result = {
            "chroma_ratio": pred.chroma / max(true.chroma, _NO_CHROMA),
            "chroma_true": true.chroma,
            "hue_focus": abs(pred.hue),
            "hue_focus_true": abs(true.hue),
            "hue": degrees(pred.hue),
            "axis_focus": abs(pred.axis),
            "axis_focus_true": abs(true.axis),
            "axis": degrees(pred.axis) / 2,
            "cast": abs(cast),
            "cast_hue": degrees(cast),
            "purple": min(abs(pred.mean), abs(cast)) if purple else 0.0,
            "gain": (sums["auc"] - sums["auc_constant"]) / sums["photos"],
        }
        if sums["L_pixels"]:
            result["lightness_error"] = sums["L_error"] / sums["L_pixels"]
            result["lightness_bias"] = sums["L_bias"] / sums["L_pixels"]
        return result


def color_sums(ab: Tensor) -> dict[str, Tensor]:
    """Sums over the pixels of ab (B, 2, H, W): a, b, C, w, w cos θ, w sin θ, w cos 2θ, w sin 2θ."""
    a, b = ab.unbind(1)
    chroma = torch.hypot(a, b)
    weight = chroma.clamp(max=VIVID)
    length = chroma.clamp(min=_NO_CHROMA)
    cos, sin = a / length, b / length
    return {
        "a": a.sum(),
        "b": b.sum(),
        "chroma": chroma.sum(),
        "weight": weight.sum(),
        "cos": (weight * cos).sum(),
        "sin": (weight * sin).sum(),
        "cos2": (weight * (cos * cos - sin * sin)).sum(),
        "sin2": (weight * 2.0 * cos * sin).sum(),
    }


@dataclass(frozen=True, slots=True)
class Colors:
    """Mean (a, b) as a complex number, mean C, and the mean resultants of θ and of 2θ."""

    mean: complex
    chroma: float
    hue: complex
    axis: complex


def colors_of(sums: Mapping[str, float], side: str) -> Colors:
    """Mean colour and resultants of one side, ``pred`` or ``true``."""
    a, b, chroma, weight, *resultants = (sums[f"{name}_{side}"] for name in _COLOR_SUMS)
    cos, sin, cos2, sin2 = (each / max(weight, _NO_CHROMA) for each in resultants)
    pixels = sums["pixels"]
    return Colors(complex(a, b) / pixels, chroma / pixels, complex(cos, sin), complex(cos2, sin2))


def degrees(vector: complex) -> float:
    """The direction of (a, b) as a complex number, in degrees 0..360."""
    return math.degrees(cmath.phase(vector)) % 360.0


def is_purple(ab: complex) -> bool:
    """Whether the hue of (a, b) as a complex number is within :data:`PURPLE`."""
    return PURPLE[0] <= degrees(ab) <= PURPLE[1]
