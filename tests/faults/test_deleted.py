"""What is deleted stays deleted, and what is another's stays so: two processes, a delete in flight, a late flush."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import Settings
from forebay.database.store import LeftOut, Store
from forebay.model import changes
from forebay.model.changes import Change, Delete, Upsert, decode, encode
from tests.support.examples import examples
from tests.support.patience import patience

THREAD, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
STEP, CHILD, ELEMENT, FEEDBACK = (str(uuid.UUID(int=number)) for number in range(3, 7))
Open = Callable[[], Store]


@pytest.fixture
async def opened(migrated_url: str, tmp_path: Path) -> AsyncIterator[Open]:
    stores: list[Store] = []

    def make() -> Store:
        stores.append(Store(migrated_url, Settings(journal_dir=tmp_path)))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def store(opened: Open) -> Store:
    return opened()


async def column(store: Store, query: str) -> list[Any]:
    found = await store.execute_sql(query, {})
    assert isinstance(found, list)
    return sorted(str(value) for row in found for value in row.values())


def a_step(key: str = STEP, thread: str = THREAD, *, made: bool = True, **values: Any) -> Upsert:
    return changes.step({"id": key, "threadId": thread, "name": "n", "type": "run", **values}, made=made)


def an_element(thread: str = THREAD, step: str = STEP) -> Upsert:
    return changes.element({"id": ELEMENT, "threadId": thread, "forId": step, "name": "e"})


def a_feedback(key: str = FEEDBACK, thread: str = THREAD, **values: Any) -> Upsert:
    return changes.feedback({"id": key, "threadId": thread, "forId": STEP, "value": 1, **values})


MADE: dict[str, Callable[[], Upsert]] = {"steps": a_step, "elements": an_element, "feedbacks": a_feedback}
KEYS = {"steps": STEP, "elements": ELEMENT, "feedbacks": FEEDBACK}
each_table = pytest.mark.parametrize("table", MADE)


# ---- late


@each_table
async def test_what_was_written_before_a_delete_stays_out(store: Store, table: str) -> None:
    await store.apply([a_step(), MADE[table]()])
    late = MADE[table]()
    await store.apply([Delete(table, KEYS[table])])
    gone = await store.apply([late], late=True)
    assert gone == {LeftOut(0, "deleted")}
    assert await column(store, f"SELECT id FROM {table}") == []


@each_table
async def test_who_makes_it_anew_after_the_delete_may(store: Store, table: str) -> None:
    await store.apply([a_step(), MADE[table](), Delete(table, KEYS[table]), a_step(), MADE[table]()])
    assert await column(store, f"SELECT id FROM {table}") == [KEYS[table]]


async def test_a_change_of_a_deleted_step_does_not_bring_it_back(store: Store) -> None:
    gone = await store.apply([a_step(), Delete("steps", STEP), a_step(made=False)])
    assert gone == {LeftOut(2, "deleted")}
    assert await store.apply([a_step(made=False)]) == {LeftOut(0, "deleted")}
    assert await column(store, "SELECT id FROM steps") == []


async def test_a_step_that_was_made_anew_may_be_changed(store: Store) -> None:
    await store.apply([a_step(), Delete("steps", STEP), a_step(output="anew")])
    assert await store.apply([a_step(made=False, output="changed")]) == frozenset()
    assert await column(store, "SELECT output FROM steps") == ["changed"]


async def test_a_creation_and_a_change_that_met_in_the_queue_are_as_old_as_the_creation(store: Store) -> None:
    created, delete, changed = a_step(), Delete("steps", STEP), a_step(made=False)
    await store.apply([delete])
    assert await store.apply([changes.fold(created, changed)], late=True) == {LeftOut(0, "deleted")}


async def test_what_hangs_on_a_deleted_step_stays_out(store: Store) -> None:
    await store.apply([a_step(), a_step(CHILD, parentId=STEP), an_element(step=CHILD), a_feedback()])
    late = [a_step(CHILD, made=False), an_element(), a_feedback(), a_step(str(uuid.uuid4()), parentId=STEP)]
    await store.apply([Delete("steps", STEP)])
    assert len(await store.apply(late, late=True)) == len(late)
    for table in MADE:
        assert await column(store, f"SELECT id FROM {table}") == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("together", [False, True])
async def test_what_hangs_on_what_never_came_of_a_deleted_step_stays_out(
    store: Store, *, late: bool, together: bool
) -> None:
    """A process made them, and another has deleted the step above before they came."""
    grandchild, deep = str(uuid.uuid4()), str(uuid.uuid4())
    await store.apply([a_step()])
    made: list[Change] = [
        a_step(CHILD, parentId=STEP),
        changes.fold(a_step(grandchild, parentId=CHILD), a_step(grandchild, made=False, parentId=CHILD)),
        a_step(deep, parentId=grandchild),
        an_element(step=CHILD),
        changes.feedback({"id": FEEDBACK, "threadId": THREAD, "forId": grandchild, "value": 1}),
    ]
    await store.apply([Delete("steps", STEP)])
    batches = [made] if together else [[change] for change in made]
    gone = [len(await store.apply(batch, late=late)) for batch in batches]
    assert sum(gone) == len(made)
    for table in MADE:
        assert await column(store, f"SELECT id FROM {table}") == []
    anew = a_step(CHILD, parentId=STEP)
    assert await store.apply([anew, a_step(grandchild, parentId=CHILD)]) == frozenset()


async def test_what_came_before_a_step_that_stays_out_goes_with_it(store: Store) -> None:
    await store.apply([a_step()])
    late, below = a_step(CHILD, parentId=STEP), a_step(str(uuid.uuid4()), parentId=CHILD)
    elsewhere = a_step(str(uuid.uuid4()), OTHER, parentId=CHILD)
    await store.apply([below, elsewhere])
    await store.apply([Delete("steps", STEP), late])
    assert await column(store, "SELECT id FROM steps") == [elsewhere.key]


async def test_a_late_delete_leaves_what_was_made_anew_without_what_hung_on_it(store: Store) -> None:
    await store.apply([a_feedback(), an_element(), a_step(CHILD, parentId=STEP)])
    delete = Delete("steps", STEP)
    await store.apply([a_step(output="anew")])
    await store.apply([delete], late=True)
    assert await column(store, "SELECT output FROM steps") == ["anew"]
    for table in ("feedbacks", "elements"):
        assert await column(store, f"SELECT id FROM {table}") == []


async def test_a_late_delete_of_a_thread_leaves_what_was_said_since(store: Store) -> None:
    """As in a conversation: one process ended with the delete, another has gone on."""
    before = a_step()
    await store.apply([before, an_element(), a_feedback()])
    delete = Delete("threads", THREAD, THREAD)
    await store.apply([a_step(CHILD, output="since")])
    await store.apply([delete], late=True)
    assert await column(store, "SELECT output FROM steps") == ["since"]
    assert await column(store, "SELECT id FROM elements UNION SELECT id FROM feedbacks") == []
    assert await store.apply([a_step(str(uuid.uuid4()))]) == frozenset()
    assert await store.apply([before], late=True) == {LeftOut(0, "deleted_thread")}


async def test_an_older_feedback_that_comes_after_the_delete_stays_out(store: Store) -> None:
    older, newer, newest = a_feedback(str(uuid.uuid4())), a_feedback(), a_feedback(str(uuid.uuid4()))
    await store.apply([a_step(), newer, Delete("feedbacks", FEEDBACK)])
    assert await store.apply([older]) == {LeftOut(0, "deleted")}
    assert await store.apply([newest]) == frozenset()


async def test_a_deleted_feedback_does_not_show_the_one_before(store: Store) -> None:
    older, newer = str(uuid.uuid4()), str(uuid.uuid4())
    late = a_feedback(older)
    await store.apply([a_step(), a_feedback(older), a_feedback(newer), Delete("feedbacks", newer)])
    assert await column(store, "SELECT id FROM feedbacks") == []
    assert await store.apply([late], late=True) == {LeftOut(0, "deleted")}


async def test_a_thread_is_made_anew_by_who_began_after_its_delete(store: Store) -> None:
    before = a_step()
    await store.apply([a_step(), Delete("threads", THREAD, THREAD)])
    assert THREAD in await store.apply([a_step()]), "whoever was at it goes on"
    anew = a_step()
    changes.begun(anew, anew.row["forebayWrittenAt"])
    assert await store.apply([anew]) == frozenset()
    assert await store.apply([a_step(CHILD)]) == frozenset(), "it is there again"
    assert await store.apply([before], late=True) == {LeftOut(0, "deleted_thread")}, (
        "what was before stays out"
    )
    assert await column(store, "SELECT id FROM steps") == [STEP, CHILD]


async def test_notes_of_deletions_go_by_the_databases_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    _forget_the_time(monkeypatch)
    late = a_step()
    await store.apply([a_step(), Delete("steps", STEP), Delete("threads", OTHER, OTHER)])
    await store.apply([Delete("threads", str(uuid.uuid4()))])
    assert len(await column(store, "SELECT id FROM forebay_deleted")) == 3
    assert await store.apply([late], late=True) == {LeftOut(0, "deleted")}


async def test_a_thread_that_others_brought_back_is_swept_away(store: Store) -> None:
    await store.apply([a_step(), Delete("threads", THREAD, THREAD)])
    await store.execute_sql(f"INSERT INTO threads (id) VALUES ('{THREAD}')", {})
    await store.apply([Delete("threads", OTHER, OTHER)])
    assert await column(store, "SELECT id FROM threads") == []


# ---- clocks


def _forget_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has just begun."""
    monkeypatch.setattr(changes, "_last_moment", 0)
    monkeypatch.setattr(changes, "_database_ahead", None)


def _clock_off(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + hours * 3600 * 10**9)


@pytest.mark.parametrize("hours", [1, -1])
async def test_the_databases_clock_tells_when_what_was_written(
    migrated_postgres_url: str, hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is wrong writes, and leaves a journal; nobody has touched the row since."""
    here, there = (Store(migrated_postgres_url, Settings(journal_dir=tmp_path)) for _ in range(2))
    await here.apply([a_step(output="1")])
    with monkeypatch.context() as wrong:
        _forget_the_time(wrong)
        _clock_off(wrong, hours)
        await there.prepare()
        journaled, delete = a_step(output="2"), Delete("steps", CHILD)
    await here.apply([journaled], late=True)
    assert await column(here, "SELECT output FROM steps") == ["2"]
    await here.apply([a_step(output="3")])
    await here.apply([journaled, delete], late=True)
    assert await column(here, "SELECT output FROM steps") == ["3"]
    for store in (here, there):
        await store.close()


async def test_a_delete_by_a_clock_that_was_ahead_keeps_nothing_out_for_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ahead:
        _forget_the_time(ahead)
        _clock_off(ahead, 1)
        delete = Delete("steps", STEP)
    await store.apply([a_step(), delete])
    (deleted_at,) = await column(store, "SELECT deleted_at FROM forebay_deleted")
    assert int(deleted_at) < delete.moment - 3000 * 10**6


async def test_a_clock_that_was_ahead_does_not_replace_what_came_after(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forget_the_time(monkeypatch)
    real = time.time_ns
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time_ns", lambda: real() + 3600 * 10**9)
        old = a_step(output="old")
    _forget_the_time(monkeypatch)
    await store.apply([a_step(output="new")])
    await store.apply([old], late=True)
    assert await column(store, "SELECT output FROM steps") == ["new"]


def test_moments_are_later_than_what_a_journal_names(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_the_time(monkeypatch)
    real = time.time_ns
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time_ns", lambda: real() + 3600 * 10**9)
        encoded = encode([a_step(), Delete("steps", STEP)])
    _forget_the_time(monkeypatch)
    _, delete = decode(encoded)
    assert isinstance(delete, Delete)
    assert a_step().row["forebayWrittenAt"] > delete.moment


# ---- whose it is


@each_table
async def test_a_row_stays_in_its_thread(store: Store, table: str) -> None:
    await store.apply([a_step(input="hers"), an_element(), a_feedback(comment="hers")])
    foreign: dict[str, Change] = {
        "steps": a_step(thread=OTHER, input="his"),
        "elements": an_element(OTHER),
        "feedbacks": a_feedback(thread=OTHER, comment="his"),
    }
    before = await column(store, f"SELECT * FROM {table}")
    assert await store.apply([foreign[table]]) == {LeftOut(0, "other_thread")}
    assert await store.apply([foreign[table]], late=True) == {LeftOut(0, "other_thread")}
    assert await column(store, f"SELECT * FROM {table}") == before


async def test_nobody_rates_another_threads_step(store: Store) -> None:
    await store.apply([a_step()])
    assert await store.apply([a_feedback(thread=OTHER)]) == {LeftOut(0, "other_thread")}


@each_table
async def test_a_delete_stays_in_its_thread(store: Store, table: str) -> None:
    await store.apply([a_step(), an_element(), a_feedback()])
    await store.apply([Delete(table, KEYS[table], OTHER)])
    assert await column(store, f"SELECT id FROM {table}") == [KEYS[table]]
    assert await store.apply([a_step(made=False)]) == frozenset(), "nor is it noted"


async def test_what_is_below_a_step_in_another_thread_is_not_deleted_with_it(store: Store) -> None:
    await store.apply([a_step(), a_step(CHILD, OTHER, parentId=STEP), an_element(OTHER)])
    await store.apply([Delete("steps", STEP)])
    assert await column(store, "SELECT id FROM steps") == [CHILD]
    assert await column(store, "SELECT id FROM elements") == [ELEMENT]


async def test_a_thread_keeps_its_owner_unless_it_is_passed_on(store: Store) -> None:
    ada, bob = str(uuid.uuid4()), str(uuid.uuid4())
    for name, key in (("ada", ada), ("bob", bob)):
        await store.write(
            store.statements.create_user,
            id=key,
            identifier=name,
            metadata="{}",
            createdAt="2026",
            name_id=store.name_id(name),
            moment=0,
        )
    owner = 'SELECT "userId", "userIdentifier" FROM threads'
    await store.apply([changes.thread(THREAD, user_id=ada)])
    for late in (False, True):
        await store.apply([changes.thread(THREAD, user_id=bob)], late=late)
        assert await column(store, owner) == sorted([ada, "ada"])
    folded = changes.fold(changes.thread(OTHER, user_id=ada), changes.thread(OTHER, user_id=bob))
    await store.apply([folded])
    assert await column(store, f"{owner} WHERE id = '{OTHER}'") == sorted([ada, "ada"])
    await store.apply([Delete("threads", OTHER, OTHER), changes.thread(THREAD, user_id=bob, passes_on=True)])
    assert await column(store, owner) == sorted([bob, "bob"])


def test_where_an_elements_content_is_nobody_but_the_upload_says() -> None:
    made = changes.element({"id": ELEMENT, "threadId": THREAD, "objectKey": "another's"})
    assert "objectKey" not in made.row


# ---- a delete in flight


DELETED = {
    "threads": (THREAD, "deleted_thread"),
    "steps": (STEP, "deleted"),
    "elements": (ELEMENT, "deleted"),
}


@pytest.mark.parametrize("table", DELETED)
@pytest.mark.parametrize("durable", [False, True], ids=["one statement", "with a delete of its own"])
async def test_a_write_that_waits_for_a_delete_does_not_bring_it_back(
    migrated_postgres_url: str, tmp_path: Path, table: str, durable: bool
) -> None:
    here, there = (Store(migrated_postgres_url, Settings(journal_dir=tmp_path)) for _ in range(2))
    await here.apply([changes.thread(THREAD, "secret"), a_step(), an_element(), a_feedback()])
    holder, onlooker = [await asyncpg.connect(migrated_postgres_url) for _ in range(2)]
    await holder.execute("BEGIN")
    # What the delete reaches after it has the thread.
    await holder.execute("SELECT * FROM elements FOR UPDATE")
    key, reason = DELETED[table]
    deleting = asyncio.create_task(there.apply([Delete(table, key)]))
    await until_waiting(onlooker, 1)
    late = an_element() if table == "elements" else a_step(made=False)
    late.row["forebayMadeAt"] = 0  # it was made before
    own: list[Change] = [Delete("feedbacks", str(uuid.uuid4()))] if durable else []
    writing = asyncio.create_task(here.apply([*own, changes.thread(THREAD, "back"), late]))
    await until_waiting(onlooker, 2)
    await holder.execute("COMMIT")
    await deleting
    assert LeftOut(len(own) + 1, reason) in await writing
    kind = table if table != "threads" else "steps"
    assert await column(here, f"SELECT id FROM {kind}") == []
    assert len(await column(here, "SELECT id FROM threads")) == (0 if table == "threads" else 1)
    for connection in (holder, onlooker):
        await connection.close()
    for store in (here, there):
        await store.close()


async def until_waiting(connection: asyncpg.Connection, number: int) -> None:
    """Return when so many statements of this database wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with patience():
        while await connection.fetchval(waiting) < number:  # noqa: ASYNC110 - it is the database that waits
            await asyncio.sleep(0.01)


# ---- any order


Written = tuple[str, int, int]  # what is done, to which step, by which process
operations = st.lists(
    st.tuples(st.sampled_from(["make", "change", "delete"]), st.integers(0, 1), st.integers(0, 1)),
    max_size=12,
)


@given(done=operations, held=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=examples(25))
async def test_a_step_is_there_when_it_was_made_after_its_last_delete(
    opened: Open, done: list[Written], held: list[bool]
) -> None:
    """Two processes write; what one of them holds back it flushes at the end, in its order and late."""
    processes = (opened(), opened())
    await processes[0].execute_sql("DELETE FROM steps", {})
    await processes[0].execute_sql("DELETE FROM forebay_deleted", {})
    waiting: tuple[list[Change], list[Change]] = ([], [])
    for (what, number, process), holds in zip(done, held, strict=False):
        key = (STEP, CHILD)[number]
        change: Change = Delete("steps", key) if what == "delete" else a_step(key, made=what == "make")
        if holds and what != "delete":
            waiting[process].append(change)
        else:
            await processes[process].apply([change])
    for store, late in zip(processes, waiting, strict=True):
        for change in late:
            await store.apply([change], late=True)
        await store.close()
    there = await column(processes[0], "SELECT id FROM steps")
    await processes[0].close()
    for number, key in enumerate((STEP, CHILD)):
        must = _made_after_delete(done, number)
        assert must is None or (key in there) == must


def _made_after_delete(done: list[Written], number: int) -> bool | None:
    """None where it was never deleted or made, so that a change alone may have brought it about."""
    mine = [what for what, n, _ in done if n == number and what != "change"]
    if "delete" not in mine:
        return True if mine else None
    return "make" in mine[len(mine) - 1 - mine[::-1].index("delete") :]
