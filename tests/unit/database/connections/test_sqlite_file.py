"""A SQLite file that forebay makes is its owner's alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.database.store import Store
from forebay.settings import Settings


@pytest.fixture(autouse=True)
def _generous() -> Iterator[None]:
    """A umask under which whatever is made without a mode is everybody's."""
    before = os.umask(0)
    yield
    os.umask(before)


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_a_new_file_is_its_owners_and_so_is_what_lies_beside_it(tmp_path: Path) -> None:
    """People's chats are in the `-wal` before they are in the file."""
    store = Store(f"sqlite:///{tmp_path / 'chat.db'}", Settings(auto_migrate=True))
    try:
        await store.prepare()
        await store.execute_sql("CREATE TABLE anything (id TEXT)", {})
        assert _modes(tmp_path) == dict.fromkeys(["chat.db", "chat.db-wal", "chat.db-shm"], 0o600)
    finally:
        await store.close()
    assert set(_modes(tmp_path).values()) == {0o600}


async def test_migrate_makes_it_so_too(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'chat.db'}", Settings())
    try:
        await store.migrate()
    finally:
        await store.close()
    assert set(_modes(tmp_path).values()) == {0o600}


async def test_the_mode_of_a_file_that_is_there_stays(tmp_path: Path) -> None:
    """Somebody has chosen it: a group that looks into the chats, for one."""
    (tmp_path / "chat.db").touch(0o660)
    store = Store(f"sqlite:///{tmp_path / 'chat.db'}", Settings(auto_migrate=True))
    try:
        await store.prepare()
    finally:
        await store.close()
    assert set(_modes(tmp_path).values()) == {0o660}
