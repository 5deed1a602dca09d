"""What the load tests chat with: two tool steps, then an answer that is sent and at once updated.

`LAYER` chooses the data layer: none, forebay, sqlalchemy or chainlit; `LOAD_DATABASE_URL` is its database.
"""

from __future__ import annotations

import os

import chainlit as cl
from chainlit.data.base import BaseDataLayer
from chainlit.data.chainlit_data_layer import ChainlitDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer

from forebay import ForebayDataLayer

LAYER = os.environ.get("LAYER", "forebay")


def _make_layer() -> BaseDataLayer:
    url = os.environ["LOAD_DATABASE_URL"]
    if LAYER == "sqlalchemy":
        return SQLAlchemyDataLayer(url.replace("postgresql://", "postgresql+asyncpg://"))
    if LAYER == "chainlit":
        return ChainlitDataLayer(url)
    return ForebayDataLayer(url)


if LAYER != "none":
    cl.data_layer(_make_layer)


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    """Everybody is let in."""
    return cl.User(identifier=username)


@cl.on_chat_resume
async def resume(thread: object) -> None:
    """Chats may be gone on with."""


@cl.on_message
async def answer(message: cl.Message) -> None:
    """What is answered follows from the question, so that an audit knows it."""
    for name in ("search", "read"):
        async with cl.Step(name=name, type="tool") as step:
            step.input = message.content
            step.output = f"{name} found {message.content}"
    reply = cl.Message(f"Answer to {message.content}")
    await reply.send()
    reply.content += ", and all of it"
    await reply.update()
