import pytest

from colorcore.models import MODELS
from colorcore.names import nearest, options_of, require_known


def test_the_nearest_name_or_all_of_them():
    assert nearest("simpel", ["simple", "unet-l1"]) == "; did you mean simple?"
    assert nearest("xyzzy", ["b", "a"]) == "; known: a, b"


def test_require_known_says_so_when_there_is_nothing_to_choose():
    require_known("option", [], [])
    with pytest.raises(ValueError, match="known: none"):
        require_known("option", ["a"], [])


def test_options_are_read_off_the_constructor():
    assert options_of(MODELS["unet"]) == ["channels", "depth", "norm", "dropout"]
