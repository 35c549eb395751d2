"""Search spaces: their files, what is refused before a study starts, and the default space."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colorcore.recipes.recipe import load_recipe
from pipelines.errors import WrongCallError
from tune.search.settings import StudyOptions, load_space_file, options_of
from tune.search.space import Axis, Space, default_space, space_of, with_values


def tables_of(space: Space) -> dict[str, dict[str, list[object]]]:
    return space.tables()


def test_learning_rate_batch_channels_and_each_weight_are_searched_by_default() -> None:
    recipe = load_recipe("guide", ["loss.perceptual=0"])
    assert tables_of(default_space(recipe)) == {
        "optim.lr": {"log": pytest.approx([2e-5, 2e-3])},
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


def test_what_set_fixes_is_not_searched_by_default() -> None:
    overrides = ["model.channels=16", "loss.ab_l1=0.5"]
    recipe = load_recipe("simple", overrides)
    fixed = {override.partition("=")[0] for override in overrides}
    paths = [axis.path for axis in default_space(recipe, fixed).axes]
    assert paths == ["optim.lr", "data.batch", "loss.weighted_mse"]
    with pytest.raises(WrongCallError, match=r"--set fixes every setting.*--space"):
        default_space(load_recipe("simple"), {"optim.lr", "data.batch", "model.channels"})


def test_the_study_table_sets_options_and_leaves_the_default_space(tmp_path: Path) -> None:
    file, recipe = tmp_path / "space.toml", load_recipe("simple")
    file.write_text(
        """
        [study]
        startup = 3
        reduction = 2
        prune_signs = false
        keep = 1
        retries = 0
        register = "photos"
        """
    )
    options = StudyOptions(3, 2, prune_signs=False, keep=1, retries=0, register="photos")
    assert load_space_file(file, recipe) == (default_space(recipe), options)
    fixed = {"optim.lr"}
    assert load_space_file(file, recipe, fixed)[0] == default_space(recipe, fixed)
    file.write_text("[study]\nkeep = 1\n[optim.lr]\nlog = [1e-4, 1e-2]\n")
    space, options = load_space_file(file, recipe, fixed)  # a path in the file is searched anyway
    assert tables_of(space) == {"optim.lr": {"log": [1e-4, 1e-2]}}
    assert options == StudyOptions(keep=1)


def test_the_documented_study_table_holds_the_defaults() -> None:
    page = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text(encoding="utf-8")
    table = page[page.index("[study]\n") :].partition("```")[0]
    assert options_of(tomllib.loads(table)["study"]) == StudyOptions()
    assert [line.strip("# ").split(" ")[0] for line in table.splitlines()[1:]] == [
        field.name for field in fields(StudyOptions)
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"startups": 3}, r"study: unknown key startups; did you mean startup\?"),
        ({"reduction": 1}, r"study\.reduction: expected an integer of at least 2, got 1"),
        ({"retries": -1}, r"study\.retries: expected an integer of at least 0, got -1"),
        ({"keep": 2.5}, r"study\.keep: expected an integer of at least 1, got 2\.5"),
        ({"startup": True}, r"study\.startup: expected an integer of at least 1, got True"),
        ({"prune_signs": 0}, r"study\.prune_signs: expected true or false, got 0"),
        ({"register": ""}, r"study\.register: expected a model name, got ''"),
        (3, r"study: expected a table, got 3"),
    ],
)
def test_wrong_options_are_refused(table: object, message: str) -> None:
    with pytest.raises(WrongCallError, match=message):
        options_of(table)


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
    space, options = load_space_file(file, load_recipe("simple"))
    assert options == StudyOptions()
    assert tables_of(space) == {
        "optim.lr": {"log": [1e-4, 1e-2]},
        "model.depth": {"uniform": [2, 5]},
        "model.dropout": {"uniform": [0, 0.5]},
        "loss_options.weighted_mse.saturated": {"uniform": [1, 3]},
        "model.norm": {"choices": ["batch", "group"]},
        "data.flip": {"choices": [True, False]},
    }
    integers = {axis.path for axis in space.axes if axis.integer}
    assert integers == {"model.depth"}  # the recipe's own value is an integer


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"optim.lrr": {"log": [1e-4, 1e-2]}}, r"optim\.lrr; did you mean optim\.lr\?"),
        ({"optm.lr": {"log": [1e-4, 1e-2]}}, r"unknown key optm; did you mean optim\?"),
        ({"loss.ab_l2": {"log": [0.1, 1]}}, r"'ab_l2'; did you mean ab_l1\?"),
        ({"optim.lr": {"lg": [1e-4, 1e-2]}}, r"unknown key lg; did you mean log\?"),
        ({"optim.lr": {"log": [1e-2, 1e-4]}}, r"low < high, got 0\.01 and 0\.0001"),
        ({"optim.lr": {"log": [0, 1]}}, r"low > 0 on a log scale"),
        ({"optim.lr": {"log": [1e-4]}}, r"log = \[low, high\], got \[0\.0001\]"),
        ({"optim.lr": {"log": [1e-4, 20.0]}}, r"less than 10, got 20\.0 \(optim\.lr = 20\)"),
        ({"data.batch": {"choices": [8, "many"]}}, r"data\.batch: .*got 'many'"),
        ({"data.batch": {"choices": [8]}}, r"two different choices"),
        ({"data.batch": {"choices": 8}}, r"expected a list under choices, got 8"),
        ({"data.batch": {"uniform": [8.5, 16]}}, r"expected integers"),
        ({"data.batch": 8}, r"expected a table"),
        ({"optim.lr": {"log": [1e-4, 1e-2], "choices": [1]}}, r"expected exactly one of .*got 2"),
        ({"train.metric": {"choices": ["psnr", "ssim"]}}, r"cannot be searched.*--metric"),
        ({"model.norm": {"choices": ["batch", "layer"]}}, r"got 'layer'"),
        ({}, r"space is empty"),
    ],
)
def test_invalid_spaces_are_refused_with_one_line(tables: dict[str, object], message: str) -> None:
    with pytest.raises(WrongCallError, match=message) as refused:
        space_of(tables, load_recipe("simple"))
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_invalid_toml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongCallError, match="cannot read the search space"):
        load_space_file(tmp_path / "no.toml", load_recipe("simple"))
    (tmp_path / "bad.toml").write_text("[optim.lr")
    with pytest.raises(WrongCallError, match="cannot read the search space"):
        load_space_file(tmp_path / "bad.toml", load_recipe("simple"))


@pytest.mark.slow
@given(
    lr=st.floats(1e-6, 1e-2),
    depth=st.integers(1, 6),
    flip=st.booleans(),
    weight=st.floats(0.01, 10),
)
def test_with_values_changes_nothing_but_the_given_paths(
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


def test_own_values_are_none_if_one_lies_outside_the_space() -> None:
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


def test_a_range_of_integers_is_checked_at_integers() -> None:
    axis = Axis("model.depth", "uniform", (2, 5), integer=True)
    assert axis.probes() == [2, 3, 4, 4, 5]
    assert all(axis.holds(value) for value in axis.probes())
    assert not axis.holds(6)
    assert Axis("optim.lr", "log", (1e-4, 1e-2)).probes()[2] == pytest.approx(1e-3)
