"""The official layer's tables as views of forebay's, so that dashboards and reports go on; PostgreSQL only."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from forebay.database.store import Store
from forebay.database.translation import translated
from forebay.errors import SettingsError
from forebay.model.schema import SENT_AT, WRITTEN_AT, elements, feedbacks, steps, threads, users

_TIME = postgresql.TIMESTAMP(precision=3)
_IS_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?$"

Expression = sa.ColumnElement[Any]


def _time(column: Expression) -> Expression:
    """A time that is text, as the official layer has it; null for other text, which other layers may have written."""
    with_zone = sa.cast(column, sa.TIMESTAMP(timezone=True))
    return sa.case((column.regexp_match(_IS_TIME), sa.cast(sa.func.timezone("UTC", with_zone), _TIME)))


def _moment(column: Expression) -> Expression:
    """A moment in microseconds."""
    return sa.cast(
        sa.func.timezone("UTC", sa.func.to_timestamp(column / sa.literal_column("1000000.0"))), _TIME
    )


def _or_empty(column: Expression, kind: str) -> Expression:
    return sa.func.coalesce(column, sa.literal_column(f"'{{}}'::{kind}"))


def _views() -> dict[str, sa.Select[Any]]:
    user, thread, step, element, feedback = (
        table.c for table in (users, threads, steps, elements, feedbacks)
    )
    described: list[Expression] = []
    for name in ("type", "size", "language", "display", "page"):
        described += [sa.literal_column(f"'{name}'"), element[name]]
    began = sa.func.coalesce(step.start, step.createdAt)
    return {
        "User": sa.select(
            user.id,
            _time(user.createdAt).label("createdAt"),
            _time(user.createdAt).label("updatedAt"),
            user.metadata,
            user.identifier,
        ),
        "Thread": sa.select(
            thread.id,
            _time(thread.createdAt).label("createdAt"),
            _time(sa.func.coalesce(thread.updatedAt, thread.createdAt)).label("updatedAt"),
            sa.cast(sa.null(), _TIME).label("deletedAt"),
            thread.name,
            _or_empty(thread.metadata, "jsonb").label("metadata"),
            thread.userId,
            _or_empty(thread.tags, "text[]").label("tags"),
        ),
        "Step": sa.select(
            step.id,
            _time(step.createdAt).label("createdAt"),
            _moment(step[WRITTEN_AT]).label("updatedAt"),
            *(step[name] for name in ("parentId", "threadId", "input")),
            _or_empty(step.metadata, "jsonb").label("metadata"),
            *(step[name] for name in ("name", "output", "type", "showInput", "isError")),
            _time(began).label("startTime"),
            _time(sa.func.coalesce(step.end, began)).label("endTime"),
        ),
        "Element": sa.select(
            element.id,
            _moment(element[SENT_AT]).label("createdAt"),
            _moment(element[WRITTEN_AT]).label("updatedAt"),
            element.threadId,
            element.forId.label("stepId"),
            sa.func.jsonb_build_object(*described).label("metadata"),
            *(
                element[name]
                for name in ("mime", "name", "objectKey", "url", "chainlitKey", "display", "size")
            ),
            *(element[name] for name in ("language", "page", "props")),
        ),
        "Feedback": sa.select(
            feedback.id,
            _moment(feedback[WRITTEN_AT]).label("createdAt"),
            _moment(feedback[WRITTEN_AT]).label("updatedAt"),
            feedback.forId.label("stepId"),
            sa.literal_column("'user_feedback'").label("name"),
            sa.cast(feedback.value, postgresql.DOUBLE_PRECISION()).label("value"),
            sa.func.nullif(feedback.comment, sa.literal_column("''")).label("comment"),
        ),
    }


async def make_views(store: Store, schema: str) -> None:
    """Make the views, or make them anew, in a schema that is made too. Raises SettingsError, or a DatabaseError."""
    if store.engine.dialect.name != "postgresql":
        raise SettingsError("--views: a SQLite file has no schemas; dashboards read its tables as they are")
    quoted = store.engine.dialect.identifier_preparer.quote
    with translated(store.location, own_statement=True):
        async with store.engine.begin() as connection:
            await connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
            for name, query in _views().items():
                written = query.compile(dialect=store.engine.dialect, compile_kwargs={"literal_binds": True})
                view = f"{quoted(schema)}.{quoted(name)}"
                await connection.exec_driver_sql(f"CREATE OR REPLACE VIEW {view} AS {written}")
