"""The feature networks, and where their weights come from. No test leaves this machine."""

import hashlib
import logging
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from colorcore.losses import extractors
from colorcore.losses.extractors import NETWORKS, Extractor, fetch, load_extractor
from colorcore.losses.term import LossError
from tests.colorcore.losses.conftest import made_up_weights


def torchvision_like(net: str) -> nn.Sequential:
    """``features`` of the published networks, written down another way: (name, out, k, s, p)."""
    layers: list[nn.Module] = []
    before = 3
    if net == "alex":
        plan = [(64, 11, 4, 2), "M3", (192, 5, 1, 2), "M3", (384, 3, 1, 1), (256, 3, 1, 1)]
        plan += [(256, 3, 1, 1), "M3"]
    else:
        widths = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
        plan = [(width, 3, 1, 1) if width else "M2" for width in widths]
    for layer in plan:
        if isinstance(layer, str):
            layers.append(nn.MaxPool2d(int(layer[1]), 2))
        else:
            layers += [nn.Conv2d(before, *layer), nn.ReLU()]
            before = layer[0]
    return nn.Sequential(*layers)


PARAMETERS = {"vgg16": 14_714_688, "alex": 2_469_696}
"""Of the convolutions, as published; torchvision's whole networks have 138,357,544, 61,100,840."""
TAKEN = {"vgg16": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
"""torchvision's indices of the ReLUs whose answers LPIPS takes."""


@pytest.mark.parametrize("net", NETWORKS)
def test_features_are_those_of_the_published_network(net):
    """The same weights in a plain stack of layers, cut at the same places."""
    weights, plain, ours = made_up_weights(net), torchvision_like(net), Extractor(net)
    state = {f"features.{name}": value for name, value in plain.state_dict().items()}
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in weights.items()}
    assert sum(value.numel() for value in weights.values()) == PARAMETERS[net]
    plain.load_state_dict({n.removeprefix("features."): v for n, v in weights.items()})
    ours.load_state_dict(weights)
    rgb = torch.rand(1, 3, 40, 35)
    x = (rgb - torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).reshape(1, 3, 1, 1)
    expected = []
    with torch.no_grad():
        for index, layer in enumerate(plain[: TAKEN[net][-1] + 1]):
            x = layer(x)
            if index in TAKEN[net]:
                expected.append(x)
        answers = ours(rgb)
    assert len(answers) == len(expected) == 5
    for mine, theirs in zip(answers, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", NETWORKS)
def test_the_smallest_side_is_the_smallest(net):
    side = NETWORKS[net].smallest
    ours = Extractor(net)
    assert min(ours(torch.rand(1, 3, side, side))[-1].shape[-2:]) == 1
    with pytest.raises(RuntimeError, match="too small"):
        torchvision_like(net)[: TAKEN[net][-1] + 1](torch.rand(1, 3, side - 1, side - 1))


def test_smaller_pictures_are_enlarged():
    ours = Extractor("alex")
    rgb = torch.rand(2, 3, 1, 40)
    larger = F.interpolate(rgb, size=(31, 40), mode="bilinear")
    for mine, other in zip(ours(rgb), ours(larger), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_is_loaded_frozen(tmp_path, suffix):
    state = {**made_up_weights("alex"), "classifier.1.weight": torch.zeros(2, 2)}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    extractor = load_extractor("alex", str(path))
    assert not extractor.training
    assert not any(value.requires_grad for value in extractor.parameters())
    assert torch.equal(extractor.features["3"].weight, state["features.3.weight"])
    assert extractor.features["3"].weight.is_contiguous(memory_format=torch.channels_last)


def write(path, what):
    if what == "text":
        path.write_text("no weights")
    elif what == "another net":
        torch.save(made_up_weights("alex"), path)
    elif what == "a list":
        torch.save([torch.zeros(1)], path)
    elif what == "a part":
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    elif what == "code":
        torch.save({"features.0.weight": re.compile("x")}, path)


@pytest.mark.parametrize(
    ("what", "suffix", "message"),
    [
        (
            "nothing",
            "safetensors",
            "expected torchvision.s weights of vgg16 in .*, found no such file",
        ),
        ("text", "safetensors", "cannot read .*expected torchvision's weights of vgg16"),
        ("text", "pth", "cannot read .*expected torchvision's weights of vgg16"),
        ("code", "pth", "cannot read .*expected torchvision's weights of vgg16"),
        (
            "another net",
            "pth",
            r"not torchvision's vgg16: expected features.0.weight of shape \(64, 3, 3, 3\), "
            r"found \(64, 3, 11, 11\)",
        ),
        ("a list", "pth", "expected tensors by name in .*, found list"),
        ("a part", "pth", r"expected features.0.bias of shape \(64,\), found none"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_a_line(tmp_path, what, suffix, message):
    path = tmp_path / f"weights.{suffix}"
    write(path, what)
    with pytest.raises(LossError, match=message) as caught:
        load_extractor("vgg16", str(path))
    assert "\n" not in str(caught.value)


def test_the_files_have_their_hash_in_their_name():
    assert NETWORKS["vgg16"].file == "vgg16-397923af.pth"
    assert NETWORKS["vgg16"].prefix == "397923af"
    assert NETWORKS["alex"].file == "alexnet-owt-7be5be79.pth"
    assert NETWORKS["alex"].prefix == "7be5be79"
    assert extractors.ADDRESS.startswith("https://")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Weights of AlexNet as if torchvision had published them in a folder here; torch's cache."""
    source = tmp_path / "published"
    source.mkdir()
    torch.save(made_up_weights("alex"), source / "raw")
    digest = hashlib.sha256((source / "raw").read_bytes()).hexdigest()
    plan = NETWORKS["alex"]
    monkeypatch.setitem(
        NETWORKS, "alex", type(plan)(**{**vars(plan), "file": f"net-{digest[:8]}.pth"})
    )
    (source / "raw").rename(source / NETWORKS["alex"].file)
    monkeypatch.setattr(extractors, "ADDRESS", source.as_uri() + "/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return source / NETWORKS["alex"].file


def cached(tmp_path):
    return tmp_path / "cache" / "hub" / "checkpoints" / NETWORKS["alex"].file


def test_official_weights_are_fetched_once_and_announced(published, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_extractor("alex")
    assert cached(tmp_path).read_bytes() == published.read_bytes()
    assert [p.name for p in cached(tmp_path).parent.iterdir()] == [published.name]
    assert "downloading" in caplog.text
    published.unlink()
    load_extractor("alex")


def test_another_file_at_the_address_is_not_taken(published, tmp_path):
    published.write_bytes(b"something else")
    with pytest.raises(LossError, match=r"download failed \(expected a SHA-256 that begins with"):
        load_extractor("alex")
    assert list(cached(tmp_path).parent.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_noticed(published, tmp_path):
    load_extractor("alex")
    with cached(tmp_path).open("r+b") as file:
        file.seek(1000)
        file.write(b"xxxx")
    with pytest.raises(LossError, match=r"is damaged: expected a SHA-256 .*; delete it, or down"):
        load_extractor("alex")


def test_without_weights_the_error_says_what_to_do(tmp_path, monkeypatch, published):
    monkeypatch.setattr(extractors, "ADDRESS", "https://127.0.0.1:1/")
    with pytest.raises(LossError) as caught:
        load_extractor("alex")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"the pretrained weights of alex are not at {cached(tmp_path)} and their download failed",
        f"download https://127.0.0.1:1/{published.name} there",
        "loss_options.perceptual.weights",
        "or set loss_options.perceptual.net=lite0, which needs no download",
    ):
        assert part in message


def test_a_download_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    class Breaks:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def read(self, size):
            raise OSError("connection reset")

    monkeypatch.setattr(extractors.urllib.request, "urlopen", lambda *a, **k: Breaks())
    with pytest.raises(OSError, match="connection reset"):
        fetch("https://x/file", target, "00")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"
