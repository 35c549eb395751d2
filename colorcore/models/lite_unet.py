"""Colorizers whose encoder has seen ImageNet, so that a thousand photos are enough.

A network that learns from a thousand photos knows what a mean photo looks like. EfficientNet-Lite
(:mod:`colorcore.blocks.efficientnet_lite`) tells grass from snow in grey, too, so what remains to
be learned is which colour goes with what it sees. The encoder is frozen unless the recipe says
otherwise: its statistics stay those of ImageNet, and no gradient passes through it.

The decoder is one hidden layer on the *hypercolumn* of each pixel, the encoder's maps at all scales
(Larsson et al. 2016, "Learning representations for automatic colorization", section 3)::

    L ─ EfficientNet-Lite ─┬─ /2 ── linear ──────────────────────── + ─ ReLU ─┬─ ab
                           ├─ /4 ── linear ───────────────── + ─ ×2 ┘         └─ logits, residual,
                           ├─ /8 ── linear ────────── + ─ ×2 ┘                   confidence
                           ├─ /16 ─ linear ─── + ─ ×2 ┘
                           └─ /32 ─ linear ─×2 ┘

A usual decoder, with convolutions of 3×3 at each scale, learned a thousand photos by heart: its
colours of unseen photos were hardly better than without ImageNet's weights (docs/guides.md). What
made the difference is that pixels are decided one by one, that no more than a hidden layer is
learned, and that features of photos are blended in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.efficientnet_lite import STRIDE, EfficientNetLite, Variant, weights_file
from colorcore.blocks.layers import grow, quiet_head, require_channels, require_dropout
from colorcore.blocks.mixup import blend_next
from colorcore.color.lab import denormalize_ab, lightness_to_grey
from colorcore.models.bin_model import BinModel, require_bins
from colorcore.models.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

Weights = Literal["imagenet", "none"]
STAGES = 6
"""The encoder's first stages that are used. The seventh, which prepares for ImageNet's classes,
tells colours less well: R² of a linear fit on 200 unseen photos is .12, that of the sixth .19
(``python -m tests.experiments.stages``).
"""


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
    """Encoder and hidden layer of both models; ``finest`` is the first map that is used."""

    def __init__(
        self,
        channels: int,
        encoder: Variant,
        encoder_weights: Weights,
        dropout: float,
        mixup: float,
        finest: int,
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
        if not 0 <= mixup <= 0.5:
            raise ValueError(f"mixup must be in 0..0.5, got {mixup}")
        self.encoder_weights, self.mixup, self.finest = encoder_weights, mixup, finest
        self.encoder = EfficientNetLite(encoder, colors=1, stages=STAGES)
        if encoder_weights == "imagenet":
            self.encoder.eval()  # new modules are in training mode
        self.readings = nn.ModuleList(
            _Reading(width, channels, dropout) for width in self.encoder.widths[finest:]
        )

    @property
    def encoder_lr(self) -> float:
        """The encoder's learning rate as a factor, unless the recipe sets one: 0 freezes it."""
        return 0.0 if self.encoder_weights == "imagenet" else 1.0

    def encoder_parts(self) -> list[nn.Module]:
        """The encoder's parts, from the photo on: the stem, and six stages."""
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
            scales = self.encoder.scales()[self.finest :]
            for reading, (mean, std) in zip(self.readings, scales, strict=True):
                assert isinstance(reading, _Reading)  # noqa: S101 - for the type checker
                reading.standardize(mean, std)

    def hidden(self, L_norm: Tensor) -> tuple[Tensor, Tensor | None]:
        """The hidden layer, and in training with mixup the shares of the next photo in it.

        L_norm (B, 1, H, W), H and W multiples of 32 -> (B, channels, h, w) at the stride of the
        finest map, (B,) in 0..``mixup``.
        """
        maps = self.encoder(lightness_to_grey((L_norm + 1) * 50))[self.finest :]
        shares = None
        if self.training and self.mixup:
            shares = self.mixup * torch.rand(len(L_norm), device=L_norm.device)
            maps = [blend_next(each, shares) for each in maps]
        x = self.readings[-1](maps[-1])
        for reading, finer in zip(reversed(self.readings[:-1]), reversed(maps[:-1]), strict=True):
            # Linear maps commute with the upsampling, and are cheaper before it.
            larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = larger + reading(finer)
        return F.relu(x), shares


class LiteUNet(_Lite):
    """From lightness to ab, by regression.

    With the encoder, which has 2,352,832, 3,117,504 or 3,641,568 parameters, the model has

    ======== ========= ========= =========
    channels lite0     lite1     lite2
    ======== ========= ========= =========
    64       2,377,858 3,142,530 3,668,642
    128      2,402,882 3,167,554 3,695,714
    ======== ========= ========= =========

    Args:
        channels: width of the hidden layer.
        encoder: "lite0", "lite1" or "lite2"; the latter two need the extra ``pretrained``.
        encoder_weights: "imagenet", or "none" for an encoder that learns like the rest. The package
            with the weights is needed only when a training starts.
        dropout: probability of zeroing a value of the encoder's maps in training.
        mixup: largest share of another photo in what is learned from, 0..0.5: in training, the
            encoder's maps of each photo are blended with those of the next, and so are the targets.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        encoder: Variant = "lite0",
        encoder_weights: Weights = "imagenet",
        dropout: float = 0.2,
        mixup: float = 0.5,
    ) -> None:
        super().__init__(channels, encoder, encoder_weights, dropout, mixup, finest=0)
        self.head = quiet_head(channels, 2)

    def forward(self, L_norm: Tensor) -> Prediction:
        """L_norm (B, 1, H, W) in -1..1, any H and W from 1 -> ab (B, 2, H, W), -128..128.

        Sizes that are not multiples of 32 are padded by repeating the last row and column, and
        cropped back.
        """
        height, width = L_norm.shape[-2:]
        x, shares = self.hidden(grow(L_norm, STRIDE))
        half = self.head(x).float().tanh()
        full = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        answer: Prediction = {"ab": denormalize_ab(full[..., :height, :width])}
        return answer if shares is None else {**answer, "shares": shares}


class LiteBins(_Lite, BinModel):
    """From lightness to a distribution over the palette's colours, at a quarter of the size.

    A new model predicts grey until :meth:`use_palette` gives it the palette's colours.

    Args:
        channels, encoder, encoder_weights, dropout, mixup: as for :class:`LiteUNet`.
        bins: Q, the palette's number of colours.

    Raises:
        ValueError: an option is out of range.
    """

    shrink = 4

    def __init__(
        self,
        *,
        channels: int = 128,
        bins: int = 128,
        encoder: Variant = "lite0",
        encoder_weights: Weights = "imagenet",
        dropout: float = 0.2,
        mixup: float = 0.5,
    ) -> None:
        require_bins(bins)
        super().__init__(channels, encoder, encoder_weights, dropout, mixup, finest=1)
        self.add_heads(channels, bins)

    def forward(self, L_norm: Tensor) -> Prediction:
        """Colours for lightness.

        L_norm (B, 1, H, W) in -1..1, any H and W from 1 ->

        - logits (B, Q, h, w), residual (B, 2, h, w) in -10..10 ab units and confidence
          (B, 1, h, w) in 0..1, h and w being a quarter of H and W, rounded up
        - ab (B, 2, H, W), as computed by :meth:`decode`

        All are float32. Other sizes than multiples of 32 are padded and cropped as in
        :class:`LiteUNet`.
        """
        height, width = L_norm.shape[-2:]
        x, shares = self.hidden(grow(L_norm, STRIDE))
        answer = self.answers(x, (height, width))
        return answer if shares is None else {**answer, "shares": shares}


class _Reading(nn.Module):
    """What the hidden layer reads of one map: its standardized values, linearly.

    Attributes:
        mean, std: (1, C, 1, 1), 0 and 1 until :meth:`standardize`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, width, 1, 1))
        self.register_buffer("std", torch.ones(1, width, 1, 1))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Conv2d(width, channels, 1)

    @torch.no_grad()
    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Take these (C,) for the mean and standard deviation of each channel."""
        self.mean.copy_(mean[None, :, None, None])
        self.std.copy_(std[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels, h, w)."""
        answer: Tensor = self.linear(self.dropout((x - self.mean) / self.std))
        return answer
