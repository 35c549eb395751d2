"""Colorization as a library: colour maths, photos, samples, palette, models, losses, training.

``colorcore.load`` opens a model, and ``shard``, ``priors``, ``train`` and ``evaluate`` are the
functions under the commands of these names. All are imported when they are first used: some need
torch, and the jobs need Ray and MLflow, without which everything else here works. This file is the
only one in the package that knows the floors above it; see ARCHITECTURE.md for the map.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from colorcore.colorizing.colorizer import Colorizer as Colorizer
    from colorcore.dataset.layout import ShardSettings as ShardSettings
    from colorcore.recipes.recipe import load_recipe as load_recipe
    from colorcore.stock_pipeline import webdataset as webdataset
    from pipelines.evaluation.job import evaluate_model as evaluate
    from pipelines.priors import make_palette as priors
    from pipelines.sharding.job import shard as shard
    from pipelines.training.driver import train as train

__version__ = "0.1.0"
__all__ = [
    "Colorizer",
    "ShardSettings",
    "evaluate",
    "load",
    "load_recipe",
    "priors",
    "shard",
    "train",
    "webdataset",
]

_PLACES = {
    "Colorizer": "colorcore.colorizing.colorizer:Colorizer",
    "ShardSettings": "colorcore.dataset.layout:ShardSettings",
    "evaluate": "pipelines.evaluation.job:evaluate_model",
    "load_recipe": "colorcore.recipes.recipe:load_recipe",
    "priors": "pipelines.priors:make_palette",
    "shard": "pipelines.sharding.job:shard",
    "train": "pipelines.training.driver:train",
    "webdataset": "colorcore.stock_pipeline:webdataset",
}
_IN_MLFLOW = ("runs:/", "models:/")


def load(
    model: str | Path, *, device: str | None = None, tracking_uri: str | None = None
) -> Colorizer:
    """A model ready to colourize: ``colorcore.load("start").colorize(image)``.

    Args:
        model: a checkpoint's folder or one that contains ``best``, here or in an object store
            (``s3://…``); an ONNX file that `cc export` wrote, which runs without torch;
            ``runs:/RUN_ID`` or ``models:/NAME@champion``, a model in MLflow; or
            ``start``, the model that ships with colorcore.
        device: such as "cuda:1"; None: the GPU if there is one, and the CPU for an ONNX file.
        tracking_uri: where MLflow keeps the model; None: as `cc colorize` finds it, from
            ``MLFLOW_TRACKING_URI`` or in ``./mlflow.db``.

    Raises:
        CheckpointError: there is no model, or it is damaged.
        OnnxFileError: an ONNX file is missing, damaged, or none that `cc export` wrote.
        JobError: MLflow does not answer, or has no such model.
        StorageError: an object store does not answer, or refuses.
    """
    from colorcore.loading import load_colorizer

    if str(model).startswith(_IN_MLFLOW):
        from pipelines.tracking.model import local_model

        model = local_model(model, tracking_uri)
    return load_colorizer(model, device)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, inside = _PLACES[name].partition(":")
    return getattr(import_module(module), inside)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
