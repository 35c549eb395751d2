"""The validation metrics of a colorization, per photo, and their means over photos.

No single number is enough. PSNR, SSIM, ab L1 and ΔE2000 measure fidelity, and grey scores well on
them; the colourfulness gap measures whether a prediction is as vivid as the truth; AuC is in
between, and its balanced form counts rare colours too. None of them is a loss term, so no weight
can be tuned to improve it directly.

Functions take batches and return one value per photo, (B,), in the dtype of their input, on any
device. :class:`Evaluation` adds up batches and the sums of several processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colorcore.color.colorfulness import colorfulness
from colorcore.color.lab import AB_OFFSET, lab_to_rgb
from colorcore.transfer import Sums, counts, exact, to_device

HIGHER_IS_BETTER: dict[str, bool] = {
    "psnr": True,
    "ssim": True,
    "ab_l1": False,
    "delta_e2000": False,
    "cf_gap": False,
    "auc": True,
    "auc_balanced": True,
    "auc_balanced_equal_cf": True,
}
"""Metrics by which a study or the choice of the best checkpoint may rank models.

Colourfulness itself and the bins in use are not among them: noise has plenty of both. The last one
is balanced AuC at a set share of the photos' colourfulness, which a training's validations add
(:class:`colorcore.inference.equal_colorfulness.EqualColorfulness`); the others belong to one
decoding, and :class:`Evaluation` has them.
"""

PSNR_MAX = 100.0
"""dB of identical photos, whose PSNR would be infinite, and with it every mean."""
AUC_MAX = 150
"""The last of the thresholds 0, 1 … in ab units (Zhang et al. 2016, section 3.1)."""
BIN_IN_USE = 10_000
"""A bin is in use if it holds at least one of this many predicted pixels."""
_SSIM_WINDOW = 11
PER_PHOTO = (
    "psnr", "ssim", "ab_l1", "delta_e2000", "cf", "cf_true", "cf_gap", "auc", "auc_balanced",
)  # fmt: skip
"""Metrics that an evaluation has of each photo and sums, in the order of its state."""


def psnr(rgb_pred: Tensor, rgb_true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, over all pixels and channels of a photo; higher is better.

    rgb_pred, rgb_true (B, 3, H, W) sRGB, clipped to 0..1 -> (B,), at most :data:`PSNR_MAX`.
    """
    error = rgb_pred.clamp(0.0, 1.0) - rgb_true.clamp(0.0, 1.0)
    return (-10.0 * error.square().mean((1, 2, 3)).log10()).clamp(max=PSNR_MAX)


def ssim(rgb_pred: Tensor, rgb_true: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over RGB; 1 for identical photos.

    rgb_pred, rgb_true (B, 3, H, W) sRGB, clipped to 0..1 -> (B,) in -1..1. Gaussian window
    11x11, σ 1.5, K1 = 0.01, K2 = 0.03. As in the paper's code and scikit-image, only windows
    that lie within the photo count.

    Raises:
        ValueError: the photos are smaller than the window.
    """
    from kornia.metrics import ssim as ssim_map

    if min(rgb_true.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs photos of at least {_SSIM_WINDOW}x{_SSIM_WINDOW} pixels, "
            f"got {tuple(rgb_true.shape[-2:])}"
        )
    similarity: Tensor = ssim_map(
        rgb_pred.clamp(0.0, 1.0), rgb_true.clamp(0.0, 1.0), _SSIM_WINDOW, padding="valid"
    )
    return similarity.mean((1, 2, 3))


def ab_l1(ab_pred: Tensor, ab_true: Tensor) -> Tensor:
    """Mean |error| over the pixels and both channels, ab units; lower is better.

    ab_pred, ab_true (B, 2, H, W) CIELAB -> (B,).
    """
    return (ab_pred - ab_true).abs().mean((1, 2, 3))


def delta_e2000(lab_pred: Tensor, lab_true: Tensor) -> Tensor:
    """CIEDE2000 colour difference of every pixel; about 1 is just noticeable, lower is better.

    lab_pred, lab_true (B, 3, H, W) CIELAB -> (B, H, W). Sharma, Wu and Dalal 2005, equations
    2 to 22, with k_L = k_C = k_H = 1 and their names. Not for training: it jumps where two hues
    are opposite, and its gradient at equal colours is undefined.
    """
    (L1, a1, b1), (L2, a2, b2) = lab_pred.unbind(1), lab_true.unbind(1)
    # Eq. 2-7: a' stretches a near neutral; chroma C' and hue h' (degrees 0..360) follow from it.
    C_mean = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * _chroma_share(C_mean)
    C1, h1 = _polar(a1 * stretch, b1)
    C2, h2 = _polar(a2 * stretch, b2)
    # Eq. 8-11: differences, the hue's the short way round. The paper sets the hue of neutral
    # colours apart; there C1·C2 = 0 makes ΔH' vanish, and with it all that depends on hue.
    dL, dC, dh = L2 - L1, C2 - C1, h2 - h1
    opposite = dh.abs() > 180.0
    dh = torch.where(opposite, dh - 360.0 * dh.sign(), dh)
    dH = 2.0 * (C1 * C2).sqrt() * _sin(dh / 2)
    # Eq. 12-14: means, the hue's on the short arc.
    L, C, h = (L1 + L2) / 2, (C1 + C2) / 2, (h1 + h2) / 2
    h = torch.where(opposite, torch.where(h < 180.0, h + 180.0, h - 180.0), h)
    # Eq. 15-21: weights of the three differences, and the rotation term for blue.
    T = (
        1.0
        - 0.17 * _cos(h - 30.0)
        + 0.24 * _cos(2.0 * h)
        + 0.32 * _cos(3.0 * h + 6.0)
        - 0.20 * _cos(4.0 * h - 63.0)
    )
    from_mid = (L - 50.0).square()
    S_L = 1.0 + 0.015 * from_mid / (20.0 + from_mid).sqrt()
    S_C = 1.0 + 0.045 * C
    S_H = 1.0 + 0.015 * C * T
    blueness = 30.0 * (-((h - 275.0) / 25.0).square()).exp()
    R_T = -2.0 * _chroma_share(C) * _sin(2.0 * blueness)
    # Eq. 22. Rounding can push the sum of equal colours below zero.
    x, y, z = dL / S_L, dC / S_C, dH / S_H
    return (x * x + y * y + z * z + R_T * y * z).clamp(min=0.0).sqrt()


def _chroma_share(C: Tensor) -> Tensor:
    """√(C⁷ / (C⁷ + 25⁷)): 0 at neutral, about 1 for vivid colours (eq. 4 and 17)."""
    C7 = C**7
    return (C7 / (C7 + 25.0**7)).sqrt()


def _polar(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Chroma and hue in degrees 0..360 of (a, b)."""
    return torch.hypot(a, b), torch.rad2deg(torch.atan2(b, a)) % 360.0


def _sin(degrees: Tensor) -> Tensor:
    return torch.sin(torch.deg2rad(degrees))


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(torch.deg2rad(degrees))


def auc(ab_pred: Tensor, ab_true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the curve of "share of pixels with at most this error", 0..1; higher is better.

    Zhang et al. 2016 ("Colorful Image Colorization"), section 3.1: the error is the distance in
    the ab plane, the thresholds are 0, 1 … 150 ab units. Integrated per pixel, the curve is the
    share of thresholds that the pixel's error does not exceed.

    ab_pred, ab_true (B, 2, H, W) CIELAB; weights (B, H, W) above 0, on any scale, relative
    within a photo -> (B,).
    """
    error = torch.linalg.vector_norm(ab_pred - ab_true, dim=1)
    thresholds = AUC_MAX + 1
    share: Tensor = (thresholds - error.ceil()).clamp(min=0.0) / thresholds
    if weights is None:
        return share.mean((1, 2))
    return (weights * share).sum((1, 2)) / weights.sum((1, 2))


def grey_baseline(lab: Tensor) -> Tensor:
    """The prediction without a model. lab (B, 3, H, W) -> the same L with a = b = 0."""
    return constant_baseline(lab, lab.new_zeros(2))


def constant_baseline(lab: Tensor, mean_ab: Tensor) -> Tensor:
    """The best prediction that ignores the photo: one colour for all pixels.

    lab (B, 3, H, W); mean_ab (2,), such as the mean of the training photos -> the same L with it.
    """
    ab = mean_ab.to(lab).reshape(1, 2, 1, 1).expand_as(lab[:, 1:])
    return torch.cat([lab[:, :1], ab], dim=1)


class Evaluation:
    """Means of all metrics over photos, added up batch by batch.

    The state is one vector of sums, so the size and order of batches do not matter, and the ranks
    of a distributed run just add theirs::

        evaluation = Evaluation(balance, bin_of_cell, bins=313)
        for lab in batches:
            evaluation.update(colorized(lab), lab)
        total = evaluation.state()          # on the CPU; NCCL needs it on the GPU
        torch.distributed.all_reduce(total)
        whole = Evaluation(balance, bin_of_cell, bins=313)
        whole.add_state(total)
        whole.compute()

    Args:
        balance: (256, 256) float above 0, the palette weight of the bin of each stored (a, b)
            cell, with which balanced AuC weights the true pixels.
        bin_of_cell: (256, 256) int64, the bin 0..bins-1 of each stored (a, b) cell.
        bins: number of bins of the palette.

    Raises:
        ValueError: a table has another shape or values out of range.
    """

    def __init__(self, balance: Tensor, bin_of_cell: Tensor, bins: int) -> None:
        if balance.shape != (256, 256) or bin_of_cell.shape != (256, 256):
            raise ValueError(
                "expected balance and bin_of_cell of shape (256, 256), got "
                f"{tuple(balance.shape)} and {tuple(bin_of_cell.shape)}"
            )
        if not bool((balance > 0).all()):
            raise ValueError(f"balance must be above 0, its smallest is {balance.min().item()}")
        low, high = int(bin_of_cell.min()), int(bin_of_cell.max())
        if low < 0 or high >= bins:
            raise ValueError(f"bin_of_cell must be in 0..{bins - 1}, got {low}..{high}")
        self._balance = balance.float()
        self._bin_of_cell = bin_of_cell
        self._bins = bins
        # Photos, then a sum for each mean, then the predicted pixels in each bin.
        self._sums = Sums(1 + len(PER_PHOTO) + bins)

    @torch.no_grad()
    def update(self, lab_pred: Tensor, lab_true: Tensor) -> Tensor:
        """Add a batch; returns its values of :data:`PER_PHOTO`, (B, metrics) float32.

        They are on the device of the batch, which the host does not wait for.

        lab_pred, lab_true (B, 3, H, W) CIELAB float, at least 11x11 pixels, on one device;
        a model's lab_pred has the truth's L. A prediction that is not finite makes the means NaN.

        Raises:
            ValueError: the shapes differ or are not (B, 3, H, W).
        """
        if lab_pred.shape != lab_true.shape or lab_true.ndim != 4 or lab_true.shape[1] != 3:
            raise ValueError(
                "expected two batches of the same shape (B, 3, H, W), got "
                f"{tuple(lab_pred.shape)} and {tuple(lab_true.shape)}"
            )
        device = lab_true.device
        self._balance = to_device(self._balance, device)
        self._bin_of_cell = to_device(self._bin_of_cell, device)
        used = self._bin_of_cell[stored_cells(lab_pred[:, 1:])]
        with torch.autocast(device.type, enabled=False):
            values = self._per_photo(lab_pred.float(), lab_true.float())
            per_photo = torch.stack([values[name] for name in PER_PHOTO])
        sums, histogram = exact(per_photo).sum(1), exact(counts(used, self._bins))
        self._sums.add(torch.cat([sums.new_full((1,), len(lab_true)), sums, histogram]))
        return per_photo.T

    def _per_photo(self, lab_pred: Tensor, lab_true: Tensor) -> dict[str, Tensor]:
        """The metrics of each photo of a batch: name -> (B,)."""
        rgb_pred, rgb_true = lab_to_rgb(lab_pred), lab_to_rgb(lab_true)
        ab_pred, ab_true = lab_pred[:, 1:], lab_true[:, 1:]
        cf, cf_true = colorfulness(rgb_pred * 255.0), colorfulness(rgb_true * 255.0)
        return {
            "psnr": psnr(rgb_pred, rgb_true),
            "ab_l1": ab_l1(ab_pred, ab_true),
            "delta_e2000": delta_e2000(lab_pred, lab_true).mean((1, 2)),
            "cf": cf,
            "cf_true": cf_true,
            "cf_gap": (cf - cf_true).abs(),
            "auc": auc(ab_pred, ab_true),
            "auc_balanced": auc(ab_pred, ab_true, self._balance[stored_cells(ab_true)]),
            # Last: kornia brings the window to the device, and the host waits for that.
            "ssim": ssim(rgb_pred, rgb_true),
        }

    def state(self) -> Tensor:
        """The sums so far, as a float64 vector on the CPU; states can be added."""
        return self._sums.read()

    def add_state(self, state: Tensor) -> None:
        """Add the state of another evaluation with the same palette.

        Raises:
            ValueError: the vector has another length, so the palette was another one.
        """
        if state.shape != (len(self._sums),):
            raise ValueError(
                f"expected a state of {len(self._sums)} numbers ({self._bins} bins), "
                f"got shape {tuple(state.shape)}"
            )
        self._sums.add_read(state)

    def compute(self) -> dict[str, float]:
        """The means over photos, ``bins_in_use`` over all pixels, and the number of ``photos``.

        Raises:
            ValueError: no photo was added.
        """
        state = self._sums.read()
        photos = state[0].item()
        if not photos:
            raise ValueError("nothing to evaluate: no photo was added")
        sums, histogram = state[1:].tensor_split([len(PER_PHOTO)])
        result = dict(zip(PER_PHOTO, (sums / photos).tolist(), strict=True))
        in_use = histogram * BIN_IN_USE >= histogram.sum()
        return {**result, "bins_in_use": float(in_use.sum()), "photos": photos}


def stored_cells(ab: Tensor) -> tuple[Tensor, Tensor]:
    """The stored cell of each pixel. ab (B, 2, H, W) -> indices of a and b, (B, H, W) each.

    Colours outside the stored range count for the nearest cell, and NaN for neutral: an index out
    of range would crash a GPU run with a message that hides the diverged model behind it.
    """
    cells = ab.nan_to_num(0.0).round().clamp(-AB_OFFSET, 255 - AB_OFFSET).long() + AB_OFFSET
    return cells[:, 0], cells[:, 1]
