"""The job of `cc inspect`: what is in a dataset, or what is in a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorcore.checkpoint import load_checkpoint
from colorcore.dataset import CF_STEP, read_info
from colorcore.palette import load_palette
from colorcore.pictures import save_picture
from colorcore.storage import Store, open_store
from pipelines.look import look_at_dataset

SHOWN_STEP = 10
"""Width of the classes of colourfulness that are shown; Hasler and Süsstrunk (2003, table 2)
call 15 slightly, 33 moderately, 59 quite and 109 extremely colourful."""
SHOWN_CLASSES = 11


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """A dataset in numbers."""

    summary: dict[str, Any]
    refused: dict[str, int]
    colorfulness: dict[str, int]
    palette: dict[str, Any] | None
    picture: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in numbers; layers maps a layer's name to its parameters, largest first."""

    summary: dict[str, Any]
    scores: dict[str, float]
    layers: dict[str, int]


def inspect_dataset(
    dataset: str | Path, *, picture: Path | None = None, seed: int = 0
) -> DatasetFacts:
    """Counts, reasons, colourfulness and disk use of a dataset, from its ``dataset.json``.

    ``picture`` is where a contact sheet of random kept and refused photos is written.

    Raises:
        DatasetError: there is no finished dataset.
        StorageError: its store does not answer.
    """
    store = open_store(dataset)
    info = read_info(store)
    summary = {
        **(info.counts or {}),
        "size": f"{info.settings.size} px",
        "min colorfulness": info.settings.min_colorfulness,
        "compression": info.settings.compress,
        **{f"{split} shards": _bytes(size) for split, size in (info.disk or {}).items()},
        "fingerprint": info.fingerprint,
    }
    if picture is not None:
        look = look_at_dataset(store, info, seed=seed)
        save_picture(picture, look.sheet(f"{store.show()}   {info.fingerprint}"))
    return DatasetFacts(
        summary=summary,
        refused=dict(info.refused or {}),
        colorfulness=colorfulness_rows(info.colorfulness or ()),
        palette=_palette_facts(store),
        picture=picture,
    )


def colorfulness_rows(classes: Sequence[int]) -> dict[str, int]:
    """Photos by colourfulness in steps of ``SHOWN_STEP``, the last class open."""
    together = SHOWN_STEP // CF_STEP
    merged = [sum(classes[start : start + together]) for start in range(0, len(classes), together)]
    shown = [*merged[:SHOWN_CLASSES], sum(merged[SHOWN_CLASSES:])]
    labels = [f"{i * SHOWN_STEP} to {(i + 1) * SHOWN_STEP}" for i in range(SHOWN_CLASSES)]
    return dict(zip([*labels, f"above {SHOWN_CLASSES * SHOWN_STEP}"], shown, strict=True))


def inspect_model(model: Path) -> ModelFacts:
    """Recipe, scores and parameters by layer of a checkpoint.

    Raises:
        CheckpointError: it is none.
    """
    checkpoint = load_checkpoint(model)
    layers: Counter[str] = Counter()
    for name, parameter in checkpoint.model().named_parameters():
        layers[name.rpartition(".")[0]] += parameter.numel()
    total = sum(layers.values())
    top = sum(count for _, count in layers.most_common(5))
    summary = {
        "parameters": total,
        "share of the five largest layers": f"{top / total:.0%}",
        "trained on": f"{checkpoint.size} px samples of dataset {checkpoint.dataset}",
        "epochs": checkpoint.epoch,
        **{key: value for key, value in checkpoint.recipe.flat().items() if value is not None},
    }
    return ModelFacts(summary, checkpoint.scores, dict(layers.most_common()))


def is_dataset(location: str | Path) -> bool:
    """Whether `cc inspect` takes a folder for a dataset."""
    return open_store(location).exists("dataset.json")


def _palette_facts(dataset: Store) -> dict[str, Any] | None:
    try:
        palette = load_palette(dataset.below("palette"))
    except FileNotFoundError:
        return None
    return {**palette.about, "picture": dataset.show("palette/palette.png")}


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
