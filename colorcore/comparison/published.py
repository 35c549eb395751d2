"""LPIPS and FID, by which colorizers are compared in papers; their weights are files of the user's.

Pictures are rounded to 8 bits first, as in the files that such programs read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from colorcore.blocks.inception import FEATURES, load_fid_inception
from colorcore.color.lab import lab_to_rgb
from colorcore.comparison.lpips import open_lpips
from colorcore.scores.frechet import FeatureSums, frechet_distance

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FID = "fid"
LPIPS = {"alex": "lpips_alex", "vgg16": "lpips_vgg"}
ENOUGH = 10_000
"""Photos that Heusel et al. recommend for FID at least."""
_AT_A_TIME = {"cpu": 4}
"""Photos per pass of a network: on a CPU, more take longer per photo. Elsewhere, a batch."""


class PublishedScores:
    """FID and mean LPIPS of several sides, batch by batch.

    FID is Heusel et al. 2017, eq. 6, between all predicted and all true photos, in the features of
    :class:`FidInception`. LPIPS is the mean over photos of :class:`Lpips` between prediction and
    truth, at their own size. Both are 0 for the truth. FID takes 34 MB per side for any number of
    photos.

    Args:
        names: of the sides, whose answers :meth:`add` receives.
        fid: file of FID's Inception-v3; None leaves FID out.
        lpips: files of LPIPS's networks, as for :func:`open_lpips`.
        device: where the networks run.

    Raises:
        WeightsError: a file is missing, or belongs to another network.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        fid: Path | None = None,
        lpips: Sequence[Path] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self._names = tuple(names)
        self._lpips = {net: each.to(device) for net, each in open_lpips(lpips).items()}
        self._inception = load_fid_inception(fid).to(device) if fid else None
        self._distances = {net: dict.fromkeys(self._names, 0.0) for net in self._lpips}
        self._photos = 0
        self._truth = FeatureSums(FEATURES if fid else 0)
        self._sums = {name: FeatureSums(FEATURES) for name in self._names} if fid else {}

    @torch.no_grad()
    def add(self, answers: Mapping[str, Tensor], lab_true: Tensor) -> None:
        """Add a batch: what each side answers, and the truth; (B, 3, H, W) CIELAB float."""
        self._photos += len(lab_true)
        some = _AT_A_TIME.get(lab_true.device.type, len(lab_true))
        for start in range(0, len(lab_true), some):
            part = slice(start, start + some)
            rgb = {name: _as_shown(answers[name][part]) for name in self._names}
            with torch.autocast(lab_true.device.type, enabled=False):
                self._add(rgb, _as_shown(lab_true[part]))

    def _add(self, rgb: Mapping[str, Tensor], truth: Tensor) -> None:
        for net, lpips in self._lpips.items():
            expected = lpips.features(truth)
            for name, picture in rgb.items():
                found = lpips.distance(lpips.features(picture), expected)
                self._distances[net][name] += float(found.double().sum())
        if self._inception is not None:
            self._truth.add(self._inception(truth).cpu().numpy())
            for name, picture in rgb.items():
                self._sums[name].add(self._inception(picture).cpu().numpy())

    def compute(self) -> dict[str, dict[str, float]]:
        """The scores by side; FID of fewer than two photos is left out.

        Raises:
            ValueError: no photo was added.
        """
        if not self._photos:
            raise ValueError("nothing to evaluate: no photo was added")
        scores: dict[str, dict[str, float]] = {name: {} for name in self._names}
        for net, distances in self._distances.items():
            for name, total in distances.items():
                scores[name][LPIPS[net]] = total / self._photos
        if self._photos > 1 and self._sums:
            truth = self._truth.gaussian()
            for name, sums in self._sums.items():
                scores[name][FID] = frechet_distance(truth, sums.gaussian())
        return scores

    @property
    def caution(self) -> str:
        """What to know before FID is believed; "" with enough photos, or without FID."""
        if self._inception is None or self._photos >= ENOUGH:
            return ""
        if self._photos < 2:
            return f"FID needs two photos, and {ENOUGH:,} to be compared with published figures"
        singular = f" (with {FEATURES:,} or fewer, its covariances are singular)"
        return (
            f"FID of {self._photos:,} photos is biased"
            f"{singular if self._photos <= FEATURES else ''}: compare it only between sides of the "
            f"same photos; published figures need {ENOUGH:,} or more"
        )


def _as_shown(lab: Tensor) -> Tensor:
    """SRGB 0..1 in steps of 8 bits."""
    return (lab_to_rgb(lab.float()) * 255.0).round() / 255.0
