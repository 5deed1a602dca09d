"""The listener over HTTP: formats, probes through outages, a port that is taken, and who keeps it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from forebay import ForebayDataLayer, Settings
from forebay.errors import JournalError
from forebay.layer import monitor
from forebay.telemetry.listener import Listener
from tests.integration.conftest import MakeLayer
from tests.integration.contract import UNREACHABLE, a_step, a_thread, new_id, until
from tests.support.postgres import PostgresServer

_FREE = "127.0.0.1:0"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client; it takes compressed answers."""
    async with aiohttp.ClientSession() as session:
        yield session


async def _probe(http: aiohttp.ClientSession, url: str | None, name: str = "readyz") -> tuple[int, Any]:
    async with http.get(f"{url}/{name}") as response:
        return response.status, (await response.json()).get("reason")


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    return registry


def _all_is_well() -> None:
    return None


# ---- the listener by itself


@pytest.mark.parametrize(
    ("accept", "kind", "parse"),
    [
        ("", "text/plain; version=0.0.4", parse_plain),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5",
            "application/openmetrics-text",
            parse_openmetrics,
        ),
    ],
    ids=["plain", "openmetrics"],
)
async def test_the_content_type_is_that_of_the_format(
    http: aiohttp.ClientSession, accept: str, kind: str, parse: Any
) -> None:
    async with (
        Listener(_FREE, _registry(), _all_is_well) as listener,
        http.get(f"{listener.url}/metrics", headers={"Accept": accept}) as response,
    ):
        assert response.headers["Content-Type"].startswith(kind)
        samples = [sample for family in parse(await response.text()) for sample in family.samples]
    assert [sample.value for sample in samples if sample.name == "things_total"] == [3]


async def test_the_probes_give_the_reason(http: aiohttp.ClientSession) -> None:
    reasons: dict[str, str | None] = {"readyz": None, "healthz": None}
    async with Listener(
        _FREE, _registry(), lambda: reasons["readyz"], lambda: reasons["healthz"]
    ) as listener:
        for name in reasons:
            assert await _probe(http, listener.url, name) == (200, None)
            reasons[name] = f"no {name}"
            assert await _probe(http, listener.url, name) == (503, f"no {name}")
        async with http.get(f"{listener.url}/anything") as response:
            assert response.status == 404


async def test_a_taken_port_is_a_warning_that_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    async with Listener(_FREE, _registry(), _all_is_well) as first:
        address = str(first.url).removeprefix("http://")
        async with Listener(address, _registry(), _all_is_well) as second:
            assert second.url is None
    assert "metrics not served" in caplog.text
    assert address in caplog.text
    assert "FOREBAY_METRICS_ADDRESS" in caplog.text
    async with Listener(address, _registry(), _all_is_well) as third:
        assert third.url == first.url or str(third.url).endswith(address)


@pytest.mark.parametrize("address", ["192.0.2.1:0", "no-such-host.invalid:0"])
async def test_an_address_of_another_machine_is_a_warning(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Listener(address, _registry(), _all_is_well) as listener:
        assert listener.url is None
    assert "metrics not served" in caplog.text


async def test_off_listens_nowhere() -> None:
    async with Listener("off", _registry(), _all_is_well) as listener:
        assert listener.url is None


async def test_an_ipv6_address_stands_in_brackets(http: aiohttp.ClientSession) -> None:
    async with Listener("[::1]:0", _registry(), _all_is_well) as listener:
        if listener.url is None:
            pytest.skip("this machine has no IPv6")
        assert await _probe(http, listener.url) == (200, None)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_a_forked_child_does_not_keep_the_port() -> None:
    async with Listener(_FREE, _registry(), _all_is_well) as listener:
        port = int(str(listener.url).rpartition(":")[2])
        running, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"running")
            signal.pause()
        os.read(running, 1)
        os.close(running)
        os.close(told)
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---- with a layer


async def test_a_layer_that_is_never_used_opens_no_port(make_layer: MakeLayer, emptied_url: str) -> None:
    layer = make_layer(emptied_url, settings=Settings(metrics_address=_FREE))
    await asyncio.sleep(0)
    assert layer.metrics_url is None
    await layer.close()


async def _served(layer: ForebayDataLayer) -> str:
    await until(lambda: layer.metrics_url is not None)
    return str(layer.metrics_url)


async def test_a_layer_serves_its_metrics_from_its_first_use_to_its_end(
    make_layer: MakeLayer, emptied_url: str, http: aiohttp.ClientSession
) -> None:
    layer = make_layer(emptied_url, settings=Settings(metrics_address=_FREE))
    await a_thread(layer)
    await layer.flush()
    url = await _served(layer)
    async with http.get(f"{url}/metrics") as response:
        assert 'forebay_rows_written_total{table="threads"} 1.0' in await response.text()
    assert await _probe(http, url) == (200, None)
    assert await _probe(http, url, "healthz") == (200, None)
    await layer.close()
    assert layer.metrics_url is None
    with pytest.raises(aiohttp.ClientConnectorError):
        await _probe(http, url)
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("forebay")] == []


async def test_a_port_that_is_taken_stops_no_layer(
    make_layer: MakeLayer, emptied_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_layer(emptied_url, settings=Settings(metrics_address=_FREE))
    await first.start()
    address = (await _served(first)).removeprefix("http://")
    second = make_layer(emptied_url, settings=Settings(metrics_address=address))
    await a_thread(second)
    await second.flush()
    await until(lambda: "metrics not served" in caplog.text)
    assert second.metrics_url is None


async def test_a_wrong_schema_is_not_ready_before_anything_is_written(
    make_layer: MakeLayer, postgres_url: str, http: aiohttp.ClientSession
) -> None:
    layer = make_layer(postgres_url, settings=Settings(metrics_address=_FREE))
    await layer.start()
    url = await _served(layer)
    status, reason = await _probe(http, url)
    assert (status, bool(reason)) == (503, True), "not before the database has answered"
    await until(lambda: "forebay migrate" in (layer._engine.health.reason() or ""))
    status, reason = await _probe(http, url)
    assert status == 503
    assert "forebay migrate" in reason
    assert await _probe(http, url, "healthz") == (200, None), "starting it again would not help"


async def test_the_probes_change_through_an_outage(
    own_postgres_server: PostgresServer,
    make_layer: MakeLayer,
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor, "_ASK_INTERVAL", 0.05)
    settings = Settings(metrics_address=_FREE, ready_grace=0.2, auto_migrate=True)
    layer = make_layer(own_postgres_server.create_database(), settings=settings)
    thread_id = await a_thread(layer)
    await layer.flush()
    url = await _served(layer)
    assert await _probe(http, url) == (200, None)

    own_postgres_server.stop()
    await layer.create_step(a_step(thread_id))  # the journal takes it
    await until(lambda: layer._engine.health.reason() is not None)
    status, reason = await _probe(http, url)
    assert (status, "can't be reached" in reason) == (503, True)
    assert await _probe(http, url, "healthz") == (200, None)

    own_postgres_server.start()
    await layer.flush()
    await until(lambda: layer._engine.health.reason() is None)
    assert await _probe(http, url) == (200, None)


async def test_an_outage_of_an_idle_database_is_seen_too(
    own_postgres_server: PostgresServer,
    make_layer: MakeLayer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor, "_ASK_INTERVAL", 0.05)
    settings = Settings(metrics_address=_FREE, ready_grace=0.2, auto_migrate=True)
    layer = make_layer(own_postgres_server.create_database(), settings=settings)
    await layer.get_user("nobody")
    own_postgres_server.stop()
    await until(lambda: layer._engine.health.reason() is not None)
    own_postgres_server.start()
    await until(lambda: layer._engine.health.reason() is None)


@pytest.mark.parametrize("writes", [False, True])
async def test_a_journal_folder_that_is_removed_is_not_ready(
    make_layer: MakeLayer,
    emptied_url: str,
    tmp_path: Path,
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    writes: bool,
) -> None:
    monkeypatch.setattr(monitor, "_ASK_INTERVAL", 0.01)
    folder, aside = tmp_path / "journals", tmp_path / "aside"
    layer = make_layer(
        emptied_url, settings=Settings(metrics_address=_FREE, journal_dir=folder, ready_grace=0)
    )
    await layer.start()
    if writes:
        await a_thread(layer)
    url = await _served(layer)
    await until(lambda: layer._engine.health.reason() is None)

    folder.rename(aside)
    folder.write_text("no folder")
    await until(lambda: layer._engine.health.reason() is not None)
    status, reason = await _probe(http, url)
    assert (status, "FOREBAY_JOURNAL_DIR" in reason) == (503, True)
    told = [record for record in caplog.records if "journal folder unusable" in record.message]
    assert [record.levelname for record in told] == ["ERROR"]

    folder.unlink()
    aside.rename(folder)
    await until(lambda: layer._engine.health.reason() is None)
    await a_thread(layer)
    await layer.close()


async def test_a_journal_folder_that_cannot_be_written_is_told_at_the_start(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = Settings(metrics_address=_FREE, journal_dir=tmp_path / "file" / "journals")
    layer = make_layer(emptied_url, settings=settings)
    with pytest.raises(JournalError, match="FOREBAY_JOURNAL_DIR"):
        await layer.start()
    status, reason = await _probe(http, await _served(layer))
    assert status == 503
    assert str(tmp_path) not in str(reason)
    await layer.close()


async def test_it_is_not_ready_while_it_closes(make_layer: MakeLayer, http: aiohttp.ClientSession) -> None:
    settings = Settings(durability="memory", metrics_address=_FREE, close_timeout=0.5)
    layer = make_layer(UNREACHABLE, settings=settings)
    await layer.create_step(a_step(new_id()))
    url = await _served(layer)
    closing = asyncio.create_task(layer.close())
    await asyncio.sleep(0)
    assert await _probe(http, url) == (503, "the data layer is closing")
    assert not closing.done()
    await closing


async def test_a_writer_that_has_ended_is_not_alive(
    make_layer: MakeLayer, emptied_url: str, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of forebay's own, which can't be brought about from outside."""
    layer = make_layer(emptied_url, settings=Settings(metrics_address=_FREE))

    async def end() -> None:
        raise RuntimeError

    monkeypatch.setattr(layer._engine._worker, "run", end)
    await layer.start()
    status, reason = await _probe(http, await _served(layer), "healthz")
    assert (status, "start the process again" in reason) == (503, True)


def test_the_listener_moves_with_the_layer_into_a_new_loop(migrated_sqlite_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    layer = ForebayDataLayer(
        migrated_sqlite_url, settings=Settings(durability="memory", metrics_address=address)
    )

    async def use(*, close: bool) -> None:
        await layer.start()
        url = await _served(layer)
        await until(lambda: layer._engine.health.reason() is None)
        async with aiohttp.ClientSession() as http:
            assert await _probe(http, url) == (200, None)
        if close:
            await layer.close()

    asyncio.run(use(close=False))
    asyncio.run(use(close=True))
