"""A network's distance to the database: a TCP proxy that holds everything for a while, both ways."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

import sqlalchemy as sa

_CHUNK = 65536
_ON_ITS_WAY = 1024  # chunks: more than a connection's buffers hold is not read ahead


class DelayingProxy:
    """In front of the server that a database's URL names; `round_trip` is in seconds. An asynchronous context manager.

    What is sent is held as long, however much there is of it: it is the distance that counts, not the width.
    """

    def __init__(self, url: str, round_trip: float) -> None:
        where = sa.make_url(url)
        assert where.host is not None
        self._upstream = (where.host, where.port or 5432)
        self._delay = round_trip / 2
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def url(self, url: str) -> str:
        """The database's URL, by way of the proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return sa.make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            server, to_server = await asyncio.open_connection(*self._upstream)
            try:
                await asyncio.gather(self._pass_on(reader, to_server), self._pass_on(server, writer))
            finally:
                to_server.close()
        writer.close()

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Read and write apart, so that pieces do not wait for one another."""
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_ITS_WAY)
        delivery = asyncio.create_task(self._deliver(on_its_way, target))
        try:
            while True:
                data = await source.read(_CHUNK)
                await on_its_way.put((asyncio.get_running_loop().time() + self._delay, data))
                if not data:
                    break
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], target: asyncio.StreamWriter) -> None:
        while True:
            due, data = await queue.get()
            if (wait := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                break
            target.write(data)
            await target.drain()
        with contextlib.suppress(OSError):
            target.write_eof()
