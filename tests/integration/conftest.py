"""Layers on migrated databases of either kind, closed at the end with every change accounted for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from chainlit.context import ChainlitContext

from forebay import ForebayDataLayer, schema
from tests.integration.chat import Chat
from tests.integration.contract import MemoryStorage, accounted_for

MakeLayer = Callable[..., ForebayDataLayer]


@pytest.fixture
def storage() -> MemoryStorage:
    """A storage client in memory."""
    return MemoryStorage()


@pytest.fixture
async def make_layer(storage: MemoryStorage, chainlit_context: ChainlitContext) -> AsyncIterator[MakeLayer]:
    """Makes layers, with the storage client unless told otherwise, and closes them."""
    made: list[ForebayDataLayer] = []

    def make(url: str, **arguments: Any) -> ForebayDataLayer:
        made.append(ForebayDataLayer(url, **{"storage_provider": storage, **arguments}))
        return made[-1]

    yield make
    for layer in made:
        assert accounted_for(layer)
        await layer.close()


@pytest.fixture
def layer(make_layer: MakeLayer, migrated_url: str) -> ForebayDataLayer:
    """A layer on a migrated database of either kind."""
    return make_layer(migrated_url)


@pytest.fixture
def chat(layer: ForebayDataLayer) -> Chat:
    """The same layer, with shorthands."""
    return Chat(layer)
