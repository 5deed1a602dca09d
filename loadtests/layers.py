"""The layers that are compared, each made ready on an empty PostgreSQL database."""

from __future__ import annotations

import os
from pathlib import Path

import asyncpg
from chainlit.data.base import BaseDataLayer
from chainlit.data.chainlit_data_layer import ChainlitDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer

from forebay import ForebayDataLayer, Settings
from forebay.settings import Durability

LAYERS = ("forebay", "sqlalchemy", "chainlit")

# The tables of Chainlit's own layer, as its queries need them and with the indexes that its schema declares.
_STEP_TYPES = (
    *("assistant_message", "embedding", "llm", "retrieval", "rerank", "run", "system_message", "tool"),
    *("undefined", "user_message"),
)
_CHAINLIT_TABLES = f"""
CREATE TYPE "StepType" AS ENUM ({", ".join(f"'{name}'" for name in _STEP_TYPES)});
CREATE TABLE "User" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), metadata JSONB NOT NULL, identifier TEXT NOT NULL UNIQUE);
CREATE TABLE "Thread" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "deletedAt" TIMESTAMP(3), name TEXT,
    metadata JSONB NOT NULL DEFAULT '{{}}', "userId" TEXT REFERENCES "User", tags TEXT[] DEFAULT '{{}}');
CREATE TABLE "Step" (
    id TEXT PRIMARY KEY, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT now(),
    "updatedAt" TIMESTAMP(3) NOT NULL DEFAULT now(), "parentId" TEXT REFERENCES "Step" ON DELETE CASCADE,
    "threadId" TEXT REFERENCES "Thread" ON DELETE CASCADE, input TEXT, metadata JSONB NOT NULL, name TEXT,
    output TEXT, type "StepType" NOT NULL, "showInput" TEXT DEFAULT 'json', "isError" BOOLEAN DEFAULT false,
    "startTime" TIMESTAMP(3) NOT NULL, "endTime" TIMESTAMP(3) NOT NULL);
CREATE INDEX ON "Step" ("createdAt"); CREATE INDEX ON "Step" ("endTime"); CREATE INDEX ON "Step" ("parentId");
CREATE INDEX ON "Step" ("startTime"); CREATE INDEX ON "Step" ("threadId"); CREATE INDEX ON "Step" (type);
CREATE INDEX ON "Step" (name); CREATE INDEX ON "Step" ("threadId", "startTime", "endTime");
CREATE INDEX ON "Thread" ("createdAt"); CREATE INDEX ON "Thread" (name);
"""


async def create(name: str, url: str, durability: Durability = "memory") -> BaseDataLayer:
    """A layer by name, with its tables in the database at `url`.

    SQLAlchemyDataLayer gets forebay's tables and indexes, which are better than those that it documents.
    """
    folder = Path(os.environ["CHAINLIT_APP_ROOT"]) / "journals"
    settings = Settings(durability=durability, journal_dir=folder, auto_migrate=True)
    forebay = ForebayDataLayer(url, settings=settings)
    if name == "forebay":
        await forebay.execute_sql("SELECT 1", {})  # connects and migrates before the clock starts
        return forebay
    if name == "sqlalchemy":
        await forebay.execute_sql("SELECT 1", {})
        await forebay.close()
        return SQLAlchemyDataLayer(url.replace("postgresql://", "postgresql+asyncpg://"))
    await forebay.close()
    connection = await asyncpg.connect(url)
    await connection.execute(_CHAINLIT_TABLES)
    await connection.close()
    layer = ChainlitDataLayer(url)
    await layer.connect()  # its first use from many tasks at once would open a pool for each
    return layer


STEPS_QUERY = {
    "forebay": "SELECT id::text, output FROM steps",
    "sqlalchemy": "SELECT id::text, output FROM steps",
    "chainlit": 'SELECT id, output FROM "Step"',
}
