"""A run's model in MLflow: a pyfunc that colourizes photos, and its place in the registry.

A logged model is a folder with the checkpoint `best`, the package colorcore, the code in
:mod:`pipelines.tracking.model_code`, a signature, an input example and pinned requirements. It
contains no pickle, and this project reads only the checkpoint of one, never the code next to it.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import JobError, WrongCallError
from pipelines.tracking.mlflow_env import QUIET, environment
from pipelines.tracking.names import CHAMPION, MODEL
from pipelines.tracking.store import TrackedRun, client_for, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from numpy.typing import NDArray

CHECKPOINT = "checkpoint"
_CODE = Path(__file__).with_name("model_code.py")
_PACKAGES = (
    "mlflow", "imagecodecs", "kornia", "numpy", "opencv-python-headless", "pillow", "pyarrow",
    "pydantic", "safetensors", "scikit-learn", "scipy", "threadpoolctl", "tifffile", "tomli-w",
    "torch",
)  # fmt: skip
"""What the package colorcore needs to predict."""
_SCHEMES = ("runs:/", "models:/")


# -- logging a model ------------------------------------------------------------------------------


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
    query = f"source_run_id = '{run_id}' AND name = '{MODEL}'"
    begun = client.search_logged_models([experiment], query)  # by an attempt that then failed
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

    # MLflow asks for type hints, then warns about every hint that is not a list. record=True,
    # because MLflow replaces the filters that simplefilter would set.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=Model(artifact_path=MODEL, **known),
            python_model=str(_CODE),
            artifacts={CHECKPOINT: str(checkpoint)},
            code_paths=[str(files("colorcore"))],
            signature=_signature(),
            input_example=_example(),
            pip_requirements=_requirements(),
        )


def _signature() -> Any:
    """Photos as a tensor, and what `cc colorize` has options for; files are a parameter.

    A signature holds tensors or columns, not both, and a file's bytes are no tensor of pixels.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    photos = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    params = ParamSchema(
        [
            ParamSpec("strength", "double", 1.0),
            ParamSpec("chroma", "double", None),
            ParamSpec("temperature", "double", None),
            ParamSpec("files", "string", [], (-1,)),
        ]
    )
    return ModelSignature(inputs=photos, outputs=photos, params=params)


def _example() -> NDArray[np.uint8]:
    """Two small grey photos (2, 16, 16, 3): a horizontal and a vertical ramp."""
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    horizontal = np.broadcast_to(ramp[None, :, None], (16, 16, 3))
    return np.stack([horizontal, horizontal.transpose(1, 0, 2)])


def _requirements() -> list[str]:
    """The versions installed here, without the suffix of a build (``+cpu``)."""
    pinned = []
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
    return pinned


# -- fetching a model -----------------------------------------------------------------------------


def local_model(model: str | Path, asked_uri: str | None = None) -> str | Path:
    """The local folder of a MODEL; the checkpoint of a run's or a registered model is downloaded.

    Accepts ``runs:/RUN_ID``, ``runs:/RUN_ID/model`` or another artifact, ``models:/NAME/VERSION``
    and ``models:/NAME@ALIAS``, and returns anything else unchanged. The download is kept in a
    temporary folder until this process ends. Its code is not run and nothing in it is unpickled.

    Raises:
        JobError: the store does not answer, or there is no checkpoint under that name.
    """
    name = str(model)
    if not name:
        raise WrongCallError(
            "expected a model, got an empty name; is a variable of the shell unset?"
        )
    if not name.startswith(_SCHEMES):
        return model
    uri = resolve_tracking_uri(asked_uri, Path.cwd())
    client_for(uri)
    if name.startswith("runs:/") and "/" not in name.removeprefix("runs:/").strip("/"):
        name = f"{name.rstrip('/')}/{MODEL}"
    folder = Path(tempfile.mkdtemp(dir=_downloads().name))
    found = _download(name, uri, folder)
    places = sorted(found.rglob("checkpoint.json"))
    if not places:
        raise JobError(f"expected a checkpoint in {name}, found none; is it a run of cc train?")
    return places[0].parent


def _download(name: str, uri: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    try:
        with environment({**QUIET, **_in_store(uri)}):
            return Path(download_artifacts(name, dst_path=str(folder)))
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobError(f"cannot fetch {name}: {first}") from error


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _downloads() -> tempfile.TemporaryDirectory[str]:
    """This process's folder of downloads, which is removed when the process ends."""
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory(prefix="colorcore-fetched-"))
    return _folders[0]


def _in_store(uri: str) -> dict[str, str]:
    """MLflow resolves ``runs:/`` and ``models:/`` in the store that the environment names only."""
    return {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri}


# -- registering a model --------------------------------------------------------------------------


def register_champion(run: TrackedRun, name: str) -> int:
    """Register the run's model under ``name`` and give that version the alias ``champion``.

    Returns the version's number. A run that is registered already keeps its version. The name must
    be one that a registry accepts: without ``/`` and ``:``, and not beginning with ``.``.

    Raises:
        JobError: the store does not answer, or the run has no model.
    """
    from mlflow.exceptions import MlflowException

    client = client_for(run.uri)
    with contextlib.suppress(MlflowException):  # the name exists already
        client.create_registered_model(name)
    try:
        found = [
            version
            for version in client.search_model_versions(f"name = '{name}'")
            if version.run_id == run.run_id
        ]
        version = found[0] if found else _register(client, run, name)
        client.set_registered_model_alias(name, CHAMPION, version.version)
    except MlflowException as error:
        raise JobError(
            f"cannot register the model of run {run.run_id} as {name}: {error}"
        ) from error
    return int(version.version)


def _register(client: MlflowClient, run: TrackedRun, name: str) -> Any:
    outputs = client.get_run(run.run_id).outputs
    if outputs is None or not outputs.model_outputs:
        raise JobError(f"the run {run.run_id} has no model to register as {name}")
    model = outputs.model_outputs[-1].model_id
    with environment(_in_store(run.uri)):
        return client.create_model_version(name, f"models:/{model}", run.run_id, model_id=model)
