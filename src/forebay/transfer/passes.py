"""What every source's passes share: how a thread is taken again, and what is deleted here since it is gone there."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forebay.database.imported import Imported, Taken
from forebay.errors import ForebayError
from forebay.model.schema import WRITTEN_AT
from forebay.transfer.bring import Bringer, Brought

AT_ONCE = 20  # threads whose rows are in memory
MOST_GONE = 0.05  # of what was copied

Rows = Sequence[tuple[str, Mapping[str, Any]]]

_KEYS = "metadata"  # beside the tables' names: the keys of the thread's


class SourceEmptied(ForebayError):
    """More is gone from the source than people delete; nothing was deleted."""


@dataclass
class Pass:
    """What one pass did. `threads`: how many it copied, of `looked_at`; `left_out`: rows that it can't take, by why."""

    brought: Brought
    looked_at: int = 0
    threads: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    took: float = 0.0  # seconds


async def take_again(
    bringer: Bringer, thread_id: str, fingerprint: str, rows: Rows, before: Taken | None
) -> Taken:
    """Bring a thread's rows, and remove those of an earlier copy that are not among them."""
    ids = _ids(rows)
    newest = max(row[WRITTEN_AT] for _, row in rows)
    gone: set[str] = set()
    if before is not None:
        newest = max(newest, before.newest)
        gone = set(before.rows.get(_KEYS, ())) - set(ids[_KEYS])
        for table, keys in before.rows.items():
            if table == _KEYS:
                continue
            for key in set(keys) - set(ids.get(table, ())):
                await bringer.remove(table, key, thread_id, before.newest)
    for table, row in rows:
        await bringer.add(table, row, sorted(gone) if table == "threads" else ())
    return Taken(thread_id, fingerprint, copies_after(before), newest, ids)


def copies_after(before: Taken | None) -> int:
    """How often a thread was copied before."""
    return before.copies + 1 if before is not None else 0


async def delete_gone(imported: Imported, bringer: Bringer, gone: Sequence[str], *, anyhow: bool) -> None:
    """Delete the threads that the source has deleted, and forget what was copied: the next import begins anew.

    Raises SourceEmptied where more than 5 % are gone, unless `anyhow`.
    """
    count = await imported.count()
    if len(gone) > count * MOST_GONE and not anyhow:
        raise SourceEmptied(
            f"{len(gone):,} of {count:,} chats that were copied are gone from the source: is it the right one?"
            " Nothing was deleted; where they were deleted there, say --yes"
        )
    for start in range(0, len(gone), AT_ONCE):
        some = gone[start : start + AT_ONCE]
        for thread, taken in (await imported.known(some)).items():
            await bringer.remove("threads", thread, thread, taken.newest)
        await bringer.write()
        await imported.forget(some)
    await imported.end()


async def pages_of(imported: Imported, size: int) -> AsyncIterator[Sequence[str]]:
    """The ids of all threads that were taken, a page at a time."""
    after = ""
    while page := await imported.page(after, size):
        yield page
        after = page[-1]


def _ids(rows: Rows) -> dict[str, list[str]]:
    """The ids of a thread's inner rows, by table; and the keys of its metadata."""
    ids: dict[str, list[str]] = {}
    for table, row in rows:
        if table == "threads":
            ids[_KEYS] = [key for key, value in row["metadata"].items() if value is not None]
        else:
            ids.setdefault(table, []).append(row["id"])
    return ids
