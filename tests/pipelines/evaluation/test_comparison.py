"""`cc eval --with` and `--against`: several sides on the same photos, against scikit-image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from cli.main import main
from colorcore.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from colorcore.models import build_model
from colorcore.recipes.recipe import parse_recipe
from pipelines.errors import JobError, WrongCallError
from pipelines.evaluation.job import evaluate_model
from pipelines.evaluation.report import EvalReport, record_of
from pipelines.evaluation.sides import names_for
from tests.colorcore.comparison.made_up import weight_files
from tests.conftest import jpeg, scene

PHOTOS = 10


def checkpoint_of(size: int, seed: int, **part: object) -> Checkpoint:
    """An untrained checkpoint with plain colours, of the palette and so on of "start"."""
    torch.manual_seed(seed)
    start = load_checkpoint("start")
    part = part or {"name": "unet", "channels": 4, "depth": 2}
    recipe = parse_recipe({"model": part, "loss": {"ab_l1": 1.0}}, "here")
    model = build_model(recipe.model.name, **recipe.model.options())
    if hasattr(model, "use_palette"):
        model.use_palette(start.palette)
    else:
        torch.nn.init.normal_(model.head.weight, std=0.3)
    return Checkpoint(recipe, model.state_dict(), start.palette, (3.0, 5.0), size, "")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regressions "one" and "other" of 64 px, "small" of 32 px, and "bins" of 64 px."""
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(checkpoint_of(64, 0), folder / "one")
    save_checkpoint(checkpoint_of(64, 1), folder / "other")
    save_checkpoint(checkpoint_of(32, 0), folder / "small")
    bins = len(load_checkpoint("start").palette)
    parts = {"name": "resnet-unet", "channels": 4, "bins": bins}
    save_checkpoint(checkpoint_of(64, 0, **parts), folder / "bins")
    return folder


def softer(rgb: np.ndarray) -> np.ndarray:
    """Nearer to grey, and a little brighter: another tool's answer."""
    grey = rgb.mean(axis=2, keepdims=True)
    return np.clip(np.rint(0.6 * rgb + 0.4 * grey + 6), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """in/: a tree of square JPEGs; copy/: the same files; soft/: ``softer`` ones, as PNG."""
    top = tmp_path_factory.mktemp("photos")
    for number in range(PHOTOS):
        name = Path("x" if number % 2 else ".") / f"{number:02d}.jpg"
        data = jpeg(cv2.GaussianBlur(scene(number, 96, 96), (0, 0), 2))
        for folder in ("in", "copy"):
            (top / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (top / folder / name).write_bytes(data)
        made = top / "soft" / name.with_suffix(".png")
        made.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(softer(rgb_of(top / "in" / name))).save(made)
    return top


def rgb_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def at_64(path: Path) -> np.ndarray:
    return np.asarray(cv2.resize(rgb_of(path), (64, 64), interpolation=cv2.INTER_AREA))


@pytest.fixture(scope="module")
def compared(models: Path, photos: Path) -> EvalReport:
    return evaluate_model(
        models / "one",
        photos / "in",
        others=[models / "other", models / "bins"],
        against=[str(photos / "copy"), str(photos / "soft")],
    )


def test_all_sides_are_in_one_table(compared: EvalReport) -> None:
    assert list(compared.scores) == ["grey", "constant", "one", "other", "bins", "copy", "soft"]
    assert {row["photos"] for row in compared.scores.values()} == {PHOTOS}
    assert [side.kind for side in compared.sides] == ["model"] * 3 + ["outputs"] * 2
    assert compared.sides[2].decoding is not None
    assert compared.sides[2].decoding.temperature == 0.38
    assert compared.sides[3].decoding is None


def test_a_model_scores_the_same_alone_and_among_others(
    compared: EvalReport, models: Path, photos: Path
) -> None:
    alone = evaluate_model(models / "other", photos / "in")
    for key, value in alone.scores["model"].items():
        if key not in (
            "auc_balanced",
            "bins_in_use",
        ):  # by the first model's palette, the same here
            assert compared.scores["other"][key] == pytest.approx(value, rel=1e-6)
    assert alone.scores["grey"] == compared.scores["grey"]
    assert {(each.one, each.other) for each in alone.differences} == {
        ("model", "grey"),
        ("model", "constant"),
    }


def test_a_perfect_copy_has_no_error(compared: EvalReport) -> None:
    copy = compared.scores["copy"]
    assert (copy["psnr"], copy["delta_e2000"], copy["cf_gap"], copy["auc"]) == (100, 0, 0, 1)
    assert copy["lightness_error"] == 0


def test_outputs_are_scored_as_shown_like_scikit_image_scores_them(
    compared: EvalReport, photos: Path
) -> None:
    """With their own lightness. Tolerances are those of 8-bit LAB."""
    psnr, error, lightness = [], [], []
    for path in sorted((photos / "in").rglob("*.jpg")):
        made = photos / "soft" / path.relative_to(photos / "in").with_suffix(".png")
        one, other = at_64(path), at_64(made)
        psnr.append(peak_signal_noise_ratio(one, other))
        lab, lab_made = rgb2lab(one), rgb2lab(other)
        error.append(deltaE_ciede2000(lab_made, lab).mean())
        lightness.append(np.abs(lab[..., 0] - lab_made[..., 0]).mean())
    soft = compared.scores["soft"]
    assert soft["psnr"] == pytest.approx(np.mean(psnr), abs=0.1)
    assert soft["delta_e2000"] == pytest.approx(np.mean(error), abs=0.1)
    assert soft["lightness_error"] == pytest.approx(np.mean(lightness), abs=0.1)
    assert soft["lightness_error"] > 1
    assert "lightness_error" not in compared.scores["one"]


def test_intervals_hold_the_means_and_differences_name_the_better_side(
    compared: EvalReport,
) -> None:
    for name, intervals in compared.intervals.items():
        for metric, (low, high) in intervals.items():
            if metric in compared.scores[name]:
                assert low - 1e-5 <= compared.scores[name][metric] <= high + 1e-5
    found = {(each.one, each.other, each.metric): each for each in compared.differences}
    assert len(found) == 10 * 4  # pairs of five sides, baselines left out
    assert found["one", "copy", "psnr"].better == "copy"
    assert found["copy", "soft", "delta_e2000"].better == "copy"
    expected = compared.scores["one"]["psnr"] - compared.scores["soft"]["psnr"]
    assert found["one", "soft", "psnr"].difference == pytest.approx(expected, rel=1e-5)


def test_at_equal_colourfulness_every_side_has_the_same_cf(compared: EvalReport) -> None:
    true = compared.scores["grey"]["cf_true"]
    assert [each.share for each in compared.equal] == [0.5, 0.75, 1.0]
    for each in compared.equal:
        assert list(each.decodings) == ["one", "other", "bins", "copy", "soft"]
        assert {"copy", "soft"} <= each.scores.keys()
        for scores in each.scores.values():
            assert scores["cf"] == pytest.approx(each.share * true, rel=0.01)
        assert each.photos == PHOTOS
    whole = compared.equal[2]
    copy = whole.decodings["copy"]
    assert copy is not None
    assert copy.chroma == pytest.approx(1.0, abs=0.01)
    assert whole.scores["copy"]["delta_e2000"] < 0.2
    soft = whole.decodings["soft"]
    assert soft is not None
    assert soft.chroma > 1.2  # it was made paler


def test_models_of_different_sizes_are_scored_at_the_largest(models: Path, photos: Path) -> None:
    report = evaluate_model(models / "small", photos / "in", others=[models / "one"])
    assert report.size == 64
    assert [side.size for side in report.sides] == [32, 64]
    alone = evaluate_model(models / "one", photos / "in")
    assert report.scores["one"]["psnr"] == pytest.approx(alone.scores["model"]["psnr"], rel=1e-6)
    assert report.scores["small"]["psnr"] == pytest.approx(alone.scores["model"]["psnr"], abs=3)


def test_every_folder_counts_what_it_lacks_and_only_common_photos_are_scored(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "tool"
    shutil.copytree(photos / "soft", mine)
    (mine / "00.png").unlink()  # missing
    (mine / "02.png").rename(mine / "02.webp.png")  # matches no photo
    (mine / "04.png").write_bytes((mine / "04.png").read_bytes()[:300])  # damaged
    shutil.copy(mine / "06.png", mine / "06.PNG.jpg")
    (mine / "06.PNG.jpg").rename(mine / "06.jpg")  # two outputs of one photo
    (mine / "x/01.png").rename(mine / "x/01.PNG")
    half = Image.open(mine / "x/03.png").resize((72, 72))
    half.save(mine / "x/03.png")
    Image.open(mine / "x/05.png").resize((96, 70)).save(mine / "x/05.png")
    call = ["cc", "eval", str(models / "one"), str(photos / "in")]
    assert main([*call, f"--against={mine}", f"--against={photos / 'copy'}", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    sides = {side["name"]: side for side in found["sides"]}
    tool = sides["tool"]["outputs"]
    assert tool["missing"] == ["00.jpg", "02.jpg"]
    assert tool["ambiguous"] == ["06.jpg"]
    assert list(tool["damaged"]) == ["04.png"]
    assert tool["extra"] == ["02.webp.png"]
    assert (tool["matched"], tool["resized"], tool["reshaped"]) == (7, 2, 1)
    assert found["excluded"] == 4
    assert {row["photos"] for row in found["scores"].values()} == {6}
    assert sides["copy"]["outputs"]["missing"] == []
    lines = shown.err.splitlines()
    assert "tool: no output of 2 photos: 00.jpg, 02.jpg" in lines
    assert "tool: not certain which output belongs to 1 photo: 06.jpg" in lines
    assert any(line.startswith("tool: left out the output 04.png: truncated:") for line in lines)
    assert "tool: ignored 1 output of no photo: 02.webp.png" in lines
    assert (
        "tool: resized 2 outputs of another size than the photo; 1 of them had another shape and "
        "were stretched to it"
    ) in lines
    assert "scored only 6 photos that all sides have; left out 4" in lines
    # A reshaped output was stretched back to the photo: it scores nearly as before.
    whole = evaluate_model(models / "one", photos / "in/x/05.jpg", against=[str(photos / "soft")])
    again = evaluate_model(models / "one", photos / "in/x/05.jpg", against=[str(mine)])
    assert again.scores["tool"]["delta_e2000"] == pytest.approx(
        whole.scores["soft"]["delta_e2000"], rel=0.1
    )


def test_the_outputs_of_a_datasets_validation_photos(
    models: Path, dataset_with_palette: Path, photo_folder, tmp_path: Path
) -> None:
    """Their truth is the stored sample, so a copy of the photo has no error."""
    mine = tmp_path / "tool"
    for name in photo_folder.kept:
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo_folder.path / name, mine / name)
    report = evaluate_model(models / "one", dataset_with_palette, against=[str(mine)])
    alone = evaluate_model(models / "one", dataset_with_palette)
    assert report.photos == alone.photos > 3
    assert report.scores["tool"]["psnr"] == 100
    assert report.scores["one"] == alone.scores["model"]
    outputs = report.sides[1].outputs
    assert outputs is not None
    assert outputs.resized == set()
    assert len(outputs.matches.extra) == len(photo_folder.kept) - report.photos


def test_photos_in_lists_keep_their_relative_paths(models: Path, photos: Path) -> None:
    names = ["00.jpg", "x/01.jpg", str(photos / "in/02.jpg")]
    (photos / "in/list.txt").write_text("\n".join(names))
    report = evaluate_model(models / "one", photos / "in/list.txt", against=[str(photos / "copy")])
    (photos / "in/list.txt").unlink()
    outputs = report.sides[1].outputs
    assert outputs is not None
    assert outputs.matches.outputs == {
        "00.jpg": "00.jpg", "x/01.jpg": "x/01.jpg", "02.jpg": "02.jpg",
    }  # fmt: skip
    assert report.scores["copy"]["psnr"] == 100


@pytest.mark.slow
def test_perceptual_scores_for_every_side(models: Path, photos: Path) -> None:
    report = evaluate_model(
        models / "one",
        photos / "in",
        others=[models / "other"],
        against=[str(photos / "copy")],
        perceptual=True,
    )
    assert report.left_out == ""
    alone = evaluate_model(models / "other", photos / "in", perceptual=True)
    for key in ("kid_lite0", "perceptual_lite0"):
        assert report.scores["copy"][key] == pytest.approx(0, abs=1e-5)
        assert report.scores["other"][key] == pytest.approx(alone.scores["model"][key], rel=1e-3)
        assert report.scores["one"][key] != report.scores["other"][key]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return weight_files(tmp_path_factory.mktemp("weights"))


@pytest.mark.slow
def test_lpips_for_every_side(
    models: Path, photos: Path, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["cc", "eval", str(models / "one"), str(photos / "in"), f"--against={photos / 'copy'}"]
    files = [f"--lpips={weights[name]}" for name in ("alex", "alex linear")]
    assert main([*call, *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "caution" not in found
    scores = {name: row["lpips_alex"] for name, row in found["scores"].items()}
    assert set(scores) == {"grey", "constant", "one", "copy"}
    assert scores["copy"] == pytest.approx(0, abs=1e-6)
    assert 0 < scores["one"] != scores["grey"] > 0
    assert main([*call, *files]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-3:-1] == ["LPIPS", "Alex"]
    assert main([*call, files[0]]) == 2
    error = capsys.readouterr().err
    assert "error: LPIPS of alex needs two files: next to" in error
    assert main([*call, f"--fid={weights['alex']}"]) == 2
    assert "alex.pth is not FID's Inception-v3" in capsys.readouterr().err
    assert main([*call, f"--fid={weights['alex']}.no"]) == 2
    assert "found no such file" in capsys.readouterr().err


@pytest.mark.slow  # an Inception-v3 on ten photos of four sides
def test_fid_for_every_side_with_its_caution(
    models: Path,
    photos: Path,
    weights: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "page.html"
    call = ["cc", "eval", str(models / "one"), str(photos / "in"), f"--against={photos / 'copy'}"]
    assert main([*call, f"--fid={weights['fid']}", f"--html={page}", "--json"]) == 0
    shown = capsys.readouterr()
    caution = f"FID of {PHOTOS} photos is biased (with 2,048 or fewer"
    assert caution in shown.err
    assert caution in page.read_text()
    assert "<th>FID</th>" in page.read_text()
    found = json.loads(shown.out)
    assert found["caution"].startswith(caution)
    fid = {name: row["fid"] for name, row in found["scores"].items()}
    assert fid["copy"] == pytest.approx(0, abs=0.01 * fid["one"])
    assert 0 < fid["one"] != fid["grey"] > 0


def test_the_table_and_the_plot_of_all_fronts(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["cc", "eval", str(models / "one"), str(photos / "in"), f"--with={models / 'other'}"]
    files = [f"--front={tmp_path / 'f.png'}", f"--picture={tmp_path / 'p.png'}"]
    assert main([*call, f"--against={photos / 'soft'}", *files]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith(f"{PHOTOS} photos at 64 px; true CF ")
    assert lines[1].split()[-2:] == ["|ΔL|", "decoding"]
    assert [line.split()[0] for line in lines[2:7]] == ["grey", "constant", "one", "other", "soft"]
    assert lines[6].endswith("as they are")
    assert any(line.startswith("95% intervals") for line in lines)
    assert any(line.startswith("one vs. soft: worse in PSNR dB by ") for line in lines)
    assert any(line.startswith("at 75% of the true CF") for line in lines)
    assert f"plot: {tmp_path / 'f.png'}" in lines
    with Image.open(tmp_path / "f.png") as plot:
        assert plot.size == (1800, 720)
    with Image.open(tmp_path / "p.png") as rows:
        assert rows.size == (5 * 64 + 4 * 4, PHOTOS * 64 + (PHOTOS - 1) * 4)


def test_one_photo_has_no_intervals(models: Path, photos: Path, capsys) -> None:
    assert main(["cc", "eval", str(models / "one"), str(photos / "in/00.jpg")]) == 0
    out = capsys.readouterr().out
    assert "95%" not in out
    assert "vs." not in out
    report = evaluate_model(models / "one", photos / "in/00.jpg", others=[models / "other"])
    assert (report.intervals, report.differences) == ({}, [])
    json.dumps(record_of(report), allow_nan=False)


@pytest.mark.parametrize(
    ("against", "error", "message"),
    [
        ("in", WrongCallError, "got the photos .* themselves"),
        ("nowhere", WrongCallError, "found nothing at"),
        ("in/00.jpg", WrongCallError, "expected a folder of colourized photos for --against"),
        ("empty", WrongCallError, "expected colourized photos in .* found none"),
        ("others", JobError, "expected outputs in .* named like the photos in .* found none"),
    ],
)
def test_wrong_folders(
    models: Path, photos: Path, against: str, error: type[Exception], message: str
) -> None:
    (photos / "empty").mkdir(exist_ok=True)
    (photos / "others").mkdir(exist_ok=True)
    shutil.copy(photos / "in/00.jpg", photos / "others/strange.jpg")
    with pytest.raises(error, match=message):
        evaluate_model(models / "one", photos / "in", against=[str(photos / against)])


def test_outputs_of_photos_in_tars_are_refused(models: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(WrongCallError, match="unpack it, so that outputs can be matched"):
        evaluate_model(models / "one", tmp_path, against=[str(photos / "copy")])


def test_names_of_sides() -> None:
    assert names_for(["start", "runs/a/best", "runs/b/best"]) == [
        "start",
        "runs/a/best",
        "runs/b/best",
    ]
    assert names_for(["a/one/", "b/two"]) == ["one", "two"]
    assert names_for(["x/grey"]) == ["x/grey"]
    assert names_for(["m", "m"]) == ["m", "m (2)"]
    assert names_for(["models:/night@champion"]) == ["night@champion"]
    assert names_for(["s3://bucket/out/?endpoint_override=http://a/b"]) == ["out"]
