import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from colorcore.models import build_model
from colorcore.recipes.recipe import (
    PALETTE,
    DiscriminatorPart,
    ModelPart,
    OptimPart,
    Recipe,
    RecipeError,
    about_recipes,
    load_recipe,
    parse_recipe,
    recipe_names,
)
from colorcore.recipes.schedule import lr_factor


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# The built-in recipes


def test_the_simple_recipe_carries_the_numbers_of_the_guide_the_simple_truth():
    flat = load_recipe("simple").flat()
    guide = {
        "model.name": "unet",
        "model.channels": 96,
        "loss.weighted_mse": 1.0,
        "loss_options.weighted_mse.saturated": 1.5,
        "loss_options.weighted_mse.grey": 0.5,
        "optim.lr": 5e-5,
        "optim.weight_decay": 1e-5,
        "optim.schedule": "onecycle",
        "optim.warmup": 0.1,
        "data.batch": 16,
    }
    assert {key: flat[key] for key in guide} == guide
    assert list(load_recipe("simple").loss) == ["weighted_mse"]


def test_unet_l1_carries_the_numbers_of_the_unet_guide():
    flat = load_recipe("unet-l1").flat()
    guide = {
        "model.name": "unet",
        "model.channels": 64,
        "loss.ab_l1": 1.0,
        "optim.lr": 2e-4,
        "data.batch": 64,
    }
    assert {key: flat[key] for key in guide} == guide
    assert list(load_recipe("unet-l1").loss) == ["ab_l1"]


def test_each_recipe_says_in_a_line_what_it_is():
    assert [name for name, _ in about_recipes()] == recipe_names()
    for name, about in about_recipes():
        assert about == load_recipe(name).about
        assert about
        assert "\n" not in about


# Files and round trips

EVERY_KEY = Recipe.model_validate(
    {
        "about": 'every key, "quoted" = and none of the defaults: π',
        "model": {
            "name": "unet",
            "channels": 8,
            "depth": 3,
            "norm": "group",
            "dropout": 0.25,
            "lightness": "unit",
            "attention": True,
            "head": "rgb",
        },
        "loss": {"weighted_mse": 0.1, "ab_l1": 1e-7, "adversarial": 0.2},
        "loss_options": {"weighted_mse": {"grey": 0.3, "saturated": 1.7, "chroma_full": 35.5}},
        "optim": {
            "lr": 0.1 + 0.2,
            "weight_decay": 0.0,
            "betas": (0.5, 0.95),
            "schedule": "constant",
            "warmup": 0.0,
            "warmup_epochs": 2.5,
            "clip": None,
            "encoder_lr": 0.1,
            "encoder_stages": 2,
            "freeze_epochs": 3,
        },
        "discriminator": {
            "channels": 8,
            "scales": 2,
            "lr": 3e-5,
            "betas": (0.6, 0.9),
            "warmup": 0.3,
        },
        "data": {"batch": 6, "flip": False, "crop": 0.7, "jitter": 0.1, "gamma": 0.2},
        "train": {
            "epochs": 3,
            "seed": 2**31 - 1,
            "precision": "bf16",
            "accumulate": 2,
            "ema": 0.0,
            "eval_every": 2,
            "save_every": 500,
            "metric": "cf_gap",
            "patience": 7,
            "compile": "off",
        },
    }
)


@pytest.mark.parametrize(
    "recipe",
    [*map(load_recipe, recipe_names()), EVERY_KEY, load_recipe("simple", ["about=none"])],
    ids=[*recipe_names(), "every-key", "about-none"],
)
def test_a_written_recipe_reads_back_equal(recipe: Recipe, tmp_path: Path):
    assert load_recipe(written(tmp_path, recipe.to_toml())) == recipe


def test_every_key_differs_from_its_default():
    """So that the round trip above cannot pass by falling back on a default."""
    defaults = Recipe(loss={"adversarial": 1.0}).flat()
    same = [key for key, value in EVERY_KEY.flat().items() if defaults.get(key) == value]
    assert same == ["model.name"]


def test_a_recipe_needs_no_more_than_a_loss(tmp_path: Path):
    recipe = load_recipe(written(tmp_path, "[loss]\nab_l1 = 2\n"))
    assert recipe == Recipe(loss={"ab_l1": 2.0})


def test_overrides_reach_a_recipe_in_a_file(tmp_path: Path):
    path = written(tmp_path, "[loss]\nab_l1 = 1.0\n[data]\nbatch = 4\n")
    assert load_recipe(path, ["data.batch=8"]).data.batch == 8


def test_flat_names_every_setting_by_its_dotted_path():
    assert load_recipe("unet-l1", ["loss_options.weighted_mse.grey=0.2"]).flat() == {
        "about": load_recipe("unet-l1").about,
        "model.name": "unet",
        "model.channels": 64,
        "model.depth": 4,
        "model.norm": "batch",
        "model.dropout": 0.0,
        "model.attention": False,
        "model.head": "ab",
        "model.lightness": "centered",
        "loss.ab_l1": 1.0,
        "loss_options.weighted_mse.grey": 0.2,
        "optim.lr": 2e-4,
        "optim.weight_decay": 1e-2,
        "optim.betas": (0.9, 0.999),
        "optim.schedule": "constant",
        "optim.warmup": 0.0,
        "optim.warmup_epochs": None,
        "optim.clip": 1.0,
        "optim.encoder_lr": None,
        "optim.encoder_stages": None,
        "optim.freeze_epochs": 0,
        "data.batch": 64,
        "data.flip": True,
        "data.crop": None,
        "data.jitter": 0.0,
        "data.gamma": 0.0,
        "train.epochs": 15,
        "train.seed": 0,
        "train.precision": "auto",
        "train.accumulate": 1,
        "train.ema": 0.999,
        "train.eval_every": 1,
        "train.save_every": None,
        "train.metric": "auc_balanced",
        "train.patience": None,
        "train.compile": "auto",
    }


# Overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr = 1", "optim.lr", 1.0),
        ("data.batch=8", "data.batch", 8),
        ("data.flip=false", "data.flip", False),
        ("data.crop=0.5", "data.crop", 0.5),
        ("data.crop=none", "data.crop", None),
        ("optim.clip=none", "optim.clip", None),
        ("optim.clip='none'", "optim.clip", None),
        ("optim.betas=[0.5, 0.9]", "optim.betas", (0.5, 0.9)),
        ("model.norm=group", "model.norm", "group"),
        ('model.norm="group"', "model.norm", "group"),
        ("model.channels=128", "model.channels", 128),
        ("model.dropout=0", "model.dropout", 0.0),
        ("model.attention=true", "model.attention", True),
        ("model.head=rgb", "model.head", "rgb"),
        ("about=two words = one line", "about", "two words = one line"),
        ("about=none", "about", "none"),
        ("loss.ab_l1=0.2", "loss.ab_l1", 0.2),
        ("loss={ab_l1 = 3.0}", "loss.ab_l1", 3.0),
        ("loss_options.weighted_mse.chroma_full=30", "loss_options.weighted_mse.chroma_full", 30.0),
        ("train.metric=delta_e2000", "train.metric", "delta_e2000"),
    ],
)
def test_an_override_changes_its_key_and_no_other(override: str, key: str, value: object):
    before, after = load_recipe("simple").flat(), load_recipe("simple", [override]).flat()
    assert after[key] == value
    assert type(after[key]) is type(value)
    replaced = {"loss.weighted_mse"} if override.startswith("loss={") else set()
    assert {k: v for k, v in after.items() if k != key} == {
        k: v for k, v in before.items() if k not in {key, *replaced}
    }


def test_later_overrides_win():
    assert load_recipe("simple", ["data.batch=8", "data.batch=4"]).data.batch == 4


def test_overrides_make_the_tables_that_a_recipe_has_not():
    assert load_recipe("unet-l1").loss_options == {}
    recipe = load_recipe(
        "unet-l1", ["loss.weighted_mse=0.5", "loss_options.weighted_mse.grey=0.25"]
    )
    assert recipe.loss_options == {"weighted_mse": {"grey": 0.25}}


@pytest.mark.parametrize("override", ["optim.lr", "=1e-4", "optim.=1", ".lr=1", "optim..lr=1", ""])
def test_what_is_no_key_and_value_is_refused(override: str):
    with pytest.raises(RecipeError, match=re.escape("expected KEY=VALUE such as optim.lr=1e-4, ")):
        load_recipe("simple", [override])


def test_a_key_below_a_value_is_refused():
    with pytest.raises(RecipeError, match=r"optim\.lr\.peak: lr is a value, not a table"):
        load_recipe("simple", ["optim.lr.peak=1"])


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", "unknown key optim.learning_rate"),
        ("data.bach=3", "unknown key data.bach; did you mean data.batch?"),
        ("optimm.lr=1", "unknown key optimm; did you mean optim?"),
        ("lr=1", "unknown key lr; did you mean optim.lr or discriminator.lr?"),
        (
            "channels=8",
            "unknown key channels; did you mean model.channels or discriminator.channels?",
        ),
        ("xyzzy=1", "unknown key xyzzy; known: about, data, discriminator, loss, loss_options,"),
        ("loss.ab_l2=1", "unknown loss term: 'ab_l2'; did you mean ab_l1?"),
        ("loss_options.ab_l2.x=1", "unknown loss term: 'ab_l2'; did you mean ab_l1?"),
        (
            "loss_options.weighted_mse.gray=1",
            "unknown option of loss term 'weighted_mse': 'gray'; did you mean grey?",
        ),
        ("model.name=unett", "model.name is 'unett'; did you mean unet?"),
        ("model.chanels=8", "unknown key model.chanels; did you mean model.channels?"),
        ("model.nam=unet", "unknown key model.nam; did you mean model.name?"),
        ("model.bins=8", "unknown key model.bins; known: attention, channels,"),
        ("train.metric=psnrr", "train.metric is 'psnrr'; did you mean psnr?"),
        ("train.metric=loss", "train.metric is 'loss'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(override: str, message: str):
    with pytest.raises(RecipeError, match=re.escape(message)) as refusal:
        load_recipe("simple", [override])
    assert str(refusal.value).startswith(f"simple with {override}: ")


def test_a_fault_of_the_file_is_not_blamed_on_the_settings(tmp_path: Path):
    file = tmp_path / "own.toml"
    file.write_text("[optim]\nlr = 99\n[loss]\nab_l1 = 1\n")
    with pytest.raises(RecipeError, match=rf"^{re.escape(str(file))}: optim\.lr: .* got 99"):
        load_recipe(str(file), ["data.batch=4", "train.epochs=2"])
    with pytest.raises(RecipeError, match=r"^simple with 2 settings: optim\.lr: .* got 99"):
        load_recipe("simple", ["optim.lr=99", "train.epochs=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0", "optim.lr: input should be greater than 0, got 0"),
        ("optim.lr=nan", "optim.lr: input should be a finite number, got nan"),
        ("optim.lr=none", "optim.lr: input should be a valid number"),
        ("optim.lr=10", "optim.lr: input should be less than 10, got 10"),
        ("optim.weight_decay=inf", "optim.weight_decay: input should be a finite number"),
        ("optim.weight_decay=-1e-3", "optim.weight_decay: input should be greater than or equal"),
        ("optim.betas=[0.9]", "optim.betas.1: field required"),
        ("optim.betas=[0.9, 1.0]", "optim.betas.1: input should be less than 1, got 1.0"),
        ("optim.schedule=linear", "input should be 'onecycle', 'cosine' or 'constant'"),
        ("optim.warmup_epochs=-1", "optim.warmup_epochs: input should be greater than or equal"),
        ("data.jitter=1", "data.jitter: input should be less than 1"),
        ("data.gamma=-1", "data.gamma: input should be greater than or equal to 0"),
        ("train.patience=0", "train.patience: input should be greater than or equal to 1"),
        ("discriminator.lr=1e-4", "discriminator: no loss term uses it; set loss.advers"),
        ("optim.warmup=1", "optim.warmup: input should be less than 1"),
        ("optim.clip=0", "optim.clip: input should be greater than 0"),
        ("optim.clip=off", "optim.clip: input should be a valid number"),
        ("optim=3", "optim: expected a table of settings, got 3"),
        ("loss=none", "loss: expected a table of settings, got 'none'"),
        ("model.channels=1.5", "model.channels: input should be a valid integer"),
        ("model.channels=none", "model.channels: input should be a valid integer"),
        ("model.channels=0", "model.channels must be in 1..1024, got 0"),
        ("model.channels=2000", "model.channels must be in 1..1024, got 2000"),
        ("model.depth=0", "model.depth must be in 1..7, got 0"),
        ("model.depth=8", "model.depth must be in 1..7, got 8"),
        ("model.norm=layer", "model.norm: input should be 'batch' or 'group', got 'layer'"),
        ("model.dropout=1", "model.dropout must be in 0..1 (1 excluded), got 1.0"),
        ("model.dropout=nan", "model.dropout: input should be a finite number, got nan"),
        ("model.attention=maybe", "model.attention: input should be a valid boolean"),
        ("model.head=lab", "model.head: input should be 'ab' or 'rgb', got 'lab'"),
        ("model.name=3", "model.name: input should be a valid string, got 3"),
        ("model=3", "model: expected a table of settings, got 3"),
        ("data.batch=0", "data.batch: input should be greater than or equal to 1"),
        ("data.crop=0", "data.crop: input should be greater than 0"),
        ("data.crop=1.1", "data.crop: input should be less than or equal to 1"),
        ("train.ema=1", "train.ema: input should be less than 1"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1"),
        ("train.seed=-1", "train.seed: input should be greater than or equal to 0"),
        ("about=2026-01-01", "about: input should be a valid string"),
        ("loss.weighted_mse=-1", "the weight of loss term 'weighted_mse' must be 0 or more"),
        ("loss.weighted_mse=0", "the loss needs a term with a weight above 0"),
        ("loss.weighted_mse=inf", "loss.weighted_mse: input should be a finite number"),
        ("loss_options.weighted_mse.chroma_full=0", "chroma_full > 0"),
        ("loss_options.weighted_mse.grey=nan", "grey: input should be a finite number, got nan"),
        ("loss_options.weighted_mse.grey=dark", "grey: expected a number, got 'dark'"),
        ("loss_options.weighted_mse.grey=[1]", "loss_options.weighted_mse.grey: input should be"),
        (
            "train.accumulate=3",
            "expected data.batch to be divisible by train.accumulate, got 16 and 3",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(override: str, message: str):
    with pytest.raises(RecipeError, match=re.escape(message)) as refusal:
        load_recipe("simple", [override])
    assert "\n" not in str(refusal.value)


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"'simpel'; did you mean simple\?; see: cc recipes"):
        load_recipe("simpel")
    with pytest.raises(RecipeError, match=r"known: .*simple.*unet-l1"):
        load_recipe("xyzzy")


def test_a_missing_file_and_bad_toml_are_refused_by_their_path(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*nowhere\.toml: .*No such"):
        load_recipe(str(tmp_path / "nowhere.toml"))
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*mine\.toml: .*line 2"):
        load_recipe(written(tmp_path, "[loss]\nab_l1 = = 1\n"))
    (tmp_path / "latin.toml").write_bytes(b'about = "caf\xe9"\n')
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*latin\.toml: .*utf-8"):
        load_recipe(str(tmp_path / "latin.toml"))
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(f"{tmp_path}/")


def test_a_recipe_without_a_loss_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="loss: field required"):
        load_recipe(written(tmp_path, 'about = "nothing"\n'))


def test_values_from_elsewhere_are_refused_in_its_name():
    values = tomllib.loads("[loss]\nab_l1 = 1.0\n[model]\nlayers = 3\n")
    with pytest.raises(
        RecipeError, match=r"^trial 7: unknown key model\.layers; known: .*channels,"
    ):
        parse_recipe(values, "trial 7")


def test_a_recipe_does_not_change():
    recipe = load_recipe("simple")
    with pytest.raises(ValueError, match="frozen"):
        recipe.optim.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        recipe.model.channels = 1


# The model's part


def test_another_model_has_other_options():
    recipe = load_recipe("unet-l1", ["model={name = 'resnet-unet', bins = 20}"])
    options = {"channels": 64, "bins": 20, "encoder_weights": "", "dropout": 0.0}
    assert recipe.model.options() == options
    assert {k: v for k, v in recipe.flat().items() if k.startswith("model.")} == {
        "model.name": "resnet-unet",
        **{f"model.{name}": value for name, value in options.items()},
    }
    assert recipe != load_recipe("unet-l1")


def test_a_written_recipe_shows_every_option(tmp_path: Path):
    recipe = load_recipe("simple", ["model.name=resnet-unet", "model.encoder_weights=a b.pth"])
    assert tomllib.loads(recipe.to_toml())["model"] == {
        "name": "resnet-unet",
        "channels": 96,
        "bins": 313,
        "encoder_weights": "a b.pth",
        "dropout": 0.0,
    }
    assert load_recipe(written(tmp_path, recipe.to_toml())) == recipe


@pytest.mark.parametrize("name", ["bins", "bins-focal", "gan", "lite0-bins"])
def test_bins_follow_the_palette(name: str, tmp_path: Path):
    recipe = load_recipe(name)
    assert recipe.model.options()["bins"] == PALETTE
    assert load_recipe(written(tmp_path, recipe.to_toml())) == recipe
    fitted = recipe.for_palette(20)
    assert fitted == load_recipe(name, ["model.bins=20"]) != recipe
    assert fitted.for_palette(30) == fitted  # a number is a number
    build_model(fitted.model.name, **fitted.model.options())


def test_only_models_with_bins_have_those_of_a_palette():
    recipe = load_recipe("simple")
    assert recipe.for_palette(20) is recipe
    with pytest.raises(RecipeError, match="unknown key model"):
        load_recipe("simple", ["model.bins=palette"])


def test_options_that_are_spelled_out_or_not_make_equal_recipes():
    sparse, full = Recipe(loss={"ab_l1": 1.0}), load_recipe("simple", ["loss={ab_l1 = 1}"])
    assert sparse.model == ModelPart(name="unet", head="ab", norm="batch", channels=64)
    assert sparse.model != full.model == ModelPart(channels=96)
    assert Recipe.model_validate(full.model_dump()) == full


def test_a_recipe_from_before_an_option_was_there_gets_its_default():
    """As the first checkpoints have it, which know nothing of attention and heads."""
    model = {"name": "unet", "channels": 8, "depth": 3, "norm": "group", "dropout": 0.0}
    recipe = parse_recipe({"loss": {"ab_l1": 1.0}, "model": model}, "an old checkpoint")
    assert recipe.model.options() == {
        "channels": 8,
        "depth": 3,
        "norm": "group",
        "dropout": 0.0,
        "attention": False,
        "head": "ab",
        "lightness": "centered",
    }


def test_importing_recipes_imports_no_torch():
    code = "import sys, colorcore.recipes.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_checking_recipes_does_not_wake_torchs_compiler():
    code = (
        "import sys\nfrom colorcore.recipes.recipe import load_recipe, recipe_names\n"
        "for name in recipe_names(): load_recipe(name)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The schedule


def torch_one_cycle(total: int, warmup: float) -> list[float]:
    """Learning rate of each step by PyTorch's scheduler, as a share of the peak."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total,
        pct_start=warmup,
        anneal_strategy="cos",
        cycle_momentum=False,
        div_factor=25.0,
        final_div_factor=1e4,
    )
    rates = []
    for step in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        if step < total - 1:
            schedule.step()
    return rates


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 11, 64, 1000])
def test_onecycle_is_that_of_torch_at_every_step(total: int, warmup: float):
    optim = OptimPart(warmup=warmup)
    ours = [lr_factor(optim, step, total) for step in range(total)]
    assert ours == pytest.approx(torch_one_cycle(total, warmup), rel=1e-12)


@pytest.mark.parametrize(("total", "warmup"), [(2, 0.5), (10, 0.1), (20, 0.05)])
def test_a_warmup_of_one_step_starts_at_the_peak(total: int, warmup: float):
    with pytest.raises(ZeroDivisionError):
        torch_one_cycle(total, warmup)
    rates = [lr_factor(OptimPart(warmup=warmup), step, total) for step in range(total)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1 / 25e4)


def test_onecycle_by_hand():
    """100 steps, 10 of warm-up: from 1/25 to the peak at step 9, half-way down at step 54."""
    optim = OptimPart(warmup=0.1)
    assert lr_factor(optim, 0, 100) == pytest.approx(0.04)
    assert lr_factor(optim, 9, 100) == 1.0
    assert lr_factor(optim, 54, 100) == pytest.approx((1 + 4e-6) / 2)
    assert lr_factor(optim, 99, 100) == pytest.approx(4e-6)


def test_a_constant_rate_is_constant_once_it_is_warm():
    optim = OptimPart(schedule="constant", warmup=0.0)
    assert {lr_factor(optim, step, 7) for step in range(7)} == {1.0}
    optim = OptimPart(schedule="constant", warmup=0.5)
    rates = [lr_factor(optim, step, 8) for step in range(8)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("total", [10, 97, 600])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 0.9])
def test_cosine_is_that_of_torch_after_a_linear_warmup(total: int, warmup: float):
    """LinearLR up to the peak and CosineAnnealingLR from there, where the two meet at a step."""
    warm = round(warmup * total)
    optim = OptimPart(schedule="cosine", warmup=warm / total)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    rates = [(step + 1) / warm for step in range(warm - 1)]
    falling = CosineAnnealingLR(optimizer, T_max=total - max(warm - 1, 0), eta_min=0.0)
    for _ in range(total - len(rates)):
        rates.append(falling.get_last_lr()[0])
        optimizer.step()
        falling.step()
    ours = [lr_factor(optim, step, total) for step in range(total)]
    assert ours == pytest.approx(rates, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_a_warmup_in_epochs_is_the_one_in_shares(schedule: str):
    """Five of twenty epochs of 30 steps; more epochs than there are warm up to the end."""
    share = OptimPart(schedule=schedule, warmup=0.25)
    epochs = OptimPart(schedule=schedule, warmup_epochs=5)
    for step in range(600):
        assert lr_factor(epochs, step, 600, 30) == lr_factor(share, step, 600)
    late = OptimPart(schedule=schedule, warmup_epochs=50)
    rates = [lr_factor(late, step, 600, 30) for step in range(600)]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0


def test_a_recipe_has_a_discriminator_where_a_term_needs_one():
    assert load_recipe("simple").discriminator is None
    assert "discriminator" not in load_recipe("simple").to_toml()
    assert load_recipe("gan", ["discriminator.scales=2"]).discriminator == DiscriminatorPart(
        scales=2
    )
    judged = load_recipe("simple", ["loss.feature_matching=1", "discriminator.channels=7"])
    assert judged.discriminator == DiscriminatorPart(channels=7)
    with pytest.raises(
        RecipeError, match=r"key discriminator\.scale; did you mean discriminator\.scales\?"
    ):
        load_recipe("gan", ["discriminator.scale=2"])


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("guide", {"rgb_l1": 0.5, "perceptual": 1.0, "ab_huber": 2.0, "diversity": 0.1}),
        ("enhanced", {"perceptual": 0.5, "luminance": 0.3, "ab": 3.0, "saturation": 0.5}),
        (
            "enhanced-conservative",
            {"perceptual": 0.5, "luminance": 0.3, "ab": 2.0, "saturation": 0.3},
        ),
        ("enhanced-vibrant", {"perceptual": 0.3, "luminance": 0.2, "ab": 4.0, "saturation": 1.0}),
        ("enhanced-maximum", {"perceptual": 0.2, "luminance": 0.2, "ab": 5.0, "saturation": 1.5}),
    ],
)
def test_recipes_carry_the_weights_of_the_training_and_tuning_guides(
    name: str, weights: dict[str, float]
):
    recipe = load_recipe(name)
    assert recipe.loss == weights
    assert recipe.flat()["model.attention"] == (name == "guide")
    assert recipe.flat()["model.head"] == ("ab" if name == "guide" else "rgb")
    assert recipe.optim.warmup_epochs == 5
