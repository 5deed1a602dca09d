"""Azure's blob storage, also where no key lies: Chainlit's client, by the machine's identity."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from azure.storage.blob import BlobSasPermissions, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient
from chainlit.data.storage_clients.azure_blob import AzureBlobStorageClient
from chainlit.data.storage_clients.base import storage_expiry_time
from typing_extensions import override

_EARLY = timedelta(minutes=15)  # clocks differ, and Azure refuses what is not valid yet
_KEY_LIFE = timedelta(days=1)


class AzureStorageClient(AzureBlobStorageClient):
    """A container of `storage_account`; without `storage_key` the machine's identity lets in, which
    DefaultAzureCredential finds; it needs the role Storage Blob Data Contributor.
    """

    def __init__(self, container_name: str, storage_account: str, storage_key: str | None) -> None:
        self._identity: Any = None
        self._delegated: tuple[Any, datetime] | None = None
        if storage_key:
            super().__init__(container_name, storage_account, storage_key)
            return
        from azure.identity.aio import DefaultAzureCredential

        self._identity = DefaultAzureCredential()
        self.container_name, self.storage_account, self.storage_key = container_name, storage_account, ""
        self.service_client: Any = BlobServiceClient(
            f"https://{storage_account}.blob.core.windows.net", credential=self._identity
        )
        self.container_client: Any = self.service_client.get_container_client(container_name)

    @override
    async def get_read_url(self, object_key: str) -> str:
        """A signed URL, whatever is in the key."""
        now = datetime.now(UTC)
        token = generate_blob_sas(
            account_name=self.storage_account,
            container_name=self.container_name,
            blob_name=object_key,
            permission=BlobSasPermissions(read=True),
            start=now - _EARLY,
            expiry=now + timedelta(seconds=storage_expiry_time),
            **await self._signing(now),
        )
        return f"{self.container_client.get_blob_client(object_key).url}?{token}"

    async def _signing(self, now: datetime) -> dict[str, Any]:
        """What signs: the account's key, or one that Azure gives to the identity for a day."""
        if self._identity is None:
            return {"account_key": self.storage_key}
        lasts_until = now + timedelta(seconds=storage_expiry_time)
        if self._delegated is None or self._delegated[1] < lasts_until:
            end = max(now + _KEY_LIFE, lasts_until)
            key = await self.service_client.get_user_delegation_key(now - _EARLY, end)
            self._delegated = key, end
        return {"user_delegation_key": self._delegated[0]}

    @override
    async def close(self) -> None:
        """Close the connections."""
        await super().close()
        if self._identity is not None:
            await self._identity.close()
