"""A validation that is begun and asked for later, and the precision that it is computed in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from colorcore.inference import scoring as module
from colorcore.inference.evaluate import evaluate
from colorcore.inference.scoring import PICTURES, Scoring, scoring_batch
from colorcore.models import build_model
from colorcore.step.precision import scoring_precision
from colorcore.training.state import FitData
from tests.colorcore.training.made_up import CPU, small_data


@pytest.fixture(scope="module")
def data() -> FitData:
    return small_data()


def begun(network: nn.Module, data: FitData) -> Scoring:
    return Scoring(network, data.val, data.palette, data.mean_ab, device=CPU)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("unet", channels=8, depth=2)
    nn.init.normal_(model.head.weight, std=1.0)  # type: ignore[union-attr, arg-type]
    return model


def test_float16_on_a_gpu_unless_the_recipe_asks_for_fp32():
    gpu = torch.device("cuda")
    assert [scoring_precision(gpu, each) for each in ("auto", "bf16", "fp16", "fp32")] == [
        "fp16", "fp16", "fp16", "fp32",
    ]  # fmt: skip
    assert {scoring_precision(CPU, each) for each in ("auto", "bf16", "fp16")} == {"fp32"}


def test_a_gpu_scores_more_photos_at_once_than_a_step_has():
    gpu = torch.device("cuda")
    assert [scoring_batch(gpu, batch) for batch in (1, 16, 64)] == [32, 32, 128]
    assert scoring_batch(CPU, 64) == 32


def test_how_many_photos_are_scored_at_once_changes_no_score(data: FitData):
    model = network()
    whole, parts = (
        Scoring(model, data.val, data.palette, data.mean_ab, device=CPU, batch=batch).result()
        for batch in (32, 3)
    )
    assert parts.scores == pytest.approx(whole.scores, rel=1e-6)
    assert torch.allclose(parts.pairs, whole.pairs, atol=1e-4)


def test_float16_scores_as_float32_does(data: FitData, monkeypatch: pytest.MonkeyPatch):
    """To four digits; bf16 does not."""
    model = network()
    exact = begun(model, data).result()
    for precision, tolerance in (("fp16", 1e-4), ("bf16", 1e-2)):
        monkeypatch.setattr(module, "scoring_precision", lambda *_, p=precision: p)
        found = begun(model, data).result()
        assert found.scores != exact.scores
        assert found.scores == pytest.approx(exact.scores, rel=tolerance)
        assert found.pairs.dtype == torch.float32
        assert len(found.pairs) == min(PICTURES, len(data.val))


def test_what_overflows_in_float16_is_scored_in_float32(
    data: FitData, monkeypatch: pytest.MonkeyPatch
):
    """A batch norm that divides by nearly nothing; the answer is finite in float32."""

    class Wild(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calmed = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1)
            nn.init.constant_(self.conv.weight, 1e6)
            nn.init.constant_(self.calmed.weight, 1e-6)

        def forward(self, L_norm: torch.Tensor) -> dict[str, torch.Tensor]:
            large = self.conv(L_norm)
            return {"ab": self.calmed(large - large.mean()).float()}

    ran: list[str] = []

    def watched(*args: Any, precision: str, **more: Any) -> Any:
        ran.append(precision)
        return evaluate(*args, precision=precision, **more)

    wild = Wild()
    exact = begun(wild, data).result().scores
    monkeypatch.setattr(module, "evaluate", watched)
    monkeypatch.setattr(module, "scoring_precision", lambda *_: "fp16")
    assert begun(wild, data).result().scores == exact
    assert ran == ["fp16", "fp32"]


def test_scores_are_those_of_the_network_when_it_was_begun(data: FitData):
    model = network()
    expected = begun(model, data).result().scores
    scoring = begun(model, data)
    nn.init.zeros_(model.head.weight)  # type: ignore[union-attr, arg-type]
    assert scoring.result().scores == expected
