"""What a Chainlit app's own data layer says: the URL, the settings and the storage that commands take from it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import click

from forebay.errors import ForebayError, StorageError
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from chainlit.data.storage_clients.base import BaseStorageClient

    from forebay.doctor.database import Target
    from forebay.settings import Settings


@dataclass(frozen=True)
class Application:
    """How a command reaches what an app reaches. `storage` makes its client; `is_forebays`: whether its layer is."""

    target: Target
    storage: Callable[[], Any]
    is_forebays: bool = True

    @property
    def settings(self) -> Settings:
        """The settings that its layer runs with, or the environment's."""
        return self.target.settings

    def client(self, whatfor: str) -> BaseStorageClient:
        """The storage's client, `whatfor` is said where there is none. Raises StorageError then."""
        client: BaseStorageClient | None = self.storage()
        if client is None:
            why = "FOREBAY_STORAGE=none"
            if not self.is_forebays:
                why = "the app's SQLAlchemyDataLayer has no storage_provider"
            raise StorageError(f"{why}: there is no storage {whatfor}")
        return client


def application_of(app: Path | None, url: str | None = None) -> Application:
    """The app's in this file, or what the environment says; a URL that was given goes before either.

    Raises ClickException for an app that can't be loaded, or whose data layer is neither forebay's nor Chainlit's
    SQLAlchemyDataLayer.
    """
    from forebay.doctor.database import Target
    from forebay.doctor.surroundings import configured_client
    from forebay.settings import Settings

    if app is not None:
        return _of_app(app, url)
    settings = Settings()
    return Application(Target(url or settings.database_url, settings), lambda: configured_client(settings))


def settings_of(app: Path | None) -> Settings:
    """The settings alone."""
    from forebay.settings import Settings

    return Settings() if app is None else application_of(app).settings


def _of_app(app: Path, url: str | None) -> Application:
    from chainlit.data.sql_alchemy import SQLAlchemyDataLayer

    from forebay.doctor.database import Target
    from forebay.layer.data_layer import ForebayDataLayer
    from forebay.settings import Settings

    with _remembering(SQLAlchemyDataLayer) as given:
        layer = layer_made_by(app)
    if isinstance(layer, ForebayDataLayer):
        arguments = layer.connect_args or {}
        target = Target(url or layer.conninfo, layer.settings, arguments, layer.ssl_require)
        return Application(target, lambda: layer.storage_provider)
    if isinstance(layer, SQLAlchemyDataLayer):
        said = given[layer]
        # Its own way to demand TLS checks no certificate; forebay's, which is to take its place, does.
        arguments = {} if said.get("ssl_require") else dict(said.get("connect_args") or {})
        target = Target(url or said["conninfo"], Settings(), arguments, bool(said.get("ssl_require")))
        return Application(target, lambda: layer.storage_provider, is_forebays=False)
    raise click.ClickException(_not_a_layer(app, layer))


def _not_a_layer(app: Path, layer: Any) -> str:
    if layer is not None:
        return f"{app} makes a {type(layer).__name__}, not a ForebayDataLayer"
    said = f"{app} makes no data layer; its @cl.data_layer must return a ForebayDataLayer"
    if os.environ.get("DATABASE_URL"):  # as Chainlit decides
        said += (
            ". Chainlit takes its official layer without a word, since DATABASE_URL is set;"
            " `forebay import` brings along what is in that one's tables"
        )
    return said


def layer_made_by(app: Path) -> Any:
    """What the app's @cl.data_layer returns. Raises ClickException for an app that can't be loaded."""
    from chainlit.config import config, load_module

    try:
        load_module(str(app))
        return config.code.data_layer() if config.code.data_layer else None
    except ForebayError:
        raise
    except Exception as failed:  # whatever an app raises when it is loaded
        said = visible(f"{type(failed).__name__}: {failed}")
        raise click.ClickException(f"{app} can't be loaded ({said})") from None


@contextmanager
def _remembering(kind: type) -> Iterator[dict[Any, dict[str, Any]]]:
    """What each layer of this kind is made with, which it does not keep."""
    given: dict[Any, dict[str, Any]] = {}
    make = inspect.getattr_static(kind, "__init__")

    @functools.wraps(make)
    def remember(self: Any, *arguments: Any, **named: Any) -> None:
        given[self] = inspect.signature(make).bind(self, *arguments, **named).arguments
        make(self, *arguments, **named)

    with patch.object(kind, "__init__", remember):
        yield given
