"""Google Cloud Storage, also where no key lies: Chainlit's client, whose URLs the machine's role may sign too."""

from __future__ import annotations

import threading
from typing import Any

from chainlit.data.storage_clients.base import storage_expiry_time
from chainlit.data.storage_clients.gcs import GCSStorageClient
from google.auth import credentials
from google.auth.transport.requests import Request

from forebay.errors import StorageError
from forebay.primitives import threads


class GoogleStorageClient(GCSStorageClient):
    """Chainlit's client, with a browser's disposition, and signing by Google where the credentials hold no key.

    That needs the role Service Account Token Creator of the service account on itself.
    """

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self._refreshing = threading.Lock()

    def sync_get_read_url(self, object_key: str) -> str:
        """A signed URL."""
        blob = self.bucket.blob(object_key)
        url: str = blob.generate_signed_url(
            version="v4", expiration=storage_expiry_time, method="GET", **self._signing()
        )
        return url

    def _signing(self) -> dict[str, str]:
        """What signs: nothing more where the credentials do, else their account, by Google's service."""
        own = self.client._credentials
        if isinstance(own, credentials.Signing):
            return {}
        with self._refreshing:
            if not own.valid:
                own.refresh(Request())
        account = getattr(own, "service_account_email", None)
        if not account:
            raise StorageError("a person's credentials sign no URLs; take a service account's")
        return {"service_account_email": account, "access_token": own.token}

    async def upload_file(
        self,
        object_key: str,
        data: bytes | str,
        mime: str = "application/octet-stream",
        overwrite: bool = True,
        content_disposition: str | None = None,
    ) -> dict[str, Any]:
        """Store it. The URL is the object's own, which opens it for whom the bucket is open to."""
        blob = self.bucket.blob(object_key)
        blob.content_disposition = content_disposition
        content = data.encode("utf-8", "replace") if isinstance(data, str) else data
        only_new = {} if overwrite else {"if_generation_match": 0}
        await threads.run(lambda: blob.upload_from_string(content, content_type=mime, **only_new))
        return {"object_key": object_key, "url": blob.public_url}
