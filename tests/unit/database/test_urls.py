"""Database URLs of every style, and what is wrong with others, without their passwords."""

from __future__ import annotations

import ssl

import pytest

from forebay.database.connections.endpoint import for_standby, merged
from forebay.database.store import Store
from forebay.database.tls import tls_context
from forebay.database.urls import in_memory, is_postgres, location_of, parse_url
from forebay.errors import SettingsError
from forebay.settings import Settings


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("postgresql://me:pw@host:5433/chat", "postgresql+asyncpg://me:pw@host:5433/chat"),
        ("postgres://host/chat", "postgresql+asyncpg://host/chat"),
        ("postgresql+asyncpg://host/chat", "postgresql+asyncpg://host/chat"),
        ("sqlite:///relative.db", "sqlite+aiosqlite:///relative.db"),
        ("sqlite:////absolute.db", "sqlite+aiosqlite:////absolute.db"),
        ("sqlite+aiosqlite:///x.db", "sqlite+aiosqlite:///x.db"),
        ("sqlite://", "sqlite+aiosqlite://"),
    ],
)
def test_each_style_becomes_the_drivers(text: str, parsed: str) -> None:
    url, arguments = parse_url(text)
    assert (url.render_as_string(hide_password=False), arguments) == (parsed, {})
    assert is_postgres(url) == text.startswith("postgres")


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("sslmode=prefer", {"ssl": "prefer"}),
        ("application_name=chat", {"server_settings": {"application_name": "chat"}}),
        ("search_path=chat", {"server_settings": {"search_path": "chat"}}),
        (
            "command_timeout=2.5&statement_cache_size=100",
            {"command_timeout": 2.5, "statement_cache_size": 100},
        ),
    ],
)
def test_libpqs_parameters_become_the_drivers(query: str, arguments: dict[str, object]) -> None:
    url, found = parse_url(f"postgresql://host/chat?{query}")
    assert (dict(url.query), found) == ({}, arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("hunter2", "is not a URL"),
        ("mysql://me:hunter2@host/chat", "mysql is not supported"),
        ("postgresql+psycopg2://me:hunter2@host/chat", r"postgresql\+psycopg2 is not supported"),
        ("postgresql://me:hunter2@host/chat?sslmod=x&b=1", "unknown parameter b, sslmod"),
        ("postgresql://me:hunter2@host:port/chat", "is not a URL"),
        ("postgresql://me:hunter2@host/chat?sslmode=bogus", "sslmode takes one of disable, allow"),
        ("postgresql://me:hunter2@host/chat?statement_cache_size=no", "statement_cache_size takes a number"),
        ("postgresql://me:hunter2@host/chat?sslrootcert=x", "sslrootcert needs sslmode=verify-ca or"),
        ("postgresql://me:hunter2@host/chat?sslmode=verify-ca&sslrootcert=/nowhere", "names no file"),
    ],
)
def test_what_is_wrong_is_told_without_the_url(text: str | None, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        parse_url(text)
    assert str(refused.value).startswith("FOREBAY_DATABASE_URL")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file:x?mode=memory&uri=true", True),
        ("sqlite:///x.db", False),
        ("postgresql://host/chat", False),
    ],
)
def test_a_database_without_a_file_is_known(text: str, expected: bool) -> None:
    assert in_memory(parse_url(text)[0]) is expected


def test_tls_is_verified_unless_told_otherwise() -> None:
    assert (tls_context(verify=True).verify_mode, tls_context(verify=True).check_hostname) == (
        ssl.CERT_REQUIRED,
        True,
    )
    assert (tls_context(verify=False).verify_mode, tls_context(verify=False).check_hostname) == (
        ssl.CERT_NONE,
        False,
    )


@pytest.mark.parametrize(
    ("text", "hosts", "shown"),
    [
        (
            "postgresql://me:a,b@h1:5433,h2/chat?application_name=x",
            ("h1:5433", "h2:5432"),
            "postgresql://me:***@h1:5433,h2:5432/chat",
        ),
        ("postgresql://h1,h2", ("h1:5432", "h2:5432"), "postgresql://h1:5432,h2:5432/"),
    ],
)
def test_several_hosts_are_taken_as_libpq_takes_them(text: str, hosts: tuple[str, ...], shown: str) -> None:
    url, _ = parse_url(text)
    assert url.query["host"] == hosts
    assert location_of(url) == shown
    assert parse_url(shown)[0].query["host"] == hosts


def test_a_password_with_a_comma_is_no_list_of_hosts() -> None:
    url, _ = parse_url("postgresql://me:a,b@host/chat")
    assert (url.host, url.password) == ("host", "a,b")


@pytest.mark.parametrize("role", ["standby", "prefer-standby", "read-only"])
def test_a_server_that_takes_no_writes_is_no_database(role: str) -> None:
    with pytest.raises(SettingsError, match="FOREBAY_READ_URL"):
        Store(f"postgresql://host/chat?target_session_attrs={role}", Settings())


def test_the_servers_settings_of_an_argument_leave_the_urls_alone() -> None:
    given = {"server_settings": {"application_name": "chat"}, "host": "primary", "ssl": True}
    url, from_url = parse_url("postgresql://standby/chat?search_path=chat")
    settings = {"search_path": "chat", "application_name": "chat"}
    assert merged(from_url, given)["server_settings"] == settings
    there = for_standby(url, from_url, given)
    assert (there["server_settings"], there["ssl"], "host" in there) == (settings, True, False)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:top@hunter2@host/db",
        "postgresql://u:a/hunter2@host:x/db",
        "postgresql://u:1234:hunter2@host:5432:5/db",
        "postgresql://host/db?user=u&password=a&hunter2=b",
        "postgresql://host/db?user=u&password=&hunter2=b",
        "postgresql://host/db?a b&hunter2[=c",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_url(url)
    assert "hunter2" not in str(raised.value)
