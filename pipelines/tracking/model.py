"""A run's model in MLflow: a pyfunc that photos go into and come out of colourized.

It is a folder of the checkpoint `best`, the package colorcore and
:mod:`pipelines.tracking.model_code`, with
a signature, an input example and pinned requirements. Nothing in it is pickled, and this project
reads only the checkpoint of one, never the code beside it.
"""

from __future__ import annotations

import tempfile
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import JobError
from pipelines.tracking.mlflow_env import QUIET, environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from numpy.typing import NDArray

MODEL = "model"
"""The name of a run's model."""
CHECKPOINT = "checkpoint"
_CODE = Path(__file__).with_name("model_code.py")
_PACKAGES = (
    "mlflow", "kornia", "numpy", "opencv-python-headless", "pillow", "pyarrow", "pydantic",
    "safetensors", "scikit-learn", "scipy", "tomli-w", "torch",
)  # fmt: skip
"""What the package colorcore needs to predict."""
_SCHEMES = ("runs:/", "models:/")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder can be logged as a model."""
    return (folder / "checkpoint.json").is_file()


def log_model(client: MlflowClient, run_id: str, checkpoint: Path) -> str:
    """Log a checkpoint folder as the run's model, unless it has one; returns the model's id."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    if run.outputs is not None and run.outputs.model_outputs:
        return str(run.outputs.model_outputs[-1].model_id)
    experiment = run.info.experiment_id
    asked = f"source_run_id = '{run_id}' AND name = '{MODEL}'"
    begun = client.search_logged_models([experiment], asked)  # by a try that then failed
    model = begun[0] if begun else client.create_logged_model(experiment, MODEL, run_id)
    with tempfile.TemporaryDirectory(prefix="colorcore-model-") as folder:
        pack_model(checkpoint, Path(folder) / MODEL, run_id=run_id, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(folder) / MODEL))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def pack_model(checkpoint: Path, folder: Path, **known: Any) -> None:
    """Write the pyfunc's folder; ``known`` are facts that MLflow wants in it (run_id, model_id)."""
    import mlflow.pyfunc
    from mlflow.models import Model

    import colorcore

    # MLflow wants type hints, then warns of all but lists; it sets filters of its own for that.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=Model(artifact_path=MODEL, **known),
            python_model=str(_CODE),
            artifacts={CHECKPOINT: str(checkpoint)},
            code_paths=[str(Path(colorcore.__file__).parent)],
            signature=_signature(),
            input_example=_example(),
            pip_requirements=_requirements(),
        )


def local_model(model: str | Path, tracking_uri: str | None = None) -> str | Path:
    """The folder that holds a MODEL: the checkpoint of a run's or a registered model is fetched.

    ``runs:/RUN_ID``, ``runs:/RUN_ID/model`` or another artifact, ``models:/NAME/VERSION``,
    ``models:/NAME@ALIAS``; anything else is returned as it is. What is fetched lies in a temporary
    folder until this process ends. Its code is never run and nothing of it unpickled.

    Raises:
        JobError: the store does not answer, or there is no checkpoint at that name.
    """
    name = str(model)
    if not name.startswith(_SCHEMES):
        return model
    from pipelines.tracking.store import client_for
    from pipelines.tracking.store import tracking_uri as choose

    uri = tracking_uri or choose(None, Path.cwd())
    client_for(uri)
    if name.startswith("runs:/") and "/" not in name.removeprefix("runs:/").strip("/"):
        name = f"{name.rstrip('/')}/{MODEL}"
    folder = Path(_kept().name) / str(len(list(Path(_kept().name).iterdir())))
    folder.mkdir()
    found = _download(name, uri, folder)
    places = sorted(found.rglob("checkpoint.json"))
    if not places:
        raise JobError(f"expected a checkpoint in {name}, found none; is it a run of cc train?")
    return places[0].parent


def _download(name: str, uri: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    # MLflow takes the store of a run's model from the environment, whatever it is told here.
    where = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri}
    try:
        with environment({**QUIET, **where}):
            return Path(download_artifacts(name, dst_path=str(folder)))
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobError(f"cannot fetch {name}: {first}") from error


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _kept() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder of this process, gone when it ends."""
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory(prefix="colorcore-fetched-"))
    return _folders[0]


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    photos = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    return ModelSignature(inputs=photos, outputs=photos)


def _example() -> NDArray[np.uint8]:
    """Two small grey photos: a ramp across, and one down."""
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    across = np.broadcast_to(ramp[None, :, None], (16, 16, 3))
    return np.stack([across, across.transpose(1, 0, 2)])


def _requirements() -> list[str]:
    """The versions that are installed here; a build's own suffix (``+cpu``) is left out."""
    pinned = []
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
    return pinned
