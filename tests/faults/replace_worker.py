"""A process that replaces an element's content; run by `test_replaced_contents`.

`python -m tests.faults.replace_worker URL FOLDER WHEN`: it kills itself `stored`, when the second content's row is in
the database and the first content has not been deleted; `acknowledged`, when the database has not got the second row
yet; or `uploading`, before its one content, named as the environment's CONTENT, is in the storage.
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

THREAD, ELEMENT = (str(uuid.UUID(int=number)) for number in (1, 2))


def an_element(name: str, content: str) -> File:
    """The one element, under a name."""
    return File(id=ELEMENT, thread_id=THREAD, for_id=THREAD, name=name, content=content)


class DeadlyStorage(LocalStorageClient):
    """Never stores anything."""

    @override
    async def upload_path(self, object_key: str, path: Path, mime: str) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


async def main(url: str, folder: Path, when: str) -> None:
    """See above."""
    init_http_context()
    make = DeadlyStorage if when == "uploading" else LocalStorageClient
    # Nothing leaves but by a flush, or for a reader.
    settings = Settings(durability="journal", journal_dir=folder / "journal", linger=10)
    layer = ForebayDataLayer(url, storage_provider=make(folder / "files"), settings=settings)
    await layer.update_thread(THREAD, name="A thread")
    await layer.flush()
    if when == "uploading":
        name, content = os.environ["CONTENT"].split()
        await layer.create_element(an_element(name, content))
        return
    await layer.create_element(an_element("old", "old"))
    await layer.flush()
    await layer.create_element(an_element("new", "new"))
    if when == "stored":
        await layer.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
