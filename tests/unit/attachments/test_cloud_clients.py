"""Google's and Azure's storage without a key: who signs, and what is sent. Their packages are stood in for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from forebay.errors import StorageError


def _stand_in(monkeypatch: pytest.MonkeyPatch, modules: dict[str, dict[str, Any]]) -> None:
    for name, content in modules.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(autouse=True)
def _imported_anew() -> Iterator[None]:
    """What is imported with the stand-ins is no other test's."""
    _forget_clients()
    yield
    _forget_clients()


def _forget_clients() -> None:
    for name in ("gcs", "azure_blob"):
        sys.modules.pop(f"chainlit.data.storage_clients.{name}", None)
    for name in ("google_storage", "azure_storage"):
        sys.modules.pop(f"forebay.attachments.{name}", None)


class _Signing:
    """Credentials that hold a key."""


class _ServiceAccount(_Signing):
    @classmethod
    def from_service_account_info(cls, _info: Any) -> _ServiceAccount:
        return cls()


class _Role:
    """Credentials that hold none."""

    def __init__(self, account: str | None = "me@project") -> None:
        self.valid, self.token, self.service_account_email = False, "", account

    def refresh(self, request: Any) -> None:
        self.valid, self.token = True, "fresh"


class _Blob:
    def __init__(self, name: str, calls: list[Any]) -> None:
        self.public_url, self.content_disposition = f"https://g/{name}", None
        self._calls = calls

    def generate_signed_url(self, **arguments: Any) -> str:
        self._calls.append(arguments)
        return "signed"

    def upload_from_string(self, content: bytes, **arguments: Any) -> None:
        self._calls.append((content, self.content_disposition, arguments))


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """Makes the client on a bucket in memory, for whom these credentials are found; and what was asked of it."""
    calls: list[Any] = []
    found: list[Any] = []

    def default(scopes: Any) -> tuple[Any, str]:
        calls.append(scopes)
        return found[-1], "project"

    class Client:
        def __init__(self, project: Any, credentials: Any) -> None:
            calls.append((project, credentials))

        def bucket(self, name: str) -> Any:
            return SimpleNamespace(blob=lambda key: _Blob(key, calls))

    credentials = SimpleNamespace(Signing=_Signing)
    _stand_in(
        monkeypatch,
        {
            "google": {},
            "google.auth": {"default": default, "credentials": credentials},
            "google.auth.transport": {},
            "google.auth.transport.requests": {"Request": object},
            "google.cloud": {"storage": SimpleNamespace(Client=Client)},
            "google.oauth2": {"service_account": SimpleNamespace(Credentials=_ServiceAccount)},
        },
    )
    from forebay.attachments.google_storage import GoogleStorageClient

    def make(credentials: Any, **named: Any) -> Any:
        found.append(credentials)
        return GoogleStorageClient(bucket_name="b", **named)

    return make, calls


async def test_google_signs_for_who_holds_no_key(google: Any) -> None:
    make, calls = google
    role = _Role()
    client = make(role)
    assert calls == [("https://www.googleapis.com/auth/cloud-platform",), ("project", role)]
    assert await client.get_read_url("key") == "signed"
    assert (calls[-1]["service_account_email"], calls[-1]["access_token"]) == ("me@project", "fresh")


async def test_who_holds_a_key_signs_without_google(google: Any) -> None:
    make, calls = google
    await make(_Signing()).get_read_url("key")
    assert "access_token" not in calls[-1]
    account = {"project_id": "mine", "client_email": "me@mine", "private_key": "k"}
    await make(None, **account).get_read_url("key")
    assert (calls[-2][0], "access_token" in calls[-1]) == ("mine", False)


async def test_a_person_signs_no_urls(google: Any) -> None:
    make, _ = google
    with pytest.raises(StorageError, match="service account"):
        await make(_Role(account=None)).get_read_url("key")


async def test_google_is_told_what_browsers_may_show(google: Any) -> None:
    make, calls = google
    stored = await make(_Role()).upload_file("k", "<b>", "text/html", False, "attachment")
    assert stored == {"object_key": "k", "url": "https://g/k"}
    assert calls[-1] == (b"<b>", "attachment", {"content_type": "text/html", "if_generation_match": 0})


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> tuple[type[Any], list[Any]]:
    """The client's class, and what was asked of Azure."""
    calls: list[Any] = []

    class Service:
        def __init__(self, url: str, credential: Any) -> None:
            self.url, self.credential = url, credential

        @classmethod
        def from_connection_string(cls, text: str) -> Any:
            return cls(text, None)

        def get_container_client(self, name: str) -> Any:
            return SimpleNamespace(
                get_blob_client=lambda key: SimpleNamespace(url=f"https://a/{key}"), close=self.close
            )

        async def get_user_delegation_key(self, start: datetime, end: datetime) -> str:
            calls.append(end - start)
            return f"delegated {len(calls)}"

        async def close(self) -> None:
            calls.append("closed")

    def sas(**arguments: Any) -> str:
        return str(arguments.get("account_key") or arguments["user_delegation_key"])

    blob = {"BlobSasPermissions": dict, "generate_blob_sas": sas, "ContentSettings": dict}
    identity = {"DefaultAzureCredential": lambda: Service("identity", None)}
    _stand_in(
        monkeypatch,
        {
            "azure": {},
            "azure.storage": {},
            "azure.storage.blob": blob,
            "azure.storage.blob.aio": {"BlobServiceClient": Service},
            "azure.identity": {},
            "azure.identity.aio": identity,
        },
    )
    from forebay.attachments.azure_storage import AzureStorageClient

    return AzureStorageClient, calls


async def test_azure_gives_an_identity_a_key_for_a_day(azure: Any) -> None:
    kind, calls = azure
    client = kind("container", "account", None)
    assert client.service_client.url == "https://account.blob.core.windows.net"
    assert await client.get_read_url("key") == "https://a/key?delegated 1"
    assert await client.get_read_url("other") == "https://a/other?delegated 1"
    assert calls == [timedelta(days=1, minutes=15)]
    client._delegated = ("old", datetime.now().astimezone() + timedelta(minutes=1))
    assert await client.get_read_url("key") == "https://a/key?delegated 2"
    await client.close()
    assert calls[2:] == ["closed"] * 3


async def test_azure_signs_with_the_accounts_key(azure: Any) -> None:
    kind, _ = azure
    assert await kind("container", "account", "the key").get_read_url("key") == "https://a/key?the key"
