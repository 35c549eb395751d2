import pytest

from colorcore.models import MODELS
from colorcore.options import nearest, options_of, require_kinds, require_known, takes


def test_the_nearest_name_or_all_of_them():
    assert nearest("simpel", ["simple", "unet-l1"]) == "; did you mean simple?"
    assert nearest("xyzzy", ["b", "a"]) == "; known: a, b"


def test_require_known_says_so_when_there_is_nothing_to_choose():
    require_known("option", [], [])
    with pytest.raises(ValueError, match="known: none"):
        require_known("option", ["a"], [])


def test_options_are_read_off_the_constructor():
    expected = ["channels", "depth", "norm", "dropout", "attention", "head", "lightness"]
    assert options_of(MODELS["unet"]) == expected


def build(
    palette: object = None,
    weight: float = 1.0,
    net: str = "vgg",
    soft: bool = True,
    free: object = None,
) -> None:
    """A builder as loss terms have them."""


def test_what_the_program_gives_is_no_option():
    assert options_of(build) == ["weight", "net", "soft", "free"]
    assert takes(build, "palette")
    assert not takes(build, "photos")
    assert not takes(MODELS["unet"], "palette")


@pytest.mark.parametrize(
    "values",
    [{"weight": 2}, {"weight": 0.5, "net": "alex"}, {"soft": False}, {"free": 3}, {"unknown": "x"}],
)
def test_values_of_the_kind_of_their_default_pass(values: dict[str, object]):
    require_kinds("loss_options.term", values, build)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": "2"}, "weight: expected a number, got '2'"),
        ({"weight": True}, "weight: expected a number, got True"),
        ({"net": 3}, "net: expected text, got 3"),
        ({"soft": 1}, "soft: expected true or false, got 1"),
    ],
)
def test_values_of_another_kind_are_refused(values: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"^loss_options.term.{message}$"):
        require_kinds("loss_options.term", values, build)
