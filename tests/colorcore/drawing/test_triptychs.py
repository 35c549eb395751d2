"""Triptychs: their shape, and their colours against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from colorcore.drawing.triptychs import GAP, triptychs


def photos(count=2, height=24, width=32, seed=0):
    """Lab (B, 3, H, W) of synthetic photos: smooth gradients of colour."""
    rng = np.random.default_rng(seed)
    corners = torch.from_numpy(rng.random((count, 3, 2, 2), dtype=np.float32))
    rgb = torch.nn.functional.interpolate(corners, (height, width), mode="bilinear")
    lab = rgb2lab(rgb.permute(0, 2, 3, 1).numpy())
    return torch.from_numpy(lab).permute(0, 3, 1, 2).float()


def test_columns_are_grey_predicted_and_truth():
    true, predicted = photos(seed=0), photos(seed=1)
    picture = triptychs(predicted, true)
    assert picture.shape == (2 * 24 + GAP, 3 * 32 + 2 * GAP, 3)
    assert picture.dtype == np.uint8
    for n in range(2):
        row = picture[n * (24 + GAP) :][:24].astype(int)
        grey, middle, right = (row[:, k * (32 + GAP) :][:, :32] for k in range(3))
        assert np.ptp(grey, axis=-1).max() <= 1
        for column, lab in ((middle, predicted[n]), (right, true[n])):
            expected = lab2rgb(lab.permute(1, 2, 0).double().numpy())
            assert np.abs(column / 255 - expected).max() <= 1 / 255
        neutral = true[n].double().clone()
        neutral[1:] = 0
        expected = lab2rgb(neutral.permute(1, 2, 0).numpy())
        assert np.abs(grey / 255 - expected).max() <= 1.01 / 255
    assert (picture[24 : 24 + GAP] == 255).all()
    assert (picture[:, 32 : 32 + GAP] == 255).all()


def test_triptychs_leave_their_input_alone_and_repeat_themselves():
    true, predicted = photos(seed=0), photos(seed=1).requires_grad_()
    before = true.clone()
    first = triptychs(predicted, true)
    assert torch.equal(true, before)
    np.testing.assert_array_equal(first, triptychs(predicted, true))


def test_colours_outside_srgb_are_clipped():
    lab = torch.tensor([60.0, 127.0, -127.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert triptychs(lab, lab).shape == (4, 12 + 2 * GAP, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_will_do(dtype):
    true = photos()
    picture = triptychs(true.to(dtype), true)
    assert np.abs(picture.astype(int) - triptychs(true, true)).max() <= 12


@pytest.mark.parametrize(
    ("pred", "true", "message"),
    [
        ((1, 3, 4, 4), (2, 3, 4, 4), r"got \(1, 3, 4, 4\) and \(2, 3, 4, 4\)"),
        ((1, 2, 4, 4), (1, 2, 4, 4), "of one shape"),
        ((3, 4, 4), (3, 4, 4), "of one shape"),
        ((0, 3, 4, 4), (0, 3, 4, 4), "one or more photos"),
    ],
)
def test_wrong_calls(pred, true, message):
    with pytest.raises(ValueError, match=message):
        triptychs(torch.zeros(pred), torch.zeros(true))
