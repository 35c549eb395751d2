"""MLflow: where runs are written, and how a training's observer fills one.

Default store: SQLite ``mlflow.db`` in the current folder, artifacts in ``mlartifacts`` beside
it. A server is used with ``--tracking-uri`` or ``MLFLOW_TRACKING_URI``. No telemetry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.advice import Advised, advised
from colorcore.fit import DecodingEvent, Observer, StepEvent, ValidationEvent
from colorcore.pictures import triptychs
from colorcore.signs import NOT_FINITE
from pipelines.errors import JobError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from colorcore.recipe import Recipe
    from colorcore.signs import Sign

EXPERIMENT = "colorcore"
PICTURE_KEY = "val/grey - predicted - truth"
SIGN = "sign."
"""What tags of a run begin with that say what was seen of a sign, and what to do about it."""
_GONE = "gone at step "
LOG_EVERY = 10
"""Steps between two logged points of the loss."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run that exists in the tracking store; small enough to hand to a worker."""

    uri: str
    experiment_id: str
    run_id: str


def tracking_uri(asked: str | None, folder: Path) -> str:
    """The tracking URI: asked for, from the environment, or SQLite in ``folder``."""
    return asked or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder)


def sqlite_uri(folder: Path) -> str:
    """The URI of the SQLite store in a folder."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def without_secrets(uri: str) -> str:
    """A URI as it may be shown or logged: user and password are left out."""
    return re.sub(r"//[^/@]*@", "//", uri)


def client_for(uri: str) -> MlflowClient:
    """A client of the tracking store.

    Raises:
        JobError: the store does not answer.
    """
    os.environ.update(_QUIET)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobError(
            f"cannot reach the tracking store {without_secrets(uri)}: {first}"
        ) from error
    return client


def start_run(
    uri: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str | None
) -> TrackedRun:
    """Begin a run, or go on in ``run_id`` where that exists; parameters are logged once."""
    client = client_for(uri)
    experiment_id = _experiment(client, uri)
    if run_id is not None and _exists(client, run_id):
        client.update_run(run_id, status="RUNNING")
        return TrackedRun(uri, experiment_id, run_id)
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    for key, value in params.items():
        client.log_param(run.info.run_id, key, value)
    return TrackedRun(uri, experiment_id, run.info.run_id)


def end_run(run: TrackedRun, status: str, artifacts: Mapping[str, Path]) -> None:
    """Close a run as FINISHED, FAILED or KILLED, with files or folders as artifacts by name."""
    client = client_for(run.uri)
    for name, path in artifacts.items():
        if path.is_dir():
            client.log_artifacts(run.run_id, str(path), artifact_path=name)
        elif path.exists():
            client.log_artifact(run.run_id, str(path), artifact_path=name)
    client.set_terminated(run.run_id, status=status)


class RunObserver(Observer):
    """Logs a training into its run: losses, validation scores and pictures, asynchronously.

    Also what signs are found by (``val/sign/...``), and the signs, as tags.
    """

    def __init__(self, run: TrackedRun, recipe: Recipe) -> None:
        self._run, self._recipe = run, recipe
        self._client = client_for(run.uri)
        # A run that goes on has tags from before; when a sign of those is gone, they shall say so.
        tags = self._client.get_run(run.run_id).data.tags
        self._signs = {
            name.removeprefix(SIGN): text
            for name, text in tags.items()
            if name.startswith(SIGN) and not text.startswith(_GONE)
        }
        self._step = 0

    def on_step(self, event: StepEvent) -> None:
        """Loss, terms, learning rate, gradient norm and photos/s, every tenth step."""
        self._step = event.step
        if event.step % LOG_EVERY and event.step != event.total_steps:
            return
        values = {
            "train/loss": event.loss,
            **{f"train/{name}": value for name, value in event.terms.items()},
            "train/lr": event.lr,
            "train/grad_norm": event.grad_norm,
            "train/photos_per_s": event.photos_per_s,
        }
        self._log(values, event.step)

    def on_validation(self, event: ValidationEvent) -> None:
        """All scores, and the same validation photos each time."""
        self._log({f"val/{name}": value for name, value in event.scores.items()}, event.step)
        measured = {f"val/sign/{name}": value for name, value in event.statistics.items()}
        self._log(measured, event.step)
        self._tag(event.signs, event.step)
        picture = triptychs(event.pairs[:, 0], event.pairs[:, 1])
        self._client.log_image(
            self._run.run_id, picture, key=PICTURE_KEY, step=event.step, synchronous=True
        )

    def on_decoding(self, event: DecodingEvent) -> None:
        """The knobs and the scores with them, as metrics: so that runs can be compared by them."""
        decoding = event.decoding
        knobs = {"temperature": decoding.temperature, "chroma": decoding.chroma}
        values = {name: value for name, value in knobs.items() if value is not None}
        named = {f"decoding/{name}": value for name, value in {**values, **event.scores}.items()}
        self._log(named, event.step, wait=True)

    def on_diverged(self) -> None:
        """Tag the run, after a TrainingDivergedError of :func:`colorcore.fit.fit`."""
        self._appeared(advised([NOT_FINITE], self._recipe)[0], self._step + 1)

    def _tag(self, signs: Sequence[Sign], step: int) -> None:
        """A tag for each sign that appeared, and for each that is gone."""
        found = {each.sign.name: each for each in advised(signs, self._recipe)}
        for name in found.keys() - self._signs.keys():
            self._appeared(found[name], step)
        for name in self._signs.keys() - found.keys():
            text = f"{_GONE}{step}; {self._signs.pop(name)}"
            self._client.set_tag(self._run.run_id, SIGN + name, text)

    def _appeared(self, each: Advised, step: int) -> None:
        name = each.sign.name
        self._signs[name] = f"step {step}: {each.sign.meaning}; {each.advice}"
        self._client.set_tag(self._run.run_id, SIGN + name, self._signs[name])

    def _log(self, values: Mapping[str, float], step: int, *, wait: bool = False) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run.run_id, metrics=metrics, synchronous=wait)


def _experiment(client: MlflowClient, uri: str) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        # Without it, artifacts would land in whatever folder the next command runs in.
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException:
        return False
    return True
