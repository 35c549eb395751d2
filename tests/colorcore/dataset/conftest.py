"""What the tests of samples and of batches share."""

import pytest

from colorcore.dataset.samples import Samples


@pytest.fixture
def samples(dataset) -> Samples:
    return Samples(dataset, "train")
