"""Database URLs, in each style that Chainlit's layers take -> SQLAlchemy's, with its connect arguments."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from forebay.errors import SettingsError

_DRIVERS = {
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}
# What SQLAlchemy and asyncpg take from a PostgreSQL URL. SQLite's file parameters are SQLite's to check.
_PARAMETERS = frozenset({"host", "port", "ssl"})
_NUMBERS: dict[str, Callable[[str], float]] = {
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "prepared_statement_cache_size": int,
}
_PLACES = ("host", "port", "search_path", "options")  # which server it is, and which schema
_VERIFYING = ("verify-ca", "verify-full")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_STYLES = "postgresql://user:password@host:port/database or sqlite:///path/to/file"


def parse_url(text: str | None, variable: str = "FOREBAY_DATABASE_URL") -> tuple[sa.URL, dict[str, Any]]:
    """A URL as SQLAlchemy takes it, and the connect arguments that libpq's parameters in it stand for.

    Raises SettingsError with the variable's name and without the URL, which may hold a password.
    """
    try:
        return _parse(text)
    except SettingsError as wrong:
        raise SettingsError(str(wrong).replace("FOREBAY_DATABASE_URL", variable, 1)) from None


def location_of(url: sa.URL) -> str:
    """Where a database is, without the password."""
    return url.set(drivername=url.get_backend_name(), query={}).render_as_string(hide_password=True)


def label_of(url: sa.URL, arguments: Mapping[str, Any]) -> str:
    """Where a database is, in full, without the password: also the host, the schema and the options of the query.

    `arguments` are the driver's. Two URLs of one database may have different labels, but no two databases one.
    """
    given = {**url.query, **(arguments.get("server_settings") or {})}
    query = {name: given[name] for name in _PLACES if name in given} if is_postgres(url) else {}
    label = url.set(drivername=url.get_backend_name(), query=query)
    return label.render_as_string(hide_password=True)


def _parse(text: str | None) -> tuple[sa.URL, dict[str, Any]]:
    if not text:
        raise SettingsError(f"FOREBAY_DATABASE_URL is not set, nor DATABASE_URL; it takes {_STYLES}")
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise SettingsError(f"FOREBAY_DATABASE_URL is not a URL; it takes {_STYLES}") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise SettingsError(f"FOREBAY_DATABASE_URL: {url.drivername} is not supported; it takes {_STYLES}")
    url = url.set(drivername=driver)
    return _libpq_parameters(url) if is_postgres(url) else (url, {})


def is_postgres(url: sa.URL) -> bool:
    """Whether the URL is PostgreSQL's."""
    return url.get_backend_name() == "postgresql"


def in_memory(url: sa.URL) -> bool:
    """Whether the URL is of a SQLite database without a file, which lives in one connection."""
    return not is_postgres(url) and (
        url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    )


def _libpq_parameters(url: sa.URL) -> tuple[sa.URL, dict[str, Any]]:
    query = dict(url.query)
    arguments = _tls(query) | _numbers(query)
    settings = {
        name: query.pop(name) for name in ("application_name", "options", "search_path") if name in query
    }
    if settings:
        arguments["server_settings"] = settings
    unknown = sorted(query.keys() - _PARAMETERS)
    if unknown:
        raise SettingsError(f"FOREBAY_DATABASE_URL: unknown parameter {', '.join(unknown)}")
    return url.set(query=query), arguments


def _tls(query: dict[str, Any]) -> dict[str, Any]:
    """What `sslmode` and `sslrootcert` say; they are taken out of the query."""
    mode, authority = query.pop("sslmode", None), query.pop("sslrootcert", None)
    if mode is not None and mode not in _SSL_MODES:
        raise SettingsError(f"FOREBAY_DATABASE_URL: sslmode takes one of {', '.join(_SSL_MODES)}")
    if authority is None:
        return {"ssl": mode} if mode else {}
    if mode not in _VERIFYING:
        raise SettingsError(
            f"FOREBAY_DATABASE_URL: sslrootcert needs sslmode={' or sslmode='.join(_VERIFYING)},"
            " or the certificate would not be checked"
        )
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or type(error).__name__
        raise SettingsError(
            f"FOREBAY_DATABASE_URL: sslrootcert names no file of certificates ({reason})"
        ) from None
    context.check_hostname = mode == "verify-full"
    return {"ssl": context}


def _numbers(query: dict[str, Any]) -> dict[str, Any]:
    """asyncpg's parameters that are numbers; they are taken out of the query."""
    found: dict[str, Any] = {}
    for name, number in _NUMBERS.items():
        if name in query:
            try:
                found[name] = number(query.pop(name))
            except (TypeError, ValueError):
                raise SettingsError(f"FOREBAY_DATABASE_URL: {name} takes a number") from None
    return found


def tls_context(*, verify: bool) -> ssl.SSLContext:
    """A context that demands TLS; `verify` also checks the server's certificate and host name."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
