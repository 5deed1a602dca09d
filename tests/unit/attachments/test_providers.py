"""Which storage is taken: Chainlit's variables, forebay's settings, and what is said when they are wrong."""

from __future__ import annotations

import builtins
import os
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
_GCS_KEY = {**_GCS, "app_gcs_client_email": "me@project", "app_gcs_private_key": "hunter2"}
_AZURE = {"app_azure_storage_account": "account", "app_azure_storage_access_key": "hunter2"}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith(("AWS_", "APP_", "BUCKET_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


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


def _refused(named: dict[str, str], settings: Settings | None = None) -> str:
    with pytest.raises(SettingsError) as refused:
        _configured(named, settings)
    assert "hunter2" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("named", "missing"),
    [
        (_S3, "app_aws_access_key"),
        (_S3, "app_aws_secret_key"),
        (_S3, "app_aws_region"),
        (_GCS_KEY, "app_gcs_private_key"),
        (_GCS_KEY, "app_gcs_client_email"),
        (_GCS_KEY, "app_gcs_project_id"),
        (_AZURE, "app_azure_storage_account"),
        (_AZURE, "app_azure_storage_access_key"),
    ],
)
def test_half_of_the_variables_are_an_error_that_names_the_other_half(
    named: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the container's disk. Azure without a key is asked by identity, whose package is named."""
    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)  # as where it is not installed
    kept = {name: value for name, value in named.items() if name != missing}
    assert missing.upper() in _refused({"bucket_name": "b", **kept})


def test_a_bucket_alone_is_an_error_that_says_how_to_tell_its_cloud() -> None:
    message = _refused({"bucket_name": "b"})
    assert all(way in message for way in ("APP_AWS_REGION", "FOREBAY_STORAGE=s3", "FOREBAY_STORAGE=folder"))


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_kind_without_its_bucket_is_refused(kind: Any) -> None:
    assert "BUCKET_NAME: it is missing" in _refused({}, Settings(storage=kind))
    assert "BUCKET_NAME: it is missing" in _refused({"bucket_name": ""}, Settings(storage=kind))


def test_empty_variables_are_not_set(tmp_path: Path) -> None:
    """As compose files and templates leave them."""
    empty = dict.fromkeys(["bucket_name", *_S3, *_GCS_KEY, *_AZURE], "")
    assert isinstance(_configured(empty, Settings(storage_dir=tmp_path)), LocalStorageClient)


def test_without_keys_s3_is_entered_by_the_machines_own_role(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """boto3's own chain: here, the variables that a platform gives."""
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # which keeps whatever it was given first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the role")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    client = _configured({"bucket_name": "b", "app_aws_region": "eu-central-1"})
    assert isinstance(client, S3StorageClient)
    assert client.client._request_signer._credentials.access_key == "of the role"
    assert client.client.meta.region_name == "eu-central-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    named = _configured({"bucket_name": "b"}, Settings(storage="s3"))
    assert (type(named), named.client.meta.region_name) == (S3StorageClient, "eu-west-1")


@pytest.mark.parametrize("variable", ["DEV_AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_another_server_that_speaks_s3_needs_no_region(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "https://minio.example:9000")
    keys = {name: value for name, value in _S3.items() if name != "app_aws_region"}
    client = _configured({"bucket_name": "b", **keys}, Settings(storage="s3"))
    assert client.client.meta.endpoint_url == "https://minio.example:9000"
    assert client.client.meta.region_name == "us-east-1"
    assert client.client.meta.config.request_checksum_calculation == "when_required"


def test_an_endpoint_that_is_none_is_refused() -> None:
    message = _refused({"bucket_name": "b", **_S3, "dev_aws_endpoint": "minio:hunter2"})
    assert "DEV_AWS_ENDPOINT" in message


def test_the_setting_says_which_of_several_is_meant() -> None:
    client = _configured({"bucket_name": "b", **_S3, **_GCS}, Settings(storage="s3"))
    assert isinstance(client, S3StorageClient)
    begun = {"bucket_name": "b", "app_azure_storage_account": "a"}
    assert isinstance(_configured({**begun, **_S3}), S3StorageClient)  # as Chainlit takes it


def test_two_storages_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"several.*FOREBAY_STORAGE=s3") as refused:
        _configured({"bucket_name": "b", **_S3, **_GCS})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("named", [_S3, _GCS, _AZURE], ids=["s3", "gcs", "azure"])
def test_a_bucket_without_a_name_is_refused(named: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="BUCKET_NAME"):
        _configured(named)


_CLIENTS = ("chainlit.data.storage_clients.", "forebay.attachments.google_", "forebay.attachments.azure_")


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
        if name.startswith((*_CLIENTS, module)) and not name.endswith(".base"):
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
