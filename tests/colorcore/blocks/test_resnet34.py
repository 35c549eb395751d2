import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from colorcore.blocks.resnet34 import ResNet34


def torchvision_shapes() -> dict[str, tuple[int, ...]]:
    """Every name and shape of torchvision's resnet34().state_dict(), written out from its paper."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    before = 64
    for layer, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, before, 3, 3)
            norm(f"{name}.bn1", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{name}.bn2", width)
            if before != width:
                shapes[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    shapes["fc.weight"], shapes["fc.bias"] = (1000, 512), (1000,)
    return shapes


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Made-up weights of torchvision's names, of a size at which activations stay moderate."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, shape in torchvision_shapes().items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(7)
        else:
            fan = max(1, torch.Size(shape[1:]).numel())
            made[name] = torch.randn(shape, generator=generator) / fan**0.5
    return made


@pytest.fixture(scope="module")
def pth(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet34.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def encoder(pth: Path) -> ResNet34:
    encoder = ResNet34()
    encoder.load_torchvision(pth)
    return encoder.eval()


def test_the_made_up_weights_are_as_many_as_torchvision_says():
    """Its documentation gives resnet34 21,797,672 parameters."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    learned = [s for n, s in torchvision_shapes().items() if not n.endswith(statistics)]
    assert sum(torch.Size(shape).numel() for shape in learned) == 21_797_672


def test_the_parameters_are_those_of_the_docstring():
    """Torchvision's without classifier and without two of the first filters' three colours."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in ResNet34().parameters())
    assert count == 21_797_672 - (512 + 1) * 1000 - 2 * 64 * 7 * 7 == 21_278_400
    assert f"{count:,}" in (ResNet34.__doc__ or "")


def test_four_maps_each_half_of_the_one_before():
    with torch.no_grad():
        maps = ResNet34()(torch.rand(1, 1, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 16, 24),
        (128, 8, 12),
        (256, 4, 6),
        (512, 2, 3),
    ]


def test_every_weight_is_taken_over(encoder: ResNet34, weights: dict[str, Tensor]):
    ours = encoder.state_dict()
    left_out = {"fc.weight", "fc.bias"} | {
        n for n in weights if n.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    assert ours.keys() == weights.keys() - left_out
    for name, value in ours.items():
        expected = weights[name]
        if name == "conv1.weight":
            expected = expected[:, 0:1] + expected[:, 1:2] + expected[:, 2:3]
        torch.testing.assert_close(value, expected, msg=name)


def test_lightness_is_seen_as_the_grey_photo_was(encoder: ResNet34, weights: dict[str, Tensor]):
    """ImageNet's filters on a grey RGB photo give what the summed ones give on its one channel."""
    L_norm = torch.rand(1, 1, 40, 40) * 2 - 1
    with torch.no_grad():
        grey = F.conv2d(L_norm.expand(1, 3, 40, 40), weights["conv1.weight"], stride=2, padding=3)
        torch.testing.assert_close(encoder.conv1(L_norm), grey, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.conv1(2.2 * L_norm), 2.2 * grey, atol=1e-5, rtol=1e-4)


def plainly(weights: dict[str, Tensor], L_norm: Tensor) -> list[Tensor]:
    """The maps of a ResNet-34 with group norms, by nothing but functions and names."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.conv2d(L_norm, weights["conv1.weight"].sum(1, keepdim=True), stride=2, padding=3)
    x = F.max_pool2d(norm(x, "bn1").relu(), 3, 2, 1)
    maps = []
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            stride = 2 if block == 0 and layer > 1 else 1
            shortcut = x
            if stride == 2:
                shortcut = norm(
                    F.conv2d(x, weights[f"{at}.downsample.0.weight"], stride=2),
                    f"{at}.downsample.1",
                )
            x = F.conv2d(x, weights[f"{at}.conv1.weight"], stride=stride, padding=1)
            x = F.conv2d(norm(x, f"{at}.bn1").relu(), weights[f"{at}.conv2.weight"], padding=1)
            x = (norm(x, f"{at}.bn2") + shortcut).relu()
        maps.append(x)
    return maps


def test_the_maps_are_those_of_a_resnet_written_by_hand(
    encoder: ResNet34, weights: dict[str, Tensor]
):
    L_norm = torch.rand(2, 1, 64, 32) * 2 - 1
    with torch.no_grad():
        for ours, expected in zip(encoder(L_norm), plainly(weights, L_norm), strict=True):
            assert expected.std() > 0.1
            torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


def test_safetensors_of_one_channel_and_without_the_unused_load_too(
    encoder: ResNet34, tmp_path: Path
):
    save_file(encoder.state_dict(), tmp_path / "ours.safetensors")
    other = ResNet34()
    other.load_torchvision(str(tmp_path / "ours.safetensors"))
    for name, value in other.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.4.conv2.weight": None}, "has no 'layer3.4.conv2.weight'"),
        ({"bn1.bias": None}, "has no 'bn1.bias'"),
        (
            {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)},
            "'layer1.0.conv1.weight' of shape (64, 64, 1, 1), not (64, 64, 3, 3)",
        ),
        (
            {"conv1.weight": torch.zeros(64, 4, 7, 7)},
            "'conv1.weight' of shape (64, 4, 7, 7), not (64, 1, 7, 7)",
        ),
        (
            {"conv1.weight": torch.zeros(64, 3, 3, 3)},
            "'conv1.weight' of shape (64, 3, 3, 3), not (64, 1, 7, 7)",
        ),
        (
            {"layer1.0.conv3.weight": torch.zeros(256, 64, 1, 1)},
            "'layer1.0.conv3.weight', which is not part of a ResNet-34",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Tensor | None],
    message: str,
    weights: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
):
    changed = {n: w for n, w in {**weights, **change}.items() if w is not None}
    monkeypatch.setattr("colorcore.blocks.resnet34._read", lambda _path: changed)
    with torch.device("meta"):
        encoder = ResNet34()
    with pytest.raises(ValueError, match="encoder_weights: .*" + re.escape(message)) as refusal:
        encoder.load_torchvision("mine.pth")
    assert "mine.pth" in str(refusal.value)


def test_files_that_are_no_state_dict_are_refused(tmp_path: Path):
    (tmp_path / "noise.pth").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise and more of it")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "nested.pth")
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    with torch.device("meta"):
        encoder = ResNet34()
    for name in ("nowhere.pth", "noise.pth", "noise.safetensors", "module.pth"):
        with pytest.raises(ValueError, match=f"encoder_weights: cannot read .*{name}: ") as refusal:
            encoder.load_torchvision(tmp_path / name)
        assert "\n" not in str(refusal.value)
    for name in ("list.pth", "nested.pth"):
        with pytest.raises(ValueError, match=f"{name} has no state dict"):
            encoder.load_torchvision(tmp_path / name)
