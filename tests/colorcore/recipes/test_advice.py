"""The guides' advice, on every built-in recipe, and for what the guides say in so many words."""

from __future__ import annotations

import json
import math

import pytest

from colorcore.losses import TERMS
from colorcore.recipes.advice import RANGES, WIDTHS, Advised, advice, advised, changes
from colorcore.recipes.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from colorcore.scores.signs import NOT_FINITE, Sign

NAMES = (
    "diverged", "grey", "washed_out", "over_saturated", "sepia", "two_tone", "purple_cast",
    "wrong_brightness", "oscillating", "plateaued",
)  # fmt: skip


def sign(name: str, hue: float | None = None) -> Sign:
    return Sign(name, 1.0, 0.5, "as seen", hue)


def recipe(loss: dict[str, float], **parts: object) -> Recipe:
    return parse_recipe({"loss": loss, **parts}, "here")


def steps(name: str, at: Recipe, hue: float | None = None) -> dict[str, tuple[object, object]]:
    return {each.key: (each.before, each.after) for each in changes(sign(name, hue), at)}


TRAINING = {"rgb_l1": 0.5, "perceptual": 1.0, "ab_huber": 2.0, "diversity": 0.1}
TUNING = {"perceptual": 0.5, "luminance": 0.3, "ab": 3.0, "saturation": 0.5}
RGB = {"model": {"head": "rgb"}}
BINS = {"model": {"name": "resnet-unet"}}
STEADY = {"optim": {"schedule": "constant", "clip": "none"}}
CASES = [
    *(({term: weight, "ab_l1": 1.0}, RGB) for term in RANGES for weight in (1000.0, 1e-6, 0.0)),
    *(({term: 1.0, "ab_l1": 1.0}, STEADY) for term in TERMS if term not in RANGES),
    ({"weighted_mse": 1.0}, STEADY),
    ({"bins_ce": 1.0}, BINS),
    ({"bins_focal": 2.0, "residual": 1.0, "adversarial": 0.05}, BINS),
    (TRAINING, STEADY),
    (TUNING, RGB),
]


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_takes_every_advice(name: str):
    at = load_recipe(name)
    for each in NAMES:
        for hue in (0.0, 90.0):
            found = changes(sign(each, hue), at)
            changed = load_recipe(name, [change.override for change in found]).flat()
            before = at.flat()
            for change in found:
                assert changed[change.key] == pytest.approx(change.after)
                assert before.get(change.key, change.before) == change.before
                assert changed[change.key] != change.before
            kept = changed.keys() - {change.key for change in found}
            assert all(changed[key] == before[key] for key in kept)
            line = advice(sign(each, hue), at)
            assert line
            assert "\n" not in line


@pytest.mark.parametrize(("loss", "parts"), CASES)
def test_whatever_the_terms_advice_is_taken(loss: dict[str, float], parts: dict[str, object]):
    at = recipe(loss, **parts)
    for each in NAMES:
        values = {key: value for key, (_, value) in steps(each, at, 90.0).items()}
        nested = at.model_dump()
        nested["optim"]["clip"] = nested["optim"]["clip"] or "none"
        nested["data"]["crop"] = "none"
        for key, value in values.items():
            *path, last = key.split(".")
            inner = nested
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
        nested = {key: _without_none(value) for key, value in nested.items()}
        parse_recipe(nested, each)
        line = advice(sign(each, 90.0), at)
        assert all(key in line for key in values)
        for key, value in values.items():
            if key.startswith("loss."):
                low, high = RANGES.get(key.removeprefix("loss."), (0.0, 1.0))
                assert low <= value <= high or (key, value) == ("loss.perceptual", 0.01)


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return value


def test_what_the_training_guide_says():
    at = recipe(TRAINING, optim={"lr": 2e-4})
    red_green = {
        "loss.diversity": (0.1, 0.2),
        "loss.ab_huber": (2.0, 3.0),
        "loss.perceptual": (1.0, 1.5),
        "loss.rgb_l1": (0.5, 0.3),
    }
    assert steps("two_tone", at, 0.0) == red_green
    sepia = steps("sepia", at)
    assert (sepia["loss.ab_huber"], sepia["loss.rgb_l1"]) == ((2.0, 3.0), (0.5, 0.3))
    dull = steps("washed_out", at)
    assert dull["loss_options.ab_huber.beta"] == (0.1, 0.2)
    assert dull["loss.diversity"] == (0.1, 0.15)
    assert dull["optim.lr"] == (2e-4, 3e-4)
    assert dull["loss.perceptual"][1] > 1.0
    assert steps("plateaued", at)["optim.lr"] == (2e-4, 3e-4)
    line = advice(sign("two_tone", 0.0), at)
    assert line.startswith("raise loss.diversity 0.1 → 0.2, loss.ab_huber 2 → 3")
    assert line.endswith("lower loss.rgb_l1 0.5 → 0.3")


def test_what_the_tuning_guide_says():
    at = recipe(TUNING, **RGB)
    purple_or_sepia = {
        "loss.perceptual": (0.5, 0.3),
        "loss.ab": (3.0, 4.0),
        "loss.saturation": (0.5, 1.0),
    }
    assert steps("sepia", at) == steps("purple_cast", at) == purple_or_sepia
    assert steps("washed_out", at) == {"loss.saturation": (0.5, 1.0), "loss.ab": (3.0, 4.0)}
    assert steps("wrong_brightness", at) == {"loss.luminance": (0.3, 0.5)}
    wild = steps("over_saturated", at)
    assert wild["loss.perceptual"] == (0.5, 0.8)
    assert wild["loss.ab"] == (3.0, 2.0)
    assert wild["loss.saturation"][1] < 0.5
    assert steps("grey", at)["loss.saturation"] == (0.5, 1.5)
    # "Too much red/green but not enough blue/yellow: increase the b channel's weight."
    assert steps("two_tone", at, 175.0) == {"loss_options.ab.b": (1.0, 1.5)}
    assert steps("two_tone", at, 85.0) == {"loss_options.ab.a": (1.0, 1.5)}


def test_what_the_simple_truth_says():
    at = load_recipe("simple", ["data.batch=64", "optim.lr=1e-4", "optim.warmup=0.0"])
    assert steps("oscillating", at) == {
        "optim.lr": (1e-4, 2e-5),
        "data.batch": (64, 16),
        "optim.warmup": (0.0, 0.1),
    }
    again = load_recipe("simple")  # lr 5e-5, batch 16, warm-up 0.1
    assert steps("oscillating", again) == {"optim.lr": (5e-5, 2e-5), "data.batch": (16, 8)}
    assert steps("plateaued", again)["model.channels"] == (96, 128)
    assert "colourful" in advice(sign("plateaued"), again)
    assert steps("sepia", again) == {"model.channels": (96, 128), "loss.perceptual": (None, 0.01)}
    assert "add loss.perceptual 0.01" in advice(sign("sepia"), again)


def test_a_term_that_is_switched_off_is_switched_on_and_none_is_added():
    off = recipe({"ab_huber": 2.0, "diversity": 0.0})
    assert steps("sepia", off)["loss.diversity"] == (0.0, 0.1)
    without = recipe({"ab_huber": 2.0, "rgb_l1": 0.5})
    assert not {"loss.diversity", "loss.saturation"} & steps("sepia", without).keys()


def test_a_weight_beyond_the_guides_is_brought_back_and_not_raised():
    wild = recipe({"ab_huber": 2.0, "diversity": 100.0, "saturation": 50.0})
    found = steps("sepia", wild)
    assert found["loss.diversity"] == (100.0, RANGES["diversity"][1])
    assert found["loss.saturation"] == (50.0, RANGES["saturation"][1])
    line = advice(sign("sepia"), wild)
    assert "lower loss.diversity 100 → 0.4, loss.saturation 50 → 1.5" in line


def test_the_only_term_is_not_made_heavier():
    assert "loss.ab" not in steps("sepia", recipe({"ab": 3.0}))
    assert "loss.ab" in steps("sepia", recipe({"ab": 3.0, "luminance": 0.3}, **RGB))


def test_a_recipe_at_its_ends_gets_more_capacity():
    full = recipe({"perceptual": 0.2, "ab": 5.0, "saturation": 1.5, "luminance": 0.2}, **RGB)
    assert steps("sepia", full) == {"model.channels": (64, 96)}
    widest = recipe({"ab_l1": 1.0}, model={"channels": WIDTHS[-1]})
    assert steps("two_tone", widest) == {}
    assert advice(sign("two_tone", 0.0), widest) == "or train with --recipe guide"


def test_accumulation_still_divides_a_smaller_batch():
    at = recipe({"ab_l1": 1.0}, data={"batch": 24}, train={"accumulate": 12})
    assert "data.batch" not in steps("oscillating", at)


@pytest.mark.parametrize(("clip", "step"), [("none", ("none", 1.0)), (1.0, (1.0, 0.5))])
def test_what_diverges_is_clipped(clip: object, step: tuple[object, object]):
    at = recipe({"ab_l1": 1.0}, optim={"clip": clip, "lr": 1e-3})
    assert steps("diverged", at)["optim.clip"] == step
    assert steps("diverged", at)["optim.lr"] == (1e-3, 2e-4)
    verb = "set" if clip == "none" else "optim.lr 0.001 → 0.0002,"
    assert f"{verb} optim.clip {clip if clip == 'none' else 1} → " in advice(sign("diverged"), at)


def test_a_sign_with_its_advice_is_a_line_and_a_json_record():
    at = load_recipe("simple")
    first, broken = advised([sign("oscillating"), NOT_FINITE], at)
    assert isinstance(first, Advised)
    assert str(first) == f"oscillating: as seen; {advice(sign('oscillating'), at)}"
    record = json.loads(json.dumps(first.as_record(), allow_nan=False))
    assert record == {
        "name": "oscillating",
        "value": 1.0,
        "threshold": 0.5,
        "meaning": "as seen",
        "advice": advice(sign("oscillating"), at),
    }
    assert broken.as_record()["value"] is None
    assert math.isnan(broken.sign.value)
