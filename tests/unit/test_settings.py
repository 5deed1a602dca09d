"""Settings: each from its variable, its keyword or its default; a wrong one is refused by name, unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from forebay.cli import main
from forebay.errors import SettingsError
from forebay.settings import Settings, unknown_variables, variable_of

_GIVEN: dict[str, tuple[str, Any]] = {
    "database_url": ("sqlite:///x.db", "sqlite:///x.db"),
    "durability": ("commit", "commit"),
    "journal_dir": ("/tmp/journals", Path("/tmp/journals")),
    "linger": ("0.25", 0.25),
    "batch_max_rows": ("7", 7),
    "batch_max_bytes": ("2048", 2048),
    "queue_max_bytes": ("4096", 4096),
    "change_max_bytes": ("4096", 4096),
    "queue_timeout": ("1.5", 1.5),
    "journal_max_bytes": ("1048576", 1048576),
    "journal_keep": ("5.5", 5.5),
    "journal_keep_bytes": ("8192", 8192),
    "dead_letters_max_bytes": ("1048576", 1048576),
    "close_timeout": ("3", 3.0),
    "connect_timeout": ("4", 4.0),
    "statement_timeout": ("5", 5.0),
    "pool_size": ("9", 9),
    "read_max_rows": ("100", 100),
    "read_max_bytes": ("4096", 4096),
    "list_include_steps": ("true", True),
    "auto_migrate": ("false", False),
    "tls_verify": ("0", False),
    "writer": ("external", "external"),
    "gc_tuning": ("false", False),
    "metrics_address": ("[::1]:0", "[::1]:0"),
    "metrics_in_app": ("true", True),
    "ready_grace": ("1.5", 1.5),
    "read_url": ("postgresql://localhost/chat", "postgresql://localhost/chat"),
    "storage": ("folder", "folder"),
    "storage_dir": ("/tmp/files", Path("/tmp/files")),
    "former_storage": ("folder", "folder"),
    "former_storage_dir": ("/tmp/former", Path("/tmp/former")),
    "upload_concurrency": ("3", 3),
    "upload_max_bytes": ("2097152", 2097152),
    "upload_disk_max_bytes": ("3145728", 3145728),
    "upload_timeout": ("6", 6.0),
    "fetch_max_bytes": ("8192", 8192),
    "fetch_timeout": ("7", 7.0),
    "fetch_private": ("true", True),
}
_WRONG = {
    "durability": "sometimes",
    "linger": "-1",
    "batch_max_rows": "0",
    "batch_max_bytes": "12",
    "queue_max_bytes": "many",
    "queue_timeout": "-0.1",
    "journal_max_bytes": "1",
    "journal_keep": "-1",
    "journal_keep_bytes": "-1",
    "dead_letters_max_bytes": "1024",
    "close_timeout": "0",
    "connect_timeout": "0",
    "statement_timeout": "0",
    "pool_size": "1",
    "read_max_rows": "0",
    "read_max_bytes": "10",
    "list_include_steps": "perhaps",
    "auto_migrate": "perhaps",
    "tls_verify": "perhaps",
    "writer": "somewhere",
    "gc_tuning": "perhaps",
    "metrics_address": "9464",
    "metrics_in_app": "perhaps",
    "ready_grace": "-1",
    "storage": "attic",
    "former_storage": "attic",
    "upload_concurrency": "0",
    "upload_max_bytes": "1",
    "upload_disk_max_bytes": "1",
    "upload_timeout": "0",
    "fetch_max_bytes": "1",
    "fetch_timeout": "0",
    "fetch_private": "perhaps",
}


def test_every_field_is_tried() -> None:
    assert set(_GIVEN) == set(Settings.model_fields)


@pytest.mark.parametrize("field", _GIVEN)
def test_a_variable_sets_its_field(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = _GIVEN[field]
    monkeypatch.setenv(variable_of(field), text)
    assert getattr(Settings(), field) == value
    default = Settings.model_fields[field].get_default(call_default_factory=True)
    monkeypatch.delenv(variable_of(field))
    assert getattr(Settings(), field) == default
    assert getattr(Settings(**{field: value}), field) == value


@pytest.mark.parametrize("field", _WRONG)
def test_a_wrong_value_is_refused_with_the_name_of_its_variable(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable_of(field), _WRONG[field])
    with pytest.raises(SettingsError, match=variable_of(field)) as refused:
        Settings()
    monkeypatch.delenv(variable_of(field))
    assert f"'{_WRONG[field]}'" not in str(refused.value)
    with pytest.raises(SettingsError, match=variable_of(field)):
        Settings(**dict[str, Any]({field: _WRONG[field]}))


def test_two_wrong_values_are_both_named() -> None:
    with pytest.raises(SettingsError, match=r"FOREBAY_LINGER.*FOREBAY_POOL_SIZE"):
        Settings(linger=-1, pool_size=0)


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(SettingsError, match="lingre: there is no such setting"):
        Settings(lingre=1)  # type: ignore[call-arg]


def test_the_url_falls_back_to_chainlits_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///chainlit.db")
    assert Settings().database_url == "sqlite:///chainlit.db"
    monkeypatch.setenv("FOREBAY_DATABASE_URL", "sqlite:///forebay.db")
    assert Settings().database_url == "sqlite:///forebay.db"


def test_the_journals_folder_is_in_chainlits_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAINLIT_APP_ROOT", str(tmp_path))
    assert Settings().journal_dir == tmp_path / ".forebay"
    monkeypatch.delenv("CHAINLIT_APP_ROOT")
    monkeypatch.chdir(tmp_path)
    assert Settings().journal_dir == tmp_path / ".forebay"


def test_settings_are_frozen_and_keep_the_url_to_themselves() -> None:
    settings = Settings(database_url="postgresql://me:hunter2@host/db")
    with pytest.raises(ValueError, match="frozen"):
        settings.linger = 1.0  # type: ignore[misc]
    assert "hunter2" not in repr(settings)


def test_a_variable_with_a_typo_is_told_with_the_one_that_is_meant() -> None:
    environment = {
        "FOREBAY_JOURNL_DIR": "x",
        "FOREBAY_DURABILTY": "x",
        "FOREBAY_NOTHING_LIKE_IT_AT_ALL": "x",
        "FOREBAY_LINGER": "0",
        "FOREBAY_FORMER_STORAGE": "folder",
        "FOREBAY_FORMER_BUCKET_NAME": "b",
        "OTHER": "x",
    }
    assert unknown_variables(environment) == {
        "FOREBAY_DURABILTY": "FOREBAY_DURABILITY",
        "FOREBAY_JOURNL_DIR": "FOREBAY_JOURNAL_DIR",
        "FOREBAY_NOTHING_LIKE_IT_AT_ALL": None,
    }


def test_what_the_commands_and_kubernetes_set_is_no_typo() -> None:
    def variables(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()
        for child in getattr(command, "commands", {}).values():
            yield from variables(child)

    of_kubernetes = (
        *("FOREBAY_SERVICE_HOST", "FOREBAY_SERVICE_PORT", "FOREBAY_SERVICE_PORT_METRICS", "FOREBAY_PORT"),
        *("FOREBAY_PORT_9464_TCP", "FOREBAY_PORT_9464_TCP_ADDR", "FOREBAY_DRAIN_SERVICE_HOST"),
    )
    assert unknown_variables(dict.fromkeys([*variables(main), *of_kubernetes], "x")) == {}
