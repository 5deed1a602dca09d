"""Layers on migrated databases of either kind, closed at the end with every change accounted for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import ChainlitContext

from forebay import ForebayDataLayer
from forebay.model import schema
from forebay.pipeline import pipeline
from tests.integration.chat import Chat
from tests.integration.contract import accounted_for
from tests.support.postgres import PostgresServer, name_of
from tests.support.storage import MemoryStorage

MakeLayer = Callable[..., ForebayDataLayer]


@pytest.fixture
def storage() -> MemoryStorage:
    """A storage client in memory."""
    return MemoryStorage()


@pytest.fixture
async def make_layer_of(
    storage: MemoryStorage, chainlit_context: ChainlitContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[MakeLayer]:
    """Makes layers of the class given first, with the storage client unless told otherwise, and closes them."""
    monkeypatch.setattr(pipeline, "_QUIET_SPELL", 0.001)  # no handler goes on here while a layer closes
    monkeypatch.setenv("FOREBAY_JOURNAL_DIR", str(tmp_path / "journals"))
    monkeypatch.setenv("FOREBAY_FETCH_PRIVATE", "true")  # the tests' web servers are on this machine
    made: list[ForebayDataLayer] = []

    def make(kind: type[ForebayDataLayer], url: str, **arguments: Any) -> ForebayDataLayer:
        made.append(kind(url, **{"storage_provider": storage, **arguments}))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()
        assert accounted_for(layer), repr(layer)


@pytest.fixture
def make_layer(make_layer_of: MakeLayer) -> MakeLayer:
    """Makes layers, as `make_layer_of` does."""
    return partial(make_layer_of, ForebayDataLayer)


@pytest.fixture(scope="session")
def _shared_postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    url = postgres_server.create_database(template=_postgres_template)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def emptied_postgres_url(postgres_server: PostgresServer, _shared_postgres_url: str) -> str:
    """A PostgreSQL database whose tables are empty; sooner there than a new one."""
    # One statement; TRUNCATE makes new files for each table and index, which takes longer.
    parts = ", ".join(f"t_{table} AS (DELETE FROM {table})" for table in (*schema.TABLES, "forebay_garbage"))
    postgres_server.execute(f"WITH {parts} SELECT 1", name_of(_shared_postgres_url))
    return _shared_postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def emptied_url(request: pytest.FixtureRequest) -> str:
    """A database of either kind whose tables are empty."""
    kind = "migrated_sqlite_url" if request.param == "sqlite" else "emptied_postgres_url"
    url: str = request.getfixturevalue(kind)
    return url


@pytest.fixture
def layer(make_layer: MakeLayer, emptied_url: str) -> ForebayDataLayer:
    """A layer on a database of either kind, with a storage client."""
    return make_layer(emptied_url)


@pytest.fixture
def chat(layer: ForebayDataLayer) -> Chat:
    """The same layer, with shorthands."""
    return Chat(layer)
