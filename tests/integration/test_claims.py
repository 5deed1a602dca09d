"""A chat that was begun while the database could not tell who is there belongs to whoever began it."""

from __future__ import annotations

from typing import Any

import pytest
from chainlit.types import Pagination, ThreadFilter
from chainlit.user import User

from forebay import ForebayDataLayer, Settings
from forebay.model import changes
from forebay.model.changes import Claimant, fold
from forebay.model.schema import CLAIM
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, how_many, new_id, stored_thread
from tests.support.sessions import in_session


async def _begin(layer: ForebayDataLayer, user: User | None, *, other: str | None = None) -> str:
    """A chat's first message, as Chainlit writes it when it knows no id of the user's; the thread's id."""
    with in_session(spoken=True, user=user) as session:
        await layer.update_thread(other or session.thread_id, name="hello", user_id=None)
        await layer.create_step(a_step(session.thread_id, output="hello"))
    return other or session.thread_id


async def _owner(layer: ForebayDataLayer, thread_id: str) -> tuple[Any, Any]:
    thread = await stored_thread(layer, thread_id)
    return thread["userId"], thread["userIdentifier"]


@pytest.fixture(params=["journal", "memory", "commit"])
def layer_of_any_durability(
    request: pytest.FixtureRequest, make_layer: MakeLayer, migrated_url: str
) -> ForebayDataLayer:
    return make_layer(migrated_url, settings=Settings(durability=request.param))


async def test_whoever_begins_a_chat_owns_it(layer_of_any_durability: ForebayDataLayer) -> None:
    layer = layer_of_any_durability
    thread_id = await _begin(layer, User(identifier="ada", metadata={"role": "reader"}))
    await layer.flush()
    user = await layer.get_user("ada")
    assert user is not None
    assert user.metadata == {"role": "reader"}
    assert await _owner(layer, thread_id) == (user.id, "ada")
    assert await layer.get_thread_author(thread_id) == "ada"
    page = await layer.list_threads(Pagination(first=5), ThreadFilter(userId=user.id))
    assert [thread["id"] for thread in page.data] == [thread_id]


async def test_the_users_row_stays_as_it_is(layer: ForebayDataLayer) -> None:
    user = await a_user(layer, "ada", role="writer")
    thread_id = await _begin(layer, User(identifier="ada", metadata={"role": "reader"}))
    assert await _owner(layer, thread_id) == (user.id, "ada")
    assert await how_many(layer, "users") == 1
    found = await layer.get_user("ada")
    assert found is not None
    assert found.metadata == {"role": "writer"}


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_thread_that_has_an_owner_keeps_it(layer: ForebayDataLayer, flushed: bool) -> None:
    ada = await a_user(layer, "ada")
    thread_id = await a_thread(layer, user_id=ada.id)
    if flushed:
        await layer.flush()
    with in_session(spoken=True, thread_id=thread_id, user=User(identifier="bob")):
        await layer.update_thread(thread_id, metadata={"seen": True})
    assert await _owner(layer, thread_id) == (ada.id, "ada")


async def test_who_claims_first_has_it(layer: ForebayDataLayer) -> None:
    thread_id = new_id()
    for name in ("ada", "bob"):
        with in_session(spoken=True, thread_id=thread_id, user=User(identifier=name)):
            await layer.update_thread(thread_id, name="hello")
    assert (await _owner(layer, thread_id))[1] == "ada"


async def test_the_application_may_pass_it_on(layer: ForebayDataLayer) -> None:
    bob = await a_user(layer, "bob")
    thread_id = await _begin(layer, User(identifier="ada"))
    await layer.update_thread(thread_id, user_id=bob.id)
    assert await _owner(layer, thread_id) == (bob.id, "bob")


async def test_nobody_claims_another_thread_or_is_made_up(layer: ForebayDataLayer) -> None:
    other = await a_thread(layer)
    await _begin(layer, User(identifier="ada"), other=other)
    nobodys = await _begin(layer, None)
    assert await _owner(layer, other) == (None, None)
    assert await _owner(layer, nobodys) == (None, None)
    assert await how_many(layer, "users") == 0


async def test_a_deleted_thread_is_not_claimed_back(layer: ForebayDataLayer) -> None:
    thread_id = await _begin(layer, User(identifier="ada"))
    await layer.delete_thread(thread_id)
    with in_session(spoken=True, thread_id=thread_id, user=User(identifier="ada")):
        await layer.update_thread(thread_id, metadata={"seen": True})
    await layer.flush()
    assert await layer.get_thread(thread_id) is None


def test_a_claim_is_kept_in_a_fold_and_in_the_journal() -> None:
    ada, bob = Claimant("ada", '{"a":1}'), Claimant("bob")
    thread_id = new_id()
    first = changes.thread(thread_id, "one", claimant=ada)
    both = fold(first, changes.thread(thread_id, "two", claimant=bob))
    (read,) = changes.decode(changes.encode([fold(both, changes.thread(thread_id, "three"))]))
    assert isinstance(read, changes.Upsert)
    assert read.row["name"] == "three"
    assert Claimant.decode(read.row[CLAIM]) == ada
