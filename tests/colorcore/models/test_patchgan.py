import pytest
import torch
from torch import nn
from torch.nn import functional as F

from colorcore.models import MODELS, MultiScaleDiscriminator, PatchDiscriminator
from colorcore.models.patchgan import FEATURE_LAYERS


def photos(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random CIELAB."""
    generator = torch.Generator().manual_seed(seed)
    lab = torch.rand(*shape, generator=generator) * 160 - 80
    lab[:, 0] = lab[:, 0] * 0.5 + 50
    return lab


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_score_sees_70_by_70_pixels():
    """Its gradient is non-zero on exactly that square, around the patch's centre."""
    torch.manual_seed(0)
    judge = PatchDiscriminator(channels=4).eval()
    lab = photos(1, 3, 128, 128).requires_grad_()
    scores, _ = judge(lab)
    scores[0, 0, 8, 8].backward()
    seen = lab.grad.abs().sum(dim=1)[0] > 0
    rows, columns = seen.any(dim=1).nonzero()[:, 0], seen.any(dim=0).nonzero()[:, 0]
    assert len(rows) == len(columns) == 70
    assert rows[-1] - rows[0] == columns[-1] - columns[0] == 69
    assert seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (45, 101)])
def test_every_scale_has_logits_and_three_features(size: tuple[int, int]):
    judge = MultiScaleDiscriminator(channels=4)
    logits, features = judge(photos(1, 3, *size), features=True)
    assert len(logits) == len(features) == 3
    for scores, answers in zip(logits, features, strict=True):
        assert scores.shape[:2] == (1, 1)
        assert [answer.shape[1] for answer in answers] == [8, 16, 32]
    if size == (64, 96):
        assert [tuple(scores.shape[2:]) for scores in logits] == [(10, 14), (6, 8), (4, 5)]
        assert [tuple(a.shape[2:]) for a in features[0]] == [(16, 24), (8, 12), (9, 13)]
    assert judge(photos(1, 3, *size))[1] == [[], [], []]


def test_features_are_what_comes_out_of_layers_3_5_and_7():
    judge, lab = PatchDiscriminator(channels=4).eval(), photos(1, 3, 32, 32)
    kept: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(judge.layers):
        layer.register_forward_hook(lambda _m, _i, answer, n=number: kept.update({n: answer}))
    _, features = judge(lab, features=True)
    assert FEATURE_LAYERS == (3, 5, 7)
    for number, feature in zip(FEATURE_LAYERS, features, strict=True):
        assert isinstance(judge.layers[number], nn.LeakyReLU)
        assert torch.equal(feature, kept[number])


def test_it_judges_normalized_lab():
    """L_norm and ab_norm in -1..1 reach the first layer."""
    judge, seen = PatchDiscriminator(channels=4), []
    judge.layers[0].register_forward_hook(lambda _m, given, _o: seen.append(*given))
    lab = torch.tensor([100.0, -128.0, 64.0]).reshape(1, 3, 1, 1).expand(1, 3, 16, 16)
    judge(lab)
    assert seen[0][0, :, 5, 5].tolist() == [1.0, -1.0, 0.5]


def test_each_scale_is_half_of_the_one_before():
    """The second judge sees means of 3x3 pixels, every second one; at the border of fewer."""
    judges, lab = MultiScaleDiscriminator(channels=4).eval(), photos(1, 3, 32, 32)
    half = torch.empty(1, 3, 16, 16)
    for row in range(16):
        for column in range(16):
            rows = slice(max(0, 2 * row - 1), 2 * row + 2)
            columns = slice(max(0, 2 * column - 1), 2 * column + 2)
            half[:, :, row, column] = lab[:, :, rows, columns].mean(dim=(2, 3))
    logits, _ = judges(lab)
    torch.testing.assert_close(logits[1], judges.judges[1](half)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[0], judges.judges[0](lab)[0])


def test_every_convolution_is_spectrally_normalized():
    """Seen as a matrix, each has a largest singular value of 1, whatever its weights were."""
    torch.manual_seed(0)
    judge = PatchDiscriminator(channels=4)
    for layer in judge.layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.parametrizations.weight.original, std=3.0)
    with torch.no_grad():
        for _ in range(60):  # power iterations, one a training step
            judge(photos(1, 3, 16, 16))
    convolutions = [layer for layer in judge.layers if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 5
    for layer in convolutions:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
        assert largest == pytest.approx(1.0, abs=0.02)


def test_no_norm_looks_beyond_the_patch():
    allowed = (nn.Conv2d, nn.LeakyReLU)
    assert all(isinstance(layer, allowed) for layer in PatchDiscriminator(channels=4).layers)


def test_the_parameters_are_those_of_the_docstrings():
    one, three = PatchDiscriminator(), MultiScaleDiscriminator()
    assert parameters(one) == 2_764_737
    assert parameters(three) == 3 * parameters(one) == 8_294_211
    assert "2,764,737" in (PatchDiscriminator.__doc__ or "")
    assert "8,294,211" in (MultiScaleDiscriminator.__doc__ or "")


def test_gradients_reach_every_parameter_and_the_colours():
    judge, lab = MultiScaleDiscriminator(channels=4), photos(1, 3, 64, 64).requires_grad_()
    logits, features = judge(lab, features=True)
    total = sum(scores.square().sum() for scores in logits)
    for answers in features:
        total = total + sum(answer.square().sum() for answer in answers)
    total.backward()
    for name, parameter in judge.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (lab.grad.abs().amax(dim=(2, 3)) > 0).all()


def test_autocast_answers_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = MultiScaleDiscriminator(channels=4)(photos(1, 3, 32, 32), features=True)
    kinds = {answer.dtype for answer in [*logits, *features[0], *features[1], *features[2]]}
    assert kinds == {torch.float32}


def test_it_learns_to_tell_colour_from_grey():
    torch.manual_seed(0)
    judge = MultiScaleDiscriminator(channels=8, scales=2)
    optimizer = torch.optim.Adam(judge.parameters(), lr=3e-3)
    for step in range(25):
        real = photos(4, 3, 32, 32, seed=step)
        fake = real * torch.tensor([1.0, 0.2, 0.2]).reshape(3, 1, 1)
        on_real, on_fake = judge(real)[0], judge(fake)[0]
        loss = sum(F.softplus(-scores).mean() for scores in on_real)
        loss = loss + sum(F.softplus(scores).mean() for scores in on_fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all((scores > 0).float().mean() > 0.95 for scores in on_real)
    assert all((scores < 0).float().mean() > 0.95 for scores in on_fake)


@pytest.mark.parametrize(
    "options",
    [{"channels": 0}, {"scales": 0}, {"channels": 2000}],
    ids=["none", "no-scale", "wide"],
)
def test_an_option_out_of_range_is_refused(options: dict[str, int]):
    with pytest.raises(ValueError, match=next(iter(options))):
        MultiScaleDiscriminator(**options)


def test_it_is_no_colorizer():
    assert not {PatchDiscriminator, MultiScaleDiscriminator} & set(MODELS.values())
