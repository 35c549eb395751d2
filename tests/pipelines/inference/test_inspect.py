"""`cc inspect MODEL`: layers and weights of checkpoints and old .pt files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from PIL import Image

from colorcore.recipes.recipe import load_recipe
from pipelines.errors import WrongCallError
from pipelines.inference.inspect import inspect_model
from tests.colorcore.checkpoints.made_up_unet import UNetColorizer, save
from tests.colorcore.colorizing.test_onnx_file import FACTS, sunset
from tests.conftest import Run


@pytest.fixture(scope="module")
def old_file(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("old") / "best.pt", UNetColorizer())


def test_histograms_and_their_numbers_are_written(old_file: Path, tmp_path: Path) -> None:
    facts = inspect_model(old_file, picture=tmp_path / "here" / "mine.png")
    with Image.open(tmp_path / "here" / "mine.png") as picture:
        assert picture.size[0] == 1600
    with (tmp_path / "here" / "mine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [row.layer for row in facts.weights]
    assert sum(int(row["count"]) for row in rows[1:]) == facts.summary["parameters"]
    assert sum(facts.layers.values()) == facts.summary["parameters"]
    assert facts.not_finite == []


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    network = UNetColorizer()
    network.dec1[0].weight.data[0] = float("nan")
    facts = inspect_model(save(tmp_path / "nan.pt", network), picture=tmp_path / "nan.png")
    assert facts.not_finite == ["decoder.2.0.weight"]
    assert (tmp_path / "nan.png").exists()


def test_a_picture_that_is_no_png(old_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongCallError, match="ending in"):
        inspect_model(old_file, picture=tmp_path / "weights.jpg")


def test_an_exported_file_is_shown_with_its_weights(tmp_path: Path) -> None:
    """Weights of 8 bits count as what they stand for: steps times the scale of their channel."""
    model = sunset(replace(FACTS, recipe=load_recipe("lite0-bins", ["model.bins=3"]).values()))
    steps = np.array([[[[-127]], [[64]]], [[[1]], [[127]]]], np.int8)
    weight = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
    arrays = {
        "a.weight": weight,
        "b.weight_quantized": steps,
        "b.weight_scale": np.array([0.5, 2.0], np.float32),
        "a_scale": np.array(0.1, np.float32),
    }
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    file = tmp_path / "x.onnx"
    file.write_bytes(model.SerializeToString())
    facts = inspect_model(file)
    assert facts.layers == {"a": 6, "b": 4}
    assert facts.summary["parameters"] == 10
    assert facts.summary["trained on"] == "16 px samples of dataset 0123"
    assert facts.summary["decoding"] == "T 0.5, chroma ×2"
    assert facts.summary["int8"] == "photos 3"
    found = {row.layer: row for row in facts.weights}
    assert found["b.weight"].min == -63.5
    assert found["b.weight"].max == 254.0
    assert found["a.weight"].max == 5.0


def test_the_command_writes_beside_where_it_runs_unless_told(
    cc: Run, old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = cc("inspect", old_file)
    assert answer.code == 0, answer.stderr
    assert "106 tensors mapped" in answer.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"weights.png", "weights.csv"}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    answer = cc("inspect", old_file, "--no-picture", "--json")
    found = json.loads(answer.stdout)
    assert found["weights"][0]["layer"] == "(all)"
    assert found["picture"] is None
    assert not list((tmp_path / "empty").iterdir())
