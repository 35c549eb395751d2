"""The data that the tests of this folder train on."""

import pytest

from colorcore.training.state import FitData
from tests.colorcore.training.made_up import small_data


@pytest.fixture(scope="module")
def data() -> FitData:
    return small_data()
