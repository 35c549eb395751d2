import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from colorcore.color.lab import lab_to_rgb, rgb_to_lab
from colorcore.inference.equal_colorfulness import EQUAL
from colorcore.scores import metrics
from colorcore.scores.metrics import HIGHER_IS_BETTER, Evaluation

# Sharma, Wu and Dalal 2005, table 1: L1 a1 b1 L2 a2 b2 ΔE00.
SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""

SIZE = 16
PHOTOS = 6


def random_rgb(seed: int, photos: int = PHOTOS, size: int = SIZE) -> Tensor:
    """Smooth random photos (B, 3, size, size) in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(photos, 3, size // 4, size // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def random_lab(seed: int, photos: int = PHOTOS, size: int = SIZE) -> Tensor:
    return rgb_to_lab(random_rgb(seed, photos, size))


def recoloured(lab: Tensor, seed: int) -> Tensor:
    """The same lightness with other colours."""
    return torch.cat([lab[:, :1], random_lab(seed, len(lab), lab.shape[-1])[:, 1:]], dim=1)


def filled(ab: tuple[float, float], photos: int = 1, size: int = 11, L: float = 50.0) -> Tensor:
    """Photos of one colour."""
    return torch.tensor([L, *ab]).reshape(1, 3, 1, 1).repeat(photos, 1, size, size)


def empty() -> Evaluation:
    """Eight bins: the stored (a, b) plane cut along a, rarer the farther from neutral."""
    bins = (torch.arange(256) // 32)[:, None].expand(256, 256)
    return Evaluation(1.0 + (bins - 3.5).abs(), bins, 8)


def evaluated(*batches: tuple[Tensor, Tensor]) -> Evaluation:
    evaluation = empty()
    for predicted, true in batches:
        evaluation.update(predicted, true)
    return evaluation


# PSNR and SSIM


def test_psnr_by_hand():
    true = torch.full((2, 3, 4, 4), 0.5)
    predicted = true + torch.tensor([0.1, 0.01]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(metrics.psnr(predicted, true), torch.tensor([20.0, 40.0]))


def test_psnr_of_identical_photos_is_the_cap():
    rgb = random_rgb(0)
    assert (metrics.psnr(rgb, rgb) == metrics.PSNR_MAX).all()


def test_psnr_clips_to_what_a_screen_shows():
    true = torch.ones(1, 3, 4, 4)
    assert metrics.psnr(true + 3.0, true) == metrics.PSNR_MAX


def test_psnr_agrees_with_scikit_image():
    true, predicted = random_rgb(0), random_rgb(1)
    expected = [
        peak_signal_noise_ratio(t.numpy(), p.numpy(), data_range=1.0)
        for t, p in zip(true, predicted, strict=True)
    ]
    np.testing.assert_allclose(metrics.psnr(predicted, true), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [12, 64])
def test_ssim_agrees_with_scikit_image(size: int):
    true = random_rgb(0, 3, size)
    predicted = (true + 0.2 * (random_rgb(1, 3, size) - 0.5)).clamp(0, 1)
    expected = [
        structural_similarity(
            t.numpy(),
            p.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=0,
        )
        for t, p in zip(true, predicted, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(predicted, true), expected, atol=1e-4)


def test_ssim_of_identical_photos_is_one():
    rgb = random_rgb(0)
    torch.testing.assert_close(metrics.ssim(rgb, rgb), torch.ones(PHOTOS))


def test_ssim_says_when_photos_are_too_small():
    with pytest.raises(ValueError, match=r"at least 11x11 pixels, got \(10, 16\)"):
        metrics.ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))


# ab L1 and CIEDE2000


def test_ab_l1_by_hand():
    true = torch.zeros(2, 2, 1, 2)
    predicted = torch.tensor([[[[1.0, -3.0]], [[0.0, 8.0]]], [[[2.0, 2.0]], [[2.0, 2.0]]]])
    assert metrics.ab_l1(predicted, true).tolist() == [3.0, 2.0]


def sharma(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The published pairs as photos of 1x34 pixels, and their differences (1, 1, 34)."""
    table = torch.from_numpy(np.array(SHARMA.split(), dtype=np.float64).reshape(34, 7)).to(dtype)
    return table[:, :3].T[None, :, None], table[:, 3:6].T[None, :, None], table[None, None, :, 6]


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 5e-5), (torch.float32, 1e-3)])
def test_delta_e2000_gives_the_papers_34_values(dtype: torch.dtype, digits: float):
    first, second, expected = sharma(dtype)
    for pair in ((first, second), (second, first)):
        torch.testing.assert_close(metrics.delta_e2000(*pair), expected, atol=digits, rtol=0.0)


def test_delta_e2000_agrees_with_scikit_image():
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([100.0, 220.0, 220.0]), torch.tensor([0.0, -110.0, -110.0])
    first, second = (
        (torch.rand(2, 40, 50, 3, generator=generator, dtype=torch.float64) * scale + shift)
        for _ in range(2)
    )
    expected = torch.from_numpy(deltaE_ciede2000(first.numpy(), second.numpy()))
    values = metrics.delta_e2000(first.movedim(-1, 1), second.movedim(-1, 1))
    torch.testing.assert_close(values, expected, atol=1e-9, rtol=0.0)


def test_delta_e2000_of_equal_colours_is_zero():
    lab = torch.cat([random_lab(0), filled((0, 0), size=SIZE), filled((-0.0, -0.0), size=SIZE)])
    assert metrics.delta_e2000(lab, lab).max() == 0


# Colourfulness and AuC


def test_auc_counts_the_thresholds_that_an_error_meets():
    """Errors 0, 5 (3-4-5), 0.5 and 500 meet 151, 146, 150 and none of 151 thresholds."""
    predicted = torch.tensor([[0.0, 3.0, 0.5, 300.0], [0.0, -4.0, 0.0, 400.0]])[None, :, None]
    true = torch.zeros_like(predicted)
    assert metrics.auc(predicted, true).item() == pytest.approx((151 + 146 + 150 + 0) / 4 / 151)
    weights = torch.tensor([[[1.0, 2.0, 0.5, 0.5]]])
    expected = (151 + 2 * 146 + 0.5 * 150) / 4 / 151
    assert metrics.auc(predicted, true, weights).item() == pytest.approx(expected)
    assert metrics.auc(predicted, true, 7 * weights).item() == pytest.approx(expected)


def test_auc_is_the_area_under_the_curve():
    predicted, true = random_lab(0)[:, 1:], random_lab(1)[:, 1:]
    error = np.linalg.norm((predicted - true).numpy(), axis=1)
    curve = np.array([(error <= t).mean((1, 2)) for t in range(151)])
    np.testing.assert_allclose(metrics.auc(predicted, true), curve.mean(0), rtol=1e-5)


def test_weights_count_within_a_photo_only():
    predicted, true = random_lab(0)[:, 1:], random_lab(1)[:, 1:]
    weights = torch.arange(1.0, PHOTOS + 1).reshape(-1, 1, 1).expand(-1, SIZE, SIZE)
    torch.testing.assert_close(metrics.auc(predicted, true, weights), metrics.auc(predicted, true))


def test_the_colourfulness_gap_is_no_gap_of_means():
    """Two photos that swap colours: the same mean colourfulness, and a gap all the same."""
    vivid, dull = filled((60, 40)), filled((6, 4))
    both, swapped = torch.cat([vivid, dull]), torch.cat([dull, vivid])
    scores = evaluated((both, swapped)).compute()
    assert scores["cf"] == pytest.approx(scores["cf_true"])
    alone = evaluated((vivid, dull)).compute()
    assert scores["cf_gap"] == pytest.approx(alone["cf"] - alone["cf_true"])
    assert scores["cf_gap"] > 20


# Baselines


def test_baselines_keep_lightness():
    lab = random_lab(0)
    grey = metrics.grey_baseline(lab)
    constant = metrics.constant_baseline(lab, torch.tensor([3.0, -7.0], dtype=torch.float64))
    for answer in (grey, constant):
        assert answer.shape == lab.shape
        assert answer.dtype == lab.dtype
        assert torch.equal(answer[:, 0], lab[:, 0])
    assert (grey[:, 1:] == 0).all()
    assert (constant[:, 1] == 3).all()
    assert (constant[:, 2] == -7).all()


# Evaluation


def test_the_truth_scores_perfectly():
    lab = random_lab(0)
    scores = evaluated((lab, lab)).compute()
    assert list(scores) == [
        *("psnr", "ssim", "ab_l1", "delta_e2000", "cf", "cf_true", "cf_gap"),
        *("auc", "auc_balanced", "bins_in_use", "photos"),
    ]
    assert scores["psnr"] == metrics.PSNR_MAX
    assert scores["ssim"] == pytest.approx(1.0)
    assert scores["ab_l1"] == scores["delta_e2000"] == scores["cf_gap"] == 0.0
    assert scores["auc"] == scores["auc_balanced"] == 1.0
    assert scores["cf"] == scores["cf_true"] > 0
    assert scores["photos"] == PHOTOS
    assert set(HIGHER_IS_BETTER) - {EQUAL} < set(scores)


def test_it_reports_the_means_of_the_functions():
    true = random_lab(0)
    predicted = recoloured(true, 1)
    rgb, rgb_true = lab_to_rgb(predicted), lab_to_rgb(true)
    expected = {
        "psnr": metrics.psnr(rgb, rgb_true),
        "ssim": metrics.ssim(rgb, rgb_true),
        "ab_l1": metrics.ab_l1(predicted[:, 1:], true[:, 1:]),
        "delta_e2000": metrics.delta_e2000(predicted, true),
        "auc": metrics.auc(predicted[:, 1:], true[:, 1:]),
    }
    scores = evaluated((predicted, true)).compute()
    for name, values in expected.items():
        assert scores[name] == pytest.approx(values.mean().item(), rel=1e-5), name


@pytest.mark.parametrize("name", [name for name in HIGHER_IS_BETTER if name != EQUAL])
def test_the_right_colours_beat_grey(name: str):
    true = random_lab(0)
    good = evaluated((true * torch.tensor([1.0, 0.9, 0.9]).reshape(3, 1, 1), true)).compute()
    grey = evaluated((metrics.grey_baseline(true), true)).compute()
    assert (good[name] > grey[name]) is HIGHER_IS_BETTER[name]


def test_balance_weighs_by_the_true_colour():
    """Left half neutral and right, right half vivid (a = -100, weight 4.5) and off by 100."""
    true = filled((0, 0), size=12)
    true[..., 6:] = filled((-100, 0), size=12)[..., 6:]
    scores = evaluated((metrics.grey_baseline(true), true)).compute()
    near, far = 1.0 + 0.5, 1.0 + 3.5  # bins 4 and 0
    assert scores["auc"] == pytest.approx((151 + 51) / 2 / 151)
    assert scores["auc_balanced"] == pytest.approx((near * 151 + far * 51) / (near + far) / 151)


def test_a_bin_is_in_use_from_one_pixel_in_ten_thousand_on():
    def bins_in_use(pixels: int) -> float:
        predicted = filled((0, 0), size=200)  # 40,000 pixels in bin 4
        predicted[0, 1].view(-1)[:pixels] = -100.0  # bin 0
        return evaluated((predicted, filled((0, 0), size=200))).compute()["bins_in_use"]

    assert [bins_in_use(pixels) for pixels in (0, 3, 4)] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("a", "used"),
    [(-0.5, 4), (-0.51, 3), (-500.0, 0), (500.0, 7), (31.4, 4), (31.6, 5), (float("nan"), 4)],
)
def test_cells_are_rounded_and_clamped(a: float, used: int):
    histogram = evaluated((filled((a, 0)), filled((0, 0)))).state()[-8:]
    assert histogram.argmax() == used
    assert histogram.sum() == 11 * 11


def test_a_prediction_that_is_not_finite_shows():
    scores = evaluated((filled((float("nan"), 0)), filled((0, 0)))).compute()
    assert np.isnan(scores["ab_l1"])
    assert np.isnan(scores["auc_balanced"])


def test_it_leaves_no_graph_and_minds_no_autocast():
    true = random_lab(0)
    predicted = recoloured(true, 1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = evaluated((predicted, true)).state()
    assert not state.requires_grad
    assert torch.equal(state, evaluated((predicted, true)).state())


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(PHOTOS)), cuts=st.sets(st.integers(1, PHOTOS - 1)))
def test_neither_order_nor_batches_matter(order: list[int], cuts: set[int]):
    true = random_lab(0)
    predicted = recoloured(true, 1)
    whole = evaluated((predicted, true)).state()
    batches = torch.tensor(order).tensor_split(sorted(cuts))
    parts = evaluated(*((predicted[batch], true[batch]) for batch in batches)).state()
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(owner=st.lists(st.integers(0, 2), min_size=PHOTOS, max_size=PHOTOS))
def test_states_of_ranks_add_up_to_one_pass(owner: list[int]):
    """Ranks without a photo included."""
    true = random_lab(0)
    predicted = recoloured(true, 1)
    total = empty()
    for rank in range(3):
        share = torch.tensor(owner) == rank
        own = evaluated((predicted[share], true[share])) if share.any() else empty()
        assert own.state().dtype == torch.float64
        total.add_state(own.state())
    expected = evaluated((predicted, true)).compute()
    assert total.compute() == pytest.approx(expected, rel=1e-6)


def test_the_state_is_a_copy():
    evaluation = evaluated((filled((0, 0)), filled((0, 0))))
    evaluation.state().zero_()
    assert evaluation.compute()["photos"] == 1


def test_wrong_calls_say_what_came():
    cells = torch.zeros(256, 256, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \(256, 256\), got \(313,\)"):
        Evaluation(torch.ones(313), cells, 313)
    with pytest.raises(ValueError, match=r"balance must be above 0, its smallest is 0\.0"):
        Evaluation(torch.zeros(256, 256), cells, 313)
    with pytest.raises(ValueError, match=r"must be in 0\.\.9, got 0\.\.10"):
        Evaluation(torch.ones(256, 256), torch.arange(65536).reshape(256, 256) % 11, 10)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 2, 11, 11\)"):
        empty().update(torch.zeros(1, 2, 11, 11), torch.zeros(1, 3, 11, 11))
    with pytest.raises(ValueError, match=r"18 numbers \(8 bins\), got shape \(20,\)"):
        empty().add_state(torch.zeros(20, dtype=torch.float64))
    with pytest.raises(ValueError, match="no photo was added"):
        empty().compute()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_scores_as_a_cpu_does():
    true = random_lab(0)
    predicted = recoloured(true, 1)
    on_gpu = evaluated((predicted.cuda(), true.cuda()))
    assert on_gpu.state().device.type == "cpu"
    expected = evaluated((predicted, true)).compute()
    assert on_gpu.compute() == pytest.approx(expected, rel=1e-3)
