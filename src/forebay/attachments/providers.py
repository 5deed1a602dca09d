"""Which storage is configured, in Chainlit's own variables or in forebay's settings.

A bucket that is named and not complete is an error: content must not go to the container's disk unnoticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chainlit.data.storage_clients.base import BaseStorageClient

from forebay.attachments.access import access
from forebay.attachments.folder import LocalStorageClient
from forebay.errors import SettingsError
from forebay.settings import ChainlitVariables, Settings

_FOLDER = "folder"
_OR_FOLDER = ", or FOREBAY_STORAGE=folder"


def configured_storage(
    settings: Settings, variables: ChainlitVariables | None = None
) -> BaseStorageClient | None:
    """The storage client that the settings ask for; None with `storage=none`.

    With `auto` it is the one whose variables of Chainlit's are set, or else the folder. Raises SettingsError, which
    names the variable that is missing, or the package.
    """
    if settings.storage == "none":
        return None
    named = variables if variables is not None else ChainlitVariables()
    kind = _meant(named) if settings.storage == "auto" else settings.storage
    return _made(kind, named, settings.storage_dir)


def former_storage(
    settings: Settings, current: BaseStorageClient | None, variables: ChainlitVariables | None = None
) -> BaseStorageClient | None:
    """The client of the storage before `current`; None where there was none.

    Its variables are Chainlit's with FOREBAY_FORMER_ before their names, where they differ. Raises SettingsError.
    """
    if settings.former_storage == "none" or current is None:
        return None
    named = variables if variables is not None else _former_variables()
    try:
        former = _made(settings.former_storage, named, settings.former_storage_dir or settings.storage_dir)
    except SettingsError as error:
        raise SettingsError(f"FOREBAY_FORMER_STORAGE={settings.former_storage}: {error}") from None
    if access(former).place == access(current).place:
        raise SettingsError(
            "FOREBAY_FORMER_STORAGE is the storage that is in use; set FOREBAY_STORAGE to the new one, or what differs"
            " with FOREBAY_FORMER_ before its name, as in FOREBAY_FORMER_BUCKET_NAME"
        )
    return former


def _former_variables() -> ChainlitVariables:
    """Chainlit's variables, and over them those with FOREBAY_FORMER_; a cloud's keys are taken together."""
    now, former = ChainlitVariables(), ChainlitVariables(_env_prefix="FOREBAY_FORMER_")
    groups = (("bucket_name",), *_VARIABLES.values())
    differ = [group for group in groups if any(getattr(former, name) for name in group)]
    return now.model_copy(update={name: getattr(former, name) for group in differ for name in group})


def _meant(named: ChainlitVariables) -> str:
    """The storage that the variables speak of: as Chainlit tells them, or else whichever one is begun with."""
    complete = [kind for kind, is_complete in _COMPLETE.items() if is_complete(named)]
    begun = [kind for kind, names in _VARIABLES.items() if any(getattr(named, name) for name in names)]
    found = complete or begun
    if len(found) > 1:
        raise SettingsError(
            "several storages are configured (APP_AWS_…, APP_GCS_…, APP_AZURE_…): keep the variables of one, or say"
            " which is meant, as in FOREBAY_STORAGE=s3 (or gcs, azure, folder)"
        )
    if not found and named.bucket_name:
        raise SettingsError(
            "BUCKET_NAME names a bucket, and nothing says of which cloud: set APP_AWS_REGION, APP_GCS_PROJECT_ID or"
            " APP_AZURE_STORAGE_ACCOUNT with their keys; or FOREBAY_STORAGE=s3, gcs or azure, where the machine's own"
            f" role lets it in{_OR_FOLDER}"
        )
    return found[0] if found else _FOLDER


def _made(kind: str, named: ChainlitVariables, folder: Path) -> BaseStorageClient:
    if kind == _FOLDER:
        return LocalStorageClient(folder)
    _require(named, "bucket_name")
    try:
        return _MAKERS[kind](named)
    except ImportError as error:
        package = _PACKAGES.get((error.name or "").partition(".")[0], error.name or str(error))
        raise SettingsError(
            f"the configured storage needs the package {package}: install it{_OR_FOLDER}"
        ) from None


def _require(named: ChainlitVariables, name: str, why: str = "") -> None:
    if not getattr(named, name):
        raise SettingsError(f"{name.upper()}: it is missing{why}; set it{_OR_FOLDER}")


def _require_both(named: ChainlitVariables, one: str, other: str) -> None:
    """A key has two parts; without both, the machine's own role is taken."""
    for name, given in ((one, other), (other, one)):
        if getattr(named, given):
            _require(named, name, f", while {given.upper()} is set")


_PACKAGES = {
    "azure": "azure-storage-blob and aiohttp, and without APP_AZURE_STORAGE_ACCESS_KEY also azure-identity",
    "google": "google-cloud-storage",
}


def _s3(named: ChainlitVariables) -> BaseStorageClient:
    """Without keys, boto3 finds its own: a role of the machine, AWS_… variables, a profile."""
    _require_both(named, "app_aws_access_key", "app_aws_secret_key")
    import boto3
    from chainlit.data.storage_clients.s3 import S3StorageClient

    endpoint = named.dev_aws_endpoint or _own_endpoint()
    region = named.app_aws_region or boto3.Session().region_name or ("us-east-1" if endpoint else None)
    if region is None:
        _require(named, "app_aws_region")
    client = S3StorageClient(
        bucket=named.bucket_name or "",
        region_name=region,
        aws_access_key_id=named.app_aws_access_key or None,
        aws_secret_access_key=named.app_aws_secret_key or None,
        endpoint_url=endpoint,
        **_plain(endpoint),
    )
    if not hasattr(client, "client"):  # it has logged why, and gone on
        raise SettingsError("the client of S3 can't be made: look at DEV_AWS_ENDPOINT and APP_AWS_REGION")
    return client


def _own_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _plain(endpoint: str | None) -> dict[str, Any]:
    """Other servers that speak S3 need not know the checksums that newer clients add where nobody asks for them."""
    from botocore.config import Config

    if endpoint is None or "AWS_REQUEST_CHECKSUM_CALCULATION" in os.environ:
        return {}
    required = "when_required"
    try:
        return {
            "config": Config(request_checksum_calculation=required, response_checksum_validation=required)
        }
    except TypeError:  # an older client, which adds none
        return {}


def _gcs(named: ChainlitVariables) -> BaseStorageClient:
    """Without a key, Google's application default credentials are taken."""
    _require_both(named, "app_gcs_client_email", "app_gcs_private_key")
    if named.app_gcs_private_key:
        _require(named, "app_gcs_project_id", ", while APP_GCS_PRIVATE_KEY is set")
    from google.auth.exceptions import DefaultCredentialsError

    from forebay.attachments.google_storage import GoogleStorageClient

    try:
        return GoogleStorageClient(
            bucket_name=named.bucket_name or "",
            project_id=named.app_gcs_project_id or None,
            client_email=named.app_gcs_client_email or None,
            # A console prints it in one line.
            private_key=(named.app_gcs_private_key or "").replace("\\n", "\n") or None,
        )
    except DefaultCredentialsError:
        raise SettingsError(
            "APP_GCS_CLIENT_EMAIL and APP_GCS_PRIVATE_KEY: they are missing, and there are no application default"
            f" credentials; set them, or GOOGLE_APPLICATION_CREDENTIALS{_OR_FOLDER}"
        ) from None
    except ValueError:
        raise SettingsError("APP_GCS_PRIVATE_KEY: it is no private key in PEM form") from None


def _azure(named: ChainlitVariables) -> BaseStorageClient:
    """Without a key, the machine's identity is taken."""
    _require(named, "app_azure_storage_account")
    from forebay.attachments.azure_storage import AzureStorageClient

    try:
        return AzureStorageClient(
            named.bucket_name or "",
            named.app_azure_storage_account or "",
            named.app_azure_storage_access_key or None,
        )
    except ValueError:
        raise SettingsError(
            "the client of Azure can't be made: look at APP_AZURE_STORAGE_ACCOUNT and APP_AZURE_STORAGE_ACCESS_KEY"
        ) from None


_MAKERS: dict[str, Callable[[ChainlitVariables], BaseStorageClient]] = {
    "s3": _s3,
    "gcs": _gcs,
    "azure": _azure,
}
_VARIABLES = {
    "s3": ("app_aws_region", "app_aws_access_key", "app_aws_secret_key", "dev_aws_endpoint"),
    "gcs": ("app_gcs_project_id", "app_gcs_client_email", "app_gcs_private_key"),
    "azure": ("app_azure_storage_account", "app_azure_storage_access_key"),
}
# As `chainlit.data.get_data_layer` tells them.
_COMPLETE: dict[str, Callable[[ChainlitVariables], bool]] = {
    "s3": lambda named: bool(named.app_aws_access_key and named.app_aws_secret_key and named.app_aws_region),
    "gcs": lambda named: bool(named.app_gcs_project_id),
    "azure": lambda named: bool(named.app_azure_storage_account and named.app_azure_storage_access_key),
}


def takes_files(client: BaseStorageClient) -> bool:
    """Whether `upload_file` takes an open file too, so that the content need not be in memory.

    boto3 does. Google's client wants bytes, and Azure's would read the file in the event loop.
    """
    kind = type(client)
    return (kind.__module__, kind.__name__) == ("chainlit.data.storage_clients.s3", "S3StorageClient")
