"""Models on EfficientNet-Lite: what they answer, and what of the encoder stays as it was."""

from __future__ import annotations

import pytest
import skimage.data
import torch
from torch.nn import functional as F

from colorcore.blocks.mixup import blend_next
from colorcore.color.fit_palette import fit_palette
from colorcore.color.lab import lightness_to_grey
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


@pytest.mark.parametrize("channels", [1, 128])
def test_the_decoder_is_a_hidden_layer(channels: int) -> None:
    model = build_model("lite-unet", channels=channels)
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    # The network without its top, classifier and last stage (one block: 192 -> 1152 -> 320), and a
    # stem for one channel in place of three.
    last = 192 * 1152 + 9 * 1152 + 1152 * 320 + 2 * (1152 + 1152 + 320)
    assert encoder == 4_652_008 - 1280 * (320 + 2) - 1281 * 1000 - 2 * 9 * 32 - last
    total = sum(parameter.numel() for parameter in model.parameters())
    inputs = 16 + 24 + 40 + 112 + 192
    assert total - encoder == channels * (inputs + 5) + 2 * (channels + 1)


@pytest.mark.parametrize(
    ("encoder", "channels", "expected"),
    [("lite0", 64, 2_377_858), ("lite1", 128, 3_167_554), ("lite2", 128, 3_695_714)],
)
def test_the_parameters_are_those_of_the_docstring(encoder, channels: int, expected: int) -> None:
    with torch.device("meta"):
        model = build_model("lite-unet", channels=channels, encoder=encoder)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_pixel_is_read_from_the_hypercolumn() -> None:
    """By hand: maps standardized, enlarged to the finest one and joined; two layers; tanh."""
    torch.manual_seed(0)
    model = LiteUNet(channels=6)
    model.load_pretrained()
    torch.nn.init.normal_(model.head.weight)
    model.eval()
    photos = photo(64, 96)
    with torch.no_grad():
        found = model(photos)["ab"]
        maps = model.encoder(lightness_to_grey((photos + 1) * 50))
        column, weights = [], []
        for each, reading in zip(maps, model.readings, strict=True):
            x = (each - reading.mean) / reading.std
            while x.shape[-1] < 48:
                x = F.interpolate(x, scale_factor=2, mode="bilinear")
            column.append(x)
            weights.append(reading.linear.weight)
        bias = sum(reading.linear.bias for reading in model.readings)
        hidden = F.conv2d(torch.cat(column, 1), torch.cat(weights, 1), bias).relu()
        half = 128 * model.head(hidden).tanh()
        expected = F.interpolate(half, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    assert float(found.std()) > 1.0


def test_imagenet_weights_tell_how_maps_are_spread() -> None:
    """Standardized maps of a real photo have about mean 0 and standard deviation 1."""
    model = LiteUNet(channels=4)
    assert all(torch.equal(each.std, torch.ones_like(each.std)) for each in model.readings)
    model.load_pretrained()
    grey = torch.from_numpy(skimage.data.astronaut()).float().mean(-1)[None, None] / 255
    with torch.no_grad():
        maps = model.encoder(grey)
    for each, reading in zip(maps, model.readings, strict=True):
        x = (each - reading.mean) / reading.std
        assert abs(float(x.mean())) < 0.3
        assert 0.6 < float(x.std()) < 1.3


def test_mixup_blends_what_is_read_and_tells_the_shares() -> None:
    torch.manual_seed(0)
    model = LiteUNet(channels=6, dropout=0.0, mixup=0.5)
    model.load_pretrained()
    torch.nn.init.normal_(model.head.weight)
    photos = torch.cat([photo(32, 32, seed) for seed in (1, 2)])
    with torch.no_grad():
        answer = model.train()(photos)
        shares = answer["shares"]
        assert shares.shape == (4,)
        assert float(shares.min()) > 0.0
        assert float(shares.max()) <= 0.5
        x, _ = model.eval().hidden(photos)
        assert "shares" not in model(photos)
        # The layer before the ReLU is linear, so its blend is the layer of the blend.
        before = hidden_before_relu(model, photos)
        expected = blend_next(before, shares).relu()
        torch.testing.assert_close(x, before.relu())
        half = 128 * model.head(expected).tanh()
    torch.testing.assert_close(
        answer["ab"], F.interpolate(half, scale_factor=2, mode="bilinear"), atol=1e-2, rtol=0
    )


def hidden_before_relu(model: LiteUNet, photos: torch.Tensor) -> torch.Tensor:
    maps = model.encoder(lightness_to_grey((photos + 1) * 50))
    total = torch.zeros(())
    for each, reading in zip(maps, model.readings, strict=True):
        x = reading.linear((each - reading.mean) / reading.std)
        while x.shape[-1] < maps[0].shape[-1]:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        total = total + x
    return total


@pytest.mark.parametrize("size", [(1, 1), (32, 64), (33, 31), (50, 97)])
def test_any_size_gets_colours_of_its_own_size(size: tuple[int, int], answering: LiteBins) -> None:
    with torch.no_grad():
        answer = answering(photo(*size))
        ab = LiteUNet(channels=4).eval()(photo(*size))["ab"]
    quarter = tuple(-(-side // 4) for side in size)
    assert ab.shape == answer["ab"].shape == (2, 2, *size)
    assert answer["logits"].shape == (2, BINS, *quarter)
    assert answer["residual"].shape == (2, 2, *quarter)
    assert answer["confidence"].shape == (2, 1, *quarter)
    assert all(value.dtype == torch.float32 for value in answer.values())


def test_a_photo_in_a_batch_is_answered_as_alone(answering: LiteBins) -> None:
    photos = photo(64, 64)
    with torch.no_grad():
        together, alone = answering(photos)["ab"], answering(photos[1:])["ab"]
    torch.testing.assert_close(together[1:], alone, atol=1e-2, rtol=0)


def test_decoding_is_the_mean_at_four_times_the_size(answering: LiteBins) -> None:
    """By hand: softmax at T = 1 over centroids, plus confidence times residual, bilinear."""
    with torch.no_grad():
        answer = answering(photo(32, 48))
        expected = torch.einsum(
            "bqhw,qc->bchw", (answer["logits"] / 0.38).softmax(1), answering.centroids
        )
        expected = expected + answer["confidence"] * answer["residual"]
        expected = F.interpolate(expected, scale_factor=4, mode="bilinear").clamp(-128, 128)
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
    assert model.readings.training
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
        ({"mixup": 0.6}, r"mixup must be in 0..0.5, got 0.6"),
        ({"bins": 1}, "bins must be in 2..65536, got 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_model("lite-bins", **options)
