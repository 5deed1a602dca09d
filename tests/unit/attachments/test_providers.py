"""Which storage is taken: Chainlit's variables, forebay's settings, and what is said when they are wrong."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from chainlit.data.storage_clients.s3 import S3StorageClient

from forebay import LocalStorageClient, Settings, SettingsError, StorageError
from forebay.attachments.access import access
from forebay.attachments.providers import configured_storage, takes_files
from forebay.settings import ChainlitVariables
from tests.support.storage import MemoryStorage

_S3 = {"app_aws_region": "us-east-1", "app_aws_access_key": "key", "app_aws_secret_key": "hunter2"}
_GCS = {"app_gcs_project_id": "project"}
_AZURE = {"app_azure_storage_account": "account", "app_azure_storage_access_key": "hunter2"}


def _configured(named: dict[str, str], settings: Settings | None = None) -> Any:
    return configured_storage(settings or Settings(), ChainlitVariables(**named))  # type: ignore[arg-type]


def test_without_anything_it_is_the_folder(tmp_path: Path) -> None:
    client = _configured({}, Settings(storage_dir=tmp_path / "files"))
    assert isinstance(client, LocalStorageClient)
    assert client.folder == tmp_path / "files"
    assert not takes_files(client)


def test_the_folder_is_in_chainlits_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAINLIT_APP_ROOT", str(tmp_path))
    assert Settings().storage_dir == tmp_path / ".forebay" / "files"


def test_chainlits_variables_name_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"bucket_name": "bucket", **_S3}.items():
        monkeypatch.setenv(name.upper(), value)
    client = configured_storage(Settings())
    assert isinstance(client, S3StorageClient)
    assert client.bucket == "bucket"
    assert takes_files(client)


def test_a_setting_comes_before_them(tmp_path: Path) -> None:
    assert isinstance(
        _configured({"bucket_name": "b", **_S3}, Settings(storage="folder")), LocalStorageClient
    )
    assert _configured({"bucket_name": "b", **_S3}, Settings(storage="none")) is None


@pytest.mark.parametrize("missing", [*_S3])
def test_half_of_the_variables_are_none(missing: str) -> None:
    named = {name: value for name, value in _S3.items() if name != missing}
    assert isinstance(_configured({"bucket_name": "b", **named}), LocalStorageClient)


def test_two_storages_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"several.*FOREBAY_STORAGE=folder") as refused:
        _configured({"bucket_name": "b", **_S3, **_GCS})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("named", [_S3, _GCS, _AZURE], ids=["s3", "gcs", "azure"])
def test_a_bucket_without_a_name_is_refused(named: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="BUCKET_NAME"):
        _configured(named)


@pytest.mark.parametrize(
    ("named", "module", "package"),
    [
        (_S3, "boto3", "boto3"),
        (_GCS, "google", "google-cloud-storage"),
        (_AZURE, "azure", "azure-storage-blob"),
    ],
    ids=["s3", "gcs", "azure"],
)
def test_a_missing_package_is_named(
    named: dict[str, str], module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.startswith(("chainlit.data.storage_clients.", module)) and not name.endswith(".base"):
            monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def without(name: str, *rest: Any, **others: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=f"needs the package {package}"):
        _configured({"bucket_name": "b", **named})


def test_a_client_that_lists_nothing_says_so() -> None:
    with pytest.raises(StorageError, match="MemoryStorage can't be listed"):
        access(MemoryStorage()).listed()


def test_variables_keep_their_secrets() -> None:
    assert "hunter2" not in repr(ChainlitVariables(**_S3, **_AZURE))  # type: ignore[arg-type]
