"""An app that asks before anything is said, and changes, when it is answered, what it has shown until then."""

from __future__ import annotations

import os

import chainlit as cl
from chainlit.data.base import BaseDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer

from forebay import ForebayDataLayer


@cl.data_layer
def data_layer() -> BaseDataLayer:
    url = os.environ["TEST_DATABASE_URL"]
    if os.environ.get("LAYER") == "sqlalchemy":
        return SQLAlchemyDataLayer(url.replace("postgresql://", "postgresql+asyncpg://"))
    return ForebayDataLayer(url)


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    return cl.User(identifier=username)


@cl.on_chat_start
async def start() -> None:
    greeting = await cl.Message(
        "Choose", elements=[cl.Text(name="terms", content="The terms", display="inline")]
    ).send()
    placeholder = await cl.Message("(waiting for you)").send()
    async with cl.Step(name="setup", type="tool") as step:
        step.input = "nothing yet"
        actions = [cl.Action(name="go", payload={"value": 1}, label="Go")]
        answer = await cl.AskActionMessage("Pick", actions=actions, timeout=600).send()
        step.output = f"picked {answer['name'] if answer else 'nothing'}"
    greeting.content = "You have chosen"
    await greeting.update()
    await placeholder.remove()
    await cl.Message("ready").send()
