"""The job of `cc export`: load, prune, export, check, quantize, measure, write."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.colorizing.network import NetworkColorizer
from colorcore.colorizing.onnx_facts import SUFFIX
from colorcore.colorizing.onnx_file import EXTRA, is_onnx
from colorcore.export.checks import TOLERANCE, cpu_ms, quality, require_equal
from colorcore.export.exported import exported_bytes, opened
from colorcore.export.graph import norms_left, onnx_graph, settings_of
from colorcore.export.prune import prune
from colorcore.export.quantize import quantized
from colorcore.photos.write import write_whole
from colorcore.storage.local import LocalStore
from colorcore.storage.locks import require_writable
from colorcore.training.events import Observer, StepEvent
from colorcore.training.fit import fit
from pipelines.errors import JobError, WrongCallError
from pipelines.export.photos import PHOTOS, ExportPhotos, photos_for
from pipelines.export.report import ONNX, TORCH, ExportReport, Variant
from pipelines.inference.knobs import device_for
from pipelines.inference.outputs import why_not_written
from pipelines.pairing.photos import is_dataset
from pipelines.tracking.model import local_model
from pipelines.training.job import prepare_job

if TYPE_CHECKING:
    from torch import nn

    from colorcore.checkpoints.checkpoint import Checkpoint
    from colorcore.colorizing.colorizer import Colorizer

SLOWER = 0.1
"""Learning rate of a fine-tune, as a factor of the recipe's: the network has been trained."""
EPOCHS = 3
"""Epochs of a fine-tune by default."""
NEEDED = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What becomes of the model.

    data     a dataset, or photos, for int8, pruning and scores; None: installed photographs
    int8     whether convolutions are quantized
    prune    share of the channels of the widest layers that are removed
    epochs   of the fine-tune after that
    photos   how many calibrate, and how many are scored, at most
    device   of the fine-tune
    """

    data: str | None = None
    int8: bool = False
    prune: float | None = None
    epochs: int = EPOCHS
    photos: int = PHOTOS
    device: str | None = None
    overwrite: bool = False


def export_model(
    model: str | Path,
    file: Path,
    settings: ExportSettings | None = None,
    *,
    on_progress: Callable[[int, int, str], None] = lambda _done, _total, _note: None,
) -> ExportReport:
    """Write a model as one ONNX file that takes L and returns ab.

    The graph in float32 is compared with the network in torch before anything is written. With
    ``prune`` the network loses channels and is trained for some more epochs with its own recipe at
    a tenth of the learning rate; with ``int8`` the graph is quantized. Both change colours: the
    report tells by how much.

    Raises:
        CheckpointError: ``model`` is not a checkpoint.
        WrongCallError: the file exists, has another suffix or cannot be written; a package is
            missing; int8 or prune lack their data; or there is nothing to prune.
        ExportError: the graph's colours differ from torch's.
        JobError: there are no photos, or the file cannot be written.
        DatasetError, StorageError: the dataset is damaged, or its store does not answer.
    """
    settings = settings or ExportSettings()
    _check(model, file, settings)
    checkpoint = load_checkpoint(local_model(model))
    network = checkpoint.model()
    photos = photos_for(settings.data, checkpoint.size, settings.photos)
    changes: dict[str, Any] = {}
    forms: dict[str, tuple[Colorizer, int]] = {}
    full = NetworkColorizer(network, checkpoint.size, checkpoint.decoding)
    forms[TORCH] = (full, sum(each.nbytes for each in checkpoint.weights.values()))
    name = ONNX
    if settings.prune is not None:
        network, changes["pruned"] = _pruned(checkpoint, network, settings, on_progress)
        name = f"pruned {settings.prune:.0%}"
    on_progress(0, 0, "exporting")
    values = settings_of(network, checkpoint.decoding)
    graph = onnx_graph(network, values)
    data = exported_bytes(checkpoint, network, graph, changes)
    made = opened(data)
    mine = NetworkColorizer(network, checkpoint.size, checkpoint.decoding)
    difference = require_equal(mine, made, photos.lightness())
    forms[name] = (made, len(data))
    if settings.int8:
        on_progress(0, 0, f"calibrating on {len(photos.calibration)} photos")
        small = quantized(graph, values, [lab[None, :1] for lab in photos.calibration])
        changes["int8"] = {"photos": len(photos.calibration)}
        data = exported_bytes(checkpoint, network, small, changes)
        forms[f"{name} int8" if settings.prune is not None else "int8"] = (opened(data), len(data))
    on_progress(0, 0, f"measuring on {len(photos.scored)} photos")
    report = ExportReport(
        file=file,
        model=str(model),
        difference=difference,
        tolerance=TOLERANCE,
        norms_left=norms_left(graph),
        photos=photos.about,
        size=checkpoint.size,
        variants=_measured(forms, photos),
        changes=changes,
    )
    try:
        write_whole(file, data)
    except OSError as error:
        raise JobError(why_not_written(file, error)) from error
    return report


def _check(model: str | Path, file: Path, settings: ExportSettings) -> None:
    """Refuse what is certain to fail, before anything slow."""
    from importlib.util import find_spec

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise WrongCallError(
            f"expected the packages that cc export needs, {', '.join(missing)} is missing; install "
            f"them with {EXTRA}"
        )
    if re.match(r"\w\w+:/", str(file)):  # a Path keeps one of the two slashes
        raise WrongCallError(
            f"expected a local file to write, got {file}; write it here, then copy it there"
        )
    if settings.device is not None and settings.prune is None:
        raise WrongCallError(
            "--device is for the training after --prune; an export runs on the CPU, so leave it out"
        )
    if is_onnx(str(model)):
        raise WrongCallError(f"expected a model to export, got {model}, which is exported already")
    if file.suffix.lower() != SUFFIX:
        raise WrongCallError(f"expected a name ending in {SUFFIX}, got {file}")
    require_writable(LocalStore(file.parent))
    if file.is_dir():
        raise WrongCallError(f"expected a file to write, found the folder {file}; add a name")
    if (file.exists() or file.is_symlink()) and not settings.overwrite:
        raise WrongCallError(
            f"expected a new file, found {file}; choose another name, or replace it with "
            "--overwrite"
        )
    if settings.int8 and settings.data is None:
        raise WrongCallError("expected photos to calibrate --int8 on; add --data DATASET")
    if settings.prune is not None:
        if not 0.0 < settings.prune < 1.0:
            raise WrongCallError(f"expected a share between 0 and 1, got --prune {settings.prune}")
        if settings.data is None or not is_dataset(settings.data):
            got = "" if settings.data is None else f", got {settings.data}, which is none"
            raise WrongCallError(
                f"expected a dataset to train the pruned model on{got}; add --data DATASET "
                "(from cc shard and cc priors)"
            )


def _measured(forms: dict[str, tuple[Colorizer, int]], photos: ExportPhotos) -> list[Variant]:
    colorizers = {name: colorizer for name, (colorizer, _) in forms.items()}
    cost = cpu_ms(colorizers, photos.lightness()[:1])
    found = quality(colorizers, photos.scored, TORCH)
    return [
        Variant(
            name,
            size,
            cost[name],
            found[name]["delta_e"],
            found[name]["psnr"],
            found[TORCH]["psnr"] - found[name]["psnr"],
        )
        for name, (_, size) in forms.items()
    ]


class _Steps(Observer):
    """Passes on how far a fine-tune is."""

    def __init__(self, on_progress: Callable[[int, int, str], None]) -> None:
        self._on_progress = on_progress

    def on_step(self, event: StepEvent) -> None:
        self._on_progress(event.step, event.total_steps, f"fine-tuning, loss {event.loss:.4g}")


def _pruned(
    checkpoint: Checkpoint,
    network: nn.Module,
    settings: ExportSettings,
    on_progress: Callable[[int, int, str], None],
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of the network without its least channels, trained for some more epochs."""
    assert settings.prune is not None  # noqa: S101 - for the type checker
    assert settings.data is not None  # noqa: S101
    small = copy.deepcopy(network)
    try:
        counts = prune(small, settings.prune)
    except ValueError as error:
        raise WrongCallError(f"--prune: {error}") from error
    recipe = checkpoint.recipe
    optim = {
        "lr": SLOWER * recipe.optim.lr,
        "warmup_epochs": None,
        "freeze_epochs": 0,
        # An encoder that was frozen has lost channels, too.
        "encoder_lr": recipe.optim.encoder_lr or 1.0,
    }
    train = {"epochs": settings.epochs, "patience": None, "eval_every": 1, "save_every": None}
    recipe = recipe.model_copy(
        update={
            "optim": recipe.optim.model_copy(update=optim),
            "train": recipe.train.model_copy(update=train),
        }
    )
    with tempfile.TemporaryDirectory(prefix="colorcore-prune-") as folder:
        job = prepare_job(settings.data, recipe, Path(folder), 1)
        fit(
            job.recipe,
            replace(job.data(), palette=checkpoint.palette),
            Path(folder),
            device=device_for(settings.device),
            observers=[_Steps(on_progress)],
            network=small,
        )
        small.load_state_dict(load_checkpoint(Path(folder)).weights)
    about = {
        "share": settings.prune,
        **counts,
        "epochs": settings.epochs,
        "dataset": job.fingerprint,
    }
    return small.eval(), about
