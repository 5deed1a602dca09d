"""Elements with content, through forebay and through SQLAlchemyDataLayer, with the same storage client.

All elements of a measurement are sent at once, from files of a session, as Chainlit does with uploads. Every
measurement is a process of its own on a database of its own; layers alternate over the rounds. `folder` is
`LocalStorageClient`; `bytes` stands for a cloud: a client that takes bytes and 50 ms, and keeps nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, get_args

import click
from chainlit.config import FILES_DIRECTORY
from chainlit.context import init_http_context
from chainlit.data.base import BaseDataLayer
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer
from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import File
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tests.support.postgres import PostgresServer
from typing_extensions import override

from forebay import ForebayDataLayer, LocalStorageClient, Settings
from forebay.settings import Durability

_RESULTS = Path(__file__).parent / "results" / "elements.json"
_LAYERS = ("forebay", "sqlalchemy")
_STORAGES = ("folder", "bytes")
_LOADS = {"small": (1000, 100_000), "large": (20, 50_000_000)}
_MIB = 2**20


class _Cloud(BaseStorageClient):
    @override
    async def upload_file(
        self,
        object_key: str,
        data: bytes | str,
        mime: str = "application/octet-stream",
        overwrite: bool = True,
        content_disposition: str | None = None,
    ) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"object_key": object_key, "url": f"https://cloud.example/{object_key}"}

    @override
    async def delete_file(self, object_key: str) -> bool:
        return True

    @override
    async def get_read_url(self, object_key: str) -> str:
        return f"https://cloud.example/{object_key}"

    @override
    async def close(self) -> None:
        """There is nothing to close."""


async def _layer(
    name: str, url: str, client: BaseStorageClient, folder: Path, durability: Durability
) -> BaseDataLayer:
    settings = Settings(durability=durability, journal_dir=folder / "journal", auto_migrate=True)
    forebay = ForebayDataLayer(url, storage_provider=client, settings=settings)
    await forebay.execute_sql("SELECT 1", {})  # connects and migrates before the clock starts
    if name == "forebay":
        return forebay
    await forebay.close()
    return SQLAlchemyDataLayer(url.replace("postgresql://", "postgresql+asyncpg://"), storage_provider=client)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _measure(
    name: str, url: str, storage: str, load: str, folder: Path, durability: Durability
) -> dict[str, float]:
    logging.disable(logging.CRITICAL)
    init_http_context()
    number, size = _LOADS[load]
    client = LocalStorageClient(folder / "files") if storage == "folder" else _Cloud()
    layer = await _layer(name, url, client, folder, durability)
    thread_id = str(uuid.uuid4())
    await layer.update_thread(thread_id, name="A chat")
    step_id = str(uuid.uuid4())
    await layer.create_step({"id": step_id, "threadId": thread_id, "type": "user_message", "name": "x"})
    elements = [_element(thread_id, step_id, position, size) for position in range(number)]
    before, started, cpu = _peak_mib(), time.perf_counter(), time.process_time()
    done = await asyncio.gather(*map(layer.create_element, elements), return_exceptions=True)
    if isinstance(layer, ForebayDataLayer):
        await layer.flush()
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = _peak_mib() - before
    thread = await layer.get_thread(thread_id)
    stored = len(thread["elements"] or ()) if thread else 0
    await layer.close()
    return {
        "files_per_second": number / elapsed,
        "mb_per_second": number * size / elapsed / 1e6,
        "cpu_ms_per_file": cpu / number * 1e3,
        "peak_mib": peak,
        "failed": float(sum(isinstance(result, BaseException) for result in done)),
        "stored": float(stored),
        "files": float(number),
    }


def _element(thread_id: str, step_id: str, position: int, size: int) -> File:
    """A session's file, on the disk and out of the process's memory."""
    FILES_DIRECTORY.mkdir(exist_ok=True)
    path = FILES_DIRECTORY / f"{position}.bin"
    with path.open("wb") as file:
        for _ in range(size // 100_000):
            file.write(os.urandom(100_000))
        os.fsync(file.fileno())
    return File(thread_id=thread_id, for_id=step_id, name=path.name, path=str(path), mime="x/y")


def _measure_apart(name: str, url: str, storage: str, load: str, durability: Durability) -> dict[str, float]:
    options = [
        "--layer",
        name,
        "--url",
        url,
        "--storage",
        storage,
        "--load",
        load,
        "--durability",
        durability,
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "loadtests.elements", *options, "--folder", folder],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CHAINLIT_APP_ROOT": folder},
        )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Measurements of each; the median counts.")
@click.option("--durability", type=click.Choice(get_args(Durability)), default="journal", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--save", is_flag=True, help=f"Keep the results in {_RESULTS.name}.")
@click.option("--layer", type=click.Choice(_LAYERS), hidden=True)
@click.option("--url", hidden=True)
@click.option("--storage", type=click.Choice(_STORAGES), hidden=True)
@click.option("--load", type=click.Choice([*_LOADS]), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    rounds: int,
    durability: Durability,
    as_json: bool,
    save: bool,
    layer: str | None,
    url: str | None,
    storage: str | None,
    load: str | None,
    folder: Path | None,
) -> None:
    """Compare the layers' storing of content: 1,000 files of 100 KB, and 20 of 50 MB."""
    if layer and url and storage and load and folder:
        click.echo(json.dumps(asyncio.run(_measure(layer, url, storage, load, folder, durability))))
        return
    kinds = [(load, storage, name) for load in _LOADS for storage in _STORAGES for name in _LAYERS]
    runs: dict[str, list[dict[str, float]]] = {" ".join(kind): [] for kind in kinds}
    console = Console(stderr=True)
    with PostgresServer(durable=True) as server, Progress(console=console) as progress:
        bar = progress.add_task("measuring", total=rounds * len(kinds))
        for _ in range(rounds):
            for load, storage, name in kinds:
                database = server.create_database()
                runs[f"{load} {storage} {name}"].append(
                    _measure_apart(name, database, storage, load, durability)
                )
                progress.advance(bar)
    medians = {
        name: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for name, measured in runs.items()
    }
    report = {
        "command": f"python -m loadtests.elements --durability {durability} --rounds {rounds}",
        "python": platform.python_version(),
        "medians": medians,
        "rounds": runs,
    }
    if save:
        _RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(report))
    else:
        Console().print(_table(medians))


def _table(medians: dict[str, dict[str, float]]) -> Table:
    table = Table(
        "load, storage, layer", "files/s", "MB/s", "CPU a file, ms", "peak memory, MiB", "stored", "of"
    )
    keys = ("files_per_second", "mb_per_second", "cpu_ms_per_file", "peak_mib", "stored", "files")
    for name, values in medians.items():
        table.add_row(name, *(f"{values[key]:,.1f}" for key in keys))
    return table


if __name__ == "__main__":
    main()
