"""Several workers of one command: one port serves all of them, whoever has it and whoever dies."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from forebay.telemetry.listener import Listener
from tests.support.chainlit_server import free_port
from tests.support.patience import patience

_WORKER = Path(__file__).with_name("metrics_worker.py")


class _Crowd:
    """Listeners of one address and one folder, each with a counter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.http = aiohttp.ClientSession()
        self.made: list[Listener] = []

    async def one(self, things: int, **checks: Any) -> Listener:
        registry = CollectorRegistry()
        Counter("things", "Things.", registry=registry).inc(things)
        ready = checks.pop("ready", lambda: None)
        listener = Listener(self.address, registry, ready, journal_dir=self.folder, **checks)
        self.made.append(listener)
        await listener.start()
        return listener

    async def things(self) -> dict[str | None, float]:
        """The counter by worker."""
        async with self.http.get(f"http://{self.address}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        samples = [sample for family in families for sample in family.samples]
        return {
            sample.labels.get("worker"): sample.value for sample in samples if sample.name == "things_total"
        }

    async def probe(self, name: str = "readyz") -> str | None:
        async with self.http.get(f"http://{self.address}/{name}") as response:
            reason: str | None = (await response.json()).get("reason")
            assert response.status == (200 if reason is None else 503)
            return reason

    async def close(self) -> None:
        for listener in self.made:
            await listener.close()
        await self.http.close()


@pytest.fixture
async def crowd(tmp_path: Path) -> AsyncIterator[_Crowd]:
    made = _Crowd(tmp_path / "journals")
    yield made
    await made.close()


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with patience():
        while True:
            try:
                if await condition():
                    return
            except aiohttp.ClientConnectionError:
                pass  # nobody has the port at the moment
            await asyncio.sleep(0.05)


async def test_one_alone_says_nothing_of_workers(crowd: _Crowd) -> None:
    await crowd.one(3)
    assert await crowd.things() == {None: 3}
    assert await crowd.probe() is None


async def test_one_port_serves_all(crowd: _Crowd) -> None:
    first, second, third = [await crowd.one(things) for things in (3, 4, 5)]
    assert (str(first.url), second.url, third.url) == (f"http://{crowd.address}", None, None)
    assert await crowd.things() == {"0": 3, "1": 4, "2": 5}
    accept = {"Accept": "application/openmetrics-text"}
    async with crowd.http.get(f"http://{crowd.address}/metrics", headers=accept) as response:
        families = list(parse_openmetrics(await response.text()))
    assert [family.name for family in families] == ["things"]
    await second.close()
    assert await crowd.things() == {"0": 3, "2": 5}
    await third.close()
    assert await crowd.things() == {"0": 3}  # once there were several, a series keeps its label
    await crowd.one(6)
    assert await crowd.things() == {"0": 3, "1": 6}  # the lowest number that is free


async def test_another_takes_the_port_of_one_that_ends(crowd: _Crowd) -> None:
    first = await crowd.one(3)
    await crowd.one(4)
    await first.close()

    async def served() -> bool:
        return await crowd.things() == {"1": 4}

    await _until(served)
    await crowd.one(5)
    assert await crowd.things() == {"0": 5, "1": 4}


async def test_the_port_is_ready_if_all_are(crowd: _Crowd) -> None:
    reasons: list[str | None] = [None, None]
    await crowd.one(1, ready=lambda: reasons[0], alive=lambda: reasons[0])
    await crowd.one(1, ready=lambda: reasons[1], alive=lambda: reasons[1])
    for probe in ("readyz", "healthz"):
        assert await crowd.probe(probe) is None
    reasons[1] = "no disk"
    for probe in ("readyz", "healthz"):
        assert await crowd.probe(probe) == "worker 1: no disk"
    reasons[0] = "no database"
    assert await crowd.probe() == "worker 0: no database; worker 1: no disk"


@pytest.mark.parametrize("ending", [{0}, {1}, {0, 1}])
async def test_one_that_ends_by_itself_does_not_count(crowd: _Crowd, ending: set[int]) -> None:
    for number in range(2):
        await crowd.one(
            1, ready=lambda n=number: "closing" if n in ending else None, closing=lambda n=number: n in ending
        )
    assert (await crowd.probe() is None) == (len(ending) == 1)


async def test_one_that_does_not_answer_is_told(crowd: _Crowd) -> None:
    await crowd.one(1)
    stuck = await crowd.one(1)
    assert stuck._worker_socket is not None
    stuck._runners.clear()
    asyncio.get_running_loop().remove_reader(stuck._worker_socket.fileno())
    assert await crowd.probe() == "worker 1: it does not answer"
    assert await crowd.things() == {"0": 1}


async def test_a_port_that_a_stranger_has_is_a_warning(
    crowd: _Crowd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        stranger = Listener(crowd.address, CollectorRegistry(), lambda: None, journal_dir=tmp_path / "other")
        await stack.enter_async_context(stranger)
        await crowd.one(1)

        async def warned() -> bool:
            return "metrics not served" in caplog.text

        await _until(warned)
        assert await crowd.things() == {}

    async def served() -> bool:
        return await crowd.things() == {None: 1}

    await _until(served)


@pytest.mark.parametrize("planted", ["open to others", "a link", "a file"])
async def test_a_folder_that_is_not_ones_own_is_not_used(crowd: _Crowd, tmp_path: Path, planted: str) -> None:
    folder = crowd.folder / "workers" / crowd.address.replace(":", "_")
    folder.parent.mkdir(parents=True)
    if planted == "open to others":
        folder.mkdir()
        folder.chmod(0o770)
    elif planted == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.write_text("")
    await crowd.one(3)
    assert await crowd.things() == {None: 3}
    assert not list((tmp_path / "elsewhere").glob("*"))


async def test_sockets_are_ones_own_and_the_path_may_be_long(crowd: _Crowd) -> None:
    crowd.folder /= "a" * 150
    await crowd.one(1)
    await crowd.one(2)
    assert await crowd.things() == {"0": 1, "1": 2}
    sockets = list(crowd.folder.rglob("*.sock"))
    assert [path.stat().st_mode & 0o777 for path in sockets] == [0o600, 0o600]
    assert {path.parent.stat().st_mode & 0o777 for path in sockets} == {0o700}


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_all_addresses_are_both_kinds(tmp_path: Path) -> None:
    port = free_port()
    async with Listener(f"[::]:{port}", CollectorRegistry(), lambda: None), aiohttp.ClientSession() as http:
        for host in ("127.0.0.1", "[::1]"):
            async with http.get(f"http://{host}:{port}/readyz") as response:
                assert response.status == 200


@pytest.mark.parametrize("durability", ["journal", "memory", "commit"])
async def test_processes_one_of_which_is_killed(
    crowd: _Crowd, migrated_sqlite_url: str, durability: str
) -> None:
    env = {
        **os.environ,
        "FOREBAY_METRICS_ADDRESS": crowd.address,
        "FOREBAY_JOURNAL_DIR": str(crowd.folder),
        "FOREBAY_DURABILITY": durability,
    }
    running = []

    async def start(steps: int) -> asyncio.subprocess.Process:
        command = (sys.executable, str(_WORKER), migrated_sqlite_url, str(steps))
        made = await asyncio.create_subprocess_exec(*command, env=env, stdout=asyncio.subprocess.PIPE)
        running.append(made)
        assert made.stdout is not None
        async with patience():
            assert await made.stdout.readline() == b"ready\n"
        return made

    async def written() -> dict[str | None, float]:
        async with crowd.http.get(f"http://{crowd.address}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        found = (sample for family in families for sample in family.samples)
        return {
            sample.labels.get("worker"): sample.value
            for sample in found
            if sample.name == "forebay_rows_written_total" and sample.labels["table"] == "steps"
        }

    try:
        first = await start(3)
        assert await written() == {None: 3}
        await start(4)
        assert await written() == {"0": 3, "1": 4}
        assert await crowd.probe() is None
        first.kill()
        await first.wait()

        async def served_by_the_other() -> bool:
            return await written() == {"1": 4}

        await _until(served_by_the_other)
        await start(5)
        assert await written() == {"0": 5, "1": 4}
        assert await crowd.probe() is None
    finally:
        for one in running:
            if one.returncode is None:
                one.kill()
                await one.wait()
