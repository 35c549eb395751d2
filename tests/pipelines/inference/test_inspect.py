"""`cc inspect MODEL`: layers and weights of checkpoints and old .pt files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from pipelines.errors import WrongCallError
from pipelines.inference.inspect import inspect_model
from tests.cli.test_main import cc
from tests.colorcore.checkpoints.made_up_unet import UNetColorizer, save


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


@pytest.mark.slow
def test_the_command_writes_beside_where_it_runs_unless_told(old_file, tmp_path) -> None:
    answer = cc("inspect", old_file, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "106 tensors mapped" in answer.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"weights.png", "weights.csv"}
    (tmp_path / "empty").mkdir()
    answer = cc("inspect", old_file, "--no-picture", "--json", cwd=tmp_path / "empty")
    found = json.loads(answer.stdout)
    assert found["weights"][0]["layer"] == "(all)"
    assert found["picture"] is None
    assert not list((tmp_path / "empty").iterdir())
