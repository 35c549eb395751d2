"""Colorize photos at their own resolution.

The network sees small copies, in batches. Their ab is upsampled beside the photo's own lightness,
so details stay as sharp as they were:

``small_copy`` -> ``predict_colors`` (batches of copies of one shape) -> ``paint``

``colorize`` is all three for one photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from colorcore.color.lab import normalize_L, rgb_to_lab
from colorcore.inference.compose import blas_on_one_thread, compose
from colorcore.inference.predict import OWN
from colorcore.models.decoding import Decoding, decode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from colorcore.color.pixels import Pixels

MAX_ASPECT = 16
"""Longer photos get a smaller copy: networks pad its shorter side, and that of 1 x 20,000 pixels
would fill the memory."""


def colorize(
    model: nn.Module,
    pixels: Pixels,
    *,
    size: int,
    device: torch.device | str = "cpu",
    decoding: Decoding = OWN,
    strength: float = 1.0,
    threads: int = 1,
) -> Pixels:
    """The photo with predicted colours.

    pixels (H, W, 3) sRGB or (H, W) grey, uint8 or uint16: only its lightness is used. ``size`` is
    the shorter side, in pixels, of the copy that the network sees (that of its training samples);
    the copy of a photo longer than 16:1 is no longer than that of one of 16:1.
    Returns (H, W, 3) sRGB of the same type, whose L differs from the photo's only by rounding.
    """
    lab = small_copy(pixels, size)
    (ab,) = predict_colors(model, [lab], device=device, decoding=decoding)
    with blas_on_one_thread():
        return paint(pixels, lab, ab, strength=strength, threads=threads)


def small_copy(pixels: Pixels, size: int) -> NDArray[np.float32]:
    """The copy of a photo that the network sees, in CIELAB: (3, h, w).

    pixels (H, W, 3) sRGB or (H, W) grey, uint8 or uint16; ``size`` as for :func:`colorize`.
    """
    import cv2

    height, width = pixels.shape[:2]
    scale = size * min(1.0 / min(height, width), MAX_ASPECT / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    copy: NDArray[Any] = pixels
    # By halves as long as they are whole: the same means of areas, for an eighth of the time.
    while height % 2 == width % 2 == 0 and min(height, width) >= 4 * min(small):
        height, width = height // 2, width // 2
        copy = np.asarray(cv2.resize(copy, (width, height), interpolation=cv2.INTER_AREA))
    how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
    copy = np.asarray(cv2.resize(copy, small, interpolation=how))
    if copy.ndim == 2:
        copy = np.repeat(copy[..., None], 3, axis=2)
    rgb = torch.from_numpy(copy.astype(np.float32) / np.iinfo(pixels.dtype).max)
    lab: NDArray[np.float32] = rgb_to_lab(rgb.permute(2, 0, 1)[None])[0].numpy()
    return lab


@torch.inference_mode()
def predict_colors(
    model: nn.Module,
    copies: Sequence[NDArray[np.float32]],
    *,
    device: torch.device | str = "cpu",
    decoding: Decoding = OWN,
    variation: torch.Tensor | None = None,
) -> list[NDArray[np.float32]]:
    """Predicted ab of small copies, as one batch.

    copies (3, h, w) CIELAB, all of one shape -> as many (2, h, w), ab units. ``variation`` (Q,) is
    added to the logits of each pixel.

    Raises:
        ValueError: the shapes differ, or a temperature or variation is given, but the model does
            not predict bins.
    """
    L = torch.from_numpy(np.stack([lab[:1] for lab in copies])).to(device)
    prediction = model(normalize_L(L))
    if variation is not None:
        if "logits" not in prediction:
            raise ValueError(
                f"expected no variation for {type(model).__name__}, which does not predict bins"
            )
        varied = prediction["logits"] + variation.to(L)[:, None, None]
        prediction = {**prediction, "logits": varied}
    return list(decode(model, prediction, decoding).cpu().numpy())


def paint(
    pixels: Pixels,
    lab: NDArray[np.float32],
    ab: NDArray[np.float32],
    *,
    strength: float = 1.0,
    threads: int = 1,
) -> Pixels:
    """A photo in the colours of its small copy.

    pixels as for :func:`colorize`; lab (3, h, w) and ab (2, h, w) as from :func:`small_copy` and
    :func:`predict_colors`. ``strength`` is the share of the predicted colours, 0..1; the rest is
    the copy's own, which is none for a grey photo.
    """
    if strength < 1.0:
        ab = np.float32(strength) * ab + np.float32(1.0 - strength) * lab[1:]
    return compose(pixels, lab[0], np.ascontiguousarray(ab), threads=threads)
