"""`cc doctor`: check that this machine and this dataset are ready for a long run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import AsJson, TrackingUri

SHOWN = 50
"""Damaged places in the table's appendix."""


def doctor(
    dataset: Annotated[
        str | None, typer.Argument(help="Dataset to check as well (from cc shard and cc priors).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the checks that start processes (Ray and DDP).")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every sample of the dataset and name what is damaged."),
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to check (default: start Ray on this machine).")
    ] = None,
    tracking_uri: TrackingUri = None,
    json: AsJson = False,
) -> int:
    """Check this machine and a dataset before a long run.

    Checks versions, devices, disk, Ray and MLflow. Then trains a tiny regression of the photos'
    mean lightness for a few seconds, which tests batching, transfer, mixed precision,
    checkpoints, resuming and DDP one by one. The exit code is 1 if a check fails.
    """
    from cli import show
    from pipelines.doctor.job import examine
    from pipelines.tracking.store import resolve_tracking_uri

    with show.progress("doctor") as advance:
        health = examine(
            dataset,
            tracking_uri=resolve_tracking_uri(tracking_uri, Path.cwd()),
            address=address,
            quick=quick,
            verify=verify,
            on_check=advance,
        )
    failed = health.count("FAIL")
    if json:
        show.as_json(health.facts())
        return int(failed > 0)
    show.table(
        ["check", "", "found"], [(line.check, line.verdict, line.found) for line in health.lines]
    )
    if todo := [line for line in health.lines if line.verdict != "ok"]:
        print("\nnext steps")
        for line in todo:
            show.line(f"{line.verdict.ljust(4)}  {line.check}: {line.advice}")
    if health.damage:
        print("\ndamaged")
        for place in health.damage[:SHOWN]:
            show.line(place.line())
        if (more := len(health.damage) - SHOWN) > 0:
            print(f"… and {more:,} more; --json lists all")
    print(f"\n{health.count('ok')} ok, {health.count('warn')} warn, {failed} FAIL")
    return int(failed > 0)
