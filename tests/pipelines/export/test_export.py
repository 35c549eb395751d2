"""`cc export`: files of checkpoints, and what `cc colorize`, `cc eval` and Python do with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import colorcore
from colorcore.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from colorcore.dataset.layout import read_info
from colorcore.decoding import Decoding
from colorcore.export.prune import prune
from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe
from pipelines.errors import JobError, WrongCallError
from pipelines.export.job import ExportSettings, export_model
from pipelines.export.photos import photos_for
from pipelines.export.report import ExportReport, Variant
from tests.conftest import Run, jpeg, scene
from tests.trainings import fit_here, untrained

TINY = [
    "model.channels=16", "model.depth=1", "data.batch=4", "data.flip=false", "train.epochs=3",
    "optim.lr=1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained_unet(dataset_with_palette: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet of widths 16 and 32, trained for three epochs."""
    out = tmp_path_factory.mktemp("unet") / "model"
    fit_here(load_recipe("unet-l1", TINY), dataset_with_palette, out)
    return out


@pytest.fixture(scope="module")
def bins(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that predicts bins, stored with T 0.6 and chroma 1.2."""
    part = {"name": "lite-bins", "channels": 16, "bins": 6, "encoder_weights": "none"}
    checkpoint = untrained(part, dataset, Decoding(0.6, 1.2))
    folder = tmp_path_factory.mktemp("checkpoints") / "bins"
    save_checkpoint(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def bins_file(bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("file") / "bins.onnx"
    export_model(bins, file)
    return file


@pytest.fixture(scope="module")
def small(
    trained_unet: Path, dataset_with_palette: Path, tmp_path_factory: pytest.TempPathFactory
) -> ExportReport:
    """The UNet with half of its widest layers' channels, in 8 bits."""
    file = tmp_path_factory.mktemp("small") / "small.onnx"
    settings = ExportSettings(data=str(dataset_with_palette), int8=True, prune=0.5, epochs=2)
    return export_model(trained_unet, file, settings)


# The file


@pytest.mark.slow
def test_each_form_is_measured_and_the_last_one_is_the_file(small: ExportReport) -> None:
    names = [each.name for each in small.variants]
    assert names == ["torch", "pruned 50%", "pruned 50% int8"]
    full, pruned, int8 = small.variants
    assert (full.delta_e, full.psnr_lost) == (0, 0)
    for each in (pruned, int8):
        assert each.psnr == pytest.approx(full.psnr - each.psnr_lost)
        assert 0 < each.delta_e < 20
        assert abs(each.psnr_lost) < 3
    assert int8.bytes == small.file.stat().st_size < pruned.bytes < full.bytes
    assert small.difference < small.tolerance
    facts = colorcore.load(small.file).facts  # type: ignore[attr-defined]
    assert facts.changes == small.changes
    assert facts.changes["pruned"]["share"] == 0.5
    assert facts.changes["pruned"]["after"] < 0.5 * facts.changes["pruned"]["before"]
    assert facts.changes["int8"]["photos"] > 1


@pytest.mark.slow
def test_its_channels_are_gone_from_the_file(small: ExportReport, trained_unet: Path) -> None:
    model = onnx.load(small.file)
    held = sum(int(np.prod(each.dims)) for each in model.graph.initializer if len(each.dims) == 4)
    network = load_checkpoint(trained_unet).model()
    before = sum(each.numel() for each in network.parameters() if each.ndim == 4)
    prune(network, 0.5)
    after = sum(each.numel() for each in network.parameters() if each.ndim == 4)
    assert held == after < 0.5 * before


@pytest.mark.slow
def test_the_fine_tune_mends_what_pruning_broke(
    trained_unet: Path, dataset_with_palette: Path, tmp_path: Path
) -> None:
    """On the photos it was scored on; the pruned network without it is far off."""
    from colorcore.colorizing.network import NetworkColorizer
    from colorcore.export.checks import quality

    data = str(dataset_with_palette)
    settings = ExportSettings(data=data, prune=0.5, epochs=8)
    tuned = export_model(trained_unet, tmp_path / "x.onnx", settings).variants[-1]
    checkpoint = load_checkpoint(trained_unet)
    network = checkpoint.model()
    prune(network, 0.5)
    raw = {"raw": NetworkColorizer(network, checkpoint.size, checkpoint.decoding)}
    scored = photos_for(data, checkpoint.size).scored
    assert tuned.psnr > quality(raw, scored, "raw")["raw"]["psnr"] + 0.05


@pytest.mark.slow
def test_the_command_prints_a_table_and_one_object(cc, bins: Path, tmp_path: Path) -> None:
    answer = cc("export", bins, "x.onnx", "--json")
    assert answer.code == 0, answer.stderr
    record = json.loads(answer.stdout)
    assert [each["name"] for each in record["variants"]] == ["torch", "onnx"]
    assert record["difference"] < record["tolerance"] == 0.1
    assert record["photos"] == "2 photographs that scikit-learn installs"
    assert abs(record["variants"][1]["psnr_lost"]) < 0.01
    data = (tmp_path / "x.onnx").read_bytes()
    again = cc("export", bins, "x.onnx")
    assert again.code == 2
    assert "expected a new file, found x.onnx" in again.stderr
    assert (tmp_path / "x.onnx").read_bytes() == data
    (tmp_path / "x.onnx").write_bytes(b"old")
    answer = cc("export", bins, "x.onnx", "--overwrite")
    assert answer.code == 0
    assert answer.stdout.splitlines()[0].split() == [
        "MB", "CPU", "ms", "per", "photo", "ΔE2000", "to", "torch", "PSNR", "dB", "PSNR", "lost"
    ]  # fmt: skip
    assert answer.stdout.rstrip().endswith("written: x.onnx")
    assert "Obtain model graph" not in answer.stdout + answer.stderr
    assert (tmp_path / "x.onnx").read_bytes() == data, "the same model gives the same bytes"


# What takes the file


@pytest.mark.slow
def test_pictures_are_those_of_the_checkpoint(cc, bins: Path, bins_file: Path, tmp_path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(scene(1, 150, 230).mean(axis=2).astype(np.uint8)))
    found = {}
    for name, more in {"as stored": [], "asked": ["--temperature", "1", "--chroma", "2"]}.items():
        for model in (bins, bins_file):
            out = tmp_path / f"{name} {model.name}"
            answer = cc("colorize", model, photo, "--out", out, "--format", "png", *more)
            assert answer.code == 0, answer.stderr
            with Image.open(out / "photo.png") as picture:
                found[name, model] = np.asarray(picture).astype(int)
    for name in ("as stored", "asked"):
        assert np.abs(found[name, bins] - found[name, bins_file]).max() <= 1
    assert np.abs(found["as stored", bins] - found["asked", bins]).max() > 5
    answer = cc("colorize", bins_file, photo, "--samples", "3", "--out", "more")
    assert answer.code == 2
    assert "expected a checkpoint for 3 versions, got an exported file" in answer.stderr
    answer = cc("colorize", bins_file, photo, "--device", "tpu", "--out", "more")
    assert answer.code == 2
    assert "--device: expected the device cpu or cuda" in answer.stderr


@pytest.mark.slow
def test_scores_are_those_of_the_checkpoint(cc, bins: Path, bins_file: Path, dataset: Path) -> None:
    for more in ([], ["--temperature", "1.0", "--chroma", "0.7"]):
        records = [
            json.loads(cc("eval", each, dataset, "--json", *more).stdout)
            for each in (bins, bins_file)
        ]
        assert records[0]["decoding"] == records[1]["decoding"]
        for side in ("model", "constant", "grey"):
            scores = records[0]["scores"][side]
            assert records[1]["scores"][side] == pytest.approx(scores, rel=1e-3)


@pytest.mark.slow
def test_a_report_compares_it_with_its_checkpoint(
    cc, bins: Path, bins_file: Path, dataset: Path, tmp_path: Path
) -> None:
    answer = cc(
        "eval", bins, dataset, "--with", bins_file, "--html", "r.html", "--front", "f.png", "--json"
    )
    assert answer.code == 0, answer.stderr
    record = json.loads(answer.stdout)
    assert record["scores"]["bins.onnx"] == pytest.approx(record["scores"]["bins"], rel=1e-3)
    fronts = record["fronts"]
    for one, other in zip(fronts["bins"], fronts["bins.onnx"], strict=True):
        assert one["temperature"] == other["temperature"]
        assert one["scores"]["psnr"] == pytest.approx(other["scores"]["psnr"], abs=0.01)
    stability = record["details"]["size_stability"]["sides"]
    assert stability["bins.onnx"] == pytest.approx(stability["bins"], abs=0.05)
    # Its confidence stays in the graph, so nothing is said of it.
    assert list(record["details"]["reliability"]) == ["bins"]
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_a_file_that_is_missing_or_foreign_is_named(cc, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.onnx").write_bytes(b"\x08\x0a")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(scene(1)))
    for command in (["colorize", photo], ["eval", dataset]):
        for name, said in (("none", "found no file none.onnx"), ("foreign", "that cc export")):
            answer = cc(command[0], f"{name}.onnx", command[1])
            assert answer.code == 1
            assert answer.stderr.count("error:") == 1
            assert said in answer.stderr


# Wrong calls


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("x.pt", {}, r"expected a name ending in \.onnx"),
        ("folder.onnx", {}, "found the folder"),
        ("there.onnx", {}, "expected a new file"),
        ("x.onnx", {"int8": True}, "expected photos to calibrate --int8 on"),
        ("x.onnx", {"prune": 0.3}, "expected a dataset to train the pruned model on"),
        ("x.onnx", {"prune": 1.5, "data": "."}, "between 0 and 1, got --prune 1.5"),
        ("x.onnx", {"prune": 0.3, "data": "."}, r"pruned model on, got .*, which is none"),
        ("x.onnx", {"device": "cuda"}, "--device is for the training after --prune"),
    ],
)
def test_wrong_calls_write_nothing(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "there.onnx").write_bytes(b"mine")
    settings = {**settings, **({"data": str(tmp_path)} if "data" in settings else {})}
    with pytest.raises(WrongCallError, match=message):
        export_model("start", tmp_path / name, ExportSettings(**settings))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.onnx", "there.onnx"]
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


def test_a_file_in_an_object_store_is_not_written_as_a_local_one(cc: Run, tmp_path: Path) -> None:
    answer = cc("export", "start", "s3://bucket/x.onnx")
    assert answer.code == 2
    assert "expected a local file to write, got s3:/bucket/x.onnx" in answer.stderr
    assert not list(tmp_path.iterdir())


def test_epochs_without_anything_to_train(cc: Run, tmp_path: Path) -> None:
    answer = cc("export", "start", "x.onnx", "--epochs", "3")
    assert answer.code == 2
    assert "--epochs is for the training after --prune" in answer.stderr


@pytest.mark.parametrize("words", [("export", "", "x.onnx"), ("colorize", "", "x.jpg")])
def test_an_empty_name_is_no_model(cc: Run, words: tuple[str, ...]) -> None:
    answer = cc(*words)
    assert answer.code == 2
    assert "expected a model, got an empty name" in answer.stderr


@pytest.mark.parametrize(
    ("changes", "delta_e", "expected"),
    [
        ({"int8": {}}, (0.0, 0.0, 2.4), 2.4),
        ({"pruned": {}}, (0.0, 2.4), 0.0),
        ({"pruned": {}, "int8": {}}, (0.0, 2.4, 2.5), 0.1),
    ],
)
def test_what_8_bits_change_is_told_from_what_pruning_changed(
    changes: dict[str, Any], delta_e: tuple[float, ...], expected: float
) -> None:
    variants = [Variant("any", 1, 1.0, each, 20.0, 0.0) for each in delta_e]
    report = ExportReport(Path("x"), "m", 0.0, 0.1, 0, "photos", 64, variants, changes)
    assert report.added_by_int8 == pytest.approx(expected)


def test_an_exported_file_is_not_exported_again(tmp_path: Path) -> None:
    with pytest.raises(WrongCallError, match="exported already"):
        export_model("model.onnx", tmp_path / "x.onnx")


def test_a_network_too_narrow_to_prune_is_named(
    dataset_with_palette: Path, trained_unet: Path, tmp_path: Path
) -> None:
    narrow = tmp_path / "narrow"
    saved = load_checkpoint(trained_unet)
    recipe = load_recipe("unet-l1", ["model.channels=2", "model.depth=1"])
    weights = build_model(recipe.model.name, **recipe.model.options()).state_dict()
    save_checkpoint(replace(saved, recipe=recipe, weights=weights), narrow)
    settings = ExportSettings(data=str(dataset_with_palette), prune=0.3)
    with pytest.raises(WrongCallError, match="--prune: no layer can lose 30%"):
        export_model(narrow, tmp_path / "x.onnx", settings)


# Photos


def test_photos_that_calibrate_are_not_scored(dataset: Path, tmp_path: Path) -> None:
    found = photos_for(str(dataset), 64, 5)
    counts = read_info(dataset).counts or {}
    assert 1 < len(found.scored) <= 5
    assert 1 < len(found.calibration) <= 5 < counts["train"]
    both = {each.tobytes() for each in (*found.calibration, *found.scored)}
    assert len(both) == len(found.calibration) + len(found.scored)
    for seed in range(6):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(scene(seed, 80, 100)))
    found = photos_for(str(tmp_path), 64, 2)
    assert (len(found.calibration), len(found.scored)) == (2, 2)
    assert len({each.tobytes() for each in (*found.calibration, *found.scored)}) == 4
    assert found.scored[0].shape == (3, 64, 64)
    assert 0 <= found.lightness().min() < found.lightness().max() <= 100


def test_photos_that_cannot_serve_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongCallError, match="expected samples of at least 128 px"):
        photos_for(str(dataset), 128)
    (tmp_path / "a.jpg").write_bytes(jpeg(scene(1, 80, 100)))
    with pytest.raises(JobError, match="expected at least two readable photos of 64 px"):
        photos_for(str(tmp_path), 64)
