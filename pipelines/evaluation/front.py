"""`cc eval --front`: a model's scores over temperature and chroma, and their plot."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.comparison.equal_chroma import with_chroma
from colorcore.decoding import Decoding
from colorcore.drawing.front_plot import draw_front, draw_fronts
from colorcore.inference.decoding_search import COLOR, FIDELITY, WIDER, grid, undominated
from colorcore.inference.equal_colorfulness import read_at_shares
from colorcore.inference.evaluate import BASELINES, evaluation_for
from colorcore.models.decoding import completed, own_decoding
from colorcore.photos.write import write_whole
from pipelines.evaluation.report import EvalReport, FrontReport

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.color.palette import Palette
    from pipelines.evaluation.sides import ModelSide


class FrontScores:
    """The scores of a model with every setting of its grid, and with those marked."""

    def __init__(self, side: ModelSide, palette: Palette) -> None:
        self._side = side
        network, stored = side.network, side.checkpoint.decoding
        self.marked = {"default": own_decoding(network), "stored": completed(network, stored)}
        if side.decoding != self.marked["stored"]:
            self.marked["asked"] = side.decoding
        settings = grid(network, self.marked.values())
        self._evaluations = {setting: evaluation_for(palette) for setting in settings}

    def update(self, lab: Tensor) -> None:
        """Add a batch of photos: LAB (B, 3, S, S) float."""
        prediction = self._side.predict(lab)
        for temperature, same in groupby(self._evaluations, key=lambda d: d.temperature):
            plain = self._side.decoded(lab, prediction, Decoding(temperature))
            for setting in same:
                self._evaluations[setting].update(with_chroma(plain, setting.chroma), lab)

    def compute(self) -> dict[Decoding, dict[str, float]]:
        """The scores of each setting, ordered by temperature and chroma."""
        return {setting: each.compute() for setting, each in self._evaluations.items()}

    def report(self, picture: Path) -> FrontReport:
        """All of it for one model alone."""
        scores = self.compute()
        optimal = undominated(scores, (*FIDELITY, COLOR))
        return FrontReport(scores, optimal, self.marked, picture, read_at_shares(scores))


def plot_front(report: EvalReport, front: FrontReport, title: str) -> None:
    """Write the plot of one model's front.

    Raises:
        OSError: the file cannot be written.
    """
    baselines = {name: report.scores[name] for name in BASELINES}
    title = f"{title}: {report.photos:,} photos at {report.size} px"
    # Settings that nobody would choose would squeeze the others into a corner.
    shown = {
        setting: row
        for setting, row in front.scores.items()
        if setting.chroma not in WIDER or setting in front.marked.values()
    }
    write_whole(front.picture, draw_front(shown, baselines, front.marked, title))


def plot_fronts(
    picture: Path,
    fronts: Mapping[str, Mapping[Decoding, Mapping[str, float]]],
    points: Mapping[str, Mapping[str, float]],
    title: str,
) -> None:
    """Write the plot of several models' fronts on one axis.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(picture, draw_fronts(fronts, points, title))
