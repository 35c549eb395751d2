"""Every model and recipe as a graph: the same colours as torch, at any size and batch."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from skimage import color
from torch import nn

from colorcore.checkpoints.checkpoint import Checkpoint
from colorcore.color.palette import Palette, bin_weights
from colorcore.colorizing.network import NetworkColorizer
from colorcore.decoding import Decoding
from colorcore.export import checks
from colorcore.export.checks import ExportError, cpu_ms, quality, require_equal
from colorcore.export.exported import exported_bytes, opened
from colorcore.export.graph import norms_left, onnx_graph, settings_of
from colorcore.export.quantize import kept_in_float, quantized
from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe, recipe_names

SHAPES = [(1, 1, 1, 1), (1, 1, 31, 64), (3, 1, 64, 64), (2, 1, 97, 33)]
BINS = 16
OTHERS: dict[str, list[str]] = {
    "unet group norm": ["model.norm=group", "model.dropout=0.1", "model.lightness=unit"],
    "unet deep": ["model.depth=5"],
}
SLOW = pytest.mark.slow


def palette() -> Palette:
    points = np.random.default_rng(0).normal(0, 40, (BINS, 2)).clip(-100, 100).astype(np.float32)
    priors = np.full(BINS, 1 / BINS, np.float32)
    return Palette(points, priors, bin_weights(priors).astype(np.float32), {"method": "test"})


def checkpoint(recipe: str, overrides: list[str]) -> Checkpoint:
    """A small model of a recipe, with heads whose answers are far from grey."""
    small = ["model.channels=8", *overrides]
    if "lite" in recipe:
        small += ["model.encoder_weights=none"]
    read = load_recipe(recipe, small).for_palette(BINS)
    torch.manual_seed(1)
    network: Any = build_model(read.model.name, **read.model.options())
    colors = palette()
    if hasattr(network, "centroids"):
        network.use_palette(colors)
    for name in ("head", "bins", "residual", "confidence"):
        if hasattr(network, name):
            nn.init.normal_(getattr(network, name).weight, std=0.5)
    for module in network.modules():  # statistics as after a training
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return Checkpoint(
        recipe=read,
        weights=network.state_dict(),
        palette=colors,
        mean_ab=(2.0, 5.0),
        size=64,
        dataset="f1",
        decoding=Decoding(0.6 if hasattr(network, "centroids") else None, 1.25),
    )


def one_recipe_per_model() -> list[str]:
    """The first recipe of each different network: an export takes many seconds."""
    first: dict[str, str] = {}
    for name in recipe_names():
        model = load_recipe(name, ["model.channels=8"]).model
        first.setdefault(f"{model.name} {model.options()}", name)
    return list(first.values())


def check(saved: Checkpoint) -> onnx.ModelProto:
    """Compare what is exported with the checkpoint; returns the graph."""
    network = saved.model()
    graph = onnx_graph(network, settings_of(network, saved.decoding))
    made = opened(exported_bytes(saved, network, graph))
    full = NetworkColorizer(network, saved.size, saved.decoding)
    random = np.random.default_rng(0)
    decodings = [(None, None), (None, 0.5), (1.0 if full.predicts_bins else None, 3.0)]
    for shape in SHAPES:
        L = random.uniform(0, 100, shape).astype(np.float32)
        for temperature, chroma in decodings:
            one, other = (each.with_decoding(temperature, chroma) for each in (full, made))
            expected, found = one.predict_ab(L), other.predict_ab(L)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < 0.02
    assert np.abs(expected).max() > 10, "the test needs colours"
    assert np.abs(expected).max() <= 128
    batch = graph.graph.input[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in batch] == ["batch", 1, "height", "width"]
    assert made.facts.recipe == json.loads(json.dumps(saved.recipe.values()))
    assert made.facts.mean_ab == saved.mean_ab
    assert np.array_equal(made.facts.palette["centroids"], saved.palette.centroids)
    assert made.decoding == full.decoding
    return graph


@SLOW
def test_a_unet_is_exported_with_its_batch_norms_folded() -> None:
    saved = checkpoint("unet-l1", ["model.depth=2"])
    assert any(isinstance(each, nn.BatchNorm2d) for each in saved.model().modules())
    assert norms_left(check(saved)) == 0


@SLOW
@pytest.mark.parametrize("recipe", one_recipe_per_model())
def test_every_recipes_model_is_exported(recipe: str) -> None:
    check(checkpoint(recipe, []))


@SLOW
@pytest.mark.parametrize("case", OTHERS)
def test_other_options_of_a_unet_are_exported(case: str) -> None:
    left = norms_left(check(checkpoint("unet-l1", OTHERS[case])))
    assert left == (18 if "group" in case else 0)


@SLOW
def test_int8_is_smaller_and_nearly_the_same() -> None:
    saved = checkpoint("unet-l1", ["model.channels=16", "model.depth=3"])
    network = saved.model()
    nn.init.normal_(network.head.weight, std=0.05)  # type: ignore[union-attr, arg-type]
    saved = replace(saved, weights=network.state_dict())
    settings = settings_of(network, saved.decoding)
    graph = onnx_graph(network, settings)
    ramp = np.linspace(0, 100, 64 * 64, dtype=np.float32).reshape(1, 1, 64, 64)
    photos = [ramp, ramp[:, :, ::-1].copy(), ramp.transpose(0, 1, 3, 2).copy()]
    before = graph.SerializeToString()
    small = quantized(graph, settings, photos)
    assert graph.SerializeToString() == before, "the graph itself was changed"
    full = opened(exported_bytes(saved, network, graph))
    made = opened(exported_bytes(saved, network, small))
    assert len(made.data) < 0.4 * len(full.data)
    expected, found = full.predict_ab(ramp), made.predict_ab(ramp)
    assert expected.std() > 1
    assert 0 < np.abs(found - expected).mean() < 0.15 * expected.std()
    # The head and what follows it are in float32: ab has more than 256 values.
    assert len(np.unique(found)) > 1000
    kept = kept_in_float(graph)
    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    assert {convolutions[0], convolutions[-1]} <= kept
    assert not set(convolutions[1:-1]) & kept
    int8 = [each for each in small.graph.initializer if each.data_type == 3]
    weights = [each for each in int8 if len(each.dims) == 4]
    assert len(weights) == len(convolutions) - 2
    scales = {each.name: each for each in small.graph.initializer if each.name.endswith("_scale")}
    per_channel = [scales[f"{each.name.removesuffix('_quantized')}_scale"] for each in weights]
    assert all(tuple(s.dims) == (w.dims[0],) for s, w in zip(per_channel, weights, strict=True))


class _Shifted(NetworkColorizer):
    """A colorizer whose a is wrong by ``by`` in photos higher than one pixel."""

    by = 0.0

    def predict_ab(self, L: Any) -> Any:
        ab = super().predict_ab(L).copy()
        if L.shape[2] > 1:
            ab[:, :1] += self.by
        return ab


def test_colours_beyond_the_tolerance_are_refused() -> None:
    network = checkpoint("unet-l1", ["model.depth=2"]).model()
    full, other = NetworkColorizer(network, 64), _Shifted(network, 64)
    L = np.random.default_rng(0).uniform(0, 100, (2, 1, 64, 64)).astype(np.float32)
    other.by = 0.9 * checks.TOLERANCE
    assert require_equal(full, other, L) == pytest.approx(other.by, rel=1e-3)
    for wrong in (1.1 * checks.TOLERANCE, -1.0, np.nan):
        other.by = wrong
        with pytest.raises(ExportError, match=r"within 0\.1 of torch's, found"):
            require_equal(full, other, L)


def test_what_a_variant_costs_and_loses() -> None:
    network = checkpoint("unet-l1", ["model.depth=2"]).model()
    full, other = NetworkColorizer(network, 64), _Shifted(network, 64)
    other.by = 3.0
    random = np.random.default_rng(0)
    photo = random.uniform(30, 60, (1, 64, 64)).astype(np.float32)
    own = full.predict_ab(photo[None])[0] * 0.1
    lab = np.concatenate([photo, own])
    both = {"full": full, "other": other}
    found = quality(both, [lab, lab], "full")
    labs = {name: np.concatenate([photo, each.predict_ab(photo[None])[0]]) for name, each in
            both.items()}  # fmt: skip
    labs = {name: made.transpose(1, 2, 0) for name, made in {**labs, "true": lab}.items()}
    apart = color.deltaE_ciede2000(labs["full"], labs["other"]).mean()
    assert found["full"]["delta_e"] == 0
    assert found["other"]["delta_e"] == pytest.approx(apart, rel=1e-3)
    for name in both:
        error = color.lab2rgb(labs[name]) - color.lab2rgb(labs["true"])
        expected = -10 * np.log10(np.square(error).mean())
        assert found[name]["psnr"] == pytest.approx(expected, abs=0.02)
    threads = torch.get_num_threads()
    cost = cpu_ms(both, photo[None], rounds=2)
    assert torch.get_num_threads() == threads
    assert all(value > 0 for value in cost.values())
