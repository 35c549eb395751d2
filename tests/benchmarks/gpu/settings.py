"""What is measured: on a GPU the recipes themselves, on a CPU small ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.gpu.photos import Sizes

FIRST = ("unet-l1", "simple", "gan", "bins")
"""The recipes with targets, in order of importance; all others follow by name."""


@dataclass(frozen=True, slots=True)
class Form:
    """How much is measured.

    size      pixels per side
    photos    that are sharded
    seconds   of epochs that are timed
    settings  of all recipes
    warms     whether there is a compiler's cache, and so a second start to time
    least_s   seconds that must be left for another recipe to begin
    """

    size: int
    photos: int
    sizes: Sizes
    seconds: float
    settings: tuple[str, ...]
    warms: bool
    least_s: float


GPU = Form(256, 960, Sizes(13, 76, 313), 4.0, (), True, 40.0)
CPU = Form(64, 48, Sizes(3, 4, 32), 0.5, ("data.batch=4",), False, 5.0)
_SMALL = {"unet": ("model.channels=8",), "resnet-unet": ("model.channels=8",)}
"""Settings of the CPU form by model."""


def settings_of(
    name: str, form: Form, work: Path, *, compiles: bool = True
) -> tuple[list[str], str]:
    """What is set in a recipe, and a note on it; files of weights are written to ``work``.

    On a GPU that is the batch of ``simple``, as the target has it, and for a perceptual term
    random weights: they take as long as trained ones, which are a download of 0.2 or 0.5 GB.
    """
    from colorcore.losses.extractors import NETWORKS
    from colorcore.recipes.recipe import load_recipe

    recipe, note = load_recipe(name), ""
    settings = list(form.settings)
    if form is CPU:
        settings += _SMALL.get(recipe.model.name, ())
        if recipe.discriminator is not None:
            settings += ["discriminator.channels=8", "discriminator.scales=2"]
    elif name == "simple":
        settings.append("data.batch=64")
    if form.warms and not compiles:
        settings.append("train.compile=off")
        note = "uncompiled"
    net = str(recipe.loss_options.get("perceptual", {}).get("net", "vgg16"))
    if "perceptual" in recipe.loss and net in NETWORKS:
        settings.append(f"loss_options.perceptual.weights={_random_weights(net, work)}")
        note = ", ".join(filter(None, [note, f"{net} with random weights"]))
    return settings, note


def _random_weights(net: str, work: Path) -> Path:
    from safetensors.torch import save_file

    from colorcore.losses.extractors import Extractor

    path = work / f"{net}.safetensors"
    if not path.exists():
        save_file(Extractor(net).state_dict(), path)
    return path
