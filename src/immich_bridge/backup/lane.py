"""The way to a thread: what waits while it is busy goes there in one hop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

W = TypeVar("W")


@dataclass(frozen=True)
class Failed:
    """What became of work that raised."""

    error: Exception


class Lane(Generic[W]):
    """The way to something that does one batch of work at a time.

    `run_all` gives the result of each work of a batch, or `Failed`. If it raises, all of them
    have failed.
    """

    def __init__(self, run_all: Callable[[Sequence[W]], Awaitable[Sequence[Any]]]) -> None:
        self._run_all = run_all
        self._waiting: list[tuple[W, asyncio.Future[Any]]] = []
        self._driver: asyncio.Task[None] | None = None

    async def run(self, work: W) -> Any:
        """The result of `work`. Once begun it ends also when the caller is cancelled."""
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, outcome))
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive())
        return await outcome

    async def drain(self) -> None:
        """Wait for what is under way, and what waits for it."""
        if self._driver is not None:
            await self._driver

    async def _drive(self) -> None:
        while self._waiting:
            batch = [each for each in self._waiting if not each[1].cancelled()]
            self._waiting.clear()
            try:
                results = await self._run_all([work for work, _ in batch])
            except Exception as exc:
                results = [Failed(exc)] * len(batch)
            for (_, outcome), result in zip(batch, results, strict=True):
                if outcome.done():
                    continue  # cancelled meanwhile
                if isinstance(result, Failed):
                    outcome.set_exception(result.error)
                else:
                    outcome.set_result(result)
        self._driver = None
