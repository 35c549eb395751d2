"""`cc doctor`: is this machine, and this dataset, fit for a long run?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import AsJson, TrackingUri


def doctor(
    dataset: Annotated[
        str | None, typer.Argument(help="A dataset to look at, too (cc shard, cc priors).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what starts processes: Ray and DDP.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster to ask; default: start one here.")
    ] = None,
    tracking_uri: TrackingUri = None,
    json: AsJson = False,
) -> int:
    """Check versions, devices, disk, Ray and MLflow, and prove that training works.

    A tiny conv net learns the mean lightness of photos in seconds: by it batching, transfer,
    mixed precision, checkpoints, resuming and DDP are proved one by one. Exit code 1 when a
    check fails.
    """
    from cli import show
    from pipelines.doctor.job import examine
    from pipelines.tracking.store import tracking_uri as choose

    with show.progress("doctor") as advance:
        health = examine(
            dataset,
            tracking_uri=choose(tracking_uri, Path.cwd()),
            address=address,
            quick=quick,
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
        print("\nwhat to do")
        for line in todo:
            print(f"{line.verdict.ljust(4)}  {line.check}: {line.advice}")
    print(f"\n{health.count('ok')} ok, {health.count('warn')} warn, {failed} FAIL")
    return int(failed > 0)
