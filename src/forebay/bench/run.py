"""Starts the measurements one after the other, each in a process and on a database of its own.

The layers alternate over the rounds, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Self

from forebay.bench import gauges, seed
from forebay.bench.plan import (
    FOREBAY,
    LIGHT,
    PACED,
    PARTS,
    READERS,
    ROW_WRITERS,
    STEADY,
    WRITERS,
    Kind,
    Load,
    Part,
    Reading,
    Scale,
    Subject,
)
from forebay.bench.postgres import PostgresServer, name_of
from forebay.bench.processes import MeasurementFailed, Processes, started
from forebay.bench.report import Report, Result, Runs

Tell = Callable[[str], None]
_LOOK_EVERY = 0.05  # seconds between two looks at the connections
_TABLES: tuple[Kind, ...] = ("forebay", "chainlit")
# Before PostgreSQL 15 there is one way to copy a database; since then the usual one writes it all to the log.
_STRATEGY_SINCE = 150000


def steps_of(scale: Scale, parts: Sequence[Part]) -> int:
    """How many times `run` tells what it does."""
    loads = (WRITERS, ROW_WRITERS, STEADY, LIGHT, PACED)
    writes = scale.rounds * (sum(map(len, loads)) + 1) if "writes" in parts else 0
    return writes + (scale.rounds * len(READERS) + len(_TABLES) if "reads" in parts else 0)


async def run(
    server: PostgresServer, scale: Scale, parts: Sequence[Part] = PARTS, tell: Tell = print
) -> Report:
    """Measure everything of a scale; `tell` is called before each measurement with its name.

    Raises MeasurementFailed.
    """
    async with Bench(server, tell) as bench:
        report = Report(scale=asdict(scale), about=bench.about())
        if "writes" in parts:
            await _run_writes(bench, scale, report)
        if "reads" in parts:
            await _run_reads(bench, scale, report)
        return report


async def _run_writes(bench: Bench, scale: Scale, report: Report) -> None:
    plain = await bench.without_indexes(bench.keep(bench.database("forebay")))
    for _ in range(scale.rounds):
        for subject in WRITERS:
            await bench.write(report.writes, subject, scale.load(subject))
        for subject in ROW_WRITERS:
            await bench.write(report.rows, subject, scale.load(subject, updates=False))
        for subject in STEADY:
            await bench.write(report.steady, subject, scale.steady)
        for subject in LIGHT:
            await bench.write(report.light, subject, scale.light)
        for subject in PACED:
            own = None if subject.indexes else plain
            await bench.write(report.paced, subject, scale.paced, own)
        await bench.start(report.start)


async def _run_reads(bench: Bench, scale: Scale, report: Report) -> None:
    groups = seed.groups(scale.owned, scale.others)
    databases = {kind: await bench.fill(kind, groups) for kind in _TABLES}
    plain = await bench.without_indexes(databases["forebay"])
    for _ in range(scale.rounds):
        for subject in READERS:
            own = databases["chainlit" if subject.kind == "chainlit" else "forebay"]
            found = report.reads.setdefault(subject.name, {})
            await bench.read(found, subject, own if subject.indexes else plain, scale)


class Bench:
    """The databases and the processes of a run. An asynchronous context manager, which leaves nothing behind."""

    def __init__(self, server: PostgresServer, tell: Tell) -> None:
        self.tell = tell
        self._server = server
        self._templates: dict[Kind, str] = {}
        self._databases: list[str] = []
        self._processes = Processes()

    async def __aenter__(self) -> Self:
        try:
            await self._make_templates()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._processes.__aexit__()
        for url in self._databases:
            self._server.drop_database(url)

    # ---- databases

    async def _make_templates(self) -> None:
        """A database with each kind of tables, to copy."""
        for kind in _TABLES:
            self._templates[kind] = self.keep(self._server.create_database())
            await self._order("tables", Subject(kind, kind), self._templates[kind])

    async def fill(self, kind: Kind, groups: Iterable[seed.Group], url: str | None = None) -> str:
        """A new database full of rows, or more rows in the one at `url`; its URL."""
        self.tell(f"filling tables: {kind}")
        url = url or self.keep(self.database(kind))
        await self._order("fill", Subject(kind, kind), url, groups=[asdict(group) for group in groups])
        return url

    async def without_indexes(self, url: str) -> str:
        """A copy without forebay's indexes; its URL."""
        copied = self.keep(self._copy(url))
        await self._order("drop indexes", Subject("sqlalchemy", "sqlalchemy"), copied)
        return copied

    def database(self, kind: Kind) -> str:
        """A new database with empty tables; its URL."""
        return self._server.create_database(
            name_of(self._templates["chainlit" if kind == "chainlit" else "forebay"])
        )

    def keep(self, url: str) -> str:
        """The database is there until the end."""
        self._databases.append(url)
        return url

    def _copy(self, url: str) -> str:
        new = int(self._server.execute("SHOW server_version_num")[0][0]) >= _STRATEGY_SINCE
        return self._server.create_database(name_of(url), strategy="FILE_COPY" if new else None)

    @property
    def home(self) -> str:
        """The URL of the server's own database."""
        return self._server.home

    def about(self) -> dict[str, str]:
        """What this was measured on."""
        asked = {
            name: self._server.execute(f"SHOW {name}")[0][0]
            for name in ("server_version", "fsync", "synchronous_commit")
        }
        return {
            "forebay": version("forebay"),
            "chainlit": version("chainlit"),
            "python": platform.python_version(),
            "postgresql": asked["server_version"].split()[0],
            "fsync": asked["fsync"],
            "synchronous_commit": asked["synchronous_commit"],
            "cores": str(os.cpu_count()),
            "system": platform.system(),
        }

    # ---- measurements

    async def write(
        self,
        runs: Runs,
        subject: Subject,
        load: Load,
        url: str | None = None,
        *,
        through: Callable[[str], str] | None = None,
        limit: float = 0.0,
        where: str = "writes",
    ) -> None:
        """A measurement of writes on a fresh database, or on the one at `url`; it is added to `runs`.

        `through` turns the URL into the one to write through. After `limit` seconds, unless it is 0, it is ended.
        """
        self.tell(f"{subject.name}: {where}")
        database = url or self.database(subject.kind)
        used = through(database) if through is not None else database
        try:
            async with self._watched(database) as peak:
                answer = await self._processes.order(
                    "write", subject=asdict(subject), url=used, load=asdict(load), limit=limit
                )
            result: Result = {"over_s": limit}
            if answer.alarmed:
                self._end_sessions(database)
            else:
                [result] = answer.results
                if not subject.is_floor:
                    result["connections_peak"] = float(peak())
        finally:
            if url is None:
                self._server.drop_database(database)
        runs.setdefault(subject.name, []).append(result)

    async def start(self, runs: Runs) -> None:
        """A measurement of a start, in an interpreter that has loaded Chainlit alone; it is added to `runs`."""
        self.tell(f"{FOREBAY}: start")
        database = self.database("forebay")
        try:
            runs.setdefault(FOREBAY, []).append(await started(database))
        finally:
            self._server.drop_database(database)

    @contextlib.asynccontextmanager
    async def _watched(self, url: str) -> Any:
        """How many were connected to a database at most, meanwhile."""
        connection = await gauges.connect(self._server.home)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await gauges.connections(connection, name_of(url)))
                await asyncio.sleep(_LOOK_EVERY)

        task = asyncio.create_task(watch())
        try:
            yield lambda: most
        finally:
            task.cancel()
            await asyncio.wait([task])
            await connection.close()

    async def read(self, found: dict[str, list[Result]], subject: Subject, url: str, scale: Scale) -> None:
        """A measurement of each kind of read, added to `found`; what takes longer than the limit is left at that."""
        self.tell(f"{subject.name}: reads")
        left = [reading for reading in scale.readings if not _is_over(found, reading)]
        bounds = {"repeats": scale.repeats, "budget": scale.budget, "limit": scale.limit}
        while left:
            asked = [asdict(reading) for reading in left]
            answer = await self._processes.order(
                "read", subject=asdict(subject), url=url, readings=asked, **bounds
            )
            for result in answer.results:
                found.setdefault(str(result.pop("reading")), []).append(result)
            left = left[len(answer.results) :]
            if left and answer.alarmed:
                found.setdefault(left[0].name, []).append({"over_ms": scale.limit * 1000})
                self._end_sessions(url)
                left = left[1:]

    def _end_sessions(self, url: str) -> None:
        self._server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name_of(url)}'"
        )

    async def _order(self, task: str, subject: Subject, url: str, **more: Any) -> list[Any]:
        answer = await self._processes.order(task, subject=asdict(subject), url=url, **more)
        if answer.alarmed:
            raise MeasurementFailed(f"{subject.name}: {task} took too long")
        return answer.results


def _is_over(found: dict[str, list[Result]], reading: Reading) -> bool:
    return any("over_ms" in result for result in found.get(reading.name, ()))
