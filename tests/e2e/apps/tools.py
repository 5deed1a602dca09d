"""An app whose tools are LangChain's plain functions, which run in threads and reach Chainlit by loops of their own."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import chainlit as cl
from chainlit.data.base import BaseDataLayer
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool

from forebay import ForebayDataLayer


@cl.data_layer
def data_layer() -> BaseDataLayer:
    return ForebayDataLayer(os.environ["TEST_DATABASE_URL"])


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    return cl.User(identifier=username)


async def _show(text: str) -> None:
    async with cl.Step(name="look up", type="tool") as step:
        step.input = text
        step.output = f"found {text}"
    await cl.Message(f"note: {text}", author="tool").send()


@tool  # type: ignore[untyped-decorator]  # langchain-core need not be there
def look_up(text: str) -> str:
    """Look a text up."""
    # LangChain runs it in a thread, with the caller's context.
    asyncio.run(_show(text))
    return text.upper()


@cl.on_message
async def answer(message: cl.Message) -> None:
    config = RunnableConfig(callbacks=[cl.AsyncLangchainCallbackHandler()])
    chain: Any = RunnableLambda(lambda text: {"text": text}) | look_up
    found = await chain.ainvoke(message.content, config)
    reply = cl.Message(f"Answer: {found}")
    await reply.send()
    reply.content += ", and all of it"
    await reply.update()
