import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from colorcore.blocks.resnet34 import ResNet34
from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import Palette, bin_weights
from colorcore.models import AnswersInBins, StartsPretrained
from colorcore.models.resnet_unet import FiLM, GlobalColors, ResidualBlock, ResNetUNet


def palette_of(bins: int, seed: int = 0) -> Palette:
    """Made-up colours, uniform over most of ab, with uneven priors."""
    rng = np.random.default_rng(seed)
    priors = rng.dirichlet(np.ones(bins))
    return Palette(
        rng.uniform(-90, 90, (bins, 2)).astype(np.float32),
        priors.astype(np.float32),
        bin_weights(priors).astype(np.float32),
    )


def small(**options: object) -> ResNetUNet:
    torch.manual_seed(0)
    model = ResNetUNet(**{"channels": 4, "bins": 6, **options})
    model.use_palette(palette_of(len(model.centroids)))
    return model


def outspoken(model: ResNetUNet) -> ResNetUNet:
    """The model with heads, attention and FiLM that say something."""
    for head in (model.bins, model.residual, model.confidence):
        nn.init.normal_(head.weight, std=1.0)
    nn.init.constant_(model.attention.gamma, 0.5)
    for module in model.modules():
        if isinstance(module, FiLM):
            nn.init.normal_(module.scale_shift.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> ResNetUNet:
    return outspoken(small()).eval()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Shapes and types


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (32, 32), (37, 71), (64, 48)])
def test_any_size_comes_back(model: ResNetUNet, size: tuple[int, int]):
    with torch.no_grad():
        answer = model(torch.rand(1, 1, *size) * 2 - 1)
    coarse = (-(-size[0] // 4), -(-size[1] // 4))
    assert {name: tuple(value.shape) for name, value in answer.items()} == {
        "ab": (1, 2, *size),
        "logits": (1, 6, *coarse),
        "residual": (1, 2, *coarse),
        "confidence": (1, 1, *coarse),
        "histograms": (1, 2, 64),
    }
    assert all(value.isfinite().all() for value in answer.values())
    assert answer["ab"].abs().max() <= 128
    assert answer["residual"].abs().max() <= 10
    assert 0 <= answer["confidence"].min() <= answer["confidence"].max() <= 1
    torch.testing.assert_close(answer["histograms"].sum(dim=2), torch.ones(1, 2))


def test_padding_repeats_the_edge(model: ResNetUNet):
    L_norm = torch.rand(1, 1, 36, 60) * 2 - 1
    rows, columns = torch.arange(64).clamp(max=35), torch.arange(64).clamp(max=59)
    with torch.no_grad():
        whole = model(L_norm[:, :, rows][:, :, :, columns])
        answer = model(L_norm)
    torch.testing.assert_close(answer["logits"], whole["logits"][..., :9, :15])
    # Only the last two rows and columns are between their own colour and one that was cropped.
    torch.testing.assert_close(answer["ab"][..., :34, :58], whole["ab"][..., :34, :58])


def test_autocast_answers_in_float32_and_nearly_the_same(model: ResNetUNet):
    L_norm = torch.rand(1, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = model(L_norm)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = model(L_norm)
    assert {value.dtype for value in answer.values()} == {torch.float32}
    assert expected["ab"].std() > 10
    assert (answer["ab"] - expected["ab"]).square().mean().sqrt() < 0.2 * expected["ab"].std()


def test_channels_last_gives_the_same_answer(model: ResNetUNet):
    L_norm = torch.rand(2, 1, 64, 32) * 2 - 1
    with torch.no_grad():
        expected = model(L_norm)["ab"]
        model.to(memory_format=torch.channels_last)
        answer = model(L_norm.to(memory_format=torch.channels_last))["ab"]
        model.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(answer, expected, atol=1e-2, rtol=1e-3)


@pytest.mark.slow
def test_it_is_one_graph_for_the_compiler(model: ResNetUNet):
    L_norm = torch.rand(1, 1, 33, 32)
    with torch.no_grad():
        answer = torch.compile(model, backend="eager", fullgraph=True)(L_norm)["ab"]
        torch.testing.assert_close(answer, model(L_norm)["ab"])


def test_a_photo_is_treated_alone(model: ResNetUNet):
    photos = torch.randn(2, 1, 32, 32) * torch.tensor([0.2, 1.0]).reshape(2, 1, 1, 1)
    with torch.no_grad():
        together = model(photos)["ab"]
        alone = torch.cat([model(photo[None])["ab"] for photo in photos])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


# Parameters and gradients


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(48, 27_704_224), (64, 31_654_080), (96, 42_631_936), (128, 57_713_984)],
)
def test_the_parameters_are_those_of_the_docstring(channels: int, expected: int):
    with torch.device("meta"):
        model = ResNetUNet(channels=channels)
    assert parameters(model) == expected
    assert f"{expected:,}" in (ResNetUNet.__doc__ or "")
    assert parameters(model.encoder) == 21_278_400


def test_the_gradient_reaches_every_parameter():
    model = outspoken(small(bins=5))
    answer = model(torch.randn(2, 1, 64, 64))
    sum(value.square().sum() for value in answer.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_colours_alone_reach_every_head_and_the_histograms():
    model = outspoken(small(bins=5))
    model(torch.randn(1, 1, 64, 64))["ab"].square().sum().backward()
    for part in (model.bins, model.residual, model.confidence, model.colors, model.encoder.conv1):
        for name, parameter in part.named_parameters():
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "options",
    [{"channels": 0}, {"channels": 1025}, {"bins": 1}, {"dropout": 1.0}, {"dropout": -0.1}],
)
def test_an_option_out_of_range_is_refused(options: dict[str, object]):
    (name,) = options
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{name} must be in"):
        ResNetUNet(**options)


def test_dropout_acts_on_the_bottleneck_in_training_only():
    model, maps = small(dropout=0.5), []
    model.dropout.register_forward_hook(lambda _m, given, output: maps.append((*given, output)))
    with torch.no_grad():
        model.eval()(torch.rand(1, 1, 64, 64))
        model.train()(torch.rand(1, 1, 64, 64))
    (given, output), (_, in_training) = maps
    assert given.shape[1] == 512
    assert torch.equal(given, output)
    assert 0.3 < (in_training == 0).all(dim=(2, 3)).float().mean() < 0.7


# The palette


def photos_histogram() -> NDArray[np.int64]:
    """Counts that fall off with chroma as in photographs: a Laplacian of scale 8 ab units."""
    axis = np.abs(np.arange(256) - 128)
    return np.rint(1e7 * np.exp(-np.add.outer(axis, axis) / 8.0)).astype(np.int64)


@pytest.mark.parametrize("method", ["kmeans", "grid"])
def test_first_answers_are_near_grey(method: str):
    palette = fit_palette(photos_histogram(), bins=64, method=method)
    torch.manual_seed(0)
    model = ResNetUNet(channels=4, bins=64)
    photos = torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        assert model(photos)["ab"].abs().max() < 1
        model.use_palette(palette)
        answer = model(photos)
    assert answer["ab"].square().sum(dim=1).sqrt().max() < 4
    shares = answer["logits"].softmax(dim=1).mean(dim=(0, 2, 3))
    torch.testing.assert_close(shares, torch.from_numpy(palette.priors), atol=1e-4, rtol=0.05)


def test_a_palette_of_another_size_is_refused():
    with torch.device("meta"):
        model = ResNetUNet(channels=4, bins=6)
    with pytest.raises(ValueError, match=r"palette of 6 bins.*got one of 5; set model\.bins=5"):
        model.use_palette(palette_of(5))


def test_the_centroids_are_part_of_the_weights(model: ResNetUNet):
    state = model.state_dict()
    assert np.array_equal(state["centroids"].numpy(), palette_of(6).centroids)
    other = ResNetUNet(channels=4, bins=6)
    other.load_state_dict(state)
    assert torch.equal(other.centroids, model.centroids)
    assert "centroids" not in dict(model.named_parameters())


def test_it_says_what_it_can_do(model: ResNetUNet):
    assert isinstance(model, AnswersInBins)
    assert isinstance(model, StartsPretrained)


def test_pretrained_weights_are_read_when_training_starts_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
):
    with torch.device("meta"):
        none, some = ResNetUNet(channels=4), ResNetUNet(channels=4, encoder_weights="no/where.pth")
    none.load_pretrained()
    with pytest.raises(ValueError, match=r"encoder_weights: cannot read no/where\.pth"):
        some.load_pretrained()
    read: list[str] = []
    monkeypatch.setattr(ResNet34, "load_torchvision", lambda _self, path: read.append(path))
    none.load_pretrained()
    some.load_pretrained()
    assert read == ["no/where.pth"]


# Decoding


def enlarged(coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, h, w) -> (C, 4h, 4w): linear between pixel centres, constant beyond the outermost."""
    for axis in (1, 2):
        old = (np.arange(coarse.shape[axis]) + 0.5) * 4
        new = np.arange(coarse.shape[axis] * 4) + 0.5
        coarse = np.apply_along_axis(lambda line, n=new, o=old: np.interp(n, o, line), axis, coarse)
    return coarse


@pytest.mark.parametrize("temperature", [0.1, 0.38, 1.0])
def test_decoding_by_numpy(model: ResNetUNet, temperature: float):
    rng = np.random.default_rng(1)
    logits, residual = 3 * rng.normal(size=(2, 6, 3, 5)), rng.uniform(-10, 10, (2, 2, 3, 5))
    confidence = rng.uniform(size=(2, 1, 3, 5))
    raised = np.exp(logits / temperature)
    shares = raised / raised.sum(axis=1, keepdims=True)
    mean = np.einsum("bqhw,qc->bchw", shares, palette_of(6).centroids.astype(np.float64))
    expected = np.stack([enlarged(photo) for photo in mean + confidence * residual])
    given = [torch.from_numpy(array).float() for array in (logits, residual, confidence)]
    ab = model.decode(*given, temperature=temperature)
    assert ab.shape == (2, 2, 12, 20)
    np.testing.assert_allclose(ab.numpy(), expected, atol=2e-3)
    cropped = model.decode(*given, size=(10, 17), temperature=temperature)
    assert torch.equal(cropped, ab[..., :10, :17])


def test_the_answer_is_its_own_parts_decoded(model: ResNetUNet):
    with torch.no_grad():
        answer = model(torch.rand(1, 1, 39, 50) * 2 - 1)
    parts = (answer["logits"], answer["residual"], answer["confidence"])
    assert torch.equal(model.decode(*parts, size=(39, 50), temperature=0.38), answer["ab"])


def test_colours_stay_within_the_stored_range(model: ResNetUNet):
    logits = torch.zeros(1, 6, 1, 1)
    logits[:, 0] = 100.0
    here = model.centroids[0].clone()
    model.centroids[0] = torch.tensor([-125.0, 127.0])
    extreme = torch.tensor([-10.0, 10.0]).reshape(1, 2, 1, 1)
    ab = model.decode(logits, extreme, torch.ones(1, 1, 1, 1))
    model.centroids[0] = here
    assert ab[0, :, 0, 0].tolist() == [-128.0, 128.0]


def test_a_temperature_of_nought_is_refused(model: ResNetUNet):
    parts = torch.zeros(1, 6, 1, 1), torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="temperature"):
        model.decode(*parts, temperature=0.0)


# The parts


def test_film_starts_as_the_identity():
    film, x = FiLM(8, 3), torch.randn(2, 3, 4, 5)
    assert torch.equal(film(x, torch.randn(2, 8)), x)


def test_film_scales_and_shifts_whole_maps():
    film, x = FiLM(1, 2), torch.randn(2, 2, 3, 3)
    with torch.no_grad():
        # gamma of both maps, then beta of both, per unit of the condition
        film.scale_shift.weight.copy_(torch.tensor([[1.0], [-1.0], [0.5], [3.0]]))
        answer = film(x, torch.tensor([[1.0], [2.0]]))
    torch.testing.assert_close(answer[0, 0], 2 * x[0, 0] + 0.5)
    torch.testing.assert_close(answer[0, 1], torch.full((3, 3), 3.0))
    torch.testing.assert_close(answer[1, 0], 3 * x[1, 0] + 1.0)
    torch.testing.assert_close(answer[1, 1], -x[1, 1] + 6.0)


def test_a_residual_block_by_plain_functions():
    torch.manual_seed(0)
    block, x = ResidualBlock(3, 4), torch.randn(2, 3, 6, 5)
    for norm in (block.first_norm, block.second_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def normalized(x: Tensor, norm: nn.GroupNorm) -> Tensor:
        """Each channel alone: 4 and 8 channels are in as many groups."""
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    with torch.no_grad():
        inner = normalized(F.conv2d(x, block.first.weight, padding=1), block.first_norm).relu()
        outer = normalized(F.conv2d(inner, block.second.weight, padding=1), block.second_norm)
        gated = outer[:, :4] / (1 + (-outer[:, 4:]).exp())
        expected = F.conv2d(x, block.shortcut.weight) + gated
        torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_a_closed_gate_leaves_the_shortcut():
    block, x = ResidualBlock(4, 4), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        block.second_norm.weight[4:] = 0.0
        block.second_norm.bias[4:] = -1e4
        assert torch.equal(block(x), x)


def test_histograms_are_two_softmaxes_of_the_mean():
    colors, x = GlobalColors(6), torch.randn(2, 6, 3, 4)
    with torch.no_grad():
        histograms = colors(x)
        scores = colors.answer(colors.hidden(x.flatten(2).mean(2)).clamp(min=0))
    assert histograms.shape == (2, 2, 64)
    torch.testing.assert_close(histograms[:, 0], scores[:, :64].softmax(1))
    torch.testing.assert_close(histograms[:, 1], scores[:, 64:].softmax(1))


@pytest.mark.slow
def test_it_overfits_one_small_batch():
    """Two photos in which lightness decides between two bins, by cross-entropy."""
    model = small(channels=8)
    across = torch.linspace(-1, 1, 32).expand(1, 32, 32)
    L_norm = torch.stack([across, across.transpose(1, 2)])
    truth = F.avg_pool2d(L_norm, 4)[:, 0].gt(0).long() * 3
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(35):
        answer = model(L_norm)
        error = F.cross_entropy(answer["logits"], truth)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.1
    assert (answer["logits"].argmax(dim=1) == truth).float().mean() > 0.98
