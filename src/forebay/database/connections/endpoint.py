"""A place where a database is: the engine that reaches it, and what is known of its connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool
from typing_extensions import override

from forebay.database.connections.drivers import AiosqliteDriver, AsyncpgDriver, Driver
from forebay.database.connections.fitness import Fitness, Watch, old_at
from forebay.database.connections.opening import Keepalive, Opener, Role
from forebay.database.connections.sqlite_file import File, end, prepare_sqlite
from forebay.database.urls import in_memory, is_postgres, location_of
from forebay.errors import SettingsError
from forebay.settings import Settings

DRIVER = "forebay_driver"
_LONGEST_STATEMENT = 64 * 1024  # bytes
# Arguments that say which server, which database there, and who one is to it.
_PLACE = (
    "host",
    "port",
    "dsn",
    "database",
    "service",
    "servicefile",
    "async_creator_fn",
    "target_session_attrs",
)
_WHO = ("user", "password", "passfile")


class Endpoint:
    """`engine` opens at most `size` connections, and none is lent by it that is not fit."""

    def __init__(self, url: sa.URL, arguments: dict[str, Any], settings: Settings, size: int) -> None:
        self.location = location_of(url)
        self.fitness = Fitness()
        self._opener: Opener | None = None
        self._watch: Watch | None = None
        self._files: WeakSet[Any] = WeakSet()
        if is_postgres(url):
            self._reach_server(arguments, settings)
        else:  # one thread at a time uses a connection; where its loop ends, another one closes it
            arguments.setdefault("check_same_thread", False)
            arguments.setdefault("factory", File)
        if in_memory(url):
            self.engine = create_async_engine(url, connect_args=arguments, poolclass=StaticPool)
        else:
            self.engine = create_async_engine(
                url,
                connect_args=arguments,
                poolclass=AsyncAdaptedQueuePool,  # early releases of SQLAlchemy 2.0 give SQLite none
                pool_size=size,
                max_overflow=0,
                pool_timeout=patience_of(settings),
            )
        sa.event.listen(self.engine.sync_engine, "connect", self._on_connect)
        sa.event.listen(self.engine.sync_engine, "checkout", self._on_checkout)

    @override
    def __repr__(self) -> str:
        return f"<Endpoint {self.location}>"

    def _reach_server(self, arguments: dict[str, Any], settings: Settings) -> None:
        arguments.setdefault("timeout", settings.connect_timeout)
        # A batch's statement is longer than what asyncpg keeps prepared by itself.
        arguments.setdefault("max_cacheable_statement_size", _LONGEST_STATEMENT)
        role, keepalive = (
            arguments.pop("target_session_attrs", Role.PRIMARY),
            arguments.pop("keepalive", Keepalive()),
        )
        if not isinstance(role, Role) and role != Role.READ_WRITE.value:
            raise SettingsError(
                f"FOREBAY_DATABASE_URL: target_session_attrs={role} takes no writes; name that in FOREBAY_READ_URL"
            )
        own = arguments.pop("async_creator_fn", None)
        self._opener = Opener(Role(role), keepalive, *([own] if own is not None else []))
        self._watch = Watch(self._opener, self.fitness)
        arguments["async_creator_fn"] = self._opener

    def _on_connect(self, connection: Any, record: Any) -> None:
        record.info[DRIVER] = self._driver(connection, record.info)

    def _driver(self, connection: Any, info: dict[Any, Any]) -> Driver:
        raw = connection.driver_connection
        if self._opener is None:
            self._files.add(raw)
            prepare_sqlite(connection)
            return AiosqliteDriver(raw, info)
        session = self._opener.session(raw)
        assert session is not None
        assert self._watch is not None
        return AsyncpgDriver(raw, info, self._watch, session.opened_at, old_at(session.opened_at))

    def _on_checkout(self, _connection: Any, record: Any, _fairy: Any) -> None:
        driver: Driver = record.info[DRIVER]
        if not self.fitness.is_fit(driver):
            driver.terminate()  # or SQLAlchemy would wait for its polite end
            raise sa.exc.DisconnectionError

    async def close(self) -> None:
        """Close every connection."""
        if self._opener is not None:
            await self._opener.close()
        await self.engine.dispose()

    def forget_connections(self) -> None:
        """Drop connections whose event loop is gone; PostgreSQL's can't be closed any more."""
        for connection in self._files:
            end(connection)
        if self._opener is not None:
            self._opener.forget()
        self.engine.sync_engine.dispose(close=False)


def patience_of(settings: Settings) -> float:
    """How long somebody waits for a connection, in seconds: the statement itself has to get its turn too."""
    return settings.statement_timeout / 2


def merged(from_url: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The driver's arguments: what is given counts before what the URL says; of the server's settings, one by one."""
    settings = {**(from_url.get("server_settings") or {}), **(given.get("server_settings") or {})}
    return {**from_url, **given, **({"server_settings": settings} if settings else {})}


def for_standby(url: sa.URL, from_url: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for a standby: what its own URL says counts before what is `given`, which is the primary's.

    Which server and which database it is says the URL alone; who one is there, too, where it names anybody.
    """
    kept = {name: value for name, value in given.items() if name not in _PLACE}
    if url.username is not None:
        kept = {name: value for name, value in kept.items() if name not in _WHO}
    return {**merged(kept, from_url), "target_session_attrs": Role.STANDBY}
