"""Database URLs, in each style that Chainlit's layers take -> SQLAlchemy's, with its connect arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from forebay.database.url_parameters import take_parameters
from forebay.errors import SettingsError

_DRIVERS = {
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "postgres+asyncpg": "postgresql+asyncpg",
    "postgresql+psycopg": "postgresql+asyncpg",
    "postgresql+psycopg_async": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}
_PLACES = ("host", "port", "search_path", "options")  # which server it is, and which schema
_CREDENTIALS = ("user", "password", "dbname")  # libpq takes them in the query too
_ENCODE = "in a password write @ as %40, % as %25, # as %23, / as %2F, ? as %3F and : as %3A"
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
    hosts = url.query.get("host")
    if url.host is None and isinstance(hosts, tuple):
        url = url.set(host=",".join(hosts))
        shown = url.set(drivername=url.get_backend_name(), query={}).render_as_string(hide_password=True)
        return shown.replace(f"[{url.host}]", str(url.host))  # it is no IPv6 address
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
    text = text.strip()
    _refuse_stray(text)
    try:
        url = sa.make_url(_spread(text))
    except (ArgumentError, ValueError):
        raise SettingsError(f"FOREBAY_DATABASE_URL is not a URL; it takes {_STYLES}; {_ENCODE}") from None
    driver = _DRIVERS.get(url.drivername.lower())
    if driver is None:
        raise SettingsError(f"FOREBAY_DATABASE_URL: {url.drivername} is not supported; it takes {_STYLES}")
    url = url.set(drivername=driver)
    return _with_parameters(url, with_password="password=" in text) if is_postgres(url) else (url, {})


# libpq's list of hosts: SQLAlchemy takes them from the query.
_HOSTS = re.compile(
    r"(?P<begin>postgres[^:]*://)(?P<who>[^@/?]*@)?(?P<hosts>[^@/?]*,[^@/?]*)(?P<path>/[^?]*)?(\?(?P<query>.*))?"
)


def _spread(text: str) -> str:
    found = _HOSTS.fullmatch(text)
    if found is None:
        return text
    parts = [f"host={_with_port(host)}" for host in found["hosts"].split(",")]
    query = "&".join([*parts, *filter(None, [found["query"]])])
    return f"{found['begin']}{found['who'] or ''}{found['path'] or '/'}?{query}"


def _with_port(host: str) -> str:
    return host if re.search(r":[0-9]+$", host) else f"{host}:5432"


def _refuse_stray(text: str) -> None:
    """Refuse a second `@`: what follows the first would be taken for the host, and be shown as such.

    It is part of the password, or of a value of the query, and has to be written `%40` in either.
    """
    if not text.lower().startswith("sqlite") and text.count("@") > 1:
        raise SettingsError(f"FOREBAY_DATABASE_URL has more than one @; {_ENCODE}")


def _with_parameters(url: sa.URL, *, with_password: bool) -> tuple[sa.URL, dict[str, Any]]:
    query, arguments = take_parameters(_credentials_out(url), with_password=with_password)
    user, password, database = (str(url.query[name]) if name in url.query else None for name in _CREDENTIALS)
    return url.set(query=query, username=user, password=password, database=database), arguments


def _credentials_out(url: sa.URL) -> dict[str, Any]:
    return {name: value for name, value in url.query.items() if name not in _CREDENTIALS}


def is_postgres(url: sa.URL) -> bool:
    """Whether the URL is PostgreSQL's."""
    return url.get_backend_name() == "postgresql"


def in_memory(url: sa.URL) -> bool:
    """Whether the URL is of a SQLite database without a file, which lives in one connection."""
    return not is_postgres(url) and (
        url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    )
