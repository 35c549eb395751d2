import pytest
import skimage.color
import torch
from torch import nn

from colorcore.color.lab import lab_to_rgb
from colorcore.models.unet import UNet


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small(seed: int = 0, **options: object) -> UNet:
    torch.manual_seed(seed)
    return UNet(**{"channels": 4, **options})


def settled(**options: object) -> UNet:
    """A small UNet in evaluation, with settled statistics and a head that answers in colour."""
    model = small(**options).train()
    nn.init.normal_(model.head.weight, std=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 1, 64, 64))
    return model.eval()


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 40), (2, 3), (16, 16), (17, 31), (33, 48), (64, 64), (100, 37)]
)
def test_any_size_comes_back(size: tuple[int, int], norm: str):
    with torch.no_grad():
        ab = settled(norm=norm)(torch.rand(2, 1, *size) * 2 - 1)["ab"]
    assert ab.shape == (2, 2, *size)
    assert ab.dtype == torch.float32
    assert ab.isfinite().all()


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_any_depth(depth: int):
    model = small(depth=depth)
    assert len(model.encoder) == len(model.decoder) == depth
    assert model(torch.zeros(2, 1, 40, 40))["ab"].shape == (2, 2, 40, 40)


@pytest.mark.parametrize("size", [(19, 35), (1, 16), (32, 33)])
def test_padding_repeats_the_edge(size: tuple[int, int]):
    """The answer is that of the photo which someone padded by hand."""
    model, L_norm = settled(), torch.rand(1, 1, *size)
    rows = torch.arange(-(-size[0] // 16) * 16).clamp(max=size[0] - 1)
    columns = torch.arange(-(-size[1] // 16) * 16).clamp(max=size[1] - 1)
    with torch.no_grad():
        whole = model(L_norm[:, :, rows][:, :, :, columns])["ab"]
        ab = model(L_norm)["ab"]
    assert ab.std() > 10
    torch.testing.assert_close(ab, whole[..., : size[0], : size[1]])


@pytest.mark.parametrize(
    ("channels", "plain", "with_rgb", "with_attention", "with_both"),
    [
        (64, 31_036_546, 31_036_611, 31_559_750, 31_559_815),
        (96, 69_822_146, 69_822_243, 70_998_630, 70_998_727),
        (128, 124_119_298, 124_119_427, 126_210_182, 126_210_311),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_parameters_are_those_of_the_docstring(
    channels: int, plain: int, with_rgb: int, with_attention: int, with_both: int, norm: str
):
    counts = (plain, with_rgb, with_attention, with_both)
    choices = [(False, "ab"), (False, "rgb"), (True, "ab"), (True, "rgb")]
    for expected, (attention, head) in zip(counts, choices, strict=True):
        with torch.device("meta"):
            model = UNet(channels=channels, norm=norm, attention=attention, head=head)
        assert parameters(model) == expected
        assert f"{expected:,}" in (UNet.__doc__ or "")
    assert plain == 7574 * channels**2 + 210 * channels + 2
    assert with_attention - plain == 127.5 * channels**2 + 15 * channels + 4


def test_without_options_the_names_are_those_of_older_checkpoints():
    """Encoder, bottleneck, up, decoder and head, and nothing beside them."""
    names = {name.partition(".")[0] for name in small().state_dict()}
    assert names == {"encoder", "bottleneck", "up", "decoder", "head"}
    assert {n.partition(".")[0] for n in small(attention=True).state_dict()} - names == {"gates"}


@pytest.mark.parametrize("head", ["ab", "rgb"])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_gradient_reaches_every_parameter(norm: str, attention: bool, head: str):
    model = small(channels=8, norm=norm, attention=attention, head=head)
    model(torch.randn(2, 1, 64, 48))["ab"].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


# Attention gates and the RGB head


@pytest.mark.parametrize("size", [(1, 40), (33, 48)])
def test_gates_take_any_size(size: tuple[int, int]):
    with torch.no_grad():
        ab = settled(attention=True)(torch.rand(2, 1, *size) * 2 - 1)["ab"]
    assert ab.shape == (2, 2, *size)


def test_each_skip_passes_its_gate():
    """Closed gates leave the decoder nothing but zeros of the skips; each halving has a gate."""
    model, joined = settled(attention=True, depth=3), []
    assert len(model.gates) == 3
    for gate in model.gates:
        nn.init.constant_(gate.psi.bias, -1e4)
        nn.init.zeros_(gate.psi.weight)
    for block in model.decoder:
        block.register_forward_hook(lambda _m, given, _o: joined.append(*given))
    with torch.no_grad():
        model(torch.rand(1, 1, 32, 32))
    for x in joined:
        skip, up = x.chunk(2, dim=1)
        assert not skip.any()
        assert up.any()


def test_open_gates_are_as_good_as_none():
    gated, plain = settled(attention=True), settled()
    for gate in gated.gates:
        nn.init.constant_(gate.psi.bias, 1e4)
    plain.load_state_dict({n: v for n, v in gated.state_dict().items() if "gates" not in n})
    with torch.no_grad():
        L_norm = torch.rand(2, 1, 32, 48)
        torch.testing.assert_close(gated(L_norm)["ab"], plain(L_norm)["ab"])


@pytest.mark.parametrize("size", [(32, 32), (19, 35)])
def test_an_rgb_head_answers_rgb_and_its_chroma(size: tuple[int, int]):
    with torch.no_grad():
        answer = settled(head="rgb")(torch.rand(2, 1, *size) * 2 - 1)
    assert answer["rgb"].shape == (2, 3, *size)
    assert answer["ab"].shape == (2, 2, *size)
    assert 0 <= answer["rgb"].min() <= answer["rgb"].max() <= 1
    assert answer["ab"].std() > 5
    photo = answer["rgb"].permute(0, 2, 3, 1).double().numpy()
    truth = torch.from_numpy(skimage.color.rgb2lab(photo)).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(answer["ab"], truth[:, 1:], atol=0.05, rtol=1e-3)
    rgb = lab_to_rgb(torch.cat([truth[:, :1], answer["ab"]], dim=1))
    torch.testing.assert_close(rgb, answer["rgb"], atol=2e-3, rtol=0)


def test_an_rgb_head_starts_near_grey_and_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = small(head="rgb", channels=32)(torch.randn(4, 1, 32, 32))
    assert (answer["rgb"] - 0.5).abs().max() < 0.05
    assert answer["ab"].abs().max() < 5
    assert {value.dtype for value in answer.values()} == {torch.float32}


def test_black_and_white_have_finite_gradients():
    """Where the head is saturated, rgb -> lab must not divide by nothing."""
    model = settled(head="rgb")
    for bias in (-200.0, 200.0):
        nn.init.constant_(model.head.bias, bias)
        model(torch.rand(1, 1, 16, 16))["ab"].square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_training_starts_near_grey():
    ab = small(channels=32)(torch.randn(4, 1, 32, 32))["ab"]
    assert 0 < ab.std() < 2
    assert ab.abs().max() < 5


def test_the_answer_stays_within_the_stored_range():
    model = settled()
    with torch.no_grad():
        model.head.weight.mul_(1e4)
        ab = model(torch.randn(2, 1, 32, 32))["ab"]
    assert ab.abs().max() <= 128
    assert ab.abs().max() > 127


def test_channels_last_gives_the_same_answer():
    model, L_norm = settled(channels=8), torch.rand(2, 1, 48, 40)
    with torch.no_grad():
        expected = model(L_norm)["ab"]
        model = model.to(memory_format=torch.channels_last)
        ab = model(L_norm.to(memory_format=torch.channels_last))["ab"]
    assert expected.std() > 10
    torch.testing.assert_close(ab, expected, atol=1e-2, rtol=1e-4)


def test_autocast_answers_in_float32():
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert settled()(torch.rand(1, 1, 16, 16))["ab"].dtype == torch.float32


def test_group_norm_treats_each_photo_alone():
    """In training too: the batch around a photo does not change its answer."""
    model = small(norm="group").train()
    nn.init.normal_(model.head.weight, std=0.3)
    photos = torch.randn(3, 1, 32, 32) * torch.tensor([0.1, 1.0, 3.0]).reshape(3, 1, 1, 1)
    together = model(photos)["ab"]
    alone = torch.cat([model(photo[None])["ab"] for photo in photos])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(together, model.eval()(photos)["ab"])


@pytest.mark.parametrize(("channels", "groups"), [(4, 4), (7, 1), (48, 16), (64, 32), (96, 32)])
def test_group_norm_takes_as_many_groups_as_divide(channels: int, groups: int):
    with torch.device("meta"):
        model = UNet(channels=channels, norm="group")
    first = next(m for m in model.modules() if isinstance(m, nn.GroupNorm))
    assert first.num_groups == groups
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_one_seed_one_model():
    L_norm = torch.rand(2, 1, 32, 32)
    ab = [small(seed, dropout=0.0)(L_norm)["ab"] for seed in (1, 1, 2)]
    assert torch.equal(ab[0], ab[1])
    assert not torch.equal(ab[0], ab[2])


def test_dropout_acts_on_whole_maps_in_training_only():
    model, maps = settled(dropout=0.5), []
    model.dropout.register_forward_hook(lambda _m, given, output: maps.append((*given, output)))
    L_norm = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        model(L_norm)
        model.train()(L_norm)
    (given, output), (given_training, output_training) = maps
    assert torch.equal(given, output)
    kept = (output_training == 2 * given_training).flatten(2).all(2)
    zeroed = (output_training == 0).flatten(2).all(2)
    assert (kept | zeroed).all()
    assert 0.2 < zeroed.float().mean() < 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0},
        {"channels": 1025},
        {"depth": 0},
        {"depth": 8},
        {"norm": "layer"},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"head": "lab"},
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, object]):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} must be"):
        UNet(**options)


def test_it_overfits_one_small_batch():
    """Two photos in which lightness decides between two colours."""
    across = torch.linspace(-1, 1, 16).expand(1, 16, 16)
    L_norm = torch.stack([across, across.transpose(1, 2)])
    truth = torch.cat([60 * L_norm.sign(), -40 * L_norm.sign()], dim=1)
    model = small(channels=8, depth=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        error = (model(L_norm)["ab"] - truth).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error.sqrt() < 5


def test_unit_lightness_is_what_the_first_convolution_sees():
    torch.manual_seed(0)
    unit = UNet(channels=4, depth=2, lightness="unit").eval()
    centered = UNet(channels=4, depth=2).eval()
    centered.load_state_dict(unit.state_dict())
    L_norm = torch.rand(1, 1, 12, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(unit(L_norm)["ab"], centered((L_norm + 1) / 2)["ab"])
        assert not torch.equal(unit(L_norm)["ab"], centered(L_norm)["ab"])
    with pytest.raises(ValueError, match="lightness must be one of centered, unit"):
        UNet(lightness="percent")  # type: ignore[arg-type]
