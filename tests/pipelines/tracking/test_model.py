"""A run's model in MLflow can be loaded, served, registered and fetched, and is never unpickled."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colorcore.checkpoints.checkpoint import CheckpointError, load_checkpoint
from colorcore.color.palette import load_palette
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import Recipe
from pipelines.album.colorize import colorize_photo, colorize_photos
from pipelines.album.settings import ColorizeSettings
from pipelines.errors import JobError
from pipelines.evaluation.job import evaluate_model
from pipelines.inference.inspect import inspect_model
from pipelines.run_log.runs import end_run, start_run
from pipelines.tracking.mlflow_env import QUIET
from pipelines.tracking.model import local_model, log_model, register_champion
from pipelines.tracking.store import TrackedRun, client_for
from pipelines.training.driver import TrainReport
from pipelines.training.start_weights import choose_start_weights
from tests.conftest import jpeg


@pytest.fixture
def photos(scene) -> np.ndarray:
    return np.stack([scene(seed, 70, 90) for seed in (700, 701)])


@pytest.fixture
def colorized(trained: TrainReport, photos: np.ndarray, tmp_path: Path) -> np.ndarray:
    """The photos as `cc colorize` returns them."""
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    names = [str(tmp_path / f"{number}.png") for number in range(len(photos))]
    report = colorize_photos(
        trained.out, names, tmp_path / "out", ColorizeSettings(device="cpu", force=True)
    )
    return np.stack([np.asarray(Image.open(path)) for path in report.written])


@pytest.fixture
def run(trained: TrainReport, tracking: str, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    return TrackedRun(tracking, trained.experiment_id, trained.run_id)


PREDICT = """
import sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))
files = np.array([open(name, "rb").read() for name in sys.argv[4:]], dtype=object)
for name, data in zip(sys.argv[4:], model.predict(files, {"strength": 0.5})):
    open(name + ".half", "wb").write(data)
import colorcore
print(colorcore.__file__)
"""


def test_it_predicts_like_cc_colorize_without_this_project_installed(
    run: TrackedRun, trained: TrainReport, photos: np.ndarray, colorized: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", photos)
    words = [f"runs:/{run.run_id}/model", str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    names = [str(tmp_path / f"{number}.png") for number in range(len(photos))]
    paths = [path for path in sys.path if path and Path(path) != Path.cwd()]
    lone = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, *words, *names],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=lone,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "/code/colorcore/" in done.stdout.splitlines()[-1]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), colorized)
    settings = ColorizeSettings(device="cpu", force=True, strength=0.5)
    for name in names:  # each alone: the last bits of a batch depend on who is in it
        report = colorize_photos(trained.out, [name], tmp_path / "half", settings)
        assert Path(f"{name}.half").read_bytes() == report.written[0].read_bytes()


def test_it_is_served_on_loopback(
    run: TrackedRun, trained: TrainReport, photos: np.ndarray, colorized: np.ndarray, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local",
        "--model-uri", f"runs:/{run.run_id}/model", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # uvicorn's
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **QUIET, "PATH": path}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None, (tmp_path / "serve.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping").close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        got = invoke(port, {"inputs": photos.tolist()})
        files = [jpeg(photos[0]), (tmp_path / "1.png").read_bytes()]
        pictures = invoke(port, with_files(files))
        pale = invoke(port, with_files(files[:1], strength=0.3, chroma=2.0))
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            invoke(port, with_files([files[0], b"no photo"]))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)
    np.testing.assert_array_equal(np.asarray(got, np.uint8), colorized)
    settings = ColorizeSettings(device="cpu", force=True)
    for data, picture in zip(files, pictures, strict=True):
        expected = colorize_photo(trained.out, io.BytesIO(data), settings)
        assert base64.b64decode(picture) == expected
    settings = replace(settings, strength=0.3, chroma=2.0)
    assert base64.b64decode(pale[0]) == colorize_photo(trained.out, io.BytesIO(files[0]), settings)
    assert b"file 1: unreadable: expected a photo in a known format" in refused.value.read()


def invoke(port: int, body: dict) -> list:
    """The predictions for a request."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked) as answer:  # noqa: S310
        return json.loads(answer.read())["predictions"]


def with_files(files: list[bytes], **params: float) -> dict:
    """A request with photos' files; a pixel stands for the tensor that MLflow insists on."""
    texts = [base64.b64encode(data).decode() for data in files]
    return {"inputs": [[[[0, 0, 0]]]], "params": {"files": texts, **params}}


def test_signature_example_and_pinned_requirements(run: TrackedRun) -> None:
    from mlflow.models import get_model_info

    info = get_model_info(f"runs:/{run.run_id}/model")
    (inputs,) = info.signature.inputs.to_dict()
    assert inputs["tensor-spec"] == {"dtype": "uint8", "shape": (-1, -1, -1, 3)}
    assert info.signature.outputs.to_dict() == [inputs]
    params = {each["name"]: each["default"] for each in info.signature.params.to_dict()}
    assert params == {"strength": 1.0, "chroma": None, "temperature": None, "files": []}
    assert info.saved_input_example_info["type"] == "ndarray"
    folder = local_model(f"runs:/{run.run_id}").parents[1]
    pinned = (folder / "requirements.txt").read_text().splitlines()
    assert all("==" in line and "+" not in line for line in pinned)
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt"}]


def test_runs_and_registered_models_are_models(
    run: TrackedRun, trained: TrainReport, dataset_with_palette: Path, tiny: Recipe
) -> None:
    assert register_champion(run, "pets") == 1
    assert register_champion(run, "pets") == 1  # the same run is the same version
    here = evaluate_model(trained.out, dataset_with_palette).scores
    for name in ("models:/pets@champion", "models:/pets/1", f"runs:/{run.run_id}/model"):
        assert evaluate_model(Path(name), dataset_with_palette).scores == here
    shown = inspect_model(Path("models:/pets@champion"))
    assert shown.scores == load_checkpoint(trained.out / "best").scores
    palette = load_palette(dataset_with_palette / "palette")
    samples = Samples(dataset_with_palette, "val")
    start = choose_start_weights(local_model(Path("models:/pets/1")), tiny, palette, samples, None)
    mine = load_checkpoint(trained.out / "best").weights
    assert all((start.weights()[name] == tensor).all() for name, tensor in mine.items())
    with pytest.raises(JobError, match="cannot fetch models:/pets@nobody"):
        local_model("models:/pets@nobody")
    with pytest.raises(JobError, match=r"cannot fetch runs:/0123|expected a checkpoint"):
        local_model("runs:/0123/model")


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_nothing_that_is_fetched_is_unpickled_or_run(
    trained: TrainReport, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with pickles everywhere, also in place of the weights, and code next to them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(_Bomb(mark))
    pickle.loads(bomb)  # noqa: S301
    assert mark.exists()  # the bomb works
    mark.unlink()
    poisoned = shutil.copytree(trained.out / "best", tmp_path / "poisoned" / "artifacts" / "best")
    for name in ("python_model.pkl", "model.pkl", "artifacts/best/training.pt", "data/x.pkl"):
        (poisoned.parents[1] / name).parent.mkdir(exist_ok=True)
        (poisoned.parents[1] / name).write_bytes(bomb)
    flavor = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    (poisoned.parents[1] / "MLmodel").write_text(
        json.dumps({"flavors": {"python_function": flavor}})
    )
    (poisoned.parents[1] / "sitecustomize.py").write_text(f"open({str(mark)!r}, 'w')")
    run = start_run(tracking, "poisoned", {}, {}, None)
    assert end_run(run, "FINISHED", {"model": tmp_path / "poisoned"}, tmp_path / "o") is None
    fetched = local_model(f"runs:/{run.run_id}/model")
    assert load_checkpoint(fetched).scores == load_checkpoint(trained.out / "best").scores
    (poisoned / "model.safetensors").write_bytes(bomb)
    run = start_run(tracking, "poisoned weights", {}, {}, None)
    assert end_run(run, "FINISHED", {"model": tmp_path / "poisoned"}, tmp_path / "o") is None
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(local_model(f"runs:/{run.run_id}/model"))
    assert not mark.exists()


def test_logging_a_model_again_adds_no_second_one(trained: TrainReport, tracking: str) -> None:
    client = client_for(tracking)
    run = start_run(tracking, "twice", {}, {}, None)
    begun = client.create_logged_model(run.experiment_id, "model", source_run_id=run.run_id)
    for _ in range(2):
        assert log_model(client, run.run_id, trained.out / "best") == begun.model_id
    outputs = client.get_run(run.run_id).outputs.model_outputs
    assert [model.model_id for model in outputs] == [begun.model_id]
    assert client.get_logged_model(begun.model_id).status == "READY"
