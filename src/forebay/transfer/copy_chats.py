"""Coming from a source that gives whole chats, in passes as from the official layer; see `change_over`.

It is read whole in each pass, and what has not changed since the last is not written again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, tzinfo
from typing import Any

import sqlalchemy as sa

from forebay.database.imported import Imported, Taken
from forebay.database.store import Store
from forebay.transfer.bring import Bringer, Brought, Progress
from forebay.transfer.chats import Chat, Chats, Rows, fingerprint
from forebay.transfer.estimate import SAMPLED, Sample
from forebay.transfer.passes import AT_ONCE, Pass, copies_after, delete_gone, pages_of, take_again

_ANY_TIME = 2**62
_IDS_A_PAGE = 1000


class ChatCopy:
    """Brings what `source` has into `store`. `zone`: of times that say none, and of those that say UTC wrongly.

    Every method raises a DatabaseError, and what the source raises; `prepare` comes first.
    """

    def __init__(self, source: Chats, store: Store, zone: tzinfo = UTC) -> None:
        self._source = source
        self._store = store
        self._zone = zone
        self._seen: set[str] = set()

    async def look(self) -> tuple[dict[str, int], Counter[str], dict[str, int]]:
        """The rows that there are, those that are left out, and about how many seconds and megabytes it takes."""
        rows, counts, sampled = self._rows(_ANY_TIME), Counter[str](), 0
        kinds = ("user", "thread", "step", "element", "feedback")
        counts["user"] = len([person async for person in self._source.people()])
        sample = Sample()
        async for chat in self._source.chats():
            found = list(rows.of(chat, 0))
            counts.update(table[:-1] for table, _ in found)
            if sampled < SAMPLED:
                sample.add(found)
                sampled += 1
        share = sample.rows / max(1, sum(counts.values()) - counts["user"])
        return (
            {kind: counts[kind] for kind in kinds},
            self._source.left_out + rows.left_out,
            sample.of(share),
        )

    async def prepare(self) -> None:
        """Look whether all is as it must be before anything is written."""
        await self._store.prepare()
        self._imported = Imported(self._store, self._source.whose)
        await self._imported.prepare()

    def _rows(self, began_at: int) -> Rows:
        return Rows(self._zone, began_at)

    async def run(self, progress: Progress) -> Pass:
        """One pass. `progress` gets the threads looked at, and how many there are, as far as is known."""
        (now,) = await self._store.select(sa.select(self._store.statements.moment.label("now")))
        rows, bringer = self._rows(int(now["now"])), Bringer(self._store)
        done = Pass(bringer.brought)
        self._source.left_out.clear()
        self._seen.clear()
        await bringer.people([rows.user(person) async for person in self._source.people()])
        async for some in self._some():
            await self._take(some, rows, bringer, done)
            done.looked_at += len(some)
            progress(done.looked_at, done.looked_at)
        done.left_out = self._source.left_out + rows.left_out
        return done

    async def _some(self) -> AsyncIterator[list[Chat]]:
        some: list[Chat] = []
        async for chat in self._source.chats():
            if chat["id"] in self._seen:
                self._source.left_out["threads that come a second time"] += 1
                continue
            self._seen.add(chat["id"])
            some.append(chat)
            if len(some) == AT_ONCE:
                yield some
                some = []
        if some:
            yield some

    async def _take(self, some: list[Chat], rows: Rows, bringer: Bringer, done: Pass) -> None:
        marks = {chat["id"]: fingerprint(chat) for chat in some}
        known = await self._imported.known(list(marks))
        changed = [
            chat
            for chat in some
            if chat["id"] not in known or known[chat["id"]].fingerprint != marks[chat["id"]]
        ]
        await self._bring_owners(changed, rows, bringer)
        taken: list[Taken] = []
        for chat in changed:
            before = known.get(chat["id"])
            found = list(rows.of(chat, copies_after(before)))
            taken.append(await take_again(bringer, chat["id"], marks[chat["id"]], found, before))
        await bringer.write()
        refused = bringer.refused_threads
        if kept := [one for one in taken if bringer.spell(one.thread) not in refused]:
            await self._imported.note(kept)
        done.threads += len(changed)

    async def _bring_owners(self, chats: list[Chat], rows: Rows, bringer: Bringer) -> None:
        """Owners whom the source does not have by themselves; who is known by an id alone is nobody."""
        people: dict[str, Mapping[str, Any]] = {}
        for chat in chats:
            owner, name = chat.get("userId"), chat.get("userIdentifier")
            if owner is None or bringer.knows(owner):
                continue
            if name:
                people[owner] = {"id": owner, "identifier": name}
            else:
                chat["userId"] = None
                rows.left_out["owners of threads who are not there"] += 1
        await bringer.people([rows.user(person) for person in people.values()])

    async def finish(self, *, anyhow: bool) -> Brought:
        """Delete the threads that the last pass has not seen; see `passes.delete_gone`."""
        bringer = Bringer(self._store)
        gone = [
            thread
            async for page in pages_of(self._imported, _IDS_A_PAGE)
            for thread in page
            if thread not in self._seen
        ]
        await delete_gone(self._imported, bringer, gone, anyhow=anyhow)
        return bringer.brought
