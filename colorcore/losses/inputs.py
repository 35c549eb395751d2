"""Inputs that loss terms take from a prediction and its photo: checked, in float32, once per step.

A term reads a key of the prediction with :func:`tensor` or :func:`need`, which refuse a model
that does not provide it. What several terms derive from the truth is computed by the first one
and cached until the batch is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from colorcore.color.lab import AB_OFFSET, lab_to_rgb
from colorcore.torch_internals import version_of

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.models.prediction import Prediction

WHO_HAS: dict[str, str] = {
    "ab": "any model",
    "rgb": "a model with an RGB head, such as unet with head = 'rgb'",
    "logits": "a model that predicts bins, such as resnet-unet",
    "residual": "a model that refines its bins, such as resnet-unet",
    "confidence": "a model that predicts its confidence, such as resnet-unet",
    "histograms": "a model with a global colour head, such as resnet-unet",
    "fake_logits": "training with a discriminator, as in the recipe gan",
    "fake_features": "training with a discriminator, as in the recipe gan",
    "real_features": "training with a discriminator, as in the recipe gan",
}
"""Key of a prediction -> who provides it, as the end of an error message."""

_MARGIN = 1e-3
"""ab units by which b is kept below its limit, so that rounding cannot exceed it."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def need(prediction: Prediction, key: str, term: str) -> Any:
    """The prediction's value of ``key``, for the named term.

    Raises:
        ValueError: the prediction has none; the message names models that do.
    """
    value = cast("Mapping[str, Any]", prediction).get(key)
    if value is None:
        raise ValueError(f"loss term '{term}' needs {WHO_HAS[key]}: this prediction has no '{key}'")
    return value


def tensor(prediction: Prediction, key: str, term: str) -> Tensor:
    """Like :func:`need`, for a tensor, in float32 at least.

    Raises:
        ValueError: the prediction has none.
    """
    return widen(need(prediction, key, term))


def widen(value: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _once_a_step(
    function: Callable[Concatenate[Tensor, _P], _R],
) -> Callable[Concatenate[Tensor, _P], _R]:
    """Cache a function of the truth, so that it runs once per batch, without gradients.

    Results are kept as long as the tensor lives and is not written to. They must not be views of
    it, which would keep it alive forever.
    """
    known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @functools.wraps(function)
    def remembered(lab: Tensor, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.no_grad():
            if lab.is_inference():  # these don't track whether they were written to
                return function(lab, *args, **kwargs)
            key = (version_of(lab), args, tuple(kwargs.items()))
            results: dict[Any, _R] = known.setdefault(lab, {})
            if key not in results:
                results[key] = function(lab, *args, **kwargs)
            return results[key]

    return remembered


def area_mean(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Means over equal areas: planes (B, C, H, W) -> (B, C, h, w), any h, w; differentiable.

    A network that halves n times predicts H/2ⁿ rows, rounded up, of a photo padded by repeating
    its last row. Where the sizes fit this, the areas are those 2ⁿ · 2ⁿ pixels.
    """
    if size_of(planes) == size:
        return planes
    missing = []
    for small, large in zip(size, size_of(planes), strict=True):
        stride = 1 << (-(-large // small) - 1).bit_length()
        missing.append(small * stride - large if -(-large // stride) == small else 0)
    if any(missing):
        planes = F.pad(planes, (0, missing[1], 0, missing[0]), mode="replicate")
    return F.interpolate(planes, size=size, mode="area")


def size_of(planes: Tensor) -> tuple[int, int]:
    """Height and width of (B, C, H, W)."""
    return planes.shape[2], planes.shape[3]


def true_ab(lab: Tensor, size: tuple[int, int]) -> Tensor:
    """The true ab at the size of a head's output, by :func:`area_mean`.

    lab (B, 3, H, W); size (h, w) -> ab (B, 2, h, w), CIELAB units.
    """
    return lab[:, 1:] if size_of(lab) == size else _smaller_ab(lab, size)


@_once_a_step
def _smaller_ab(lab: Tensor, size: tuple[int, int]) -> Tensor:
    return area_mean(lab[:, 1:], size)


@_once_a_step
def stored_ab(lab: Tensor, size: tuple[int, int]) -> Tensor:
    """The true ab at a size, as stored cells: lab (B, 3, H, W) -> (B, 2, h, w) uint8.

    Means of several pixels are rounded, by at most 0.5 ab units per channel.
    """
    ab = true_ab(lab, size)
    return ab.round().add(AB_OFFSET).clamp(0, 255).to(torch.uint8)


def clipped_rgb(lab: Tensor) -> Tensor:
    """The sRGB that a screen shows for lab, with gradients outside the gamut too.

    lab (B, 3, H, W) CIELAB -> rgb (B, 3, H, W) sRGB in 0..1. Colours outside sRGB are clipped
    channel by channel, and so is b at (L + 16)/116 = b/200, above which the conversion is
    undefined (CIELAB's f(Z) would be negative). Clipping alone has gradient 0 outside the gamut,
    so a colour there could never return; here the gradient passes through as if not clipped.
    """
    L, a, b = widen(lab).split(1, dim=1)
    b = _clip_through(b, None, 200.0 * (L.detach() + 16.0) / 116.0 - _MARGIN)
    rgb = lab_to_rgb(torch.cat([L, a, b], dim=1), clip=False)
    return _clip_through(rgb, torch.zeros_like(rgb[:1, :1, :1, :1]), rgb.new_ones(1, 1, 1, 1))


def _clip_through(values: Tensor, low: Tensor | None, high: Tensor) -> Tensor:
    """Clipped values with the gradient of values that are not."""
    return values + (values.clamp(min=low, max=high) - values).detach()


@_once_a_step
def true_rgb(lab: Tensor) -> Tensor:
    """The photo itself: lab (B, 3, H, W) -> rgb (B, 3, H, W) sRGB in 0..1."""
    return clipped_rgb(lab)


def predicted_rgb(prediction: Prediction, lab: Tensor, term: str) -> Tensor:
    """The prediction as a picture: from the RGB head, or from ab with the photo's own L.

    lab (B, 3, H, W) -> rgb (B, 3, H, W) sRGB in 0..1; see :func:`clipped_rgb` for its gradient.
    """
    if "rgb" in prediction:
        return tensor(prediction, "rgb", term)
    ab = tensor(prediction, "ab", term)
    return clipped_rgb(torch.cat([lab[:, :1].to(ab), ab], dim=1))
