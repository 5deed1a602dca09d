"""Layers with a journal, and servers that may be crashed: they sync to disk, so a crash loses nothing committed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import ChainlitContext

from forebay import ForebayDataLayer, Settings
from tests.support.postgres import PostgresServer

MakeLayer = Callable[..., ForebayDataLayer]


@pytest.fixture(scope="session")
def _crashable_server() -> Iterator[PostgresServer]:
    with PostgresServer(own=True, durable=True) as server:
        yield server


@pytest.fixture
def crashable_server(_crashable_server: PostgresServer) -> Iterator[PostgresServer]:
    """The same for tests that may share one; it runs again afterwards."""
    yield _crashable_server
    if not _crashable_server.is_running:
        _crashable_server.start()


@pytest.fixture
async def make_journaled(tmp_path: Path, chainlit_context: ChainlitContext) -> AsyncIterator[MakeLayer]:
    """Makes layers with a journal in the folder `journals`; what a failed test leaves open is closed."""
    made: list[ForebayDataLayer] = []

    def make(url: str, **values: Any) -> ForebayDataLayer:
        settings: dict[str, Any] = {
            "durability": "journal",
            "journal_dir": tmp_path / "journals",
            "close_timeout": 1,
        }
        made.append(ForebayDataLayer(url, settings=Settings(**{**settings, **values})))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """One in memory, where there is such a thing: to sync it takes no time."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="forebay-test-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)
