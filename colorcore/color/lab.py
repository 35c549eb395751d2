"""CIELAB: the only module that defines ranges, scales and the stored encoding.

Colours occur in three forms, and this module converts between them:

========== ============================== =============================================
form       range                          where
========== ============================== =============================================
CIELAB     L 0..100, a and b -110..110    maths, metrics, palettes (``lab``, ``L``, ``ab``)
stored     uint8, planar: L·255/100,      shards, batches on their way to the device
           a + 128, b + 128               (``lab_u8``)
normalized about -1..1                    what a network sees (``L_norm``, ``ab_norm``)
========== ============================== =============================================

White point D65, 2° observer, sRGB primaries (IEC 61966-2-1), as in scikit-image and kornia.
torch, kornia and OpenCV are imported inside functions: sharding needs no torch, and training needs
no OpenCV.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

L_MAX = 100.0
"""L of the reference white."""
AB_OFFSET = 128
"""Offset of stored a and b: cell 128 is neutral."""
AB_NORM = 128.0
"""ab_norm = ab / AB_NORM, so that a tanh head reaches every colour."""

# sRGB -> XYZ (IEC 61966-2-1) and the D65 white point, to the digits scikit-image uses.
XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
RGB_FROM_XYZ = np.linalg.inv(XYZ_FROM_RGB) * _WHITE
"""To linear RGB from X, Y and Z relative to white."""
F_OF_BLACK = 16.0 / 116.0
"""f(Y) of black (CIE 15:2004, eq. 8.4): f(Y) = (L + 16) / 116 runs from here to 1."""
_KNEE = 6.0 / 29.0
"""f where the cube root begins (CIE 15:2004, eq. 8.7 and 8.8)."""
_T_KNEE, _SLOPE = 0.008856, 7.787
"""Light where it begins, and the slope below, to the digits scikit-image uses."""
_U16 = 65535
_HALVINGS = 12


@cache
def _stored_tables() -> tuple[NDArray[np.uint16], NDArray[np.float32], NDArray[np.float32]]:
    """Tables of :func:`encode_lab`: linear light (256,), f (65536,), f -> stored (3, 4)."""
    v = np.arange(256) / 255.0
    linear = np.where(v > 0.04045, ((v + 0.055) / 1.055) ** 2.4, v / 12.92)
    t = np.arange(_U16 + 1) / _U16
    f = np.where(t > _T_KNEE, np.cbrt(t), _SLOPE * t + F_OF_BLACK)
    scale = 255.0 / L_MAX
    stored = np.array(
        [
            [0.0, 116.0 * scale, 0.0, -16.0 * scale],
            [500.0, -500.0, 0.0, AB_OFFSET],
            [0.0, 200.0, -200.0, AB_OFFSET],
        ]
    )
    return (
        np.rint(linear * _U16).astype(np.uint16),
        f.astype(np.float32),
        stored.astype(np.float32),
    )


def encode_lab(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stored LAB of an sRGB photo, rounded to nearest: the fast path of sharding.

    rgb (H, W, 3) uint8 sRGB -> lab_u8 (3, H, W) uint8, planar and contiguous.

    Tables replace the two power functions (256 levels to 16-bit linear light, 65,536 levels of
    the CIE f), which leaves two 3x3 products. Over all 2^24 sRGB colours the result stays within
    ΔE76 0.8 of scikit-image in float; rounding alone costs up to 0.73.

    Raises:
        ValueError: the array is not (H, W, 3) uint8.
    """
    import cv2

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected an RGB array (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    linear, f, stored = _stored_tables()
    xyz = cv2.transform(cv2.LUT(rgb, linear), (XYZ_FROM_RGB / _WHITE[:, None]).astype(np.float32))
    lab = cv2.convertScaleAbs(cv2.transform(cv2.LUT(xyz, f), stored))
    lab_u8 = np.empty((3, *rgb.shape[:2]), np.uint8)
    cv2.split(lab, list(lab_u8))
    return lab_u8


def decode_lab(lab_u8: Tensor) -> Tensor:
    """CIELAB of stored LAB. lab_u8 (..., 3, H, W) uint8 -> lab (..., 3, H, W) float32."""
    lab = lab_u8.float()
    lab[..., 0, :, :] *= L_MAX / 255.0
    lab[..., 1:, :, :] -= AB_OFFSET
    return lab


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """CIELAB of sRGB. rgb (..., 3, H, W) float in 0..1 -> lab of the same shape, differentiable.

    CIE 15:2004, eq. 8.3 to 8.8, with the constants of scikit-image. Half-precision photos are
    computed in float32.
    """
    import torch
    from kornia.color import rgb_to_linear_rgb

    linear = rgb_to_linear_rgb(_at_least_float32(rgb)).unbind(-3)
    t = torch.stack([_mix(row, linear) for row in XYZ_FROM_RGB / _WHITE[:, None]], dim=-3)
    # The root's slope at 0 is infinite, and would be NaN times 0 where the line is chosen.
    root = t.clamp(min=_T_KNEE) ** (1.0 / 3.0)
    fx, fy, fz = torch.where(t > _T_KNEE, root, _SLOPE * t + F_OF_BLACK).unbind(-3)
    return torch.stack([116.0 * fy - 16.0, 500.0 * (fx - fy), 200.0 * (fy - fz)], -3).to(rgb.dtype)


def lab_to_rgb(lab: Tensor, *, clip: bool = True) -> Tensor:
    """SRGB of CIELAB. lab (..., 3, H, W) -> rgb of the same shape in 0..1, differentiable.

    The inverse of :func:`rgb_to_lab`; Z below 0, which no light has, counts as nearly 0. With
    ``clip=False``, colours outside the sRGB gamut have values below 0 or above 1.
    """
    import torch
    from kornia.color import linear_rgb_to_rgb

    L, a, b = _at_least_float32(lab).unbind(-3)
    fy = (L + 16.0) / 116.0
    f = torch.stack([fy + a / 500.0, fy, (fy - b / 200.0).clamp(min=0.0)], dim=-3)
    xyz = torch.where(f > _KNEE, f**3, (f - F_OF_BLACK) / _SLOPE).unbind(-3)
    rgb: Tensor = linear_rgb_to_rgb(torch.stack([_mix(row, xyz) for row in RGB_FROM_XYZ], dim=-3))
    return (rgb.clamp(0.0, 1.0) if clip else rgb).to(lab.dtype)


def _mix(row: NDArray[np.float64], planes: Sequence[Tensor]) -> Tensor:
    """A row of a 3x3 matrix times three planes (..., H, W) -> (..., H, W).

    Not a product with a matrix on the device, as in kornia: bringing the matrix there makes the
    host wait for all that a GPU was given to do, and autocast and TF32 would round the colours.
    """
    import torch

    first, second, third = map(float, row)
    one, two, three = planes
    return torch.add(torch.add(first * one, two, alpha=second), three, alpha=third)


def _at_least_float32(photos: Tensor) -> Tensor:
    return photos.float() if photos.dtype.itemsize < 4 else photos


def lightness_to_grey(L: Tensor) -> Tensor:
    """SRGB of grey: L 0..100 -> the one value 0..1 of R, G and B, differentiable.

    CIE 15:2004, eq. 8.4 and 8.5 (from L to luminance), then IEC 61966-2-1's transfer function.
    """
    import torch

    f = (L + 16.0) / 116.0
    luminance = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    curved = 1.055 * luminance.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(luminance > 0.0031308, curved, 12.92 * luminance)


def lab_of_srgb(rgb: NDArray[np.floating]) -> NDArray[np.float32]:
    """CIELAB of sRGB without torch. rgb (H, W, 3) float in 0..1 -> lab (3, H, W) float32.

    IEC 61966-2-1, then CIE 15:2004, eq. 8.3 to 8.8.
    """
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ (XYZ_FROM_RGB / _WHITE[:, None]).T
    x, y, z = np.moveaxis(
        np.where(xyz > _KNEE**3, np.cbrt(xyz), xyz / (3 * _KNEE**2) + 4 / 29), -1, 0
    )
    lab = np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)])
    return lab.astype(np.float32)


def light_of(f: NDArray[np.float32]) -> NDArray[np.float32]:
    """The light of f (CIE 15:2004, eq. 8.7 and 8.8, solved for it): X, Y or Z relative to white.

    f (...) float32 -> (...) float32. Below the knee it is the tangent of the cube.
    """
    cubed = np.maximum(f, np.float32(_KNEE))
    below = f - cubed
    below *= np.float32(3 * _KNEE**2)
    light = cubed * cubed
    light *= cubed
    light += below
    return light


def linear_rgb(
    f: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Linear R, G and B of CIELAB colours, not clipped: in 0..1 if sRGB can show them.

    f = (L + 16) / 116, a and b in ab units, float32 of shapes that broadcast to (...) -> (3, ...).
    """
    x, z = f + a / np.float32(500.0), f - b / np.float32(200.0)
    xyz = np.stack(np.broadcast_arrays(light_of(x), light_of(f), light_of(z)))
    rgb: NDArray[np.float32] = np.tensordot(RGB_FROM_XYZ.astype(np.float32), xyz, 1)
    return rgb


def normalize_L(L: Tensor) -> Tensor:
    """Lightness as the networks take it: L 0..100 -> L_norm -1..1."""
    return L / (L_MAX / 2) - 1.0


def normalize_ab(ab: Tensor) -> Tensor:
    """Chroma as the networks take it: ab about -110..110 -> ab_norm within -1..1."""
    return ab / AB_NORM


def denormalize_ab(ab_norm: Tensor) -> Tensor:
    """The inverse of :func:`normalize_ab`: ab_norm -1..1 -> ab -128..128."""
    return ab_norm * AB_NORM


def fit_gamut(lab: Tensor) -> Tensor:
    """The same colours with chroma reduced to fit into sRGB; L and hue stay the same.

    lab (B, 3, H, W) CIELAB -> lab (B, 3, H, W). Clipping RGB instead would change lightness, and a
    colorized photo must keep its lightness. Neutral colours of any L in 0..100 are in the gamut,
    which is practically star-shaped around them, so a bisection on the chroma's factor (12
    halvings, to 2^-12 of the chroma) finds its edge.
    """
    import torch

    def inside(candidate: Tensor) -> Tensor:
        rgb = lab_to_rgb(candidate, clip=False)
        return ((rgb >= -1e-4) & (rgb <= 1.0 + 1e-4)).all(dim=1, keepdim=True)

    outside = ~inside(lab)
    if not bool(outside.any()):
        return lab
    # Only the pixels outside are converted again, as one row (1, 3, 1, N).
    pixels = lab.permute(0, 2, 3, 1)[outside[:, 0]].T[None, :, None, :]
    low = torch.zeros_like(pixels[:, :1])
    high = torch.ones_like(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = inside(torch.cat([pixels[:, :1], pixels[:, 1:] * middle], dim=1))
        low = torch.where(fits, middle, low)
        high = torch.where(fits, high, middle)
    fitted = lab.permute(0, 2, 3, 1).clone()
    fitted[outside[:, 0]] = torch.cat([pixels[:, :1], pixels[:, 1:] * low], dim=1)[0, :, 0, :].T
    return fitted.permute(0, 3, 1, 2)
