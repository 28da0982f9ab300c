"""A wire between real programs that can be slow, cut connections, or be silent for a while."""

import asyncio
import random
import threading
from contextlib import suppress
from typing import Final, Self

RESENT_S: Final = 1.0


class Network:
    """A wire to a port on this machine.

    Attributes:
        delay_s: How long each piece takes, one way.
        lost: The chance that a piece is lost on its way and arrives a second late, sent again.
        cut: The chance that a connection is cut instead of passing on the next piece.
        cuts: Connections cut so far.
    """

    def __init__(self, port: int) -> None:
        """Lead to ``port``, once it is entered."""
        self.delay_s, self.lost, self.cut, self.cuts = 0.0, 0.0, 0.0, 0
        self.to, self._draws = port, random.Random(46)  # noqa: S311 - which pieces are lost, no secret
        self._open: set[asyncio.StreamWriter] = set()
        self._up = asyncio.Event()
        self._up.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Listen on a port of its own, ``port``."""
        listen = asyncio.start_server(self._connect, "127.0.0.1", 0)
        self._server = self._loop.run_until_complete(listen)
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()

    def part(self, seconds: float) -> None:
        """Pass nothing on for a while; every connection of before is dead afterwards."""

        def meet() -> None:
            self._up.set()
            for writer in self._open:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(self._up.clear)
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, meet)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        with suppress(OSError):
            await self._up.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
            ends.add(back)
            self._open |= ends
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        self._open -= ends
        for end in ends:
            end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            again = RESENT_S if self._draws.random() < self.lost else 0.0
            await asyncio.sleep(self.delay_s + again)
            await self._up.wait()
            if self._draws.random() < self.cut:
                self.cuts += 1
                raise ConnectionResetError
            writer.write(piece)
            await writer.drain()
        raise ConnectionResetError  # one side hung up
