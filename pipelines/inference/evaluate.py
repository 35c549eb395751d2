"""The job of `cc eval`: a checkpoint's scores on photos, compared with the baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.lab import decode_lab
from colorcore.dataset.layout import read_info
from colorcore.dataset.loader import val_batches
from colorcore.dataset.sample import lab_of
from colorcore.dataset.samples import Samples
from colorcore.drawing.front_plot import draw_front
from colorcore.drawing.triptychs import triptychs
from colorcore.inference.decoding_search import (
    COLOR,
    FIDELITY,
    WIDER,
    grid,
    scoring,
    sweep,
    undominated,
)
from colorcore.inference.equal_colorfulness import Reading, read_at_shares
from colorcore.inference.evaluate import (
    BASELINES,
    Watcher,
    baselines,
    evaluation_for,
    score_with_baselines,
    statistics_for,
)
from colorcore.inference.predict import predict_lab
from colorcore.models.decoding import Decoding, completed, own_decoding
from colorcore.photos.refusal import PhotoLimits, PhotoRefused
from colorcore.photos.write import DRAWN, save_picture, write_whole
from colorcore.recipes.advice import Advised, advised
from colorcore.scores.loss_history import LossHistory
from colorcore.scores.perceptual import PerceptualScores
from colorcore.scores.signs import find_signs
from colorcore.storage.location import open_store
from pipelines.device import best_device
from pipelines.errors import JobError, WrongCallError
from pipelines.inference.knobs import asked_decoding
from pipelines.inference.outputs import check_drawing, drawing
from pipelines.sources.reading import photos_of, refused_tar
from pipelines.sources.source import Source, describe, open_sources, show_locations
from pipelines.tracking.model import local_model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.checkpoints.checkpoint import Checkpoint

BATCH = 32
PICTURES = 16


@dataclass(slots=True)
class EvalReport:
    """Result of `cc eval`.

    scores      metrics of "grey", "constant" and "model"
    left_out    why the perceptual scores that were asked for are missing; "" if they are not
    decoding    the decoding of "model"
    refused     number of refused photos, by reason
    damaged     damaged tars, each with what is wrong
    skipped     files that are not photos, by kind
    statistics  values from which signs are found: colours on these photos, and the losses of the
                training up to this checkpoint
    failed      drawings that could not be written, and why
    """

    scores: dict[str, dict[str, float]]
    size: int
    decoding: Decoding
    refused: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    picture: Path | None = None
    statistics: dict[str, float] = field(default_factory=dict)
    signs: tuple[Advised, ...] = ()
    front: FrontReport | None = None
    failed: list[str] = field(default_factory=list)
    left_out: str = ""


@dataclass(slots=True)
class FrontReport:
    """The scores of every setting of temperature and chroma.

    optimal  settings that no other one dominates, i.e. is at least as good in PSNR, ΔE2000,
             balanced AuC and colourfulness gap, and better in one of them
    marked   the model's own setting ("default"), the checkpoint's ("stored") and the command
             line's ("asked")
    equal    the scores at shares of the photos' mean colourfulness, for comparing models; None
             where the model cannot be read, because it is never so vivid or never so pale
    """

    scores: dict[Decoding, dict[str, float]]
    optimal: list[Decoding]
    marked: dict[str, Decoding]
    picture: Path
    equal: dict[float, Reading | None]


def evaluate_model(
    model: str | Path,
    photos: str | Path | Sequence[str],
    *,
    picture: Path | None = None,
    device: str | None = None,
    temperature: float | None = None,
    chroma: float | None = None,
    front: Path | None = None,
    overwrite: bool = False,
    perceptual: bool = False,
) -> EvalReport:
    """Score a checkpoint on a dataset's validation split or on photos (folders, tars, patterns).

    ``picture`` receives the first photos as grey | predicted | truth. ``temperature`` and
    ``chroma`` replace those of the checkpoint. ``front`` scores a grid of other settings as well
    and receives their plot. Both files may be earlier ones; other files are replaced only with
    ``overwrite``, and photos never. ``perceptual`` adds the scores of :class:`PerceptualScores`, or
    the reason why their network is missing.

    Raises:
        CheckpointError, DatasetError: the checkpoint is missing, or the dataset is damaged.
        WrongCallError: ``photos`` does not exist, has smaller samples than the model's, or has a
            dataset among several places; the model has no such setting; ``front`` does not end in
            .png; or there is a file to be written, and it is no earlier one.
        JobError: no photo could be read, or one of several places holds none.
    """
    if front is not None and front.suffix.lower() != ".png":
        raise WrongCallError(f"expected the name of a .png for --front, got {front}")
    places = [photos] if isinstance(photos, str | Path) else list(photos)
    check_drawing(picture, "--picture", places, overwrite=overwrite)
    check_drawing(front, "--front", places, overwrite=overwrite)
    checkpoint = load_checkpoint(local_model(model))
    network = checkpoint.model(place := device or best_device())
    decoding = asked_decoding(network, checkpoint.decoding, temperature, chroma)
    names = show_locations(places)
    read = _Photos()
    if dataset := next((each for each in places if open_store(each).exists("dataset.json")), None):
        if len(places) > 1:
            raise WrongCallError(
                f"expected one dataset, or photos, got the dataset {dataset} among "
                f"{len(places)} places; score it by itself"
            )
        size = read_info(dataset).settings.size
        if size < checkpoint.size:
            raise WrongCallError(
                f"expected samples of at least {checkpoint.size} px, on which the model was "
                f"trained, found {size} px in {dataset}; shard the photos with "
                f"--size {checkpoint.size}"
            )
        batches = _reduced(val_batches(Samples(dataset, "val"), BATCH), checkpoint.size)
    else:
        batches = read.batches(open_sources(places), checkpoint.size)
    shown: list[Tensor] = []
    report = EvalReport({}, checkpoint.size, decoding, picture=picture)
    statistics = statistics_for(checkpoint.palette, checkpoint.mean_ab)
    features = _perceptual_scores(checkpoint, place, report) if perceptual else None
    watchers = _Watchers([statistics, *([features] if features else [])])
    kept = _keep_first(batches, shown)
    try:
        if front is None:
            report.scores = score_with_baselines(
                network,
                kept,
                checkpoint.palette,
                checkpoint.mean_ab,
                device=place,
                decoding=decoding,
                statistics=watchers,
            )
        else:
            report.front = _front(checkpoint, network, kept, place, report, watchers, front)
    except ValueError as error:
        raise JobError(
            f"expected readable photos, found none in {names} ({read.describe()}); check the path"
        ) from error
    for name, scores in features.compute().items() if features else ():
        report.scores[name].update(scores)
    report.refused, report.damaged = dict(read.refused), read.damaged
    report.skipped = dict(read.skipped)
    if report.front is not None:
        with drawing(report.front.picture, report.failed):
            _plot(report, report.front, f"{model} on {names}")
    if picture is not None:
        lab = decode_lab(torch.cat(shown)[:PICTURES].to(place))
        pictures = triptychs(predict_lab(network, lab, decoding), lab)
        with drawing(picture, report.failed):
            save_picture(picture, pictures, software=DRAWN)
    history = LossHistory()
    history.load_state(checkpoint.history)
    report.statistics = {**statistics.compute(), **history.compute()}
    report.signs = advised(find_signs(report.statistics), checkpoint.recipe)
    return report


def _perceptual_scores(
    checkpoint: Checkpoint, place: str, report: EvalReport
) -> PerceptualScores | None:
    """Empty perceptual scores; None if their network is missing, with the reason in the report."""
    try:
        return PerceptualScores(baselines(checkpoint.mean_ab), device=place)
    except ValueError as error:
        report.left_out = str(error)
        return None


class _Watchers:
    """Passes a model's predictions on to several watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def update(self, lab_pred: Tensor, lab_true: Tensor, rgb: Tensor | None = None) -> None:
        for watcher in self._watchers:
            watcher.update(lab_pred, lab_true, rgb)


def _front(
    checkpoint: Checkpoint,
    network: nn.Module,
    batches: Iterator[Tensor],
    place: str,
    report: EvalReport,
    statistics: Watcher,
    picture: Path,
) -> FrontReport:
    """Score the grid, the baselines and the report's decoding in one pass; fill report.scores.

    ``statistics`` receives the predictions with the report's decoding.
    """
    marked = {"default": own_decoding(network), "stored": completed(network, checkpoint.decoding)}
    if report.decoding != marked["stored"]:
        marked["asked"] = report.decoding
    answers = baselines(checkpoint.mean_ab)
    evaluations = {name: evaluation_for(checkpoint.palette) for name in answers}
    for name, answer in answers.items():
        batches = scoring(batches, evaluations[name], answer, place)
    settings = grid(network, marked.values())
    also = {report.decoding: statistics}
    swept = sweep(network, batches, checkpoint.palette, settings, device=place, also=also)
    scores = {setting: evaluation.compute() for setting, evaluation in swept.items()}
    report.scores = {name: evaluation.compute() for name, evaluation in evaluations.items()}
    report.scores["model"] = scores[report.decoding]
    optimal = undominated(scores, (*FIDELITY, COLOR))
    return FrontReport(scores, optimal, marked, picture, read_at_shares(scores))


def _plot(report: EvalReport, front: FrontReport, title: str) -> None:
    scores = {name: report.scores[name] for name in BASELINES}
    photos = int(report.scores["model"]["photos"])
    title = f"{title}: {photos:,} photos at {report.size} px"
    # Settings that nobody would choose would squeeze the others into a corner.
    shown = {
        setting: row
        for setting, row in front.scores.items()
        if setting.chroma not in WIDER or setting in front.marked.values()
    }
    write_whole(front.picture, draw_front(shown, scores, front.marked, title))


def _reduced(batches: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Stored LAB (B, 3, H, W) uint8, downsampled to ``size`` if it is larger."""
    for batch in batches:
        if batch.shape[-1] == size:
            yield batch
        else:
            small = F.interpolate(batch.float(), size=(size, size), mode="bilinear", antialias=True)
            yield small.round().clamp(0, 255).to(torch.uint8)


def _keep_first(batches: Iterator[Tensor], shown: list[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        if sum(map(len, shown)) < PICTURES:
            shown.append(batch)
        yield batch


class _Photos:
    """Reads photos as a model's input, and counts what cannot be read."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.damaged: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()

    def batches(self, sources: Sequence[Source], size: int) -> Iterator[Tensor]:
        """Stored LAB of each readable photo's centre square; no photo is too pale."""
        import numpy as np

        limits = PhotoLimits()
        rows = []
        for photo in photos_of(sources, limits.max_bytes, self.skipped):
            try:
                rows.append(lab_of(photo.data(), size, limits))
            except PhotoRefused as refusal:
                if (tar := refused_tar(sources, photo)) is not None:
                    self.damaged[tar] = refusal.detail
                else:
                    self.refused[refusal.reason.value] += 1
            if len(rows) == BATCH:
                yield torch.from_numpy(np.stack(rows))
                rows = []
        if rows:
            yield torch.from_numpy(np.stack(rows))

    def describe(self) -> str:
        """What there was instead of photos."""
        found = [f"refused: {count} {reason}" for reason, count in self.refused.items()]
        found += [f"{tar}: {detail}" for tar, detail in list(self.damaged.items())[:1]]
        found += [f"skipped: {describe(self.skipped)}"] if self.skipped else []
        return "; ".join(found) or "no files"
