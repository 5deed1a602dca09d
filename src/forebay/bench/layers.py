"""The layers that are compared, each made ready on an empty PostgreSQL database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
from chainlit.data.base import BaseDataLayer
from chainlit.data.chainlit_data_layer import ChainlitDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer

from forebay.bench.plan import Kind, Subject
from forebay.database.store import Store
from forebay.layer.data_layer import ForebayDataLayer
from forebay.settings import Settings

_STEP_TYPES = (
    *("assistant_message", "embedding", "llm", "retrieval", "rerank", "run", "system_message", "tool"),
    *("undefined", "user_message"),
)
# The tables of ChainlitDataLayer, as its queries need them and with the indexes that its schema declares.
_CHAINLIT_TABLES = f"""
CREATE TYPE "StepType" AS ENUM ({", ".join(f"'{name}'" for name in _STEP_TYPES)});
CREATE TABLE "User" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), metadata JSONB NOT NULL, identifier TEXT NOT NULL UNIQUE);
CREATE TABLE "Thread" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "deletedAt" TIMESTAMP(3), name TEXT,
    metadata JSONB NOT NULL DEFAULT '{{}}', "userId" TEXT REFERENCES "User" ON DELETE SET NULL,
    tags TEXT[] DEFAULT '{{}}');
CREATE TABLE "Step" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "parentId" TEXT REFERENCES "Step" ON DELETE CASCADE,
    "threadId" TEXT REFERENCES "Thread" ON DELETE CASCADE, input TEXT, metadata JSONB NOT NULL, name TEXT,
    output TEXT, type "StepType" NOT NULL, "showInput" TEXT DEFAULT 'json', "isError" BOOLEAN DEFAULT false,
    "startTime" TIMESTAMP(3) NOT NULL, "endTime" TIMESTAMP(3) NOT NULL);
CREATE TABLE "Element" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "threadId" TEXT REFERENCES "Thread" ON DELETE CASCADE,
    "stepId" TEXT NOT NULL REFERENCES "Step" ON DELETE CASCADE, metadata JSONB NOT NULL, mime TEXT,
    name TEXT NOT NULL, "objectKey" TEXT, url TEXT, "chainlitKey" TEXT, display TEXT, size TEXT, language TEXT,
    page INTEGER, props JSONB);
CREATE TABLE "Feedback" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "stepId" TEXT REFERENCES "Step" ON DELETE SET NULL,
    name TEXT NOT NULL, value DOUBLE PRECISION NOT NULL, comment TEXT);
CREATE INDEX ON "Step" ("createdAt"); CREATE INDEX ON "Step" ("endTime"); CREATE INDEX ON "Step" ("parentId");
CREATE INDEX ON "Step" ("startTime"); CREATE INDEX ON "Step" ("threadId"); CREATE INDEX ON "Step" (type);
CREATE INDEX ON "Step" (name); CREATE INDEX ON "Step" ("threadId", "startTime", "endTime");
CREATE INDEX ON "Thread" ("createdAt"); CREATE INDEX ON "Thread" (name);
CREATE INDEX ON "Element" ("stepId"); CREATE INDEX ON "Element" ("threadId");
CREATE INDEX ON "Feedback" ("createdAt"); CREATE INDEX ON "Feedback" (name);
CREATE INDEX ON "Feedback" ("stepId"); CREATE INDEX ON "Feedback" (value);
CREATE INDEX ON "Feedback" (name, value);
"""
_OUTPUTS = {"chainlit": 'SELECT id, output FROM "Step" WHERE id = ANY ($1::text[])'}
_ASKED_AT_ONCE = 10_000  # steps


async def nothing(*_: Any, **__: Any) -> None:
    """A method that takes everything and keeps nothing."""


def no_layer(**methods: Any) -> BaseDataLayer:
    """One whose methods do nothing, but for these: what is left is what the benchmark itself costs."""
    idle = dict.fromkeys((name for name in vars(BaseDataLayer) if not name.startswith("_")), nothing)
    kind: type[BaseDataLayer] = type("NoLayer", (BaseDataLayer,), idle | methods)
    return kind()


async def make_tables(kind: Kind, url: str) -> None:
    """The tables of a layer, in an empty database. SQLAlchemyDataLayer gets forebay's."""
    if kind == "chainlit":
        connection = await asyncpg.connect(url)
        await connection.execute(_CHAINLIT_TABLES)
        await connection.close()
        return
    store = Store(url, Settings(database_url=None))
    await store.migrate()
    await store.close()


async def open_layer(subject: Subject, url: str, folder: Path) -> BaseDataLayer:
    """A layer on a database that has its tables, connected before any clock starts."""
    if subject.kind == "none":
        return no_layer()
    if subject.kind == "sqlalchemy":
        layer = SQLAlchemyDataLayer(url.replace("postgresql://", "postgresql+asyncpg://"))
        await layer.execute_sql("SELECT 1", {})
        return layer
    if subject.kind == "chainlit":
        own = ChainlitDataLayer(url)
        await own.connect()  # its first use from many tasks at once would open a pool for each
        return own
    settings = Settings(
        durability=subject.durability,
        writer=subject.writer,
        journal_dir=folder,
        metrics_address="off",  # several are measured on one machine
        storage="none",
    )
    forebay = ForebayDataLayer(url, settings=settings)
    await forebay.get_user("nobody")
    return forebay


async def close_layer(layer: BaseDataLayer) -> None:
    """Close a layer and its connections, which is more than their own `close` does in some releases."""
    if isinstance(layer, ChainlitDataLayer):
        await layer.cleanup()
    else:
        await layer.close()
    if isinstance(layer, SQLAlchemyDataLayer):
        await layer.engine.dispose()


async def stored_outputs(kind: Kind, connection: asyncpg.Connection, ids: Sequence[str]) -> dict[str, str]:
    """The outputs of those steps that are there."""
    query = _OUTPUTS.get(kind, "SELECT id::text, output FROM steps WHERE id = ANY ($1::uuid[])")
    found: dict[str, str] = {}
    for start in range(0, len(ids), _ASKED_AT_ONCE):
        rows = await connection.fetch(query, ids[start : start + _ASKED_AT_ONCE])
        found |= {row[0]: row[1] for row in rows}
    return found
