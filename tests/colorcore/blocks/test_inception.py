"""FID's Inception-v3, against torch-fidelity's with pytorch-fid's resizing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from colorcore.blocks.inception import FidInception, load_fid_inception
from colorcore.blocks.weight_files import WeightsError
from tests.colorcore.comparison.made_up import pictures, weights

TORCH_FIDELITY = [8.13546, 0.24524, 0.03437, 0.0, 7.8161, 6.31556, 0.0, 1.12561]
"""Every 256th feature of the first picture, and the means of both pictures', with weights that are
made up: printed by ``python -m tests.experiments.published``."""
MEANS = [3.91958, 3.8474]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    shapes = {name: tuple(x.shape) for name, x in FidInception().state_dict().items()}
    return weights(shapes) | weights({"fc.weight": (1008, 2048), "fc.bias": (1008,)})


@pytest.fixture(scope="module")
def file(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fid") / "inception.pth"
    torch.save(state, path)
    return path


def test_features_are_those_of_torch_fidelity(file: Path):
    network = load_fid_inception(file)
    found = network(pictures(2, 256, 0))
    assert found.shape == (2, 2048)
    assert found[0, ::256].tolist() == pytest.approx(TORCH_FIDELITY, abs=1e-4)
    assert found.mean(1).tolist() == pytest.approx(MEANS, abs=1e-4)


def test_it_never_learns(file: Path):
    network = load_fid_inception(file)
    assert not network.training
    assert not any(x.requires_grad for x in network.parameters())


def test_counts_of_batches_may_be_missing(state: dict[str, torch.Tensor], tmp_path: Path):
    path = tmp_path / "without.pth"
    torch.save({k: x for k, x in state.items() if not k.endswith("num_batches_tracked")}, path)
    load_fid_inception(path)


def test_another_network_is_refused_in_a_line(state: dict[str, torch.Tensor], tmp_path: Path):
    path = tmp_path / "other.pth"
    with pytest.raises(WeightsError, match=r"expected FID's weights .* found no such file"):
        load_fid_inception(path)
    name = "Mixed_7c.branch3x3_2b.conv.weight"
    for broken, found in ((state[name][:1], r"\(1, 384, 3, 1\)"), (None, "none")):
        torch.save(state | {name: broken}, path)
        message = rf"is not FID's Inception-v3 .*: expected {name} of shape .*, found {found}"
        with pytest.raises(WeightsError, match=message) as caught:
            load_fid_inception(path)
        assert "\n" not in str(caught.value)
