"""An exported ONNX file in the place of a checkpoint and its network, for scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from colorcore.checkpoints.checkpoint import Checkpoint
from colorcore.color.bins import TEMPERATURE
from colorcore.color.palette import Palette
from colorcore.colorizing.onnx_facts import OnnxFileError
from colorcore.colorizing.onnx_file import load_onnx
from colorcore.recipes.recipe import RecipeError, parse_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.colorizing.onnx_file import OnnxColorizer
    from colorcore.decoding import Decoding
    from colorcore.models.prediction import Prediction


def load_exported(place: str | Path, device: str) -> tuple[Checkpoint, nn.Module]:
    """What an exported file tells of its training, without weights, and its network.

    The graph runs on ``device`` if onnxruntime can, else on the CPU.

    Raises:
        OnnxFileError, StorageError: as :func:`colorcore.colorizing.onnx_file.load_onnx`.
    """
    colorizer = load_onnx(place)
    try:
        colorizer.to(device)
    except ValueError:
        colorizer.to("cpu")
    facts = colorizer.facts
    try:
        checkpoint = Checkpoint(
            recipe=parse_recipe(facts.recipe, str(place)),
            weights={},
            palette=Palette(**facts.palette, about=facts.about),
            mean_ab=facts.mean_ab,
            size=facts.size,
            dataset=facts.dataset,
            decoding=facts.decoding,
        )
    except (RecipeError, ValueError) as error:
        raise OnnxFileError(f"the metadata of {place} is damaged: {error}") from error
    kind = ExportedBins if colorizer.predicts_bins else ExportedNetwork
    return checkpoint, kind(colorizer)


class ExportedNetwork(nn.Module):
    """An exported graph as a network: L_norm in, a prediction with ab out, at chroma ×1."""

    def __init__(self, colorizer: OnnxColorizer) -> None:
        super().__init__()
        plain = replace(colorizer.facts.decoding, chroma=1.0)
        if plain.temperature is not None:
            plain = replace(plain, temperature=TEMPERATURE)
        self._colorizer, self._plain = colorizer.with_decoding(), plain

    def forward(self, L_norm: Tensor) -> Prediction:
        """L_norm (B, 1, H, W) -> ab (B, 2, H, W), ab units."""
        return {"ab": self.ab(L_norm, self._plain)}

    def ab(self, L_norm: Tensor, decoding: Decoding) -> Tensor:
        """The ab of a decoding."""
        self._colorizer.decoding = decoding
        made = self._colorizer.predict_ab(((L_norm + 1.0) * 50.0).cpu().numpy())
        return torch.from_numpy(made).to(L_norm.device)


class ExportedBins(ExportedNetwork):
    """An exported graph that has a temperature.

    Its logits stay inside. In their place the prediction carries the lightness, from which
    :meth:`decode` runs the graph once more; so it has no confidence.
    """

    def forward(self, L_norm: Tensor) -> Prediction:
        """As :class:`ExportedNetwork`, and what :meth:`decode` needs."""
        nothing = L_norm[:, :0]
        return {
            **super().forward(L_norm),
            "logits": L_norm,
            "residual": nothing,
            "confidence": nothing,
        }

    def use_palette(self, palette: Palette) -> None:
        """Not for a file, whose palette is fixed.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"an exported model keeps its palette, got one of {len(palette)} bins")

    def decode(
        self,
        logits: Tensor,
        residual: Tensor,
        confidence: Tensor,
        *,
        size: tuple[int, int] | None = None,
        temperature: float = TEMPERATURE,
    ) -> Tensor:
        """The ab (B, 2, H, W) at a temperature, of what a prediction has for ``logits``."""
        return self.ab(logits, replace(self._plain, temperature=temperature))
