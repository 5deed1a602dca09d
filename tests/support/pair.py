"""A primary and its standby, which change places, behind two names that lag: the primary's, and the standby's."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Self

from tests.support.patience import patience
from tests.support.postgres import PostgresServer, Standby, name_of
from tests.support.proxy import Proxy


class Lag(Enum):
    """What the primary's name leads to, from the moment on at which there is another one."""

    NOWHERE = "nowhere"  # connections are refused
    SILENCE = "silence"  # those that are open hear nothing any more, as when a machine is off the network
    FORMER = "former"  # the former primary, which is back as a standby; nobody ends what is open to it


class Pair:
    """Two servers with a database of one's own. An asynchronous context manager.

    `synchronous`: a commit waits for the standby. `primary` and `standby` are the names, `url` and `read_url` the
    database by way of them.
    """

    def __init__(self, *, synchronous: bool) -> None:
        self.synchronous = synchronous
        self._leader: PostgresServer = PostgresServer(own=True, durable=True)
        self._follower: PostgresServer = self._leader

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._leader.__enter__)
        self.database = name_of(await asyncio.to_thread(self._leader.create_database))
        self._follower = Standby(self._leader, durable=True)
        await asyncio.to_thread(self._follower.__enter__)
        self.primary = Proxy.before(self._leader.url(self.database))
        self.standby = Proxy.before(self._follower.url(self.database))
        await self.primary.listen()
        await self.standby.listen()
        await self.followed()
        return self

    async def __aexit__(self, *failed: object) -> None:
        for proxy in (self.primary, self.standby):
            proxy.thaw()
            await proxy.__aexit__(*failed)
        for server in (self._follower, self._leader):
            await asyncio.to_thread(server.__exit__, *failed)

    @property
    def url(self) -> str:
        """The database, by the primary's name."""
        return self.primary.url(self.direct_url)

    @property
    def read_url(self) -> str:
        """The database, by the standby's name."""
        return self.standby.url(self.direct_url)

    @property
    def direct_url(self) -> str:
        """The database on the server that is the primary."""
        return self._leader.url(self.database)

    async def followed(self) -> None:
        """Return when the standby follows, and commits wait for it where they are to."""
        if self.synchronous:
            await self._set(self._leader, "synchronous_standby_names = '*'")
        state = "sync" if self.synchronous else "async"
        count = f"SELECT count(*) AS n FROM pg_stat_replication WHERE sync_state = '{state}'"
        await self._until(self._leader, count, 1)

    def catch_up(self) -> None:
        """Return when the standby has replayed all that is committed."""
        assert isinstance(self._follower, Standby), "they have changed places"
        self._follower.catch_up()

    async def part(self) -> None:
        """From now on the standby hears nothing of the primary, and nobody waits for it."""
        await self._set(self._follower, "primary_conninfo = ''")
        await self._until(self._follower, "SELECT count(*) AS n FROM pg_stat_wal_receiver", 0)

    async def fail_over(self, lag: Lag, *, crash: bool) -> None:
        """The primary ends, and the standby takes its place; its name does not know of it yet."""
        if lag is Lag.SILENCE:
            self.primary.freeze()
        await asyncio.to_thread(self._leader.crash if crash else self._leader.stop)
        await asyncio.to_thread(self._follower.promote)
        self._leader, self._follower = self._follower, self._leader
        await self._set(self._leader, "synchronous_standby_names = ''")
        if lag is Lag.FORMER:
            await self.come_back()

    def arrive(self) -> None:
        """The name leads to the new primary."""
        self.primary.lead_to(self.direct_url)
        self.primary.let_new_ones_pass()

    async def come_back(self) -> None:
        """The former primary is the standby now, and the standby's name knows it."""
        await asyncio.to_thread(self._follower.follow, self._leader)
        self.standby.lead_to(self._follower.url(self.database))

    @staticmethod
    async def _set(server: PostgresServer, setting: str) -> None:
        await asyncio.to_thread(server.execute, f"ALTER SYSTEM SET {setting}")
        await asyncio.to_thread(server.execute, "SELECT pg_reload_conf()")

    @staticmethod
    async def _until(server: PostgresServer, count: str, wanted: int) -> None:
        async with patience():
            while (await asyncio.to_thread(server.execute, count))[0]["n"] != wanted:  # noqa: ASYNC110 - nor does it
                await asyncio.sleep(0.05)
