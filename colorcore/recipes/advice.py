"""The guides' advice for a sign: which keys of the current recipe to change, and to what.

There are three guides, each with its own recipes. The training guide (terms ``diversity``,
``ab_huber``, ``rgb_l1``) and the tuning guide (``saturation``, ``ab``, ``luminance``) change the
weights of the loss. "The simple truth", for all other recipes, holds that capacity, learning rate,
batch and photos matter more; the bins guide, that rare colours must count. Steps are the guides'
own (perceptual 0.5 → 0.3, ab 3 → 4, diversity 0.1 → 0.2), applied as factors to other values,
within the range of weights that the guides name. A weight outside that range is first moved into
it.

Where guides contradict each other, each applies to its own recipes: against washed-out colours
the training guide raises ``perceptual``, the tuning guide ``saturation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from colorcore.losses import TERMS
from colorcore.options import options_of
from colorcore.recipes.recipe import recipe_names
from colorcore.scores.signs import is_red_green

if TYPE_CHECKING:
    from colorcore.recipes.recipe import Recipe
    from colorcore.scores.signs import Sign

RANGES: dict[str, tuple[float, float]] = {
    "rgb_l1": (0.1, 1.0),
    "luminance": (0.2, 1.0),
    "perceptual": (0.2, 2.0),
    "ab": (1.0, 5.0),
    "ab_huber": (1.0, 5.0),
    "saturation": (0.1, 1.5),
    "diversity": (0.05, 0.4),
    "adversarial": (0.01, 0.1),
}
"""Range of weights that are advised: the guides' smallest and largest, or a factor of two more."""
FIRST = {
    "rgb_l1": 0.5,
    "luminance": 0.3,
    "perceptual": 0.5,
    "ab": 3.0,
    "ab_huber": 2.0,
    "saturation": 0.5,
    "diversity": 0.1,
}
"""The guides' initial weight, for a term whose weight is 0."""
WIDTHS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Model widths; 64, 96 and 128 are those of the guides."""
CALM_LR, BRISK_LR, SIMPLE_LR = 2e-5, 3e-4, 5e-5
"""Learning rates: against oscillation, against a plateau, and that of "the simple truth"."""
PHOTOS = "check with cc inspect that the photos are colourful and have no colour cast"
PHOTOS_MATTER = frozenset({"grey", "over_saturated", "sepia", "purple_cast", "plateaued"})
"""Signs that bad photos can cause too ("data quality" in two guides)."""
OTHER_RECIPES = {
    "grey": "enhanced-vibrant",
    "washed_out": "enhanced-vibrant",
    "sepia": "enhanced",
    "purple_cast": "enhanced",
    "two_tone": "guide",
}
"""Recipes whose terms counter a sign, for a recipe without such terms."""

Changes: TypeAlias = "Iterator[Change]"


@dataclass(frozen=True, slots=True)
class Change:
    """One setting of a recipe: its current value (None: not set yet), and the value to try."""

    key: str
    before: Any
    after: Any

    @property
    def override(self) -> str:
        """The argument of ``--set``: KEY=VALUE."""
        return f"{self.key}={_spell(self.after)}"

    @property
    def verb(self) -> str:
        """The kind of change: raise, lower, set or add."""
        if self.before is None:
            return "add"
        if isinstance(self.before, str) or isinstance(self.after, str):
            return "set"
        return "raise" if self.after > self.before else "lower"

    def __str__(self) -> str:
        """Such as "loss.diversity 0.1 → 0.2"."""
        before = "" if self.before is None else f"{_spell(self.before)} → "
        return f"{self.key} {before}{_spell(self.after)}"


@dataclass(frozen=True, slots=True)
class Advised:
    """A sign with its advice; "" where there is none."""

    sign: Sign
    advice: str

    def __str__(self) -> str:
        """The sign, its meaning and the advice in one line."""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.sign.name}: {self.sign.meaning}{advice}"

    def as_record(self) -> dict[str, Any]:
        """As plain values for JSON; a number that JSON cannot hold is None."""
        sign = self.sign
        value, threshold = (
            number if math.isfinite(number) else None for number in (sign.value, sign.threshold)
        )
        return {
            "name": sign.name,
            "value": value,
            "threshold": threshold,
            "meaning": sign.meaning,
            "advice": self.advice,
        }


def advised(signs: Iterable[Sign], recipe: Recipe) -> tuple[Advised, ...]:
    """Pair each sign with its advice."""
    return tuple(Advised(sign, advice(sign, recipe)) for sign in signs)


def advice(sign: Sign, recipe: Recipe) -> str:
    """What to change, by how much, and what else to check, in one line.

    Such as "raise loss.diversity 0.1 → 0.2, loss.ab_huber 2 → 3; lower loss.rgb_l1 0.5 → 0.3".
    """
    by_verb: dict[str, list[str]] = {}
    for change in changes(sign, recipe):
        by_verb.setdefault(change.verb, []).append(str(change))
    parts = [f"{verb} {', '.join(texts)}" for verb, texts in by_verb.items()]
    other = OTHER_RECIPES.get(sign.name)
    if _is_simple(recipe) and other in recipe_names():
        parts.append(f"or train with --recipe {other}")
    if sign.name in PHOTOS_MATTER:
        parts.append(PHOTOS)
    return "; ".join(parts) or "the guides have no further advice for this recipe; see: cc recipes"


def changes(sign: Sign, recipe: Recipe) -> list[Change]:
    """The changes that the guides advise, each with a key that the recipe has.

    If all weights are at their limits already, the advice is more capacity.
    """
    found = _different(_ADVICE[sign.name](sign, recipe))
    if not found and sign.name in ("grey", "washed_out", "sepia", "two_tone", "purple_cast"):
        return _different(_wider(recipe))
    return found


def _different(found: Changes) -> list[Change]:
    by_key = {change.key: change for change in found}
    return [change for change in by_key.values() if change.after != change.before]


# -- one function per sign -------------------------------------------------------------------------


def _grey(sign: Sign, recipe: Recipe) -> Changes:
    """Tuning guide: "Gray output: ↑↑ saturation"; the training guide's "too dull", doubled."""
    yield from _weight(recipe, "saturation", 3.0)
    yield from _weight(recipe, "diversity", 2.0)
    yield from _more_vivid(recipe)


def _washed_out(sign: Sign, recipe: Recipe) -> Changes:
    """Tuning guide, "washed out"; training guide, "too conservative/dull" and its table."""
    yield from _weight(recipe, "saturation", 2.0)
    yield from _weight(recipe, "diversity", 1.5)
    yield from _more_vivid(recipe)


def _more_vivid(recipe: Recipe) -> Changes:
    yield from _weight(recipe, "ab", 4 / 3)
    if "diversity" in recipe.loss:
        yield from _weight(recipe, "perceptual", 1.5)
        yield from _option(recipe, "ab_huber", "beta", 2.0, most=0.2)
        yield from _faster(recipe, BRISK_LR)
    yield from _option(recipe, "weighted_mse", "saturated", 4 / 3, most=3.0)
    yield from _rebalance(recipe, 1.0)
    yield from _capacity(recipe)


def _over_saturated(sign: Sign, recipe: Recipe) -> Changes:
    """Tuning guide, "too vibrant" and "too wild"; halving the terms that push colours is ours."""
    yield from _weight(recipe, "saturation", 0.5)
    yield from _weight(recipe, "diversity", 0.5)
    yield from _weight(recipe, "adversarial", 0.5)
    yield from _weight(recipe, "perceptual", 1.6)
    yield from _weight(recipe, "ab", 2 / 3)
    yield from _option(recipe, "weighted_mse", "saturated", 2 / 3, least=1.0)
    yield from _rebalance(recipe, 0.5)


def _sepia(sign: Sign, recipe: Recipe) -> Changes:
    """Training guide, "sepia"; tuning guide, "purple/sepia"; else "the simple truth"."""
    yield from _weight(recipe, "diversity", 2.0)
    yield from _less_cautious(recipe)


def _purple_cast(sign: Sign, recipe: Recipe) -> Changes:
    """Tuning guide, "purple/sepia"."""
    yield from _less_cautious(recipe)


def _less_cautious(recipe: Recipe) -> Changes:
    yield from _weight(recipe, "ab_huber", 1.5)
    yield from _weight(recipe, "ab", 4 / 3)
    yield from _weight(recipe, "saturation", 2.0)
    yield from _weight(recipe, "rgb_l1", 0.6)
    yield from _weight(recipe, "perceptual", 0.6)
    yield from _rebalance(recipe, 1.0)
    yield from _capacity(recipe)


def _two_tone(sign: Sign, recipe: Recipe) -> Changes:
    """Training guide, "mostly red/green"; tuning guide, "per-channel AB weights"."""
    yield from _weight(recipe, "diversity", 2.0)
    yield from _weight(recipe, "ab_huber", 1.5)
    missing = "b" if is_red_green(sign.hue or 0.0) else "a"
    yield from _option(recipe, "ab", missing, 1.5, most=3.0)
    if "diversity" in recipe.loss:
        yield from _weight(recipe, "perceptual", 1.5)
    yield from _weight(recipe, "rgb_l1", 0.6)
    yield from _rebalance(recipe, 1.0)
    yield from _capacity(recipe)


def _wrong_brightness(sign: Sign, recipe: Recipe) -> Changes:
    """Tuning guide, "brightness is wrong"."""
    if recipe.model.options().get("head") != "rgb":
        return
    if "luminance" in recipe.loss or "rgb_l1" not in recipe.loss:
        yield from _weight(recipe, "luminance", 5 / 3, add=True)
    else:
        yield from _weight(recipe, "rgb_l1", 5 / 3)


def _oscillating(sign: Sign, recipe: Recipe) -> Changes:
    """From "the simple truth", "if loss oscillates" and "why loss oscillates"."""
    yield from _slower(recipe)
    yield from _smaller_batch(recipe)
    yield from _warm_up(recipe)


def _plateaued(sign: Sign, recipe: Recipe) -> Changes:
    """From "the simple truth", "plateaus at high value"; training guide, "no improvement"."""
    yield from _wider(recipe)
    simple = _is_simple(recipe)
    yield from _faster(recipe, SIMPLE_LR if simple else BRISK_LR)
    epochs = recipe.train.epochs
    yield Change("train.epochs", epochs, 2 * epochs)


def _diverged(sign: Sign, recipe: Recipe) -> Changes:
    """Training guide, "training unstable"; clipping is ours."""
    yield from _slower(recipe)
    clip = recipe.optim.clip
    if clip is None:
        yield Change("optim.clip", "none", 1.0)
    elif clip > 0.1:
        yield Change("optim.clip", clip, _round(max(clip / 2, 0.1)))
    yield from _warm_up(recipe)


_ADVICE: dict[str, Callable[[Sign, Recipe], Changes]] = {
    "diverged": _diverged,
    "grey": _grey,
    "washed_out": _washed_out,
    "over_saturated": _over_saturated,
    "sepia": _sepia,
    "two_tone": _two_tone,
    "purple_cast": _purple_cast,
    "wrong_brightness": _wrong_brightness,
    "oscillating": _oscillating,
    "plateaued": _plateaued,
}

# -- steps -----------------------------------------------------------------------------------------


def _weight(recipe: Recipe, term: str, factor: float, *, add: bool = False) -> Changes:
    """A term's weight times a factor, within its range; ``add`` adds a missing term.

    The only term of a loss is left alone, because AdamW is insensitive to the scale of a loss.
    """
    now = recipe.loss.get(term)
    if now is None and not add:
        return
    others = any(weight > 0 for name, weight in recipe.loss.items() if name != term)
    if not now:
        if factor > 1.0:
            yield Change(f"loss.{term}", now, FIRST[term])
    elif others:
        least, most = RANGES[term]
        if now > most:
            yield Change(f"loss.{term}", now, most)
        elif now >= least:
            yield Change(f"loss.{term}", now, _round(min(max(now * factor, least), most)))
        elif factor > 1.0:
            yield Change(f"loss.{term}", now, least)


def _option(
    recipe: Recipe, term: str, option: str, factor: float, *, least: float = 0.0, most: float = 1e9
) -> Changes:
    """A numeric option of a used term times a factor, within bounds."""
    if not recipe.loss.get(term) or option not in options_of(TERMS[term]):
        return
    now = float(_value(recipe, term, option))
    after = _round(min(max(now * factor, least), most))
    if (after > now) == (factor > 1.0):
        yield Change(f"loss_options.{term}.{option}", now, after)


def _rebalance(recipe: Recipe, share: float) -> Changes:
    """The weight of rare colours in bins, 0..1: up to the bins guide's (1), or half the current."""
    for term in ("bins_ce", "bins_focal"):
        if recipe.loss.get(term):
            now = float(_value(recipe, term, "rebalance"))
            if (now < 1.0) if share == 1.0 else (now > 0.0):
                after = min(1.0, now + 0.5) if share == 1.0 else _round(now * share)
                yield Change(f"loss_options.{term}.rebalance", now, after)


def _value(recipe: Recipe, term: str, option: str) -> Any:
    import inspect

    default = inspect.signature(TERMS[term]).parameters[option].default
    return recipe.loss_options.get(term, {}).get(option, default)


def _is_simple(recipe: Recipe) -> bool:
    """Whether the loss has none of the terms whose weights the other two guides change."""
    return not any(recipe.loss.get(term) for term in ("saturation", "diversity", "perceptual"))


def _capacity(recipe: Recipe) -> Changes:
    """A larger model and a little perceptual loss: "the simple truth", "still sepia/gray"."""
    if _is_simple(recipe):
        yield from _wider(recipe)
        if "weighted_mse" in recipe.loss and "perceptual" not in recipe.loss:
            yield Change("loss.perceptual", None, 0.01)


def _wider(recipe: Recipe) -> Changes:
    now = recipe.model.options().get("channels")
    if isinstance(now, int) and now < WIDTHS[-1]:
        yield Change("model.channels", now, next(width for width in WIDTHS if width > now))


def _slower(recipe: Recipe) -> Changes:
    """A fifth of the rate, but at least the guide's 2e-5; half of a rate that is below that."""
    now = recipe.optim.lr
    yield Change("optim.lr", now, _round(max(now / 5, CALM_LR) if now > CALM_LR else now / 2))


def _faster(recipe: Recipe, rate: float) -> Changes:
    if recipe.optim.lr < rate:
        yield Change("optim.lr", recipe.optim.lr, rate)


def _smaller_batch(recipe: Recipe) -> Changes:
    now = recipe.data.batch
    for batch in (16, 8):
        if now > batch and batch % recipe.train.accumulate == 0:
            yield Change("data.batch", now, batch)
            return


def _warm_up(recipe: Recipe) -> Changes:
    """OneCycle with a tenth of all steps for warm-up, unless the recipe has a warm-up."""
    optim = recipe.optim
    if optim.schedule == "constant":
        yield Change("optim.schedule", "constant", "onecycle")
    if optim.warmup < 0.1 and not getattr(optim, "warmup_epochs", None):
        yield Change("optim.warmup", optim.warmup, 0.1)


def _round(value: float) -> float:
    """Round to two significant digits."""
    return round(value, 1 - math.floor(math.log10(abs(value)))) if value else 0.0


def _spell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
