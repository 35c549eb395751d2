"""What `cc eval` compares: models, other tools' outputs, and the two baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.lab import normalize_L
from colorcore.colorizing.onnx_file import is_onnx
from colorcore.decoding import Decoding
from colorcore.models import AnswersInBins
from colorcore.models.decoding import decode
from pipelines.evaluation.exported import ExportedBins, load_exported
from pipelines.inference.knobs import asked_decoding
from pipelines.tracking.model import local_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from colorcore.checkpoints.checkpoint import Checkpoint
    from colorcore.models.prediction import Prediction

ONLY_MODEL = "model"
"""Name of a model that is scored alone."""


class Answer(NamedTuple):
    """Colours for a batch of photos.

    lab         (B, 3, S, S) CIELAB float
    rgb         (B, 3, S, S) output of an RGB head, else None
    confidence  (B, 1, h, w) 0..1 of a bin model, else None
    """

    lab: Tensor
    rgb: Tensor | None = None
    confidence: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ModelSide:
    """A model with the decoding that it is scored with.

    name      in tables
    location  as given: a folder, runs:/… and so on
    """

    name: str
    location: str
    checkpoint: Checkpoint
    network: nn.Module
    decoding: Decoding
    device: str

    @property
    def predicts_bins(self) -> bool:
        """Whether it has a temperature."""
        return isinstance(self.network, AnswersInBins)

    @property
    def has_confidence(self) -> bool:
        """Whether it says how sure it is of its bins."""
        return self.predicts_bins and not isinstance(self.network, ExportedBins)

    @torch.inference_mode()
    def predict(self, lab: Tensor) -> Prediction:
        """The network's prediction for photos (B, 3, S, S), which it sees at its own size."""
        L, size = lab[:, :1], self.checkpoint.size
        if L.shape[-1] != size:
            L = F.interpolate(L, (size, size), mode="bilinear", antialias=True)
        prediction: Prediction = self.network(normalize_L(L))
        return prediction

    @torch.inference_mode()
    def decoded(self, lab: Tensor, prediction: Prediction, decoding: Decoding) -> Tensor:
        """LAB (B, 3, S, S) of a prediction: ab enlarged to the photos' size, with their own L."""
        ab = decode(self.network, prediction, decoding)
        return torch.cat([lab[:, :1], _enlarged(ab, lab)], dim=1)

    def answer(self, lab: Tensor) -> Answer:
        """The colours for photos (B, 3, S, S), of which only L is used."""
        prediction = self.predict(lab)
        rgb = prediction.get("rgb")
        return Answer(
            self.decoded(lab, prediction, self.decoding),
            None if rgb is None else _enlarged(rgb, lab),
            prediction.get("confidence") if self.has_confidence else None,
        )


def _enlarged(plane: Tensor, lab: Tensor) -> Tensor:
    if plane.shape[-2:] == lab.shape[-2:]:
        return plane
    return F.interpolate(plane, (lab.shape[-2], lab.shape[-1]), mode="bilinear")


def open_models(
    models: Sequence[str | Path],
    *,
    device: str,
    temperature: float | None,
    chroma: float | None,
    alone: bool,
) -> list[ModelSide]:
    """Load models, each with its own decoding or with the one that is asked for.

    Raises:
        CheckpointError, OnnxFileError: one is neither a checkpoint nor an exported file.
        WrongCallError: a model has no such setting.
    """
    names = [ONLY_MODEL] if alone else names_for([str(model) for model in models])
    sides = []
    for name, model in zip(names, models, strict=True):
        place = local_model(model)
        if is_onnx(place):
            checkpoint, network = load_exported(place, device)
        else:
            checkpoint = load_checkpoint(place)
            network = checkpoint.model(device)
        decoding = asked_decoding(network, checkpoint.decoding, temperature, chroma)
        sides.append(ModelSide(name, str(model), checkpoint, network, decoding, device))
    return sides


def names_for(locations: Sequence[str], taken: Sequence[str] = ("grey", "constant")) -> list[str]:
    """Short names: the last part of each location, or all of it where that is not unique."""
    plain = [location.partition("?")[0].rstrip("/") for location in locations]
    short = [
        name.rpartition("/")[2] or location for name, location in zip(plain, locations, strict=True)
    ]
    names: list[str] = []
    for location, name in zip(locations, short, strict=True):
        alone = short.count(name) == 1 and name not in taken
        fitting = name if alone else location.rstrip("/")
        number, unique = 2, fitting
        while unique in (*names, *taken):
            unique, number = f"{fitting} ({number})", number + 1
        names.append(unique)
    return names


def without_chroma(decoding: Decoding) -> Decoding:
    """The same temperature at chroma ×1."""
    return replace(decoding, chroma=1.0)


Answers = Mapping[str, Callable[["Tensor"], "Tensor"]]
"""Baselines by name: functions of true LAB."""
