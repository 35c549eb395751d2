"""The bytes of an exported file: graph, default settings, and what it says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from colorcore import __version__
from colorcore.checkpoints.card import start_weights
from colorcore.colorizing.onnx_facts import MAX_BYTES, OnnxFacts, read_facts
from colorcore.colorizing.onnx_file import OnnxColorizer
from colorcore.export.checks import ExportError
from colorcore.export.graph import finished, settings_of
from colorcore.models.decoding import completed

if TYPE_CHECKING:
    from torch import nn

    from colorcore.checkpoints.checkpoint import Checkpoint


def facts_for(
    checkpoint: Checkpoint, network: nn.Module, changes: Mapping[str, Any] | None = None
) -> OnnxFacts:
    """What the exported file of a checkpoint says; ``changes`` is what was done to its network."""
    palette = checkpoint.palette
    return OnnxFacts(
        model=type(network).__name__,
        size=checkpoint.size,
        decoding=completed(network, checkpoint.decoding),
        recipe=checkpoint.recipe.values(),
        dataset=checkpoint.dataset,
        mean_ab=checkpoint.mean_ab,
        palette={name: getattr(palette, name) for name in ("centroids", "priors", "weights")},
        about=palette.about,
        changes=dict(changes or {}),
        licence="; ".join(start_weights(checkpoint)),
        version=__version__,
    )


def exported_bytes(
    checkpoint: Checkpoint, network: nn.Module, graph: Any, changes: Mapping[str, Any] | None = None
) -> bytes:
    """The file of a checkpoint's graph.

    Raises:
        ExportError: it would be larger than what is read again.
    """
    facts = facts_for(checkpoint, network, changes)
    model = finished(graph, settings_of(network, checkpoint.decoding), facts.as_metadata())
    if model.ByteSize() > MAX_BYTES:
        raise ExportError(
            f"expected a file of at most {MAX_BYTES:,} bytes, got {model.ByteSize():,}; train a "
            "narrower model (model.channels), or prune it"
        )
    data: bytes = model.SerializeToString()
    return data


def opened(data: bytes, threads: int | None = None) -> OnnxColorizer:
    """The colorizer of a file that was just made, which is checked as any other."""
    return OnnxColorizer(data, read_facts(data, "the new file"), threads=threads)
