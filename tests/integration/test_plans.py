"""Every statement finds its rows by an index, and a read or a batch is one round trip."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
from chainlit.types import Pagination, ThreadFilter
from chainlit.user import User
from typing_extensions import override

from forebay import ForebayDataLayer, Settings
from forebay.database.checkpoint import Checkpoint, Position
from forebay.database.sql.batch_parameters import Documents, documents
from forebay.database.sql.sqlite import SQLITE_FUNCTIONS
from forebay.database.sql.statement import BOOKMARKS, Statement
from forebay.database.sql.statements import Statements
from forebay.database.store import Store
from forebay.model import changes, schema
from tests.support.postgres import PostgresServer, run_apart
from tests.support.proxy import Proxy

# Enough of each that reading a table through would cost more. One user has a tenth of the threads, and one
# thread has more steps than the others.
USERS, THREADS, STEPS_OF_A_THREAD, STEPS_OF_THE_LONG_THREAD = 1_000, 10_000, 4, 50


def key(kind: int, number: int = 0) -> str:
    return str(UUID(int=kind * 10**9 + number))


USER, THREAD, STEP, ELEMENT, FEEDBACK = (key(kind) for kind in range(1, 6))


def a_chat() -> Iterator[changes.Upsert]:
    made = 0
    for number in range(THREADS):
        thread = key(2, number)
        owner = USER if number % 10 == 0 else key(1, 1 + number % (USERS - 1))
        yield changes.thread(thread, f"thread {number}", owner)
        for of_thread in range(STEPS_OF_A_THREAD if number else STEPS_OF_THE_LONG_THREAD):
            created = f"2024-{number % 12 + 1:02}-01T{number % 24:02}:00:{of_thread:02}.{number:06}Z"
            step: dict[str, Any] = {
                "id": key(3, made),
                "threadId": thread,
                "parentId": key(3, made - of_thread),
                "type": "run",
            }
            step |= {"name": "step", "streaming": False, "createdAt": created, "output": f"answer {made}"}
            yield changes.step(step | {"metadata": {"favorite": True} if made % 200 == 0 else {}})
            if made % 4 == 0:
                yield changes.element(
                    {"id": key(4, made), "threadId": thread, "forId": key(3, made), "name": "e"}
                )
                yield changes.feedback(
                    {"id": key(5, made), "threadId": thread, "forId": key(3, made), "value": 1}
                )
            made += 1


async def fill(url: str) -> None:
    store = Store(url, Settings())
    users = [{"id": key(1, n), "identifier": f"user {n}", "metadata": {}} for n in range(USERS)]
    async with store.engine.begin() as connection:
        await connection.execute(schema.users.insert(), users)
        deleted = [{"thread_id": key(9, n), "deleted_at": n} for n in range(10_000)]
        await connection.execute(schema.tombstones.insert(), deleted)
        noted = [
            {"kind": kind, "id": key(9, n), "deleted_at": n, "noted_at": n}
            for kind in DELETES
            for n in range(5_000)
        ]
        await connection.execute(schema.deleted.insert(), noted)
        discarded = [{"key_hash": f"{n:064}", "object_key": f"key {n}", "noted_at": n} for n in range(10_000)]
        await connection.execute(schema.garbage.insert(), discarded)
    chat = a_chat()
    while batch := [change for change, _ in zip(chat, range(10_000), strict=False)]:
        await store.apply(batch)
    async with store.engine.begin() as connection:
        # Those of processes that have ended stay for months.
        positions = [{"journal_id": str(number), "applied_seq": 1, "token": 1} for number in range(10_000)]
        await connection.execute(sa.insert(schema.checkpoints), positions)
        await connection.execute(sa.text("""UPDATE elements SET "objectKey" = 'key ' || id"""))
        await connection.execute(sa.text("ANALYZE"))
    await store.close()


@pytest.fixture(scope="module")
def full_postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    url = postgres_server.create_database(template=_postgres_template)
    run_apart(lambda: fill(url))
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="module")
def full_sqlite_url(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("full") / "chat.db"
    shutil.copy(_sqlite_template, path)
    run_apart(lambda: fill(f"sqlite:///{path}"))
    return f"sqlite:///{path}"


class Plan(Protocol):
    """What a database says about how it would run a statement."""

    indexes: set[str]
    scanned: set[str]  # the tables that it would read from end to end


Explain = Callable[[Statement, Mapping[str, Any]], Awaitable[Plan]]


class PostgresPlan:
    def __init__(self, plan: str) -> None:
        self.text = plan
        self.indexes: set[str] = set()
        self.scanned: set[str] = set()
        self._read(json.loads(plan)[0]["Plan"])

    @override
    def __repr__(self) -> str:
        return self.text

    def _read(self, node: dict[str, Any]) -> None:
        self.indexes |= {node["Index Name"]} if "Index Name" in node else set()
        self.scanned |= {node["Relation Name"]} if node["Node Type"] == "Seq Scan" else set()
        for inner in node.get("Plans", ()):
            self._read(inner)


class SqlitePlan:
    def __init__(self, details: list[str]) -> None:
        self.details = details
        words = [detail.split() for detail in details]
        self.indexes = {line[line.index("INDEX") + 1] for line in words if "INDEX" in line}
        self.scanned = {line[1] for line in words if line[0] == "SCAN"} & schema.TABLES.keys()

    @override
    def __repr__(self) -> str:
        return "\n".join(self.details)


def literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


@pytest.fixture(params=["custom", "generic"])
async def explain_postgres(full_postgres_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Explain]:
    """Plans made for these values, and the one for all values that PostgreSQL may go over to later."""
    connection = await asyncpg.connect(full_postgres_url)
    await connection.execute(f"SET plan_cache_mode = force_{request.param}_plan")

    async def explain(statement: Statement, parameters: Mapping[str, Any]) -> Plan:
        prepared = await connection.prepare(statement.sql)  # and dropped with this variable
        values = ", ".join(map(literal, statement.arguments(parameters)))
        call = f"{prepared.get_name()}({values})" if values else prepared.get_name()
        return PostgresPlan(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {call}"))

    yield explain
    await connection.close()


@pytest.fixture
def explain_sqlite(full_sqlite_url: str) -> Iterator[Explain]:
    connection = sqlite3.connect(full_sqlite_url.removeprefix("sqlite:///"))
    for name, count, function in SQLITE_FUNCTIONS:
        connection.create_function(name, count, function, deterministic=True)

    async def explain(statement: Statement, parameters: Mapping[str, Any]) -> Plan:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.arguments(parameters))
        return SqlitePlan([row[3] for row in rows])

    yield explain
    connection.close()


IN_A_THREAD = {"forebay_steps_thread", "forebay_elements_thread", "forebay_feedbacks_newest"}
MOST = {"most_rows": 100, "most_bytes": 10**6}
PAGE: dict[str, Any] = {
    **MOST,
    "user_id": USER,
    "first": 21,
    "cursor": None,
    "position": None,
    "needle": "never",
    "value": 1,
}
NEXT_PAGE = {**PAGE, "cursor": key(2, 400)}
SHORT = {"search": False, "feedback": False, "with_steps": False}
READS: dict[str, tuple[Callable[[Statements], Statement], dict[str, Any], set[str]]] = {
    "get_user": (lambda s: s.user, {"identifier": "user 7"}, set()),
    "get_thread": (lambda s: s.thread, {"id": THREAD}, IN_A_THREAD),
    "a_long_thread": (lambda s: s.long_thread, {"id": THREAD, **MOST}, IN_A_THREAD),
    "get_thread_author": (lambda s: s.thread_author, {"id": THREAD}, set()),
    "get_step": (lambda s: s.step, {"id": STEP}, {"forebay_feedbacks_newest"}),
    "get_element": (lambda s: s.element, {"id": ELEMENT, "thread_id": THREAD}, set()),
    "get_favorite_steps": (
        lambda s: s.favorite_steps,
        {"user_id": USER, **MOST},
        {"forebay_feedbacks_newest"},
    ),
    "first_page": (lambda s: s.page(after=False, **SHORT), PAGE, {"forebay_threads_activity"}),
    "next_page": (lambda s: s.page(after=True, **SHORT), NEXT_PAGE, {"forebay_threads_activity"}),
    "page_with_steps": (
        lambda s: s.page(after=True, **{**SHORT, "with_steps": True}),
        NEXT_PAGE,
        {"forebay_threads_activity", *IN_A_THREAD},
    ),
    "search": (
        lambda s: s.page(after=True, **{**SHORT, "search": True}),
        NEXT_PAGE,
        {"forebay_threads_activity", "forebay_steps_thread"},
    ),
    "feedback": (
        lambda s: s.page(after=True, **{**SHORT, "feedback": True}),
        NEXT_PAGE,
        {"forebay_threads_activity", "forebay_feedbacks_thread"},
    ),
}
each_read = pytest.mark.parametrize("read", READS)
DELETES = {"threads": THREAD, "steps": STEP, "elements": ELEMENT, "feedbacks": FEEDBACK}
BELOW = {"below": json.dumps([STEP, key(3, 1)]), "trees_thread_id": THREAD}
DELETED = {
    "thread_id": THREAD,
    "moment": 1,
    "up_to": 2**63 - 1,
    "kept_us": 90 * 24 * 3600 * 1_000_000,
    **BELOW,
}
each_delete = pytest.mark.parametrize("table", DELETES)


def statements_for(url: str) -> Statements:
    return Store(url, Settings()).statements


@each_read
async def test_a_read_on_postgresql_uses_its_indexes(
    explain_postgres: Explain, full_postgres_url: str, read: str
) -> None:
    statement, parameters, indexes = READS[read]
    plan = await explain_postgres(statement(statements_for(full_postgres_url)), parameters)
    assert plan.scanned == set(), plan
    assert plan.indexes >= indexes, plan


@each_read
async def test_a_read_on_a_standby_uses_its_indexes(
    explain_postgres: Explain, full_postgres_url: str, read: str
) -> None:
    statement, parameters, indexes = READS[read]
    asked = statement(statements_for(full_postgres_url)).on_standby
    if asked is None:
        assert read == "get_user"  # which decides over a login
        return
    marks = json.dumps([{"journal_id": str(number), "seq": 1, "token": 1} for number in range(3)])
    plan = await explain_postgres(asked, {**parameters, BOOKMARKS: marks})
    assert plan.scanned == set(), plan
    assert plan.indexes >= {*indexes, "forebay_checkpoints_pkey"}, plan


async def test_favorites_on_postgresql_have_an_index_of_their_own(
    explain_postgres: Explain, full_postgres_url: str
) -> None:
    statement = statements_for(full_postgres_url).favorite_steps
    plan = await explain_postgres(statement, {"user_id": USER, **MOST})
    assert "forebay_steps_favorite" in plan.indexes, plan


@each_read
async def test_a_read_on_sqlite_uses_its_indexes(
    explain_sqlite: Explain, full_sqlite_url: str, read: str
) -> None:
    statement, parameters, indexes = READS[read]
    plan = await explain_sqlite(statement(statements_for(full_sqlite_url)), parameters)
    assert plan.scanned == set(), plan
    assert plan.indexes >= indexes, plan


@each_delete
async def test_a_delete_on_postgresql_uses_indexes(
    explain_postgres: Explain, full_postgres_url: str, table: str
) -> None:
    for statement in statements_for(full_postgres_url).delete(table):
        plan = await explain_postgres(statement, {"id": DELETES[table], **DELETED})
        assert plan.scanned == set(), plan


@each_delete
async def test_a_delete_on_sqlite_uses_indexes(
    explain_sqlite: Explain, full_sqlite_url: str, table: str
) -> None:
    for statement in statements_for(full_sqlite_url).delete(table):
        plan = await explain_sqlite(statement, {"id": DELETES[table], **DELETED})
        assert plan.scanned == set(), plan


def walk_below(statements: Statements) -> tuple[Statement, dict[str, Any]]:
    (walk,) = (one for one in statements.delete("steps") if one.gives)
    return walk, {"id": STEP, **DELETED}


async def test_what_is_below_a_step_is_found_by_its_parent_alone(
    explain_postgres: Explain, full_postgres_url: str
) -> None:
    """By its thread, each step of 100,000 would meet all of them."""
    plan = await explain_postgres(*walk_below(statements_for(full_postgres_url)))
    assert plan.indexes == {"steps_pkey", "forebay_steps_parent"}, plan
    walk, parameters = walk_below(statements_for("sqlite://"))
    engine = sa.create_engine("sqlite://")  # whose tables nobody has made statistics of
    with engine.connect() as connection:
        schema.metadata.create_all(connection)
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {walk.sql}", walk.arguments(parameters)).all()
    engine.dispose()
    found = [row[3] for row in rows if "child" in row[3]]
    assert found == ["SEARCH child USING INDEX forebay_steps_parent (parentId=?)"]


async def test_looking_for_ghosts_uses_indexes(
    explain_postgres: Explain, explain_sqlite: Explain, full_postgres_url: str, full_sqlite_url: str
) -> None:
    for url, explain in ((full_postgres_url, explain_postgres), (full_sqlite_url, explain_sqlite)):
        plan = await explain(statements_for(url).ghosts, {"recent_us": 3600 * 1_000_000})
        assert plan.scanned == set(), plan


GARBAGE: dict[str, tuple[Callable[[Statements], Statement], dict[str, Any]]] = {
    "page": (lambda s: s.garbage, {"after": "", "first": 1000}),
    "contents": (lambda s: s.contents, {"object_keys": json.dumps(["a", "b"])}),
    "forget": (
        lambda s: s.forget_garbage,
        {"forebay_garbage": json.dumps([{"key_hash": "a", "object_key": "b", "noted_at": 1}])},
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_collecting_garbage_uses_indexes(
    explain_postgres: Explain,
    explain_sqlite: Explain,
    full_postgres_url: str,
    full_sqlite_url: str,
    name: str,
) -> None:
    statement, parameters = GARBAGE[name]
    plan = await explain_sqlite(statement(statements_for(full_sqlite_url)), parameters)
    assert plan.scanned == set(), plan
    assert plan.indexes, plan
    plan = await explain_postgres(statement(statements_for(full_postgres_url)), parameters)
    # PostgreSQL takes a document for 100 rows; then it is right to read a table of 10,000 through.
    assert plan.scanned <= (set() if name == "page" else {"elements", "forebay_garbage"}), plan


@pytest.fixture
def batch() -> Documents:
    """A change of a row of each table, and one that lacks columns."""
    rows: list[changes.Upsert] = [
        changes.thread(THREAD, "renamed", metadata={"key": None}),
        changes.step({"id": STEP, "threadId": THREAD, "output": "changed"}),
        changes.element({"id": ELEMENT, "threadId": THREAD}),
        changes.feedback({"id": FEEDBACK, "threadId": THREAD, "forId": STEP, "value": 0}),
    ]
    return documents(rows)


async def test_a_batch_on_postgresql_uses_indexes(
    explain_postgres: Explain, full_postgres_url: str, batch: Documents
) -> None:
    assert batch.partial
    statements = statements_for(full_postgres_url)
    statement = statements.batch(partial=batch.partial, late=False, checkpoint=True, contents=True)
    step = Checkpoint("journal", Position(1, 1), Position(2, 2))
    parameters = {**batch.parameters, **step.parameters}
    plan = await explain_postgres(statement, parameters)
    # PostgreSQL takes a document for 100 rows; then it is right to read a table of 10,000 through.
    assert plan.scanned <= {"threads", "elements", "feedbacks"}, plan


@pytest.mark.parametrize("name", ["discard_replaced", "discard_left_out"])
async def test_noting_replaced_contents_on_sqlite_uses_indexes(
    explain_sqlite: Explain, full_sqlite_url: str, batch: Documents, name: str
) -> None:
    plan = await explain_sqlite(getattr(statements_for(full_sqlite_url), name), batch.parameters)
    assert plan.scanned == set(), plan


@pytest.mark.parametrize("table", DELETES)
async def test_an_upsert_on_sqlite_uses_indexes(
    explain_sqlite: Explain, full_sqlite_url: str, batch: Documents, table: str
) -> None:
    statement = statements_for(full_sqlite_url).upsert(table, partial=batch.partial, late=False)
    plan = await explain_sqlite(statement, batch.parameters)
    assert plan.scanned == set(), plan


# ---- round trips


Counted = tuple[ForebayDataLayer, Proxy]


@pytest.fixture
async def counted(full_postgres_url: str, chainlit_context: object) -> AsyncIterator[Counted]:
    async with Proxy.before(full_postgres_url) as proxy:
        # flush() says when a batch leaves
        layer = ForebayDataLayer(proxy.url(full_postgres_url), settings=Settings(linger=10))
        yield layer, proxy
        await layer.close()


OF_USER = ThreadFilter(userId=USER)
CALLS: dict[str, Callable[[ForebayDataLayer], Awaitable[Any]]] = {
    "get_user": lambda layer: layer.get_user("user 7"),
    "create_user": lambda layer: layer.create_user(User(identifier="user 7")),
    "get_thread": lambda layer: layer.get_thread(THREAD),
    "get_thread_author": lambda layer: layer.get_thread_author(THREAD),
    "get_step": lambda layer: layer.get_step(STEP),
    "get_element": lambda layer: layer.get_element(THREAD, ELEMENT),
    "get_favorite_steps": lambda layer: layer.get_favorite_steps(USER),
    "list_threads": lambda layer: layer.list_threads(Pagination(first=20), OF_USER),
    "next_page": lambda layer: layer.list_threads(Pagination(first=20, cursor=THREAD), OF_USER),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_is_one_round_trip(counted: Counted, call: str) -> None:
    layer, proxy = counted
    await CALLS[call](layer)  # connects and prepares
    proxy.trips = 0
    assert await CALLS[call](layer)
    assert proxy.trips == 1


async def test_a_batch_of_upserts_is_one_round_trip(counted: Counted) -> None:
    layer, proxy = counted
    for output in ("to connect and prepare", "to be counted"):
        proxy.trips = 0
        for number in range(50):
            step: Any = {"id": key(6, number), "threadId": key(2, number), "output": output}
            await layer.create_step(step)
            await layer.update_thread(key(2, number), name="renamed")
        await layer.flush()
    assert proxy.trips == 1
