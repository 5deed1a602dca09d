"""Coming from Chainlit's official layer: its rows into forebay's tables, in passes while both run, until the last.

Each pass takes the threads that have changed since the one before. What forebay has written itself always wins over
what is copied, and so does what it has deleted; what the source has changed wins over the copy before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from forebay.database.imported import Imported, Taken
from forebay.database.official import Found, Looked, Marked, Official, Page
from forebay.database.official_views import make_views
from forebay.database.queries import Row
from forebay.database.store import Store
from forebay.model import schema
from forebay.model.schema import NOTES, WRITTEN_AT, Merge, merge_of
from forebay.transfer.bring import Bringer, Brought, Progress
from forebay.transfer.clocks import Zones, settled
from forebay.transfer.estimate import SAMPLED, Sample
from forebay.transfer.official_rows import Copy
from forebay.transfer.passes import AT_ONCE, Pass, copies_after, delete_gone, pages_of, take_again

_THREADS_A_PAGE = 200
_ANY_TIME = 2**62


@dataclass(frozen=True)
class Choices:
    """What somebody said of a source: its clocks' time zones, and which feedbacks by name are people's too."""

    application_zone: str | None
    database_zone: str | None
    feedback_names: Sequence[str]


@dataclass(frozen=True)
class Difference:
    """A column of a row that is not what the source says, and was not written here since."""

    table: str
    key: str
    column: str


class ChangeOver:
    """Brings what `source` has into `store`. Every method raises a DatabaseError; `prepare` comes first."""

    def __init__(self, source: Official, store: Store, choices: Choices) -> None:
        self._source = source
        self._store = store
        self._choices = choices
        self._zones = Zones()

    async def look(self) -> tuple[Looked, Zones, dict[str, int]]:
        """What there is, its clocks' zones, and about how many seconds and megabytes it takes.

        Raises SchemaError, or SettingsError where the zones are not clear.
        """
        await self._source.whose()
        async with self._source.page() as page:
            looked, self._zones = await page.looked(), await self._settle(page)
            return looked, self._zones, await self._estimate(page, looked.rows["thread"])

    async def _estimate(self, page: Page, threads: int) -> dict[str, int]:
        ids, copy, sample = await page.some(SAMPLED), self._copy(_ANY_TIME), Sample()
        for start in range(0, len(ids), AT_ONCE):
            for found in await page.threads(ids[start : start + AT_ONCE]):
                sample.add(copy.rows(found, 0, Counter()))
        return sample.of(len(ids) / threads if threads else 0)

    async def prepare(self) -> Zones:
        """Look whether all is as it must be before anything is written."""
        whose = await self._source.whose()
        async with self._source.page() as page:
            self._zones = await self._settle(page)
        await self._store.prepare()
        self._imported = Imported(self._store, whose)
        await self._imported.prepare()
        return self._zones

    async def _settle(self, page: Page) -> Zones:
        return settled(await page.clocks(), self._choices.application_zone, self._choices.database_zone)

    async def run(self, progress: Progress) -> Pass:
        """One pass. `progress` gets the threads looked at, and how many there are."""
        bringer = Bringer(self._store)
        done = Pass(bringer.brought)
        copy = self._copy(await self._now())
        async with self._source.page() as page:
            total = await page.number('SELECT count(*) FROM "Thread"')
            await self._bring_people(page, bringer, copy)
        after = ""
        while True:
            async with self._source.page() as page:
                marked = await page.marked(after, _THREADS_A_PAGE)
            if not marked:
                return done
            await self._take(marked, copy, bringer, done)
            after = marked[-1].id
            done.looked_at += len(marked)
            progress(done.looked_at, max(total, done.looked_at))

    async def _bring_people(self, page: Page, bringer: Bringer, copy: Copy) -> None:
        async for people in page.users():
            await bringer.people([copy.user(row) for row in people])

    def _copy(self, began_at: int) -> Copy:
        return Copy(self._zones, frozenset(self._choices.feedback_names), began_at)

    async def _now(self) -> int:
        """By the clock of the database that is written to, in microseconds since 1970."""
        (row,) = await self._store.select(sa.select(self._store.statements.moment.label("now")))
        return int(row["now"])

    async def _take(self, marked: Sequence[Marked], copy: Copy, bringer: Bringer, done: Pass) -> None:
        known = await self._imported.known([one.id for one in marked])
        changed = [
            one for one in marked if one.id not in known or known[one.id].fingerprint != one.fingerprint
        ]
        for start in range(0, len(changed), AT_ONCE):
            some = changed[start : start + AT_ONCE]
            # Of a later snapshot than the fingerprints: what has changed in between is copied twice.
            async with self._source.page() as page:
                found = {one.thread["id"]: one for one in await page.threads([one.id for one in some])}
            taken = [
                await self._take_thread(one, found[one.id], known.get(one.id), copy, bringer, done)
                for one in some
                if one.id in found
            ]
            await bringer.write()
            await self._imported.note(
                [one for one in taken if bringer.spell(one.thread) not in bringer.refused_threads]
            )
            done.threads += len(some)

    async def _take_thread(
        self,
        marked: Marked,
        found: Found,
        before: Taken | None,
        copy: Copy,
        bringer: Bringer,
        done: Pass,
    ) -> Taken:
        if marked.deleted_at is not None:
            moment = max(copy.deleted_at(marked.deleted_at), before.newest if before is not None else 0)
            await bringer.remove("threads", marked.id, marked.id, moment)
            return Taken(marked.id, marked.fingerprint, copies_after(before), moment)
        rows = list(copy.rows(found, copies_after(before), done.left_out))
        return await take_again(bringer, marked.id, marked.fingerprint, rows, before)

    async def finish(self, *, anyhow: bool) -> Brought:
        """Delete the threads that the source has deleted, and forget what was copied: the next import begins anew.

        Raises SourceEmptied where more than 5 % are gone, unless `anyhow`.
        """
        bringer = Bringer(self._store)
        gone = [thread async for page in self._gone() for thread in page]
        await delete_gone(self._imported, bringer, gone, anyhow=anyhow)
        return bringer.brought

    async def _gone(self) -> AsyncIterator[list[str]]:
        async for page in pages_of(self._imported, _THREADS_A_PAGE):
            async with self._source.page() as there:
                yield sorted(set(page) - await there.there(page))

    async def make_views(self, schema_name: str) -> None:
        """The source's tables as views. Raises SettingsError where the database has none."""
        await make_views(self._store, schema_name)

    async def verify(self, number: int) -> tuple[int, list[Difference]]:
        """Read so many threads, drawn at random, on both sides: how many were compared, and what differs."""
        bringer, copy = Bringer(self._store), self._copy(await self._now())
        async with self._source.page() as page:
            await self._bring_people(page, bringer, copy)
            ids = await page.some(number)
            found = await page.threads(ids)
        known = await self._imported.known(ids)
        differences: list[Difference] = []
        compared = [one for one in found if one.thread["id"] in known]
        for one in compared:
            taken = known[one.thread["id"]]
            rows = list(copy.rows(one, taken.copies, Counter()))
            differences += await self._compare(rows, bringer)
        return len(compared), differences

    async def _compare(
        self, rows: Sequence[tuple[str, Mapping[str, Any]]], bringer: Bringer
    ) -> list[Difference]:
        wanted = [(table, bringer.spelled(table, row)) for table, row in rows]
        ids: dict[str, list[str]] = {}
        for table, row in wanted:
            ids.setdefault(table, []).append(row["id"])
        stored = {table: await self._rows(schema.TABLES[table], keys) for table, keys in ids.items()}
        found: list[Difference] = []
        for table, row in wanted:
            there = stored[table].get(row["id"])
            if there is None and await self._is_deleted(table, row["id"]):
                if table == "threads":
                    return []  # with all that is in it
            elif there is None:
                found.append(Difference(table, row["id"], "id"))
            elif (there.get(WRITTEN_AT) or 0) <= row[WRITTEN_AT]:
                found += [Difference(table, row["id"], name) for name in _differing(table, row, there)]
        return found

    async def _rows(self, table: sa.Table, ids: Sequence[str]) -> dict[str, Row]:
        found = await self._store.select(sa.select(table).where(table.c.id.in_(ids)))
        return {str(row["id"]): row for row in found}

    async def _is_deleted(self, table: str, key: str) -> bool:
        gone = schema.deleted
        return bool(
            await self._store.select(sa.select(gone.c.id).where(gone.c.kind == table, gone.c.id == key))
        )


def _differing(table: str, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    columns = schema.TABLES[table].columns
    differing = []
    for name, value in wanted.items():
        if name in NOTES or value is None or name == schema.EXTRA:
            continue
        there = stored[name]
        if merge_of(columns[name]) is Merge.KEYS:
            value = {key: item for key, item in value.items() if item is not None}
            there = {key: item for key, item in (there or {}).items() if key in value}
        if there != value:
            differing.append(name)
    return differing
