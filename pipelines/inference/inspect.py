"""The jobs of `cc inspect` for a dataset and for a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.checkpoints.foreign_unet import Reading, load_old_checkpoint
from colorcore.color.palette import load_palette
from colorcore.colorizing.onnx_facts import OnnxFileError, weights_in
from colorcore.colorizing.onnx_file import is_onnx, load_onnx
from colorcore.dataset.layout import CF_STEP, read_info
from colorcore.drawing.weight_stats import BINS, NEAR_ZERO, WeightStats, model_stats, stats_csv
from colorcore.drawing.weights_plot import draw_weights
from colorcore.models.decoding import completed
from colorcore.photos.write import DRAWN, save_picture, write_whole
from colorcore.recipes.recipe import RecipeError, parse_recipe
from colorcore.storage.location import open_store
from colorcore.storage.store import Store
from pipelines.errors import WrongCallError
from pipelines.inference.outputs import check_drawing, check_table, drawing
from pipelines.sharding.preview import preview_dataset
from pipelines.tracking.model import local_model

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_STEP = 10
"""Width of the classes of colourfulness shown; Hasler and Süsstrunk (2003, table 2)
call 15 slightly, 33 moderately, 59 quite and 109 extremely colourful."""
SHOWN_CLASSES = 11


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """A dataset in numbers; ``failed`` says which drawing could not be written, and why."""

    summary: dict[str, Any]
    refused: dict[str, int]
    colorfulness: dict[str, int]
    palette: dict[str, Any] | None
    picture: Path | None = None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in numbers.

    scores   validation scores, or {}; ``decoded``: with the decoding chosen at the end of training
    layers   number of parameters per layer, largest first
    weights  statistics of the whole model, then of each tensor, largest first
    picture  file of the histograms; the numbers are next to it as CSV
    failed   what of it could not be written, and why
    """

    summary: dict[str, Any]
    scores: dict[str, float]
    decoded: dict[str, float]
    layers: dict[str, int]
    weights: list[WeightStats]
    picture: Path | None = None
    failed: tuple[str, ...] = ()

    @property
    def not_finite(self) -> list[str]:
        """Names of tensors that contain NaN or infinite weights."""
        return [row.layer for row in self.weights[1:] if row.non_finite]


def inspect_dataset(
    dataset: str | Path, *, picture: Path | None = None, overwrite: bool = False, seed: int = 0
) -> DatasetFacts:
    """Counts, refusals, colourfulness and disk use of a dataset, from its ``dataset.json``.

    ``picture`` receives a contact sheet of random kept and refused photos. It may be an earlier
    one; any other file is replaced only with ``overwrite``.

    Raises:
        DatasetError: the dataset is missing or unfinished.
        StorageError: its store does not answer.
        WrongCallError: ``picture`` is another file.
    """
    check_drawing(picture, "--picture", overwrite=overwrite)
    store = open_store(dataset)
    info = read_info(store)
    summary = {
        **(info.counts or {}),
        "size": f"{info.settings.size} px",
        "min colorfulness": info.settings.min_colorfulness,
        "compression": info.settings.compress,
        **{f"{split} shards": size_text(size) for split, size in (info.disk or {}).items()},
        "fingerprint": info.fingerprint,
    }
    failed: list[str] = []
    if picture is not None:
        preview = preview_dataset(store, info, seed=seed)
        sheet = preview.sheet(f"{store.show()}   {info.fingerprint}")
        with drawing(picture, failed):
            save_picture(picture, sheet, software=DRAWN)
    return DatasetFacts(
        summary=summary,
        refused=dict(info.refused or {}),
        colorfulness=colorfulness_rows(info.colorfulness or ()),
        palette=_palette_facts(store),
        picture=picture,
        failed=tuple(failed),
    )


def colorfulness_rows(classes: Sequence[int]) -> dict[str, int]:
    """Photos per class of colourfulness, in steps of ``SHOWN_STEP``; the last class is open."""
    together = SHOWN_STEP // CF_STEP
    merged = [sum(classes[start : start + together]) for start in range(0, len(classes), together)]
    shown = [*merged[:SHOWN_CLASSES], sum(merged[SHOWN_CLASSES:])]
    labels = [f"{i * SHOWN_STEP} to {(i + 1) * SHOWN_STEP}" for i in range(SHOWN_CLASSES)]
    return dict(zip([*labels, f"above {SHOWN_CLASSES * SHOWN_STEP}"], shown, strict=True))


def inspect_model(
    model: str | Path, *, picture: Path | None = None, overwrite: bool = False
) -> ModelFacts:
    """Recipe, scores, parameters and weights per layer of a checkpoint, ONNX file or old .pt file.

    ``picture`` receives histograms of the weights; a .csv next to it receives the numbers. Both
    may be earlier ones; other files are replaced only with ``overwrite``.

    Raises:
        CheckpointError, OnnxFileError: ``model`` is neither.
        WrongCallError: ``picture`` does not end in .png, or is another file.
    """
    if picture is not None and picture.suffix.lower() != ".png":
        raise WrongCallError(f"expected a name ending in .png for the histograms, got {picture}")
    check_drawing(picture, "--picture", overwrite=overwrite)
    if picture is not None:
        check_table(_table(picture), stats_csv([]).decode(), overwrite=overwrite)
    named, model = model, local_model(model)
    here = open_store(model).local
    old = here is not None and here.is_file()
    if is_onnx(model):
        parameters, about, scores, decoded = _exported(model)
    else:
        parameters, about, scores, decoded = _old_model(Path(model)) if old else _own_model(model)
    layers: Counter[str] = Counter()
    for name, parameter in parameters.items():
        layers[name.rpartition(".")[0]] += parameter.numel()
    total = sum(layers.values())
    top = sum(count for _, count in layers.most_common(5))
    summary = {
        "parameters": total,
        "share of the five largest layers": f"{top / total:.0%}",
        **about,
    }
    weights = model_stats(parameters.items())
    failed: list[str] = []
    if picture is not None:
        title = (
            f"{named}   ·   {total:,} parameters, {top / total:.0%} in the five largest layers"
            f"   ·   share of the weights in each of {BINS} bins"
            f"   ·   near zero: at most {NEAR_ZERO:g}"
        )
        with drawing(picture, failed):
            write_whole(picture, draw_weights(weights, title))
            write_whole(_table(picture), stats_csv(weights))
    by_size = dict(layers.most_common())
    return ModelFacts(summary, scores, decoded, by_size, weights, picture, tuple(failed))


def _table(picture: Path) -> Path:
    return picture.with_suffix(".csv")


_Loaded: TypeAlias = "tuple[dict[str, Tensor], dict[str, Any], dict[str, float], dict[str, float]]"
"""A network's parameters, facts about it, its scores, and its scores with the chosen decoding."""


def _own_model(folder: str | Path) -> _Loaded:
    checkpoint = load_checkpoint(folder)
    network = checkpoint.model()
    about = {
        "trained on": f"{checkpoint.size} px samples of dataset {checkpoint.dataset}",
        "epochs": checkpoint.epoch,
        "decoding": str(completed(network, checkpoint.decoding)),
        **{key: value for key, value in checkpoint.recipe.flat().items() if value is not None},
    }
    return dict(network.named_parameters()), about, checkpoint.scores, checkpoint.decoded


def _old_model(path: Path) -> _Loaded:
    old = load_old_checkpoint(path)
    about = {"old checkpoint": old.about(), **{f"model.{k}": v for k, v in old.options.items()}}
    return dict(old.model(Reading()).named_parameters()), about, {}, {}


def _exported(place: str | Path) -> _Loaded:
    import torch

    colorizer = load_onnx(place)
    facts = colorizer.facts
    try:
        recipe = parse_recipe(facts.recipe, str(place)).flat()
    except RecipeError as error:
        raise OnnxFileError(f"the metadata of {place} is damaged: {error}") from error
    about = {
        "exported by": f"colorcore {facts.version}: {size_text(len(colorizer.data))}",
        "trained on": f"{facts.size} px samples of dataset {facts.dataset}",
        "decoding": str(facts.decoding),
        **{what: ", ".join(f"{k} {v}" for k, v in how.items()) for what, how in
           facts.changes.items()},
        "start weights": facts.licence,
        **{key: value for key, value in recipe.items() if value is not None},
    }  # fmt: skip
    weights = weights_in(colorizer.data)
    return {name: torch.from_numpy(each.copy()) for name, each in weights.items()}, about, {}, {}


def is_dataset(location: str | Path) -> bool:
    """Whether a location holds a dataset (rather than a model)."""
    return open_store(location).exists("dataset.json")


def _palette_facts(dataset: Store) -> dict[str, Any] | None:
    try:
        palette = load_palette(dataset.below("palette"))
    except FileNotFoundError:
        return None
    return {**palette.about, "picture": dataset.show("palette/palette.png")}


def size_text(size: int) -> str:
    """A number of bytes, for display: ``35.2 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
