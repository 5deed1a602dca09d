"""Closing the data layer where Chainlit does not: mounted in another application, its own lifespan never runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chainlit.data import get_data_layer

from forebay.layer.data_layer import ForebayDataLayer


@asynccontextmanager
async def lifespan(_app: Any = None) -> AsyncIterator[None]:
    """A lifespan for the application that `mount_chainlit` mounts Chainlit in: `FastAPI(lifespan=lifespan)`.

    It starts the data layer that `@cl.data_layer` makes, so that its probes answer, and at its end it closes it,
    which writes out what is queued.
    """
    layer = get_data_layer()
    if isinstance(layer, ForebayDataLayer):
        await layer.start()
    try:
        yield
    finally:
        layer = get_data_layer()
        if layer is not None:
            await layer.close()
