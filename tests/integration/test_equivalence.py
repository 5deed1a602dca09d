"""On the same calls, forebay's reads give what `SQLAlchemyDataLayer`'s give, except where they say otherwise here."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest
from chainlit.data.base import BaseDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer
from chainlit.element import CustomElement, Element, Image, Pdf, Text
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import User
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from forebay import ForebayDataLayer, Settings
from forebay.attachments.keys import object_key
from forebay.database.urls import parse_url
from tests.support.examples import examples
from tests.support.storage import MemoryStorage

Document = dict[str, Any]
Call = tuple[Any, ...]

# What the two layers are allowed to differ in, by what is read: the field, and why.
LEFT_OUT = {
    "user": {"createdAt": "each layer's own clock; SQLAlchemyDataLayer writes local time with a Z"},
    "thread": {"createdAt": "as a user's"},
    "step": {
        "command": "SQLAlchemyDataLayer writes it and never reads it back",
        "modes": "as command",
        "defaultOpen": "as command",
        "autoCollapse": "as command",
    },
    "element": {
        "url": "SQLAlchemyDataLayer's get_element gives the stored URL, forebay a fresh one",
        "autoPlay": "SQLAlchemyDataLayer's get_thread never reads it",
        "playerConfig": "as autoPlay",
    },
}
# Values that are taken as equal, by field.
TAKEN_AS = {
    "generation": lambda value: value or None,  # Chainlit's layer stores {} or JSON's null for none
    "metadata": lambda value: value or {},
    "props": lambda value: value or {},
    "input": lambda value: value or "",  # forebay never gives None, as a StepDict promises
    "streaming": bool,  # SQLite's truth is 1, and Chainlit's layer passes it on
    "isError": lambda value: value if value is None else bool(value),
    "waitForAnswer": lambda value: value if value is None else bool(value),
    # Storages refuse some of what it holds there: user, element and, if it has one, name.
    "objectKey": lambda value: value and object_key(*[*value.split("/", 2), ""][:3]),
}
# What the calls below keep clear of, since there the contract means to differ:
# - get_thread_author of an unknown thread: ValueError there, "" here. Compared as "".
# - get_element on PostgreSQL, and of an element without props: TypeError there.
# - a step in parts: a part without a NOT NULL column is lost there; one without metadata or generation resets it.
# - modes, playerConfig, an unknown key; tags on SQLite: the row is lost there.
# - a name within a thread's metadata: there it takes a later rename back.
# - an element that is sent again in another thread: there it leaves the one that it was in.
# - deleting a step that has children: they stay there.
# - writing into a thread or a step that was deleted or is unknown: a ghost or a lost row there.
# - two feedbacks on one step: the step is there twice.
# - a feedback without the comment that it had: it keeps it there.
# - feedback=0 as a filter: not looked at there. A search that meets a thread's name or a step's input.
# - the place in the list of a thread without steps (last there, by its createdAt here), or of one whose newest
#   step was deleted (it stays up here).


@dataclass
class Side:
    """One of the two layers, and the ids that it has given to users."""

    layer: BaseDataLayer
    users: dict[str, str] = field(default_factory=dict, repr=False)

    def neutral(self, document: Any) -> Any:
        """`document` with the users' names instead of their ids."""
        text = json.dumps(document)
        for name, key in self.users.items():
            text = text.replace(key, f"<{name}>")
        return json.loads(text)


@pytest.fixture
async def sides(
    request: pytest.FixtureRequest, chainlit_context: None, kind: str, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[tuple[Side, Side]]:
    storage = MemoryStorage()
    settings = Settings(linger=0, list_include_steps=True, auto_migrate=True)
    url = request.getfixturevalue(f"{kind}_url")
    ours = ForebayDataLayer(url, storage_provider=storage, settings=settings)
    their_url = parse_url(request.getfixturevalue(f"migrated_{kind}_url"))[0]
    theirs = SQLAlchemyDataLayer(their_url.render_as_string(hide_password=False), storage_provider=storage)
    yield Side(ours), Side(theirs)
    await ours.close()
    await theirs.close()
    # Chainlit's layer logs what it could not write and goes on; the calls below are such as it can write.
    logged = [record.getMessage() for record in caplog.get_records("call")]
    assert [message for message in logged if "error occurred" in message] == []


plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=10)
names = st.sampled_from(["ada", "bob"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | plain_text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(plain_text, inner, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(st.sampled_from(["a", "b", "ключ", "%(x)s"]), json_values, max_size=3)
tags = st.none() | st.lists(plain_text, max_size=2)
outputs = st.sampled_from(["", "a NEEDLE in it", "nothing"]) | plain_text
steps = st.fixed_dictionaries(
    {
        "name": plain_text,
        "type": st.sampled_from(["run", "tool", "user_message", "assistant_message"]),
        "streaming": st.booleans(),
        "metadata": objects,
        "output": outputs,
    },
    optional={
        "waitForAnswer": st.none() | st.booleans(),
        "isError": st.none() | st.booleans(),
        "tags": tags,
        "input": st.none() | plain_text,
        "start": st.none() | st.just("2024-05-05T05:05:05Z"),
        "end": st.none() | st.just("2024-05-05T05:05:06Z"),
        "showInput": st.sampled_from([True, False, "json"]),
        "language": st.none() | plain_text,
        "command": st.none() | plain_text,
        "autoCollapse": st.none() | st.booleans(),
        "defaultOpen": st.none() | st.booleans(),
    },
)
THREADS, STEPS, ELEMENTS = range(4), range(6), range(3)
a_thread, a_step, an_element = map(st.sampled_from, (THREADS, STEPS, ELEMENTS))
threads = st.tuples(
    st.just("thread"), a_thread, st.none() | plain_text, st.none() | names, st.none() | objects, tags
)
kinds_of_elements = st.integers(0, 3)
calls = st.one_of(
    threads,
    st.tuples(st.just("user"), names, objects),
    *[st.tuples(st.just("step"), a_step, a_thread, st.none() | a_step, steps)] * 2,
    st.tuples(st.just("feedback"), a_step, st.sampled_from([0, 1]), st.none() | plain_text),
    st.tuples(st.just("element"), an_element, a_step, kinds_of_elements, plain_text, objects),
    st.tuples(st.sampled_from(["delete_feedback", "delete_step"]), a_step),
    st.tuples(st.just("delete_element"), an_element),
    st.tuples(st.just("delete_thread"), st.sampled_from(THREADS[:2])),
)
# Three threads of one user, of two steps each: most of the calls that follow meet something.
beginnings = st.tuples(
    *(
        st.tuples(st.just("thread"), st.just(n), plain_text, st.just("ada"), objects, tags)
        for n in THREADS[1:]
    ),
    *(st.tuples(st.just("step"), st.just(n), st.just(1 + n // 2), st.none() | a_step, steps) for n in STEPS),
)


class Conversation:
    """Makes each call on both sides, and leaves out what the list above says. Knows just enough for that."""

    _numbers = itertools.count()

    def __init__(self, sides: tuple[Side, Side], *, sqlite: bool) -> None:
        self._sides = sides
        for side in sides:
            side.users.clear()
        self._sqlite = sqlite
        self._number = next(self._numbers)
        self._clock = itertools.count(10)
        self.users: set[str] = set()
        self.threads: set[int] = set()
        self.gone: set[int] = set()
        self.steps: dict[int, Document] = {}
        self.comments: dict[int, str | None] = {}
        self.elements: dict[int, Document] = {}

    def id(self, kind: str, number: int) -> str:
        return str(uuid5(NAMESPACE_URL, f"{self._number}/{kind}/{number}"))

    async def _both(self, method: str, *arguments: Any, **named: Any) -> None:
        for side in self._sides:
            await getattr(side.layer, method)(*copy.deepcopy(arguments), **copy.deepcopy(named))

    async def make(self, call: Call) -> None:
        kind, *arguments = call
        await getattr(self, kind)(*arguments)

    async def user(self, name: str, metadata: Document) -> None:
        self.users.add(name)
        identifier = f"{name}-{self._number}"
        for side in self._sides:
            stored = await side.layer.create_user(
                User(identifier=identifier, metadata=copy.deepcopy(metadata))
            )
            assert stored is not None
            side.users[identifier] = stored.id

    async def thread(
        self, number: int, name: str | None, owner: str | None, metadata: Document | None, tags: Any
    ) -> None:
        if number in self.gone:
            return
        if owner is not None and owner not in self.users:
            await self.user(owner, {})
        self.threads.add(number)
        for side in self._sides:
            await side.layer.update_thread(
                self.id("thread", number),
                name=name,
                user_id=side.users[f"{owner}-{self._number}"] if owner else None,
                metadata=copy.deepcopy(metadata),
                tags=None if self._sqlite else tags,
            )

    async def step(self, number: int, thread: int, parent: int | None, values: Document) -> None:
        step = self.steps.get(number)
        if step is None:
            if thread in self.gone:
                return
            beside = parent is not None and parent in self.steps and self.steps[parent]["thread"] == thread
            step = {"thread": thread, "parent": parent if beside else None, "createdAt": self._now()}
            self.steps[number] = step
        self.threads.add(step["thread"])
        document = {
            "id": self.id("step", number),
            "threadId": self.id("thread", step["thread"]),
            "parentId": None if step["parent"] is None else self.id("step", step["parent"]),
            "createdAt": step["createdAt"],
            **values,
            "generation": {"provider": "p", "variables": {"x": number}} if number % 2 else None,
        }
        if self._sqlite:
            document.pop("tags", None)
        first = "made" not in step
        step["made"] = True
        await self._both("create_step" if first else "update_step", document)

    def _now(self) -> str:
        return f"2024-01-01T00:00:{next(self._clock)}.000000Z"

    async def feedback(self, number: int, value: int, comment: str | None) -> None:
        if number not in self.steps:
            return
        comment = self.comments[number] = comment or self.comments.get(number)
        thread = self.id("thread", self.steps[number]["thread"])
        given = Feedback(
            forId=self.id("step", number),
            value=value,  # type: ignore[arg-type]
            threadId=thread,
            id=self.id("feedback", number),
            comment=comment,
        )
        await self._both("upsert_feedback", given)

    async def element(self, number: int, step: int, kind: int, name: str, props: Document) -> None:
        if step not in self.steps:
            return
        thread = self.steps[step]["thread"]
        if self.elements.get(number, {"thread": thread})["thread"] != thread:
            return
        common: Document = {
            "id": self.id("element", number),
            "thread_id": self.id("thread", thread),
            "for_id": self.id("step", step),
            "name": name,
            "content": "content",
            "mime": "text/plain",
        }
        makers: list[Callable[[], Element]] = [
            lambda: Text(**common, language="python"),
            lambda: CustomElement(**common, props=props),
            lambda: Pdf(**common, page=3),
            lambda: Image(**common, size="small"),
        ]
        made = makers[kind]()
        self.elements[number] = {
            "thread": thread,
            "step": step,
            "readable": self._sqlite and bool(props) and kind == 1,
        }
        await self._both("create_element", made)

    async def delete_feedback(self, number: int) -> None:
        await self._both("delete_feedback", self.id("feedback", number))

    async def delete_element(self, number: int) -> None:
        self.elements.pop(number, None)
        await self._both("delete_element", self.id("element", number))

    async def delete_step(self, number: int) -> None:
        step = self.steps.get(number)
        if step is None:
            return
        beside = [other for other in self.steps.values() if other["thread"] == step["thread"]]
        newest = max(other["createdAt"] for other in beside)
        if step["createdAt"] == newest or any(other["parent"] == number for other in beside):
            return
        del self.steps[number]
        self._forget_elements("step", number)
        await self._both("delete_step", self.id("step", number))

    async def delete_thread(self, number: int) -> None:
        self.gone.add(number)
        self.threads.discard(number)
        self.steps = {key: step for key, step in self.steps.items() if step["thread"] != number}
        self._forget_elements("thread", number)
        await self._both("delete_thread", self.id("thread", number))

    def _forget_elements(self, of: str, number: int) -> None:
        self.elements = {key: e for key, e in self.elements.items() if e[of] != number}

    # ---- reading

    async def seen_by(self, side: Side) -> Document:
        """Everything that can be read of the conversation."""
        layer = side.layer
        threads = {n: await layer.get_thread(self.id("thread", n)) for n in THREADS}
        steps = {n: await layer.get_step(self.id("step", n)) for n in STEPS}  # type: ignore[attr-defined]
        elements = {
            n: await layer.get_element(self.id("thread", e["thread"]), self.id("element", n))
            for n, e in self.elements.items()
            if e["readable"]
        }
        seen = {
            "users": {name: await self._user(side, name) for name in ("ada", "bob")},
            "threads": {n: thread and like_a_thread(thread) for n, thread in threads.items()},
            "authors": {n: await self._author(side, n) for n in THREADS},
            "steps": {n: step and like("step", step) for n, step in steps.items()},
            "elements": {n: element and like("element", element) for n, element in elements.items()},
            "lists": [
                await self._list(side, name, search, feedback)
                for name in sorted(self.users)
                for search in (None, "needle")
                for feedback in (None, 1)
            ],
        }
        neutral: Document = side.neutral(seen)
        return neutral

    async def _user(self, side: Side, name: str) -> Document | None:
        user = await side.layer.get_user(f"{name}-{self._number}")
        return (
            None
            if user is None
            else {"id": user.id, "identifier": user.identifier, "metadata": user.metadata}
        )

    async def _author(self, side: Side, thread: int) -> str:
        try:
            return await side.layer.get_thread_author(self.id("thread", thread))
        except ValueError:
            return ""

    async def _list(self, side: Side, name: str, search: str | None, feedback: Any) -> Document:
        """All pages: how many threads stand on each, what they are, and the order of those that have steps."""
        filters = ThreadFilter(userId=side.users[f"{name}-{self._number}"], search=search, feedback=feedback)
        pages: list[int] = []
        found: list[Any] = []
        cursor = None
        while True:
            page = await side.layer.list_threads(Pagination(first=2, cursor=cursor), filters)
            pages.append(len(page.data))
            found += [like_a_thread(thread) for thread in page.data]
            cursor = page.pageInfo.endCursor
            if not page.pageInfo.hasNextPage:
                break
        with_steps = [thread["id"] for thread in found if thread["steps"]]
        return {"pages": pages, "order": with_steps, "threads": {thread["id"]: thread for thread in found}}


def like(kind: str, document: Any) -> Document:
    """A document without the differences that are listed above."""
    kept = {name: unpacked(value) for name, value in document.items() if name not in LEFT_OUT[kind]}
    return {name: TAKEN_AS[name](value) if name in TAKEN_AS else value for name, value in kept.items()}


def like_a_thread(document: Any) -> Document:
    thread = like("thread", document)
    thread["steps"] = [like("step", step) for step in document["steps"]]
    # Chainlit's layer gives elements in no order.
    thread["elements"] = sorted(
        (like("element", e) for e in document["elements"]), key=lambda e: str(e["id"])
    )
    return thread


def unpacked(value: Any) -> Any:
    """Objects are objects: Chainlit's layer gives some of them as JSON text."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return None if value == "null" else value


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
@settings(max_examples=examples(20), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(beginning=beginnings, further=st.lists(calls, min_size=10, max_size=30))
async def test_reads_are_those_of_chainlits_layer(
    beginning: tuple[Call, ...], further: list[Call], sides: tuple[Side, Side], kind: str
) -> None:
    conversation = Conversation(sides, sqlite=kind == "sqlite")
    for call in (*beginning, *further):
        await conversation.make(call)
    ours, theirs = sides
    seen, expected = flat(await conversation.seen_by(ours)), flat(await conversation.seen_by(theirs))
    nothing = "(nothing)"
    differing = {
        path: (seen.get(path, nothing), expected.get(path, nothing))
        for path in seen.keys() | expected.keys()
        if seen.get(path, nothing) != expected.get(path, nothing)
    }
    assert differing == {}


def flat(document: Any, path: str = "") -> Document:
    """Each value by its path, so that a failure names what differs and nothing else."""
    parts = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    found = {inner: leaf for key, value in parts for inner, leaf in flat(value, f"{path}/{key}").items()}
    return found or {path: document}
