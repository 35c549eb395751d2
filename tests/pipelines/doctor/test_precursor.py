"""Each proof of the precursor passes on sound code, and fails when its piece is broken."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from colorcore.dataset.samples import Samples
from colorcore.storage.location import open_store
from pipelines.doctor import precursor as module
from pipelines.doctor.precursor import (
    STEPS_TOGETHER,
    Precursor,
    ProofError,
    Regressor,
    lightness,
    open_samples,
    prove_batching,
    prove_checkpoint,
    prove_learning,
    prove_mixed_precision,
    prove_ranks,
    prove_resume,
    prove_transfer,
)
from tests.pipelines.doctor import ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(dataset: Path) -> Samples:
    return open_samples(dataset)


def test_the_net_is_tiny_and_is_told_the_mean_lightness(samples: Samples) -> None:
    assert sum(p.numel() for p in Regressor().parameters()) == 2497
    lab_u8 = samples.read(np.arange(3))
    by_hand = lab_u8[:, 0].numpy().astype(float).mean((1, 2)) / 127.5 - 1
    assert lightness(lab_u8, CPU).mean((1, 2, 3)).numpy() == pytest.approx(by_hand, abs=1e-5)


def test_the_same_start_and_order_each_time(samples: Samples) -> None:
    one, other = Precursor(samples), Precursor(samples)
    assert one.train(4) == other.train(4)
    assert one.done == 4


def test_it_holds_on_this_machine(samples: Samples, tmp_path: Path) -> None:
    assert "batches of" in prove_batching(samples)
    assert "as in NumPy" in prove_transfer(samples, CPU)
    assert " L in 100 steps" in prove_learning(samples, CPU)
    assert "bf16" in prove_mixed_precision(samples, CPU)
    assert "24 tensors" in prove_checkpoint(samples, CPU, tmp_path)
    assert "bit for bit" in prove_resume(samples, CPU, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loader_that_repeats_photos_is_found(samples, monkeypatch) -> None:
    share = module.TrainLoader._share
    monkeypatch.setattr(module.TrainLoader, "_share", lambda self, order, _: share(self, order, 0))
    with pytest.raises(ProofError, match="different photos"):
        prove_batching(samples)


def test_ranks_that_take_the_same_photos_are_found(samples, monkeypatch) -> None:
    init = module.TrainLoader.__init__

    def same(self, samples, size, *, seed=0, rank=0, world=1) -> None:
        init(self, samples, size, seed=seed, rank=0, world=world)

    monkeypatch.setattr(module.TrainLoader, "__init__", same)
    with pytest.raises(ProofError, match="add up to batch 0"):
        prove_batching(samples)


def test_bytes_that_change_on_their_way_are_found(samples, monkeypatch) -> None:
    monkeypatch.setattr(module, "_to", lambda lab_u8, _: lab_u8.bitwise_xor(1))
    with pytest.raises(ProofError, match="other bytes"):
        prove_transfer(samples, CPU)


def test_a_wrong_scale_of_lightness_is_found(samples, monkeypatch) -> None:
    monkeypatch.setattr(module, "normalize_L", lambda L: L / 100)
    with pytest.raises(ProofError, match="is off by"):
        prove_transfer(samples, CPU)


@pytest.mark.parametrize("broken", ["no steps", "gradients of nothing"])
def test_a_training_that_learns_nothing_is_found(samples, monkeypatch, broken) -> None:
    monkeypatch.setattr(module, "STEPS", 10 if broken == "no steps" else 100)
    if broken == "no steps":
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    else:
        monkeypatch.setattr(module, "lightness", lambda x, _: torch.zeros(len(x), 1, 8, 8))
    with pytest.raises(ProofError, match="a constant answer has"):
        prove_learning(samples, CPU)


def test_autocast_that_does_nothing_is_found(samples, monkeypatch) -> None:
    monkeypatch.setattr(module, "autocast", lambda *_: contextlib.nullcontext())
    with pytest.raises(ProofError, match=r"ran in torch\.float32"):
        prove_mixed_precision(samples, CPU)


def test_bf16_that_answers_otherwise_is_found(samples, monkeypatch) -> None:
    monkeypatch.setattr(module, "BF16_TOLERANCE", 0.0)
    with pytest.raises(ProofError, match="differ by"):
        prove_mixed_precision(samples, CPU)


def test_a_disk_that_loses_bits_is_found(samples, monkeypatch, tmp_path) -> None:
    load = module.load_checkpoint

    def damaged(folder, **options):
        checkpoint = load(folder, **options)
        checkpoint.weights["early.bias"] = torch.nextafter(
            checkpoint.weights["early.bias"], torch.tensor(1.0)
        )
        return checkpoint

    monkeypatch.setattr(module, "load_checkpoint", damaged)
    with pytest.raises(ProofError, match=r"early\.bias changed in the checkpoint"):
        prove_checkpoint(samples, CPU, tmp_path)


@pytest.mark.parametrize("lost", ["restore_optimizer", "step"])
def test_a_resume_that_forgets_something_is_found(samples, monkeypatch, tmp_path, lost) -> None:
    if lost == "restore_optimizer":
        monkeypatch.setattr(module, lost, lambda *_: None)
    else:
        restore = Precursor.restore

        def from_the_epochs_start(self, folder) -> None:
            restore(self, folder)
            self.done -= self.done % len(self.loader)

        monkeypatch.setattr(Precursor, "restore", from_the_epochs_start)
    with pytest.raises(ProofError, match="never stopped"):
        prove_resume(samples, CPU, tmp_path)


@pytest.mark.slow
def test_two_processes_train_as_one(dataset: Path, tmp_path: Path) -> None:
    assert "two processes" in prove_ranks(open_store(dataset), tmp_path, "gloo")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "found"),
    [
        (ranks.apart, "differ between the ranks"),
        (ranks.unreachable, "no route to host"),
    ],
)
def test_ranks_that_do_not_work_together_are_found(dataset, tmp_path, job, found) -> None:
    with pytest.raises(ProofError, match=found):
        prove_ranks(open_store(dataset), tmp_path, "gloo", job)


def test_the_tolerance_between_ranks_lies_between_rounding_and_training_apart(
    samples: Samples,
) -> None:
    """Training on half of each batch ends far from training on all of it."""
    whole, half = Precursor(samples), Precursor(samples, rank=0, world=2)
    whole.train(STEPS_TOGETHER)
    half.train(STEPS_TOGETHER)
    assert module._differing(whole.weights(), half.weights(), 10 * module.RANK_TOLERANCE)


def test_the_first_samples_end_with_a_shard(dataset: Path) -> None:
    whole = Samples(dataset, "train")
    few = whole.first(5)
    first = int(whole.shard_counts[0])
    assert len(few) == first < len(whole)
    assert few.keys(np.arange(first)) == whole.keys(np.arange(first))
    assert len(whole.first(first)) == first
    assert len(whole.first(first + 1)) == int(whole.shard_counts[:2].sum())
    assert len(whole.first(10**9)) == len(whole)
