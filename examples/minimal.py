"""A chat whose history is kept. Any name and password lets in; see README.md beside it for how to run it."""

from __future__ import annotations

import chainlit as cl
from chainlit.data import get_data_layer

from forebay import ForebayDataLayer


@cl.data_layer
def data_layer() -> ForebayDataLayer:
    """The database is the one of FOREBAY_DATABASE_URL."""
    return ForebayDataLayer.from_env()


@cl.on_app_startup
async def start() -> None:
    """What a crash has left is written out at once, and the metrics are served."""
    layer = get_data_layer()
    if isinstance(layer, ForebayDataLayer):
        await layer.start()


@cl.password_auth_callback
async def log_in(username: str, _password: str) -> cl.User | None:
    """Chainlit keeps the history of people who have logged in. Look the password up here."""
    return cl.User(identifier=username)


@cl.on_chat_resume
async def resume(_thread: object) -> None:
    """That this is here lets a chat of the sidebar go on."""


@cl.on_message
async def answer(message: cl.Message) -> None:
    """Ask your model here."""
    await cl.Message(f"You said: {message.content}").send()
