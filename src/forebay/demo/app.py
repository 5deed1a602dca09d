"""The demo's chat: a scripted assistant that shows everything which a data layer keeps.

Run by `forebay demo`, which sets the environment. It needs no key and no network.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import logging
import re

import chainlit as cl
from chainlit.types import ThreadDict

from forebay import ForebayDataLayer

LOGIN = "demo"
_MOST = 200
_NOTES = {
    "forebay": "A forebay is the pool that buffers water ahead of the turbines.",
    "queue": "Writes wait in one ordered queue and leave in batches, so nothing overtakes.",
    "history": "A page of the history is one statement, however many chats there are.",
    "restart": "Stop the server and start it again: this chat will be in the sidebar.",
}
_WELCOME = """**Everything said here is kept by forebay.**

Pick one below, or ask about the *queue* or the *history*. Then reload the page,
or stop the server and start it again: the chat is in the sidebar, and goes on."""
_HELP = """I am scripted, so I know little, but all that I say is kept. Try:

- **steps**: look something up, in steps within steps
- **file**: get a file that is still there after a restart
- attach a file of yours: it is, too
- **count to 20**: a streamed answer
- **what did I say?**: this chat's questions, also after a restart
- anything else, for instance about the *queue* or the *history*

Rate an answer with the thumbs below it, rename or delete a chat in the sidebar."""
_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><rect width="64" height="64" fill="#0e7490"/>
<path d="M8 26q8-8 16 0t16 0 16 0M8 38q8-8 16 0t16 0 16 0" fill="none" stroke="#fff" stroke-width="4"/></svg>"""
_STARTERS = [
    # What is sent is what was read: it names the chat.
    cl.Starter(label=text, message=text)
    for text in ("What can you do?", "Look something up", "Give me a file", "Count to 20")
]

# Making an empty file's tables is no news, and buries the address that was printed.
for _name in ("alembic", "forebay.migrations"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@cl.data_layer
def data_layer() -> ForebayDataLayer:
    """The one line that an app changes."""
    return ForebayDataLayer.from_env()


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    """demo / demo."""
    return cl.User(identifier=LOGIN) if (username, password) == (LOGIN, LOGIN) else None


@cl.set_chat_profiles
async def profiles(_user: cl.User | None) -> list[cl.ChatProfile]:
    """A new chat opens with its profile's description and starters; a message would hide them."""
    icon = _data_url("image/svg+xml", _ICON)
    return [cl.ChatProfile(name="forebay", markdown_description=_WELCOME, icon=icon, starters=_STARTERS)]


@cl.on_chat_start
async def start() -> None:
    """A new chat has asked nothing."""
    cl.user_session.set("questions", [])


@cl.on_chat_resume
async def resume(thread: ThreadDict) -> None:
    """A chat from the sidebar: what was asked is in its steps."""
    asked = [step["output"] for step in thread["steps"] if step["type"] == "user_message"]
    cl.user_session.set("questions", asked)


@cl.on_message
async def answer(message: cl.Message) -> None:
    """Answer by the first word that is known."""
    asked = message.content.lower()
    words = set(re.findall(r"\w+", asked))
    questions = cl.user_session.get("questions") or []
    if message.elements:
        names = ", ".join(f"*{element.name}*" for element in message.elements)
        await cl.Message(f"I keep {names}. It will open from this chat after a restart, too.").send()
    elif "help" in words or "can you do" in asked:
        await cl.Message(_HELP).send()
    elif "file" in words:
        await _send_file(questions)
    elif "count" in words:
        await _count(asked)
    elif "did i say" in asked:
        said = "\n".join(f"{number}. {text}" for number, text in enumerate(questions, 1))
        await cl.Message(said or "Nothing yet.").send()
    else:
        await _look_up(message.content)
    cl.user_session.set("questions", [*questions, message.content])


async def _send_file(questions: list[str]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("number", "question"), *enumerate(questions, 1)])
    file = cl.File(name="questions.csv", content=table.getvalue(), mime="text/csv")
    await cl.Message("Your questions so far, as a file:", elements=[file]).send()


def _data_url(mime: str, content: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content.encode()).decode()}"


async def _count(asked: str) -> None:
    found = re.search(r"\d+", asked)
    reply = cl.Message("")
    for number in range(1, min(int(found[0][:9]) if found else 10, _MOST) + 1):
        await reply.stream_token(f"{number} ")
        await asyncio.sleep(0.02)
    await reply.send()


async def _look_up(asked: str) -> None:
    async with cl.Step(name="Notebook", type="tool", show_input="text") as outer:
        outer.input = asked
        found = await _search(asked)
        async with cl.Step(name="Pages", type="tool", show_input="text") as inner:
            inner.input = ", ".join(found)
            await asyncio.sleep(0.1)
            inner.output = "\n".join(_NOTES[topic] for topic in found)
        outer.output = f"{len(found)} of {len(_NOTES)} notes"
    reply = cl.Message("")
    # Two notes on two lines would be one paragraph in Markdown.
    text = "\n".join(f"- {_NOTES[topic]}" for topic in found)
    for word in f"You said: {asked}\n\n{text}".split(" "):
        await reply.stream_token(word + " ")
        await asyncio.sleep(0.01)
    await reply.send()


async def _search(asked: str) -> list[str]:
    async with cl.Step(name="Index", type="retrieval", show_input="text") as step:
        step.input = asked
        await asyncio.sleep(0.1)
        found = [topic for topic in _NOTES if topic in asked.lower()] or [*_NOTES]
        step.output = ", ".join(found)
    return found
