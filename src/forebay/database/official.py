"""Reading the tables of Chainlit's official layer, with rights to SELECT alone: what changed, and a page of threads.

A thread is known by a fingerprint of its rows, since no column of that layer tells that one was changed: PostgreSQL's
own mark of who wrote a row last (`xmin`) does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from forebay.database.connections.endpoint import Endpoint
from forebay.database.connections.opening import Role
from forebay.database.queries import Row, rows_of
from forebay.database.translation import translated
from forebay.database.urls import is_postgres, parse_url
from forebay.errors import SchemaError, SettingsError
from forebay.settings import Settings

VARIABLE = "FOREBAY_IMPORT_SOURCE"
_USERS_A_PAGE = 1000


_TABLES = ("User", "Thread", "Step", "Element", "Feedback")
_IS_UUID = "~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'"

# What decides over a source: which server, which database there, and which copy of the tables.
_WHOSE = """SELECT concat_ws('.', (SELECT system_identifier FROM pg_control_system()), current_database(),
'"Thread"'::regclass::oid)"""

_FINGERPRINTS = """
WITH page AS (
    SELECT id, "deletedAt", xmin FROM "Thread" WHERE id > :after ORDER BY id LIMIT :size
), inner_rows AS (
    SELECT id AS thread, hashtextextended('t' || id || xmin::text, 0) AS mark FROM page
    UNION ALL
    SELECT s."threadId", hashtextextended('s' || s.id || s.xmin::text, 0)
    FROM page JOIN "Step" s ON s."threadId" = page.id
    UNION ALL
    SELECT e."threadId", hashtextextended('e' || e.id || e.xmin::text, 0)
    FROM page JOIN "Element" e ON e."threadId" = page.id
    UNION ALL
    SELECT s."threadId", hashtextextended('o' || e.id || e.xmin::text, 0)
    FROM page JOIN "Step" s ON s."threadId" = page.id JOIN "Element" e ON e."stepId" = s.id
    WHERE e."threadId" IS NULL
    UNION ALL
    SELECT s."threadId", hashtextextended('f' || f.id || f.xmin::text, 0)
    FROM page JOIN "Step" s ON s."threadId" = page.id JOIN "Feedback" f ON f."stepId" = s.id
)
SELECT page.id, page."deletedAt", sum(inner_rows.mark)::text AS fingerprint
FROM page JOIN inner_rows ON inner_rows.thread = page.id GROUP BY 1, 2 ORDER BY 1
"""

_ROWS: dict[str, str] = {
    "Thread": """SELECT t.*, t.id AS thread, u.identifier FROM "Thread" t
LEFT JOIN "User" u ON u.id = t."userId" WHERE t.id = ANY(:ids)""",
    "Step": 'SELECT s.*, s."threadId" AS thread FROM "Step" s WHERE s."threadId" = ANY(:ids)',
    # In two halves: PostgreSQL has no index for the two together.
    "Element": """SELECT e.*, e."threadId" AS thread FROM "Element" e WHERE e."threadId" = ANY(:ids)
UNION ALL SELECT e.*, s."threadId" FROM "Step" s JOIN "Element" e ON e."stepId" = s.id
WHERE e."threadId" IS NULL AND s."threadId" = ANY(:ids)""",
    "Feedback": """SELECT f.*, s."threadId" AS thread FROM "Step" s JOIN "Feedback" f ON f."stepId" = s.id
WHERE s."threadId" = ANY(:ids)""",
}

# Each: what is counted, by the name that people read.
_COUNTS: dict[str, str] = {
    "user": 'SELECT count(*) FROM "User"',
    "thread": 'SELECT count(*) FROM "Thread" WHERE "deletedAt" IS NULL',
    "step": 'SELECT count(*) FROM "Step" s JOIN "Thread" t ON t.id = s."threadId" WHERE t."deletedAt" IS NULL',
    "element": """SELECT count(*) FROM "Element" e LEFT JOIN "Step" s ON s.id = e."stepId"
JOIN "Thread" t ON t.id = coalesce(e."threadId", s."threadId") WHERE t."deletedAt" IS NULL""",
    "feedback": """SELECT count(*) FROM "Feedback" f JOIN "Step" s ON s.id = f."stepId"
JOIN "Thread" t ON t.id = s."threadId" WHERE t."deletedAt" IS NULL""",
}
_LEFT_OUT: dict[str, str] = {
    "deleted threads": 'SELECT count(*) FROM "Thread" WHERE "deletedAt" IS NOT NULL',
    "steps without a thread": 'SELECT count(*) FROM "Step" WHERE "threadId" IS NULL',
    "elements without a thread": """SELECT count(*) FROM "Element" e LEFT JOIN "Step" s ON s.id = e."stepId"
WHERE e."threadId" IS NULL AND s."threadId" IS NULL""",
    "feedbacks without a step": """SELECT count(*) FROM "Feedback" f LEFT JOIN "Step" s ON s.id = f."stepId"
WHERE s."threadId" IS NULL""",
}
_NO_UUIDS = {
    table.lower(): f'SELECT count(*) FROM "{table}" WHERE NOT id {_IS_UUID}'  # noqa: S608 - both are from above
    for table in _TABLES
}
# What row-level security hides is missing without a word.
_HIDDEN = """SELECT relname FROM pg_class
WHERE oid = ANY(ARRAY['"User"', '"Thread"', '"Step"', '"Element"', '"Feedback"']::regclass[])
AND row_security_active(oid)"""

# No zone is further from UTC than that; a row that was made later than its message says nothing.
_DATABASE_OFFSETS = """
SELECT date_trunc('month', "startTime") AS month,
    (round(extract(epoch FROM "createdAt" - "startTime") / 900) * 900)::int AS seconds, count(*) AS number
FROM "Step" WHERE type = 'user_message' AND "threadId" IS NOT NULL
AND "createdAt" - "startTime" BETWEEN interval '-15 hours' AND interval '15 hours' GROUP BY 1, 2
"""
# A thread is changed after it was made, seldom at once.
_BETWEEN = """
SELECT date_trunc('month', "createdAt") AS month, min(extract(epoch FROM "updatedAt" - "createdAt"))::float AS seconds
FROM "Thread" WHERE "updatedAt" - "createdAt" BETWEEN interval '-27 hours' AND interval '27 hours' GROUP BY 1
"""


@dataclass(frozen=True)
class Clocks:
    """What the rows tell of two clocks, month by month, in seconds.

    `database`: how far that clock is from UTC; `between`: the least time from a thread's making, by the database's
    clock, to its change, by the application's.
    """

    database: Mapping[datetime, int]
    between: Mapping[datetime, float]


@dataclass(frozen=True)
class Marked:
    """A thread, and what tells whether one of its rows has changed since."""

    id: str
    deleted_at: datetime | None
    fingerprint: str


@dataclass
class Found:
    """A thread's rows, by table, as they stand in the source."""

    thread: Row
    rows: dict[str, list[Row]] = field(
        default_factory=lambda: {table: [] for table in ("Step", "Element", "Feedback")}
    )


@dataclass(frozen=True)
class Looked:
    """What a source has: rows to take, rows to leave out, ids that are no UUID; tables whose rows it may hide."""

    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    no_uuids: Mapping[str, int]
    hidden: Sequence[str]


class Page:
    """Reads within one snapshot."""

    def __init__(self, connection: AsyncConnection, location: str) -> None:
        self._connection = connection
        self._location = location

    async def fetch(self, statement: str, **parameters: Any) -> Sequence[Row]:
        """A statement's rows."""
        with translated(self._location, sends_rows=False):
            return await rows_of(self._connection, sa.text(statement), parameters)

    async def number(self, statement: str, **parameters: Any) -> int:
        """A statement's one number."""
        (row,) = await self.fetch(statement, **parameters)
        return int(next(iter(row.values())))

    async def marked(self, after: str, size: int) -> list[Marked]:
        """The next threads behind an id, in the order of the ids."""
        rows = await self.fetch(_FINGERPRINTS, after=after, size=size)
        return [Marked(row["id"], row["deletedAt"], row["fingerprint"]) for row in rows]

    async def threads(self, ids: Sequence[str]) -> list[Found]:
        """These threads, with all that is in them."""
        found = {row["thread"]: Found(row) for row in await self.fetch(_ROWS["Thread"], ids=list(ids))}
        for table in ("Step", "Element", "Feedback"):
            for row in await self.fetch(_ROWS[table], ids=list(ids)):
                if row["thread"] in found:
                    found[row["thread"]].rows[table].append(row)
        return [found[key] for key in ids if key in found]

    async def there(self, ids: Sequence[str]) -> set[str]:
        """Which of these threads are there, and not deleted."""
        rows = await self.fetch(
            'SELECT id FROM "Thread" WHERE id = ANY(:ids) AND "deletedAt" IS NULL', ids=list(ids)
        )
        return {row["id"] for row in rows}

    async def some(self, number: int) -> list[str]:
        """The ids of threads, drawn at random."""
        rows = await self.fetch(
            'SELECT id FROM "Thread" WHERE "deletedAt" IS NULL ORDER BY random() LIMIT :number', number=number
        )
        return [row["id"] for row in rows]

    async def users(self) -> AsyncIterator[Sequence[Row]]:
        """All people, a page at a time."""
        after = ""
        while rows := await self.fetch(
            'SELECT * FROM "User" WHERE id > :after ORDER BY id LIMIT :size', after=after, size=_USERS_A_PAGE
        ):
            yield rows
            after = rows[-1]["id"]

    async def clocks(self) -> Clocks:
        """From people's messages, of which the time of sending is UTC and that of the row the database's."""
        between = {row["month"]: row["seconds"] for row in await self.fetch(_BETWEEN)}
        return Clocks(_commonest(await self.fetch(_DATABASE_OFFSETS)), between)

    async def looked(self) -> Looked:
        """Count everything."""
        counted = [
            {name: await self.number(statement) for name, statement in statements.items()}
            for statements in (_COUNTS, _LEFT_OUT, _NO_UUIDS)
        ]
        hidden = [row["relname"] for row in await self.fetch(_HIDDEN)]
        return Looked(counted[0], counted[1], counted[2], hidden)


def _commonest(rows: Sequence[Row]) -> dict[datetime, int]:
    """The offset that most rows of a month have."""
    months: dict[datetime, Counter[int]] = {}
    for row in rows:
        months.setdefault(row["month"], Counter())[row["seconds"]] += row["number"]
    return {month: counter.most_common(1)[0][0] for month, counter in sorted(months.items())}


class Official:
    """The source: a PostgreSQL database, primary or standby. Nothing is written to it. Raises SettingsError."""

    def __init__(self, url: str, settings: Settings) -> None:
        parsed, arguments = parse_url(url, VARIABLE)
        if not is_postgres(parsed):
            raise SettingsError(f"{VARIABLE}: the official layer's tables are in PostgreSQL")
        self._endpoint = Endpoint(parsed, {**arguments, "target_session_attrs": Role.ANY}, settings, 1)
        self.location = self._endpoint.location

    async def whose(self) -> str:
        """What tells this source from every other. Raises SchemaError where the official layer's tables are not."""
        async with self.page() as page:
            found = await page.fetch(
                "SELECT name FROM unnest(CAST(:names AS text[])) AS name WHERE to_regclass(quote_ident(name)) IS NULL",
                names=list(_TABLES),
            )
            if found:
                missing = ", ".join(f'"{row["name"]}"' for row in found)
                raise SchemaError(f"these are not the official layer's tables: {missing} not found")
            (row,) = await page.fetch(_WHOSE)
            return str(next(iter(row.values())))

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Page]:
        """One snapshot, for a short while. Raises a DatabaseError."""
        with translated(self.location, sends_rows=False):
            connection = await self._endpoint.engine.connect()
        try:
            with translated(self.location, sends_rows=False):
                await connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            yield Page(connection, self.location)
        finally:
            await connection.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._endpoint.close()
