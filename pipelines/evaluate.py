"""The job of `cc eval`: a checkpoint's scores on a dataset or a folder, beside the baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from colorcore.checkpoint import load_checkpoint
from colorcore.dataset import read_info
from colorcore.evaluate import predict_lab, score_with_baselines
from colorcore.lab import decode_lab
from colorcore.loader import Samples, val_batches
from colorcore.pictures import save_picture, triptychs
from colorcore.refusal import PhotoLimits, PhotoRefused
from colorcore.sample import lab_of
from colorcore.storage import open_store
from pipelines.device import best_device
from pipelines.errors import JobError, WrongCallError
from pipelines.sources import photos_of

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 32
PICTURES = 16


@dataclass(slots=True)
class EvalReport:
    """scores maps "grey", "constant" and "model" to their metrics; refused photos by reason."""

    scores: dict[str, dict[str, float]]
    size: int
    refused: dict[str, int] = field(default_factory=dict)
    picture: Path | None = None


def evaluate_model(
    model: Path, photos: str | Path, *, picture: Path | None = None, device: str | None = None
) -> EvalReport:
    """Score a checkpoint on a dataset's validation split or on a folder of photos.

    ``picture`` is where grey | predicted | truth of the first photos is written.

    Raises:
        CheckpointError, DatasetError: no checkpoint, or a damaged dataset.
        WrongCallError: ``photos`` does not exist, or its samples are of another size.
        JobError: no photo could be read.
    """
    checkpoint = load_checkpoint(model)
    network = checkpoint.model(place := device or best_device())
    refused: Counter[str] = Counter()
    if open_store(photos).exists("dataset.json"):
        size = read_info(photos).settings.size
        if size != checkpoint.size:
            raise WrongCallError(
                f"the model was trained on {checkpoint.size} px samples, {photos} holds {size} px"
            )
        batches = val_batches(Samples(photos, "val"), BATCH)
    else:
        batches = _folder_batches(photos, checkpoint.size, refused)
    shown: list[Tensor] = []
    try:
        scores = score_with_baselines(
            network,
            _keep_first(batches, shown),
            checkpoint.palette,
            checkpoint.mean_ab,
            device=place,
        )
    except ValueError as error:
        raise JobError(f"found no readable photos in {photos}: {dict(refused)}") from error
    if picture is not None:
        lab = decode_lab(torch.cat(shown)[:PICTURES].to(place))
        save_picture(picture, triptychs(predict_lab(network, lab), lab))
    return EvalReport(scores, checkpoint.size, dict(refused), picture)


def _keep_first(batches: Iterator[Tensor], shown: list[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        if sum(map(len, shown)) < PICTURES:
            shown.append(batch)
        yield batch


def _folder_batches(folder: str | Path, size: int, refused: Counter[str]) -> Iterator[Tensor]:
    """Stored LAB of every readable photo of a folder, its centre square, no colour filter."""
    import numpy as np

    limits = PhotoLimits()
    rows = []
    for photo in photos_of([folder], limits.max_bytes):
        try:
            rows.append(lab_of(photo.data(), size, limits))
        except PhotoRefused as refusal:
            refused[refusal.reason.value] += 1
        if len(rows) == BATCH:
            yield torch.from_numpy(np.stack(rows))
            rows = []
    if rows:
        yield torch.from_numpy(np.stack(rows))
