"""Content on its way into the storage: what fails is tried again, what is deleted leaves nothing, memory is bounded."""

from __future__ import annotations

import asyncio
import json
import shutil
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from chainlit.config import FILES_DIRECTORY
from chainlit.element import Audio, CustomElement, Dataframe, Element, File, Image, Pdf, Plotly, Text, Video
from typing_extensions import override

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from forebay.attachments import delivery, uploads
from forebay.attachments.attachments import StoredAttachments
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, new_id, rows, stored_elements
from tests.support.patience import FOR_EVER, patience
from tests.support.storage import MemoryStorage
from tests.support.web import served


def a_file(thread_id: str, content: bytes = b"content", **values: Any) -> File:
    return File(**{"thread_id": thread_id, "name": "f.bin", "content": content, "for_id": new_id(), **values})


def _uploads(layer: ForebayDataLayer) -> uploads.Uploads:
    assert isinstance(layer._attachments, StoredAttachments)
    return layer._attachments.uploads


async def until(true: Callable[[], Any]) -> None:
    async with patience():
        while not true():  # noqa: ASYNC110 - the uploads run in the background, and tell nobody
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE", 0.02)


class TroubledStorage(MemoryStorage):
    """Its first uploads end as `trouble` does; then it works."""

    def __init__(self, *trouble: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self.trouble = [*trouble]
        self.uploads = 0

    @override
    async def upload_file(
        self, object_key: str, data: bytes | str, *rest: Any, **named: Any
    ) -> dict[str, Any]:
        self.uploads += 1
        if self.trouble:
            found = await self.trouble.pop(0)()
            if found is not None:
                return dict(found)
        return await super().upload_file(object_key, data, *rest, **named)


async def _raises() -> None:
    raise ConnectionResetError("<secret content>")


async def _says_nothing() -> dict[str, Any]:
    return {}  # as Chainlit's S3 client does when it fails


async def _stalls() -> None:
    await asyncio.Event().wait()


# ---- what comes back


def _every_kind(thread_id: str) -> list[Element]:
    pandas = pytest.importorskip("pandas")
    figures = pytest.importorskip("plotly.graph_objects")
    about: dict[str, Any] = {"thread_id": thread_id, "for_id": new_id()}
    return [
        Image(name="i.png", content=b"\x89PNG\r\n", mime="image/png", **about),
        Text(name="t.txt", content="text ☂", language="python", **about),
        Pdf(name="p.pdf", content=b"%PDF", page=3, **about),
        Audio(name="a.mp3", content=b"ID3", auto_play=True, mime="audio/mpeg", **about),
        Video(name="v.mp4", content=b"mp4", player_config={"loop": True}, mime="video/mp4", **about),
        File(name="f", content=b"\x00\xff", **about),
        Plotly(name="chart", figure=figures.Figure(), **about),
        Dataframe(name="table", data=pandas.DataFrame({"a": [1, 2]}), **about),
        CustomElement(name="Card", props={"a": [1, None, {"b": "ключ"}]}, **about),
    ]


async def test_every_kind_of_element_comes_back_whole(
    emptied_url: str, make_layer: MakeLayer, tmp_path: Path
) -> None:
    storage = LocalStorageClient(tmp_path / "files")
    layer = make_layer(emptied_url, storage_provider=storage)
    thread_id = await a_thread(layer)
    elements = _every_kind(thread_id)
    expected = {element.id: (element.to_dict(), element.content) for element in elements}
    await asyncio.gather(*map(layer.create_element, elements))
    stored = {str(found["id"]): found for found in await stored_elements(layer, thread_id)}
    assert stored.keys() == expected.keys()
    for key, (values, content) in expected.items():
        alone = await layer.get_element(thread_id, key)
        assert alone
        for found in (stored[key], alone):
            wanted = {**values, "props": values["props"] or {}}
            given = {name: found.get(name) for name in wanted}
            assert {**given, "url": None, "objectKey": None} == {**wanted, "url": None, "objectKey": None}
            file = storage.find(str(found["objectKey"]))
            assert file
            assert file.path.read_bytes() == (content.encode() if isinstance(content, str) else content)
            assert file.mime == (values["mime"] or "application/octet-stream")
            assert str(found["url"]).startswith("/forebay/files/")


# ---- a storage in trouble


@pytest.mark.parametrize("trouble", [_raises, _says_nothing, _stalls])
async def test_a_storage_that_recovers_has_it_in_the_end(
    emptied_url: str,
    make_layer: MakeLayer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[], Awaitable[Any]],
) -> None:
    monkeypatch.setattr(delivery, "_CALL_TIMEOUT", 0.05)
    storage = TroubledStorage(trouble, trouble)
    layer = make_layer(emptied_url, storage_provider=storage)
    element = a_file(await a_thread(layer))
    await layer.create_element(element)  # returns though nothing is stored yet
    await until(lambda: storage.files)
    await until(lambda: layer._engine.counts.uploads_pending == 0)
    (stored,) = await stored_elements(layer, element.thread_id)
    assert stored["objectKey"] in storage.files
    assert layer.registry.get_sample_value("forebay_upload_retries_total") == 2
    assert layer.registry.get_sample_value("forebay_upload_failures_total") == 0
    assert "upload is tried again attempt=1" in caplog.text
    assert "secret" not in caplog.text


async def test_a_storage_that_refuses_costs_the_content_for_a_while_and_never_the_row(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    storage = MemoryStorage()
    storage.failing.add("upload_file")
    layer = make_layer(emptied_url, storage_provider=storage, settings=Settings(upload_timeout=0.05))
    element = a_file(await a_thread(layer))
    await layer.create_element(element)
    await until(lambda: layer._engine.counts.upload_failures)
    (stored,) = await stored_elements(layer, element.thread_id)
    assert (stored["id"], stored["objectKey"]) == (element.id, None)
    storage.failing.clear()  # the operator has mended it
    await until(lambda: layer._engine.counts.uploads_pending == 0)
    (stored,) = await stored_elements(layer, element.thread_id)
    assert storage.files == {stored["objectKey"]: b"content"}


async def test_what_is_not_stored_when_the_layer_closes_is_stored_by_the_next(
    emptied_url: str, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    storage.failing.add("upload_file")
    layer = make_layer(emptied_url, storage_provider=storage)
    element = a_file(await a_thread(layer))
    await layer.create_element(element)
    await layer.close()
    assert "closed with content that is not stored yet uploads=1" in caplog.text
    storage.failing.clear()
    after = make_layer(emptied_url, storage_provider=storage)
    (stored,) = await stored_elements(after, element.thread_id)  # a read waits for what is gone on with
    assert storage.files == {stored["objectKey"]: b"content"}
    await after.close()
    assert [path.name for path in (after.settings.journal_dir / "uploads").iterdir()] == []


async def test_a_reader_sees_what_is_still_on_its_way(emptied_url: str, make_layer: MakeLayer) -> None:
    go_on = asyncio.Event()

    async def wait() -> None:
        await go_on.wait()

    layer = make_layer(emptied_url, storage_provider=TroubledStorage(wait))
    element = a_file(await a_thread(layer))
    call = asyncio.create_task(layer.create_element(element))
    reading = asyncio.create_task(stored_elements(layer, element.thread_id))
    await until(lambda: layer._engine.counts.uploads_pending)
    go_on.set()
    assert [found["id"] for found in await reading] == [element.id]
    await call


async def test_a_reader_does_not_wait_for_ever(
    emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_SETTLE_TIMEOUT", 0.01)
    monkeypatch.setattr(delivery, "_CALL_TIMEOUT", FOR_EVER)
    layer = make_layer(
        emptied_url, storage_provider=TroubledStorage(_stalls), settings=Settings(close_timeout=0.1)
    )
    element = a_file(await a_thread(layer))
    call = asyncio.create_task(layer.create_element(element))
    await until(lambda: layer._engine.counts.uploads_pending)
    async with patience():
        assert await stored_elements(layer, element.thread_id) == []
    call.cancel()


# ---- securing


async def test_a_sessions_files_may_be_removed_once_the_call_has_begun(
    layer: ForebayDataLayer, storage: MemoryStorage
) -> None:
    session = FILES_DIRECTORY / new_id()
    session.mkdir(parents=True)
    file = session / "file.bin"
    file.write_bytes(b"x" * 5_000_000)
    element = a_file(await a_thread(layer), content=None, path=str(file))  # type: ignore[arg-type]
    call = asyncio.create_task(layer.create_element(element))
    await asyncio.sleep(0)
    shutil.rmtree(session)
    await call
    (stored,) = await stored_elements(layer, element.thread_id)
    assert storage.files == {stored["objectKey"]: b"x" * 5_000_000}


async def test_large_files_are_not_all_in_memory_at_once(
    migrated_sqlite_url: str, make_layer: MakeLayer, tmp_path: Path
) -> None:
    size, number, most = 4 * 2**20, 40, 8 * 2**20
    file = tmp_path / "large"
    file.write_bytes(b"x" * size)

    class Forgetful(MemoryStorage):
        @override
        async def upload_file(
            self, object_key: str, data: bytes | str, *rest: Any, **_: Any
        ) -> dict[str, Any]:
            await asyncio.sleep(0.001)
            assert len(data) == size
            return {"object_key": object_key}

    layer = make_layer(
        migrated_sqlite_url,
        storage_provider=Forgetful(),
        settings=Settings(upload_max_bytes=most, upload_concurrency=20),
    )
    thread_id = await a_thread(layer)
    await layer.flush()
    tracemalloc.start()
    elements = [a_file(thread_id, content=None, path=str(file)) for _ in range(number)]  # type: ignore[arg-type]
    await asyncio.gather(*map(layer.create_element, elements))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(await stored_elements(layer, thread_id)) == number
    assert peak < most + 20 * 2**20, "what is allowed, and the chunks of eight copies"


async def test_more_than_the_disk_may_hold_waits_and_is_then_left_out(
    emptied_url: str, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(upload_disk_max_bytes=2**20, queue_timeout=0.05, close_timeout=0.1)
    layer = make_layer(emptied_url, storage_provider=TroubledStorage(_stalls), settings=settings)
    thread_id = await a_thread(layer)
    first = asyncio.create_task(layer.create_element(a_file(thread_id, b"x" * 900_000)))
    await until(lambda: layer._engine.counts.uploads_pending)
    late = a_file(thread_id, b"x" * 900_000)
    await layer.create_element(late)
    (stored,) = await rows(layer, 'SELECT id, "objectKey" FROM elements')
    assert (stored["id"], stored["objectKey"]) == (late.id, None)
    assert "FOREBAY_UPLOAD_DISK_MAX_BYTES" in caplog.text
    first.cancel()


# ---- deleting


@pytest.mark.parametrize("what", ["element", "step", "step above", "thread"])
@pytest.mark.parametrize("state", ["uploading", "failing"])
async def test_what_is_deleted_on_its_way_leaves_neither_row_nor_content(
    emptied_url: str, make_layer: MakeLayer, what: str, state: str
) -> None:
    go_on = asyncio.Event()

    async def wait() -> None:
        await go_on.wait()

    storage = TroubledStorage(*([wait] if state == "uploading" else [_raises] * 10_000))
    layer = make_layer(emptied_url, storage_provider=storage)
    thread_id = await a_thread(layer)
    above = a_step(thread_id)
    below = a_step(thread_id, parentId=above["id"])
    await layer.create_step(above)
    await layer.create_step(below)
    element = a_file(thread_id, for_id=below["id"])
    call = asyncio.create_task(layer.create_element(element))
    await until(lambda: storage.uploads)
    if what == "element":
        await layer.delete_element(element.id, thread_id)
    elif what == "thread":
        await layer.delete_thread(thread_id)
    else:
        await layer.delete_step(below["id"] if what == "step" else above["id"])
    go_on.set()
    storage.trouble.clear()
    await call
    await until(lambda: layer._engine.counts.uploads_pending == 0)
    assert await rows(layer, "SELECT id FROM elements") == []
    assert storage.files == {}
    assert [*layer.settings.journal_dir.rglob("*.json")] == []


# ---- from elsewhere


async def test_a_page_about_a_video_stays_where_it_is(
    layer: ForebayDataLayer, storage: MemoryStorage
) -> None:
    async with served(watch=web.Response(text="<html>", content_type="text/html")) as url:
        video = Video(thread_id=await a_thread(layer), name="v", url=f"{url}/watch", for_id=new_id())
        await layer.create_element(video)
    (stored,) = await stored_elements(layer, video.thread_id)
    assert (stored["url"], stored["objectKey"], storage.files) == (video.url, None, {})
    assert layer.registry.get_sample_value("forebay_upload_failures_total") == 0


@pytest.mark.parametrize("url", ["data:text/plain,hello", "/public/logo.png"])
async def test_a_url_of_another_kind_is_kept_as_it_is(
    layer: ForebayDataLayer, storage: MemoryStorage, url: str
) -> None:
    element = a_file(await a_thread(layer), content=None, url=url)  # type: ignore[arg-type]
    await layer.create_element(element)
    (stored,) = await stored_elements(layer, element.thread_id)
    assert (stored["url"], stored["objectKey"], storage.files) == (url, None, {})
    assert layer.registry.get_sample_value("forebay_upload_failures_total") == 0


async def test_a_private_address_is_not_fetched_from(
    emptied_url: str, make_layer: MakeLayer, storage: MemoryStorage
) -> None:
    layer = make_layer(emptied_url, settings=Settings(fetch_private=False))
    async with served(page=web.Response(body=b"secret")) as url:
        element = a_file(await a_thread(layer), content=None, url=f"{url}/page")  # type: ignore[arg-type]
        await layer.create_element(element)
    (stored,) = await stored_elements(layer, element.thread_id)
    assert (stored["url"], stored["objectKey"], storage.files) == (element.url, None, {})
    assert layer.registry.get_sample_value("forebay_upload_failures_total") == 1


async def test_by_default_content_goes_to_a_folder(
    emptied_url: str, make_layer: MakeLayer, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url, storage_provider=None, settings=Settings(storage_dir=tmp_path / "files"))
    assert isinstance(layer.storage_provider, LocalStorageClient)
    element = CustomElement(thread_id=await a_thread(layer), name="Card", for_id=new_id(), props={"a": 1})
    await layer.create_element(element)
    (stored,) = await stored_elements(layer, element.thread_id)
    file = layer.storage_provider.find(str(stored["objectKey"]))
    assert file
    assert json.loads(file.path.read_bytes()) == {"a": 1}


# ---- what one person's content costs the others


class RefusingStorage(MemoryStorage):
    """It takes no key with `refused` in it, however often."""

    @override
    async def upload_file(
        self, object_key: str, data: bytes | str, *rest: Any, **named: Any
    ) -> dict[str, Any]:
        return {} if "refused" in object_key else await super().upload_file(object_key, data, *rest, **named)


async def test_content_that_is_refused_for_good_gives_its_room_back(
    emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_MOST_REFUSALS", 2)
    storage = RefusingStorage()
    layer = make_layer(emptied_url, storage_provider=storage)
    thread_id = await a_thread(layer)
    refused = a_file(thread_id, name="refused.bin")
    await layer.create_element(refused)
    for _ in range(5):
        await layer.create_element(a_file(thread_id))
    await until(lambda: layer._engine.counts.uploads_pending == 0)
    found = await layer.get_element(thread_id, refused.id)
    assert found
    assert found["objectKey"] is None  # its row is there, without content
    assert _uploads(layer)._contents._disk._taken == 0
    assert not [*_uploads(layer)._secured.folder.iterdir()]
    assert layer.registry.get_sample_value("forebay_upload_failures_total") == 1


async def test_a_storage_that_takes_nothing_has_all_in_the_end(
    emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_MOST_REFUSALS", 2)
    storage = TroubledStorage(*[_says_nothing] * 30)
    layer = make_layer(emptied_url, storage_provider=storage)
    element = a_file(await a_thread(layer))
    await layer.create_element(element)
    await until(lambda: storage.files)
    await until(lambda: layer._engine.counts.uploads_pending == 0)
    found = await layer.get_element(str(element.thread_id), element.id)
    assert found
    assert found["objectKey"] in storage.files


class StallingStorage(MemoryStorage):
    """It never answers for a key with `stalled` in it."""

    @override
    async def upload_file(
        self, object_key: str, data: bytes | str, *rest: Any, **named: Any
    ) -> dict[str, Any]:
        if "stalled" in object_key:
            await _stalls()
        return await super().upload_file(object_key, data, *rest, **named)


async def test_a_person_leaves_room_on_the_disk_and_places_to_others(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    settings = Settings(upload_disk_max_bytes=2**20, queue_timeout=60, close_timeout=0.1)
    layer = make_layer(emptied_url, storage_provider=StallingStorage(), settings=settings)
    his, hers = await a_thread(layer), await a_thread(layer)
    many = [asyncio.create_task(layer.create_element(a_file(his, name="stalled"))) for _ in range(40)]
    await until(lambda: layer._engine.counts.uploads_pending == 40)
    element = a_file(hers)
    await layer.create_element(element)
    found = await layer.get_element(hers, element.id)
    assert found
    assert found["objectKey"]
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


async def test_slow_urls_keep_nobody_elses_file_waiting(emptied_url: str, make_layer: MakeLayer) -> None:
    free = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await free.wait()
        return web.Response(body=b"late")

    settings = Settings(fetch_private=True, close_timeout=0.1, fetch_timeout=60)
    layer = make_layer(emptied_url, storage_provider=MemoryStorage(), settings=settings)
    his, hers = await a_thread(layer), await a_thread(layer)
    async with served(slow=slow, quick=web.Response(body=b"quick")) as url:
        many = [
            asyncio.create_task(
                layer.create_element(Image(thread_id=his, url=f"{url}/slow", for_id=new_id()))
            )
            for _ in range(48)
        ]
        await until(lambda: layer._engine.counts.uploads_pending == 48)
        file, picture = a_file(hers), Image(thread_id=hers, url=f"{url}/quick", for_id=new_id())
        await layer.create_element(file)
        await layer.create_element(picture)
        assert not any(task.done() for task in many)
        free.set()
        await asyncio.gather(*many)
    for element in (file, picture):
        found = await layer.get_element(hers, element.id)
        assert found
        assert found["objectKey"]


@pytest.mark.parametrize("path", ["big", "page"])
async def test_what_was_fetched_and_is_not_kept_leaves_nothing_on_the_disk(
    emptied_url: str, make_layer: MakeLayer, path: str
) -> None:
    settings = Settings(fetch_private=True, fetch_max_bytes=2**16)
    layer = make_layer(emptied_url, storage_provider=MemoryStorage(), settings=settings)
    thread_id = await a_thread(layer)
    page = web.Response(text="<p>", content_type="text/html")
    async with served(big=web.Response(body=b"x" * 2**17), page=page) as url:
        await layer.create_element(Image(thread_id=thread_id, url=f"{url}/{path}", for_id=new_id()))
    assert not [*_uploads(layer)._secured.folder.iterdir()]


async def test_an_element_that_waits_for_its_content_is_shown_in_time(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    """However long the try takes that is under way."""
    storage = TroubledStorage(_stalls)
    layer = make_layer(
        emptied_url, storage_provider=storage, settings=Settings(upload_timeout=0.05, close_timeout=0.1)
    )
    element = a_file(await a_thread(layer))
    creating = asyncio.create_task(layer.create_element(element))
    await until(lambda: layer.registry.get_sample_value("forebay_upload_failures_total"))
    await until(lambda: layer._engine.counts.written["elements"])
    await until(lambda: storage.uploads == 1)
    creating.cancel()


async def test_elements_that_wait_for_slow_urls_are_shown_in_time(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    """Also those for which there is no place yet: what comes before an upload counts as well."""
    free = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await free.wait()
        return web.Response(body=b"late")

    storage = MemoryStorage()
    settings = Settings(fetch_private=True, upload_timeout=0.05, fetch_timeout=600, upload_concurrency=4)
    layer = make_layer(emptied_url, storage_provider=storage, settings=settings)
    thread_id = await a_thread(layer)
    async with served(slow=slow) as url:
        many = [
            asyncio.create_task(
                layer.create_element(Image(thread_id=thread_id, url=f"{url}/slow", for_id=new_id()))
            )
            for _ in range(5)
        ]
        await until(lambda: layer._engine.counts.written["elements"] == 5)
        assert storage.files == {}
        free.set()
        await asyncio.gather(*many)
    assert {one["objectKey"] for one in await stored_elements(layer, thread_id)} == {*storage.files}
    assert len(storage.files) == 5


async def test_what_could_run_in_a_browser_is_saved_from_a_bucket_not_opened(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    storage = MemoryStorage()
    layer = make_layer(emptied_url, storage_provider=storage)
    thread_id = await a_thread(layer)
    for name, mime in (("p.html", "text/html"), ("i.svg", "image/svg+xml"), ("i.png", "image/png")):
        await layer.create_element(a_file(thread_id, name=name, mime=mime))
    told = {key.rpartition("/")[2]: disposition for key, disposition in storage.dispositions.items()}
    assert told == {
        "p.html": "attachment; filename*=UTF-8''p.html",
        "i.svg": "attachment; filename*=UTF-8''i.svg",
        "i.png": None,
    }
