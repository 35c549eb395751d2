"""`cc shard`: turn photos from anywhere into a dataset of LAB shards."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import Address, AsJson, Overwrite

if TYPE_CHECKING:
    from cli.show import Advance
    from colorcore.dataset.layout import ShardSettings
    from pipelines.sharding.job import ShardProgress, ShardReport


def shard(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... DATASET",
            help="One or more sources (folders, photos, tars or lists of photos: .txt, .csv, "
            ".tsv, .parquet), then the dataset; paths or URIs such as s3://bucket/photos. Tars may "
            "be a quoted pattern: 'photos-{00000..00999}.tar'.",
        ),
    ],
    size: Annotated[int, typer.Option(help="Side length of a sample in pixels.")] = 256,
    min_colorfulness: Annotated[
        float, typer.Option(help="Minimum Hasler-Süsstrunk colourfulness of a photo.")
    ] = 15.0,
    val_percent: Annotated[
        float, typer.Option(help="Percentage of photos held out for validation, chosen by content.")
    ] = 5.0,
    photos_per_unit: Annotated[
        int, typer.Option(help="Photos per Ray task (each input tar is always one task).")
    ] = 250,
    max_pixels: Annotated[
        int, typer.Option(help="Refuse photos with more pixels, without decoding them.")
    ] = 100_000_000,
    compress: Annotated[
        Literal["none", "zstd"],
        typer.Option(help="Compression; zstd is a third smaller but slower to read."),
    ] = "none",
    max_damaged_percent: Annotated[
        float, typer.Option(help="Fail if more than this percentage of the photos is damaged.")
    ] = 10.0,
    no_sync: Annotated[
        bool,
        typer.Option(
            "--no-sync",
            help="Do not wait for the disk (for scratch disks: a power cut may lose what is done).",
        ),
    ] = False,
    dry_run: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Only report which of N random photos would be kept or refused; "
            "write nothing but the contact sheet.",
        ),
    ] = 0,
    picture: Annotated[
        Path, typer.Option(help="Contact sheet of kept and refused photos (with --dry-run).")
    ] = Path("contact-sheet.png"),
    overwrite: Overwrite = False,
    address: Address = None,
    json: AsJson = False,
) -> int:
    """Turn photos into LAB shards, keeping only colourful ones.

    A second run does only what is missing: interrupted units and new photos.
    """
    from pydantic import ValidationError

    from cli import show
    from colorcore.dataset.layout import ShardSettings
    from colorcore.storage.atomic import SYNC
    from pipelines.errors import WrongCallError
    from pipelines.sharding import job

    try:
        settings = ShardSettings(
            size=size,
            min_colorfulness=min_colorfulness,
            val_percent=val_percent,
            photos_per_unit=photos_per_unit,
            max_pixels=max_pixels,
            compress=compress,
        )
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise WrongCallError(f"--{flag}: {first['msg'].lower()}, got {first['input']}") from error
    if dry_run:
        return _dry_run(places, settings, dry_run, picture, overwrite=overwrite, json=json)
    if len(places) < 2:
        raise WrongCallError("expected SOURCE... DATASET, e.g. cc shard ~/Pictures photos.data")
    *sources, dataset = places
    if _is_pattern(dataset):
        raise WrongCallError(
            f"expected the dataset as the last argument, got a pattern of tars, {dataset}; "
            "add a folder for the dataset, e.g. photos.data"
        )
    if no_sync:
        os.environ[SYNC] = "0"  # the dataset's store takes it to the tasks
    with show.progress("shard") as advance:
        report = job.shard(
            sources,
            dataset,
            settings,
            address=address,
            on_progress=_Display(advance),
            on_failure=lambda unit, error: show.warn(f"unit {unit} failed: {error}"),
        )
    if json:
        show.as_json(
            {
                "dataset": report.dataset,
                "photos": report.photos,
                "kept": report.kept,
                "refused": report.refused,
                "skipped": report.ignored,
                "duplicates": report.duplicates,
                "new_photos": report.new_photos,
                "units": report.units,
                "failed_units": len(report.failed),
                "worker_cpu_s": round(report.worker_cpu_s, 3),
                "fingerprint": report.fingerprint,
            }
        )
    else:
        _show(report)
    show.pixel_limit(report.refused, max_pixels)
    return _exit_code(report, max_damaged_percent)


def _show(report: ShardReport) -> None:
    from cli import show

    rows = [(f"kept for {split}", count) for split, count in sorted(report.kept.items())]
    reasons = sorted(report.refused.items(), key=lambda item: -item[1])
    rows += [(f"refused: {reason}", count) for reason, count in reasons]
    show.table(
        ["photos", "count", "share"],
        [
            *((name, count, f"{count / max(1, report.photos):.1%}") for name, count in rows),
            *_skipped_rows(report.ignored),
        ],
    )
    if report.duplicates:
        print(
            f"{report.duplicates} of the kept photos are copies across units; the loader skips them"
        )
    if not report.new_photos and not report.failed and report.photos:
        show.line(f"nothing to do: {report.dataset} is complete")
    elif report.fingerprint and not report.failed:
        show.line(f"dataset {report.dataset}, fingerprint {report.fingerprint}")


def _exit_code(report: ShardReport, max_damaged_percent: float) -> int:
    from cli import show

    if report.failed:
        show.warn(
            f"error: {len(report.failed)} of {report.units} units failed; rerun the same command"
        )
        return 1
    if report.empty:
        more = f"; {len(report.empty) - 1:,} more sources have none" if report.empty[1:] else ""
        show.warn(f"error: {report.empty[0]}{more}; check the sources")
        return 1
    if not sum(report.kept.values()):
        show.warn(_none_kept(report))
        return 1
    if report.damaged > report.photos * max_damaged_percent / 100:
        show.warn(
            f"error: {report.damaged} of {report.photos} photos are damaged, more than "
            f"{max_damaged_percent:g}%; look at them with cc inspect {report.dataset}, "
            "or raise --max-damaged-percent"
        )
        return 1
    return 0


def _none_kept(report: ShardReport) -> str:
    reasons = sorted(report.refused.items(), key=lambda item: -item[1])
    found = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
    if report.damaged == report.photos:
        cure = f"look at the files with cc inspect {report.dataset}"
    else:
        cure = "check the photos, or lower --min-colorfulness"
    return f"error: no photo was kept, all {report.photos:,} were refused: {found}; {cure}"


def _skipped_rows(ignored: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Rows of a table of photos: the share stays empty, because these files are not photos."""
    kinds = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    return [(f"skipped: {kind}", count, "") for kind, count in kinds]


def _dry_run(
    places: list[str],
    settings: ShardSettings,
    count: int,
    picture: Path,
    *,
    overwrite: bool,
    json: bool,
) -> int:
    """Report on a sample; the last place is the dataset unless it is the only one or a file."""
    from cli import show
    from colorcore.photos.write import DRAWN, save_picture
    from pipelines.inference.inspect import colorfulness_rows
    from pipelines.inference.outputs import check_drawing, drawing
    from pipelines.sharding.preview import dry_run

    *sources, dataset = places
    if not sources or _is_file(dataset):
        sources, dataset = places, ""
    check_drawing(picture, "--picture", sources, overwrite=overwrite)
    with show.progress("dry run") as advance:
        preview = dry_run(sources, settings, count, dataset=dataset or None, on_progress=advance)
    sheet = preview.sheet(f"{preview.photos} photos of {', '.join(sources)}")
    failed: list[str] = []
    with drawing(picture, failed):
        save_picture(picture, sheet, software=DRAWN)
    refused = dict(preview.refused.most_common())
    classes = colorfulness_rows(preview.colorfulness)
    if json:
        show.as_json(
            {
                "photos": preview.photos,
                "kept": preview.kept,
                "refused": refused,
                "skipped": preview.ignored,
                "colorfulness": classes,
                "picture": picture,
            }
        )
        return show.failed(preview.why_none_is_readable(), *failed)
    rows = [("would be kept", preview.kept)]
    rows += [(f"would be refused: {reason}", number) for reason, number in refused.items()]
    show.table(
        [f"of {preview.photos} random photos", "count", "share"],
        [
            *((name, number, f"{number / max(1, preview.photos):.1%}") for name, number in rows),
            *_skipped_rows(preview.ignored),
        ],
    )
    print()
    show.bars("colorfulness", classes)
    if not failed:
        print()
        show.line(f"contact sheet: {picture}")
    return show.failed(preview.why_none_is_readable(), *failed)


def _is_file(place: str) -> bool:
    """Whether a place is a photo, tar, list or pattern, and so cannot be the dataset."""
    from colorcore.storage.location import open_store

    return open_store(place).kind() == "file" or _is_pattern(place)


def _is_pattern(place: str) -> bool:
    """Whether a place is a pattern of tars, and not a folder whose own name has braces."""
    from colorcore.storage.location import open_store
    from pipelines.sources.patterns import expand_pattern

    return expand_pattern(place) is not None and open_store(place).kind() == "nothing"


class _Display:
    """Shows the job's progress as units done, photos/s and the share of refused photos."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._first: tuple[float, int] | None = None

    def __call__(self, progress: ShardProgress) -> None:
        """Show the progress; throughput excludes start-up and the first unit of this call."""
        from cli.show import UNKNOWN

        now = time.monotonic()
        notes = [f"{progress.done:,} of {progress.photos:,} photos"]
        if progress.listing:
            notes = [f"{progress.done:,} photos", f"{progress.photos:,} listed so far"]
        if self._first is None and progress.new:
            self._first = (now, progress.new)
        if self._first is not None and progress.new > self._first[1]:
            speed = (progress.new - self._first[1]) / max(now - self._first[0], 1e-9)
            notes.append(f"{speed:,.0f} photos/s")
        if progress.new:
            notes.append(f"{progress.refused.total() / progress.new:.0%} refused")
        total = UNKNOWN if progress.listing else progress.units
        self._advance(progress.units_done, total, ", ".join(notes))
