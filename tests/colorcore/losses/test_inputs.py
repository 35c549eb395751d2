import gc
import weakref

import pytest
import torch
from skimage.color import lab2rgb
from torch.nn import functional as F

from colorcore.losses import inputs
from colorcore.losses.inputs import area_mean, clipped_rgb, predicted_rgb, stored_ab, true_ab
from tests.colorcore.losses.conftest import photos


def test_area_means_by_hand():
    planes = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert area_mean(planes, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert area_mean(planes, (4, 4)) is planes


def test_areas_are_those_that_a_coarser_model_answers_for():
    """A photo of 5 rows, grown to 8 by repeating the last, is answered in 2 rows of 4."""
    rows = torch.tensor([1.0, 2.0, 3.0, 6.0, 10.0]).reshape(1, 1, 5, 1).expand(1, 1, 5, 4)
    assert area_mean(rows, (2, 1)).flatten().tolist() == [3.0, 10.0]


@pytest.mark.parametrize(("large", "small"), [(9, 3), (17, 5), (250, 63), (256, 64), (3, 1)])
def test_areas_fit_a_network_of_stride_4_at_any_size(large, small):
    column = torch.randn(1, 1, large, 1)
    grown = F.pad(column, (0, 0, 0, 4 * small - large), mode="replicate")
    torch.testing.assert_close(area_mean(column, (small, 1)), F.avg_pool2d(grown, (4, 1)))


@pytest.mark.parametrize("size", [(3, 5), (9, 2), (1, 1), (20, 20)])
def test_areas_of_any_size(size):
    planes = torch.full((2, 3, 7, 11), 4.0)
    assert torch.equal(area_mean(planes, size), torch.full((2, 3, *size), 4.0))


def test_stored_ab_rounds_to_the_nearest_cell():
    lab = torch.zeros(1, 3, 1, 4)
    lab[0, 1] = torch.tensor([-128.0, -0.6, 0.4, 200.0])
    ab_u8 = stored_ab(lab, (1, 4))
    assert ab_u8.dtype == torch.uint8
    assert ab_u8[0, :, 0].tolist() == [[0, 127, 128, 255], [128, 128, 128, 128]]


def test_what_terms_share_is_worked_out_once(monkeypatch):
    calls = []
    monkeypatch.setattr(inputs, "area_mean", lambda *a: calls.append(a) or area_mean(*a))
    lab = photos(2, 8, 8)
    first, second = true_ab(lab, (2, 2)), true_ab(lab, (2, 2))
    assert first is second
    assert stored_ab(lab, (2, 2)) is stored_ab(lab, (2, 2))
    assert len(calls) == 1
    true_ab(lab, (4, 4))
    assert len(calls) == 2
    assert true_ab(lab.clone(), (2, 2)) is not first


def test_a_batch_that_was_written_to_is_worked_out_again():
    lab = photos(1, 4, 4)
    before = true_ab(lab, (1, 1))
    lab += 1
    torch.testing.assert_close(true_ab(lab, (1, 1)), before + 1)


def test_nothing_is_kept_longer_than_the_batch():
    lab = photos(1, 4, 4)
    kept = [weakref.ref(t) for t in (lab, true_ab(lab, (1, 1)), inputs.true_rgb(lab))]
    stored_ab(lab, (4, 4))
    del lab
    gc.collect()
    assert [reference() for reference in kept] == [None] * 3


def test_inference_tensors_are_not_kept():
    with torch.inference_mode():
        lab = photos(1, 4, 4)
        assert torch.equal(true_ab(lab, (1, 1)), area_mean(lab[:, 1:], (1, 1)))


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_clipped_rgb_is_what_a_screen_shows():
    lab = photos(1, 8, 8, dtype=torch.float64)
    lab[:, 1:] *= 2
    ours = clipped_rgb(lab)[0].permute(1, 2, 0).numpy()
    assert abs(ours - lab2rgb(lab[0].permute(1, 2, 0).numpy())).max() < 1e-3


@pytest.mark.parametrize("ab", [(127.0, 0.0), (-127.0, 0.0), (0.0, 127.0), (0.0, -127.0)])
@pytest.mark.parametrize("L", [5.0, 50.0, 95.0])
def test_a_colour_beyond_the_gamut_finds_its_way_back_to_grey(L, ab):
    """Descent on the distance from grey: mere clipping stops three of these twelve."""
    start = torch.tensor(ab).reshape(1, 2, 1, 1)
    colour = start.clone().requires_grad_()
    target = clipped_rgb(torch.tensor([L, 0.0, 0.0]).reshape(1, 3, 1, 1))
    lightness = torch.full((1, 1, 1, 1), L)
    loss = (clipped_rgb(torch.cat([lightness, colour], dim=1)) - target).abs().sum()
    loss.backward()
    axis = 0 if ab[0] else 1
    assert loss > 0
    # Downhill is towards grey along the axis that is off.
    assert colour.grad[0, axis, 0, 0] * start[0, axis, 0, 0] > 0


def test_an_rgb_head_is_taken_as_it_is():
    rgb = torch.rand(1, 3, 2, 2)
    assert predicted_rgb({"ab": torch.zeros(1, 2, 2, 2), "rgb": rgb}, photos(1, 2, 2), "x") is rgb
