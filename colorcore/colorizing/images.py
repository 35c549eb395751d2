"""Images as a program holds them, arrays and Pillow images, as photos to colourize and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from colorcore.color.pixels import require_photo

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from colorcore.color.pixels import Pixels

    Picture = TypeVar("Picture", NDArray[Any], Image.Image)

_U16 = 65535
_KEPT = ("exif", "xmp", "dpi")


class Opened(NamedTuple):
    """An image as a photo.

    pixels   (H, W, 3) or, grey, (H, W); uint8 or uint16 sRGB
    restore  from (H, W, 3) of the same type to an image of the kind that was given
    """

    pixels: Pixels
    restore: Callable[[Pixels], Any]


def open_image(image: Picture) -> Opened:
    """An array or a Pillow image as a photo; see :meth:`Colorizer.colorize` for what is accepted.

    Raises:
        TypeError: it is neither.
        ValueError: an array has another shape or type, or floats beyond 0..1.
    """
    if isinstance(image, np.ndarray):
        return _open_array(image)
    from PIL import Image

    if isinstance(image, Image.Image):
        return _open_pillow(image)
    raise TypeError(
        f"expected an array or a Pillow image, got {type(image).__name__}; open a file with "
        "PIL.Image.open"
    )


def _open_array(array: NDArray[Any]) -> Opened:
    kind = array.dtype
    alpha = None
    if array.ndim == 3 and array.shape[2] == 4:
        array, alpha = array[..., :3], array[..., 3:]
    elif array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if kind.kind == "f":
        if array.size and not (array.min() >= 0.0 and array.max() <= 1.0):  # nor NaN
            raise ValueError(
                f"expected floats within 0..1, got {array.min():g} to {array.max():g}; divide "
                "8-bit values by 255"
            )
        pixels: Pixels = np.rint(array.astype(np.float32) * _U16).astype(np.uint16)
    else:
        pixels = array
    require_photo(pixels)

    def restore(picture: Pixels) -> NDArray[Any]:
        made: NDArray[Any] = picture
        if kind.kind == "f":
            made = (picture / _U16).astype(kind)
        return made if alpha is None else np.concatenate([made, alpha], axis=2)

    return Opened(_contiguous(pixels), restore)


def _open_pillow(image: Image.Image) -> Opened:
    from PIL import Image, ImageOps

    from colorcore.photos.original.pillow import straight
    from colorcore.photos.original.profiles import srgb_profile
    from colorcore.photos.refusal import PhotoRefused

    upright = ImageOps.exif_transpose(image)
    try:
        pixels, alpha = straight(upright, b"")
    except PhotoRefused as error:
        raise ValueError(f"{error.detail}; convert the image to RGB") from error
    kept: dict[Any, Any] = {key: upright.info[key] for key in _KEPT if key in upright.info}

    def restore(picture: Pixels) -> Image.Image:
        made = Image.fromarray(_eight(picture))
        if alpha is not None:
            made.putalpha(Image.fromarray(_eight(alpha)))
        made.info.update(kept, icc_profile=srgb_profile())
        return made

    return Opened(_contiguous(pixels), restore)


def _contiguous(pixels: Any) -> Pixels:
    made: Pixels = np.ascontiguousarray(pixels)
    return made


def _eight(plane: NDArray[Any]) -> NDArray[np.uint8]:
    return plane if plane.dtype == np.uint8 else np.rint(plane / 257.0).astype(np.uint8)
