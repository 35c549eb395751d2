import pytest
import torch

from colorcore.losses.extractors import load_extractor
from colorcore.losses.perceptual import build
from colorcore.losses.term import LossError
from tests.colorcore.losses.conftest import made_up_weights, photos


@pytest.fixture
def term(alex):
    return build(net="alex", weights=alex)


def test_the_distance_by_its_definition(term, alex):
    """With numpy, pixel by pixel of each layer."""
    lab, rgb = photos(2, 40, 40), torch.rand(2, 3, 40, 40)
    value = term({"ab": lab[:, 1:], "rgb": rgb}, lab)
    from colorcore.color.lab import lab_to_rgb

    extractor = load_extractor("alex", alex)
    layers = []
    for mine, theirs in zip(extractor(rgb), extractor(lab_to_rgb(lab)), strict=True):
        x, y = (t.detach().double().numpy() for t in (mine, theirs))
        x, y = (t / ((t**2).sum(axis=1, keepdims=True) + 1e-8) ** 0.5 for t in (x, y))
        layers.append(((x - y) ** 2).sum(axis=1).mean())
    assert value.item() == pytest.approx(sum(layers) / 5, rel=1e-4)


def test_opposite_directions_are_a_distance_of_2_and_equal_ones_0(term):
    term.extractor = FakeExtractor()
    lab = torch.tensor([50.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    value = term({"ab": torch.zeros(1, 2, 1, 1), "rgb": torch.ones(1, 3, 1, 1)}, lab)
    assert value.item() == pytest.approx((2.0 + 0.0) / 2)


class FakeExtractor:
    """Two layers: one tells white from grey, one does not."""

    mean = torch.zeros(1)

    def __call__(self, rgb):
        white = (rgb.mean() > 0.9).float()
        same = torch.ones(1, 3, 1, 1)
        return [5.0 * torch.stack([white, 1 - white]).reshape(1, 2, 1, 1), same * (1 + white)]

    def to(self, device):
        return self


def test_it_is_zero_at_the_truth_and_grows_with_the_error(term):
    lab = photos(2, 40, 40)
    values = [term({"ab": lab[:, 1:] * share}, lab).item() for share in (1.0, 0.9, 0.5, 0.0)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] <= 2


def test_the_network_is_loaded_when_prepared_and_never_trained(alex):
    term = build(net="alex", weights=alex)
    assert term.extractor is None
    term.prepare(torch.device("cpu"))
    before = {name: value.clone() for name, value in term.extractor.state_dict().items()}
    ab = torch.zeros(1, 2, 33, 35, requires_grad=True)
    term({"ab": ab}, photos(1, 33, 35)).backward()
    assert ab.grad.abs().max() > 0
    assert all(value.grad is None for value in term.extractor.parameters())
    assert all(torch.equal(value, before[n]) for n, value in term.extractor.state_dict().items())


def test_vgg16_is_the_default(tmp_path):
    path = tmp_path / "vgg.pth"
    torch.save(made_up_weights("vgg16"), path)
    lab = photos(1, 20, 24)
    ab = torch.zeros(1, 2, 20, 24, requires_grad=True)
    value = build(weights=str(path))({"ab": ab}, lab)
    value.backward()
    assert 0 < value < 2
    assert ab.grad.isfinite().all()


def test_missing_weights_are_an_error_and_not_random_features(tmp_path):
    term = build(weights=str(tmp_path / "none.pth"))
    with pytest.raises(LossError, match=r"none\.pth, found no such file"):
        term.prepare(torch.device("cpu"))
    with pytest.raises(LossError, match=r"none\.pth, found no such file"):
        term({"ab": torch.zeros(1, 2, 8, 8)}, photos(1, 8, 8))
