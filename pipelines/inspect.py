"""The job of `cc inspect`: what is in a dataset, or what is in a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from colorcore.checkpoint import load_checkpoint
from colorcore.dataset import SPLITS, iterate_index, read_info
from colorcore.lab import decode_lab, lab_to_rgb
from colorcore.loader import Samples
from colorcore.palette import load_palette
from colorcore.pictures import contact_sheet, save_picture

CF_EDGES = (0, 15, 33, 45, 59, 82, 109)
"""Colourfulness classes: the means of Hasler and Süsstrunk's ratings (2003, table 2)."""
SHEET = (8, 8)


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """A dataset in numbers."""

    summary: dict[str, Any]
    refused: dict[str, int]
    colorfulness: dict[str, int]
    palette: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in numbers; layers maps a layer's name to its parameters, largest first."""

    summary: dict[str, Any]
    scores: dict[str, float]
    layers: dict[str, int]


def inspect_dataset(dataset: Path, *, picture: Path | None = None, seed: int = 0) -> DatasetFacts:
    """Counts, reasons, colourfulness and disk use of a dataset; reads its indexes.

    ``picture`` is where a contact sheet of random kept samples is written.

    Raises:
        DatasetError: there is no finished dataset.
    """
    info = read_info(dataset)
    edges = [*CF_EDGES, np.inf]
    histogram = np.zeros(len(CF_EDGES), np.int64)
    disk: Counter[str] = Counter()
    for table in iterate_index(dataset, ["colorfulness"]):
        histogram += np.histogram(table["colorfulness"].to_numpy(), edges)[0]
    for split in SPLITS:
        disk[split] = sum(path.stat().st_size for path in (dataset / split).glob("*.tar"))
    counts = info.counts or {}
    summary = {
        **counts,
        "size": f"{info.settings.size} px",
        "min colorfulness": info.settings.min_colorfulness,
        **{f"{split} shards": _bytes(size) for split, size in disk.items()},
        "fingerprint": info.fingerprint,
    }
    labels = [f"{low} to {high:g}" for low, high in pairwise(edges)]
    if picture is not None:
        save_picture(picture, _sheet(Samples(dataset, "train"), seed))
    return DatasetFacts(
        summary=summary,
        refused=dict(info.refused or {}),
        colorfulness=dict(zip(labels, histogram.tolist(), strict=True)),
        palette=_palette_facts(dataset),
    )


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


def is_dataset(path: Path) -> bool:
    """Whether `cc inspect` takes a folder for a dataset."""
    return (path / "dataset.json").is_file()


def _palette_facts(dataset: Path) -> dict[str, Any] | None:
    try:
        palette = load_palette(dataset / "palette")
    except FileNotFoundError:
        return None
    return {**palette.about, "picture": dataset / "palette" / "palette.png"}


def _sheet(samples: Samples, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows, columns = SHEET
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(samples))[: rows * columns]
    rgb = lab_to_rgb(decode_lab(samples.read(np.sort(chosen))))
    return contact_sheet(rgb, columns=columns)


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
