"""Signs as `cc train` and `cc eval` show them."""

import json
from pathlib import Path

import pytest

from cli.main import main
from cli.train import Display
from colorcore.recipes.advice import advised
from colorcore.recipes.recipe import load_recipe
from colorcore.scores.signs import Sign
from colorcore.training.fit import fit
from pipelines.training.trainer import TrainProgress
from tests.colorcore.training.made_up import Photos, data_of


def test_a_sign_is_shown_once_when_it_appears_and_once_when_it_is_gone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe("simple")
    grey, sepia = (Sign(name, 0.1, 0.2, f"all {name}") for name in ("grey", "sepia"))
    display = Display(lambda *_: None)
    lines = []
    courses = (
        (0, ()), (10, (grey,)), (20, (grey, sepia)),
        (0, ()),  # other workers have taken over
        (30, (sepia,)), (40, ()),
    )  # fmt: skip
    for step, signs in courses:
        for _ in range(3):  # the display looks more often than a model is scored
            display.update(TrainProgress(signs=advised(signs, recipe), scored_step=step))
        out, err = capsys.readouterr()
        assert out == ""
        lines += err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("sign after step 10: grey: all grey; raise ")
    assert lines[1].startswith("sign after step 20: sepia: all sepia; raise ")
    assert lines[2:] == ["sign gone after step 30: grey", "sign gone after step 40: sepia"]


def test_eval_prints_signs_below_the_table_and_in_json(
    photo_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(
        "unet-l1",
        ["model.channels=2", "model.depth=2", "data.batch=4", "train.epochs=1", "optim.lr=1e-9"],
    )
    fit(recipe, data_of(Photos(8, seed=0), Photos(2, seed=1)), tmp_path / "model")
    command = ["cc", "eval", str(tmp_path / "model"), str(photo_folder.path / "garden")]
    assert main(command) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("sign: grey: hardly any colour: chroma is ")
    assert "raise model.channels 2 → 4" in line
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (sign,) = result["signs"]
    assert (sign["name"], sign["threshold"]) == ("grey", 0.15)
    assert sign["value"] == result["statistics"]["chroma_ratio"] < 0.15
    assert line == f"sign: grey: {sign['meaning']}; {sign['advice']}"
