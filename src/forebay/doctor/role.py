"""The role that the app logs in as, and what the server does with its transactions."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from forebay.doctor.findings import Finding, error, note, ok, warning
from forebay.model.schema import metadata
from forebay.settings import Settings

_READ_ONLY = ("forebay_migrations", "forebay_database")
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_WHO = sa.text(
    "SELECT current_user::text AS role, quote_ident(current_user) AS quoted, rolconnlimit AS of_role,"
    " datconnlimit AS of_database, datname AS database, datctype AS ctype, rolsuper AS super,"
    " current_setting('synchronous_commit') AS synchronous_commit,"
    " current_setting('synchronous_standby_names') AS synchronous_standbys,"
    " (SELECT count(*) FROM pg_catalog.pg_stat_replication) AS standbys,"
    " EXISTS (SELECT FROM pg_catalog.pg_roles grantee, pg_catalog.pg_database db"
    "   WHERE db.datname = current_database() AND grantee.oid = db.datdba AND grantee.rolname = current_user) AS owns"
    " FROM pg_catalog.pg_roles, pg_catalog.pg_database WHERE rolname = current_user AND datname = current_database()"
)
# What forebay's connections set for themselves counts more than what the role or the server has.
_TIMEOUTS = sa.text(
    "SELECT name, setting::bigint AS ms FROM pg_catalog.pg_settings WHERE setting::bigint > 0 AND source <> 'client'"
    " AND name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout',"
    " 'idle_session_timeout') ORDER BY name"
)
_TABLES = sa.text(
    "SELECT name, relrowsecurity AND row_security_active(oid) AS secured,"
    " has_table_privilege(oid, 'SELECT') AS select, has_table_privilege(oid, 'INSERT') AS insert,"
    " has_table_privilege(oid, 'UPDATE') AS update, has_table_privilege(oid, 'DELETE') AS delete"
    " FROM unnest(CAST(:names AS text[])) AS name JOIN pg_catalog.pg_class ON oid = to_regclass(quote_ident(name))"
    " ORDER BY name"
)


async def check_role(connection: AsyncConnection, settings: Settings, wanted: int) -> list[Finding]:
    """Everything about it. `wanted`: how many connections all processes want together."""
    who = (await connection.execute(_WHO)).mappings().one()
    timeouts = (await connection.execute(_TIMEOUTS)).mappings().all()
    names = [*metadata.tables, *(name for name in _READ_ONLY if name not in metadata.tables)]
    tables = (await connection.execute(_TABLES, {"names": names})).mappings().all()
    return [
        *_rights(who, tables),
        *_row_security(who, tables),
        *_limits(who, wanted),
        *_timeouts(who, timeouts, settings),
        *_durability(who),
        *_letters(who),
        *_keepalive(),
    ]


def _rights(who: sa.RowMapping, tables: Sequence[sa.RowMapping]) -> Iterator[Finding]:
    lacking: dict[str, list[str]] = {}
    for table in tables:
        needed = _RIGHTS[:1] if table["name"] in _READ_ONLY else _RIGHTS
        if missing := [right for right in needed if not table[right.lower()]]:
            lacking.setdefault(", ".join(missing), []).append(table["name"])
    if not lacking:
        yield ok("rights", f"{who['role']} may read and write all tables that are there")
        return
    said = "; ".join(f"no {rights} on {', '.join(names)}" for rights, names in lacking.items())
    remedy = "\n".join(
        f"GRANT {rights} ON {', '.join(names)} TO {who['quoted']};" for rights, names in lacking.items()
    )
    yield error("rights", f"{who['role']} has {said}", remedy)


def _row_security(who: sa.RowMapping, tables: Sequence[sa.RowMapping]) -> Iterator[Finding]:
    if secured := [table["name"] for table in tables if table["secured"]]:
        yield warning(
            "row security",
            f"policies decide which rows of {', '.join(secured)} {who['role']} sees and writes: what they hide is "
            "missing, and what they refuse becomes a dead letter",
            "\n".join(
                f"CREATE POLICY forebay ON {name} TO {who['quoted']} USING (true) WITH CHECK (true);"
                for name in secured
            ),
        )


def _limits(who: sa.RowMapping, wanted: int) -> Iterator[Finding]:
    for whose, limit, remedy in (
        ("role", who["of_role"], f"ALTER ROLE {who['quoted']} CONNECTION LIMIT {wanted + 5};"),
        (
            "database",
            who["of_database"],
            f'ALTER DATABASE "{who["database"]}" CONNECTION LIMIT {wanted + 5};',
        ),
    ):
        if 0 <= limit < wanted and not who["super"]:
            yield error(
                f"{whose} limit",
                f"{wanted} connections wanted, and the {whose} may have {limit}",
                f"{remedy}\nor lower FOREBAY_POOL_SIZE",
            )


def _timeouts(who: sa.RowMapping, timeouts: Sequence[sa.RowMapping], settings: Settings) -> Iterator[Finding]:
    for timeout in timeouts:
        seconds = timeout["ms"] / 1000
        if timeout["name"] == "idle_session_timeout" or seconds >= settings.statement_timeout:
            continue
        yield warning(
            timeout["name"],
            f"the server ends what takes {seconds:g} s, FOREBAY_STATEMENT_TIMEOUT is {settings.statement_timeout:g} s",
            f"ALTER ROLE {who['quoted']} SET {timeout['name']} = '{settings.statement_timeout:g}s';",
        )


def _durability(who: sa.RowMapping) -> Iterator[Finding]:
    if who["synchronous_commit"] == "off":
        yield warning(
            "commits",
            "synchronous_commit=off: a crash of the server takes back what it said was committed; the journal gives it "
            "again if it is there within FOREBAY_JOURNAL_KEEP",
            f"ALTER ROLE {who['quoted']} SET synchronous_commit = on;",
        )
    elif who["standbys"] and not who["synchronous_standbys"].strip():
        yield warning(
            "commits",
            f"{who['standbys']} standbys follow, none synchronously: a failover takes back what they had not yet got; "
            "the journal gives it again if the standby lags by less than FOREBAY_JOURNAL_KEEP",
            "set synchronous_standby_names on the server, or accept that commit alone does not outlive a failover",
        )
    else:
        yield ok("commits", f"synchronous_commit={who['synchronous_commit']}")


def _letters(who: sa.RowMapping) -> Iterator[Finding]:
    if who["ctype"] in ("C", "POSIX"):
        yield warning(
            "letters",
            f"LC_CTYPE is {who['ctype']}: a search knows upper and lower case of ASCII letters only",
            "make the database anew with LC_CTYPE C.UTF-8 or another of UTF-8, and restore it there",
        )


def _keepalive() -> Iterator[Finding]:
    if not hasattr(socket, "TCP_KEEPIDLE") and not hasattr(socket, "TCP_KEEPALIVE"):
        yield note(
            "keepalive", "this system takes no keepalive for a connection: a forgotten one costs a time-out"
        )
