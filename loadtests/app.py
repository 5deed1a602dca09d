"""A Chainlit app for loads: two tool steps, and an answer that is sent and at once updated with more.

LAYER names the data layer (none, nothing, forebay, sqlalchemy, chainlit), LOAD_DATABASE_URL its database, which has
its tables, LOAD_FILES the folder for uploaded files. forebay takes its settings from FOREBAY_* as ever.
"""

from __future__ import annotations

import os
from pathlib import Path

import chainlit as cl
from chainlit.data.base import BaseDataLayer
from chainlit.data.chainlit_data_layer import ChainlitDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer
from chainlit.data.utils import queue_until_user_message

from forebay import ForebayDataLayer, LocalStorageClient
from forebay.bench.layers import no_layer, nothing
from loadtests import texts

_LAYER = os.environ.get("LAYER", "forebay")


async def _get_user(_layer: BaseDataLayer, identifier: str) -> cl.PersistedUser:
    """Whoever asks is known."""
    return cl.PersistedUser(id=identifier, identifier=identifier, createdAt="")


def _nothing() -> BaseDataLayer:
    """What Chainlit itself does for a data layer, and no more."""
    queued = queue_until_user_message()(nothing)
    return no_layer(create_step=queued, update_step=queued, get_user=_get_user)


def _data_layer() -> BaseDataLayer:
    if _LAYER == "nothing":
        return _nothing()
    url = os.environ["LOAD_DATABASE_URL"]
    files = LocalStorageClient(Path(os.environ["LOAD_FILES"]))
    if _LAYER == "sqlalchemy":
        return SQLAlchemyDataLayer(
            url.replace("postgresql://", "postgresql+asyncpg://"), storage_provider=files
        )
    if _LAYER == "chainlit":
        return ChainlitDataLayer(url, storage_client=files)
    return ForebayDataLayer(url, storage_provider=files)


if _LAYER != "none":
    cl.data_layer(_data_layer)


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    """Everybody is let in."""
    return cl.User(identifier=username)


@cl.on_chat_resume
async def resume(thread: object) -> None:
    """Allows resuming."""


@cl.on_message
async def answer(message: cl.Message) -> None:
    """Use the tools, and answer."""
    for name in texts.TOOLS:
        async with cl.Step(name=name, type="tool") as step:
            step.input = message.content
            step.output = texts.found_by(name, message.content)
    reply = cl.Message(texts.beginning(message.content))
    await reply.send()
    reply.content = texts.answer(message.content)
    await reply.update()
