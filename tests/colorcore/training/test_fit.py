"""The loop: it learns what a plain loop learns, reports it and keeps the best."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.color.lab import decode_lab
from colorcore.dataset.loader import TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.decoding import Decoding
from colorcore.inference import scoring
from colorcore.inference.decoding_search import grid, sweep
from colorcore.inference.equal_colorfulness import EQUAL, SHARE, read_at_shares
from colorcore.inference.evaluate import evaluate, score_with_baselines
from colorcore.models import MultiScaleDiscriminator, build_model
from colorcore.recipes.recipe import parse_recipe
from colorcore.recipes.schedule import lr_factor
from colorcore.training import state as state_module
from colorcore.training.events import (
    DecodingEvent,
    Observer,
    TrainingDivergedError,
    ValidationEvent,
)
from colorcore.training.fit import fit
from colorcore.training.state import FitData, Training
from tests.colorcore.training.made_up import (
    CPU,
    JUDGED,
    Diary,
    Killed,
    Killer,
    Photos,
    bytes_of,
    close,
    data_of,
    diverging,
    recipe_of,
    weights_of,
)


@pytest.mark.slow
@pytest.mark.parametrize(("term", "steps"), [("ab_l1", 150), ("weighted_mse", 250)])
def test_eight_photos_are_learned_by_heart(term: str, steps: int, tmp_path: Path):
    """Overfitting one batch: grey scores less than 20 dB on it, the network more than 30."""
    photos = Photos(8, seed=0)
    data = data_of(photos, photos)
    recipe = recipe_of(
        "model.channels=16",
        "data.batch=8",
        "data.flip=false",
        "optim.lr=1e-2",
        f"loss={{{term} = 1.0}}",
        f"train.epochs={steps}",
        f"train.eval_every={steps}",
    )
    diary = Diary()
    scores = fit(recipe, data, tmp_path, observers=[diary])
    assert diary.steps[-1].loss < diary.steps[0].loss / 12
    model = load_checkpoint(tmp_path / "last").model()
    beside = score_with_baselines(model, [photos.lab_u8], data.palette, data.mean_ab)
    assert beside["grey"]["psnr"] < 20.0
    assert beside["model"]["psnr"] > 30.0
    assert beside["model"]["auc"] > 0.95 > beside["grey"]["auc"] + 0.1
    del scores[EQUAL]  # which is not of one decoding
    assert beside["model"] == pytest.approx(scores, rel=1e-5)


def test_a_training_is_this_plain_loop(data: FitData, tmp_path: Path):
    """The same by hand: PyTorch's scheduler and AdamW, the batches that the loader plans."""
    recipe = recipe_of(
        "data.flip=false", "optim.weight_decay=0.3", "optim.betas=[0.7, 0.8]", "optim.clip=0.1"
    )
    fit(recipe, data, tmp_path)
    torch.manual_seed(recipe.train.seed)
    model = build_model("unet", channels=4, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3, betas=(0.7, 0.8))
    schedule = OneCycleLR(optimizer, 1e-3, total_steps=15, pct_start=0.1, cycle_momentum=False)
    plan = TrainLoader(data.train, 4, seed=recipe.train.seed)
    norms = []
    for step in range(15):
        positions = plan.positions(step // 5, step % 5)
        lab = decode_lab(data.train.read(positions))
        ab = model(lab[:, :1] / 50 - 1)["ab"]
        chroma = lab[:, 1:].square().sum(1, keepdim=True).sqrt()
        weight = 0.5 + (chroma / 40).clamp(max=1)
        loss = (weight * ((ab - lab[:, 1:]) / 128).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        optimizer.step()
        if step < 14:
            schedule.step()
    assert max(norms) > 0.1  # so that clipping did something
    raw = load_checkpoint(tmp_path / "last", training=True).training
    close(
        {f"model.{k}": v for k, v in model.state_dict().items()},
        {k: v for k, v in raw.items() if k.startswith("model.")},
    )


def test_another_network_is_trained_in_the_place_of_the_recipes(data: FitData, tmp_path: Path):
    """It starts from its own weights, and its copy is what is saved and decoded at the end."""
    torch.manual_seed(7)
    network = build_model("unet", channels=6, depth=1, norm="group")
    nn.init.normal_(network.head.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    hardly = ("optim.lr=1e-12", "optim.weight_decay=0", "train.epochs=1")
    scores = fit(recipe_of(*hardly), data, tmp_path / "hardly", network=network)
    close(load_checkpoint(tmp_path / "hardly").weights, before)
    close(network.state_dict(), before)
    learned = fit(recipe_of("optim.lr=1e-2"), data, tmp_path / "learned", network=network)
    assert learned["ab_l1"] < scores["ab_l1"]
    best = load_checkpoint(tmp_path / "learned")
    assert best.decoded
    assert {k: v.shape for k, v in best.weights.items()} == {k: v.shape for k, v in before.items()}
    close(network.state_dict(), before)


@pytest.mark.slow
def test_shards_on_disk_train_as_the_same_photos_in_memory(dataset: Path, tmp_path: Path):
    """Which is also what makes the photos in memory, of all other tests here, fair ones."""
    splits = [Samples(dataset, split) for split in ("train", "val")]
    memory = []
    for samples in splits:
        photos = Photos(1, seed=0, size=samples.size)
        photos.lab_u8 = samples.read(np.arange(len(samples)))
        photos.shard_counts = samples.shard_counts
        memory.append(photos)
    in_memory = data_of(*memory)
    on_disk = replace(in_memory, train=splits[0], val=splits[1])
    for name, data in (("memory", in_memory), ("disk", on_disk)):
        fit(recipe_of("train.epochs=2"), data, tmp_path / name)
    assert len(splits[0]) > 8
    assert bytes_of(tmp_path / "memory") == bytes_of(tmp_path / "disk")


def test_observers_see_every_step_once_with_its_learning_rate(data: FitData, tmp_path: Path):
    recipe = recipe_of("train.epochs=5", "train.eval_every=2", "loss.ab_l1=0.5")
    diary = Diary()
    scores = fit(recipe, data, tmp_path, observers=[diary])
    assert diary.starts == [(25, 0)]
    assert [event.step for event in diary.steps] == list(range(1, 26))
    assert [event.epoch for event in diary.steps] == [n // 5 for n in range(25)]
    assert [event.lr for event in diary.steps] == [
        recipe.optim.lr * lr_factor(recipe.optim, n, 25) for n in range(25)
    ]
    for event in diary.steps:
        assert event.total_steps == 25
        assert list(event.terms) == ["weighted_mse", "ab_l1"]
        assert event.loss == pytest.approx(event.terms["weighted_mse"] + 0.5 * event.terms["ab_l1"])
        assert event.grad_norm > 0
        assert event.photos_per_s > 0
    assert [(event.epoch, event.step) for event in diary.validations] == [(2, 10), (4, 20), (5, 25)]
    assert diary.saved == diary.validations
    assert scores == diary.validations[-1].scores


def test_the_same_pictures_are_shown_each_time(data: FitData, tmp_path: Path):
    diary = Diary()
    fit(recipe_of("train.epochs=2"), data, tmp_path, observers=[diary])
    first, second = (event.pairs for event in diary.validations)
    true = decode_lab(data.val.lab_u8[: scoring.PICTURES])  # type: ignore[attr-defined]
    assert torch.equal(first[:, 1], true)
    assert torch.equal(second[:, 1], true)
    assert not torch.equal(first[:, 0], second[:, 0])


def test_a_validation_is_saved_when_its_observers_hear_that_it_is(data: FitData, tmp_path: Path):
    class Reader(Observer):
        epochs: list[tuple[int, int]] = []  # noqa: RUF012

        def on_validation(self, event: ValidationEvent) -> None:
            self.before = load_checkpoint(tmp_path / "last").epoch if event.epoch > 1 else 0

        def on_saved(self, event: ValidationEvent) -> None:
            self.epochs.append((self.before, load_checkpoint(tmp_path / "last").epoch))

    fit(recipe_of(), data, tmp_path, observers=[reader := Reader()])
    assert reader.epochs == [(0, 1), (1, 2), (2, 3)]


def test_a_checkpoint_says_what_it_was_trained_on_and_scores_as_it_says(
    data: FitData, tmp_path: Path
):
    recipe = recipe_of()
    scores = fit(recipe, data, tmp_path, run_id="run-1")
    last = load_checkpoint(tmp_path / "last", training=True)
    assert (last.recipe, last.dataset, last.run_id) == (recipe, data.fingerprint, "run-1")
    assert (last.epoch, last.step, last.size, last.mean_ab) == (3, 0, 32, (1.5, -2.5))
    assert last.palette.fingerprint == data.palette.fingerprint
    assert last.scores == scores
    again, _ = evaluate(last.model(), [data.val.lab_u8], last.palette)  # type: ignore[attr-defined]
    assert again.compute() == pytest.approx(scores, rel=1e-5)


@pytest.mark.slow
def test_a_training_with_a_discriminator_is_this_plain_loop(data: FitData, tmp_path: Path):
    """By hand: both losses written out, both networks updated against each other as they were."""
    recipe = recipe_of(
        *JUDGED,
        "loss_options.adversarial.kind=least_squares",
        "discriminator.lr=3e-3",
        "discriminator.warmup=0.2",
        "data.flip=false",
        "optim.schedule=constant",
        "optim.warmup=0.5",
        "optim.clip=0.7",
    )
    diary = Diary()
    fit(recipe, data, tmp_path, observers=[diary])
    torch.manual_seed(recipe.train.seed)
    model = build_model("unet", channels=4, depth=2)
    build_model("unet", channels=4, depth=2)  # the average is built next
    judge = MultiScaleDiscriminator(channels=4, scales=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    other = torch.optim.Adam(judge.parameters(), lr=3e-3, betas=(0.5, 0.999))
    plan = TrainLoader(data.train, 4, seed=recipe.train.seed)
    losses = []
    for step in range(15):
        rate = min((step + 1) / 7.5, 1.0)
        optimizer.param_groups[0]["lr"], other.param_groups[0]["lr"] = 1e-3 * rate, 3e-3 * rate
        lab = decode_lab(data.train.read(plan.positions(step // 5, step % 5)))
        ab = model(lab[:, :1] / 50 - 1)["ab"]
        fake = torch.cat([lab[:, :1], ab], dim=1)
        halves = [scale.chunk(2) for scale in judge(torch.cat([lab, fake.detach()]))[0]]
        game = [((r - 1).square().mean() + f.square().mean()) / 2 for r, f in halves]
        (sum(game) / 2).backward()
        judge.eval()
        (logits, features), (_, real) = judge(fake, features=True), judge(lab, features=True)
        judge.train()
        chroma = lab[:, 1:].square().sum(1, keepdim=True).sqrt()
        loss = ((0.5 + (chroma / 40).clamp(max=1)) * ((ab - lab[:, 1:]) / 128).square()).mean()
        fooled = sum((f - 1).square().mean() / 2 for f in logits) / 2
        matched = sum(
            (r.detach() - f).abs().mean()
            for pair in zip(real, features, strict=True)
            for r, f in zip(*pair, strict=True)
        )
        share = min(max((step + 1 - 3) / 3, 0), 1)  # alone for 3 steps, faded in over 3
        parts = torch.autograd.grad(
            loss + share * (0.1 * fooled + 0.5 * matched / 2), list(model.parameters())
        )
        for parameter, gradient in zip(model.parameters(), parts, strict=True):
            parameter.grad = gradient
        for network, one in ((model, optimizer), (judge, other)):
            nn.utils.clip_grad_norm_(network.parameters(), 0.7)
            one.step()
            one.zero_grad()
        losses.append([x.item() for x in (loss, fooled, matched / 2, sum(game) / 2)])
    names = ("weighted_mse", "adversarial", "feature_matching", "discriminator")
    seen = [[event.terms[name] for name in names] for event in diary.steps]
    np.testing.assert_allclose(seen, losses, rtol=2e-3, atol=1e-5)
    by_hand = {f"model.{k}": v for k, v in model.state_dict().items()}
    by_hand |= {f"discriminator.{k}": v for k, v in judge.state_dict().items()}
    trained = load_checkpoint(tmp_path / "last", training=True).training
    for name, value in by_hand.items():
        torch.testing.assert_close(trained[name], value, atol=1e-3, rtol=1e-2, msg=name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ab: ab.mean() * math.nan, "the loss is nan"),
        (lambda ab: ab.mean() + math.inf, "the loss is inf"),
        (lambda ab: (ab * 0).sqrt().sum(), "the norm of its gradient nan"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_a_loss_that_is_no_number_stops_the_run(
    data: FitData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Tensor], Tensor],
    message: str,
):
    """At the third step of the second epoch; what was saved before is left as it was."""
    monkeypatch.setattr(state_module, "build_terms", diverging(8, spoil))
    diary = Diary()
    with pytest.raises(TrainingDivergedError, match=message) as stop:
        fit(recipe_of(), data, tmp_path, observers=[diary])
    assert "at step 8; lower optim.lr (now 0.001) or set optim.clip" in str(stop.value)
    batch = Training(recipe_of(), data, CPU, None).loader.positions(1, 2)
    assert f"the batch held {', '.join(f'photo-{n}' for n in batch)}" in str(stop.value)
    assert [event.step for event in diary.steps] == list(range(1, 8))
    assert load_checkpoint(tmp_path / "last").epoch == 1
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "last").values())


@pytest.mark.slow
def test_a_model_of_bins_is_trained_with_the_datasets_palette(data: FitData, tmp_path: Path):
    parts = {
        "model": {"name": "resnet-unet", "channels": 4, "bins": 8},
        "loss": {"bins_ce": 1.0, "histogram": 0.5, "confidence": 0.1, "residual": 0.5},
        "data": {"batch": 4},
        "train": {"epochs": 1},
    }
    recipe = parse_recipe(parts, "here")
    diary = Diary()
    fit(recipe, data, tmp_path, observers=[diary])
    assert set(diary.steps[0].terms) == set(parts["loss"])
    assert all(math.isfinite(value) for step in diary.steps for value in step.terms.values())
    checkpoint = load_checkpoint(tmp_path / "last")
    np.testing.assert_allclose(checkpoint.weights["centroids"].numpy(), data.palette.centroids)
    L_norm = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    assert checkpoint.model()(L_norm)["logits"].shape == (1, 8, 8, 8)


class Judged:
    """An evaluation with the score that it was given."""

    def __init__(self, metric: str, score: float) -> None:
        self.scores = {metric: score}

    def compute(self) -> dict[str, float]:
        return self.scores


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("psnr", [3.0, 5.0, 5.0, 4.0], [True, True, False, False]),
        ("auc_balanced", [0.9, 0.2, 0.3, 0.91], [True, False, False, True]),
        ("ab_l1", [3.0, 5.0, 2.0, 2.0], [True, False, True, False]),
        ("cf_gap", [3.0, 2.0, 1.0, 4.0], [True, True, True, False]),
        (EQUAL, [0.0, 0.7, 0.8, 0.8], [True, True, True, False]),
    ],
)
def test_the_best_is_chosen_by_the_metric_in_its_direction(
    data: FitData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    scores: list[float],
    best: list[bool],
):
    """Also over a resume after the second epoch, and a draw is no improvement."""
    verdicts = iter(scores)
    monkeypatch.setattr(
        scoring, "evaluate", lambda *_, **__: (Judged(metric, next(verdicts)), torch.empty(0))
    )
    recipe = recipe_of("train.epochs=4", f"train.metric={metric}")
    diary = Diary()
    with pytest.raises(Killed):
        fit(recipe, data, tmp_path, observers=[diary, Killer(12)])
    resume = load_checkpoint(tmp_path / "last", training=True)
    assert fit(recipe, data, tmp_path, resume=resume, observers=[diary]) == {metric: scores[-1]}
    assert [event.is_best for event in diary.validations] == best
    winner = max(epoch for epoch, is_best in enumerate(best, start=1) if is_best)
    checkpoint, last = load_checkpoint(tmp_path / "best"), load_checkpoint(tmp_path / "last")
    assert (checkpoint.epoch, checkpoint.scores) == (winner, {metric: scores[winner - 1]})
    assert checkpoint.best == last.best == scores[winner - 1]
    assert last.epoch == 4
    assert (tmp_path / "last/training.safetensors").exists()
    assert not (tmp_path / "best/training.safetensors").exists()


def test_the_decoding_of_the_best_is_chosen_at_the_end(data: FitData, tmp_path: Path):
    """By the recipe's metric: the colourfulness gap makes pale answers as vivid as may be."""
    diary = Diary()
    recipe = recipe_of("train.metric=cf_gap", "train.epochs=2")
    scores = fit(recipe, data, tmp_path, observers=[diary])
    best, last = load_checkpoint(tmp_path / "best"), load_checkpoint(tmp_path / "last")
    assert best.decoding == Decoding(None, 2.0)
    assert best.decoded["cf_gap"] < best.scores["cf_gap"]
    assert diary.decodings == [DecodingEvent(10, best.decoding, best.decoded, best.equal_cf)]
    beside = score_with_baselines(
        best.model(), [data.val.lab_u8], data.palette, data.mean_ab, decoding=best.decoding
    )
    equal = best.decoded.pop(EQUAL)
    assert beside["model"] == pytest.approx(best.decoded, rel=1e-5)
    front = sweep(best.model(), [data.val.lab_u8], data.palette, grid(best.model()))
    at = read_at_shares({one: made.compute() for one, made in front.items()}, [SHARE])[SHARE]
    assert best.equal_cf == pytest.approx(at.scores if at else {}, rel=1e-5)
    assert equal == pytest.approx(at.scores["auc_balanced"] if at else 0.0, rel=1e-5)
    # The curve, and what goes on from it, stay those of the model itself.
    assert (last.decoding, last.decoded, last.scores) == (Decoding(), {}, scores)
    own, _ = evaluate(best.model(), [data.val.lab_u8], data.palette)
    assert own.compute() == pytest.approx(best.scores, rel=1e-5)


def test_the_best_gets_a_card_at_the_end(data: FitData, tmp_path: Path):
    fit(recipe_of("train.epochs=2"), data, tmp_path, origin="a model of the museum")
    best, last = load_checkpoint(tmp_path / "best"), load_checkpoint(tmp_path / "last")
    assert (tmp_path / "best/MODEL_CARD.md").read_text(encoding="utf-8") == best.card
    assert not (tmp_path / "last/MODEL_CARD.md").exists()
    assert last.card == ""
    assert f"Trained on** {len(data.train)} photos" in best.card
    assert "a model of the museum; its licence holds" in best.card
    beside = score_with_baselines(
        best.model(), [data.val.lab_u8], data.palette, data.mean_ab, decoding=best.decoding
    )
    for title, row in (("constant mean colour", "constant"), ("this model", "model")):
        scores = beside[row]
        assert f"| {title} | {scores['psnr']:.2f} | {scores['delta_e2000']:.2f} |" in best.card


def test_where_weights_are_from_is_known_after_a_resume(data: FitData, tmp_path: Path):
    with pytest.raises(Killed):
        fit(recipe_of("train.epochs=2"), data, tmp_path, origin="museum", observers=[Killer(7)])
    resume = load_checkpoint(tmp_path / "last", training=True)
    fit(recipe_of("train.epochs=2"), data, tmp_path, resume=resume)
    assert "**Start weights**: museum;" in load_checkpoint(tmp_path / "best").card


WORSENING = (
    "train.metric=cf_gap", "train.epochs=8", "optim.lr=0.1", "optim.warmup=0", "train.ema=0",
)  # fmt: skip
"""So fast that colours are glaring at first and grey later: no gap is as small as the first."""


def out_of_patience(validations: list[ValidationEvent], patience: int) -> int:
    """The number of validations after which that many in a row were not the best so far."""
    bests = "".join("x" if each.is_best else "." for each in validations)
    return bests.index("." * patience) + patience


@pytest.mark.slow
def test_a_training_out_of_patience_ends_with_that_validation(data: FitData, tmp_path: Path):
    patient, hasty, again = Diary(), Diary(), Diary()
    fit(recipe_of(*WORSENING), data, tmp_path / "patient", observers=[patient])
    recipe = recipe_of(*WORSENING, "train.patience=2")
    fit(recipe, data, tmp_path / "hasty", observers=[hasty])
    ends = out_of_patience(patient.validations, 2)
    assert ends < len(patient.validations) == 8
    whole, part = ([each.scores for each in diary.validations] for diary in (patient, hasty))
    assert part == whole[:ends]
    assert [each.is_last for each in hasty.validations] == [False] * (ends - 1) + [True]
    assert [each.is_last for each in patient.validations] == [False] * 7 + [True]
    assert len(hasty.decodings) == 1
    last = load_checkpoint(tmp_path / "hasty/last", training=True)
    assert (last.epoch, last.waited, last.is_last) == (ends, 2, True)
    assert load_checkpoint(tmp_path / "hasty/best").epoch == ends - 2
    # Resumed, it takes no step more.
    fit(recipe, data, tmp_path / "hasty", resume=last, observers=[again])
    assert (again.steps, again.validations) == ([], [])


@pytest.mark.slow
def test_a_resumed_training_remembers_how_long_it_has_waited(data: FitData, tmp_path: Path):
    recipe = recipe_of(*WORSENING, "train.patience=2")
    whole, rest = Diary(), Diary()
    fit(recipe, data, tmp_path / "whole", run_id="r", observers=[whole])
    killer = Killer(whole.steps[-1].step - 2)
    with pytest.raises(Killed):
        fit(recipe, data, tmp_path / "parts", run_id="r", observers=[killer])
    resume = load_checkpoint(tmp_path / "parts/last", training=True)
    assert (resume.waited, resume.is_last) == (1, False)
    fit(recipe, data, tmp_path / "parts", resume=resume, observers=[rest])
    assert len(rest.validations) == 1
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_the_best_of_a_game_is_not_from_before_it_began(data: FitData, tmp_path: Path):
    """Its warm-up and fading in take two of five epochs; the score is best after the first."""
    recipe = recipe_of(
        *JUDGED, "train.metric=cf_gap", "train.epochs=5", "discriminator.warmup=0.2",
        "optim.lr=0.1", "optim.warmup=0", "train.ema=0",
    )  # fmt: skip
    diary = Diary()
    fit(recipe, data, tmp_path, observers=[diary])
    gaps = [each.scores["cf_gap"] for each in diary.validations]
    assert min(gaps) == gaps[0]
    assert [each.is_best for each in diary.validations][:2] == [True, True]
    best = load_checkpoint(tmp_path / "best")
    played = min(range(1, 5), key=lambda number: gaps[number])
    assert best.epoch == played + 1 > 1
