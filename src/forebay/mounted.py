"""Closing the data layer where Chainlit does not: mounted in another application, its own lifespan never runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chainlit.data import get_data_layer


@asynccontextmanager
async def lifespan(_app: Any = None) -> AsyncIterator[None]:
    """A lifespan for the application that `mount_chainlit` mounts Chainlit in: `FastAPI(lifespan=lifespan)`.

    At its end it closes the data layer that `@cl.data_layer` made, which writes out what is queued.
    """
    try:
        yield
    finally:
        layer = get_data_layer()
        if layer is not None:
            await layer.close()
