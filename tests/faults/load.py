"""What the fault tests share: people who write, what was acknowledged to them, and what the database says of it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from collections.abc import Iterable
from typing import Any, Self

import asyncpg

from forebay import ForebayDataLayer
from tests.integration.contract import accounted_for
from tests.support.patience import patience

LONG = os.environ.get("FOREBAY_TEST_LONG") == "1"
_VERSIONS = 5
_STEPS_OF_A_THREAD = 10
# Each version of a step that the database has ever held, in the order in which it came.
_AUDIT = (
    "CREATE TABLE audit (number BIGSERIAL, id UUID, output TEXT)",
    "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN INSERT INTO audit (id, output) VALUES (NEW.id, NEW.output); RETURN NULL; END $$",
    "CREATE TRIGGER note AFTER INSERT OR UPDATE ON steps FOR EACH ROW EXECUTE FUNCTION note()",
)


def a_seed() -> int:
    """A seed of its own for each run, printed so that a failure can be tried again: FOREBAY_TEST_SEED."""
    seed = int(os.environ.get("FOREBAY_TEST_SEED") or time.time_ns())
    sys.stdout.write(f"FOREBAY_TEST_SEED={seed}\n")
    return seed


def versioned(step_id: str, thread_id: str, version: int, size: int = 0) -> Any:
    """A step whose output begins with its version."""
    output = f"{version} " + "x" * size
    return {"id": step_id, "threadId": thread_id, "name": "s", "type": "run", "output": output}


class Load:
    """Tasks that each create a step, change it a few times, and begin anew, until the context ends.

    `acknowledged` is the last version of each step whose write has returned, `deleted` the threads whose deletion
    has (only with `deletes`). `pause` is how long a task rests between two writes, in seconds.
    """

    def __init__(
        self, layer: ForebayDataLayer, *, tasks: int = 10, deletes: bool = False, pause: float = 0.001
    ) -> None:
        self.acknowledged: dict[str, int] = {}
        self.thread_of: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.writes = 0
        self._layer = layer
        self._deletes = deletes
        self._pause = pause
        self._stop = asyncio.Event()
        self._count = tasks
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write()) for _ in range(self._count)]
        await self.goes_on(self._count)
        return self

    async def __aexit__(self, failed: object, *_: object) -> None:
        self._stop.set()
        if failed is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            return
        async with patience():
            await asyncio.gather(*self._tasks)

    async def goes_on(self, writes: int = 20) -> None:
        """Return when so many more writes were acknowledged."""
        wanted = self.writes + writes
        async with patience():
            while self.writes < wanted:
                await asyncio.sleep(0.001)
                self._raise_what_failed()

    def _raise_what_failed(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    @property
    def kept(self) -> dict[str, int]:
        """What must be in the database: the acknowledged versions, but for deleted threads."""
        return {key: n for key, n in self.acknowledged.items() if self.thread_of[key] not in self.deleted}

    async def _write(self) -> None:
        while not self._stop.is_set():
            thread_id = str(uuid.uuid4())
            for number in range(_STEPS_OF_A_THREAD):
                await self._write_step(str(uuid.uuid4()), thread_id)
                if self._stop.is_set():
                    return
                if self._deletes and number % 3 == 2:
                    await self._layer.delete_thread(thread_id)
                    self.deleted.add(thread_id)
                    break

    async def _write_step(self, step_id: str, thread_id: str) -> None:
        self.thread_of[step_id] = thread_id
        for version in range(_VERSIONS):
            await self._layer.update_step(versioned(step_id, thread_id, version))
            self.acknowledged[step_id] = version
            self.writes += 1
            if self._stop.is_set():
                return
            await asyncio.sleep(self._pause)


class Audit:
    """The database seen past the layer. See `audited`."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def stored(self) -> dict[str, int]:
        """The version of each step that is there."""
        found = await self.fetch("SELECT id, split_part(output, ' ', 1) AS version FROM steps")
        return {str(row["id"]): int(row["version"]) for row in found}

    async def applied(self) -> dict[str, list[int]]:
        """The versions of each step that were ever there, in the order in which they came."""
        found = await self.fetch(
            "SELECT id, array_agg(split_part(output, ' ', 1)::int ORDER BY number) AS versions"
            " FROM audit GROUP BY id"
        )
        return {str(row["id"]): list(row["versions"]) for row in found}

    async def positions(self) -> dict[str, tuple[int, int]]:
        """Where each journal stands."""
        found = await self.fetch("SELECT journal_id, applied_seq, token FROM forebay_checkpoints")
        return {row["journal_id"]: (row["applied_seq"], row["token"]) for row in found}

    async def fetch(self, query: str) -> list[Any]:
        """A query's rows, over a connection of its own: the server may have crashed since the last."""
        connection = await asyncpg.connect(self._url)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()


async def audited(url: str) -> Audit:
    """The database at `url`, which notes from now on what is written into it."""
    audit = Audit(url)
    for statement in _AUDIT:
        await audit.fetch(statement)
    return audit


def repeated(applied: Iterable[list[int]]) -> list[list[int]]:
    """The rows' histories in which a version comes twice, or an older one after a newer."""
    return [versions for versions in applied if sorted(set(versions)) != versions]


async def assert_exactly_once(layer: ForebayDataLayer, load: Load, audit: Audit) -> None:
    """Write out what is queued; then each acknowledged change must be there, once, and be accounted for."""
    async with patience():
        await layer.flush()
    stored, applied = await audit.stored(), await audit.applied()
    expected = load.kept
    assert {key: n for key, n in expected.items() if stored.get(key) != n} == {}, "lost or stale"
    assert stored.keys() == expected.keys(), "rows that nobody wrote, or of deleted threads"
    assert repeated(applied.values()) == [], "applied twice, or backwards"
    counts = layer._engine.counts
    assert accounted_for(layer), repr(layer)
    assert counts.pending == 0
    assert counts.dead_lettered.total() == counts.dropped.total() == counts.refused.total() == 0
    assert counts.accepted["steps"] == load.writes
    await layer.close()
    cursor = layer._engine.cursor
    assert (await audit.positions())[cursor.journal_id] == cursor.at
    assert list(layer.settings.journal_dir.iterdir()) == []
