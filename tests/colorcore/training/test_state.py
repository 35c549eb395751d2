"""One step of a training: its start, its gradients, precision and averaged weights."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from colorcore.checkpoints.checkpoint import (
    load_checkpoint,
    save_checkpoint,
)
from colorcore.color.lab import decode_lab
from colorcore.inference.evaluate import evaluate
from colorcore.losses import build_terms
from colorcore.losses.term import LossError
from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe, recipe_names
from colorcore.step.precision import autocast
from colorcore.training import state as state_module
from colorcore.training.events import StepEvent, TrainingDivergedError
from colorcore.training.fit import fit, forward_backward, train_step
from colorcore.training.state import FitData, Training
from tests.colorcore.losses.conftest import made_up_weights
from tests.colorcore.training.made_up import (
    CPU,
    EVERYTHING_RANDOM,
    JUDGED,
    Diary,
    close,
    diverging,
    recipe_of,
    weights_of,
)


@pytest.mark.slow
def test_a_model_that_answers_in_bins_starts_from_palette_and_pretrained_weights(
    data: FitData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def load_torchvision(encoder: nn.Module, path: str) -> None:
        assert path == "weights.pth"
        nn.init.constant_(encoder.conv1.weight, 0.25)

    monkeypatch.setattr("colorcore.blocks.resnet34.ResNet34.load_torchvision", load_torchvision)
    model = "model={name = 'resnet-unet', channels = 4, bins = 8, encoder_weights = 'weights.pth'}"
    recipe = load_recipe("simple", [model, "data.batch=4"])
    training = Training(recipe, data, CPU, None)
    for network in (training.model, training.average):
        assert np.array_equal(network.centroids.numpy(), data.palette.centroids)
        assert (network.encoder.conv1.weight == 0.25).all()
    # A checkpoint carries all of that: neither is needed to colorize, nor to go on.
    save_checkpoint(training.checkpoint(), tmp_path)
    monkeypatch.undo()
    checkpoint = load_checkpoint(tmp_path, training=True)
    assert np.array_equal(checkpoint.model().centroids.numpy(), data.palette.centroids)
    resumed = Training(recipe, data, CPU, checkpoint)
    assert (resumed.model.encoder.conv1.weight == 0.25).all()
    with pytest.raises(ValueError, match=r"encoder_weights: cannot read weights\.pth"):
        Training(recipe, data, CPU, None)


def test_model_and_average_start_from_given_weights(data: FitData):
    torch.manual_seed(7)
    given = build_model("unet", channels=4, depth=2).state_dict()
    training = Training(recipe_of(), data, torch.device("cpu"), None, given)
    for network in (training.model, training.average):
        assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        Training(recipe_of(), data, torch.device("cpu"), None, {})


def test_a_palette_of_another_size_is_refused(data: FitData):
    recipe = load_recipe("simple", ["model={name = 'resnet-unet', channels = 4, bins = 9}"])
    with pytest.raises(ValueError, match=r"expected a palette of 9 bins.*got one of 8"):
        Training(recipe, data, CPU, None)


def test_photos_too_small_for_the_discriminators_are_refused(data: FitData):
    with pytest.raises(LossError, match="at least 64 pixels per side for 4 discriminators, got 32"):
        Training(recipe_of(*JUDGED, "discriminator.scales=4"), data, CPU, None)


@pytest.mark.parametrize(
    ("name", "net"),
    [*((name, "alex") for name in recipe_names()), ("guide", "lite0"), ("enhanced", "lite0")],
)
def test_every_recipe_takes_a_step(name: str, net: str, data: FitData, tmp_path: Path):
    """Each term says something finite and every weight gets a gradient.

    The pretrained weights of AlexNet are made up here, those of EfficientNet-Lite0 are real.
    """
    judge = ["discriminator.channels=4"] if "adversarial" in load_recipe(name).loss else []
    perceptual = []
    if "perceptual" in load_recipe(name).loss:
        options = "loss_options.perceptual"
        perceptual = [f"{options}.net={net}"]
        if net == "alex":
            torch.save(made_up_weights("alex"), tmp_path / "alex.pth")
            perceptual.append(f"{options}.weights={tmp_path / 'alex.pth'}")
    recipe = load_recipe(name, ["model.channels=4", "data.batch=4", *judge, *perceptual])
    training = Training(recipe, data, CPU, None)
    loss, terms, _ = train_step(training, next(iter(training.loader.epoch(0))))
    assert math.isfinite(loss)
    expected = {*recipe.loss, *(["discriminator"] if judge else [])}
    assert set(terms) == expected
    assert all(math.isfinite(value) for value in terms.values())
    learning = [each for each in training.model.parameters() if each.requires_grad]
    assert len(training.optimizer.state) == len(learning) > 0


@pytest.mark.parametrize(
    "setting", ["model.dropout=0.5", "data.flip=true", "data.crop=0.5", "data.jitter=0.3"]
)
def test_ranks_and_steps_draw_different_random_numbers(data: FitData, setting: str):
    """The same photos and weights; what differs is the step's number, or the rank's."""
    losses = []
    for rank, step in ((0, 0), (0, 0), (1, 0), (0, 1)):
        training = Training(recipe_of("data.batch=16", "data.flip=false", setting), data, CPU, None)
        batch = next(iter(training.loader.epoch(0)))
        training.rank, training.step_in_epoch = rank, step
        losses.append(float(train_step(training, batch)[0]))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_targets_are_blended_as_the_features_are(data: FitData):
    """The Huber term by hand, between a prediction and the blend that its shares name."""
    recipe = load_recipe("lite0", ["data.batch=4", "model.channels=4", "model.mixup=0.5"])
    training = Training(recipe, data, CPU, None)
    lab = decode_lab(data.train.read(np.arange(4)))
    torch.manual_seed(5)
    prediction = training.forward(lab)
    shares = prediction["shares"][:, None, None, None]
    assert float(shares.min()) > 0
    target = (1 - shares) * lab + shares * lab[[1, 2, 3, 0]]
    terms = build_terms(recipe.loss, {}, data.palette)
    expected = terms({"ab": prediction["ab"]}, target)[0]
    loss, _ = training.losses(prediction, lab)
    torch.testing.assert_close(loss, expected)
    assert float(loss) != float(terms(prediction, lab)[0])


def test_the_average_is_that_of_the_formula(data: FitData):
    """avg ← d·avg + (1 − d)·now with d = min(ema, (1 + n) / (10 + n)), buffers included."""
    training = Training(recipe_of("train.ema=0.2", "optim.lr=0.1"), data, CPU, None)
    by_hand = {name: value.double() for name, value in training.model.state_dict().items()}
    decays = []
    for n, batch in enumerate(training.loader.epoch(0)):
        train_step(training, batch)
        decays.append(d := min(0.2, (1 + n) / (10 + n)))
        for name, value in training.model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                by_hand[name] = value.double()
            else:
                by_hand[name] = d * by_hand[name] + (1 - d) * value.double()
    assert decays == pytest.approx([1 / 10, 2 / 11, 0.2, 0.2, 0.2])
    average = training.average.state_dict()
    assert any(name.endswith("running_var") for name in average)
    assert average.keys() == by_hand.keys()
    for name, value in average.items():
        torch.testing.assert_close(value.double(), by_hand[name], atol=1e-6, rtol=1e-5)
        if value.dtype.is_floating_point:
            assert not torch.equal(value, training.model.state_dict()[name]), name
    assert average["encoder.0.1.num_batches_tracked"] == 5


def test_the_average_is_what_is_scored_and_saved(data: FitData, tmp_path: Path):
    training = Training(recipe_of("optim.lr=0.1"), data, CPU, None)
    for batch in training.loader.epoch(0):
        train_step(training, batch)
    scores = training.end_validation(training.begin_validation()).scores
    average, raw = (
        evaluate(model, [data.val.lab_u8], data.palette)[0].compute()  # type: ignore[attr-defined]
        for model in (training.average, training.model)
    )
    assert scores == pytest.approx(average, rel=1e-5)
    assert scores["psnr"] != pytest.approx(raw["psnr"], rel=1e-5)
    save_checkpoint(training.checkpoint(), tmp_path / "last")
    saved = load_checkpoint(tmp_path / "last").weights
    assert torch.equal(saved["head.weight"], training.average.state_dict()["head.weight"])


@pytest.mark.slow
def test_accumulating_over_halves_is_training_on_the_whole(data: FitData, tmp_path: Path):
    """With group norm, whose answer for a photo does not depend on the others."""
    for parts in (1, 2):
        recipe = recipe_of("model.norm=group", f"train.accumulate={parts}", *EVERYTHING_RANDOM[1:])
        fit(recipe, data, tmp_path / str(parts))
    close(weights_of(tmp_path / "1/last"), weights_of(tmp_path / "2/last"))


def test_unequal_parts_of_a_batch_weigh_by_their_photos(data: FitData):
    """As a rank's share of a batch may be: the gradient is that of the mean over its photos."""
    lab = decode_lab(data.val.lab_u8)  # type: ignore[attr-defined]
    assert len(lab) == 7
    gradients, losses = [], []
    for parts in (1, 2):
        recipe = recipe_of("model.norm=group", f"train.accumulate={parts}", "loss.ab_l1=0.1")
        training = Training(recipe, data, CPU, None)
        total, terms = forward_backward(training, lab)
        gradients.append([p.grad for p in training.model.parameters()])
        losses.append({"total": total, **terms})
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(("clip", "kept"), [("1e-3", 1e-3), ("none", None), ("1e6", None)])
def test_gradients_are_clipped_to_the_norm_of_the_recipe(
    data: FitData, clip: str, kept: float | None
):
    """After one step AdamW's first moment is (1 − β₁) times the gradient that it was given."""
    training = Training(recipe_of(f"optim.clip={clip}"), data, CPU, None)
    _, _, norm = train_step(training, next(iter(training.loader.epoch(0))))
    moments = [state["exp_avg"] for state in training.optimizer.state.values()]
    given = math.sqrt(sum(float(m.double().square().sum()) for m in moments)) / 0.1
    assert norm > 1e-3
    assert given == pytest.approx(kept if kept is not None else float(norm), rel=1e-3)


def cpu_flags() -> set[str]:
    """The instruction sets of this CPU, as Linux lists them; none elsewhere."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return {word for line in lines if line.startswith("flags") for word in line.split()}


@pytest.mark.parametrize(
    ("name", "faster"), [("avx512_bf16", True), ("amx_bf16", True), ("", False)]
)
def test_bf16_is_chosen_by_the_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, name: str, faster: bool
):
    """AVX-512 alone is no reason: oneDNN would convert each number."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, name: True})
    with autocast(CPU, "auto"):
        assert torch.is_autocast_enabled("cpu") == faster


def test_half_precision_is_nearly_fp32_and_its_weights_stay_fp32(data: FitData):
    """Convolutions compute in half precision, which their outputs' type shows on any CPU.

    The loss does not: averaged over all pixels, its rounding errors may cancel to the last bit.
    "auto" is bf16 where the CPU has instructions for it.
    """
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    faster = "bf16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "fp32"
    expected["auto"] = expected[faster]
    losses = {}
    for precision, computes in expected.items():
        training = Training(recipe_of(f"train.precision={precision}"), data, CPU, None)
        computed: set[torch.dtype] = set()
        for layer in training.model.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_hook(lambda _, __, output, to=computed: to.add(output.dtype))
        losses[precision] = float(train_step(training, next(iter(training.loader.epoch(0))))[0])
        assert computed == {computes}
        assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert losses["auto"] == losses[faster]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.003)


def test_a_model_does_not_listen_to_a_discriminator_that_warms_up(data: FitData):
    """Four of five steps: the model is as without one, while the discriminator learns."""

    def after_four_steps(*overrides: str) -> Training:
        training = Training(recipe_of("train.epochs=1", *overrides), data, CPU, None)
        for batch in list(training.loader.epoch(0))[:4]:
            train_step(training, batch)
        return training

    alone = after_four_steps().model.state_dict()
    beside = after_four_steps(*JUDGED, "discriminator.warmup=0.8")
    listening = after_four_steps(*JUDGED, "discriminator.warmup=0.4")
    for name, value in beside.model.state_dict().items():
        assert torch.equal(value, alone[name]), name
    assert not torch.equal(listening.model.state_dict()["head.weight"], alone["head.weight"])
    start = Training(recipe_of(*JUDGED), data, CPU, None).adversary
    assert start is not None
    assert beside.adversary is not None
    for before, now in zip(
        start.model.parameters(), beside.adversary.model.parameters(), strict=True
    ):
        # The last biases see a loss that pushes photos up as much as answers down.
        assert now.shape == (1,) or not torch.equal(before, now)


def scaled_from(monkeypatch: pytest.MonkeyPatch, scale: float) -> list[torch.amp.GradScaler]:
    """Make trainings start with that scale; returns the list that collects their scalers."""
    made: list[torch.amp.GradScaler] = []
    original = torch.amp.GradScaler

    def build(device: str, *, enabled: bool) -> torch.amp.GradScaler:
        made.append(original(device, init_scale=scale, enabled=enabled))
        return made[-1]

    monkeypatch.setattr(torch.amp, "GradScaler", build)
    return made


FP16 = ("train.precision=fp16", "train.epochs=1")


def test_a_step_that_overflows_is_left_out_and_the_next_one_is_scaled_less(
    data: FitData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    class Scales(Diary):
        def on_step(self, event: StepEvent) -> None:
            super().on_step(event)
            scales.append(scalers[0].get_scale())

    monkeypatch.setattr(state_module, "build_terms", diverging(2, lambda ab: (ab * 0).sqrt().sum()))
    scalers, scales = scaled_from(monkeypatch, 256.0), []
    fit(recipe_of(*FP16), data, tmp_path, observers=[seen := Scales()])
    finite = [math.isfinite(step.grad_norm) for step in seen.steps]
    assert finite == [True, False, True, True, True]
    assert scales == [256.0, *[128.0] * 4]
    last = load_checkpoint(tmp_path / "last", training=True)
    assert all(value.isfinite().all() for value in last.training.values())
    steps = [value for name, value in last.training.items() if name.endswith(".step")]
    assert steps
    assert all(float(step) == 4 for step in steps)


def test_gradients_that_no_scale_makes_finite_stop_the_run(
    data: FitData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(state_module, "build_terms", diverging(1, lambda ab: (ab * 0).sqrt().sum()))
    scaled_from(monkeypatch, 1.0)
    with pytest.raises(TrainingDivergedError, match=r"gradient nan at step 1; lower optim\.lr"):
        fit(recipe_of(*FP16), data, tmp_path)
