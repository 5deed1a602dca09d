"""An app that sends an answer and updates it at once, after two tool steps; `LAYER` chooses the data layer.

`TEST_LINGER` may be longer than the settings allow.
"""

from __future__ import annotations

import os

import chainlit as cl
from chainlit.data.base import BaseDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer

from forebay import ForebayDataLayer, Settings


@cl.data_layer
def data_layer() -> BaseDataLayer:
    url = os.environ["TEST_DATABASE_URL"]
    if os.environ.get("LAYER") == "sqlalchemy":
        return SQLAlchemyDataLayer(url.replace("postgresql://", "postgresql+asyncpg://"))
    settings = Settings()
    if linger := os.environ.get("TEST_LINGER"):
        settings = settings.model_copy(update={"linger": float(linger)})
    return ForebayDataLayer(url, settings=settings)


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    return cl.User(identifier=username)


@cl.on_chat_resume
async def resume(thread: object) -> None:
    """Allows resuming."""


@cl.on_message
async def answer(message: cl.Message) -> None:
    for name in ("search", "read"):
        async with cl.Step(name=name, type="tool") as step:
            step.input = message.content
            step.output = f"{name} found {message.content}"
    reply = cl.Message(f"Answer to {message.content}")
    await reply.send()
    reply.content += ", and all of it"
    await reply.update()
