"""Spaces: what a file may say, what is refused before a study starts, what is searched unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colorcore.recipes.recipe import load_recipe
from pipelines.errors import WrongCallError
from tune.space import Axis, Space, default_space, load_space, space_of, with_values


def tables_of(space: Space) -> dict[str, dict[str, list[object]]]:
    return space.tables()


def test_learning_rate_batch_channels_and_each_weight_are_searched_by_default() -> None:
    recipe = load_recipe("guide", ["loss.perceptual=0"])
    assert tables_of(default_space(recipe)) == {
        "optim.lr": {"log": [1e-5, 1e-3]},
        "data.batch": {"choices": [8, 16, 32, 64]},
        "model.channels": {"choices": [48, 64, 96, 128]},
        "loss.rgb_l1": {"log": [0.125, 2.0]},
        "loss.ab_huber": {"log": [0.5, 8.0]},
        "loss.diversity": {"log": [0.025, 0.4]},
    }


def test_the_weight_of_a_loss_of_one_term_is_not_searched() -> None:
    paths = [axis.path for axis in default_space(load_recipe("simple")).axes]
    assert paths == ["optim.lr", "data.batch", "model.channels"]
    two = load_recipe("simple", ["loss.ab_l1=0.5"])
    assert [axis.path for axis in default_space(two).axes][3:] == [
        "loss.weighted_mse",
        "loss.ab_l1",
    ]


def test_a_file_of_any_paths(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        """
        ["optim.lr"]
        log = [1e-4, 1e-2]
        [model.depth]
        uniform = [2, 5]
        ["model.dropout"]
        uniform = [0, 0.5]
        ["loss_options.weighted_mse.saturated"]
        uniform = [1, 3]
        ["model.norm"]
        choices = ["batch", "group"]
        ["data.flip"]
        choices = [true, false]
        """
    )
    space = load_space(file, load_recipe("simple"))
    assert tables_of(space) == {
        "optim.lr": {"log": [1e-4, 1e-2]},
        "model.depth": {"uniform": [2, 5]},
        "model.dropout": {"uniform": [0, 0.5]},
        "loss_options.weighted_mse.saturated": {"uniform": [1, 3]},
        "model.norm": {"choices": ["batch", "group"]},
        "data.flip": {"choices": [True, False]},
    }
    whole = {axis.path for axis in space.axes if axis.integer}
    assert whole == {"model.depth"}  # where the recipe's own value is a whole number


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"optim.lrr": {"log": [1e-4, 1e-2]}}, r"optim\.lrr; did you mean lr\?"),
        ({"optm.lr": {"log": [1e-4, 1e-2]}}, r"unknown key optm; did you mean optim\?"),
        ({"loss.ab_l2": {"log": [0.1, 1]}}, r"'ab_l2'; did you mean ab_l1\?"),
        ({"optim.lr": {"lg": [1e-4, 1e-2]}}, r"unknown key lg; did you mean log\?"),
        ({"optim.lr": {"log": [1e-2, 1e-4]}}, r"low below high, got 0\.01 and 0\.0001"),
        ({"optim.lr": {"log": [0, 1]}}, r"above 0 on a log scale"),
        ({"optim.lr": {"log": [1e-4]}}, r"log = \[low, high\], got \[0\.0001\]"),
        ({"optim.lr": {"log": [1e-4, 20.0]}}, r"less than 10, got 20\.0 \(optim\.lr = 20\)"),
        ({"data.batch": {"choices": [8, "many"]}}, r"data\.batch: .*got 'many'"),
        ({"data.batch": {"choices": [8]}}, r"two different choices"),
        ({"data.batch": {"choices": 8}}, r"expected a list under choices, got 8"),
        ({"data.batch": {"uniform": [8.5, 16]}}, r"whole numbers"),
        ({"data.batch": 8}, r"expected a table"),
        ({"optim.lr": {"log": [1e-4, 1e-2], "choices": [1]}}, r"expected one of .*got 2"),
        ({"train.metric": {"choices": ["psnr", "ssim"]}}, r"cannot be searched.*--metric"),
        ({"model.norm": {"choices": ["batch", "layer"]}}, r"got 'layer'"),
        ({}, r"holds no path"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(tables: dict[str, object], says: str) -> None:
    with pytest.raises(WrongCallError, match=says) as refused:
        space_of(tables, load_recipe("simple"))
    assert "\n" not in str(refused.value)


def test_no_file_and_no_toml_are_told(tmp_path: Path) -> None:
    with pytest.raises(WrongCallError, match="cannot read the space"):
        load_space(tmp_path / "no.toml", load_recipe("simple"))
    (tmp_path / "bad.toml").write_text("[optim.lr")
    with pytest.raises(WrongCallError, match="cannot read the space"):
        load_space(tmp_path / "bad.toml", load_recipe("simple"))


@given(
    lr=st.floats(1e-6, 1e-2),
    depth=st.integers(1, 6),
    flip=st.booleans(),
    weight=st.floats(0.01, 10),
)
def test_values_reach_the_recipe_at_their_paths_and_nothing_else_changes(
    lr: float, depth: int, flip: bool, weight: float
) -> None:
    recipe = load_recipe("unet-l1", ["model.channels=8"])
    values = {
        "optim.lr": lr,
        "model.depth": depth,
        "data.flip": flip,
        "loss.ab_l1": weight,
        "loss_options.ab_huber.beta": 0.2,
        "loss.ab_huber": 1.0,
    }
    flat = with_values(recipe, values).flat()
    assert {path: flat[path] for path in values} == values
    assert {k: v for k, v in flat.items() if k not in values} == {
        k: v for k, v in recipe.flat().items() if k not in values
    }


def test_the_recipes_own_values_are_known_where_they_lie_in_the_space() -> None:
    recipe = load_recipe("simple")
    space = default_space(recipe)
    own = {"optim.lr": 5e-5, "data.batch": 16, "model.channels": 96}
    assert space.own_values(recipe) == own
    assert space.own_values(with_values(recipe, {"optim.lr": 2e-3})) is None
    assert space.own_values(with_values(recipe, {"data.batch": 24})) is None


def test_the_first_trials_are_the_recipes_own_and_a_small_batch_with_a_wide_model() -> None:
    recipe = load_recipe("simple")
    own = {"optim.lr": 5e-5, "data.batch": 16, "model.channels": 96}
    wide = {"optim.lr": 5e-5, "data.batch": 8, "model.channels": 128}
    assert default_space(recipe).first_values(recipe) == [own, wide]
    there = with_values(recipe, {"data.batch": 8, "model.channels": 128})
    assert default_space(recipe).first_values(there) == [wide]
    assert default_space(recipe).first_values(with_values(recipe, {"optim.lr": 2e-3})) == []
    ranges = {"model.channels": {"uniform": [64, 100]}, "optim.lr": {"log": [1e-5, 1e-4]}}
    assert space_of(ranges, recipe).first_values(recipe)[1:] == [
        {"model.channels": 100, "optim.lr": 5e-5}
    ]
    rate = {"optim.lr": {"log": [1e-5, 1e-4]}}
    assert space_of(rate, recipe).first_values(recipe) == [{"optim.lr": 5e-5}]


def test_a_range_of_whole_numbers_is_tried_at_whole_numbers() -> None:
    axis = Axis("model.depth", "uniform", (2, 5), integer=True)
    assert axis.probes() == [2, 3, 4, 4, 5]
    assert all(axis.holds(value) for value in axis.probes())
    assert not axis.holds(6)
    assert Axis("optim.lr", "log", (1e-4, 1e-2)).probes()[2] == pytest.approx(1e-3)
