"""What one person can make the others wait, with data that they have made themselves: `python -m loadtests.costs`.

Each case fills a database of its own as somebody who means harm would, then does what a browser can ask for, while a
neighbour reads a small thread and writes to it. `chainlit` is what Chainlit itself does in the event loop with what it
got: the answer as JSON, compressed.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import platform
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa
from chainlit.types import Pagination, ThreadFilter
from chainlit.user import User
from starlette.responses import JSONResponse

from forebay import ForebayDataLayer, ForebayError, Settings
from forebay.bench.postgres import PostgresServer
from forebay.model import schema

_RESULTS = Path(__file__).parent / "results" / "costs.json"
_MIB = 1024 * 1024
_ROWS_AT_ONCE = 5_000


@dataclass(frozen=True)
class Figures:
    """Seconds, but for `answer`, which is in MiB."""

    database: str
    case: str
    took: float
    loop: float  # the longest that the event loop stood still
    read: float  # the longest read of a neighbour
    write: float  # and write
    answer: float
    chainlit: float  # what Chainlit does with the answer, in the loop
    outcome: str


class Attack:
    """Somebody with a thread, and what they fill it with."""

    def __init__(self, layer: ForebayDataLayer, user_id: str, small: bool) -> None:
        self.layer = layer
        self.user_id = user_id
        self.share = 0.02 if small else 1.0

    def many(self, number: int) -> int:
        return max(1, int(number * self.share))

    async def thread(self, **values: Any) -> str:
        thread_id = str(uuid.uuid4())
        await self.fill(schema.threads, [{"id": thread_id, "userId": self.user_id, **values}])
        return thread_id

    async def fill(self, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        async with self.layer.engine.begin() as connection:
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                await connection.execute(table.insert(), rows[start : start + _ROWS_AT_ONCE])

    async def steps(self, thread_id: str, number: int, **values: Any) -> list[str]:
        ids = [str(uuid.uuid4()) for _ in range(number)]
        plain = {"threadId": thread_id, "name": "x", "type": "run", "streaming": False, "output": "hello"}
        plain |= {"metadata": {}, **values}
        made = [
            {**plain, "id": key, "createdAt": f"2026-01-01T00:00:00.{place:06}Z"}
            for place, key in enumerate(ids)
        ]
        await self.fill(schema.steps, made)
        return ids

    async def pages(self, **filters: Any) -> Any:
        wanted = ThreadFilter(userId=self.user_id, **filters)
        page = await self.layer.list_threads(Pagination(first=10**9), wanted)
        return page.to_dict()


Act = Callable[[], Awaitable[Any]]
Case = Callable[[Attack], Awaitable[Act]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def add(prepare: Case) -> Case:
        CASES[name] = prepare
        return prepare

    return add


@case("open a thread of 100,000 steps")
async def _many_steps(attack: Attack) -> Act:
    thread_id = await attack.thread()
    await attack.steps(thread_id, attack.many(100_000))
    return lambda: attack.layer.get_thread(thread_id)


@case("open a thread with a message of 16 MiB")
async def _long_step(attack: Attack) -> Act:
    thread_id = await attack.thread()
    await attack.steps(thread_id, 1, output="word " * attack.many(3_300_000))
    return lambda: attack.layer.get_thread(thread_id)


@case("open a thread of 20 messages of 16 MiB")
async def _long_steps(attack: Attack) -> Act:
    thread_id = await attack.thread()
    for _ in range(20):
        await attack.steps(thread_id, 1, output="word " * attack.many(3_300_000))
    return lambda: attack.layer.get_thread(thread_id)


@case("open a thread of 20 steps with 16 MiB of metadata")
async def _heavy_steps(attack: Attack) -> Act:
    thread_id = await attack.thread()
    for _ in range(20):
        await attack.steps(thread_id, 1, metadata={"list": [0] * attack.many(5_000_000)})
    return lambda: attack.layer.get_thread(thread_id)


@case("open a thread of 20,000 elements")
async def _elements(attack: Attack) -> Act:
    thread_id = await attack.thread()
    made = [
        {"id": str(uuid.uuid4()), "threadId": thread_id, "name": "x", "objectKey": f"x/{number}"}
        for number in range(attack.many(20_000))
    ]
    await attack.fill(schema.elements, made)
    return lambda: attack.layer.get_thread(thread_id)


async def _feedbacks(attack: Attack, steps: int, number: int) -> str:
    thread_id = await attack.thread(updatedAt="2026-01-01T00:00:00Z")
    for key in await attack.steps(thread_id, steps):
        made = [
            {
                "id": str(uuid.uuid4()),
                "forId": key,
                "threadId": thread_id,
                "value": 0,
                schema.WRITTEN_AT: place,
            }
            for place in range(number)
        ]
        made[-1]["value"] = 1
        await attack.fill(schema.feedbacks, made)
    return thread_id


@case("open a thread of 50 steps with 2,000 feedbacks each")
async def _rated(attack: Attack) -> Act:
    thread_id = await _feedbacks(attack, 50, attack.many(2_000))
    return lambda: attack.layer.get_thread(thread_id)


@case("list those rated 0, with 20,000 feedbacks on a step")
async def _list_rated(attack: Attack) -> Act:
    await _feedbacks(attack, 1, attack.many(20_000))
    return lambda: attack.pages(feedback=0)


@case("list 10**9 of 20,000 threads")
async def _many_threads(attack: Attack) -> Act:
    made = [
        {"id": str(uuid.uuid4()), "userId": attack.user_id, "name": "x", "updatedAt": f"2026-01-01T{n:06}Z"}
        for n in range(attack.many(20_000))
    ]
    await attack.fill(schema.threads, made)
    return attack.pages


@case("list 200 threads with 1 MiB of metadata")
async def _heavy_threads(attack: Attack) -> Act:
    for number in range(200):
        await attack.thread(
            updatedAt=f"2026-01-01T{number:06}Z", metadata={"list": [0] * attack.many(320_000)}
        )
    return attack.pages


def _search(case_name: str, needle: str) -> None:
    @case(case_name)
    async def searched(attack: Attack) -> Act:
        thread_id = await attack.thread(updatedAt="2026-01-01T00:00:00Z")
        for _ in range(3):
            await attack.steps(thread_id, 1, output="a" * attack.many(16 * _MIB - 100))
        return lambda: attack.pages(search=needle)


_search("search three messages of 16 MiB", "b" + "a" * 400_000)


@case("list 20,000 favourites")
async def _favourites(attack: Attack) -> Act:
    thread_id = await attack.thread()
    await attack.steps(thread_id, attack.many(20_000), metadata={"favorite": True})
    return lambda: attack.layer.get_favorite_steps(attack.user_id)


@case("list 20 favourites of 16 MiB")
async def _long_favourites(attack: Attack) -> Act:
    thread_id = await attack.thread()
    for _ in range(20):
        await attack.steps(thread_id, 1, metadata={"favorite": True}, output="word " * attack.many(3_300_000))
    return lambda: attack.layer.get_favorite_steps(attack.user_id)


@case("delete a thread of 100,000 steps")
async def _delete_thread(attack: Attack) -> Act:
    thread_id = await attack.thread()
    await attack.steps(thread_id, attack.many(100_000))
    return lambda: attack.layer.delete_thread(thread_id)


@case("delete a step with 100,000 below it")
async def _delete_step(attack: Attack) -> Act:
    thread_id = await attack.thread()
    (top,) = await attack.steps(thread_id, 1)
    await attack.steps(thread_id, attack.many(100_000), parentId=top)
    return lambda: attack.layer.delete_step(top)


@case("delete a step, the uppermost of 20,000 in a chain")
async def _delete_chain(attack: Attack) -> Act:
    thread_id = await attack.thread()
    ids = [str(uuid.uuid4()) for _ in range(attack.many(20_000))]
    made = [
        {"id": key, "parentId": above, "threadId": thread_id, "name": "x", "type": "run", "streaming": False}
        for key, above in zip(ids, [None, *ids], strict=False)
    ]
    await attack.fill(schema.steps, made)
    return lambda: attack.layer.delete_step(ids[0])


@case("write a message of 16 MiB")
async def _write_long(attack: Attack) -> Act:
    thread_id = await attack.thread()
    step: Any = {"id": str(uuid.uuid4()), "threadId": thread_id, "name": "x", "type": "run"}
    step["output"] = "a" * attack.many(16 * _MIB - 2000)
    return lambda: attack.layer.create_step(step)


@case("write 20 messages of 16 MiB at once")
async def _write_many_long(attack: Attack) -> Act:
    thread_id = await attack.thread()

    def step() -> Any:
        made = {"id": str(uuid.uuid4()), "threadId": thread_id, "name": "x", "type": "run"}
        return {**made, "output": "word " * attack.many(3_300_000)}

    async def write() -> None:
        await asyncio.gather(*(attack.layer.create_step(step()) for _ in range(20)))
        await attack.layer.flush()

    return write


@case("name a thread with 16 MiB")
async def _write_name(attack: Attack) -> Act:
    thread_id = await attack.thread()
    return lambda: attack.layer.update_thread(thread_id, name="a" * attack.many(16 * _MIB))


class Neighbour:
    """Reads a small thread and writes to it, over and over; and how late the event loop is."""

    def __init__(self, layer: ForebayDataLayer) -> None:
        self._layer = layer
        self.read = self.write = self.loop = 0.0

    @asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        user = await self._layer.create_user(User(identifier="neighbour"))
        assert user is not None
        thread_id = str(uuid.uuid4())
        await self._layer.update_thread(thread_id, user_id=user.id)
        tasks = [asyncio.create_task(work) for work in (self._beats(), self._works(thread_id))]
        await asyncio.sleep(0.2)
        self.read = self.write = self.loop = 0.0
        yield
        self._ending = True
        await tasks[1]
        tasks[0].cancel()

    _ending = False

    async def _beats(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.002)
            self.loop = max(self.loop, time.monotonic() - before - 0.002)

    async def _works(self, thread_id: str) -> None:
        step: Any = {"id": str(uuid.uuid4()), "threadId": thread_id, "name": "x", "type": "run"}
        while not self._ending:
            before = time.monotonic()
            step["output"] = str(before)
            await self._layer.create_step(step)
            await self._layer.flush()
            written = time.monotonic()
            await self._layer.get_thread(thread_id)
            self.write = max(self.write, written - before)
            self.read = max(self.read, time.monotonic() - written)
            await asyncio.sleep(0.01)


async def _measured(url: str, database: str, name: str, small: bool) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(metrics_address="off", journal_dir=Path(folder), auto_migrate=True)
        layer = ForebayDataLayer(url, settings=settings)
        try:
            user = await layer.create_user(User(identifier=f"mallory {name}"))
            assert user is not None
            act = await CASES[name](Attack(layer, user.id, small))
            if database == "postgresql":
                async with layer.engine.connect() as connection:
                    await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(
                        sa.text("ANALYZE")
                    )
            neighbour = Neighbour(layer)
            async with neighbour.around():
                before, outcome, answer = time.monotonic(), "done", None
                try:
                    answer = await act()
                except ForebayError as error:
                    outcome = type(error).__name__
                took = time.monotonic() - before
                await asyncio.sleep(0.05)
            before = time.monotonic()
            size = 0
            if answer is not None and not isinstance(answer, bool):
                body = JSONResponse(answer).body
                size = len(body)
                gzip.compress(body, 9)
            chainlit = time.monotonic() - before
            return Figures(
                database,
                name,
                took,
                neighbour.loop,
                neighbour.read,
                neighbour.write,
                size / _MIB,
                chainlit,
                outcome,
            )
        finally:
            await layer.close()


def _line(one: Figures) -> str:
    seconds = " ".join(f"{name} {getattr(one, name):7.3f}" for name in ("took", "loop", "read", "write"))
    rest = f"answer {one.answer:6.1f} MiB, chainlit {one.chainlit:6.3f}  {one.outcome}"
    return f"{one.database:10}  {one.case:58} {seconds}  {rest}"


def _save(figures: list[Figures]) -> None:
    """Also what is there of a run that is under way; it takes minutes."""
    machine = (
        f"{os.cpu_count()} cores with a load of {os.getloadavg()[1]:.0f}, Python {platform.python_version()}"
    )
    found = {"machine": machine, "figures": [asdict(one) for one in figures]}
    _RESULTS.write_text(json.dumps(found, indent=1) + "\n")


@click.command()
@click.option("--only", default="", help="Cases whose name contains this.")
@click.option("--database", type=click.Choice(["postgresql", "sqlite", "both"]), default="both")
@click.option("--small", is_flag=True, help="A fiftieth of everything.")
@click.option("--save", is_flag=True, help=f"Write {_RESULTS.name}, from which the page's table is made.")
def main(only: str, database: str, small: bool, save: bool) -> None:
    """Measure each case on each database, and print the table."""
    figures = []
    kinds = ["postgresql", "sqlite"] if database == "both" else [database]
    with PostgresServer() as server:
        for kind in kinds:
            for name in CASES:
                if only in name:
                    with tempfile.TemporaryDirectory() as folder:
                        url = server.create_database() if kind == "postgresql" else f"sqlite:///{folder}/c.db"
                        figures.append(asyncio.run(_measured(url, kind, name, small)))
                        if kind == "postgresql":
                            server.drop_database(url)
                    click.echo(_line(figures[-1]))
                    if save:
                        _save(figures)


if __name__ == "__main__":
    main()
