"""The chat of minimal.py within a FastAPI application, at /chat."""

from __future__ import annotations

from pathlib import Path

from chainlit.utils import mount_chainlit
from fastapi import FastAPI

from forebay import lifespan

# Mounted, Chainlit neither starts its data layer nor closes it. This does, so that nothing that is queued is lost.
app = FastAPI(lifespan=lifespan)


@app.get("/hello")
def hello() -> str:
    """A route of the application's own."""
    return "The chat is at /chat."


mount_chainlit(app=app, target=str(Path(__file__).with_name("minimal.py")), path="/chat")
