import numpy as np
import pytest
import torch
from skimage.color import lab2rgb
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from colorcore.color.fit_palette import fit_palette
from colorcore.color.lab import decode_lab, encode_lab
from colorcore.color.palette import Palette
from colorcore.inference.equal_colorfulness import EQUAL
from colorcore.inference.evaluate import BASELINES, evaluate, evaluation_for, score_with_baselines
from colorcore.inference.predict import predict_lab
from colorcore.models import build_model
from colorcore.scores import metrics

SIZE = 16
PHOTOS = 7
MEAN_AB = (4.0, 11.0)


def stored_photos(photos: int = PHOTOS) -> Tensor:
    """Smooth random photos (photos, 3, SIZE, SIZE) uint8 stored LAB."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(photos, 3, 4, 4, generator=generator)
    rgb = nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    rgb_u8 = (rgb * 255).byte().permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(np.stack([encode_lab(photo) for photo in rgb_u8]))


@pytest.fixture(scope="module")
def palette() -> Palette:
    ab = stored_photos()[:, 1:].transpose(0, 1).reshape(2, -1).long()
    histogram = torch.bincount(ab[0] * 256 + ab[1], minlength=65_536).reshape(256, 256).numpy()
    return fit_palette(histogram, bins=6)


class Answers(nn.Module):
    """Gives prepared ab, photo after photo, whatever it sees; and keeps what it saw."""

    def __init__(self, ab: Tensor) -> None:
        super().__init__()
        self.ab, self.seen = ab, []

    def forward(self, L_norm: Tensor) -> dict[str, Tensor]:
        start = sum(len(batch) for batch in self.seen)
        self.seen.append(L_norm)
        return {"ab": self.ab[start : start + len(L_norm)]}


def by_hand(lab_pred: Tensor, lab_true: Tensor, palette: Palette) -> dict[str, float]:
    """The scores photo by photo: scikit-image where it has them, the metrics module elsewhere."""
    rows = []
    for p, t in zip(lab_pred, lab_true, strict=True):
        rgb_p, rgb_t = (lab2rgb(x.permute(1, 2, 0).double().numpy()) for x in (p, t))
        cells = (t[1:].round().long() + 128).numpy()
        weights = torch.from_numpy(palette.balance()[cells[0], cells[1]])[None]
        rows.append(
            {
                "psnr": peak_signal_noise_ratio(rgb_t, rgb_p, data_range=1.0),
                "ssim": structural_similarity(
                    rgb_t,
                    rgb_p,
                    data_range=1.0,
                    channel_axis=2,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                ),
                "ab_l1": float(np.abs((p - t)[1:].numpy()).mean()),
                "delta_e2000": float(metrics.delta_e2000(p[None], t[None]).mean()),
                "auc": float(metrics.auc(p[None, 1:], t[None, 1:])),
                "auc_balanced": float(metrics.auc(p[None, 1:], t[None, 1:], weights)),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def agrees(scores: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-3), name


def test_a_model_sees_lightness_and_nothing_else():
    lab = decode_lab(stored_photos(2))
    model = Answers(torch.ones(2, 2, SIZE, SIZE))
    predicted = predict_lab(model, lab)
    assert torch.equal(predicted[:, :1], lab[:, :1])
    assert (predicted[:, 1:] == 1.0).all()
    torch.testing.assert_close(model.seen[0], lab[:, :1] / 50 - 1)
    assert model.seen[0].shape == (2, 1, SIZE, SIZE)


def test_scores_are_the_means_over_photos_of_the_metrics(palette: Palette):
    stored = stored_photos()
    lab = decode_lab(stored)
    other = lab[:, 1:].flip(0) * 0.5
    evaluation, _ = evaluate(Answers(other), stored.split(3), palette)
    scores = evaluation.compute()
    agrees(scores, by_hand(torch.cat([lab[:, :1], other], dim=1), lab, palette))
    assert scores["photos"] == PHOTOS


def test_a_model_that_answers_the_truth_is_perfect(palette: Palette):
    stored = stored_photos()
    scores = evaluate(Answers(decode_lab(stored)[:, 1:]), [stored], palette)[0].compute()
    assert scores["psnr"] == metrics.PSNR_MAX
    assert scores["ssim"] == pytest.approx(1.0)
    assert scores["auc"] == scores["auc_balanced"] == 1.0
    assert scores["ab_l1"] == scores["delta_e2000"] == scores["cf_gap"] == 0.0
    assert scores["bins_in_use"] == len(palette)


def test_baselines_are_those_of_the_metrics_and_beside_the_model(palette: Palette):
    stored = stored_photos()
    lab = decode_lab(stored)
    truth = Answers(lab[:, 1:])
    scores = score_with_baselines(truth, stored.split(2), palette, MEAN_AB)
    assert list(scores) == [*BASELINES, "model"]
    grey, constant = lab.clone(), lab.clone()
    grey[:, 1:] = 0.0
    constant[:, 1], constant[:, 2] = MEAN_AB
    agrees(scores["grey"], by_hand(grey, lab, palette))
    agrees(scores["constant"], by_hand(constant, lab, palette))
    assert scores["grey"]["bins_in_use"] == scores["constant"]["bins_in_use"] == 1
    assert scores["grey"]["cf"] == pytest.approx(0.0, abs=0.1)
    validated = evaluate(Answers(lab[:, 1:]), [stored], palette)[0].compute()
    assert 0.9 < validated.pop(EQUAL) < 1.0  # paler than the truth
    assert scores["model"] == validated
    assert len(truth.seen) == 4  # one pass


def test_how_photos_are_batched_does_not_matter(palette: Palette):
    stored = stored_photos()
    answer = decode_lab(stored)[:, 1:].flip(0)
    whole = evaluate(Answers(answer), [stored], palette)[0].compute()
    for size in (1, 2, 3, PHOTOS - 1):
        parts = evaluate(Answers(answer), stored.split(size), palette)[0].compute()
        assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5, PHOTOS])
def test_pictures_are_the_first_photos_in_order(palette: Palette, size: int):
    stored = stored_photos()
    lab = decode_lab(stored)
    answer = -lab[:, 1:]
    _, pairs = evaluate(Answers(answer), stored.split(size), palette, pictures=4)
    assert pairs.shape == (4, 2, 3, SIZE, SIZE)
    assert torch.equal(pairs[:, 1], lab[:4])
    assert torch.equal(pairs[:, 0], torch.cat([lab[:, :1], answer], dim=1)[:4])


def test_there_are_no_more_pictures_than_photos(palette: Palette):
    stored = stored_photos(3)
    answer = decode_lab(stored)[:, 1:]
    assert len(evaluate(Answers(answer), [stored], palette, pictures=8)[1]) == 3
    assert len(evaluate(Answers(answer), [stored], palette)[1]) == 0


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_scored_in_evaluation_mode_and_left_as_it_was(palette: Palette, training: bool):
    torch.manual_seed(0)
    model = build_model("unet", channels=4, depth=2, dropout=0.5).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stored = stored_photos()
    first = evaluate(model, [stored], palette)[0].compute()
    assert first == evaluate(model, [stored], palette)[0].compute()  # dropout would show
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(part.training is training for part in model.modules())


def test_an_evaluation_has_the_bins_and_the_balance_of_its_palette(palette: Palette):
    """One photo of each bin's own colour puts every bin to use."""
    evaluation = evaluation_for(palette)
    ab = torch.from_numpy(palette.centroids).round()
    lab = torch.cat([torch.full((len(ab), 1), 50.0), ab], dim=1)[..., None, None]
    lab = lab.expand(-1, -1, SIZE, SIZE)
    evaluation.update(lab, lab)
    assert evaluation.compute()["bins_in_use"] == len(palette)
