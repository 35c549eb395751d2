"""The mailbox between a study's driver and the ranks of its trials: a small actor.

Neither this module nor the messages import torch, so the actor's process starts at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tune.objective import Ending, ValidationReport

Key = tuple[int, int, int]
"""Trial, attempt, epoch: identifies a report and the answer to it."""


class Mailbox:
    """Passes reports to the driver and its answers to the ranks; decides nothing."""

    def __init__(self) -> None:
        self._reports: list[ValidationReport] = []
        self._arrived = asyncio.Event()
        self._answers: dict[Key, asyncio.Future[Ending | None]] = {}

    async def reports(self) -> list[ValidationReport]:
        """All reports since the last call; waits for at least one."""
        await self._arrived.wait()
        self._arrived.clear()
        reports, self._reports = self._reports, []
        return reports

    async def report(self, report: ValidationReport) -> Ending | None:
        """Deliver rank 0's report; waits for the driver's answer."""
        for key in [key for key in self._answers if key[0] == report.number]:
            if key[1:] < (report.attempt, report.epoch):
                del self._answers[key]
        self._reports.append(report)
        self._arrived.set()
        answer: Ending | None = await self._future((report.number, report.attempt, report.epoch))
        return answer

    async def wait_for(self, key: Key) -> Ending | None:
        """The same answer for the other ranks."""
        answer: Ending | None = await self._future(key)
        return answer

    async def answer(self, key: Key, ending: Ending | None) -> None:
        """The driver's answer to a report; None continues the trial."""
        future = self._future(key)
        if not future.done():
            future.set_result(ending)

    def _future(self, key: Key) -> Any:
        if key not in self._answers:
            self._answers[key] = asyncio.get_running_loop().create_future()
        return self._answers[key]
