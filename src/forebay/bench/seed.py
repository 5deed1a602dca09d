"""Tables that are full: threads and steps of readers and of everybody else, made by the database itself."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from dataclasses import dataclass

import asyncpg

from forebay.bench.plan import PAGE, THREAD_SIZES, Kind

NEEDLE = "harbour"  # what is searched for: in the name and in a step of every fiftieth thread
_STEPS_A_THREAD = 20
_THREADS_A_SIZE = 10
_OTHERS = 500  # users

# Parameters: $1 label, $2 threads, $3 steps of each, $4 users. t and s count from 1.
_IDS = {
    "user": "md5($1::text || '-u-' || t % $4::int)::uuid",
    "thread": "md5($1::text || '-t-' || t)::uuid",
    "step": "md5($1::text || '-s-' || t || '-' || s)::uuid",
}
_AT = "(timestamp '2026-01-01' + t * interval '1 minute' + {} * interval '1 second')"
_TEXT_AT = f'to_char({_AT}, \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')'
_USER = "$1::text || '-' || t % $4::int"
_NAME = f"CASE WHEN t % 50 = 0 THEN 'About the {NEEDLE} ' ELSE 'A chat ' END || t"
_OUTPUT = (
    f"CASE WHEN s = 2 AND t % 50 = 0 THEN 'The {NEEDLE} is near. ' ELSE '' END"
    " || 'Result ' || t || ' ' || s || ': ' || repeat('found it. ', 10 + s % 30)"
)
_TYPE = "(ARRAY['user_message', 'run', 'tool', 'tool', 'assistant_message'])[1 + s % 5]"
_THREADS = "generate_series(1, $2::int) t"
_STEPS = f"{_THREADS}, generate_series(1, $3::int) s"
_FOREBAY = (
    f"""INSERT INTO users (id, identifier, metadata, "createdAt")
    SELECT DISTINCT ON (t % $4::int) {_IDS["user"]}, {_USER}, '{{}}'::jsonb, {_TEXT_AT.format("0")} FROM {_THREADS}""",
    f"""INSERT INTO threads (id, "createdAt", name, "userId", "userIdentifier", metadata, "updatedAt")
    SELECT {_IDS["thread"]}, {_TEXT_AT.format("0")}, {_NAME}, {_IDS["user"]}, {_USER},
        '{{}}'::jsonb, {_TEXT_AT.format("$3::int")} FROM {_THREADS}""",
    f"""INSERT INTO steps (id, name, type, "threadId", streaming, "isError", metadata, input, output,
        "createdAt", start, "end", "showInput")
    SELECT {_IDS["step"]}, 'Assistant', {_TYPE}, {_IDS["thread"]}, false, false, '{{}}'::jsonb, '', {_OUTPUT},
        {_TEXT_AT.format("s")}, {_TEXT_AT.format("s")}, {_TEXT_AT.format("s")}, 'json' FROM {_STEPS}""",
)
_CHAINLIT = (
    f"""INSERT INTO "User" (id, identifier, metadata)
    SELECT DISTINCT ON (t % $4::int) {_IDS["user"]}::text, {_USER}, '{{}}'::jsonb FROM {_THREADS}""",
    f"""INSERT INTO "Thread" (id, "createdAt", "updatedAt", name, "userId")
    SELECT {_IDS["thread"]}::text, {_AT.format("0")}, {_AT.format("$3::int")}, {_NAME}, {_IDS["user"]}::text
    FROM {_THREADS}""",
    f"""INSERT INTO "Step" (id, name, type, "threadId", metadata, input, output, "createdAt", "startTime", "endTime")
    SELECT {_IDS["step"]}::text, 'Assistant', {_TYPE}::"StepType", {_IDS["thread"]}::text, '{{}}'::jsonb, '', {_OUTPUT},
        {_AT.format("s")}, {_AT.format("s")}, {_AT.format("s")} FROM {_STEPS}""",
)


@dataclass(frozen=True)
class Group:
    """`threads` threads of `steps` steps each, shared by `users` users."""

    label: str
    threads: int
    steps: int
    users: int = 1


def groups(owned: tuple[int, ...], others: int) -> list[Group]:
    """Everybody: those whose lists are read, the threads that are read, and the others."""
    return [
        *(Group(f"list-{threads}", threads, _STEPS_A_THREAD) for threads in owned),
        *(Group(f"thread-{steps}", _THREADS_A_SIZE, steps) for steps in THREAD_SIZES),
        Group("others", others // _STEPS_A_THREAD, _STEPS_A_THREAD, users=_OTHERS),
    ]


def user_id(threads: int) -> str:
    """Who has so many threads."""
    return _id(f"list-{threads}-u-0")


def thread_ids(steps: int) -> list[str]:
    """The threads of so many steps."""
    return [_id(f"thread-{steps}-t-{number}") for number in range(1, _THREADS_A_SIZE + 1)]


def tenth_page_cursor(threads: int) -> str:
    """The last thread of the ninth page, newest first."""
    return _id(f"list-{threads}-t-{threads - 9 * PAGE + 1}")


def _id(text: str) -> str:
    return str(uuid.UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()))


async def fill(kind: Kind, url: str, found: list[Group]) -> None:
    """Make the rows, and let the database look at them."""
    connection = await asyncpg.connect(url)
    try:
        # What is made here fits together; checking each row costs more than making it. A superuser's right.
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SET session_replication_role = replica")
        indexes = await _drop_indexes(connection, ".*")
        for group in found:
            await _fill_group(connection, kind, group)
        await connection.execute("SET maintenance_work_mem = '256MB'")
        for index in indexes:  # which is faster than to keep them up to date meanwhile
            await connection.execute(index)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


async def _fill_group(connection: asyncpg.Connection, kind: Kind, group: Group) -> None:
    values = (group.label, group.threads, group.steps, group.users)
    for statement in _CHAINLIT if kind == "chainlit" else _FOREBAY:
        # Each parameter must be in the statement: a condition that holds.
        await connection.execute(f"{statement} WHERE $3::int > 0 AND $4::int > 0", *values)


async def drop_indexes(url: str) -> None:
    """Leave the tables as SQLAlchemyDataLayer documents them, without forebay's indexes."""
    connection = await asyncpg.connect(url)
    try:
        await _drop_indexes(connection, "^forebay_.*")
    finally:
        await connection.close()


async def _drop_indexes(connection: asyncpg.Connection, names: str) -> list[str]:
    """Drop the indexes of such names that no constraint needs; what makes them again."""
    found = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND indexname ~ $1"
        " AND indexname NOT IN (SELECT conname FROM pg_constraint)",
        names,
    )
    for row in found:
        await connection.execute(f'DROP INDEX "{row[0]}"')
    return [row[1] for row in found]
