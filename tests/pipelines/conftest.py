"""One local Ray, one MLflow store and one trained model for all tests of the jobs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from colorcore.recipe import Recipe, load_recipe
from pipelines.cluster import ray_session
from pipelines.priors import make_palette
from pipelines.train import TrainReport, train
from tests.mlflow_store import new_store

TINY = [
    "model.channels=4",
    "model.depth=2",
    "model.norm=group",
    "data.batch=4",
    "data.flip=false",
    "train.epochs=2",
    "optim.lr=1e-3",
]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with ray_session(cpus=2):
        yield


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return new_store(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    return load_recipe("unet-l1", TINY)


@pytest.fixture(scope="session")
def dataset_with_palette(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(dataset, tmp_path_factory.mktemp("with-palette") / "dataset")
    make_palette(copy, bins=16)
    return copy


@pytest.fixture(scope="session")
def trained(
    local_ray: None,
    dataset_with_palette: Path,
    tiny: Recipe,
    tracking: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainReport:
    out = tmp_path_factory.mktemp("trained") / "model"
    return train(dataset_with_palette, tiny, out, tracking_uri=tracking, name="trained")
