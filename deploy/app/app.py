"""The smallest Chainlit app on forebay that is fit to be deployed. Replace `answer` by your own.

From the environment: the database (FOREBAY_DATABASE_URL), what signs the logins (CHAINLIT_AUTH_SECRET), and one login
(CHAT_USER, CHAT_PASSWORD). Without these secrets it does not start.
"""

from __future__ import annotations

import hmac
import os

import chainlit as cl
from chainlit.data import get_data_layer

from forebay import ForebayDataLayer

_SECRETS = ("FOREBAY_DATABASE_URL", "CHAINLIT_AUTH_SECRET", "CHAT_PASSWORD")
if missing := [name for name in _SECRETS if not os.environ.get(name)]:
    raise SystemExit(f"not set: {', '.join(missing)}")


@cl.data_layer
def data_layer() -> ForebayDataLayer:
    """What an app changes to run on forebay."""
    return ForebayDataLayer.from_env()


@cl.on_app_startup
async def start() -> None:
    """Chainlit would start the layer at the first login, but probes and journals don't wait for one."""
    layer = get_data_layer()
    if isinstance(layer, ForebayDataLayer):
        await layer.start()


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    """One account. Without a password in the environment nobody gets in."""
    known_name, known_password = os.environ.get("CHAT_USER", "admin"), os.environ.get("CHAT_PASSWORD", "")
    matches = hmac.compare_digest(username.encode(), known_name.encode()) & hmac.compare_digest(
        password.encode(), known_password.encode()
    )
    return cl.User(identifier=known_name) if matches and known_password else None


@cl.on_chat_resume
async def resume(_thread: object) -> None:
    """That this exists makes Chainlit offer to go on with an old chat."""


@cl.on_message
async def answer(message: cl.Message) -> None:
    """Say it again."""
    await cl.Message(f"You said: {message.content}").send()
