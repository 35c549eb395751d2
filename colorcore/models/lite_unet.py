"""UNets whose encoder has seen ImageNet: colours for things the photos at hand are too few for.

A network that learns from a thousand photos knows what a mean photo looks like. EfficientNet-Lite
(:mod:`colorcore.blocks.efficientnet_lite`) tells grass from snow in grey, too, so a light decoder
on its maps has only the colours left to learn. The encoder is frozen unless the recipe says
otherwise: its statistics stay those of ImageNet, and no gradient passes through it.

::

    L ─ EfficientNet-Lite ─┬─ /2 ──────────────────────────── stage ─┬─ (full size) ─ ab
                           ├─ /4 ─────────────────── stage ─┘        └─ logits, residual,
                           ├─ /8 ────────── stage ─┘                    confidence
                           ├─ /16 ─ stage ─┘
                           └─ /32 ─┘
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.efficientnet_lite import STRIDE, EfficientNetLite, Variant, weights_file
from colorcore.blocks.layers import group_norm, grow, quiet_head, require_channels, require_dropout
from colorcore.color.lab import denormalize_ab, lightness_to_grey
from colorcore.models.bin_model import BinModel, require_bins
from colorcore.models.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

Weights = Literal["imagenet", "none"]
_FACTORS = (4, 3, 2, 1)
"""Widths of the stages at 1/16, 1/8, 1/4 and 1/2 in ``channels``."""


def require_imagenet(encoder: Variant) -> None:
    """Check that the ImageNet weights of an encoder are installed.

    Raises:
        ValueError: they are not.
    """
    with _naming_the_option():
        weights_file(encoder)


@contextmanager
def _naming_the_option() -> Iterator[None]:
    """Add to an error about missing weights how to do without them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"encoder_weights: {error}, or set model.encoder_weights=none") from error


class _Lite(nn.Module):
    """Encoder and decoder of both models, from L_norm to a map at half the photo's size."""

    def __init__(
        self, channels: int, encoder: Variant, encoder_weights: Weights, dropout: float
    ) -> None:
        super().__init__()
        require_channels(channels)
        for name, value, kind in (
            ("encoder", encoder, Variant), ("encoder_weights", encoder_weights, Weights),
        ):  # fmt: skip
            if value not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{name} must be one of {known}, got '{value}'")
        require_dropout(dropout)
        self.encoder_weights = encoder_weights
        self.encoder = EfficientNetLite(encoder, colors=1)
        if encoder_weights == "imagenet":
            self.encoder.eval()  # new modules are in training mode
        *skips, deepest = self.encoder.widths
        self.dropout = nn.Dropout2d(dropout)
        widths = [factor * channels for factor in _FACTORS]
        self.decoder = nn.ModuleList(
            _Stage(before, skip, width)
            for before, skip, width in zip(
                (deepest, *widths), reversed(skips), widths, strict=False
            )
        )

    @property
    def encoder_lr(self) -> float:
        """The encoder's learning rate as a factor, unless the recipe sets one: 0 freezes it."""
        return 0.0 if self.encoder_weights == "imagenet" else 1.0

    def encoder_parts(self) -> list[nn.Module]:
        """The encoder's parts, from the photo on: the stem, and seven stages."""
        return [nn.ModuleList([self.encoder.stem, self.encoder.stem_norm]), *self.encoder.stages]

    def train(self, mode: bool = True) -> _Lite:
        """As in torch, but the encoder keeps ImageNet's statistics."""
        super().train(mode)
        if self.encoder_weights == "imagenet":
            self.encoder.eval()
        return self

    @torch.no_grad()
    def load_pretrained(self) -> None:
        """Read the ImageNet weights into the encoder, unless ``encoder_weights`` is "none".

        Raises:
            ValueError: their package is not installed, or holds another file.
        """
        if self.encoder_weights == "imagenet":
            with _naming_the_option():
                self.encoder.load_imagenet()

    def decoded(self, L_norm: Tensor) -> Tensor:
        """L_norm (B, 1, H, W), H and W multiples of 32 -> map (B, channels, H/2, W/2)."""
        *skips, x = self.encoder(lightness_to_grey((L_norm + 1) * 50))
        x = self.dropout(x)
        for stage in self.decoder:
            x = stage(x, skips.pop())
        answer: Tensor = x
        return answer


class LiteUNet(_Lite):
    """From lightness to ab, by regression.

    With the encoder, which has 2,958,272, 3,722,944 or 4,357,376 parameters, the model has

    ======== ========= ========= =========
    channels lite0     lite1     lite2
    ======== ========= ========= =========
    16       3,145,578 3,910,250 4,554,794
    32       3,483,666 4,248,338 4,902,994
    64       4,612,194 5,376,866 6,051,746
    ======== ========= ========= =========

    Args:
        channels: width of the decoder at half the photo's size; 4, 3 and 2 times as many at 1/16,
            1/8 and 1/4.
        encoder: "lite0", "lite1" or "lite2"; the latter two need the extra ``pretrained``.
        encoder_weights: "imagenet", or "none" for an encoder that learns like the rest. The package
            with the weights is needed only when a training starts.
        dropout: probability of zeroing a whole feature map of the encoder's last ones in training.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 32,
        encoder: Variant = "lite0",
        encoder_weights: Weights = "imagenet",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, encoder, encoder_weights, dropout)
        fine = max(8, channels // 2)
        self.full = _convolution(channels + 1, fine)
        self.head = quiet_head(fine, 2)

    def forward(self, L_norm: Tensor) -> Prediction:
        """L_norm (B, 1, H, W) in -1..1, any H and W from 1 -> ab (B, 2, H, W), -128..128.

        Sizes that are not multiples of 32 are padded by repeating the last row and column, and
        cropped back.
        """
        height, width = L_norm.shape[-2:]
        grown = grow(L_norm, STRIDE)
        x = F.interpolate(self.decoded(grown), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.full(torch.cat([x, grown.to(x.dtype)], dim=1))
        answer = self.head(x).float()[..., :height, :width]
        return {"ab": denormalize_ab(answer.tanh())}


class LiteBins(_Lite, BinModel):
    """From lightness to a distribution over the palette's colours, at half the photo's size.

    A new model predicts grey until :meth:`use_palette` gives it the palette's colours.

    Args:
        channels, encoder, encoder_weights, dropout: as for :class:`LiteUNet`.
        bins: Q, the palette's number of colours.

    Raises:
        ValueError: an option is out of range.
    """

    shrink = 2

    def __init__(
        self,
        *,
        channels: int = 32,
        bins: int = 128,
        encoder: Variant = "lite0",
        encoder_weights: Weights = "imagenet",
        dropout: float = 0.0,
    ) -> None:
        require_bins(bins)
        super().__init__(channels, encoder, encoder_weights, dropout)
        self.add_heads(channels, bins)

    def forward(self, L_norm: Tensor) -> Prediction:
        """Colours for lightness.

        L_norm (B, 1, H, W) in -1..1, any H and W from 1 ->

        - logits (B, Q, h, w), residual (B, 2, h, w) in -10..10 ab units and confidence
          (B, 1, h, w) in 0..1, h and w being half of H and W, rounded up
        - ab (B, 2, H, W), as computed by :meth:`decode`

        All are float32. Other sizes than multiples of 32 are padded and cropped as in
        :class:`LiteUNet`.
        """
        height, width = L_norm.shape[-2:]
        return self.answers(self.decoded(grow(L_norm, STRIDE)), (height, width))


class _Stage(nn.Module):
    """Upsample by 2, join with the encoder's map of that size, convolve."""

    def __init__(self, before: int, skip: int, width: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(before, width, 1, bias=False)
        self.join = _convolution(width + skip, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, before, h, w) and (B, skip, 2h, 2w) -> (B, width, 2h, 2w)."""
        # The 1x1 convolution commutes with the upsampling, and is cheaper before it.
        larger = F.interpolate(self.up(x), scale_factor=2, mode="bilinear", align_corners=False)
        joined: Tensor = self.join(torch.cat([larger, skip], dim=1))
        return joined


def _convolution(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1, bias=False), group_norm(width), nn.ReLU(inplace=True)
    )
