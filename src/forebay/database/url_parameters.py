"""What stands behind the `?` of a PostgreSQL URL: libpq's parameters, and those of consoles and other drivers.

Each is taken, or refused with what to do instead; nothing that is asked for is left out in silence. libpq's
rules: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forebay.database.tls import take_tls
from forebay.errors import SettingsError

_TO_SQLALCHEMY = frozenset({"host", "port"})
_TO_SERVER = ("application_name", "options", "search_path", "statement_timeout", "lock_timeout")
_NUMBERS: dict[str, Callable[[str], float]] = {
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "prepared_statement_cache_size": int,
}
# Nothing here depends on them: libpq's own sockets, a pooler's label, a hint to a library that forebay does not use.
_WITHOUT_EFFECT = frozenset(
    {
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("sslcompression", "sslsni", "supa", "workaround", "uselibpqcompat", "client_encoding"),
    }
)
_ROLES = ("any", "primary", "read-write", "standby", "prefer-standby", "read-only")
_POOL_SIZE = "leave it out, and set FOREBAY_POOL_SIZE"
_POOL_TIMEOUT = "leave it out, and set FOREBAY_STATEMENT_TIMEOUT, half of which is the pool's"
_TRUSTED = "name an authority with sslrootcert and a certificate of your own with sslcert and sslkey"
_INSTEAD = {
    "connection_limit": _POOL_SIZE,
    "pool_size": _POOL_SIZE,
    "max_connections": _POOL_SIZE,
    "max_overflow": _POOL_SIZE,
    "min_connections": "leave it out; connections are opened as they are needed",
    "pool_timeout": _POOL_TIMEOUT,
    "pool_recycle": "leave it out",
    "pool_pre_ping": "leave it out; a connection that was lost is noticed and replaced",
    "socket_timeout": "set FOREBAY_STATEMENT_TIMEOUT",
    "passfile": "set PGPASSFILE",
    "service": "write the service's host, user and database into the URL",
    "servicefile": "write the service's host, user and database into the URL",
    "hostaddr": "write the address as the host",
    "requiressl": "write sslmode=require",
    "sslidentity": _TRUSTED,
    "sslcrldir": "name one file with sslcrl",
    "sslpassword": "give sslkey a file without a password, readable by this user alone",
    "require_auth": "leave it out, and write sslmode=verify-full, so that the server is the right one",
    "requirepeer": "leave it out, and write sslmode=verify-full, so that the server is the right one",
    "replication": "leave it out",
    "krbsrvname": "use a password or a certificate",
    "gsslib": "use a password or a certificate",
}


def take_parameters(
    query: dict[str, Any], *, with_password: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A URL's query -> what of it stays in the URL, and the driver's connect arguments.

    `with_password`: the URL's query holds one, so that a parameter may be a part of it. Raises SettingsError, with the
    parameter's name where it can be none, without its value, and with what to do.
    """
    left = {name: _once(name, value) for name, value in query.items() if name not in _WITHOUT_EFFECT}
    _refuse_unkept(left)
    arguments = (
        _take_role(left) | take_tls(left) | _take_seconds(left) | _take_numbers(left) | _take_pooler(left)
    )
    settings = _take_settings(left)
    if settings:
        arguments["server_settings"] = settings
    unknown = sorted(left.keys() - _TO_SQLALCHEMY)
    if unknown and (
        with_password or not all(map(str.isidentifier, unknown))
    ):  # it may be a part of a password
        raise SettingsError(
            "FOREBAY_DATABASE_URL: a parameter is unknown; in a password write & as %26, = as %3D"
        )
    if unknown:
        raise SettingsError(
            f"FOREBAY_DATABASE_URL: unknown parameter {', '.join(unknown)}; leave it out, or mend its spelling"
        )
    return {name: query[name] for name in left}, arguments


def _once(name: str, value: Any) -> Any:
    if isinstance(value, str) or name in _TO_SQLALCHEMY:
        return value
    raise SettingsError(f"FOREBAY_DATABASE_URL: {name} stands there more than once; leave one")


def _refuse_unkept(left: dict[str, Any]) -> None:
    for name in left.keys() & _INSTEAD.keys():
        raise SettingsError(f"FOREBAY_DATABASE_URL: {name} is not taken here; {_INSTEAD[name]}")
    if left.pop("gssencmode", "prefer") not in ("prefer", "disable"):
        raise SettingsError(
            "FOREBAY_DATABASE_URL: gssencmode=require can't be kept by the driver; use sslmode=verify-full"
        )


def _take_seconds(left: dict[str, Any]) -> dict[str, Any]:
    """libpq's `connect_timeout`, in whole seconds; 0 or less asks for none, and is left to the settings."""
    if "connect_timeout" not in left:
        return {}
    seconds = _number("connect_timeout", left.pop("connect_timeout"), float)
    return {"timeout": seconds} if seconds > 0 else {}


def _take_numbers(left: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(name, left.pop(name), kind) for name, kind in _NUMBERS.items() if name in left}


def _number(name: str, text: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(text)
    except (TypeError, ValueError):
        raise SettingsError(f"FOREBAY_DATABASE_URL: {name} takes a number") from None


def _take_role(left: dict[str, Any]) -> dict[str, Any]:
    """Which of the hosts: forebay writes, so that `any` is a primary too."""
    role = left.pop("target_session_attrs", "any")
    if role not in _ROLES:
        raise SettingsError(f"FOREBAY_DATABASE_URL: target_session_attrs takes one of {', '.join(_ROLES)}")
    return {} if role in ("any", "primary") else {"target_session_attrs": role}


def _take_pooler(left: dict[str, Any]) -> dict[str, Any]:
    """Prisma's `pgbouncer=true`: no statement is prepared for longer than it runs."""
    value = left.pop("pgbouncer", "false").lower()
    if value not in ("true", "false"):
        raise SettingsError("FOREBAY_DATABASE_URL: pgbouncer takes true or false")
    return {"statement_cache_size": 0, "prepared_statement_cache_size": 0} if value == "true" else {}


def _take_settings(left: dict[str, Any]) -> dict[str, str]:
    """What the server is told when a connection opens; `schema` is Prisma's word for `search_path`."""
    names = {"fallback_application_name": "application_name", "schema": "search_path"}
    settings = {setting: left.pop(name) for name, setting in names.items() if name in left}
    return settings | {name: left.pop(name) for name in _TO_SERVER if name in left}
