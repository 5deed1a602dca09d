"""Which storage is configured, in Chainlit's own variables or in forebay's settings."""

from __future__ import annotations

from collections.abc import Callable

from chainlit.data.storage_clients.base import BaseStorageClient

from forebay.attachments.folder import LocalStorageClient
from forebay.errors import SettingsError
from forebay.settings import ChainlitVariables, Settings


def configured_storage(
    settings: Settings, variables: ChainlitVariables | None = None
) -> BaseStorageClient | None:
    """The storage client that the settings ask for; None with `storage=none`.

    With `auto` it is the one that Chainlit's own layer would take, or else the folder. Raises SettingsError for
    variables that name none or several, and where a package is missing.
    """
    if settings.storage == "none":
        return None
    named = variables if variables is not None else ChainlitVariables()
    makers = [maker for kind, maker in _CLOUDS if settings.storage == "auto" and kind(named)]
    if len(makers) > 1:
        raise SettingsError(
            "several storages are configured (APP_AWS_…, APP_GCS_…, APP_AZURE_…): keep the variables of one, or"
            " set FOREBAY_STORAGE=folder"
        )
    if not makers:
        return LocalStorageClient(settings.storage_dir)
    if not named.bucket_name:
        raise SettingsError("BUCKET_NAME: it is missing; set it, or FOREBAY_STORAGE=folder")
    try:
        return makers[0](named)
    except ImportError as error:
        package = _PACKAGES.get((error.name or "").partition(".")[0], error.name)
        raise SettingsError(
            f"the configured storage needs the package {package}: install it, or set FOREBAY_STORAGE=folder"
        ) from None


_PACKAGES = {
    "azure": "azure-storage-blob and aiohttp",
    "google": "google-cloud-storage",
}


def _s3(named: ChainlitVariables) -> BaseStorageClient:
    from chainlit.data.storage_clients.s3 import S3StorageClient

    return S3StorageClient(
        bucket=named.bucket_name or "",
        region_name=named.app_aws_region,
        aws_access_key_id=named.app_aws_access_key,
        aws_secret_access_key=named.app_aws_secret_key,
        endpoint_url=named.dev_aws_endpoint,
    )


def _gcs(named: ChainlitVariables) -> BaseStorageClient:
    from chainlit.data.storage_clients.gcs import GCSStorageClient

    return GCSStorageClient(
        bucket_name=named.bucket_name or "",
        project_id=named.app_gcs_project_id,
        client_email=named.app_gcs_client_email,
        private_key=named.app_gcs_private_key,
    )


def _azure(named: ChainlitVariables) -> BaseStorageClient:
    from chainlit.data.storage_clients.azure_blob import AzureBlobStorageClient

    return AzureBlobStorageClient(
        container_name=named.bucket_name or "",
        storage_account=named.app_azure_storage_account or "",
        storage_key=named.app_azure_storage_access_key or "",
    )


# As `chainlit.data.get_data_layer` tells them.
_CLOUDS: tuple[
    tuple[Callable[[ChainlitVariables], bool], Callable[[ChainlitVariables], BaseStorageClient]], ...
] = (
    (lambda named: bool(named.app_aws_access_key and named.app_aws_secret_key and named.app_aws_region), _s3),
    (lambda named: bool(named.app_gcs_project_id), _gcs),
    (lambda named: bool(named.app_azure_storage_account and named.app_azure_storage_access_key), _azure),
)


def takes_files(client: BaseStorageClient) -> bool:
    """Whether `upload_file` takes an open file too, so that the content need not be in memory.

    boto3 does. Google's client wants bytes, and Azure's would read the file in the event loop.
    """
    kind = type(client)
    return (kind.__module__, kind.__name__) == ("chainlit.data.storage_clients.s3", "S3StorageClient")
