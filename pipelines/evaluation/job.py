"""The job of `cc eval`: scores of models and of other tools' outputs, compared with baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from colorcore.blocks.weight_files import WeightsError
from colorcore.color.lab import decode_lab
from colorcore.comparison.per_photo import PerPhoto
from colorcore.comparison.published import PublishedScores
from colorcore.drawing.triptychs import rows_of_photos
from colorcore.inference.evaluate import BASELINES, baselines, evaluation_for, statistics_for
from colorcore.photos.write import DRAWN, save_picture
from colorcore.recipes.advice import Advised, advised
from colorcore.scores.loss_history import LossHistory
from colorcore.scores.perceptual import PerceptualScores
from colorcore.scores.signs import find_signs
from pipelines.errors import JobError, WrongCallError
from pipelines.evaluation.details import Details
from pipelines.evaluation.equal import EqualScorer, KeptPhotos
from pipelines.evaluation.front import FrontScores, plot_front, plot_fronts
from pipelines.evaluation.page import is_report, write_report
from pipelines.evaluation.report import EvalReport, SideReport
from pipelines.evaluation.sides import Answer, ModelSide, names_for, open_models
from pipelines.inference.knobs import device_for
from pipelines.inference.outputs import check_drawing, check_page, drawing
from pipelines.pairing.outputs import OutputFolder
from pipelines.pairing.photos import DatasetPhotos, PhotoFiles, in_batches, is_dataset, stacked
from pipelines.sources.source import open_sources, show_locations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipelines.pairing.photos import Photo, PhotoSet

PICTURES = 16
MUCH = 1.3
"""Times the photos' mean CF up to which fronts are plotted."""


def evaluate_model(
    model: str | Path,
    photos: str | Path | Sequence[str],
    *,
    others: Sequence[str | Path] = (),
    against: Sequence[str] = (),
    picture: Path | None = None,
    html: Path | None = None,
    device: str | None = None,
    temperature: float | None = None,
    chroma: float | None = None,
    front: Path | None = None,
    overwrite: bool = False,
    perceptual: bool = False,
    fid: Path | None = None,
    lpips: Sequence[Path] = (),
) -> EvalReport:
    """Score a model on a dataset's validation split or on photos (folders, tars, patterns).

    ``others`` are more models, and ``against`` folders of other tools' outputs of the same photos,
    which are scored on the same photos: those that every folder has an output of. Photos are scored
    at the largest of the models' sizes; the first model's palette balances AuC for all, and its
    mean colour is the constant baseline.

    ``picture`` receives the first photos as grey | predicted | truth, ``html`` a report.
    ``temperature`` and ``chroma`` replace those of the checkpoints. ``front`` scores a grid of
    other settings as well and receives their plot. These files may be earlier ones; other files are
    replaced only with ``overwrite``, and photos never. ``perceptual`` adds the scores of
    :class:`PerceptualScores`, or the reason why their network is missing. ``fid`` is the file of
    FID's network, and ``lpips`` are those of LPIPS's, see :class:`PublishedScores`.

    Raises:
        CheckpointError, OnnxFileError, DatasetError: a model is missing, or the dataset is damaged.
        WrongCallError: ``photos`` does not exist, has smaller samples than a model's, or has a
            dataset among several places; a model has no such setting; a folder of ``against`` is
            missing, empty or the photos' own; ``front`` does not end in .png; a file of weights is
            missing or of another network; or there is a file to be written, and it is no earlier
            one.
        JobError: no photo could be read, or none that all sides have, or one of several places
            holds none.
    """
    if front is not None and front.suffix.lower() != ".png":
        raise WrongCallError(f"expected the name of a .png for --front, got {front}")
    places = [str(photos)] if isinstance(photos, str | Path) else list(photos)
    check_drawing(picture, "--picture", places, overwrite=overwrite)
    check_drawing(front, "--front", places, overwrite=overwrite)
    check_page(html, "--html", is_report, overwrite=overwrite)
    place = device_for(device)
    models = open_models(
        [model, *others],
        device=place,
        temperature=temperature,
        chroma=chroma,
        alone=not others and not against,
    )
    folders = _open_folders(against, places, [each.name for each in models])
    sides = (*BASELINES, *(each.name for each in models), *(each.name for each in folders))
    published = _published(sides, fid, lpips, place)
    size = max(each.checkpoint.size for each in models)
    photo_set = _photo_set(places, folders, size)
    job = _Job(
        models,
        folders,
        place,
        size,
        perceptual=perceptual,
        published=published,
        details=html is not None,
    )
    report = job.report
    report.picture, report.html, report.front_picture = picture, html, front
    fronts = FrontScores(models[0], job.palette) if front and not report.is_comparison else None
    for batch in in_batches(photo_set.photos(size)):
        job.score(batch)
        if fronts is not None:
            fronts.update(decode_lab(stacked(batch).to(place)))
    tally = photo_set.tally
    report.refused, report.damaged = dict(tally.refused), tally.damaged
    report.skipped, report.excluded = dict(tally.skipped), tally.excluded
    names = show_locations(places)
    if not len(job.table):
        raise JobError(_nothing(names, tally.describe(), folders))
    job.finish()
    if front is not None and fronts is not None:
        report.front = fronts.report(front)
        with drawing(front, report.failed):
            plot_front(report, report.front, f"{model} on {names}")
    if report.is_comparison:
        job.compare(names, front)
    if picture is not None:
        with drawing(picture, report.failed):
            save_picture(picture, job.first_pictures(), software=DRAWN)
    if html is not None and job.details is not None:
        report.details = job.details.facts(job.table)
        ranked = job.table.of(models[0].name, "delta_e2000")
        gallery = job.details.gallery(float(np.median(ranked)))
        report.details["shown"] = [
            {"rank": each.rank, "name": each.name, "scores": each.scores} for each in gallery
        ]
        with drawing(html, report.failed):
            write_report(html, report, gallery, names)
    return report


class _Job:
    """Scores batches of photos for all sides."""

    def __init__(
        self,
        models: Sequence[ModelSide],
        folders: Sequence[OutputFolder],
        device: str,
        size: int,
        *,
        perceptual: bool,
        published: PublishedScores | None,
        details: bool,
    ) -> None:
        first = models[0].checkpoint
        self.palette, self._device = first.palette, device
        self._models = {model.name: model for model in models}
        self._folders = {folder.name: folder for folder in folders}
        self._baselines = baselines(first.mean_ab)
        self._sides = (*self._models, *self._folders)
        names = (*BASELINES, *self._sides)
        self._evaluations = {name: evaluation_for(self.palette) for name in names}
        self._statistics = {
            name: statistics_for(self.palette, first.mean_ab) for name in self._sides
        }
        self.table = PerPhoto(names)
        self._kept = KeptPhotos()
        self._first: list[Photo] = []
        self.report = EvalReport({}, size)
        self.report.sides = [
            SideReport(each.name, "model", each.location, each.decoding, each.checkpoint.size)
            for each in models
        ] + [SideReport(each.name, "outputs", each.folder, outputs=each) for each in folders]
        self._perceptual = self._perceptual_scores(names) if perceptual else None
        self._published = published
        self.details = Details(models, list(self._folders), device) if details else None

    def _perceptual_scores(self, names: Sequence[str]) -> PerceptualScores | None:
        """Empty perceptual scores; None if their network is missing, with the reason reported."""
        try:
            return PerceptualScores({}, sides=names, device=self._device)
        except ValueError as error:
            self.report.left_out = str(error)
            return None

    def score(self, photos: Sequence[Photo]) -> None:
        """Score a batch."""
        lab = decode_lab(stacked(photos).to(self._device))
        answers = self._answers(photos, lab)
        rows = []
        for name, evaluation in self._evaluations.items():
            answer = answers[name]
            values = evaluation.update(answer.lab, lab)
            error = (answer.lab[:, :1] - lab[:, :1]).abs().mean((1, 2, 3))
            rows.append(torch.cat([values, error[:, None]], dim=1).cpu().numpy())
            if name in self._statistics:
                self._statistics[name].update(answer.lab, lab, answer.rgb)
        values_of_all: NDArray[np.float32] = np.stack(rows, axis=1)
        self.table.add([photo.name for photo in photos], values_of_all)
        if self._perceptual is not None:
            self._perceptual.add({name: each.lab for name, each in answers.items()}, lab)
        if self._published is not None:
            self._published.add({name: each.lab for name, each in answers.items()}, lab)
        if self.details is not None:
            self.details.update(photos, answers, lab, self.table, values_of_all)
        if self.report.is_comparison:
            self._kept.add(photos)
        self._first += photos[: max(0, PICTURES - len(self._first))]

    def _answers(self, photos: Sequence[Photo], lab: Tensor) -> Mapping[str, Answer]:
        answers = {name: Answer(answer(lab)) for name, answer in self._baselines.items()}
        answers |= {name: model.answer(lab) for name, model in self._models.items()}
        for name in self._folders:
            answers[name] = Answer(decode_lab(stacked(photos, name).to(self._device)))
        return answers

    def finish(self) -> None:
        """Compute the scores, their intervals, and the signs of each side."""
        report = self.report
        report.scores = {name: each.compute() for name, each in self._evaluations.items()}
        for name, scores in self._perceptual.compute().items() if self._perceptual else ():
            report.scores[name].update(scores)
        if self._published is not None:
            for name, scores in self._published.compute().items():
                report.scores[name].update(scores)
            report.caution = self._published.caution
        pairs = list(combinations(self._sides, 2)) or [(self._sides[0], name) for name in BASELINES]
        report.intervals, report.differences = self.table.compare(pairs)
        for side in report.sides:
            side.statistics = self._statistics[side.name].compute()
            if (model := self._models.get(side.name)) is None:
                error = self.table.of(side.name, "lightness_error").astype(float).mean()
                report.scores[side.name]["lightness_error"] = float(error)
                side.signs = tuple(Advised(sign, "") for sign in find_signs(side.statistics))
                continue
            history = LossHistory()
            history.load_state(model.checkpoint.history)
            side.statistics |= history.compute()
            side.signs = advised(find_signs(side.statistics), model.checkpoint.recipe)

    def compare(self, names: str, picture: Path | None) -> None:
        """Score the sides at equal colourfulness; with ``picture``, plot the models' fronts."""
        scorer = EqualScorer(
            self._models, list(self._folders), self.palette, self._device, search=bool(picture)
        )
        self.report.equal = scorer.score(self._kept)
        if picture is None:
            return
        for name, model in self._models.items():
            front = FrontScores(model, self.palette)
            for photos in self._kept.batches():
                front.update(decode_lab(stacked(photos).to(self._device)))
            self.report.fronts[name] = front.compute()
        points = {name: self.report.scores[name] for name in (*BASELINES, *self._folders)}
        # What is far more colourful than the photos would squeeze the rest into a corner.
        most = MUCH * points["grey"]["cf_true"]
        shown = {
            name: {each: row for each, row in front.items() if row["cf"] <= most}
            for name, front in self.report.fronts.items()
        }
        photos_of_front = len(self._kept.photos)
        title = f"{names}: {photos_of_front:,} photos at {self.report.size} px"
        with drawing(picture, self.report.failed):
            plot_fronts(picture, shown, points, title)

    def first_pictures(self) -> NDArray[np.uint8]:
        """The first photos as grey | each side | truth."""
        lab = decode_lab(stacked(self._first).to(self._device))
        answers = self._answers(self._first, lab)
        return rows_of_photos([answers[name].lab for name in self._sides], lab)


def _published(
    names: Sequence[str], fid: Path | None, lpips: Sequence[Path], device: str
) -> PublishedScores | None:
    """Scores by weights of the user's; None without any.

    Raises:
        WrongCallError: a file is missing, or holds something else.
    """
    if fid is None and not lpips:
        return None
    try:
        return PublishedScores(names, fid=fid, lpips=lpips, device=device)
    except WeightsError as error:
        raise WrongCallError(str(error)) from error


def _open_folders(
    against: Sequence[str], places: Sequence[str], models: Sequence[str]
) -> list[OutputFolder]:
    """Open the folders of outputs.

    Raises:
        WrongCallError: one is missing, empty, or the photos themselves.
    """
    names = names_for(list(against), ("grey", "constant", *models))
    own = {source.store.show(source.name) for source in open_sources(places)} if against else set()
    folders = []
    for name, folder in zip(names, against, strict=True):
        opened = OutputFolder.open(name, folder)
        if opened.location in own:
            raise WrongCallError(
                f"expected another tool's outputs for --against, got the photos {folder} "
                "themselves; name the folder of its colourized photos"
            )
        folders.append(opened)
    return folders


def _photo_set(places: Sequence[str], folders: Sequence[OutputFolder], size: int) -> PhotoSet:
    """The photos of a dataset, or of other sources.

    Raises:
        WrongCallError: see :func:`evaluate_model`.
    """
    dataset = next(filter(is_dataset, places), None)
    if dataset is None:
        return PhotoFiles(open_sources(places), folders)
    if len(places) > 1:
        raise WrongCallError(
            f"expected one dataset, or photos, got the dataset {dataset} among "
            f"{len(places)} places; score it by itself"
        )
    photos = DatasetPhotos(dataset, folders)
    if photos.size < size:
        raise WrongCallError(
            f"expected samples of at least {size} px, on which the model was "
            f"trained, found {photos.size} px in {dataset}; shard the photos with "
            f"--size {size}"
        )
    return photos


def _nothing(names: str, found: str, folders: Sequence[OutputFolder]) -> str:
    """Why no photo was scored, and what to do."""
    for folder in folders:
        if folder.matches.outputs or not (folder.matches.missing or folder.matches.ambiguous):
            continue
        return (
            f"expected outputs in {folder.folder} named like the photos in {names}, "
            f"found none ({found}); --against needs the same names, whatever their suffix"
        )
    return f"expected readable photos, found none in {names} ({found}); check the path"
