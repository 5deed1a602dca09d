"""Google Cloud Storage, also where no key lies: Chainlit's client, whose URLs the machine's role may sign too."""

from __future__ import annotations

import threading
from typing import Any

from chainlit.data.storage_clients.base import storage_expiry_time
from chainlit.data.storage_clients.gcs import GCSStorageClient
from google.auth import credentials, default
from google.auth.transport.requests import Request
from google.cloud import storage
from typing_extensions import override

from forebay.errors import StorageError
from forebay.primitives import threads

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)  # the storage, and the service that signs


class GoogleStorageClient(GCSStorageClient):
    """Chainlit's client, with a browser's disposition, and signing by Google where the credentials hold no key.

    That needs the role Service Account Token Creator of the service account on itself.
    """

    def __init__(
        self,
        bucket_name: str,
        project_id: str | None = None,
        client_email: str | None = None,
        private_key: str | None = None,
    ) -> None:
        self._role: Any = None  # credentials that hold no key
        self._refreshing = threading.Lock()
        if private_key:
            super().__init__(bucket_name, project_id, client_email, private_key)
            return
        found, project = default(scopes=_SCOPES)
        if not isinstance(found, credentials.Signing):
            self._role = found
        self.client: Any = storage.Client(project=project_id or project, credentials=found)
        self.bucket: Any = self.client.bucket(bucket_name)

    @override
    def sync_get_read_url(self, object_key: str) -> str:
        """A signed URL."""
        blob = self.bucket.blob(object_key)
        url: str = blob.generate_signed_url(
            version="v4", expiration=storage_expiry_time, method="GET", **self._signing()
        )
        return url

    def _signing(self) -> dict[str, str]:
        """What signs: nothing more where the credentials do, else their account, by Google's service."""
        if self._role is None:
            return {}
        with self._refreshing:
            if not self._role.valid:
                self._role.refresh(Request())
        account = getattr(self._role, "service_account_email", None)
        if not account:
            raise StorageError("a person's credentials sign no URLs; take a service account's")
        return {"service_account_email": account, "access_token": self._role.token}

    @override
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
