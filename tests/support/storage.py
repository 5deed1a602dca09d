"""A storage client in memory, which can be told to fail."""

from __future__ import annotations

from typing import Any

from chainlit.data.storage_clients.base import BaseStorageClient
from typing_extensions import override


class MemoryStorage(BaseStorageClient):
    """Keeps what is uploaded; each URL that it gives is another one. `failing` names the calls that raise."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | str] = {}
        self.mimes: dict[str, str] = {}
        self.dispositions: dict[str, str | None] = {}
        self.signed = 0
        self.failing: set[str] = set()

    @override
    async def upload_file(
        self,
        object_key: str,
        data: bytes | str,
        mime: str = "application/octet-stream",
        overwrite: bool = True,
        content_disposition: str | None = None,
    ) -> dict[str, Any]:
        self._maybe_fail("upload_file")
        self.files[object_key] = data
        self.mimes[object_key] = mime
        self.dispositions[object_key] = content_disposition
        return {"object_key": object_key, "url": f"stored://{object_key}"}

    @override
    async def delete_file(self, object_key: str) -> bool:
        self._maybe_fail("delete_file")
        self.files.pop(object_key, None)
        return True  # as S3 says also of what is not there

    @override
    async def get_read_url(self, object_key: str) -> str:
        self._maybe_fail("get_read_url")
        self.signed += 1
        return f"signed://{object_key}?{self.signed}"

    @override
    async def close(self) -> None:
        self._maybe_fail("close")

    def _maybe_fail(self, name: str) -> None:
        if name in self.failing:
            raise TypeError("the bucket is gone, and with it <secret content>")
