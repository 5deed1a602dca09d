"""Chats of other data layers come along: DynamoDB's table, what was saved of Literal AI, and whatever a layer gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from chainlit.data.base import BaseDataLayer
from chainlit.data.dynamodb import DynamoDBDataLayer
from chainlit.element import Text
from chainlit.types import Feedback
from chainlit.user import PersistedUser, User
from click.testing import CliRunner
from literalai.observability.step import Attachment, Score, Step
from literalai.observability.thread import Thread
from moto.server import ThreadedMotoServer

from forebay import ForebayDataLayer
from forebay.cli import main
from forebay.transfer import copy_chats
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, at, new_id, rows, stored_thread
from tests.support.sessions import in_session
from tests.support.storage import MemoryStorage

_TABLE = "chats"


async def _import(*words: str) -> Any:
    done = await asyncio.to_thread(CliRunner().invoke, main, ["import", *words, "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def _report(done: Any) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# ---- DynamoDB


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The table that Chainlit documents, in `moto_server`'s DynamoDB on a free port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("dynamodb", region_name="eu-central-1")
    names = ("PK", "SK", "UserThreadPK", "UserThreadSK")
    keys = [(("PK", "HASH"), ("SK", "RANGE")), (("UserThreadPK", "HASH"), ("UserThreadSK", "RANGE"))]
    schemas = [[{"AttributeName": name, "KeyType": kind} for name, kind in key] for key in keys]
    index = {"IndexName": "UserThread", "KeySchema": schemas[1], "Projection": {"ProjectionType": "ALL"}}
    client.create_table(
        TableName=_TABLE,
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in names],
        KeySchema=schemas[0],
        GlobalSecondaryIndexes=[index],
        BillingMode="PAY_PER_REQUEST",
    )
    yield client
    client.close()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    server.stop()


async def _dynamo_chat(
    layer: BaseDataLayer, user: PersistedUser, name: str, *, steps: int = 3
) -> tuple[str, list[str]]:
    thread_id, ids = new_id(), [new_id() for _ in range(steps)]
    with in_session(spoken=True, thread_id=thread_id, user=user):
        await layer.update_thread(thread_id, name=name, user_id=user.id, metadata={"n": 1.5}, tags=["a"])
        for number, step_id in enumerate(ids):
            parent = ids[0] if number else None
            values = {"parentId": parent, "createdAt": at(1), "output": f"{name} {number}", "indent": 2}
            await layer.create_step(a_step(thread_id, id=step_id, showInput=False, input="in", **values))
        text = Text(thread_id=thread_id, for_id=ids[1], name="n", content="content")
        await layer.create_element(text)
    await layer.upsert_feedback(Feedback(forId=ids[1], value=1, threadId=thread_id, comment="good"))
    return thread_id, ids


async def test_dynamodb(
    table: Any, emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_chats, "AT_ONCE", 2)
    storage = MemoryStorage()
    old = DynamoDBDataLayer(_TABLE, client=table, storage_provider=storage)
    ada = await old.create_user(User(identifier="ada@example.org", metadata={"role": "admin"}))
    assert ada is not None
    chats = [await _dynamo_chat(old, ada, f"chat {number}") for number in range(3)]
    orphan = new_id()
    await old.create_step(a_step(orphan))  # made before its thread, which never came
    words = (_TABLE, "--from", "dynamodb", "--database-url", emptied_url)

    looked = _report(await _import(*words, "--dry-run"))
    assert looked["rows"] == {"user": 1, "thread": 3, "step": 9, "element": 3, "feedback": 3}
    assert looked["left_out"] == {"items of threads that are not there": 1}
    assert looked["about"]["megabyte"] == 1
    assert looked["about"]["second"] >= 1
    done = _report(await _import(*words, "--app-timezone", "America/New_York"))
    assert done["rows"] == {"user": 1, "thread": 3, "step": 9, "feedback": 3, "element": 3}
    assert (done["threads"], done["refused"]) == (3, {})

    layer = make_layer(emptied_url, storage_provider=storage)
    user = await layer.get_user("ada@example.org")
    assert user is not None
    assert user.metadata == {"role": "admin"}
    (thread_id, ids), other = chats[0], chats[1]
    thread, before = await stored_thread(layer, thread_id), await old.get_thread(thread_id)
    assert before is not None
    assert (thread["name"], thread["userId"], thread["tags"]) == ("chat 0", user.id, ["a"])
    assert thread["metadata"] == {"n": 1.5}
    assert thread["steps"][0]["id"] == ids[0]
    assert {step["id"] for step in thread["steps"]} == set(ids)
    (rated,) = (step for step in thread["steps"] if step["id"] == ids[1])
    feedback: Any = rated["feedback"]
    assert feedback["value"] == 1
    assert feedback["comment"] == "good"
    assert (rated["createdAt"], rated["output"], rated["input"], rated["showInput"]) == (
        at(1),
        "chat 0 1",
        "",
        "false",
    )
    assert dict(rated)["indent"] == 2
    (element,) = thread["elements"] or [{}]
    assert element["objectKey"] in storage.files
    assert (element["forId"], element["name"]) == (ids[1], "n")
    (stored,) = await rows(layer, 'SELECT "createdAt" FROM threads WHERE id = :id', id=thread_id)
    assert stored["createdAt"] > before["createdAt"]  # New York's clock, which said Z

    # what changes there comes with the next pass, what is deleted with the last
    again = _report(await _import(*words))
    assert (again["threads"], again["rows"]) == (0, {"user": 1})
    with in_session(spoken=True, thread_id=thread_id, user=ada):
        await old.update_step(a_step(thread_id, id=ids[0], output="changed", createdAt=at(1)))
        await old.update_thread(thread_id, name="renamed there")
        await old.delete_step(ids[2])
    await old.delete_feedback(f"THREAD#{thread_id}::STEP#{ids[1]}")
    await layer.update_thread(thread_id, name="renamed here")
    await layer.update_step(a_step(other[0], id=other[1][0], output="changed here"))
    await layer.flush()
    with in_session(spoken=True, thread_id=other[0], user=ada):
        await old.update_step(a_step(other[0], id=other[1][0], output="changed there"))
    await old.delete_thread(chats[2][0])
    refused = await _import(*words, "--final")
    assert refused.exit_code == 1
    assert "1 of 3 chats" in refused.output
    last = _report(await _import(*words, "--final", "--yes"))
    assert last["removed"] == {"thread": 1}
    thread = await stored_thread(layer, thread_id)
    assert {step["id"] for step in thread["steps"]} == set(ids[:2])
    assert thread["steps"][0]["output"] == "changed"
    assert (await stored_thread(layer, thread_id))["name"] == "renamed here"
    assert [step["feedback"] for step in thread["steps"]] == [None, None]
    steps = {step["id"]: step for step in (await stored_thread(layer, other[0]))["steps"]}
    assert steps[other[1][0]]["output"] == "changed here"
    assert await layer.get_thread(chats[2][0]) is None
    await old.close()


async def test_a_table_that_is_not_there(table: Any, migrated_sqlite_url: str) -> None:
    done = await _import("another", "--from", "dynamodb", "--database-url", migrated_sqlite_url)
    assert done.exit_code == 1
    assert "ResourceNotFoundException" in done.output


# ---- Literal AI


def _literal_thread(**values: Any) -> Thread:
    thread = Thread(id=new_id(), name="a chat", metadata={"k": 1}, tags=["t"], participant_id=new_id())
    thread.participant_identifier = "ada"
    thread.created_at = None
    asked, answered = Step(name="ada", type="user_message"), Step(name="bot", type="assistant_message")
    for number, step in enumerate((asked, answered)):
        step.thread_id, step.start_time, step.end_time = thread.id, at(number), at(number + 1)
    asked.output = {"content": "Hello"}
    answered.parent_id, answered.output = asked.id, {"a": [1]}
    answered.metadata = {"showInput": "json", "language": "python"}
    answered.error = "it failed"
    scores: list[dict[str, Any]] = [
        {"name": "user-feedback", "type": "HUMAN", "value": 1, "comment": "good"},
        {"name": "a model", "type": "AI", "value": 0.5},
    ]
    answered.scores = [Score.from_dict({"stepId": answered.id, **score}) for score in scores]  # type: ignore[typeddict-item]
    answered.attachments = [
        Attachment(name="n", mime="text/plain", url="https://dead", metadata={"type": "text"})
    ]
    thread.steps = [asked, answered]
    return thread


@pytest.mark.parametrize("form", ["array", "lines", "one", "page"])
async def test_what_was_saved_of_literal(
    form: str, emptied_url: str, make_layer: MakeLayer, tmp_path: Path
) -> None:
    first, second = _literal_thread().to_dict(), _literal_thread().to_dict()
    second["participant"] = first["participant"]
    raw = {**first, "createdAt": at(7)}  # the API's: times everywhere
    raw["steps"] = [{**step, "createdAt": at(50 + n)} for n, step in enumerate(first["steps"] or ())]
    given: Any = {
        "array": [first, second],
        "one": raw,
        "page": {"data": [first, second, {"id": "no thread", "steps": 7}], "pageInfo": {}},
    }
    path = tmp_path / "saved.json"
    path.write_text(
        "\n".join(map(json.dumps, (first, second))) if form == "lines" else json.dumps(given[form])
    )
    words = (str(path), "--from", "literal", "--database-url", emptied_url)
    number = 1 if form == "one" else 2
    done = _report(await _import(*words))
    assert done["rows"] == {
        "user": 1,
        "thread": number,
        "step": 2 * number,
        "feedback": number,
        "element": number,
    }
    expected = {"scores that are no person's feedback": number}
    assert done["left_out"] == (expected | {"objects that are no threads": 1} if form == "page" else expected)
    layer = make_layer(emptied_url)
    thread = await stored_thread(layer, first["id"] or "")
    asked, answered = thread["steps"]
    assert (thread["name"], thread["userIdentifier"], thread["metadata"]) == ("a chat", "ada", {"k": 1})
    assert asked["createdAt"] == (at(50) if form == "one" else at(0))
    assert (asked["output"], asked["isError"]) == ("Hello", False)
    assert (answered["output"], answered["isError"]) == ('{"a":[1]}', True)
    assert answered["metadata"]["error"] == "it failed"
    assert (answered["language"], answered["showInput"]) == ("python", "json")
    feedback: Any = answered["feedback"]
    assert feedback["comment"] == "good"
    (element,) = thread["elements"] or [{}]
    assert (element["forId"], element["type"], element["name"]) == (answered["id"], "text", "n")
    assert _report(await _import(*words))["threads"] == 0


async def test_what_is_no_json(migrated_sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("[{")
    done = await _import(str(tmp_path / "saved"), "--from", "literal", "--database-url", migrated_sqlite_url)
    assert done.exit_code == 1
    assert "neither JSON nor lines" in done.output


# ---- any layer


_SOURCE: list[BaseDataLayer] = []


def the_layer() -> BaseDataLayer:
    """What the command is told to read."""
    return _SOURCE[-1]


async def test_any_layer(
    emptied_url: str, make_layer: MakeLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.transfer.other_layer._AT_ONCE", 2)
    old_url, people = f"sqlite:///{tmp_path / 'old.db'}", tmp_path / "people"
    old = make_layer(old_url, storage_provider=MemoryStorage())
    ada, bob = await a_user(old, "ada", role="admin"), await a_user(old, "bob")
    hers = [await a_thread(old, user_id=ada.id, name=f"{number}", metadata={"k": 1}) for number in range(5)]
    his = await a_thread(old, user_id=bob.id)
    step = a_step(hers[0], output="hello", createdAt=at(3), metadata={"favorite": True}, another_key=7)
    await old.create_step(step)
    await old.create_element(Text(thread_id=hers[0], for_id=step["id"], name="n", content="content"))
    await old.upsert_feedback(Feedback(forId=step["id"], value=0, threadId=hers[0]))
    await old.flush()
    people.write_text("ada\n\nnobody\n")
    _SOURCE.append(ForebayDataLayer(old_url, storage_provider=MemoryStorage(), settings=old.settings))
    words = (f"{__name__}:the_layer", "--from", "layer", "--database-url", emptied_url)
    done = _report(await _import(*words, "--users", str(people)))
    assert done["rows"] == {"user": 1, "thread": 5, "step": 1, "feedback": 1, "element": 1}
    assert done["left_out"] == {"people who are not there": 1}
    layer = make_layer(emptied_url)
    thread, before = await stored_thread(layer, hers[0]), await stored_thread(old, hers[0])
    assert thread["steps"] == before["steps"]
    assert (thread["name"], thread["metadata"], thread["userIdentifier"]) == ("0", {"k": 1}, "ada")
    assert [one["objectKey"] for one in thread["elements"] or ()] == [
        one["objectKey"] for one in before["elements"] or ()
    ]
    assert await layer.get_thread(his) is None
    wrong = await _import(*words)
    assert wrong.exit_code == 2
    assert "--users" in wrong.output


async def test_what_a_deleted_person_has_there_does_not_come_back(
    emptied_url: str, make_layer: MakeLayer, tmp_path: Path
) -> None:
    name = new_id()
    thread = {**_literal_thread().to_dict(), "participant": {"id": new_id(), "identifier": name}}
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(thread))
    words = (str(path), "--from", "literal", "--database-url", emptied_url)
    _report(await _import(*words))
    layer = make_layer(emptied_url)
    await layer.delete_user(name)
    path.write_text(json.dumps({**thread, "id": new_id(), "steps": []}))
    done = _report(await _import(*words))
    assert done["deleted"] == {"user": 1, "thread": 1}
    assert await rows(layer, "SELECT id FROM threads") == []
