"""An app for a person at a browser: answers after two tool steps, every kind of element, a turn without end."""

from __future__ import annotations

import asyncio
import io
import os
import wave
from pathlib import Path

import chainlit as cl
import pandas as pd
import plotly.graph_objects as go
from chainlit.data import get_data_layer

from forebay import ForebayDataLayer

_AUDIO_SECONDS = int(os.environ["AUDIO_SECONDS"])
_FILES = Path(__file__).parent / "files"
_SIZE = b'width="60" height="40"'
_DRAWING = b'<svg xmlns="http://www.w3.org/2000/svg" %b><rect fill="teal" %b/></svg>' % (_SIZE, _SIZE)


@cl.data_layer
def data_layer() -> ForebayDataLayer:
    return ForebayDataLayer(os.environ["TEST_DATABASE_URL"])


@cl.password_auth_callback
async def log_in(username: str, password: str) -> cl.User | None:
    return cl.User(identifier=username)


@cl.on_chat_resume
async def resume(thread: object) -> None:
    """Allows resuming."""


@cl.on_message
async def answer(message: cl.Message) -> None:
    if message.content == "show all":
        await cl.Message("All kinds", elements=_elements()).send()
        return
    for name in ("search", "read"):
        async with cl.Step(name=name, type="tool") as step:
            step.input = message.content
            step.output = f"{name} found {message.content}"
    if message.content == "hang":
        await _hang()
    reply = cl.Message("")
    for word in ("Answer ", "to ", message.content):
        await reply.stream_token(word)
    await reply.send()
    reply.content += ", and all of it"
    await reply.update()


async def _hang() -> None:
    """Shows "half-way" when everything before has been acknowledged, and goes on for ever."""
    layer = get_data_layer()
    assert layer is not None
    # A write returns when the journal has it, and with it all that came before.
    await layer.update_thread(cl.context.session.thread_id, metadata={"seen": "half-way"})
    await cl.Message("half-way").stream_token("half-way")
    await asyncio.Event().wait()


def _elements() -> list[cl.Element]:
    figure = go.Figure(go.Bar(x=["one", "two"], y=[1, 2]), layout={"title": {"text": "A figure"}})
    return [
        cl.Image(name="drawing.svg", content=_DRAWING, mime="image/svg+xml"),
        cl.Text(name="words", content="Words *within* an element"),
        cl.Pdf(name="page.pdf", content=_pdf("A page of the test")),
        cl.Audio(name="silence.wav", content=_silence(_AUDIO_SECONDS), mime="audio/wav"),
        cl.Video(name="clip.webm", path=str(_FILES / "clip.webm"), mime="video/webm"),
        cl.Plotly(name="figure", figure=figure),
        cl.Dataframe(name="table", data=pd.DataFrame({"city": ["Aarau", "Bern"], "rank": [41, 42]})),
        cl.CustomElement(name="Tally", props={"count": 7}),
        cl.File(name="page.html", content=b"<script>alert(1)</script>", mime="text/html"),
    ]


def _pdf(text: str) -> bytes:
    """A page with one line."""
    drawn = f"BT /F1 24 Tf 20 100 Td ({text}) Tj ET"
    objects = (
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    written, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(f"{len(written):010} 00000 n \n")
        written += f"{number} 0 obj{body}endobj\n"
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{''.join(places)}"
    return f"{written}{table}trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(written)}\n%%EOF".encode()


def _silence(seconds: int) -> bytes:
    """Long enough that a browser does not load it whole before it is asked for the end."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(2 * 8000 * seconds))
    return file.getvalue()
