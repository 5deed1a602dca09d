"""An app with a variable called `name`, whose chats can be resumed."""

from __future__ import annotations

import os

import chainlit as cl

from forebay import ForebayDataLayer


@cl.data_layer
def data_layer() -> ForebayDataLayer:
    return ForebayDataLayer(os.environ["TEST_DATABASE_URL"])


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    return cl.User(identifier=username)


@cl.on_chat_start
async def start() -> None:
    cl.user_session.set("name", "Ada")


@cl.on_chat_resume
async def resume(thread: object) -> None:
    """Allows resuming."""


@cl.on_message
async def answer(message: cl.Message) -> None:
    await cl.Message(f"Answer to {message.content}").send()
