"""A step and a validation never make the host wait for a GPU, shown on torch's device "meta".

Its tensors have no values, so reading one raises. What is found besides are copies to the device
from memory that is not pinned, for which the host waits, too.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import colorcore
from colorcore.color.lab import lab_to_rgb, rgb_to_lab
from colorcore.inference.equal_colorfulness import EqualColorfulness
from colorcore.inference.evaluate import evaluation_for, statistics_for
from colorcore.recipes.recipe import load_recipe, recipe_names
from colorcore.step.augment import augment
from colorcore.training.fit import forward_backward
from colorcore.training.state import FitData, Training
from tests.colorcore.training.made_up import small_data

META = torch.device("meta")
MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
PINS = "to_device"
"""The function whose copies do not wait."""


@pytest.fixture(scope="module")
def data() -> FitData:
    return small_data()


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast knows no "meta"."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


class Made(TorchFunctionMode):
    """Notes tensors that are made on the device from values of the host."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in MAKERS and result.device == META:
            self.found.append(f"{function.__name__} in {where()}")
        return result


class Copied(TorchDispatchMode):
    """Notes copies of the host's tensors to the device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given, answered = (
            {each.device.type for each in tree_leaves(values) if isinstance(each, torch.Tensor)}
            for values in ((args, kwargs), result)
        )
        if "cpu" in given and "meta" in given | answered and PINS not in functions():
            self.found.append(f"{function} in {where()}")
        return result


def functions() -> set[str]:
    return {frame.name for frame in traceback.extract_stack()}


def where() -> str:
    """The innermost function of the product or of kornia."""
    mine = (str(Path(colorcore.__file__).parent), "kornia")
    frames = [f for f in traceback.extract_stack() if any(name in f.filename for name in mine)]
    return frames[-1].name if frames else "the test"


def waits(work: Callable[[], object]) -> list[str]:
    """What in ``work`` makes the host wait."""
    found: list[str] = []
    with Made(found), Copied(found):
        work()
    return found


def photos() -> torch.Tensor:
    return torch.empty(4, 3, 64, 64, device=META)


def test_what_waits_is_found():
    from kornia.color import lab_to_rgb as kornias

    def moves() -> torch.Tensor:
        return torch.ones(4).to(META)

    assert waits(lambda: kornias(photos())) == ["tensor in _lab_to_rgb", "tensor in xyz_to_rgb"]
    (found,) = waits(moves)
    assert found == "aten._to_copy.default in the test"
    for reads in (
        lambda: photos().mean().item(),
        lambda: photos().cpu(),
        lambda: photos().tolist(),
    ):
        # Either, by operator: "meta" has no values to give.
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            waits(reads)


def test_colours_and_augmentation():
    assert waits(lambda: (lab_to_rgb(photos()), rgb_to_lab(photos()))) == []
    settings = {"flip": True, "crop": 0.5, "jitter": 0.2, "gamma": 0.2}
    generator = torch.Generator()
    assert waits(lambda: augment(photos(), **settings, generator=generator)) == []


def test_a_validation_waits_once_per_batch_at_its_end(data: FitData):
    """For the window of kornia's SSIM."""
    equal = EqualColorfulness(torch.from_numpy(data.palette.balance()))
    statistics, own = statistics_for(data.palette, data.mean_ab), evaluation_for(data.palette)
    assert waits(lambda: statistics.update(photos(), photos(), photos())) == []
    assert waits(lambda: equal.update(photos(), photos())) == []
    assert waits(lambda: own.update(photos(), photos())) == ["tensor in gaussian"]
    assert list(own._per_photo(photos(), photos()))[-1] == "ssim"


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_no_recipe_waits_within_a_step(data: FitData, name: str):
    settings = ["data.batch=4", *([] if "lite" in name else ["model.channels=8"])]
    if "perceptual" in load_recipe(name).loss:
        settings.append("loss_options.perceptual.net=lite0")
    training = Training(load_recipe(name, settings), data, META, None)

    def step() -> None:
        loss, terms = forward_backward(training, photos())
        norm = training.clip_and_step(training.optimizer)
        if training.adversary is not None:
            training.clip_and_step(training.adversary.optimizer)
        training.update_average()
        training.exchange(loss, terms, norm, stop=False)

    step()
    assert waits(step) == []
