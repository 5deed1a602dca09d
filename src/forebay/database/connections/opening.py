"""Opening connections to PostgreSQL: at which host, in which role, and what their sockets notice by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg

from forebay.database import error_codes
from forebay.errors import TransientError

Raw = Any  # an asyncpg.Connection, or what a caller's own `async_creator_fn` makes

# The next host is tried when the one before has failed, or has said nothing for so long. Seconds.
_HEAD_START = 1.0
_ENDING = 2.0  # seconds that a connection has to end in
_DEFAULT_PORT = 5432
_LOOK = (
    "SELECT pg_is_in_recovery() AS recovering, current_setting('transaction_read_only') = 'on' AS read_only,"
    " pid, backend_start FROM pg_stat_get_activity(pg_backend_pid())"
)
_STATES = "SELECT pid, backend_start, state FROM unnest($1::int[]) AS asked(of_pid), pg_stat_get_activity(asked.of_pid)"


class Role(Enum):
    """What a server must be."""

    PRIMARY = "primary"
    READ_WRITE = "read-write"
    STANDBY = "standby"
    ANY = "any"

    def refusal(self, *, recovering: bool, read_only: bool) -> str | None:
        """Why a server that is so has another role; None where it has this one."""
        if self is Role.ANY:
            return None
        if self is Role.STANDBY:
            return None if recovering else "is no standby; FOREBAY_READ_URL must name one"
        if recovering:
            return "is a standby at present; the primary is looked for"
        if self is Role.READ_WRITE and read_only:
            return "is read-only at present, and target_session_attrs=read-write"
        return None


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How a socket notices by itself that nobody is there any more. In seconds; 0 leaves it to the system."""

    idle: int = 30
    interval: int = 5
    count: int = 3
    user_timeout: float = 10.0

    def options(self) -> Iterator[tuple[int, int, int]]:
        """As the socket takes them, as far as this platform has them."""
        if not self.idle:
            return
        yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
        values = {
            "TCP_KEEPIDLE": self.idle,
            "TCP_KEEPALIVE": self.idle,  # macOS's name for it
            "TCP_KEEPINTVL": self.interval,
            "TCP_KEEPCNT": self.count,
            "TCP_USER_TIMEOUT": round(self.user_timeout * 1000),
        }
        for name, value in values.items():
            option = getattr(socket, name, None)
            if option is not None and value:
                yield socket.IPPROTO_TCP, option, value


@dataclass(frozen=True, slots=True)
class Session:
    """Which session of the server's a connection is: `since` tells it from another of the same number."""

    pid: int
    since: Any
    pooled: bool  # a pooler stands between, so that it may be another's at the next transaction
    opened_at: float  # when that was begun, on the monotonic clock


class Opener:
    """Opens connections, as SQLAlchemy's `async_creator_fn`, and knows what it has opened.

    `create` is asyncpg's `connect`, or takes its arguments.
    """

    def __init__(
        self,
        role: Role,
        keepalive: Keepalive,
        create: Callable[..., Awaitable[Raw]] = asyncpg.connect,
    ) -> None:
        self._role = role
        self._keepalive = keepalive
        self._create = create
        self._arguments: dict[str, Any] | None = None
        self._opened: WeakKeyDictionary[Raw, Session] = WeakKeyDictionary()

    async def __call__(self, **arguments: Any) -> Raw:
        """A connection to a server of the wanted role. Raises TransientError where there is none, or the driver's."""
        self._arguments = arguments
        places = list(_places(arguments))
        if len(places) == 1:
            return await self._open({**arguments, **places[0]})
        return await self._race([{**arguments, **place} for place in places])

    async def states(self, sessions: Sequence[Session]) -> dict[Session, str | None]:
        """What each of them does at present, asked on a connection of its own: PostgreSQL's word, None for gone.

        Raises what opening a connection raises, or asking on it.
        """
        assert self._arguments is not None
        raw = await self(**self._arguments)
        try:
            rows = await raw.fetch(_STATES, [session.pid for session in sessions])
        finally:
            end_soon(raw)
        # Whose state is hidden from this role is there all the same.
        found = {(row["pid"], row["backend_start"]): row["state"] or "" for row in rows}
        return {session: found.get((session.pid, session.since)) for session in sessions}

    def session(self, raw: Raw) -> Session | None:
        """What is known of a connection that was opened here."""
        return self._opened.get(raw)

    async def close(self) -> None:
        """End every connection, those too that lead nowhere."""
        await asyncio.gather(*(_end(raw) for raw in list(self._opened)))

    def forget(self) -> None:
        """Their event loop is gone."""
        self._opened.clear()

    async def _race(self, attempts: Sequence[Mapping[str, Any]]) -> Raw:
        """The first that succeeds; the others are given up."""
        running: set[asyncio.Task[Raw]] = set()
        errors: list[Exception] = []
        waiting = list(attempts)
        try:
            while waiting or running:
                if waiting:
                    running.add(asyncio.create_task(self._open(waiting.pop(0))))
                done, running = await asyncio.wait(
                    running,
                    timeout=_HEAD_START if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                opened = [task.result() for task in done if task.exception() is None]
                for raw in opened[1:]:
                    end_soon(raw)
                if opened:
                    return opened[0]
                errors += [error for task in done if isinstance(error := task.exception(), Exception)]
            raise max(errors, key=_tells)
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_end_too_late)

    async def _open(self, arguments: Mapping[str, Any]) -> Raw:
        began = time.monotonic()
        try:
            async with asyncio.timeout(arguments.get("timeout")):
                raw = await self._create(**arguments)
                try:
                    await self._meet(raw, began)
                except BaseException:
                    raw.terminate()
                    raise
        except TimeoutError as error:
            if error.errno is not None:
                raise
            raise TransientError("the database does not answer in FOREBAY_CONNECT_TIMEOUT") from None
        return raw

    async def _meet(self, raw: Raw, began: float) -> None:
        transport = getattr(raw, "_transport", None)
        own_socket = transport.get_extra_info("socket") if transport is not None else None
        if own_socket is not None and own_socket.family in (socket.AF_INET, socket.AF_INET6):
            for option in self._keepalive.options():
                with contextlib.suppress(OSError):
                    own_socket.setsockopt(*option)
        row = await raw.fetchrow(_LOOK)
        refusal = self._role.refusal(recovering=row["recovering"], read_only=row["read_only"])
        if refusal is not None:
            raise TransientError(f"the server {refusal}", sqlstate=error_codes.READ_ONLY)
        pooled = row["pid"] != raw.get_server_pid()
        self._opened[raw] = Session(row["pid"], row["backend_start"], pooled, began)


def _places(arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The hosts, each with its port, as connect arguments."""
    hosts, ports = arguments.get("host"), arguments.get("port")
    if not isinstance(hosts, list | tuple):
        yield {}
        return
    if not isinstance(ports, list | tuple):
        ports = [ports or _DEFAULT_PORT] * len(hosts)
    for host, port in zip(hosts, ports, strict=True):
        yield {"host": host, "port": port or _DEFAULT_PORT}


def _tells(error: Exception) -> int:
    """How much an error tells of what is wrong, where several hosts have failed."""
    if isinstance(error, asyncpg.PostgresError):
        return 2
    return 1 if isinstance(error, TransientError) and error.sqlstate else 0


def _end_too_late(task: asyncio.Task[Raw]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


# Those that are being ended: the loop alone would forget the tasks.
_ending: set[asyncio.Task[None]] = set()


def end_soon(raw: Raw) -> None:
    """End a connection beside what goes on here; what still runs on it is told to stop, if anybody is there."""
    task = asyncio.get_running_loop().create_task(_end(raw))
    _ending.add(task)
    task.add_done_callback(_ending.discard)


async def _end(raw: Raw) -> None:
    with contextlib.suppress(Exception):  # nobody answers, or it has ended already
        try:
            await raw.close(timeout=_ENDING)
        finally:
            raw.terminate()
