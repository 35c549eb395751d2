"""Fixtures for tests of samples and batches."""

import pytest

from colorcore.dataset.samples import Samples


@pytest.fixture
def samples(dataset) -> Samples:
    return Samples(dataset, "train")
