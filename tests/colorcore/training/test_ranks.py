"""Several processes train what one trains."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import distributed

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.inference.decoding_search import choose_decoding
from colorcore.inference.evaluate import evaluate
from colorcore.recipes.recipe import load_recipe
from colorcore.training.events import TrainingStoppedError
from colorcore.training.fit import fit, train_step
from colorcore.training.state import FitData, Training
from tests.colorcore.training.made_up import (
    JUDGED,
    Diary,
    bytes_of,
    close,
    recipe_of,
    small_data,
    weights_of,
)

pytestmark = pytest.mark.slow  # several processes train

DISTRIBUTED = ("data.batch=8", "train.epochs=2", "data.flip=false")
GROUP = recipe_of("model.norm=group", "train.accumulate=2", *DISTRIBUTED)
BATCH = recipe_of(*DISTRIBUTED)
GAN = recipe_of("model.norm=group", "train.accumulate=2", *DISTRIBUTED, *JUDGED)
LITE = load_recipe(
    "lite0",
    ["model.channels=4", "optim.encoder_lr=0.1", "optim.encoder_stages=1", "optim.freeze_epochs=1",
     *DISTRIBUTED],
)  # fmt: skip
"""Its encoder begins to learn with the second epoch, for which DDP wraps the model again."""
RECIPES = {"group": GROUP, "batch": BATCH, "gan": GAN}


def distributed_worker(rank: int, world: int, folder: Path) -> None:
    """One of several ranks: all trainings, and what this rank saw of them as a file.

    The one with batch norm is done again, stopped by the last rank alone and resumed.
    """
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world
    )
    for name, recipe in RECIPES.items():
        diary = Diary()
        scores = fit(recipe, small_data(), folder / name, observers=[diary])
        seen = {
            "scores": scores,
            "starts": diary.starts,
            "steps": [asdict(event) for event in diary.steps],
            "validations": [(e.epoch, e.step, e.is_best) for e in diary.validations],
            "pictures": [len(event.pairs) for event in diary.validations],
            "decodings": [asdict(event) for event in diary.decodings],
        }
        (folder / f"{name}-{rank}.json").write_text(json.dumps(seen))
    training = Training(LITE, small_data(), torch.device("cpu"), None)
    learned = [sums_of(training)]
    for epoch in range(2):
        training.begin_epoch()
        for batch in training.loader.epoch(epoch):
            train_step(training, batch)
        training.epoch, training.step_in_epoch = epoch + 1, 0
        learned.append(sums_of(training))
    (folder / f"lite-{rank}.json").write_text(json.dumps(learned))
    diary = Diary()
    parts = folder / "parts"
    with pytest.raises(TrainingStoppedError, match="after step 3 of 4"):
        fit(
            BATCH, small_data(), parts, observers=[diary],
            stop=lambda: rank == world - 1 and len(diary.steps) == 2,
        )  # fmt: skip
    assert diary.stops == [3]
    distributed.barrier()
    resume = load_checkpoint(parts / "last", training=True)
    distributed.barrier()
    fit(BATCH, small_data(), parts, observers=[diary], resume=resume)
    assert diary.starts == [(4, 0), (4, 3)]
    distributed.destroy_process_group()


def sums_of(training: Training) -> dict[str, float]:
    """A number per parameter that changes with any of its values."""
    return {
        name: float(
            (value.double() * torch.arange(1, value.numel() + 1).reshape(value.shape)).sum()
        )
        for name, value in training.model.named_parameters()
    }


def run_ranks(world: int, folder: Path) -> Path:
    command = [sys.executable, __file__, str(folder), str(world)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(world)
    ]
    try:
        output = [rank.communicate(timeout=120)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(output)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained."""
    return run_ranks(2, tmp_path_factory.mktemp("two-ranks"))


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of three, whose shares of a batch of eight are three, three and two."""
    return run_ranks(3, tmp_path_factory.mktemp("three-ranks"))


def seen_by(folder: Path, name: str, world: int = 2) -> list[dict[str, object]]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.parametrize("ranks", ["two_ranks", "three_ranks"])
@pytest.mark.parametrize("name", ["group", "gan"])
def test_several_ranks_train_what_one_does(
    request: pytest.FixtureRequest, data: FitData, tmp_path: Path, name: str, ranks: str
):
    """A part of every batch each: with group norm the gradient is the same but for rounding.

    Adam divides a gradient by its own size, so a few weights, whose gradients are next to
    nothing, take the rounding for a direction: at most a twentieth of a step of 1e-3 each time,
    or a tenth where three ranks add up otherwise than one does.
    """
    exact = ranks == "two_ranks"
    folder: Path = request.getfixturevalue(ranks)
    diary = Diary()
    scores = fit(RECIPES[name], data, tmp_path, observers=[diary])
    here, there = weights_of(folder / name / "last"), weights_of(tmp_path / "last")
    close(here, there, atol=2e-4 if exact else 4e-4)
    apart = torch.cat([(value - there[name]).abs().flatten() for name, value in here.items()])
    assert float((apart > 1e-5).float().mean()) < (0.05 if exact else 0.1)
    for seen in seen_by(folder, name, 2 if exact else 3):
        assert seen["scores"] == pytest.approx(scores, rel=1e-4)
        for step, alone in zip(seen["steps"], diary.steps, strict=True):  # type: ignore[call-overload]
            assert step["loss"] == pytest.approx(alone.loss, rel=1e-4)
            assert step["terms"] == pytest.approx(alone.terms, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("ranks", ["two_ranks", "three_ranks"])
def test_several_ranks_stop_when_one_is_told_to_and_end_as_ranks_that_never_did(
    request: pytest.FixtureRequest, ranks: str
):
    """Bit for bit, with the course of the loss that all of them saw."""
    folder: Path = request.getfixturevalue(ranks)
    assert bytes_of(folder / "parts") == bytes_of(folder / "batch")


@pytest.mark.parametrize("ranks", ["two_ranks", "three_ranks"])
def test_an_encoder_that_begins_to_learn_is_the_same_on_every_rank(
    request: pytest.FixtureRequest, ranks: str
):
    """Each rank has other photos: without an exchange of gradients their weights would differ."""
    folder: Path = request.getfixturevalue(ranks)
    first, *others = seen_by(folder, "lite", 2 if ranks == "two_ranks" else 3)
    assert all(other == first for other in others)
    start, frozen, learned = first  # type: ignore[misc]
    changed = [
        {name for name in start if before[name] != after[name]}
        for before, after in ((start, frozen), (frozen, learned))
    ]
    assert not any(name.startswith("encoder.") for name in changed[0])
    assert any(name.startswith("encoder.") for name in changed[1])
    assert changed[0] < changed[1]


@pytest.mark.parametrize("name", ["group", "batch", "gan"])
def test_both_ranks_take_the_same_steps_and_see_the_same_scores(two_ranks: Path, name: str):
    first, second = seen_by(two_ranks, name)
    assert first["starts"] == second["starts"] == [[4, 0]]
    assert [step["step"] for step in first["steps"]] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    assert [step["step"] for step in second["steps"]] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    for what in ("grad_norm", "loss", "terms"):
        of_both = [[step[what] for step in seen["steps"]] for seen in (first, second)]  # type: ignore[attr-defined]
        assert of_both[0] == of_both[1]
    assert first["scores"] == second["scores"]
    assert first["validations"] == second["validations"]
    assert first["pictures"] == [4, 4]
    assert second["pictures"] == [3, 3]


@pytest.mark.parametrize("name", ["group", "batch", "gan"])
def test_two_ranks_score_what_is_saved_as_one_does(two_ranks: Path, data: FitData, name: str):
    """Seven photos, four and three. With batch norm, too, whose statistics differ by rank."""
    saved = load_checkpoint(two_ranks / name / "last")
    alone, _ = evaluate(saved.model(), [data.val.lab_u8], data.palette)  # type: ignore[attr-defined]
    assert alone.compute()["photos"] == 7
    for seen in seen_by(two_ranks, name):
        assert seen["scores"] == pytest.approx(alone.compute(), rel=1e-5)


@pytest.mark.parametrize("name", ["group", "batch"])
def test_two_ranks_choose_what_one_would(two_ranks: Path, data: FitData, name: str):
    best = load_checkpoint(two_ranks / name / "best")
    metric = "auc_balanced"
    chosen, scores, equal = choose_decoding(best.model(), data.val, data.palette, metric)
    assert (best.decoding, best.decoded["photos"]) == (chosen, 7)
    assert best.decoded == pytest.approx(scores, rel=1e-5)
    assert best.equal_cf == pytest.approx(equal.scores if equal else {}, rel=1e-5)
    for seen in seen_by(two_ranks, name):
        assert seen["decodings"] == [
            {
                "step": 4,
                "decoding": asdict(best.decoding),
                "scores": best.decoded,
                "equal_cf": best.equal_cf,
            }
        ]


if __name__ == "__main__":
    distributed_worker(int(sys.argv[3]), int(sys.argv[2]), Path(sys.argv[1]))
