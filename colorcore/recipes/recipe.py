"""A recipe: model, loss terms, optimiser, schedule and data settings of one training.

A recipe is a TOML file; the built-in ones stand in ``colorcore/recipes/``. It is checked when
loaded: an unknown key is refused with the nearest known name. Every default lives here, every
checkpoint and run carries its own recipe, and a search changes it by dotted path.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from colorcore.options import Option, nearest, require_kinds

RECIPES = Path(__file__).parent
OFF = "none"
"""What None is called in a recipe's file and in an override: TOML has no null."""
DEFAULT_MODEL = "unet"
Decay = Annotated[float, Field(ge=0, lt=1)]


class RecipeError(Exception):
    """A recipe that does not exist or does not hold what a recipe holds."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _off(value: Any) -> Any:
    return None if isinstance(value, str) and value == OFF else value


class ModelPart(_Part):
    """The network: a name out of ``colorcore.models.MODELS`` and that model's options.

    The options are the keyword arguments of the model's constructor, all of them: what is not
    set has the constructor's default.
    """

    model_config = ConfigDict(extra="allow")

    name: str = DEFAULT_MODEL

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        from colorcore.models import MODELS, check_model, options_model

        if not isinstance(values, Mapping):
            return values
        name = values.get("name", DEFAULT_MODEL)
        if not isinstance(name, str):
            return {"name": name}
        if name not in MODELS:
            raise ValueError(f"model.name is {name!r}{nearest(name, MODELS)}")
        schema = options_model(name)
        given = {key: value for key, value in values.items() if key != "name"}
        for key in given:
            if key not in schema.model_fields:
                raise ValueError(
                    f"unknown key model.{key}{nearest(key, ['name', *schema.model_fields])}"
                )
        options = schema.model_validate(given).model_dump()
        try:
            check_model(name, options)
        except ValueError as error:
            raise ValueError(f"model.{error}") from error
        return {"name": name, **options}

    def options(self) -> dict[str, Any]:
        """What ``build_model`` takes beside the name."""
        return self.model_dump(exclude={"name"})


class OptimPart(_Part):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, gt=0, lt=10, description="peak learning rate")
    weight_decay: float = Field(1e-2, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    warmup_epochs: float | None = Field(None, ge=0, description="the same in epochs, if set")
    clip: float | None = Field(1.0, gt=0, description="norm that gradients are clipped to")

    _off = field_validator("clip", "warmup_epochs", mode="before")(_off)


class DataPart(_Part):
    """Batches and what is done to them on the device."""

    batch: int = Field(16, ge=1, description="photos a step, over all workers")
    flip: bool = True
    crop: float | None = Field(
        None, gt=0, le=1, description="smallest share of a side that a random crop keeps"
    )
    jitter: float = Field(
        0.0, ge=0, lt=1, description="most that brightness, contrast, saturation differ from 1"
    )

    _off = field_validator("crop", mode="before")(_off)


class TrainPart(_Part):
    """How long, how exactly, and what is watched."""

    epochs: int = Field(100, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulate: int = Field(1, ge=1, description="backward passes a step, each on its share")
    ema: Decay = Field(0.999, description="decay of the averaged weights a step")
    eval_every: int = Field(1, ge=1, description="epochs between two validations")
    save_every: int | None = Field(
        None, ge=1, description="steps between two checkpoints, beside those of validations"
    )
    metric: str = Field("auc_balanced", description="by which the best checkpoint is chosen")

    _off = field_validator("save_every", mode="before")(_off)


class DiscriminatorPart(_Part):
    """The judge of an adversarial training, and its optimiser.

    Adam's settings are those of Isola et al. 2017 ("pix2pix"), section 3.3.
    """

    channels: int = Field(64, ge=1, le=1024, description="width of each judge's first layer")
    scales: int = Field(3, ge=1, le=6, description="copies of the photo that are judged")
    lr: float = Field(2e-4, gt=0, lt=10, description="peak learning rate; optim's schedule")
    betas: tuple[Decay, Decay] = (0.5, 0.999)
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of all steps in which the model does not listen to it"
    )


class Recipe(_Part):
    """One training, described. ``loss`` maps terms of ``colorcore.losses.TERMS`` to weights.

    ``discriminator`` is there where a term needs one, and nowhere else.
    """

    about: str = ""
    model: ModelPart = Field(default_factory=ModelPart)  # not at import: it imports the models
    loss: dict[str, float]
    loss_options: dict[str, dict[str, Option]] = {}
    optim: OptimPart = OptimPart()
    discriminator: DiscriminatorPart | None = None
    data: DataPart = DataPart()
    train: TrainPart = TrainPart()

    @model_validator(mode="before")
    @classmethod
    def _judged(cls, values: Any) -> Any:
        from colorcore.losses import ADVERSARIAL

        loss = values.get("loss") if isinstance(values, Mapping) else None
        if not isinstance(loss, Mapping):
            return values
        if any(name in ADVERSARIAL for name in loss):
            return {"discriminator": {}, **values}
        if values.get("discriminator") is not None:
            raise ValueError(
                f"discriminator: no loss term listens to one; set loss.{ADVERSARIAL[0]} too"
            )
        return values

    def values(self) -> dict[str, Any]:
        """Every setting as nested plain values, as :func:`parse_recipe` takes them."""
        return {key: value for key, value in self.model_dump().items() if value is not None}

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted path, as runs are compared by."""
        return dict(_flatten(self.values()))

    def to_toml(self) -> str:
        """The recipe as a file from which :func:`load_recipe` reads an equal one."""
        return tomli_w.dumps(_spelled_out(self.values()))


def recipe_names() -> list[str]:
    """The built-in recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def about_recipes() -> list[tuple[str, str]]:
    """The built-in recipes, each with its one line; unchecked, so nothing heavy is imported."""
    return [
        (name, tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))["about"])
        for name in recipe_names()
    ]


def load_recipe(name_or_file: str, overrides: Iterable[str] = ()) -> Recipe:
    """A built-in recipe by name, or one from a TOML file, with ``KEY=VALUE`` overrides.

    Keys are dotted paths; values are TOML (``0.2``, ``true``, ``"group"``), bare words are
    strings, and ``none`` turns an optional setting off.

    Raises:
        RecipeError: no such recipe, no valid TOML, an unknown key or a value out of range.
    """
    if name_or_file.endswith(".toml") or "/" in name_or_file:
        path = Path(name_or_file)
    else:
        path = RECIPES / f"{name_or_file}.toml"
        if not path.is_file():
            raise RecipeError(
                f"expected a recipe's name or a .toml file, got {name_or_file!r}"
                f"{nearest(name_or_file, recipe_names())}; see: cc recipes"
            )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    for override in overrides:
        _override(values, override)
    return parse_recipe(values, str(path))


def parse_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from nested values, such as a checkpoint carries.

    Raises:
        RecipeError: an unknown key or a value out of range; ``where`` is named.
    """
    from colorcore.losses import TERMS, build_terms
    from colorcore.scores.metrics import HIGHER_IS_BETTER

    try:
        recipe = Recipe.model_validate(values)
        for term, options in recipe.loss_options.items():
            if term in TERMS:
                require_kinds(f"loss_options.{term}", options, TERMS[term])
        build_terms(recipe.loss, recipe.loss_options)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from error
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error
    metric = recipe.train.metric
    if metric not in HIGHER_IS_BETTER:
        raise RecipeError(f"{where}: train.metric is {metric!r}{nearest(metric, HIGHER_IS_BETTER)}")
    if recipe.data.batch % recipe.train.accumulate:
        raise RecipeError(
            f"{where}: expected data.batch to be divisible by train.accumulate, "
            f"got {recipe.data.batch} and {recipe.train.accumulate}"
        )
    return recipe


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"expected KEY=VALUE such as optim.lr=1e-4, got {override!r}")
    inner = values
    for part in parts[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"{key}: {part} is a value, not a table")
    text = text.strip()
    try:
        inner[parts[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        inner[parts[-1]] = text


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if path[:1] == ["loss_options"]:
        path = path[:3]  # what follows is the kind of Option that was tried
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        part: Any = Recipe
        for name in path[:-1]:
            part = part.model_fields[name].annotation
            part = next((one for one in get_args(part) if one is not type(None)), part)
        return f"unknown key {'.'.join(path)}{nearest(path[-1], part.model_fields)}"
    if first["type"] in ("model_type", "dict_type"):
        return f"{'.'.join(path)}: expected a table of settings, got {first['input']!r}"
    return f"{'.'.join(path)}: {first['msg'].lower()}, got {first['input']!r}"


def _spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested values with :data:`OFF` for None."""
    return {
        name: _spelled_out(value) if isinstance(value, Mapping) else OFF if value is None else value
        for name, value in values.items()
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
