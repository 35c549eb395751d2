"""What `cc eval` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from colorcore.decoding import Decoding
from colorcore.recipes.advice import Advised

if TYPE_CHECKING:
    from pathlib import Path

    from colorcore.comparison.bootstrap import Interval
    from colorcore.comparison.per_photo import Difference
    from colorcore.inference.equal_colorfulness import Reading
    from pipelines.pairing.outputs import OutputFolder


@dataclass(slots=True)
class SideReport:
    """One model, or one folder of outputs.

    kind        "model" or "outputs"
    decoding    None for outputs
    statistics  values from which signs are found: colours on these photos, and the losses of the
                training up to this checkpoint
    signs       those of outputs have no advice: nobody here can change their recipe
    outputs     what was found in the folder; None for models
    """

    name: str
    kind: str
    location: str
    decoding: Decoding | None = None
    size: int | None = None
    statistics: dict[str, float] = field(default_factory=dict)
    signs: tuple[Advised, ...] = ()
    outputs: OutputFolder | None = None


@dataclass(frozen=True, slots=True)
class EqualScores:
    """Sides at one share of the photos' mean CF.

    photos       number of photos these are of
    decodings    the chroma scale, and for bin models the temperature, of each side; None where a
                 side is never so vivid or never so pale
    scores       means over photos by side and metric
    intervals    their 95% intervals
    differences  of pairs of sides
    """

    share: float
    photos: int
    decodings: dict[str, Decoding | None]
    scores: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]]
    differences: list[Difference]


@dataclass(slots=True)
class FrontReport:
    """The scores of every setting of temperature and chroma of one model.

    optimal  settings that no other one dominates, i.e. is at least as good in PSNR, ΔE2000,
             balanced AuC and colourfulness gap, and better in one of them
    marked   the model's own setting ("default"), the checkpoint's ("stored") and the command
             line's ("asked")
    equal    the scores at shares of the photos' mean colourfulness, for comparing models; None
             where the model cannot be read, because it is never so vivid or never so pale
    """

    scores: dict[Decoding, dict[str, float]]
    optimal: list[Decoding]
    marked: dict[str, Decoding]
    picture: Path
    equal: dict[float, Reading | None]


@dataclass(slots=True)
class EvalReport:
    """Result of `cc eval`.

    scores       metrics of "grey", "constant" and each side; a model alone is "model"
    intervals    95% intervals of their means over photos
    differences  of pairs of models and outputs, and of a model alone and the baselines
    sides        models and outputs, in the order they were given
    size         pixels per side at which all were scored
    excluded     photos that were left out because a side has no output of them
    left_out     why the perceptual scores that were asked for are missing; "" if they are not
    caution      what to know before FID is believed; "" if there is nothing
    refused      number of refused photos, by reason
    damaged      damaged tars, each with what is wrong
    skipped      files that are not photos, by kind
    equal        several sides at shares of the photos' colourfulness
    fronts       models' fronts by side, on the photos of ``equal``
    details      what the HTML report shows beyond these scores; {} without one
    failed       drawings that could not be written, and why
    """

    scores: dict[str, dict[str, float]]
    size: int
    sides: list[SideReport] = field(default_factory=list)
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    excluded: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    picture: Path | None = None
    front: FrontReport | None = None
    equal: list[EqualScores] = field(default_factory=list)
    fronts: dict[str, dict[Decoding, dict[str, float]]] = field(default_factory=dict)
    front_picture: Path | None = None
    html: Path | None = None
    details: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: str = ""
    caution: str = ""

    @property
    def is_comparison(self) -> bool:
        """Whether more than one model or folder was scored."""
        return len(self.sides) > 1

    @property
    def photos(self) -> int:
        """Photos that were scored."""
        return int(self.scores["grey"]["photos"])

    @property
    def decoding(self) -> Decoding:
        """That of the first model."""
        return self.sides[0].decoding or Decoding()  # the first side is always a model

    @property
    def statistics(self) -> dict[str, float]:
        """Those of the first model."""
        return self.sides[0].statistics

    @property
    def signs(self) -> tuple[Advised, ...]:
        """Those of the first model."""
        return self.sides[0].signs


# -- as plain values -------------------------------------------------------------------------------


def record_of(report: EvalReport) -> dict[str, Any]:
    """The report as plain values: the record of ``--json``, of which the HTML report is made."""
    record: dict[str, Any] = {
        "photos": report.photos,
        "size": report.size,
        "scores": report.scores,
        "intervals": _intervals(report.intervals),
        "differences": [_difference(each) for each in report.differences],
        "sides": [_side(side) for side in report.sides],
        "decoding": asdict(report.decoding),
        "statistics": _finite(report.statistics),
        "signs": [each.as_record() for each in report.signs],
        "excluded": report.excluded,
        "refused": report.refused,
        "damaged": report.damaged,
        "skipped": report.skipped,
    }
    if report.left_out:
        record["left_out"] = report.left_out
    if report.caution:
        record["caution"] = report.caution
    if report.front:
        record |= {"front": front_rows(report.front), "equal_cf": _readings(report.front)}
    if report.equal:
        record["equal_cf"] = [_equal(each) for each in report.equal]
    if report.fronts:
        record["fronts"] = {
            name: [{**asdict(decoding), "scores": row} for decoding, row in front.items()]
            for name, front in report.fronts.items()
        }
    if report.details:
        record["details"] = report.details
    return record


def front_rows(front: FrontReport) -> list[dict[str, Any]]:
    """The settings of one model's front, with their scores and marks."""
    return [
        {
            **asdict(decoding),
            "scores": scores,
            "optimal": decoding in front.optimal,
            "marked": [name for name, marked in front.marked.items() if marked == decoding],
        }
        for decoding, scores in front.scores.items()
    ]


def _readings(front: FrontReport) -> list[dict[str, Any]]:
    return [
        {"share": share, **(asdict(reading) if reading else {"decoding": None, "scores": None})}
        for share, reading in front.equal.items()
    ]


def _equal(equal: EqualScores) -> dict[str, Any]:
    intervals = _intervals(equal.intervals)
    return {
        "share": equal.share,
        "photos": equal.photos,
        "sides": {
            name: decoding
            and {
                "decoding": asdict(decoding),
                "scores": equal.scores[name],
                "intervals": intervals.get(name, {}),
            }
            for name, decoding in equal.decodings.items()
        },
        "differences": [_difference(each) for each in equal.differences],
    }


def _side(side: SideReport) -> dict[str, Any]:
    outputs = side.outputs
    return {
        "name": side.name,
        "kind": side.kind,
        "location": side.location,
        "decoding": asdict(side.decoding) if side.decoding else None,
        "size": side.size,
        "statistics": _finite(side.statistics),
        "signs": [each.as_record() for each in side.signs],
        "outputs": outputs
        and {
            "matched": len(outputs.matches.outputs),
            "missing": outputs.matches.missing,
            "ambiguous": outputs.matches.ambiguous,
            "extra": outputs.matches.extra,
            "damaged": outputs.damaged,
            "resized": len(outputs.resized),
            "reshaped": len(outputs.reshaped),
        },
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {**asdict(difference), "interval": list(difference.interval)}


def _intervals(found: dict[str, dict[str, Interval]]) -> dict[str, dict[str, list[float]]]:
    return {
        side: {name: list(each) for name, each in intervals.items()}
        for side, intervals in found.items()
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in values.items()}
