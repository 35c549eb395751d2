"""`--temperature` and `--chroma` of `cc eval`, `cc colorize` and `cc inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import show
from colorcore.checkpoints.checkpoint import save_checkpoint
from colorcore.decoding import Decoding
from colorcore.inference.decoding_search import CHROMAS, TEMPERATURES, WIDER
from colorcore.photos.write import DRAWN, made_by
from tests.trainings import untrained

AS_PNG = ("--format", "png", "--force")


@pytest.fixture(scope="module")
def models(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bin model "bins", stored with T 0.6 and chroma 1.2, and a regression "ab"."""
    folder = tmp_path_factory.mktemp("models")
    bins = {"name": "resnet-unet", "channels": 4, "bins": 6}
    save_checkpoint(untrained(bins, dataset, Decoding(0.6, 1.2)), folder / "bins")
    regression = {"name": "unet", "channels": 4, "depth": 2}
    save_checkpoint(untrained(regression, dataset), folder / "ab")
    return folder


@pytest.mark.slow
def test_the_front_as_json_and_as_a_plot(cc, models: Path, dataset: Path, tmp_path: Path) -> None:
    answer = cc("eval", models / "bins", dataset, "--front", "f.png", "--json")
    assert answer.code == 0, answer.stderr
    found = json.loads(answer.stdout)
    settings = [(row["temperature"], row["chroma"]) for row in found["front"]]
    assert settings == [(t, c) for t in TEMPERATURES for c in sorted((*CHROMAS, *WIDER))]
    stored = [row for row in found["front"] if row["marked"] == ["stored"]]
    default = [row for row in found["front"] if row["marked"] == ["default"]]
    assert [(row["temperature"], row["chroma"]) for row in stored] == [(0.6, 1.2)]
    assert [(row["temperature"], row["chroma"]) for row in default] == [(0.38, 1.0)]
    assert stored[0]["scores"] == found["scores"]["model"]
    assert set(found["scores"]) == {"grey", "constant", "model"}
    assert 0 < sum(row["optimal"] for row in found["front"]) < len(settings)
    with Image.open(tmp_path / "f.png") as plot:
        assert plot.size == (1800, 720)
    # At equal colourfulness: what the command line gives with the decoding that is named.
    assert [row["share"] for row in found["equal_cf"]] == [0.5, 0.75, 1.0]
    for row in found["equal_cf"]:
        if row["scores"] is not None:
            cf = row["share"] * found["scores"]["model"]["cf_true"]
            assert row["scores"]["cf"] == pytest.approx(cf)
    row = next(row for row in found["equal_cf"] if row["scores"] is not None)
    knobs = [f"--{name}={value!r}" for name, value in row["decoding"].items()]
    there = json.loads(cc("eval", models / "bins", dataset, "--json", *knobs).stdout)
    for name, rel in {"cf": 0.02, "psnr": 0.01, "auc_balanced": 0.01, "cf_gap": 0.05}.items():
        assert there["scores"]["model"][name] == pytest.approx(row["scores"][name], rel=rel)
    # One setting without the front scores the same, by the checkpoint and by asking for it.
    for knobs in ([], ["--temperature", "0.6", "--chroma", "1.2"]):
        again = json.loads(cc("eval", models / "bins", dataset, "--json", *knobs).stdout)
        assert again["decoding"] == {"temperature": 0.6, "chroma": 1.2}
        assert again["scores"]["model"] == pytest.approx(stored[0]["scores"], rel=1e-5)
        assert again["scores"]["grey"] == pytest.approx(found["scores"]["grey"], rel=1e-5)


def test_the_front_as_a_table(cc, models: Path, dataset: Path, tmp_path: Path) -> None:
    answer = cc("eval", models / "ab", dataset, "--front", "f.png", "--chroma", "1.5")
    assert answer.code == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0].endswith("decoded with chroma ×1.5")
    rows = {line.split()[0]: line for line in lines if line.lstrip().startswith("×")}
    assert list(rows) == [
        *("×0.5", "×0.8", "×1", "×1.2", "×1.4", "×1.5", "×1.7", "×2", "×2.6", "×4")
    ]
    assert rows["×1"].endswith("default, stored")
    assert rows["×1.5"].endswith("asked")
    assert sum(line.startswith(("grey", "constant")) for line in lines) == 4
    assert any(line.endswith("plot: f.png") for line in lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("equal colorfulness"))
    assert [line.split("%")[0] for line in lines[at + 1 :]] == ["at 50", "at 75", "at 100"]
    assert made_by(tmp_path / "f.png", DRAWN)  # so the next call may replace it


def test_the_line_at_the_end_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    show.equal_cf({})  # never so vivid
    assert capsys.readouterr().out == ""
    scores = {"psnr": 21.249, "delta_e2000": 12.5, "auc_balanced": 0.858, "cf": 30, "cf_true": 40}
    show.equal_cf(scores)
    assert capsys.readouterr().out == (
        "at 75% of the photos' colorfulness: PSNR 21.25 dB, ΔE2000 12.50, balanced AuC 0.8580\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["eval", "ab", ".", "--temperature", "1"],
            "--temperature needs a model that predicts bins",
        ),
        (["colorize", "ab", ".", "--temperature", "1"], "UNet does not; leave it out"),
        (["eval", "bins", ".", "--temperature", "0"], "--temperature must be above 0"),
        (
            ["colorize", "bins", ".", "--chroma", "nan"],
            "--chroma must be above 0 and finite, got nan",
        ),
        (["eval", "bins", ".", "--front", "f.jpg"], "expected the name of a .png"),
        (["eval", "bins", ".", "--front"], "--front"),
    ],
)
def test_wrong_calls(cc, models: Path, arguments: list[str], expected: str, monkeypatch) -> None:
    monkeypatch.chdir(models)
    answer = cc(*arguments)
    assert answer.code == 2, answer.stderr
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_photos_are_colourized_as_the_checkpoint_says(
    cc, models: Path, tmp_path: Path, scene, jpeg
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(scene(0)))
    made = {}
    for name, knobs in {
        "stored": [],
        "asked": ["--temperature", "0.6", "--chroma", "1.2"],
        "pale": ["--chroma", "0.01"],
        "hot": ["--temperature", "3"],
    }.items():
        answer = cc("colorize", models / "bins", "a.jpg", "--out", name, *AS_PNG, *knobs)
        assert answer.code == 0, answer.stderr
        made[name] = np.asarray(Image.open(tmp_path / name / "a.png")).astype(int)
    assert np.array_equal(made["stored"], made["asked"])
    assert np.ptp(made["pale"], axis=2).max() <= 6 < np.ptp(made["stored"], axis=2).max()
    assert not np.array_equal(made["hot"], made["stored"])


@pytest.mark.slow
def test_inspect_shows_the_decoding(cc, models: Path) -> None:
    lines = cc("inspect", models / "bins").stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("decoding ")] == [
        "T 0.6, chroma ×1.2"
    ]
