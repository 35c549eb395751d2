"""Compiled training: what is compiled, what is said of it, and what happens where it fails."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from colorcore.recipes.recipe import load_recipe, parse_recipe
from colorcore.training import network as module
from colorcore.training.fit import fit, train_step
from colorcore.training.state import FitData, Training
from tests.colorcore.training.made_up import (
    CPU,
    EVERYTHING_RANDOM,
    JUDGED,
    Diary,
    close,
    recipe_of,
    weights_of,
)

COMPILED = torch.compile


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "cache"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    torch.compiler.reset()


def use(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any]) -> None:
    """Compile with that backend of torch.compile."""
    monkeypatch.setattr(module.torch, "compile", functools.partial(COMPILED, backend=backend))


class Counting:
    """A backend that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []

    def __call__(self, graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


def failing(*_: object) -> Callable[..., Any]:
    raise RuntimeError("no such instruction\nand more")


def as_is(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
    return graph.forward


FAILING = {
    "forward": failing,
    "backward": aot_autograd(fw_compiler=as_is, bw_compiler=failing),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", FAILING)
@pytest.mark.parametrize("more", [(), JUDGED], ids=["", "gan"])
def test_a_compiler_that_fails_is_done_without_and_leaves_no_trace(
    data: FitData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    more: tuple[str, ...],
):
    """Bit for bit what training without it gives: random numbers, statistics, spectral norms."""
    settings = ("train.epochs=1", *EVERYTHING_RANDOM, *more)
    fit(
        recipe_of("train.compile=off", *settings),
        data,
        tmp_path / "off",
        observers=[off := Diary()],
    )
    use(monkeypatch, FAILING[where])
    fit(recipe_of("train.compile=on", *settings), data, tmp_path / "on", observers=[on := Diary()])
    close(weights_of(tmp_path / "on/last"), weights_of(tmp_path / "off/last"), atol=0)
    assert [event.loss for event in on.steps] == [event.loss for event in off.steps]
    assert off.notices == []
    announced, failed = on.notices
    assert announced.startswith("compiling the network, about 25 s")
    assert failed.startswith("the compiler failed, so training goes uncompiled: ")
    assert "no such instruction" in failed
    assert "\n" not in failed


def test_an_error_of_the_model_is_not_taken_for_one_of_the_compiler(
    data: FitData, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, Counting())
    training = Training(recipe_of("train.compile=on"), data, CPU, None)
    monkeypatch.setattr(training, "losses", failing)
    with pytest.raises(RuntimeError, match="no such instruction"):
        train_step(training, next(iter(training.loader.epoch(0))))


@pytest.mark.slow
@pytest.mark.parametrize("more", [EVERYTHING_RANDOM, JUDGED])
def test_a_compiled_training_is_the_same_and_compiled_once(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
):
    """With a backend that changes nothing. Validation, whose batches are others, adds no graph."""
    use(monkeypatch, counting := Counting())
    fit(recipe_of("train.compile=on", *more), data, tmp_path / "on", observers=[diary := Diary()])
    assert len(counting.graphs) == 1
    fit(recipe_of("train.compile=off", *more), data, tmp_path / "off")
    assert len(counting.graphs) == 1
    close(weights_of(tmp_path / "on/last"), weights_of(tmp_path / "off/last"), atol=1e-6)
    assert diary.notices[0].startswith("compiling the network, about 25 s")
    assert diary.notices[1].startswith("compiled the network in ")
    fit(
        recipe_of("train.compile=on", *more), data, tmp_path / "again", observers=[again := Diary()]
    )
    assert again.notices[0].startswith("compiling the network; last time this took ")


def bins_recipe(setting: str) -> Any:
    model = "model={name='resnet-unet', channels=4, bins=8}"
    settings = [model, "data.batch=4", "train.epochs=1", f"train.compile={setting}"]
    return load_recipe("bins", settings)


@pytest.mark.slow
def test_repeated_blocks_are_compiled_once(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the encoder's 16 blocks 7 differ in shape, of the decoder's 3 all."""
    use(monkeypatch, counting := Counting())
    training = Training(bins_recipe("on"), data, CPU, None)
    names = set(training.model.state_dict())
    first, *others = training.loader.epoch(0)
    train_step(training, first)
    assert len(training.model.blocks_to_compile()) == 19  # type: ignore[union-attr, operator]
    assert len(counting.graphs) == 10
    for batch in others:
        train_step(training, batch)
    assert len(counting.graphs) == 10
    plain = Training(bins_recipe("off"), data, CPU, None)
    assert set(plain.model.state_dict()) == names
    for batch in plain.loader.epoch(0):
        train_step(plain, batch)
    close(training.model.state_dict(), plain.model.state_dict(), atol=1e-6)


@pytest.mark.slow
def test_an_encoder_that_begins_to_learn_is_compiled_again(
    data: FitData, monkeypatch: pytest.MonkeyPatch
):
    settings = ["model.channels=4", "data.batch=4", "optim.freeze_epochs=1", "optim.encoder_lr=0.1"]
    use(monkeypatch, counting := Counting())
    training = Training(load_recipe("lite0", [*settings, "train.compile=on"]), data, CPU, None)
    batch = next(iter(training.loader.epoch(0)))
    before = training.model.state_dict()["encoder.stem.weight"].clone()
    train_step(training, batch)
    graphs = len(counting.graphs)
    assert torch.equal(training.model.state_dict()["encoder.stem.weight"], before)
    training.epoch = 1
    training.begin_epoch()
    train_step(training, batch)
    assert len(counting.graphs) > graphs
    assert not torch.equal(training.model.state_dict()["encoder.stem.weight"], before)


def test_a_cpu_is_left_alone_unless_asked(data: FitData, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, failing)
    assert load_recipe("simple").train.compile == "auto"
    training = Training(recipe_of(), data, CPU, None)
    train_step(training, next(iter(training.loader.epoch(0))))
    assert training.network.call is training.model


def test_recipes_of_older_checkpoints_have_no_such_setting():
    values = recipe_of().values()
    del values["train"]["compile"]
    assert parse_recipe(values, "here").train.compile == "auto"


@pytest.mark.slow
def test_torchs_own_compiler_trains_the_same(data: FitData, tmp_path: Path):
    """Needs a C++ compiler; takes a minute."""
    settings = ("train.epochs=1", "model.norm=group", "data.flip=false")
    on, off = Diary(), Diary()
    fit(recipe_of("train.compile=on", *settings), data, tmp_path / "on", observers=[on])
    fit(recipe_of("train.compile=off", *settings), data, tmp_path / "off", observers=[off])
    assert on.notices[1].startswith("compiled the network in ")
    # Not the weights: a new model's deep layers have gradients next to nothing, whose rounding
    # Adam takes for a direction.
    for one, other in zip(on.steps, off.steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=5e-3)
