"""The contract's promises about elements and their content, on both databases."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from chainlit.element import Audio, CustomElement, Element, ElementDict, Pdf, Text, Video
from typing_extensions import override

from forebay import ForebayDataLayer, Settings, TransientError
from forebay.attachments import blobs, collector
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    UNREACHABLE,
    a_step,
    a_thread,
    a_user,
    new_id,
    rows,
    stored_elements,
)
from tests.support.patience import FOR_EVER, patience
from tests.support.storage import MemoryStorage


def a_text(thread_id: str, **values: Any) -> Text:
    return Text(**{"thread_id": thread_id, "name": "note", "content": "hello", "for_id": new_id(), **values})


async def test_every_field_of_an_element_is_kept_and_read_back(layer: ForebayDataLayer) -> None:
    thread_id = await a_thread(layer)
    pdf = Pdf(
        thread_id=thread_id, name="a.pdf", content=b"%PDF", for_id=new_id(), page=3, mime="application/pdf"
    )
    pdf.chainlit_key, pdf.display, pdf.size, pdf.language = "key", "side", "large", "en"
    audio = Audio(thread_id=thread_id, name="a.mp3", content=b"x", for_id=new_id(), auto_play=True)
    video = Video(thread_id=thread_id, name="v", content=b"x", for_id=new_id(), player_config={"a": [1]})
    custom = CustomElement(
        thread_id=thread_id, name="Card", for_id=new_id(), props={"list": [1, None, "ключ"]}
    )
    custom.content = "{}"
    elements: list[Element] = [pdf, audio, video, custom]
    covered = {key for element in elements for key, value in element.to_dict().items() if value is not None}
    assert covered >= ElementDict.__annotations__.keys() - {"url", "objectKey", "path"}
    for element in elements:
        await layer.create_element(element)
    stored = {element["id"]: element for element in await stored_elements(layer, thread_id)}
    for element in elements:
        left_out = ("url", "objectKey")  # as the storage client says
        expected = {key: value for key, value in element.to_dict().items() if key not in left_out}
        found: dict[str, Any] = {key: stored[element.id].get(key) for key in expected}
        assert found == {**expected, "props": expected["props"] or {}}


async def test_get_element_gives_what_get_thread_gives(layer: ForebayDataLayer) -> None:
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    (in_thread,) = await stored_elements(layer, element.thread_id)
    alone = await layer.get_element(element.thread_id, element.id)
    assert alone == {**in_thread, "url": alone and alone["url"]}


@pytest.mark.parametrize("thread_is", ["another", "not a uuid"])
async def test_an_element_is_found_in_its_own_thread_only(layer: ForebayDataLayer, thread_is: str) -> None:
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    elsewhere = new_id() if thread_is == "another" else thread_is
    assert await layer.get_element(elsewhere, element.id) is None
    assert await layer.get_element(element.thread_id, new_id()) is None


async def test_an_element_of_no_message_is_left_out(layer: ForebayDataLayer, storage: MemoryStorage) -> None:
    thread_id = await a_thread(layer)
    await layer.create_element(a_text(thread_id, for_id=None))
    assert await stored_elements(layer, thread_id) == []
    assert storage.files == {}


# ---- order


async def _order(layer: ForebayDataLayer, thread_id: str) -> list[str]:
    return [element["name"] for element in await stored_elements(layer, thread_id)]


async def test_a_messages_elements_come_back_in_the_order_in_which_they_were_sent(
    layer: ForebayDataLayer,
) -> None:
    thread_id = await a_thread(layer)
    elements = [a_text(thread_id, name=str(number)) for number in range(20)]
    await asyncio.gather(*(layer.create_element(element) for element in elements))
    names = [element.name for element in elements]
    assert await _order(layer, thread_id) == names
    elements[3].display = "side"
    await layer.create_element(elements[3])  # as an element that is changed is sent again
    assert await _order(layer, thread_id) == names
    (thread,) = await layer.get_all_user_threads(thread_id=thread_id) or []
    assert [element["name"] for element in thread["elements"] or ()] == names


async def test_elements_that_noted_no_moment_keep_their_places(layer: ForebayDataLayer) -> None:
    thread_id = await a_thread(layer)
    elements = sorted((a_text(thread_id) for _ in range(6)), key=lambda element: element.id)
    for element in reversed(elements):
        await layer.create_element(element)
    await layer.flush()
    # The first as Chainlit's own layer leaves it, the next as a release before leaves them.
    await layer.execute_sql('UPDATE elements SET "forebaySentAt" = NULL', {})
    await layer.execute_sql(
        'UPDATE elements SET "forebayWrittenAt" = NULL WHERE id = :id', {"id": elements[-1].id}
    )
    before = [element["id"] for element in await stored_elements(layer, thread_id)]
    assert before == [element.id for element in reversed(elements)]
    for element in elements:
        await layer.create_element(element)
    assert [element["id"] for element in await stored_elements(layer, thread_id)] == before


# ---- content


@pytest.fixture
async def served() -> AsyncIterator[str]:
    """A web server with one page; its address."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=b"from the web")

    app = web.Application()
    app.router.add_get("/there", page)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    yield f"http://{host}:{port}"
    await runner.cleanup()


@pytest.mark.parametrize("source", ["content", "path", "url"])
async def test_content_comes_from_where_it_is(
    layer: ForebayDataLayer, storage: MemoryStorage, served: str, tmp_path: Path, source: str
) -> None:
    file = tmp_path / "note.txt"
    file.write_bytes(b"from the file")
    values: dict[str, Any] = {"content": "from memory", "path": str(file), "url": f"{served}/there"}
    element = Text(thread_id=await a_thread(layer), name="n", for_id=new_id(), **{source: values[source]})
    element.mime = "text/plain"
    await layer.create_element(element)
    contents = {"content": b"from memory", "path": b"from the file", "url": b"from the web"}
    key = f"unknown/{element.id}/n"
    assert (storage.files, storage.mimes) == ({key: contents[source]}, {key: "text/plain"})
    (stored,) = await stored_elements(layer, element.thread_id)
    assert stored["objectKey"] == key


@pytest.mark.parametrize(("owned", "name"), [(True, "note"), (False, "note"), (True, "")])
async def test_the_object_key_is_of_owner_element_and_name(
    layer: ForebayDataLayer, storage: MemoryStorage, owned: bool, name: str
) -> None:
    user = await a_user(layer)
    element = a_text(await a_thread(layer, user_id=user.id if owned else None), name=name)
    await layer.create_element(element)
    owner = user.id if owned else "unknown"
    assert list(storage.files) == [f"{owner}/{element.id}" + (f"/{name}" if name else "")]
    assert list(storage.mimes.values()) == ["application/octet-stream" if not element.mime else element.mime]


async def test_each_read_gives_a_fresh_url(layer: ForebayDataLayer) -> None:
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    urls = set()
    for _ in range(2):
        (in_thread,) = await stored_elements(layer, element.thread_id)
        alone = await layer.get_element(element.thread_id, element.id)
        assert alone
        urls |= {in_thread["url"], alone["url"]}
    assert len(urls) == 4
    assert all(str(url).startswith("signed://") for url in urls)


async def test_urls_are_fetched_side_by_side(layer: ForebayDataLayer, storage: MemoryStorage) -> None:
    thread_id = await a_thread(layer)
    for _ in range(3):
        await layer.create_element(a_text(thread_id))
    together = asyncio.Barrier(3)

    async def sign(object_key: str) -> str:
        await together.wait()
        return f"signed://{object_key}"

    storage.get_read_url = sign  # type: ignore[method-assign]
    async with patience():
        elements = await stored_elements(layer, thread_id)
    assert {element["url"] for element in elements} == {f"signed://{e['objectKey']}" for e in elements}


async def test_the_stored_url_stands_in_for_one_that_cannot_be_had(
    layer: ForebayDataLayer, storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    storage.failing.add("get_read_url")
    (stored,) = await stored_elements(layer, element.thread_id)
    assert stored["url"] == f"stored://unknown/{element.id}/note"
    assert "element url not refreshed reason=TypeError" in caplog.text
    assert "secret" not in caplog.text


async def test_without_a_storage_client_the_row_is_written(emptied_url: str, make_layer: MakeLayer) -> None:
    layer = make_layer(emptied_url, storage_provider=None, settings=Settings(storage="none"))
    element = a_text(await a_thread(layer), content=None, url="https://example.org/picture")
    await layer.create_element(element)
    (stored,) = await stored_elements(layer, element.thread_id)
    assert (stored["url"], stored["objectKey"]) == ("https://example.org/picture", None)
    await layer.delete_element(element.id)
    assert await stored_elements(layer, element.thread_id) == []


@pytest.mark.parametrize("why", ["the client fails", "there is no such file", "there is no such page"])
async def test_an_element_whose_content_cannot_be_stored_keeps_its_row(
    emptied_url: str,
    make_layer: MakeLayer,
    storage: MemoryStorage,
    served: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    why: str,
) -> None:
    # A storage may get over it; what is not there will never be.
    upload_timeout = 0.01 if why == "the client fails" else FOR_EVER
    layer = make_layer(emptied_url, settings=Settings(upload_timeout=upload_timeout))
    thread_id = await a_thread(layer)
    if why == "the client fails":
        storage.failing.add("upload_file")
        element = a_text(thread_id, content="<secret content>")
    elif why == "there is no such file":
        element = a_text(thread_id, content=None, path=str(tmp_path / "<secret content>"))
    else:
        element = a_text(thread_id, content=None, url=f"{served}/nowhere")
    await layer.create_element(element)
    async with patience():
        while not (stored := await stored_elements(layer, thread_id)):  # noqa: ASYNC110 - the layer gives up in a while
            await asyncio.sleep(0.01)
    assert [(found["id"], found["objectKey"]) for found in stored] == [(element.id, None)]
    assert layer.registry.get_sample_value("forebay_upload_failures_total") == 1
    assert "element content not stored" in caplog.text
    assert "secret" not in caplog.text


async def test_an_element_written_again_is_changed(layer: ForebayDataLayer, storage: MemoryStorage) -> None:
    element = CustomElement(thread_id=await a_thread(layer), name="Card", for_id=new_id(), props={"n": 1})
    await layer.create_element(element)
    await layer.flush()
    element.props = {"n": 2}
    await layer.create_element(element)
    (stored,) = await stored_elements(layer, element.thread_id)
    assert stored["props"] == {"n": 2}
    assert len(storage.files) == 1


class SlowStorage(MemoryStorage):
    """The first upload goes on until it is let go; later ones are done at once."""

    def __init__(self) -> None:
        super().__init__()
        self.uploads = 0
        self.go_on = asyncio.Event()

    @override
    async def upload_file(
        self, object_key: str, data: bytes | str, *arguments: Any, **named: Any
    ) -> dict[str, Any]:
        self.uploads += 1
        if self.uploads == 1:
            await self.go_on.wait()
        return await super().upload_file(object_key, data, *arguments, **named)


@pytest.mark.parametrize("then", ["update", "delete"])
async def test_what_follows_a_slow_upload_does_not_overtake_it(
    emptied_url: str, make_layer: MakeLayer, then: str
) -> None:
    storage = SlowStorage()
    layer = make_layer(emptied_url, storage_provider=storage)
    element = CustomElement(thread_id=await a_thread(layer), name="Card", for_id=new_id(), props={"n": 1})
    other = CustomElement(thread_id=element.thread_id, name="Card", for_id=new_id(), props={"n": "other"})
    first = asyncio.create_task(layer.create_element(element))
    async with patience():
        while not storage.uploads:  # noqa: ASYNC110 - it begins when the content has been secured
            await asyncio.sleep(0.001)
        element.props = {"n": 2}
        call = layer.create_element(element) if then == "update" else layer.delete_element(element.id)
        second = asyncio.create_task(call)
        await layer.create_element(other)  # another element does not wait
    storage.go_on.set()
    await asyncio.gather(first, second)
    stored = await stored_elements(layer, element.thread_id)
    expected = [2, "other"] if then == "update" else ["other"]
    assert sorted(((e["props"] or {})["n"] for e in stored), key=str) == expected
    assert len(storage.files) == len(expected)


async def test_the_element_may_change_once_the_call_has_begun(
    layer: ForebayDataLayer, tmp_path: Path
) -> None:
    element = a_text(await a_thread(layer))
    call = asyncio.create_task(layer.create_element(element))
    await asyncio.sleep(0)
    element.name, element.for_id = "changed", None
    await call
    (stored,) = await stored_elements(layer, element.thread_id)
    assert stored["name"] == "note"


async def test_an_outage_costs_an_element_neither_row_nor_content(
    make_layer: MakeLayer, storage: MemoryStorage
) -> None:
    layer = make_layer(UNREACHABLE, settings=Settings(close_timeout=0.01))
    element = a_text(new_id())
    await layer.create_step(a_step(element.thread_id))
    await layer.create_element(element)
    assert storage.files == {f"unknown/{element.id}/note": b"hello"}
    assert layer._engine.counts.accepted["elements"] == 1
    with pytest.raises(TransientError):
        await layer.get_element(element.thread_id, element.id)


# ---- deleting


@pytest.mark.parametrize("by", ["element", "thread"])
async def test_a_deleted_element_takes_its_content_with_it(
    layer: ForebayDataLayer, storage: MemoryStorage, by: str
) -> None:
    element = a_text(await a_thread(layer))
    kept = a_text(await a_thread(layer))
    await layer.create_element(element)
    await layer.create_element(kept)
    if by == "element":
        await layer.delete_element(element.id, element.thread_id)
    else:
        await layer.delete_thread(element.thread_id)
    assert await layer.get_element(element.thread_id, element.id) is None
    assert [row["id"] for row in await rows(layer, "SELECT id FROM elements")] == [kept.id]
    assert [key.split("/")[1] for key in storage.files] == [kept.id]


async def test_content_that_cannot_be_deleted_is_deleted_later(
    layer: ForebayDataLayer,
    storage: MemoryStorage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blobs, "_FIRST_PAUSE", 0.01)
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    storage.failing.add("delete_file")
    await layer.delete_thread(element.thread_id)
    assert await layer.get_thread(element.thread_id) is None
    assert "element content not deleted yet reason=TypeError" in caplog.text
    assert element.id not in caplog.text
    storage.failing.clear()
    async with patience():
        while storage.files:  # noqa: ASYNC110 - nobody waits for what is deleted later
            await asyncio.sleep(0.005)
    assert layer.registry.get_sample_value("forebay_blob_delete_failures_total") == 0


async def _garbage_is_gone(layer: ForebayDataLayer) -> None:
    async with patience():
        while await rows(layer, "SELECT object_key FROM forebay_garbage"):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)


async def test_content_of_an_element_that_is_made_anew_is_not_deleted_later(
    layer: ForebayDataLayer, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_FIRST_PAUSE", 0.01)
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    storage.failing.add("delete_file")
    await layer.delete_element(element.id, element.thread_id)

    await layer.create_element(element)
    storage.failing.clear()
    await _garbage_is_gone(layer)

    (stored,) = await stored_elements(layer, element.thread_id)
    assert list(storage.files) == [stored["objectKey"]]

    await layer.delete_element(element.id, element.thread_id)
    assert not storage.files


def _long_key() -> str:
    """As another layer makes it, of letters that do not compress."""
    return f"threads/{new_id()}/files/" + "".join(secrets.token_hex(32) for _ in range(100))


async def _names(layer: ForebayDataLayer, element: Element, object_key: str) -> None:
    """Another program has stored the element's content, under a key of its own."""
    await layer.execute_sql(
        f'UPDATE elements SET "objectKey" = :key WHERE id = {_typed_id(layer)}',
        {"key": object_key, "id": element.id},
    )


def _typed_id(layer: ForebayDataLayer) -> str:
    return "CAST(:id AS UUID)" if layer.engine.dialect.name == "postgresql" else ":id"


@pytest.mark.parametrize("by", ["element", "step", "thread"])
async def test_a_key_of_any_length_goes_with_its_element(
    layer: ForebayDataLayer, storage: MemoryStorage, by: str
) -> None:
    thread_id = await a_thread(layer)
    step = a_step(thread_id)
    await layer.create_step(step)
    for key in (_long_key(), _long_key()):
        element = a_text(thread_id, for_id=step["id"])
        await layer.create_element(element)
        await storage.delete_file((await stored_elements(layer, thread_id))[0]["objectKey"] or "")
        storage.files[key] = b"content"
        await _names(layer, element, key)
        if by == "element":
            await layer.delete_element(element.id, thread_id)
    if by == "step":
        await layer.delete_step(step["id"])
    if by == "thread":
        await layer.delete_thread(thread_id)
    assert await layer.execute_sql("SELECT id FROM elements", {}) == []
    assert await layer.execute_sql("SELECT object_key FROM forebay_garbage", {}) == []
    assert [key for key in storage.files if key.startswith("threads/")] == []


async def test_content_that_two_elements_name_goes_with_the_second(
    layer: ForebayDataLayer, storage: MemoryStorage
) -> None:
    first, second = a_text(await a_thread(layer)), a_text(await a_thread(layer))
    await layer.create_element(first)
    await layer.create_element(second)
    (stored,) = await stored_elements(layer, first.thread_id)
    await _names(layer, second, str(stored["objectKey"]))
    await layer.delete_thread(first.thread_id)
    assert stored["objectKey"] in storage.files
    await layer.delete_thread(second.thread_id)
    assert stored["objectKey"] not in storage.files


async def test_contents_that_a_storage_keeps_hold_up_no_others(
    layer: ForebayDataLayer, monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage
) -> None:
    monkeypatch.setattr(collector, "_AT_ONCE", 2)

    async def delete_file(object_key: str) -> bool:
        return "locked" not in object_key and await MemoryStorage.delete_file(storage, object_key)

    monkeypatch.setattr(storage, "delete_file", delete_file)
    thread_id = await a_thread(layer)
    for name in ["locked"] * 8 + ["free"] * 3:
        await layer.create_element(a_text(thread_id, name=name))
    await layer.delete_thread(thread_id)
    assert len(storage.files) == 8
    left = await rows(layer, "SELECT object_key FROM forebay_garbage")
    assert {row["object_key"] for row in left} == set(storage.files)


async def test_what_is_noted_while_it_is_collected_is_collected_again(
    layer: ForebayDataLayer, monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage
) -> None:
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    again = iter([True])

    async def delete_file(object_key: str) -> bool:
        await MemoryStorage.delete_file(storage, object_key)
        if next(again, False):  # another process makes the element anew, and deletes it
            storage.files[object_key] = b"again"
            later = "UPDATE forebay_garbage SET noted_at = noted_at + 1"
            await layer._store.execute_sql(later, {})
        return True

    monkeypatch.setattr(storage, "delete_file", delete_file)
    await layer.delete_element(element.id, element.thread_id)
    assert len(await rows(layer, "SELECT object_key FROM forebay_garbage")) == 1
    await layer.delete_thread(element.thread_id)
    assert storage.files == {}
    assert await rows(layer, "SELECT object_key FROM forebay_garbage") == []


async def test_a_storage_that_stalls_is_waited_for_a_while_and_asked_once(
    emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "_PATIENCE", 0.2)
    monkeypatch.setattr(blobs, "_CALL_TIMEOUT", FOR_EVER)
    storage, asked = MemoryStorage(), 0

    async def delete_file(object_key: str) -> bool:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    monkeypatch.setattr(storage, "delete_file", delete_file)
    layer = make_layer(emptied_url, storage_provider=storage)
    threads = [await a_thread(layer) for _ in range(5)]
    for thread_id in threads:
        await layer.create_element(a_text(thread_id))
    async with patience():
        await asyncio.gather(*map(layer.delete_thread, threads))
        await layer.close()
    assert asked < 4 * len(threads)


class LateDeletes(SlowStorage):
    """A delete arrives when the upload that follows it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = asyncio.Event()

    @override
    async def upload_file(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        stored = await super().upload_file(*arguments, **named)
        self.stored.set()
        return stored

    @override
    async def delete_file(self, object_key: str) -> bool:
        await self.stored.wait()
        return await super().delete_file(object_key)


async def test_content_that_is_on_its_way_again_is_not_deleted(
    emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_FIRST_PAUSE", 0.01)
    storage = LateDeletes()
    storage.go_on.set()
    layer = make_layer(emptied_url, storage_provider=storage)
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    storage.uploads = 0
    storage.go_on.clear()
    storage.stored.clear()

    deleted = asyncio.create_task(layer.delete_element(element.id, element.thread_id))
    await asyncio.sleep(0)
    made = asyncio.create_task(layer.create_element(element))
    async with patience():
        while not await rows(layer, "SELECT object_key FROM forebay_garbage"):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # in which what was deleted is collected
    storage.go_on.set()
    await asyncio.gather(deleted, made)
    await _garbage_is_gone(layer)

    (stored,) = await stored_elements(layer, element.thread_id)
    assert list(storage.files) == [stored["objectKey"]]


async def test_content_of_an_upload_that_was_dropped_and_begun_anew_is_not_deleted_later(
    emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "_FIRST_PAUSE", 0.05)
    storage = SlowStorage()
    layer = make_layer(emptied_url, storage_provider=storage)
    element = a_text(await a_thread(layer))
    first = asyncio.create_task(layer.create_element(element))
    async with patience():
        while not storage.uploads:  # noqa: ASYNC110 - it begins when the content has been secured
            await asyncio.sleep(0.001)
    storage.failing.add("delete_file")
    await layer.delete_element(element.id, element.thread_id)
    storage.go_on.set()
    await first

    await layer.create_element(element)
    storage.failing.clear()
    await asyncio.sleep(0.3)  # many times the pause before a delete is tried again

    (stored,) = await stored_elements(layer, element.thread_id)
    assert list(storage.files) == [stored["objectKey"]]


async def test_content_that_is_never_deleted_is_counted(
    layer: ForebayDataLayer, storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    element = a_text(await a_thread(layer))
    await layer.create_element(element)
    storage.failing.add("delete_file")
    await layer.delete_element(element.id)
    await layer.close()
    assert layer.registry.get_sample_value("forebay_blob_delete_failures_total") == 1
    assert "`forebay blobs orphans` finds it" in caplog.text
