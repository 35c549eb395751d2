"""From the place of a model to a colorizer: a checkpoint's folder, here or in an object store.

Models in MLflow (``runs:/…``, ``models:/…``) are fetched by :mod:`pipelines.tracking.model` first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer
    from colorcore.storage.store import Store


def load_colorizer(place: str | Path | Store, device: str | None = None) -> Colorizer:
    """The colorizer of a checkpoint: its folder, one that contains ``best``, or a shipped name.

    ``device`` such as "cuda:1"; None: the GPU if there is one.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        StorageError: a remote store does not answer, or refuses.
    """
    from colorcore.checkpoints.checkpoint import load_checkpoint
    from colorcore.colorizing.network import NetworkColorizer

    checkpoint = load_checkpoint(place)
    return NetworkColorizer(
        checkpoint.model(), checkpoint.size, checkpoint.decoding, device or best_device()
    )


def best_device() -> str:
    """The GPU if there is one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
