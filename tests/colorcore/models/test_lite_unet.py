"""UNets on EfficientNet-Lite: what they answer, and what of the encoder stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from colorcore.color.fit_palette import fit_palette
from colorcore.models import AnswersInBins, StartsPretrained, build_model
from colorcore.models.lite_unet import LiteBins, LiteUNet

BINS = 8


def palette_of_eight():
    histogram = torch.zeros(256, 256, dtype=torch.long)
    for index in range(BINS):
        histogram[100 + 7 * index, 160 - 5 * index] = 1 + index
    return fit_palette(histogram.numpy(), bins=BINS)


@pytest.fixture(scope="module")
def answering() -> LiteBins:
    """A model whose heads say something, with ImageNet's encoder."""
    torch.manual_seed(0)
    model = LiteBins(channels=8, bins=BINS)
    model.load_pretrained()
    model.use_palette(palette_of_eight())
    for head in (model.bins, model.residual, model.confidence):
        torch.nn.init.normal_(head.weight, std=1.0)
    return model.eval()


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 2 * F.interpolate(coarse, (height, width), mode="bilinear") - 1


@pytest.mark.parametrize(("channels", "parameters"), [(24, 337_502), (32, 525_394)])
def test_the_decoder_is_small(channels: int, parameters: int) -> None:
    model = build_model("lite-unet", channels=channels)
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    # The network without its top and classifier, and a stem for one channel in place of three.
    assert encoder == 4_652_008 - 1280 * (320 + 2) - 1281 * 1000 - 2 * 9 * 32
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total - encoder == parameters


@pytest.mark.parametrize(
    ("encoder", "channels", "expected"),
    [("lite0", 16, 3_145_578), ("lite1", 32, 4_248_338), ("lite2", 64, 6_051_746)],
)
def test_the_parameters_are_those_of_the_docstring(encoder, channels: int, expected: int) -> None:
    with torch.device("meta"):
        model = build_model("lite-unet", channels=channels, encoder=encoder)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("size", [(1, 1), (32, 64), (33, 31), (50, 97)])
def test_any_size_gets_colours_of_its_own_size(size: tuple[int, int], answering: LiteBins) -> None:
    with torch.no_grad():
        answer = answering(photo(*size))
        ab = LiteUNet(channels=4).eval()(photo(*size))["ab"]
    half = tuple(-(-side // 2) for side in size)
    assert ab.shape == answer["ab"].shape == (2, 2, *size)
    assert answer["logits"].shape == (2, BINS, *half)
    assert answer["residual"].shape == (2, 2, *half)
    assert answer["confidence"].shape == (2, 1, *half)
    assert all(value.dtype == torch.float32 for value in answer.values())


def test_a_photo_in_a_batch_is_answered_as_alone(answering: LiteBins) -> None:
    photos = photo(64, 64)
    with torch.no_grad():
        together, alone = answering(photos)["ab"], answering(photos[1:])["ab"]
    torch.testing.assert_close(together[1:], alone, atol=1e-2, rtol=0)


def test_decoding_is_the_mean_at_twice_the_size(answering: LiteBins) -> None:
    """By hand: softmax at T = 1 over centroids, plus confidence times residual, bilinear."""
    with torch.no_grad():
        answer = answering(photo(32, 48))
        expected = torch.einsum(
            "bqhw,qc->bchw", (answer["logits"] / 0.38).softmax(1), answering.centroids
        )
        expected = expected + answer["confidence"] * answer["residual"]
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear").clamp(-128, 128)
        found = answering.decode(
            answer["logits"], answer["residual"], answer["confidence"], temperature=0.38
        )
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["lite-unet", "lite-bins"])
def test_training_changes_nothing_of_a_frozen_encoder(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, channels=4, **({"bins": BINS} if name == "lite-bins" else {}))
    assert isinstance(model, StartsPretrained)
    assert isinstance(model, AnswersInBins) == (name == "lite-bins")
    model.load_pretrained()
    if isinstance(model, AnswersInBins):
        model.use_palette(palette_of_eight())
    model.encoder.requires_grad_(False)
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        if step == 1:  # a new model is in training mode, too
            model.eval().train()
        model(photo(32, 32))["ab"].square().mean().backward()
        optimizer.step()
    assert not model.encoder.training
    assert model.decoder.training
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_an_encoder_without_weights_learns_its_statistics() -> None:
    model = build_model("lite-unet", channels=4, encoder_weights="none")
    assert isinstance(model, StartsPretrained)
    assert model.encoder_lr == 1.0
    before = model.encoder.stem.weight.clone()
    model.load_pretrained()
    assert torch.equal(model.encoder.stem.weight, before)
    model.train()
    model(photo(32, 32))
    assert float(model.encoder.stem_norm.running_mean.abs().sum()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be in 1..1024, got 0"),
        ({"encoder": "lite9"}, "encoder must be one of lite0, lite1, lite2, got 'lite9'"),
        ({"encoder_weights": "coco"}, "encoder_weights must be one of imagenet, none, got 'coco'"),
        ({"dropout": 1.0}, r"dropout must be in 0..1 \(1 excluded\), got 1.0"),
        ({"bins": 1}, "bins must be in 2..65536, got 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_model("lite-bins", **options)
