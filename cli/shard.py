"""`cc shard`: folders of photos -> a dataset of LAB shards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cli.show import Advance
    from pipelines.shard import ShardProgress, ShardReport


def shard(
    places: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE... DATASET", help="Folders of photos, then the dataset."),
    ],
    size: Annotated[int, typer.Option(help="Side of a sample in pixels.")] = 256,
    min_colorfulness: Annotated[
        float, typer.Option(help="Hasler-Süsstrunk colourfulness a photo needs.")
    ] = 15.0,
    val_percent: Annotated[float, typer.Option(help="Share of photos held out, by content.")] = 5.0,
    photos_per_unit: Annotated[
        int, typer.Option(help="Photos that one task turns into shards.")
    ] = 250,
    max_pixels: Annotated[int, typer.Option(help="Refuse larger photos unread.")] = 100_000_000,
    max_damaged_percent: Annotated[
        float, typer.Option(help="More unreadable photos than this fail the command.")
    ] = 10.0,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster; default: this machine.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Turn photos into LAB shards, keeping only colourful ones.

    Run again, it does what is missing: interrupted units, and photos that are new.
    """
    from pydantic import ValidationError

    from cli import show
    from colorcore.dataset import ShardSettings
    from pipelines.errors import WrongCallError
    from pipelines.shard import shard as run

    if len(places) < 2:
        raise WrongCallError("expected SOURCE... DATASET, such as: cc shard ~/Pictures photos.data")
    *sources, dataset = places
    try:
        settings = ShardSettings(
            size=size,
            min_colorfulness=min_colorfulness,
            val_percent=val_percent,
            photos_per_unit=photos_per_unit,
            max_pixels=max_pixels,
        )
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise WrongCallError(f"--{flag}: {first['msg'].lower()}, got {first['input']}") from error
    with show.progress("shard") as advance:
        report = run(sources, dataset, settings, address=address, on_progress=_Display(advance))
    for unit, error_line in report.failed.items():
        show.warn(f"unit {unit} failed: {error_line}")
    if report.ignored:
        suffixes = ", ".join(f"{n} {suffix}" for suffix, n in sorted(report.ignored.items()))
        show.warn(f"left alone, no photos by their suffix: {suffixes}")
    if json:
        show.as_json(
            {
                "dataset": report.dataset,
                "photos": report.photos,
                "kept": report.kept,
                "refused": report.refused,
                "duplicates": report.duplicates,
                "new_photos": report.new_photos,
                "units": report.units,
                "failed_units": len(report.failed),
                "worker_cpu_s": round(report.worker_cpu_s, 3),
                "fingerprint": report.fingerprint,
            }
        )
    else:
        rows = [(f"kept for {split}", count) for split, count in sorted(report.kept.items())]
        reasons = sorted(report.refused.items(), key=lambda item: -item[1])
        rows += [(f"refused: {reason}", count) for reason, count in reasons]
        show.table(
            ["photos", "count", "share"],
            [(name, count, f"{count / report.photos:.1%}") for name, count in rows],
        )
        if report.duplicates:
            print(
                f"of the kept, {report.duplicates} are copies across units: the loader skips them"
            )
        if not report.new_photos and not report.failed:
            print(f"nothing to do: {report.dataset} is finished")
        elif report.fingerprint:
            print(f"dataset {report.dataset}, fingerprint {report.fingerprint}")
    return _exit_code(report, max_damaged_percent)


def _exit_code(report: ShardReport, max_damaged_percent: float) -> int:
    from cli import show

    if report.failed:
        show.warn(
            f"error: {len(report.failed)} of {report.units} units failed; run the command again"
        )
        return 1
    if not sum(report.kept.values()):
        show.warn("error: no photo was kept; see the reasons above, perhaps --min-colorfulness")
        return 1
    if report.damaged > report.photos * max_damaged_percent / 100:
        show.warn(
            f"error: {report.damaged} of {report.photos} photos are damaged, more than "
            f"{max_damaged_percent:g}%; look at {report.dataset}/rejected, "
            "or allow it with --max-damaged-percent"
        )
        return 1
    return 0


class _Display:
    """Turns the job's progress into photos/s and the share of refused photos."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._done_before = 0
        self._first: tuple[float, int] | None = None

    def __call__(self, progress: ShardProgress) -> None:
        """Show where the job stands; speed counts from the first unit that was done here."""
        now = time.monotonic()
        notes = []
        if self._first is None and 0 < self._done_before < progress.done:
            self._first = (now, progress.done)
        self._done_before = progress.done
        if self._first is not None and progress.done > self._first[1]:
            speed = (progress.done - self._first[1]) / max(now - self._first[0], 1e-9)
            notes.append(f"{speed:.0f} photos/s")
        if progress.done:
            notes.append(f"{sum(progress.refused.values()) / progress.done:.0%} refused")
        self._advance(progress.done, progress.photos, ", ".join(notes))
