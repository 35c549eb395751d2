"""LPIPS and FID of several sides; LPIPS against the package lpips."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from colorcore.blocks.inception import load_fid_inception
from colorcore.blocks.weight_files import WeightsError
from colorcore.color.lab import rgb_to_lab
from colorcore.comparison.lpips import open_lpips
from colorcore.comparison.published import PublishedScores
from colorcore.scores.frechet import FeatureSums, frechet_distance
from tests.colorcore.comparison.made_up import CHANNELS, pictures, weight_files

LPIPS = {"alex": [1.511085, 1.284945], "vgg16": [0.866789, 0.742649]}
"""Of two pairs of pictures, by lpips 0.1.4 with weights that are made up: printed by
``python -m tests.experiments.published``."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return weight_files(tmp_path_factory.mktemp("weights"))


@pytest.mark.slow
@pytest.mark.parametrize("net", CHANNELS)
def test_lpips_is_that_of_its_package(files: dict[str, Path], net: str):
    lpips = open_lpips([files[f"{net} linear"], files[net]])[net]
    one, other = (lpips.features(pictures(2, 256, seed)) for seed in (0, 1))
    assert lpips.distance(one, other).tolist() == pytest.approx(LPIPS[net], abs=1e-4)
    assert lpips.distance(other, one).tolist() == lpips.distance(one, other).tolist()
    assert lpips.distance(one, one).tolist() == [0, 0]


def test_both_networks_of_lpips_in_any_order(files: dict[str, Path]):
    given = [files["vgg16"], files["alex linear"], files["alex"], files["vgg16 linear"]]
    assert list(open_lpips(given)) == ["alex", "vgg16"]
    assert open_lpips([]) == {}


def test_files_that_will_not_do_are_refused_in_a_line(files: dict[str, Path], tmp_path: Path):
    alex, linear = files["alex"], files["alex linear"]
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 5, 5)}, other)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(alex.read_bytes())
    broken = tmp_path / "broken.pth"
    torch.save(torch.load(alex, weights_only=True) | {"features.10.bias": torch.zeros(1)}, broken)
    for given, message in (
        ([alex], r"LPIPS of alex needs two files: next to .*alex.pth, name alex.pth from the "),
        ([linear], r"LPIPS of alex needs two files: .* name torchvision's alexnet-owt-7be5be79"),
        ([linear, files["vgg16"]], "LPIPS of alex needs two files"),
        ([alex, linear, copy], "expected one file of alex's weights, got .* and "),
        ([other], "found other tensors in .*other.pth"),
        ([tmp_path / "none.pth"], "expected weights for LPIPS in .*, found no such file"),
        ([broken, linear], r"not torchvision's alex: expected features.10.bias of shape \(256,\)"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            open_lpips(given)
        assert "\n" not in str(caught.value)


@pytest.mark.slow  # three roots of 2048 x 2048
def test_scores_of_sides_are_those_of_their_pictures(files: dict[str, Path]):
    truth, far = pictures(6, 64, 0), pictures(6, 64, 1)
    lab = {"same": rgb_to_lab(truth), "other": rgb_to_lab(far)}
    scores = PublishedScores(
        ("same", "other"), fid=files["fid"], lpips=[files["alex"], files["alex linear"]]
    )
    for part in (slice(0, 1), slice(1, 6)):
        scores.add({name: x[part] for name, x in lab.items()}, lab["same"][part])
    found = scores.compute()
    assert found["same"] == {"fid": pytest.approx(0, abs=1e-3), "lpips_alex": 0}
    lpips = open_lpips([files["alex"], files["alex linear"]])["alex"]
    distances = lpips.distance(lpips.features(far), lpips.features(truth))
    assert found["other"]["lpips_alex"] == pytest.approx(float(distances.mean()), rel=1e-4)
    inception = load_fid_inception(files["fid"])
    sums = [FeatureSums(2048), FeatureSums(2048)]
    for each, rgb in zip(sums, (truth, far), strict=True):
        each.add(inception(rgb).numpy())
    expected = frechet_distance(*(each.gaussian() for each in sums))
    assert found["other"]["fid"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("photos", "caution"),
    [
        (1, "FID needs two photos, and 10,000"),
        (2, r"FID of 2 photos is biased \(with 2,048 or fewer, its covariances are singular\)"),
        (2_048, "2,048 or fewer"),
        (2_049, "FID of 2,049 photos is biased: compare it only"),
        (10_000, ""),
    ],
)
def test_fid_of_few_photos_comes_with_a_caution(files: dict[str, Path], photos: int, caution: str):
    scores = PublishedScores(("a",), fid=files["fid"])
    lab = rgb_to_lab(pictures(1, 16, 0))
    scores.add({"a": lab}, lab)
    assert "fid" not in scores.compute()["a"]
    scores._photos = photos  # those of as many batches
    if caution:
        assert re.search(caution, scores.caution)
    else:
        assert scores.caution == ""
    assert PublishedScores(("a",)).caution == ""


def test_without_photos_there_are_no_scores(files: dict[str, Path]):
    scores = PublishedScores(("a",), lpips=[files["alex"], files["alex linear"]])
    with pytest.raises(ValueError, match="no photo was added"):
        scores.compute()
