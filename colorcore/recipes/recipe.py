"""A recipe: model, loss terms, optimizer, schedule and data settings of one training.

A recipe is a TOML file; the built-in ones are in ``colorcore/recipes/``. It is checked on loading:
an unknown key is refused with the nearest known name. All defaults are defined here, every
checkpoint and run contains its own recipe, and a search changes it by dotted path.
"""

from __future__ import annotations

import copy
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
from colorcore.storage.location import open_store
from colorcore.storage.store import StorageError

RECIPES = Path(__file__).parent
OFF = "none"
"""Spelling of None in a recipe's file and in an override, because TOML has no null."""
DEFAULT = "lite0-bins"
"""The recipe of commands that are given none: the best in docs/guides.md."""
DEFAULT_MODEL = "unet"
PALETTE = "palette"
"""``model.bins`` of a model that has as many bins as the palette it is trained with has colours."""
Decay = Annotated[float, Field(ge=0, lt=1)]


class RecipeError(Exception):
    """A recipe does not exist, or is not valid."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _off(value: Any) -> Any:
    return None if isinstance(value, str) and value == OFF else value


class ModelPart(_Part):
    """The network: a name in ``colorcore.models.MODELS`` and that model's options.

    The options are all keyword arguments of the model's constructor; those not set have the
    constructor's default. ``bins`` may be ``"palette"`` until :meth:`Recipe.for_palette`.
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
                keys = ["name", *schema.model_fields]
                raise ValueError(f"unknown key model.{key}{nearest(key, keys, 'model.')}")
        later = {key: given.pop(key) for key in ("bins",) if given.get(key) == PALETTE}
        options = schema.model_validate(given).model_dump()
        try:
            check_model(name, options)
        except ValueError as error:
            raise ValueError(f"model.{error}") from error
        return {"name": name, **options, **later}

    def options(self) -> dict[str, Any]:
        """Arguments of ``build_model`` other than the name."""
        return self.model_dump(exclude={"name"})


class OptimPart(_Part):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, gt=0, lt=10, description="peak learning rate")
    weight_decay: float = Field(1e-2, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps")
    warmup_epochs: float | None = Field(None, ge=0, description="the same in epochs, if set")
    clip: float | None = Field(1.0, gt=0, description="gradient norm to clip to")
    encoder_lr: float | None = Field(
        None,
        ge=0,
        le=10,
        description="learning rate of a pretrained encoder, as a factor of lr; 0 freezes it",
    )
    encoder_stages: int | None = Field(
        None, ge=1, description="how many of its last stages learn, if not all"
    )
    freeze_epochs: int = Field(0, ge=0, description="epochs before it starts to learn")

    _off = field_validator("clip", "warmup_epochs", "encoder_lr", "encoder_stages", mode="before")(
        _off
    )


class DataPart(_Part):
    """Batches, and their augmentation on the device."""

    batch: int = Field(16, ge=1, description="photos per step, over all workers")
    flip: bool = True
    crop: float | None = Field(
        None, gt=0, le=1, description="smallest share of a side that a random crop keeps"
    )
    jitter: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="largest change of brightness, contrast, saturation",
    )
    gamma: float = Field(
        0.0, ge=0, le=4, description="largest change of the exponent of L's tone curve"
    )

    _off = field_validator("crop", mode="before")(_off)


class TrainPart(_Part):
    """Duration, precision, validation and checkpoints."""

    epochs: int = Field(100, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the network; auto: on a GPU, if the training is long enough"
    )
    accumulate: int = Field(1, ge=1, description="backward passes per step, each on its share")
    ema: Decay = Field(0.999, description="decay of the averaged weights per step")
    eval_every: int = Field(1, ge=1, description="epochs between two validations")
    save_every: int | None = Field(
        None, ge=1, description="steps between two checkpoints, besides those of validations"
    )
    metric: str = Field("auc_balanced", description="metric that chooses the best checkpoint")
    patience: int | None = Field(
        None, ge=1, description="validations in a row without a better metric that end a training"
    )

    _off = field_validator("save_every", "patience", mode="before")(_off)


class DiscriminatorPart(_Part):
    """The discriminator of an adversarial training, and its optimizer.

    Adam's settings follow Isola et al. 2017 ("pix2pix"), section 3.3.
    """

    channels: int = Field(64, ge=1, le=1024, description="width of the first layer")
    scales: int = Field(3, ge=1, le=6, description="sizes of the photo that are judged")
    lr: float = Field(2e-4, gt=0, lt=10, description="peak learning rate, on optim's schedule")
    betas: tuple[Decay, Decay] = (0.5, 0.999)
    warmup: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of all steps in which only the discriminator learns",
    )


class Recipe(_Part):
    """The settings of one training. ``loss`` maps terms in ``colorcore.losses.TERMS`` to weights.

    ``discriminator`` is set if a term needs one, and only then.
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
            raise ValueError(f"discriminator: no loss term uses it; set loss.{ADVERSARIAL[0]} too")
        return values

    def for_palette(self, colors: int) -> Recipe:
        """The recipe for a palette of so many colours, if it says ``model.bins = "palette"``."""
        if self.model.options().get("bins") != PALETTE:
            return self
        model = ModelPart.model_validate({**self.model.model_dump(), "bins": colors})
        return self.model_copy(update={"model": model})

    def values(self) -> dict[str, Any]:
        """All settings as nested plain values, the input of :func:`parse_recipe`."""
        return {key: value for key, value in self.model_dump().items() if value is not None}

    def flat(self) -> dict[str, Any]:
        """All settings by dotted path, by which runs are compared."""
        return dict(_flatten(self.values()))

    def to_toml(self) -> str:
        """The recipe as TOML from which :func:`load_recipe` reads an equal one."""
        return tomli_w.dumps(_spelled_out(self.values()))


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def about_recipes() -> list[tuple[str, str]]:
    """Each built-in recipe with its description; unchecked, so nothing heavy is imported."""
    return [
        (name, tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))["about"])
        for name in recipe_names()
    ]


def load_recipe(name_or_file: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load a built-in recipe by name, or one from a TOML file, with ``KEY=VALUE`` overrides.

    The file may be in an object store (``s3://…``).

    Keys are dotted paths; values are TOML (``0.2``, ``true``, ``"group"``), bare words are
    strings, and ``none`` turns an optional setting off.

    Raises:
        RecipeError: no such recipe, no valid TOML, an unknown key or a value out of range.
    """
    if name_or_file.endswith(".toml") or "/" in name_or_file:
        where = name_or_file
    else:
        where = str(RECIPES / f"{name_or_file}.toml")
        if not Path(where).is_file():
            raise RecipeError(
                f"expected a recipe's name or a .toml file, got {name_or_file!r}"
                f"{nearest(name_or_file, recipe_names())}; see: cc recipes"
            )
    try:
        values = tomllib.loads(open_store(where).read("").decode())
    except (OSError, ValueError, StorageError) as error:
        raise RecipeError(f"cannot read the recipe {where}: {error}") from error
    if not (settings := list(overrides)):
        return parse_recipe(values, where)
    changed = copy.deepcopy(values)
    for setting in settings:
        _override(changed, setting)
    what = settings[0] if len(settings) == 1 else f"{len(settings)} settings"
    try:
        return parse_recipe(changed, f"{name_or_file} with {what}")
    except RecipeError:
        parse_recipe(values, where)  # if the file itself is wrong, the message names it
        raise


def overridden(recipe: Recipe, overrides: Iterable[str], where: str) -> Recipe:
    """A recipe with ``KEY=VALUE`` overrides, as :func:`load_recipe` applies them.

    Raises:
        RecipeError: an unknown key or a value out of range; the message begins with ``where``.
    """
    values = _spelled_out(recipe.values())
    for override in overrides:
        _override(values, override)
    return parse_recipe(values, where)


def parse_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from nested values, such as those in a checkpoint.

    Raises:
        RecipeError: an unknown key or a value out of range; the message begins with ``where``.
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
        path = path[:3]  # the rest is the type of Option that pydantic tried
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        part: Any = Recipe
        for name in path[:-1]:
            part = part.model_fields[name].annotation
            part = next((one for one in get_args(part) if one is not type(None)), part)
        text = f"unknown key {'.'.join(path)}"
        if len(path) == 1 and (tables := _tables_with(path[0])):
            return f"{text}; did you mean {' or '.join(f'{each}.{path[0]}' for each in tables)}?"
        return text + nearest(
            path[-1], part.model_fields, "".join(f"{each}." for each in path[:-1])
        )
    if first["type"] in ("model_type", "dict_type"):
        return f"{'.'.join(path)}: expected a table of settings, got {first['input']!r}"
    return f"{'.'.join(path)}: {first['msg'].lower()}, got {first['input']!r}"


def _tables_with(key: str) -> list[str]:
    """The recipe's tables that have this key."""
    from colorcore.models import MODELS, options_model

    found = ["model"] if any(key in options_model(each).model_fields for each in MODELS) else []
    for name, field in Recipe.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        if any(key in getattr(kind, "model_fields", ()) for kind in kinds):
            found.append(name)
    return found


def _spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested values with :data:`OFF` in place of None."""
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
