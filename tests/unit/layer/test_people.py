"""Who is known while the database is away."""

from __future__ import annotations

from typing import Any

import pytest
from chainlit.user import PersistedUser, User

from forebay.errors import TransientError
from forebay.layer import people
from forebay.layer.people import People


class _Database:
    """Users by login name; `away` raises."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.deleted: set[str] = set()
        self.away = False

    async def find(self, identifier: str) -> PersistedUser | None:
        self._reach()
        metadata = self.users.get(identifier)
        return None if metadata is None else _stored(identifier, metadata)

    async def save(self, user: User, moment: int | None) -> PersistedUser | None:
        self._reach()
        if moment is not None and user.identifier in self.deleted:
            return None
        self.users[user.identifier] = dict(user.metadata)
        return _stored(user.identifier, user.metadata)

    def _reach(self) -> None:
        if self.away:
            raise TransientError("away")


def _stored(identifier: str, metadata: dict[str, Any]) -> PersistedUser:
    return PersistedUser(id=f"id of {identifier}", identifier=identifier, createdAt="", metadata=metadata)


@pytest.fixture
def database() -> _Database:
    return _Database()


@pytest.fixture
def known(database: _Database) -> People:
    return People(database.find, database.save)


@pytest.mark.parametrize("how", ["login", "request"])
async def test_who_was_seen_goes_on_in_an_outage(database: _Database, known: People, how: str) -> None:
    database.users["ada"] = {"role": "reader"}
    if how == "login":
        await known.save(User(identifier="ada", metadata={"role": "reader"}))
    else:
        await known.find("ada")
    database.away = True
    found = await known.find("ada")
    assert found is not None
    assert (found.id, found.metadata) == ("id of ada", {"role": "reader"})


async def test_who_was_never_seen_is_the_databases_to_tell(database: _Database, known: People) -> None:
    database.away = True
    with pytest.raises(TransientError):
        await known.find("ada")
    with pytest.raises(TransientError):
        await known.save(User(identifier="ada"))


async def test_who_the_database_said_is_gone_is_gone(database: _Database, known: People) -> None:
    await known.save(User(identifier="ada"))
    del database.users["ada"]
    assert await known.find("ada") is None
    database.away = True
    with pytest.raises(TransientError):
        await known.find("ada")


async def test_what_a_login_says_in_an_outage_counts_at_once_and_is_stored_later(
    database: _Database, known: People
) -> None:
    await known.save(User(identifier="ada", metadata={"role": "reader"}))
    database.away = True
    await known.save(User(identifier="ada", metadata={"role": "writer"}))
    found = await known.find("ada")
    assert found is not None
    assert found.metadata == {"role": "writer"}
    database.away = False
    assert database.users["ada"] == {"role": "reader"}
    await known.find("ada")
    assert database.users["ada"] == {"role": "writer"}
    database.users["ada"] = {"role": "admin"}  # by another process: it is not written over again
    found = await known.find("ada")
    assert found is not None
    assert found.metadata == {"role": "admin"}


async def test_what_a_caller_does_to_the_user_is_not_remembered(database: _Database, known: People) -> None:
    user = await known.save(User(identifier="ada", metadata={}))
    assert user is not None
    user.metadata["role"], user.display_name = "admin", "Ada"
    database.away = True
    for _ in range(2):
        found = await known.find("ada")
        assert found is not None
        assert (found.metadata, found.display_name) == ({}, None)
        found.metadata["role"] = "admin"


async def test_as_many_are_remembered_as_fit(
    database: _Database, known: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "_MOST", 2)
    for name in ("ada", "bob", "cid"):
        await known.save(User(identifier=name))
    database.away = True
    with pytest.raises(TransientError):
        await known.find("ada")
    assert (await known.find("bob")) is not None


@pytest.mark.parametrize("is_told", [False, True])
async def test_who_is_deleted_is_not_made_again_by_a_login_of_before(
    database: _Database, known: People, is_told: bool
) -> None:
    await known.save(User(identifier="ada"))
    database.away = True
    await known.save(User(identifier="ada", metadata={"role": "writer"}))
    database.away = False
    del database.users["ada"]
    database.deleted.add("ada")
    if is_told:  # the process that deletes them
        known.forget("ada")
    assert await known.find("ada") is None
    assert await known.save(User(identifier="ada")) is not None
    assert await known.find("ada") is not None
