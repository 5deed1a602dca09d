"""A process that stores elements and says when each call has returned; run by `test_uploads`.

`python -m tests.faults.upload_worker URL FOLDER WHEN`: it kills itself `before` an upload, `after` it and before
its row, or `never`, and then goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from chainlit.context import init_http_context
from chainlit.element import File
from typing_extensions import override

from forebay import ForebayDataLayer, LocalStorageClient, Settings

THREAD = str(uuid.UUID(int=1))


class DeadlyStorage(LocalStorageClient):
    when = "never"

    @override
    async def upload_path(self, object_key: str, path: Path, mime: str) -> dict[str, Any]:
        if self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        stored = await super().upload_path(object_key, path, mime)
        if self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return stored


async def main(url: str, folder: Path, when: str) -> None:
    init_http_context()
    storage = DeadlyStorage(folder / "files")
    settings = Settings(durability="journal", journal_dir=folder / "journal")
    layer = ForebayDataLayer(url, storage_provider=storage, settings=settings)
    await layer.update_thread(THREAD, name="A thread")
    await layer.flush()
    storage.when = when

    async def store_on(number: int) -> None:
        source = folder / f"source-{number}"
        while True:
            element = File(thread_id=THREAD, name="f", path=str(source), for_id=str(uuid.uuid4()))
            source.write_bytes(element.id.encode() * 1000)
            print("begun", element.id, flush=True)  # noqa: T201
            await layer.create_element(element)
            print("ack", element.id, flush=True)  # noqa: T201

    await asyncio.gather(*map(store_on, range(4)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
