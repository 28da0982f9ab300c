"""Streams of several answers: made one, and taken apart."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

from handbill.serving.errors import UnavailableError
from handbill.serving.sequences import Delta


async def merge(
    streams: list[AsyncGenerator[Delta, None]], *, each: int = 1
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Pieces of several streams, of so many answers each, as they come.

    Closes all of them when it ends.
    """
    ready: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    ready.put_nowait((index * each + delta.index, delta))
            ready.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - handed to the reader below
            ready.put_nowait(error)

    pumps = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            item = await ready.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()


class Split:
    """A stream of several answers as a stream for each of them, to be read side by side.

    Args:
        source: The answers' pieces by their index.
        answers: How many.
    """

    def __init__(self, source: AsyncGenerator[Delta, None], answers: int) -> None:
        self._source = source
        self._ready: list[asyncio.Queue[Delta | Exception]] = [
            asyncio.Queue() for _ in range(answers)
        ]
        self._pump: asyncio.Task[None] | None = None

    async def of(self, index: int) -> AsyncGenerator[Delta, None]:
        """The pieces of one answer, as those of a sequence of one answer. Once for each."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._run())
        while True:
            item = await self._ready[index].get()
            if isinstance(item, Exception):
                raise item
            yield replace(item, index=0)
            if item.finish_reason is not None:
                return

    async def aclose(self) -> None:
        """Close the source, whatever of it is read."""
        if self._pump is not None:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump
        await self._source.aclose()

    async def _run(self) -> None:
        ended: Exception = UnavailableError("The engine was lost; try again.")
        try:
            async with aclosing(self._source):
                async for delta in self._source:
                    self._ready[delta.index].put_nowait(delta)
        except Exception as error:  # noqa: BLE001 - handed to the readers above
            ended = error
        for ready in self._ready:  # whoever has all of its answer never sees it
            ready.put_nowait(ended)
