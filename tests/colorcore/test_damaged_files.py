"""What a power cut, a full disk or a bad copy makes of a file: errors name it and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.main import _explain
from colorcore.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from colorcore.color.palette import load_palette
from colorcore.dataset.layout import read_histogram, read_info
from colorcore.dataset.merge import summarise
from colorcore.dataset.samples import Samples
from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe
from colorcore.storage.location import open_store

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
}


def read_some(dataset: Path) -> None:
    samples = Samples(dataset, "train")
    samples.read(np.arange(len(samples)))


def merge(dataset: Path) -> None:
    summarise(open_store(dataset), [0])


READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "dataset.json": (read_info, "cc shard"),
    "shards.parquet": (read_some, "cc shard"),
    "duplicates.parquet": (read_some, "cc shard"),
    "histogram.npy": (read_histogram, "cc shard"),
    "index/000000.parquet": (read_some, "cc shard"),
    "train/000000-000.tar": (read_some, "cc shard"),
    "rejected/000000.parquet": (merge, "cc shard"),
    "histogram/000000.npy": (merge, "cc shard"),
    **{
        f"palette/{name}": (lambda dataset: load_palette(dataset / "palette"), "cc priors")
        for name in ("palette.json", "centroids.npy", "priors.npy", "weights.npy")
    },
}


def error_of(read: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What `cc` prints of the error: one line, written for the user."""
    with pytest.raises(Exception, match=r"damaged|does not|cannot be|ends at") as caught:
        read()
    code, text = _explain(caught.value)
    assert code in {1, 2}
    assert text in " ".join(capsys.readouterr().err.split())
    assert "--debug" not in text  # that would be an error that nobody expected
    assert "pickle" not in text  # NumPy's own words for a file of zeros
    return text


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_dataset(
    name: str, damage: str, dataset_with_palette: Path, tmp_path: Path, capsys
) -> None:
    copied = Path(shutil.copytree(dataset_with_palette, tmp_path / "copied"))
    (copied / name).write_bytes(DAMAGE[damage]((copied / name).read_bytes()))
    read, advice = READERS[name]
    text = error_of(lambda: read(copied), capsys)
    assert str(copied / name) in text
    assert advice in text.rpartition("; ")[2]


@pytest.fixture(scope="module")
def saved(dataset_with_palette: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("saved") / "last"
    recipe = load_recipe("simple", ["model.channels=4", "model.depth=2"])
    model = build_model(recipe.model.name, **recipe.model.options())
    save_checkpoint(
        Checkpoint(
            recipe, model.state_dict(), load_palette(dataset_with_palette / "palette"),
            (0.0, 0.0), 32, "0" * 16, training={"model.x": torch.zeros(3)},
        ),
        folder,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["checkpoint.json", "model", "palette", "training"])
def test_a_file_of_a_checkpoint(
    name: str, damage: str, saved: Path, tmp_path: Path, capsys
) -> None:
    name = name if name.endswith(".json") else f"{name}.safetensors"
    copied = Path(shutil.copytree(saved, tmp_path / "copied"))
    (copied / name).write_bytes(DAMAGE[damage]((copied / name).read_bytes()))
    text = error_of(lambda: load_checkpoint(copied, training=True), capsys)
    assert str(copied / name) in text
    assert f"copy {copied} again" in text.rpartition("; ")[2]
