"""A TCP proxy in front of PostgreSQL that can do what networks do: refuse, reset, stall, delay, and cut at a commit.

It runs in the event loop of the test and reads enough of PostgreSQL's protocol (version 3, "Frontend/Backend
Protocol" in its manual) to know which message makes the server commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import Iterator
from typing import Any, Self

import sqlalchemy as sa

_CHUNK = 65536
_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_IDLE = b"I"
_WRITES = (b"INSERT INTO", b"UPDATE ", b"DELETE FROM")


class Cut(enum.Enum):
    """When a connection is cut, seen from the statement that makes the server commit."""

    BEFORE = "before"  # the server never sees it
    INSIDE = "inside"  # it is on its way to the server; what comes of it is anybody's guess
    AFTER = "after"  # the server has committed, and its answer is not passed on


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes on to `host` and `port`. An asynchronous context manager.

    `to_server_delay` and `to_client_delay` hold what is passed on for so many seconds. `trips` counts how often a
    client spoke and then waited for an answer.
    """

    def __init__(self, host: str, port: int) -> None:
        self.to_server_delay = 0.0
        self.to_client_delay = 0.0
        self.trips = 0
        self.port = 0
        self._upstream = (host, port)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._frozen = False
        self._cut: _WantedCut | None = None

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy in front of the server that a database's URL names."""
        where = sa.make_url(url)
        assert where.host is not None
        return cls(where.host, where.port or 5432)

    def url(self, url: str) -> str:
        """The database's URL, by way of the proxy."""
        through = sa.make_url(url).set(host="127.0.0.1", port=self.port)
        return through.render_as_string(hide_password=False)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def listen(self) -> None:
        """Take connections, again on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def lead_to(self, url: str) -> None:
        """New connections go to another server, as when a name means another one."""
        target = sa.make_url(url)
        assert target.host is not None
        self._upstream = (target.host, target.port or 5432)

    async def refuse(self) -> None:
        """Reset every connection, and refuse new ones until `listen`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> int:
        """Reset every open connection, both ends; how many there were."""
        for link in self._links:
            link.reset()
        return len(self._links)

    def freeze(self, *, new: bool = True) -> None:
        """Pass nothing on any more, on the open connections and with `new` on those that come."""
        self._frozen = new
        for link in self._links:
            link.flowing.clear()

    def let_new_ones_pass(self) -> None:
        """Connections that come are passed on again; what is frozen stays so."""
        self._frozen = False

    def thaw(self) -> None:
        """Pass on again, also what lay here meanwhile, whether or not its sender has given up."""
        self._frozen = False
        for link in self._links:
            link.flowing.set()

    async def passed_on(self) -> None:
        """Return when the server has dealt with all that clients sent who have gone meanwhile."""
        await asyncio.gather(*(link.ended.wait() for link in self._links if link.is_abandoned))

    def cut(self, when: Cut, *, transaction: bool = False) -> asyncio.Future[None]:
        """Cut the next connection that commits a write; the future is done when it is cut.

        `transaction`: at the COMMIT of an explicit transaction, not at a statement that is one by itself.
        """
        done = asyncio.get_running_loop().create_future()
        self._cut = _WantedCut(when, transaction, done)
        return done

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server = await asyncio.open_connection(*self._upstream)
        except OSError:
            _reset(writer)
            return
        link = _Link(self, (reader, writer), server)
        if self._frozen:
            link.flowing.clear()
        if self._server is None:  # meanwhile
            link.reset()
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.remove(link)
            link.ended.set()

    def take_cut(self, *, transaction: bool) -> _WantedCut | None:
        """The cut that is wanted at such a commit, if one is; it is made once."""
        cut = self._cut
        if cut is None or cut.transaction is not transaction:
            return None
        self._cut = None
        return cut


class _WantedCut:
    def __init__(self, when: Cut, transaction: bool, done: asyncio.Future[None]) -> None:
        self.when = when
        self.transaction = transaction
        self.done = done

    def made(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One client's connection and the one to the server for it."""

    def __init__(self, proxy: Proxy, client: _Stream, server: _Stream) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.ended = asyncio.Event()
        self._proxy = proxy
        self._client = client
        self._server = server
        self._conversation = _Conversation()
        self._answered = True
        self._cut: _WantedCut | None = None
        self._over = asyncio.Event()

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has gone."""
        return self._client[0].at_eof()

    async def run(self) -> None:
        """Pass on until either side ends, or the link is reset."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._greet()
            await asyncio.gather(
                self._pass_on(self._client[0], self._server[1], from_client=True),
                self._pass_on(self._server[0], self._client[1], from_client=False),
            )
        for _, writer in (self._client, self._server):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def reset(self) -> None:
        """End both connections with a reset."""
        self._over.set()
        self.flowing.set()
        _reset(self._client[1])
        _reset(self._server[1])

    async def _greet(self) -> None:
        """The start, whose packets have no type. An encryption would hide the rest, so the proxy declines it."""
        reader, writer = self._client
        while True:
            size = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(size) - 4)
            if int.from_bytes(body[:4]) not in (_SSL_REQUEST, _GSS_REQUEST):
                break
            await self.flowing.wait()
            writer.write(b"N")
        await self.flowing.wait()
        self._server[1].write(size + body)

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        """Read and write apart, so that a delay holds everything as long, not each piece after the other."""
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        deliver = asyncio.ensure_future(self._deliver(on_its_way, target, from_client=from_client))
        try:
            while data := await source.read(_CHUNK):
                self._count(from_client=from_client)
                delay = self._proxy.to_server_delay if from_client else self._proxy.to_client_delay
                await on_its_way.put((asyncio.get_running_loop().time() + delay, data))
        except ConnectionError:
            pass  # what was sent before still arrives
        finally:
            await on_its_way.put((0, b""))
            await deliver

    def _count(self, *, from_client: bool) -> None:
        self._proxy.trips += from_client and self._answered
        self._answered = not from_client

    async def _deliver(
        self, queue: asyncio.Queue[tuple[float, bytes]], target: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        messages = _Messages()
        examine = self._from_client if from_client else self._from_server
        while True:
            due, data = await queue.get()
            if (wait := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait)
            await self.flowing.wait()
            if not data or self._over.is_set():
                break
            with contextlib.suppress(ConnectionError):
                passed = b"".join(raw for kind, raw in messages.split(data) if examine(kind, raw))
                if not self._over.is_set() and passed:
                    target.write(passed)
                    await target.drain()
            if from_client and self._cut is not None and self._cut.when is Cut.INSIDE:
                self._cut_now()
            if self._over.is_set():
                break
        if not self._over.is_set():
            with contextlib.suppress(OSError):
                target.write_eof()  # the server may still have to answer
        while data:  # the reader must not wait for room here
            _, data = await queue.get()

    def _from_client(self, kind: bytes, raw: bytes) -> bool:
        """Whether a message is passed on to the server."""
        if self._over.is_set():
            return False
        transaction = self._conversation.asks(kind, raw[5:])
        if transaction is not None and self._cut is None:
            self._cut = self._proxy.take_cut(transaction=transaction)
            if self._cut is not None and self._cut.when is Cut.BEFORE:
                self._cut_now()
                return False
        return True

    def _from_server(self, kind: bytes, raw: bytes) -> bool:
        """Whether a message is passed on to the client."""
        self._conversation.answers(kind, raw[5:])
        if self._cut is None:
            return not self._over.is_set()
        # A statement by itself commits after its CommandComplete, when the server is ready again.
        if kind == b"Z":
            self._cut_now()
        return False

    def _cut_now(self) -> None:
        assert self._cut is not None
        self._cut.made()
        self.reset()


class _Messages:
    """Whole messages out of what arrives in pieces: their type, and their bytes as they came."""

    def __init__(self) -> None:
        self._rest = b""

    def split(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        data = self._rest + data
        start = 0
        while len(data) >= start + 5:
            end = start + 1 + int.from_bytes(data[start + 1 : start + 5])
            if len(data) < end:
                break
            yield data[start : start + 1], data[start:end]
            start = end
        self._rest = data[start:]


class _Conversation:
    """Which statement a client runs, and whether the server commits it at its end."""

    def __init__(self) -> None:
        self._statements: dict[bytes, bytes] = {}
        self._portals: dict[bytes, bytes] = {}
        self._status = _IDLE

    def asks(self, kind: bytes, body: bytes) -> bool | None:
        """Whether this makes the server commit: at the end of a transaction (True), by itself (False), or not."""
        sql = b""
        if kind == b"P":
            name, sql, _ = body.split(b"\0", 2)
            self._statements[name] = sql
            return None
        if kind == b"B":
            portal, name, _ = body.split(b"\0", 2)
            self._portals[portal] = self._statements.get(name, b"")
        elif kind == b"E":
            sql = self._portals.get(body.split(b"\0", 1)[0], b"")
        elif kind == b"Q":
            sql = body
        if self._status != _IDLE:
            return True if sql.upper().startswith(b"COMMIT") else None
        return False if any(word in sql for word in _WRITES) else None

    def answers(self, kind: bytes, body: bytes) -> None:
        if kind == b"Z":
            self._status = body[:1]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side gets a reset, not an end."""
    peer = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
