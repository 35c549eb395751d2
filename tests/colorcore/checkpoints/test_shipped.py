"""The checkpoint in the package: what its folder holds, and that it knows some colours."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    ship_checkpoint,
)
from colorcore.checkpoints.shipped import CARD, SHIPPED, START
from colorcore.color.lab import decode_lab
from colorcore.dataset.sample import lab_of
from colorcore.inference.predict import predict_lab
from colorcore.photos.refusal import PhotoLimits
from pipelines.demo import COLOUR, HELD_OUT, installed_photo


@pytest.fixture(scope="module")
def start() -> Checkpoint:
    return load_checkpoint(START)


@pytest.fixture(scope="module")
def photographs() -> dict[str, torch.Tensor]:
    """LAB (1, 3, 128, 128) of the photographs of scikit-learn and scikit-image, by name."""
    limits = PhotoLimits(min_side=1, max_aspect=float("inf"))
    return {
        Path(name).stem: decode_lab(
            torch.from_numpy(lab_of(installed_photo(name).read_bytes(), 128, limits))[None]
        )
        for name in (*COLOUR, *HELD_OUT)
    }


def test_it_is_small_and_says_what_it_is(start: Checkpoint) -> None:
    folder = SHIPPED[START]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".safetensors"}
    card = (folder / CARD).read_text(encoding="utf-8")
    for fact in (start.dataset, f"{start.epoch} epochs", "Apache License 2.0", "constant mean ab"):
        assert fact in card
    assert start.training == {}
    assert start.run_id is None
    text = (folder / "checkpoint.json").read_text(encoding="utf-8")
    assert "/" not in json.loads(text)["recipe"]["about"]


def test_it_comes_back_but_for_rounding(start: Checkpoint, tmp_path: Path) -> None:
    weights = {
        name: value if name.startswith("encoder.") else value + 1e-5
        for name, value in start.weights.items()
    }
    ship_checkpoint(replace(start, weights=weights), tmp_path / "shipped")
    back = load_checkpoint(tmp_path / "shipped")
    assert back.recipe == start.recipe
    assert back.weights.keys() == weights.keys()
    for name, value in weights.items():
        if name.startswith("encoder."):
            assert torch.equal(back.weights[name], value), name
        else:
            torch.testing.assert_close(back.weights[name], value, rtol=2**-10, atol=1e-7)
    assert back.model()(torch.zeros(1, 1, 32, 32))["ab"].shape == (1, 2, 32, 32)


def test_an_encoder_that_learned_is_not_left_out(start: Checkpoint, tmp_path: Path) -> None:
    weights = {**start.weights, "encoder.stem.weight": start.weights["encoder.stem.weight"] + 1}
    with pytest.raises(ValueError, match=r"the encoder has learned \(encoder.stem.weight\)"):
        ship_checkpoint(replace(start, weights=weights), tmp_path / "shipped")


def test_without_the_encoders_package_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"needs an encoder: .*lite0 are not installed.*pip"):
        load_checkpoint(START)


@pytest.mark.parametrize("encoder", ["resnet", "../lite0", 3])
def test_a_record_cannot_name_another_encoder(encoder: object, tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED[START], tmp_path / "copy")
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**record, "encoder": encoder}))
    with pytest.raises(CheckpointError, match="expected an encoder called lite0 or lite1"):
        load_checkpoint(folder)


def test_a_folder_of_that_name_is_written_with_a_dot(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(SHIPPED[START], tmp_path / START)
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**record, "epoch": 99}))
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(START).epoch == start.epoch
    assert load_checkpoint(f"./{START}").epoch == 99


def test_it_is_closer_to_photographs_it_never_saw_than_one_colour_for_all(
    start: Checkpoint, photographs: dict[str, torch.Tensor]
) -> None:
    model, constant = start.model(), torch.tensor(start.mean_ab)[None, :, None, None]
    lab = torch.cat(list(photographs.values()))
    predicted = predict_lab(model, lab)[:, 1:]
    errors = [float((answer - lab[:, 1:]).norm(dim=1).mean()) for answer in (predicted, constant)]
    assert errors[0] < errors[1] - 0.5


def test_leaves_are_green_and_skin_is_not(
    start: Checkpoint, photographs: dict[str, torch.Tensor]
) -> None:
    """In the photograph of a flower, where leaves really are green; and a face."""
    model = start.model()
    flower, face = photographs["flower"], photographs["astronaut"]
    leaves = (flower[0, 1] < -8) & (flower[0, 2] > 8)
    assert int(leaves.sum()) > 500
    a = predict_lab(model, flower)[0, 1]
    assert float(a[leaves].mean()) < -2.0
    skin = predict_lab(model, face)[0, 1:, 20:45, 48:66]
    assert float(skin[0].mean()) > 4.0
    assert float(skin[1].mean()) > 4.0


def test_grey_photos_are_no_error(start: Checkpoint) -> None:
    grey = torch.from_numpy(np.asarray(Image.new("L", (40, 24), 128), np.float32))[None, None]
    ab = start.model()(grey / 127.5 - 1)["ab"]
    assert ab.shape == (1, 2, 24, 40)
    assert bool(ab.isfinite().all())
