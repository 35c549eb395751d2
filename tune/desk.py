"""What a study's driver and the ranks of its trials tell each other, by way of a small actor.

Nothing of torch is imported here or by what passes: so the actor's process is there at once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["finished", "stopped", "pruned", "failed"]
"""How a trial ended: at the end of its training; by ASHA, behind the others; for a sign of
collapse; by an error, or because it diverged.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a trial ends before its training does."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Validated:
    """A trial's news after a validation; seconds are those in its epochs since the last news."""

    number: int
    attempt: int
    epoch: int
    scores: dict[str, float]
    signs: tuple[str, ...]
    is_last: bool
    seconds: float


class Desk:
    """Where trials hand in their news and wait for answers; it decides nothing."""

    def __init__(self) -> None:
        self._inbox: list[Validated] = []
        self._there = asyncio.Event()
        self._answers: dict[tuple[int, int, int], asyncio.Future[Verdict | None]] = {}

    async def news(self) -> list[Validated]:
        """Everything new; waits until there is something."""
        await self._there.wait()
        self._there.clear()
        news, self._inbox = self._inbox, []
        return news

    async def hand_in(self, news: Validated) -> Verdict | None:
        """A first rank's news; waits for the answer."""
        for key in [key for key in self._answers if key[0] == news.number]:
            if key[1:] < (news.attempt, news.epoch):
                del self._answers[key]
        self._inbox.append(news)
        self._there.set()
        verdict: Verdict | None = await self._future((news.number, news.attempt, news.epoch))
        return verdict

    async def verdict(self, key: tuple[int, int, int]) -> Verdict | None:
        """The same answer for the other ranks."""
        verdict: Verdict | None = await self._future(key)
        return verdict

    async def answer(self, key: tuple[int, int, int], verdict: Verdict | None) -> None:
        """The driver's, to the news of one trial, attempt and epoch."""
        future = self._future(key)
        if not future.done():
            future.set_result(verdict)

    def _future(self, key: tuple[int, int, int]) -> Any:
        if key not in self._answers:
            self._answers[key] = asyncio.get_running_loop().create_future()
        return self._answers[key]
