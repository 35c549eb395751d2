"""Is the file the model? Colours of the two compared, and what each costs per photo."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.colorizing.colorizer import Colorizer

TOLERANCE = 0.1
"""ab units by which a file in float32 may differ from torch; storing ab as a byte rounds by 0.5."""
ROUNDS = 5


class ExportError(Exception):
    """A model cannot be exported; the message is one line for the user."""


def views_of(L: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Photos at several sizes and batches: L (B, 1, S, S) -> whole, and parts of odd sizes."""
    size = L.shape[-1]
    parts = [L[:1], L[:3], L[:2, :, : size * 3 // 4 + 1, : size // 2 + 3], L[-1:, :, :33, :size]]
    return [*parts, L[:1, :, :1, :1]]


def largest_difference(one: Colorizer, other: Colorizer, L: NDArray[np.float32]) -> float:
    """The largest |Δab| of two colorizers on the views of photos L (B, 1, S, S), in ab units.

    Not a number and infinite if any ab is.
    """
    found = [np.abs(one.predict_ab(each) - other.predict_ab(each)).max() for each in views_of(L)]
    return float(np.max(found))  # NaN if one is


def require_equal(network: Colorizer, exported: Colorizer, L: NDArray[np.float32]) -> float:
    """The largest |Δab| of a network in torch and its file, in ab units.

    Raises:
        ExportError: it is above ``TOLERANCE``.
    """
    difference = largest_difference(network, exported, L)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"expected the file's ab within {TOLERANCE:g} of torch's, found a difference of "
            f"{difference:.3g}; please report it, with the output of cc inspect MODEL"
        )
    return difference


def cpu_ms(
    colorizers: Mapping[str, Colorizer], L: NDArray[np.float32], rounds: int = ROUNDS
) -> dict[str, float]:
    """CPU milliseconds of each on one photo L (1, 1, H, W), in one thread, measured in turn.

    In one thread, because torch's threads wait for each other at work: on a busy machine that took
    several times the CPU time of the work itself.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        for each in colorizers.values():
            each.use_threads(1).predict_ab(L)
        found = [
            {name: _cpu_s(partial(each.predict_ab, L)) for name, each in colorizers.items()}
            for _ in range(rounds)
        ]
    finally:
        torch.set_num_threads(threads)
    return {name: 1e3 * statistics.median(each[name] for each in found) for name in colorizers}


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def quality(
    colorizers: Mapping[str, Colorizer], photos: Sequence[NDArray[np.float32]], full: str
) -> dict[str, dict[str, float]]:
    """Mean PSNR of each colorizer's photos, in dB, and ΔE2000 to those of ``full``.

    photos (3, S, S) CIELAB with their own colours; only L is shown to the colorizers.
    """
    import torch

    from colorcore.color.lab import lab_to_rgb
    from colorcore.scores.metrics import delta_e2000, psnr

    sums = {name: np.zeros(2) for name in colorizers}
    for lab in photos:
        L = lab[None, :1]
        truth = lab_to_rgb(torch.from_numpy(lab[None]))
        labs = {
            name: torch.from_numpy(np.concatenate([L, each.predict_ab(L)], axis=1))
            for name, each in colorizers.items()
        }
        for name, made in labs.items():
            sums[name] += (
                float(psnr(lab_to_rgb(made), truth).mean()),
                float(delta_e2000(made, labs[full]).mean()),
            )
    return {
        name: dict(zip(("psnr", "delta_e"), (both / len(photos)).tolist(), strict=True))
        for name, both in sums.items()
    }
