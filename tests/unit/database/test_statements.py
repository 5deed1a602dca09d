"""Changes and reads become SQL, for both databases; what comes from outside is always a parameter."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.dialects.sqlite import aiosqlite

from forebay.database.sql.batch_parameters import documents
from forebay.database.sql.sqlite import SQLITE_FUNCTIONS
from forebay.database.sql.statement import Statement
from forebay.database.sql.statements import Statements
from forebay.model import changes, cleaning, schema
from forebay.model.changes import Upsert
from forebay.model.schema import WRITTEN_AT

NOW = "2024-01-01T00:00:00.000000Z"
POSTGRES, SQLITE = Statements(asyncpg.dialect()), Statements(aiosqlite.dialect())
FLAGS = ("after", "search", "feedback", "with_steps")
TABLES = [table.name for table in schema.WRITE_ORDER]


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "now", lambda: NOW)


def every_statement(of: Statements) -> Iterator[Statement]:
    names = ("user", "thread", "thread_author", "step", "element", "favorite_steps", "create_user")
    yield from (getattr(of, name) for name in (*names, "checkpoint", "position", "clear_checkpoints"))
    yield from (of.garbage, of.forget_garbage, of.contents, of.content, of.steps_below)
    for chosen in itertools.product([False, True], repeat=len(FLAGS)):
        yield of.page(**dict(zip(FLAGS, chosen, strict=True)))
    for table, partial in itertools.product(TABLES, [False, True]):
        yield from (of.upsert(table, partial=partial, late=late) for late in (False, True))
        yield from of.delete(table)
    if of is POSTGRES:
        for partial, late, checkpoint, contents in itertools.product([False, True], repeat=4):
            yield of.batch(partial=partial, late=late, checkpoint=checkpoint, contents=contents)
    else:
        yield from (of.dead_threads, of.discard_replaced, of.discard_left_out)


@pytest.mark.parametrize(
    ("of", "placeholder"), [(POSTGRES, r"\$(\d+)"), (SQLITE, r"\?")], ids=["postgresql", "sqlite"]
)
def test_a_statement_names_its_parameters_in_their_order(of: Statements, placeholder: str) -> None:
    for statement in every_statement(of):
        found = re.findall(placeholder, statement.sql)
        expected = len(set(found)) if of is POSTGRES else len(found)
        assert len(statement.names) == expected, statement.sql
        assert len(statement.arguments(dict.fromkeys(statement.names))) == expected
        assert not re.search(r"%\(|:\w", statement.sql.replace("::", " "))  # SQLAlchemy's own styles


def test_arguments_stand_in_the_statements_order() -> None:
    statement = Statement("…", ("b", "a", "b", "limit"), {"limit": 1})
    assert statement.arguments({"a": 1, "b": 2, "c": 3}) == (2, 1, 2, 1)


@pytest.mark.parametrize("of", [POSTGRES, SQLITE], ids=["postgresql", "sqlite"])
def test_a_statement_is_compiled_once(of: Statements) -> None:
    for first, second in zip(every_statement(of), every_statement(of), strict=True):
        assert first is second


# ---- documents


def rows(of: Any, table: str) -> Any:
    return orjson.loads(of.parameters[table])


def a_step(key: str = "s", thread: str | None = "t", **values: Any) -> Upsert:
    return changes.step({"id": key, "threadId": thread, **values})


WHOLE: dict[str, Any] = {"name": "n", "type": "run", "streaming": False, "createdAt": "2024"}


def test_rows_stand_in_the_order_of_their_keys() -> None:
    batch = documents([a_step("c", "2"), a_step("a", "1"), a_step("b", "3")])
    assert [row["id"] for row in rows(batch, "steps")] == ["a", "b", "c"]
    assert [row["id"] for row in rows(batch, "threads")] == ["1", "2", "3"]


def test_every_table_has_a_document_and_those_with_rows_are_named() -> None:
    batch = documents([a_step()])
    assert batch.tables == ("threads", "steps")
    assert rows(batch, "elements") == rows(batch, "feedbacks") == []


@pytest.mark.parametrize(
    "upsert",
    [
        a_step(),
        changes.element({"id": "e", "threadId": "t"}),
        changes.feedback({"id": "f", "forId": "s", "threadId": "t", "value": 1}),
    ],
    ids=["step", "element", "feedback"],
)
def test_what_is_written_into_a_thread_makes_it_exist(upsert: Upsert) -> None:
    assert rows(documents([upsert]), "threads") == [{"id": "t", "createdAt": NOW}]


def test_a_threads_own_change_goes_before_its_stub() -> None:
    created = a_step(createdAt="2023")
    renamed = changes.thread("t", "name", "u", {"a": 1})
    for upserts in ([renamed, created], [created, renamed]):
        expected = {"id": "t", "createdAt": NOW, "name": "name", "userId": "u", "metadata": {"a": 1}}
        expected |= {WRITTEN_AT: renamed.row[WRITTEN_AT]}
        assert rows(documents(upserts), "threads") == [{**expected, "updatedAt": "2023"}]


@pytest.mark.parametrize(
    ("times", "activity"),
    [(["2023", "2024", "2022"], "2024"), ([None, "2022", None], "2022"), ([None], None)],
)
def test_the_newest_step_moves_its_thread_up(times: list[str | None], activity: str | None) -> None:
    upserts = [a_step(str(number), createdAt=created) for number, created in enumerate(times)]
    assert rows(documents(upserts), "threads")[0].get("updatedAt") == activity


def test_an_element_of_no_thread_makes_none() -> None:
    assert rows(documents([changes.element({"id": "e"})]), "threads") == []


@pytest.mark.parametrize(
    ("upserts", "partial"),
    [
        ([a_step(**WHOLE)], False),
        ([a_step(**{**WHOLE, "name": None})], True),
        ([a_step(**{**WHOLE, "createdAt": None})], True),
        ([a_step(thread=None, **WHOLE)], True),
        ([a_step("a", **WHOLE), a_step("b")], True),
        ([changes.element({"id": "e", "name": "n"})], False),
        ([changes.element({"id": "e"})], True),
        ([changes.thread("t")], False),
        ([changes.feedback({"id": "f", "forId": "s", "threadId": "t", "value": 1})], False),
    ],
)
def test_a_row_that_lacks_what_it_needs_makes_the_batch_partial(upserts: list[Upsert], partial: bool) -> None:
    assert documents(upserts).partial is partial


def test_removed_keys_are_listed_by_thread() -> None:
    batch = documents(
        [changes.thread("t", metadata={"b": None, "a": None}), changes.thread("u", metadata={"c": 1})]
    )
    assert orjson.loads(batch.parameters["removed"]) == {"t": ["a", "b"]}


def test_json_goes_into_the_document_as_it_is() -> None:
    batch = documents([a_step(metadata={"a": [1.5, None]}, new={"b": "\x00"})])
    (row,) = rows(batch, "steps")
    assert row["metadata"] == {"a": [1.5, None]}
    assert row[schema.EXTRA] == {"new": {"b": "\ufffd"}}


@pytest.mark.parametrize("of", [POSTGRES, SQLITE], ids=["postgresql", "sqlite"])
def test_nothing_from_outside_gets_into_the_sql(of: Statements) -> None:
    before = [statement.sql for statement in every_statement(of)]
    hostile = "'); DROP TABLE steps; --"
    batch = documents(
        [
            a_step(hostile, hostile, **{hostile: hostile, "output": hostile}),
            changes.thread(hostile, hostile, hostile, {hostile: hostile, hostile + "2": None}, [hostile]),
        ]
    )
    assert hostile in batch.parameters["steps"]
    assert [statement.sql for statement in every_statement(of)] == before
    assert not any("DROP" in sql for sql in before)


# ---- what the databases lack


@pytest.mark.parametrize("search", ["", "50%", "a_b", "!", "\\"])
def test_nothing_is_a_wildcard_on_postgresql(search: str) -> None:
    assert POSTGRES.needle(search) == f"***={search}"  # all behind it stands for itself
    page = POSTGRES.page(after=False, search=True, feedback=False, with_steps=False).sql
    assert "LIKE" not in page
    assert page.count(" ~* ") == 6  # a name, an output, an input, twice


def test_case_is_folded_on_sqlite() -> None:
    assert SQLITE.needle("STRASSE %_") == SQLITE.needle("straße %_")


@pytest.fixture
def function() -> Callable[[str], Callable[..., Any]]:
    return {name: function for name, _, function in SQLITE_FUNCTIONS}.__getitem__


@pytest.mark.parametrize(
    ("stored", "given", "removed", "merged"),
    [
        (None, '{"a":1}', None, {"a": 1}),
        ('{"a":{"x":1},"b":1}', '{"a":{"y":2}}', None, {"a": {"y": 2}, "b": 1}),
        ('{"a":1,"b":1}', '{"b":2}', '["a","never"]', {"b": 2}),
        ('{"a":1}', '{"a":2}', '["a"]', {"a": 2}),
        ('{"big":9007199254740993}', "{}", None, {"big": 9007199254740993}),
        ("broken", '{"a":1}', None, {"a": 1}),
        ("[1]", '{"a":1}', None, {"a": 1}),
        ("", None, '["a"]', {}),
    ],
)
def test_keys_are_merged_one_by_one_on_sqlite(
    function: Any, stored: str | None, given: str | None, removed: str | None, merged: dict[str, Any]
) -> None:
    assert orjson.loads(function("forebay_merge")(stored, given, removed)) == merged


@pytest.mark.parametrize("stored", [None, "broken", '{"a": 1}'])
def test_where_nothing_is_merged_nothing_changes(function: Any, stored: str | None) -> None:
    assert function("forebay_merge")(stored, None, None) == stored


@pytest.mark.parametrize(("value", "folded"), [(None, None), ("ÄB", "äb"), (5, "5")])
def test_text_is_folded_for_searches_on_sqlite(function: Any, value: Any, folded: str | None) -> None:
    assert function("forebay_casefold")(value) == folded


def test_sqlite_parses_every_statement() -> None:
    connection = sqlite3.connect(":memory:")
    for name, count, function in SQLITE_FUNCTIONS:
        connection.create_function(name, count, function, deterministic=True)
    for table in schema.metadata.sorted_tables:
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        keys = ", ".join(f'"{column.name}"' for column in table.primary_key)
        unique = ', UNIQUE ("identifier")' if table is schema.users else ""
        connection.execute(f"CREATE TABLE {table.name} ({columns}, PRIMARY KEY ({keys}){unique})")
    for statement in every_statement(SQLITE):
        connection.execute(f"EXPLAIN {statement.sql}", statement.arguments(dict.fromkeys(statement.names)))
    connection.close()
