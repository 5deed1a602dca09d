"""A database that went back may have lost people: what comes for them has its owner all the same."""

from __future__ import annotations

from typing import Any

import pytest
from chainlit.types import Pagination, ThreadFilter

from forebay import ForebayDataLayer
from forebay.model import changes
from forebay.model.changes import Claimant, fold
from forebay.model.schema import OWNER
from tests.integration.contract import a_step, a_user, how_many, new_id, stored_thread
from tests.support.sessions import in_session


async def _threads_of(layer: ForebayDataLayer, user_id: str) -> list[str]:
    page = await layer.list_threads(Pagination(first=9), ThreadFilter(userId=user_id))
    return [thread["id"] for thread in page.data]


async def _lose(layer: ForebayDataLayer, user_id: str) -> None:
    await layer.flush()
    await layer.execute_sql("DELETE FROM users WHERE id = :id", {"id": user_id})


async def _say(layer: ForebayDataLayer, user: Any) -> str:
    with in_session(spoken=True, user=user) as session:
        await layer.create_step(a_step(session.thread_id, output="hello"))
        await layer.update_thread(session.thread_id, name="hello", user_id=user.id)
    return session.thread_id


async def test_a_thread_whose_owner_is_gone_makes_them_again(layer: ForebayDataLayer) -> None:
    ada = await a_user(layer, "ada", role="reader")
    await _lose(layer, ada.id)
    thread_id = await _say(layer, ada)
    thread = await stored_thread(layer, thread_id)
    assert (thread["name"], thread["userId"], thread["userIdentifier"]) == ("hello", ada.id, "ada")
    found = await layer.get_user("ada")
    assert found is not None
    assert (found.id, found.metadata) == (ada.id, {"role": "reader"})
    assert await _threads_of(layer, ada.id) == [thread_id]
    assert not layer._engine.counts.dead_lettered


async def test_who_has_logged_in_again_meanwhile_gets_the_thread(layer: ForebayDataLayer) -> None:
    before = await a_user(layer, "ada")
    await _lose(layer, before.id)
    ada = await a_user(layer, "ada")
    assert ada.id != before.id
    threads = [await _say(layer, before), await _say(layer, before)]
    assert sorted(await _threads_of(layer, ada.id)) == sorted(threads)
    assert await how_many(layer, "users") == 1


async def test_a_late_thread_is_its_owners_too(layer: ForebayDataLayer) -> None:
    ada, bob = await a_user(layer, "ada"), await a_user(layer, "bob")
    await _lose(layer, ada.id)
    of_ada = changes.thread(new_id(), "a", ada.id, owner=Claimant("ada"))
    of_bob = changes.thread(new_id(), "b", bob.id, owner=Claimant("bob"))
    step: Any = a_step(of_ada.key)
    assert await layer._store.apply([of_ada, of_bob, changes.step(step)], late=True) == frozenset()
    assert await _threads_of(layer, ada.id) == [of_ada.key]
    assert await _threads_of(layer, bob.id) == [of_bob.key]


async def test_an_application_outside_of_a_chat_names_who_was_seen_here(layer: ForebayDataLayer) -> None:
    ada, thread_id = await a_user(layer, "ada"), new_id()
    await _lose(layer, ada.id)
    await layer.update_thread(thread_id, name="theirs", user_id=ada.id.upper() if "-" in ada.id else ada.id)
    if not layer._engine.counts.dead_lettered:
        assert await _threads_of(layer, ada.id) in ([thread_id], [])
    assert (await stored_thread(layer, thread_id))["name"] == "theirs"


@pytest.mark.parametrize("passes_on", [False, True])
def test_in_a_fold_who_the_owner_is_goes_with_the_id(passes_on: bool) -> None:
    key = new_id()
    older = changes.thread(key, user_id="u1", owner=Claimant("ada"))
    newer = changes.thread(key, user_id="u2", passes_on=passes_on)
    both = fold(older, newer)
    if passes_on:
        assert both.row["userId"] == "u2"
        assert OWNER not in both.row
    else:
        assert (both.row["userId"], Claimant.decode(both.row[OWNER])) == ("u1", Claimant("ada"))
