"""Chainlit's dicts -> changes, and what two changes of one row are together.

A change is frozen the moment it is made: Chainlit shares and mutates the dicts that it passes, so whatever
can change is turned into JSON at once. A row holds no None: a missing column leaves the stored value alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from forebay.errors import ChangeTooLarge, RowError
from forebay.model import cleaning, moments, schema
from forebay.model.rows import Row, bytes_of, clean, size_of
from forebay.model.schema import (
    CLAIM,
    EXTRA,
    MADE_AT,
    MOMENTS,
    NOTES,
    OWNER,
    PASSES_ON,
    REPLACED,
    SENT_AT,
    THREAD_MADE_AT,
    WRITTEN_AT,
    Kind,
    Merge,
)

# What a queued change costs beside its text: the objects that hold it. Measured with tracemalloc.
OVERHEAD_BYTES = 600
_NAME_MAX_CHARS = 255
_NO_KEYS: frozenset[str] = frozenset()


@dataclass(slots=True)  # nobody changes it; `frozen` would take twice as long to make it
class Upsert:
    """One row's new values.

    `row` holds cleaned values by column, `removed` the keys that leave the row's merged object, `thread_id`
    the thread whose readers must see it, `size` its bytes in memory, about.
    """

    table: str
    key: str
    row: Row
    thread_id: str | None
    size: int
    removed: frozenset[str] = frozenset()


_last_moment = 0
# The database's clock, less this machine's since it was started, in microseconds. None until it was asked.
_database_ahead: int | None = None
# A moment that is further ahead than this is not followed: by the machine's clock, and by the database's.
_MOST_AHEAD_US, _MOST_AHEAD_OF_DATABASE_US = 24 * 3600 * 1_000_000, 5_000_000


def next_moment() -> int:
    """Microseconds since 1970, later than any before in this process, also when its clock is set back.

    By the database's clock as soon as that is known, so that the clocks of several machines are one. Later also than
    any that it was told of: with `observe` it is a hybrid logical clock.
    """
    global _last_moment
    now = time.time_ns() // 1000 if _database_ahead is None else time.monotonic_ns() // 1000 + _database_ahead
    if now <= _last_moment:
        now = _last_moment + 1
    _last_moment = now
    return now


def observe(moment: int) -> None:
    """A moment that a journal has named: what is done from now on is later."""
    global _last_moment
    if _database_ahead is None:
        most = time.time_ns() // 1000 + _MOST_AHEAD_US
    else:
        most = time.monotonic_ns() // 1000 + _database_ahead + _MOST_AHEAD_OF_DATABASE_US
    if _last_moment < moment <= most:
        _last_moment = moment


def follow(moment: int) -> None:
    """The database's clock says that it is this moment."""
    global _database_ahead
    _database_ahead = moment - time.monotonic_ns() // 1000


@dataclass(frozen=True, slots=True)
class Delete:
    """A row's removal, with all that hangs on it, at a `moment`.

    Where its thread is named, it is removed only there.
    """

    table: str
    key: str
    thread_id: str | None = None
    size: int = OVERHEAD_BYTES
    moment: int = field(default_factory=next_moment, compare=False)


Change = Upsert | Delete


def moment_of(change: Change) -> int:
    """When it was made, in microseconds since 1970; 0 for one of a release that did not say."""
    if isinstance(change, Delete):
        return change.moment
    moment: int = change.row.get(WRITTEN_AT, 0)
    return moment


_TIMES = ("createdAt", "start", "end")
# Who edits a message may not know that it is a favourite; who says that it is none says so.
STAR = "favorite"
_STARRED = b'"favorite"'


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who began a chat, by login name alone. `metadata`, JSON text, is theirs where the database does not know them."""

    identifier: str
    metadata: str = "{}"

    def encode(self) -> str:
        """As a row holds it."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def decode(cls, encoded: str) -> Claimant:
        """What `encode` has made."""
        return cls(**orjson.loads(encoded))


def step(values: Mapping[str, Any], *, made: bool = True) -> Upsert:
    """A `StepDict`, whole or in part; `id` is required. Raises RowError without one.

    `made`: it is a step's beginning, and may bring one back that was deleted before; not so a change of one.
    """
    row, extra, size = clean("steps", values)
    if "showInput" in row:
        row["showInput"] = row["showInput"].lower()
    created = row.get("createdAt")
    if created is None or created[-1:] != "Z":
        _to_utc(row)
    if extra:
        row[EXTRA] = extra
        size = size_of(row)
    if not made:
        row[MADE_AT] = 0
    return _upsert("steps", row, row.get("threadId"), size)


def _to_utc(row: Row) -> None:
    for name in _TIMES:
        if name in row:
            row[name] = cleaning.utc(row[name])


def element(values: Mapping[str, Any]) -> Upsert:
    """An `ElementDict`; `id` is required. Raises RowError without one.

    Where its content is, is for the upload to say: an `objectKey` that somebody else names could be another's.
    """
    row, extra, size = clean("elements", values)
    row.pop("objectKey", None)
    if extra:
        row[EXTRA] = extra
        size = size_of(row)
    change = _upsert("elements", row, row.get("threadId"), size)
    row[SENT_AT] = row[WRITTEN_AT]
    return change


# In letters. It comes with each read of its step.
LONGEST_COMMENT = 16_384


def feedback(values: Mapping[str, Any], *, in_its_steps_thread: bool = False) -> Upsert:
    """A `Feedback`'s fields; `id`, `forId`, `threadId` and `value` are required. Raises RowError without them.

    `in_its_steps_thread`: it need not name its thread, which whoever writes it looks up.
    """
    row, _, size = clean("feedbacks", values)
    for name in ("forId", "value") if in_its_steps_thread else ("forId", "threadId", "value"):
        if name not in row:
            raise RowError(f"feedbacks: {name} is missing or of the wrong type")
    if len(row.get("comment") or "") > LONGEST_COMMENT:
        raise ChangeTooLarge(f"feedbacks: a comment takes {LONGEST_COMMENT} letters at most")
    return _upsert("feedbacks", row, row.get("threadId"), size)


def lacks_thread(change: Change) -> bool:
    """Whether it is a feedback that is in its step's thread, whichever that is."""
    return change.table == "feedbacks" and change.thread_id is None and isinstance(change, Upsert)


def put_into(change: Upsert, thread_id: str) -> Upsert:
    """The same change, in the thread that it did not name."""
    return replace(change, row={**change.row, "threadId": thread_id}, thread_id=thread_id)


def thread(
    thread_id: str,
    name: str | None = None,
    user_id: str | None = None,
    metadata: Mapping[str, Any] | str | None = None,
    tags: list[str] | str | None = None,
    *,
    claimant: Claimant | None = None,
    owner: Claimant | None = None,
    names: bool = True,
    passes_on: bool = False,
) -> Upsert:
    """`update_thread`'s arguments. None leaves a field alone; a None within `metadata` removes its key.

    Metadata and tags may be JSON text. `claimant`: whose the thread is where it has no owner; `owner`: who `user_id`
    is, if that is known. `names`: without a `name` the thread gets the metadata's. `passes_on`: it goes to `user_id`
    though it has another owner. Raises RowError for metadata that is no object.
    """
    given = _given(metadata)
    if name is None and names:
        name = given.get("name")
    values = {"id": thread_id, "name": name, "userId": user_id, "tags": tags, "createdAt": cleaning.now()}
    row, _, _ = clean("threads", values)
    if "name" in row:
        row["name"] = row["name"][:_NAME_MAX_CHARS]
    kept = _keys(given)
    if kept:
        row["metadata"] = kept
    if claimant is not None:
        row[CLAIM] = claimant.encode()
    if owner is not None and "userId" in row:
        row[OWNER] = owner.encode()
    # Two keys may be one when they are cleaned; then the one with a value counts, here and in a fold.
    removed = frozenset(cleaning.text(key) for key, value in given.items() if value is None) - kept.keys()
    if passes_on:
        row[PASSES_ON] = True
    change = _upsert("threads", row, row.get("id"), size_of(row), removed)
    if removed:  # what is not there can't say when it went
        row[MOMENTS] = {"metadata": dict.fromkeys(sorted(removed), row[WRITTEN_AT])}
        change.size = OVERHEAD_BYTES + size_of(row) + sum(map(len, removed))
    return change


def stored(table: str, values: Mapping[str, Any], removed: Sequence[str] = ()) -> Upsert:
    """A row of a table as it was stored, with what is noted of it: it is as old as that. Raises RowError.

    `removed`: keys of a thread's metadata that it had before.
    """
    merged = _MERGED_OBJECTS[table]
    others = {name: value for name, value in values.items() if name not in merged and name not in NOTES}
    row, extra, _ = clean(table, others)
    for name in merged & values.keys():
        row[name] = _keys(_given(values[name]))
    if extra and EXTRA in merged:
        row[EXTRA] = {**extra, **row.get(EXTRA, {})}
    for name in NOTES & values.keys():
        row[name] = moments.cleaned(values[name]) if name == MOMENTS else int(values[name])
    row.setdefault(WRITTEN_AT, 1)  # another layer wrote it, so nobody knows when
    if removed:
        row[MOMENTS] = {"metadata": dict.fromkeys(sorted(removed), row[WRITTEN_AT])}
    if "id" not in row:
        raise RowError(f"{table}: a row without an id can't be written")
    thread_id = row["id"] if table == "threads" else row.get("threadId")
    return Upsert(table, row["id"], row, thread_id, OVERHEAD_BYTES + size_of(row), frozenset(removed))


_MERGED_OBJECTS: dict[str, frozenset[str]] = {
    name: frozenset(str(column.name) for column in table.columns if schema.merge_of(column) is Merge.KEYS)
    for name, table in schema.TABLES.items()
    if name != "users"
}


def _given(metadata: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    if not metadata or isinstance(metadata, Mapping):
        return metadata or {}
    try:
        found = orjson.loads(metadata)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise RowError("threads: metadata is no object")
    return found


def check_size(change: Upsert, max_bytes: int) -> None:
    """Raises ChangeTooLarge for one whose values take more, as UTF-8."""
    # Texts are counted by their letters, each of which takes four bytes at most.
    if change.size * 4 > max_bytes:
        size = bytes_of({**change.row, "removed": [*change.removed]})
        if size > max_bytes:
            raise too_large(change.table, size, max_bytes)


def too_large(table: str, size: int, max_bytes: int) -> ChangeTooLarge:
    """The error for a change of `size` bytes."""
    return ChangeTooLarge(f"{table}: a change of {size} bytes is above FOREBAY_CHANGE_MAX_BYTES={max_bytes}")


def begun(change: Upsert, moment: int) -> None:
    """Whoever makes this change began at that moment: a thread that was deleted before that is made anew."""
    change.row[THREAD_MADE_AT] = moment


def thread_stub(thread_id: str, newest_step: str | None, now: str) -> Row:
    """The row that a thread gets for the sake of what is written into it. `newest_step`: its createdAt."""
    stub: Row = {"id": thread_id, "createdAt": now}
    if newest_step is not None:
        stub["updatedAt"] = newest_step
    return stub


def _upsert(
    table: str, row: Row, thread_id: str | None, size: int, removed: frozenset[str] = _NO_KEYS
) -> Upsert:
    key = row.get("id")
    if key is None:
        raise RowError(f"{table}: a row without an id can't be written")
    row[WRITTEN_AT] = next_moment()
    return Upsert(table, key, row, thread_id, OVERHEAD_BYTES + size, removed)


def _keys(values: Mapping[str, Any]) -> dict[str, bytes]:
    return {cleaning.text(key): cleaning.json(value) for key, value in values.items() if value is not None}


_FOLDED: dict[str, tuple[tuple[str, Merge], ...]] = {
    name: tuple(
        (column.name, schema.merge_of(column))
        for column in table.columns
        if column.info.get("merge", Merge.LAST) is not Merge.LAST
    )
    for name, table in schema.TABLES.items()
    if name != "users"
}

_MEET: dict[Merge, Callable[[Any, Any], Any]] = {
    Merge.FIRST: lambda older, newer: older,
    Merge.MAX: max,
    Merge.MIN: min,
    Merge.KEYS: lambda older, newer: {**older, **newer},
}


def fold(older: Upsert, newer: Upsert) -> Upsert:
    """One change that does what the two do one after the other. They are of one row."""
    row = {**older.row, **newer.row}
    for name, rule in _FOLDED[older.table]:
        if name in older.row and name in newer.row:
            row[name] = _MEET[rule](older.row[name], newer.row[name])
    if "metadata" in newer.row and older.table == "steps" and _STARRED in older.row.get("metadata", b""):
        row["metadata"] = keep_star(older.row["metadata"], newer.row["metadata"])
    if CLAIM in older.row:
        row[CLAIM] = older.row[CLAIM]  # it has its owner then
    is_whole = len(row) == len(newer.row)  # the newer one leaves nothing of the older
    if older.table == "threads":
        _fold_owner(older, newer, row)
        is_whole = False
    elif MADE_AT in row:
        _fold_made(older, newer, row)
    if older.table == "elements":
        _fold_contents(older, newer, row)
    removed = _fold_removed(older, newer, row)
    if not is_whole or MOMENTS in row or EXTRA in row:
        moments.fold(older.table, older.row, newer.row, row)
    thread_id = newer.thread_id if newer.thread_id is not None else older.thread_id
    size = OVERHEAD_BYTES + size_of(row)
    if removed:
        size += sum(map(len, removed))
    _keep_sent_at(older, row)
    return Upsert(older.table, older.key, row, thread_id, size, removed)


def _keep_sent_at(older: Upsert, row: Row) -> None:
    """A step's moment is the newer one's from now on."""
    sent_at = older.row.get(SENT_AT) or older.row.get(WRITTEN_AT)
    if sent_at and older.table == "steps":
        row[SENT_AT] = sent_at


def late_beneath(change: Upsert, stored: moments.Stored) -> Upsert:
    """What a change that comes late still does to the row as it is stored."""
    row, removed = moments.beneath(change.table, change.row, change.removed, stored, keep_star, STAR)
    return replace(change, row=row, removed=removed)


def _fold_owner(older: Upsert, newer: Upsert, row: Row) -> None:
    """A thread that has its owner keeps them, unless it is passed on."""
    stays = "userId" in older.row and (PASSES_ON not in newer.row or "userId" not in newer.row)
    named = older.row if stays else newer.row
    for name in ("userId", OWNER):
        if name in named:
            row[name] = named[name]
        else:
            row.pop(name, None)


def keep_star(stored: bytes | str, given: bytes | str) -> bytes:
    """A step's metadata, `given` over `stored`, both JSON."""
    older, newer = orjson.loads(stored), orjson.loads(given)
    if isinstance(older, dict) and isinstance(newer, dict) and STAR in older and STAR not in newer:
        return cleaning.json({**newer, STAR: older[STAR]})
    return given if isinstance(given, bytes) else given.encode()


def _fold_made(older: Upsert, newer: Upsert, row: Row) -> None:
    """The two are made when the last of them is that makes the row; one that says nothing does."""
    if MADE_AT in newer.row:
        made = older.row.get(MADE_AT, older.row.get(WRITTEN_AT, 0))
        row[MADE_AT] = max(made, newer.row[MADE_AT])
    else:
        del row[MADE_AT]


def _fold_contents(older: Upsert, newer: Upsert, row: Row) -> None:
    """A content that a newer one replaces is to be deleted, though no row has ever named it."""
    replaced = {*older.row.get(REPLACED, ()), *newer.row.get(REPLACED, ())}
    if "objectKey" in newer.row and "objectKey" in older.row:
        replaced.add(older.row["objectKey"])
    replaced.discard(row.get("objectKey"))
    if replaced:
        row[REPLACED] = sorted(replaced)


def _fold_removed(older: Upsert, newer: Upsert, row: Row) -> frozenset[str]:
    """The keys that leave the stored object; `row` loses those that only the older change set."""
    if not older.removed and not newer.removed:
        return frozenset()
    if newer.removed and "metadata" in row:
        row["metadata"] = {key: value for key, value in row["metadata"].items() if key not in newer.removed}
    set_again: frozenset[str] = frozenset(newer.row.get("metadata", ()))
    return (older.removed - set_again) | newer.removed


def encode(changes: Sequence[Change]) -> bytes:
    """Changes as a line of JSON, for the journal."""
    return orjson.dumps([_parts(change) for change in changes], orjson.Fragment, orjson.OPT_APPEND_NEWLINE)


def _parts(change: Change) -> list[Any]:
    if isinstance(change, Delete):  # releases before moments were noted pass over the last two
        return [change.table, change.key, change.thread_id, None, [change.moment]]
    # JSON within the row is held as bytes.
    removed = sorted(change.removed) if change.removed else ()
    return [change.table, change.key, change.thread_id, change.row, removed]


def _dump_values(value: dict[str, Any]) -> dict[str, bytes]:
    return {key: orjson.dumps(item) for key, item in value.items()}


def decode(encoded: bytes) -> list[Change]:
    """What `encode` was given, from one line or from several."""
    return [_change(*parts) for line in encoded.splitlines() for parts in orjson.loads(line)]


def _change(
    table: str, key: str, thread_id: str | None, row: Row | None = None, removed: Sequence[Any] = ()
) -> Change:
    if row is None:
        moment = removed[0] if removed else 0
        observe(moment)
        return Delete(table, key, thread_id, moment=moment)
    observe(row.get(WRITTEN_AT, 0))
    for name, form in _JSON_COLUMNS[table]:
        if name in row:
            row[name] = form(row[name])
    size = OVERHEAD_BYTES + size_of(row) + sum(map(len, removed))
    return Upsert(table, key, row, thread_id, size, frozenset(removed))


_JSON_COLUMNS: dict[str, tuple[tuple[str, Callable[[Any], Any]], ...]] = {
    name: tuple(
        (column.name, _dump_values if schema.merge_of(column) is Merge.KEYS else orjson.dumps)
        for column in table.columns
        if schema.kind_of(column) is Kind.OBJECT and column.name != MOMENTS
    )
    for name, table in schema.TABLES.items()
    if name != "users"
}
