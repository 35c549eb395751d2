"""Photos and outputs matched by name: every rule, and what is never guessed."""

import pytest

from pipelines.pairing.matching import match_outputs


@pytest.mark.parametrize(
    ("photos", "outputs", "expected"),
    [
        (["a.jpg"], ["a.png"], {"a.jpg": "a.png"}),
        (["a.jpg"], ["a.jpg"], {"a.jpg": "a.jpg"}),
        (
            ["x/a.jpg", "y/a.jpg"],
            ["x/a.png", "y/a.webp"],
            {"x/a.jpg": "x/a.png", "y/a.jpg": "y/a.webp"},
        ),
        (["a.jpg"], ["a.jpg.png"], {"a.jpg": "a.jpg.png"}),
        (["IMG_1.JPG"], ["img_1.png"], {"IMG_1.JPG": "img_1.png"}),
        (["a.jpg", "A.jpg"], ["a.png", "A.png"], {"a.jpg": "a.png", "A.jpg": "A.png"}),
        (["deep/er/a.jpg"], ["a.png"], {"deep/er/a.jpg": "a.png"}),  # a flat folder of outputs
        (["a.jpg"], ["out/A.png"], {"a.jpg": "out/A.png"}),
        (["e\u0301.jpg"], ["\u00e9.png"], {"e\u0301.jpg": "\u00e9.png"}),  # as macOS stores it
        (["v1.2.final.jpeg"], ["v1.2.final.png"], {"v1.2.final.jpeg": "v1.2.final.png"}),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"], {"a.jpg": "a.jpg", "a.png": "a.png"}),
        (
            ["a.jpg", "a.png"],
            ["a.jpg.png", "a.png.png"],
            {"a.jpg": "a.jpg.png", "a.png": "a.png.png"},
        ),
    ],
)
def test_matches(photos: list[str], outputs: list[str], expected: dict[str, str]) -> None:
    found = match_outputs(photos, outputs)
    assert found.outputs == expected
    assert (found.missing, found.ambiguous, found.extra) == ([], [], [])


@pytest.mark.parametrize(
    ("photos", "outputs", "ambiguous"),
    [
        (["a.jpg", "a.png"], ["a.png"], ["a.jpg", "a.png"]),  # either's: most tools write PNGs
        (["a.jpg"], ["a.png", "a.webp"], ["a.jpg"]),
        (["a.jpg", "A.jpg"], ["a.png"], []),  # A is missing, a is certain
        (["A.jpg", "a.jpg"], ["á/../x.png"], []),
        (["x/a.jpg", "y/a.jpg"], ["a.png"], []),  # whose it is nobody knows: missing and extra
        (["a.jpg", "a.jpg"], ["a.png"], ["a.jpg", "a.jpg"]),  # of two sources
        (["B.jpg"], ["b.png", "b.webp"], ["B.jpg"]),
    ],
)
def test_nothing_is_guessed(photos: list[str], outputs: list[str], ambiguous: list[str]) -> None:
    found = match_outputs(photos, outputs)
    assert found.ambiguous == ambiguous
    assert not set(found.outputs) & set(ambiguous)
    assert len(found.outputs) + len(found.missing) + len(found.ambiguous) == len(photos)
    assert len(found.outputs.values()) == len(set(found.outputs.values()))


def test_missing_and_extra() -> None:
    found = match_outputs(["a.jpg", "b.jpg", "x/c.jpg"], ["b.png", "thumb.png", "x/c_out.png"])
    assert found.outputs == {"b.jpg": "b.png"}
    assert found.missing == ["a.jpg", "x/c.jpg"]
    assert found.extra == ["thumb.png", "x/c_out.png"]
    nothing = match_outputs(["a.jpg"], [])
    assert (nothing.outputs, nothing.missing) == ({}, ["a.jpg"])


def test_a_flat_folder_of_outputs_of_a_tree_with_one_doubtful_name() -> None:
    found = match_outputs(["x/a.jpg", "y/a.jpg", "y/b.jpg"], ["a.png", "b.png"])
    assert found.outputs == {"y/b.jpg": "b.png"}
    assert found.missing == ["x/a.jpg", "y/a.jpg"]
    assert found.extra == ["a.png"]


@pytest.mark.slow
def test_many_photos_are_matched_quickly() -> None:
    count = 50_000
    photos = [f"{i % 100}/{i}.jpg" for i in range(count)]
    outputs = [f"{i % 100}/{i}.png" for i in range(count)]
    assert len(match_outputs(photos, outputs).outputs) == count
    doubled = [name for i in range(2_000) for name in (f"{i}.jpg", f"{i}.png")]
    assert len(match_outputs(doubled, [f"{i}.png" for i in range(2_000)]).ambiguous) == 4_000
