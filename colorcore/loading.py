"""From the place of a model to a colorizer: a checkpoint's folder or an exported ONNX file.

Models in MLflow (``runs:/…``, ``models:/…``) are fetched by :mod:`pipelines.tracking.model` first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.colorizing.onnx_file import is_onnx, load_onnx
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer


def load_colorizer(place: str | Path | Store, device: str | None = None) -> Colorizer:
    """The colorizer of a checkpoint or an ONNX file, here or in an object store.

    A checkpoint is its folder, one that contains ``best``, or a shipped name. ``device`` such as
    "cuda:1"; None: the GPU if there is one, and the CPU for an ONNX file.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        OnnxFileError: an ONNX file is missing, damaged, or none that ``cc export`` wrote.
        StorageError: a remote store does not answer, or refuses.
        TypeError: the place is neither text, nor a path, nor a store.
        ValueError: the place is empty, or an ONNX file cannot run on the device.
    """
    if not isinstance(place, str | Path | Store):
        raise TypeError(f"expected a model's name, folder or file, got {type(place).__name__}")
    if not str(place):
        raise ValueError("expected a model, got an empty name")
    if is_onnx(place):
        return load_onnx(place, device)
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
