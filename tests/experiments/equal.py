"""The sides of an experiment at equal colourfulness, with their spread over seeds.

A front is kept in JSON as {str(decoding): scores}, such as {"T 0.38, chroma ×1.2": {"psnr": …}}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from colorcore.color.palette import Palette
from colorcore.decoding import Decoding
from colorcore.inference.decoding_search import grid, sweep
from colorcore.inference.equal_colorfulness import SHARES, Reading, read_at_shares
from colorcore.scores.metrics import HIGHER_IS_BETTER
from colorcore.scores.spread import UNKNOWN, compare, spread_of

Front = Mapping[str, Mapping[str, float]]
COLUMNS = {"psnr": ("PSNR dB", 2), "delta_e2000": ("ΔE2000", 2), "auc_balanced": ("AuC bal.", 4)}
"""Scores that are compared: head and digits."""


def front_of(
    model: nn.Module, batches: Iterable[Tensor], palette: Palette, extra: Iterable[Decoding] = ()
) -> dict[str, dict[str, float]]:
    """A model's front on batches of stored LAB (B, 3, H, W) uint8, to be kept in JSON."""
    swept = sweep(model.eval(), batches, palette, grid(model, extra))
    return {str(decoding): evaluation.compute() for decoding, evaluation in swept.items()}


def parsed(front: Front) -> dict[Decoding, Mapping[str, float]]:
    """A kept front with its decodings.

    Raises:
        ValueError: a name is no decoding's.
    """
    return {_decoding(name): scores for name, scores in front.items()}


def _decoding(name: str) -> Decoding:
    parts = re.fullmatch(r"(?:T (?P<T>[\d.e-]+), )?chroma ×(?P<chroma>[\d.e-]+)", name)
    if parts is None:
        raise ValueError(f"expected a decoding such as 'T 0.38, chroma ×1.2', got {name!r}")
    temperature = float(parts["T"]) if parts["T"] else None
    return Decoding(temperature, float(parts["chroma"]))


def equal_table(
    title: str, sides: Mapping[str, Sequence[Front]], shares: Sequence[float] = SHARES
) -> Iterator[str]:
    """Every side at shares of the photos' colourfulness, in Markdown.

    ``sides`` holds a front per seed. Scores are mean ± standard deviation over seeds; each side is
    compared with the first one, where that can be read, by
    :func:`colorcore.scores.spread.compare`.
    """
    heads = [head for head, _ in COLUMNS.values()]
    yield f"| {title}, at equal CF | seeds | {' | '.join(heads)} | CF | CF gap | decoding |"
    yield "|---" * (len(heads) + 5) + "|"
    for share in shares:
        first: Sequence[Reading] = ()
        for number, (name, fronts) in enumerate(sides.items()):
            # A training that diverged has no front.
            found = [
                read_at_shares(parsed(front), [share])[share] if front else None for front in fronts
            ]
            read = [reading for reading in found if reading is not None]
            cells = [f"{name} at {share:.0%}", str(len(found))]
            if len(read) == len(found) > 0:
                first = read if number == 0 else first
                cells += [*_cells(read, first), _decodings(read)]
            else:
                cells += [""] * (len(COLUMNS) + 2)
                missing = f"{len(found) - len(read)} of {len(found)}"
                cells.append(f"out of reach for {missing}" if found else "no front was kept")
            yield f"| {' | '.join(cells)} |"
    if all(len(fronts) < 2 for fronts in sides.values()):
        yield f"\n{UNKNOWN}; no difference above can be told from chance."
    else:
        yield "\n±: standard deviation over seeds. Level: the means of a side and of the first one"
        yield "differ by no more than the larger of their two deviations."


def _cells(readings: Sequence[Reading], first: Sequence[Reading]) -> Iterator[str]:
    for metric, (_, digits) in COLUMNS.items():
        mine, theirs = ([each.scores[metric] for each in side] for side in (readings, first))
        cell = spread_of(mine).show(digits)
        if theirs and readings is not first:
            verdict = compare(mine, theirs, higher_is_better=HIGHER_IS_BETTER[metric])
            cell += "" if verdict == UNKNOWN else f", {verdict}"
        yield cell
    for metric in ("cf", "cf_gap"):
        yield spread_of([each.scores[metric] for each in readings]).show(1)


def _decodings(readings: Sequence[Reading]) -> str:
    """Such as "T 0.2, chroma ×1.77"; the temperatures of several seeds may differ."""
    temperatures = sorted({each.decoding.temperature or 0.0 for each in readings})
    chroma = spread_of([each.decoding.chroma for each in readings]).mean
    bins = [f"T {' or '.join(f'{t:g}' for t in temperatures)}"] if temperatures[-1] else []
    return ", ".join([*bins, f"chroma ×{chroma:.2f}"])
