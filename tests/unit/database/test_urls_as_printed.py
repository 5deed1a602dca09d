"""Database URLs as consoles, libpq's manual and other libraries print them: taken, or answered with what to do."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forebay.cli.config import _without_password
from forebay.database.urls import label_of, location_of, parse_url
from forebay.errors import SettingsError

_PASSWORD = "hunter2"
_NEON = f"postgresql://me:{_PASSWORD}@ep-cool-1-pooler.eu-central-1.aws.neon.tech/chat"
_SUPABASE = f"postgresql://postgres.abc:{_PASSWORD}@aws-0-eu-central-1.pooler.supabase.com"
_PLAIN = f"postgresql://me:{_PASSWORD}@db.example.org:5432/chat"
_CHECKS_ALL = {"ssl": (ssl.CERT_REQUIRED, True)}
_CHECKS_NOTHING = {"ssl": (ssl.CERT_NONE, False)}
_UNPREPARED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}


def _settings(**named: str) -> dict[str, Any]:
    return {"server_settings": named}


_TAKEN: list[tuple[str, dict[str, Any]]] = [
    (_PLAIN, {}),
    (_PLAIN.replace("postgresql:", "postgres:"), {}),
    (_PLAIN.replace("postgresql:", "postgresql+asyncpg:"), {}),
    (_PLAIN.replace("postgresql:", "postgresql+psycopg:"), {}),
    (f"  {_PLAIN}\n", {}),
    (f"{_NEON}?sslmode=require", _CHECKS_NOTHING),
    (f"{_NEON}?sslmode=require&channel_binding=require", _CHECKS_ALL),
    (f"{_NEON}?channel_binding=prefer", {}),
    (
        f"{_NEON}?sslmode=require&options=endpoint%3Dep-1",
        {**_CHECKS_NOTHING, **_settings(options="endpoint=ep-1")},
    ),
    (f"{_NEON}?sslmode=verify-full", _CHECKS_ALL),
    (f"{_NEON}?sslmode=verify-full&sslrootcert=system", _CHECKS_ALL),
    (f"{_NEON}?sslrootcert=system", _CHECKS_ALL),
    (f"{_NEON}?sslmode=verify-ca", {"ssl": (ssl.CERT_REQUIRED, False)}),
    (f"{_SUPABASE}:6543/postgres?pgbouncer=true", _UNPREPARED),
    (f"{_SUPABASE}:5432/postgres?sslmode=require&supa=base-pooler.x", _CHECKS_NOTHING),
    (f"{_SUPABASE}:6543/postgres?pgbouncer=false", {}),
    (f"{_PLAIN}?sslmode=no-verify", _CHECKS_NOTHING),
    (f"{_PLAIN}?ssl=true", _CHECKS_NOTHING),
    (f"{_PLAIN}?ssl=false", {"ssl": "disable"}),
    (f"{_PLAIN}?sslmode=disable", {"ssl": "disable"}),
    (f"{_PLAIN}?sslmode=require&sslaccept=strict", _CHECKS_ALL),
    (f"{_PLAIN}?schema=public", _settings(search_path="public")),
    (f"{_PLAIN}?connect_timeout=10", {"timeout": 10.0}),
    (f"{_PLAIN}?connect_timeout=0", {}),
    (f"{_PLAIN}?keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5", {}),
    (f"{_PLAIN}?tcp_user_timeout=30000", {}),
    (f"{_PLAIN}?gssencmode=disable", {}),
    (f"{_PLAIN}?gssencmode=prefer&sslsni=1&sslcompression=0", {}),
    (f"{_PLAIN}?application_name=chat", _settings(application_name="chat")),
    (f"{_PLAIN}?fallback_application_name=chat", _settings(application_name="chat")),
    (f"{_PLAIN}?options=-c%20search_path%3Dchat", _settings(options="-c search_path=chat")),
    (f"{_PLAIN}?sslmode=require&ssl_min_protocol_version=TLSv1.3", _CHECKS_NOTHING),
    (f"{_PLAIN}?sslmode=require&sslnegotiation=direct", {**_CHECKS_NOTHING, "direct_tls": True}),
    (f"{_PLAIN}?statement_timeout=30000", _settings(statement_timeout="30000")),
    (f"postgresql://db.example.org/chat?user=me&password={_PASSWORD}", {}),
    (f"postgresql://me:{_PASSWORD}@/chat?host=/var/run/postgresql", {}),
]


@pytest.mark.parametrize(("text", "expected"), _TAKEN)
def test_what_is_printed_is_taken(text: str, expected: dict[str, Any]) -> None:
    url, arguments = parse_url(text)
    assert url.drivername == "postgresql+asyncpg"
    assert (url.username, url.password) in {("me", _PASSWORD), ("postgres.abc", _PASSWORD)}
    assert set(url.query) <= {"host", "port"}
    assert _readable(arguments) == expected
    for shown in (location_of(url), label_of(url, arguments), _without_password(text)):
        assert _PASSWORD not in shown


def _readable(arguments: dict[str, Any]) -> dict[str, Any]:
    context = arguments.get("ssl")
    if not isinstance(context, ssl.SSLContext):
        return arguments
    return {**arguments, "ssl": (context.verify_mode, context.check_hostname)}


_REFUSED = [
    ("?connection_limit=5", "set FOREBAY_POOL_SIZE"),
    ("?pool_size=5", "set FOREBAY_POOL_SIZE"),
    ("?pool_timeout=5", "set FOREBAY_STATEMENT_TIMEOUT"),
    ("?connect_timeout=soon", "connect_timeout takes a number"),
    ("?pgbouncer=maybe", "pgbouncer takes true or false"),
    ("?gssencmode=require", "use sslmode=verify-full"),
    ("?channel_binding=always", "channel_binding takes one of"),
    ("?sslmode=disable&channel_binding=require", "needs TLS"),
    ("?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
    ("?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "/nowhere/ca.pem \\(No such file"),
    ("?sslmode=verify-full&sslcrl=/nowhere/crl.pem", "/nowhere/crl.pem \\(No such file"),
    (
        "?sslmode=verify-full&sslcert=/nowhere/me.crt&sslkey=/nowhere/me.key",
        "/nowhere/me.crt \\(No such file",
    ),
    ("?sslmode=require&sslkey=/nowhere/me.key", "sslkey needs sslcert"),
    ("?sslcert=/nowhere/me.crt", "sslcert needs sslmode=require"),
    ("?sslmode=require&sslcrl=/nowhere/crl.pem", "the certificate would not be checked"),
    ("?sslnegotiation=direct", "needs sslmode=require"),
    ("?sslmode=require&ssl_min_protocol_version=SSLv3", "takes one of TLSv1.2"),
    ("?service=chat", "write the service's host"),
    ("?sslmode=require&sslmode=disable", "more than once"),
    ("?conect_timeout=3", "unknown parameter conect_timeout; leave it out"),
]


@pytest.mark.parametrize(("query", "words"), _REFUSED)
def test_what_can_not_be_kept_is_answered_with_what_to_do(query: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        parse_url(f"{_PLAIN}{query}")
    assert _PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    "password",
    ["top@secret", "top@secret/rest", "top@secret?rest=", "top@secret#rest", "top@secret:rest", "@topsecret"],
)
def test_no_part_of_a_password_is_shown(password: str) -> None:
    text = f"postgresql://me:{password}@db.example.org/chat"
    with pytest.raises(SettingsError, match="write @ as %40") as refused:
        parse_url(text)
    for shown in (str(refused.value), _without_password(text)):
        assert not any(part in shown for part in ("top", "secret", "rest"))


@pytest.mark.parametrize("password", ["p%40ss", "p#ss", "p/ss", "100%sure", "p?ss", "p:ss"])
def test_a_password_arrives_whole(password: str) -> None:
    url, _ = parse_url(f"postgresql://me:{password}@db.example.org/chat")
    assert (url.password, url.host) == (password.replace("%40", "@"), "db.example.org")
    assert "ss" not in location_of(url) or password == "100%sure"


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(SettingsError, match=f"{file} \\(not in PEM form\\)"):
        parse_url(f"{_PLAIN}?sslmode=verify-full&sslrootcert={file}")


def test_no_file_is_looked_for_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ".postgresql"
    home.mkdir()
    (home / "root.crt").write_text("no certificate")
    monkeypatch.setenv("HOME", str(tmp_path))
    _, arguments = parse_url(f"{_PLAIN}?sslmode=verify-full")
    assert arguments["ssl"].check_hostname


def test_a_refused_url_ends_a_command_without_the_password() -> None:
    text = "postgresql://me:top@secret@db.example.org/chat"
    done = subprocess.run(
        [sys.executable, "-m", "forebay.cli", "migrate", "--dry-run"],
        env={"FOREBAY_DATABASE_URL": text, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "%40" in done.stderr
    assert "secret" not in done.stdout + done.stderr
