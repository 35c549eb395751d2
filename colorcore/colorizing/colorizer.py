"""A model ready to colourize photos: what ``colorcore.load`` returns.

:class:`Colorizer` is what all kinds of models have in common. It needs NumPy and OpenCV alone; a
checkpoint's network (:mod:`colorcore.colorizing.network`) brings torch.

The network sees small copies, in batches. Their ab is upsampled next to the photo's own lightness,
so details stay as sharp as they were:

``small_copy`` -> ``Colorizer.predict`` (batches of copies of one shape) -> ``paint``
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from colorcore.color.lab import lab_of_srgb
from colorcore.colorizing.compose import blas_on_one_thread, paint
from colorcore.colorizing.images import open_image
from colorcore.decoding import Decoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.color.pixels import Pixels
    from colorcore.colorizing.images import Picture

    Lab = NDArray[np.float32]
    """(3, h, w) CIELAB."""

    AB = NDArray[np.float32]
    """(2, h, w), ab units."""

MAX_ASPECT = 16
"""Longer photos get a smaller copy: networks pad its shorter side, and that of 1 x 20,000 pixels
would fill the memory."""
BATCH = 8
"""Copies per pass of the network."""


class Colorizer(ABC):
    """A model, and how its predictions become colours.

    Attributes:
        name: of the model's kind, for messages.
        size: shorter side, in pixels, of the small copies that the model sees.
        decoding: the temperature and chroma that are used unless others are asked for.
        predicts_bins: whether the model has a temperature.
        versions: how many versions of each photo ``predict`` makes.
    """

    versions = 1

    def __init__(self, name: str, size: int, decoding: Decoding, *, predicts_bins: bool) -> None:
        self.name, self.size, self.decoding = name, size, decoding
        self.predicts_bins = predicts_bins

    # -- what kinds of models differ in ---------------------------------------------------------

    @property
    @abstractmethod
    def device(self) -> str:
        """Where the model runs: "cpu", "cuda" or "cuda:1"."""

    @abstractmethod
    def predict_ab(self, L: NDArray[np.float32]) -> AB:
        """The colours of one batch, by the colorizer's decoding.

        L (B, 1, h, w) float32, 0..100 -> ab (B, 2, h, w) float32 within -128..128, of any h and w.
        The model was trained on photos whose shorter side is ``size``.
        """

    def predict(self, copies: Sequence[Lab]) -> list[tuple[AB, ...]]:
        """The colours of small copies of one shape as one batch: per copy, ``versions`` times ab.

        copies (3, h, w) CIELAB -> (2, h, w), ab units.
        """
        L = np.stack([lab[:1] for lab in copies])
        return [(ab,) for ab in self.predict_ab(L)]

    def to(self, device: str) -> Self:
        """Move the model to another device; returns the colorizer itself, as torch's modules do.

        Raises:
            ValueError: the model cannot run there.
        """
        if device != self.device:
            raise ValueError(f"expected the device {self.device} for {self.name}, got {device}")
        return self

    def use_threads(self, count: int) -> Self:
        """Let a pass of the model use ``count`` threads, if it can; returns itself."""
        return self

    def with_versions(self, count: int) -> Self:
        """The same model, which makes ``count`` plausible versions of each photo.

        Raises:
            ValueError: more than one of a model that has a single answer.
        """
        if count > 1:
            raise ValueError(
                f"expected a model that predicts bins for {count} versions, {self.name} does not; "
                "it has one answer"
            )
        return self

    # -- what they have in common ---------------------------------------------------------------

    def with_decoding(self, temperature: float | None = None, chroma: float | None = None) -> Self:
        """The same model with another temperature or chroma; None keeps the present value.

        Raises:
            ValueError: a value is not above 0, or the model has no temperature.
        """
        if temperature is not None and not self.predicts_bins:
            raise ValueError(
                f"temperature needs a model that predicts bins, {self.name} does not; leave it "
                "out, or use chroma for more vivid colours"
            )
        given = {"temperature": temperature, "chroma": chroma}
        changed = {key: value for key, value in given.items() if value is not None}
        other = copy.copy(self)
        other.decoding = replace(self.decoding, **changed)
        return other

    @overload
    def colorize(
        self,
        images: Picture,
        *,
        strength: float = ...,
        temperature: float | None = ...,
        chroma: float | None = ...,
        threads: int = ...,
    ) -> Picture: ...

    @overload
    def colorize(
        self,
        images: Sequence[Picture],
        *,
        strength: float = ...,
        temperature: float | None = ...,
        chroma: float | None = ...,
        threads: int = ...,
    ) -> list[Picture]: ...

    def colorize(
        self,
        images: Any,
        *,
        strength: float = 1.0,
        temperature: float | None = None,
        chroma: float | None = None,
        threads: int = 1,
    ) -> Any:
        """An image, or each of several, with predicted colours and its own lightness.

        An image is an array or a Pillow image, of any size, and so is its picture:

        ==================================  =====================================================
        given                               returned
        ==================================  =====================================================
        (H, W), (H, W, 1) or (H, W, 3)      (H, W, 3) of the same type. sRGB; uint8, uint16, or
                                            floats 0..1, which are computed at 16 bits
        (H, W, 4)                           (H, W, 4) with the same alpha
        Pillow image                        RGB or RGBA of 8 bits, upright, in sRGB, with the
                                            image's EXIF, XMP and resolution in ``info``
        ==================================  =====================================================

        Only the lightness of an image is used, so one in colour is colourized anew. L differs from
        the image's by rounding, and by at most .01 where chroma had to be reduced to what sRGB can
        show. Small copies of one shape go through the model in batches of eight; all images and
        pictures are in memory.

        Args:
            images: an image, or a list of images.
            strength: share of the predicted colours, 0..1; the rest are the image's own.
            temperature: of a model that predicts bins: 1 averages the likely colours, near 0 picks
                the most likely; None: the model's ``decoding``.
            chroma: factor on a and b; None: the model's ``decoding``.
            threads: that paint an image of many megapixels.

        Raises:
            TypeError: an image is of another kind, such as a path.
            ValueError: an array has another shape or type, or a setting is out of range.
        """
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"expected a strength within 0..1, got {strength:g}")
        if temperature is not None or chroma is not None:
            other = self.with_decoding(temperature, chroma)
            return other.colorize(images, strength=strength, threads=threads)
        if not isinstance(images, (list, tuple)):
            return self.colorize([images], strength=strength, threads=threads)[0]
        opened = [open_image(image) for image in images]
        copies = [small_copy(each.pixels, self.size) for each in opened]
        colors: dict[int, AB] = {}
        for numbers in batches_of(copies):
            predicted = self.predict([copies[number] for number in numbers])
            colors.update(zip(numbers, (versions[0] for versions in predicted), strict=True))
        with blas_on_one_thread():
            return [
                each.restore(
                    paint(each.pixels, copies[n], colors[n], strength=strength, threads=threads)
                )
                for n, each in enumerate(opened)
            ]


def small_copy(pixels: Pixels, size: int) -> Lab:
    """The copy of a photo that the network sees, in CIELAB: (3, h, w).

    pixels (H, W, 3) sRGB or (H, W) grey, uint8 or uint16. ``size`` is the shorter side of the copy
    in pixels (that of the network's training samples); the copy of a photo longer than 16:1 is no
    longer than that of one of 16:1.
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
    return lab_of_srgb(copy.astype(np.float32) / np.iinfo(pixels.dtype).max)


def batches_of(copies: Sequence[Lab]) -> Iterator[list[int]]:
    """Which copies go through the network together: of one shape, at most ``BATCH``, in order."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, each in enumerate(copies):
        alike.setdefault(each.shape, []).append(number)
    for shape in sorted(alike):
        numbers = alike[shape]
        yield from (numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH))
