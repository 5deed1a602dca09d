"""The settings, frozen. The only module that reads the environment.

Each field is set by the variable `FOREBAY_<NAME>`, by a keyword, or by its default, in the reverse order of
precedence. A wrong value raises `SettingsError` with the variable's name and without the value, which may
hold a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from forebay.errors import SettingsError

KIB = 1024
MIB = 1024 * KIB

Durability = Literal["journal", "memory", "commit"]
WriterPlace = Literal["embedded", "external"]
StorageKind = Literal["auto", "folder", "s3", "gcs", "azure", "none"]
FormerStorage = Literal["folder", "s3", "gcs", "azure", "none"]


def _default_journal_dir() -> Path:
    """`.forebay` in Chainlit's app root, which Chainlit takes from CHAINLIT_APP_ROOT or the working folder."""
    return Path(os.environ.get("CHAINLIT_APP_ROOT") or Path.cwd()) / ".forebay"


def _default_storage_dir() -> Path:
    return _default_journal_dir() / "files"


class Settings(BaseSettings):
    """What an operator can set. Sizes are in bytes, times in seconds."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="FOREBAY_", frozen=True, extra="forbid", populate_by_name=True
    )

    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("FOREBAY_DATABASE_URL", "DATABASE_URL"),
        repr=False,
        description="Where the tables are: postgresql://… or sqlite:///…; falls back to DATABASE_URL.",
    )
    durability: Durability = Field(
        default="journal",
        description="When a write call returns: `journal`, once it is on this machine's disk; `memory`, once it is "
        "queued; `commit`, once its batch has committed.",
    )
    journal_dir: Path = Field(
        default_factory=_default_journal_dir,
        description="The journals' folder, on a local disk; replicas on one machine may share it.",
    )
    linger: float = Field(
        default=0.005,
        ge=0,
        le=10,
        description="How long the first change of a batch waits for company, in seconds.",
    )
    batch_max_rows: int = Field(
        default=1000, ge=1, le=50_000, description="A batch leaves at this many rows."
    )
    batch_max_bytes: int = Field(
        default=4 * MIB, ge=KIB, le=256 * MIB, description="A batch leaves at this many bytes."
    )
    queue_max_bytes: int = Field(
        default=64 * MIB,
        ge=KIB,
        description="The queue holds at most this many bytes; then callers wait. Of large changes one person has a"
        " quarter of it at most.",
    )
    change_max_bytes: int = Field(
        default=16 * MIB,
        ge=KIB,
        description="One change, as a step with its input and output, takes at most this many bytes; a larger one gets"
        " ChangeTooLarge.",
    )
    queue_timeout: float = Field(
        default=30.0,
        ge=0,
        description="How long a caller waits at a full queue before QueueFull, in seconds.",
    )
    journal_max_bytes: int = Field(
        default=1024 * MIB,
        ge=MIB,
        description="The journal holds at most this many bytes; then callers wait. Of large changes one person has a"
        " quarter of it at most.",
    )
    journal_keep: float = Field(
        default=60.0,
        ge=0,
        description="How long the journal keeps what the database has, in seconds: a failover or a restored backup may"
        " take it back.",
    )
    journal_keep_bytes: int = Field(
        default=256 * MIB,
        ge=0,
        description="What the database has and is kept is at most this many bytes, and a segment of 8 MiB.",
    )
    dead_letters_max_bytes: int = Field(
        default=256 * MIB,
        ge=64 * KIB,
        description="The dead letters in `journal_dir` take at most this many bytes; then a further refused row waits"
        " beside the others, up to 16 MiB of them.",
    )
    close_timeout: float = Field(
        default=20.0, gt=0, description="How long close() may take to write out the queue, in seconds."
    )
    connect_timeout: float = Field(
        default=10.0,
        gt=0,
        description="How long a connection may take to open, in seconds.",
    )
    statement_timeout: float = Field(
        default=60.0,
        gt=0,
        description="How long a statement may take before it counts as failed, in seconds; half of that may pass"
        " before it gets a connection. A batch gets a quarter; then it is written in parts.",
    )
    pool_size: int = Field(
        default=15,
        ge=2,
        le=1000,
        description="Connections at most, opened as they are needed: one writes, the others read.",
    )
    read_max_rows: int = Field(
        default=5000,
        ge=1,
        le=1_000_000,
        description="One read gives at most this many rows: of a longer thread its newest steps and elements, of a"
        " person's favourites the newest.",
    )
    read_max_bytes: int = Field(
        default=16 * MIB,
        ge=KIB,
        description="One read gives about this many bytes at most, and one row anyway: the newest steps, elements or"
        " favourites; a page of threads is shorter.",
    )
    list_include_steps: bool = Field(
        default=False, description="Whether list_threads returns each thread's steps and elements."
    )
    auto_migrate: bool | None = Field(
        default=None, description="Migrate the tables at start; by default on for SQLite, off for PostgreSQL."
    )
    tls_verify: bool = Field(
        default=True,
        description="Whether ssl_require=True also checks the server's certificate and host name.",
    )
    storage: StorageKind = Field(
        default="auto",
        description="Where elements' content goes if no storage_provider is passed: `auto`, to the cloud that "
        "Chainlit's own variables name, or else to a folder; `folder`; `s3`, `gcs` or `azure`, to BUCKET_NAME, without "
        "keys by the machine's own role; `none`, nowhere.",
    )
    storage_dir: Path = Field(
        default_factory=_default_storage_dir,
        description="The folder for elements' content; replicas may share it.",
    )
    former_storage: FormerStorage = Field(
        default="none",
        description="The storage before a change of storage: `folder`, `s3`, `gcs` or `azure`. What is not in the new "
        "one is read from it, what is deleted goes from both, and `forebay blobs move` brings the rest over.",
    )
    former_storage_dir: Path | None = Field(
        default=None,
        description="The folder of FOREBAY_FORMER_STORAGE=folder; by default FOREBAY_STORAGE_DIR.",
    )
    upload_concurrency: int = Field(
        default=16, ge=1, le=1000, description="Uploads of elements' content at once."
    )
    upload_max_bytes: int = Field(
        default=64 * MIB,
        ge=MIB,
        description="Content in memory at once for storage clients that take bytes; a larger one goes alone.",
    )
    upload_disk_max_bytes: int = Field(
        default=10 * 1024 * MIB,
        ge=MIB,
        description="Content that waits in `journal_dir` for its upload, at most; beyond it is not kept.",
    )
    upload_timeout: float = Field(
        default=60.0,
        gt=0,
        description="How long an upload is tried before its element is written without content, in seconds; "
        "it is tried on afterwards.",
    )
    fetch_max_bytes: int = Field(
        default=100 * MIB, ge=KIB, description="An element's URL is stored up to this size."
    )
    fetch_timeout: float = Field(
        default=30.0, gt=0, description="How long fetching an element's URL may take, in seconds."
    )
    fetch_private: bool = Field(
        default=False,
        description="Whether elements' URLs may be fetched from private, loopback and link-local addresses.",
    )

    writer: WriterPlace = Field(
        default="embedded",
        description="Who writes to the database: `embedded`, this process; `external`, a `forebay drain --watch` on "
        "the same journal_dir.",
    )
    metrics_address: str = Field(
        default="127.0.0.1:9464",
        description="Where /metrics, /healthz and /readyz are served, as host:port; port 0 takes a free one; `off`.",
    )
    metrics_in_app: bool = Field(
        default=False,
        description="Whether the Chainlit app serves /metrics too, to whoever reaches the app.",
    )
    ready_grace: float = Field(
        default=15.0,
        ge=0,
        description="How long the database may fail before /readyz says so, in seconds.",
    )

    @field_validator("metrics_address")
    @classmethod
    def _check_address(cls, text: str) -> str:
        parse_address(text)
        return text

    gc_tuning: bool = Field(
        default=True,
        description="Whether the garbage collector is tuned at the first use: it leaves alone what was loaded before "
        "(`gc.freeze`), and looks after 50,000 new objects instead of 700. Otherwise it costs a third of a write.",
    )

    read_url: str | None = Field(
        default=None,
        repr=False,
        description="A PostgreSQL standby that answers reads as far as it has what this process wrote.",
    )

    @model_validator(mode="after")
    def _check_external(self) -> Settings:
        if self.writer == "external" and self.durability != "journal":
            raise ValueError("FOREBAY_WRITER=external needs FOREBAY_DURABILITY=journal")
        return self

    if not TYPE_CHECKING:  # a type checker knows the fields, as of any model, and each one's type

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise SettingsError(_explain(error)) from None


def parse_address(text: str) -> tuple[str, int] | None:
    """The host and the port of `host:port` or `[host]:port`; None for `off`. Raises ValueError."""
    if text.strip().lower() == "off":
        return None
    host, separator, port = text.strip().rpartition(":")
    is_port = port.isascii() and port.isdecimal() and int(port) < 65536
    if not (host and separator and is_port):
        raise ValueError("it takes host:port, as in 127.0.0.1:9464, or off")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [::1]:9464")
    return host, int(port)


class ChainlitVariables(BaseSettings):
    """Chainlit's own variables that matter here, by the names that it gives them."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(frozen=True, extra="ignore")

    bucket_name: str | None = None
    app_aws_region: str | None = None
    app_aws_access_key: str | None = Field(default=None, repr=False)
    app_aws_secret_key: str | None = Field(default=None, repr=False)
    dev_aws_endpoint: str | None = None
    app_gcs_project_id: str | None = None
    app_gcs_client_email: str | None = None
    app_gcs_private_key: str | None = Field(default=None, repr=False)
    app_azure_storage_account: str | None = None
    app_azure_storage_access_key: str | None = Field(default=None, repr=False)
    chainlit_auth_secret: str | None = Field(default=None, repr=False)
    chainlit_root_path: str = ""
    chainlit_parent_root_path: str = ""


def variable_of(field: str) -> str:
    """The environment variable that sets a field: `linger` gives `FOREBAY_LINGER`."""
    return f"{Settings.model_config.get('env_prefix', '')}{field}".upper()


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Variables that look like forebay's and set nothing, each with the one that may be meant."""
    former = (f"FOREBAY_FORMER_{name}".upper() for name in ChainlitVariables.model_fields)
    known = [variable_of(name) for name in Settings.model_fields]
    known_too = {*known, *former, "FOREBAY_APP"}
    unknown = sorted(
        name
        for name in environment
        if name.startswith("FOREBAY_")
        and name not in known_too
        and not name.startswith(_OTHERS)
        and not _of_kubernetes(name)
    )
    return {name: next(iter(get_close_matches(name, known, 1)), None) for name in unknown}


def remedy_of(near: str | None) -> str:
    """What to say of such a variable."""
    return f"did you mean {near}?" if near else "`forebay config` shows all that there are"


# Of the commands and the tests, which have variables of their own.
_COMMANDS = "BENCH BLOBS CONFIG DEAD_LETTERS DELETE DEMO DOCTOR DRAIN EXPORT IMPORT MIGRATE PURGE STATUS TEST"
_OTHERS = tuple(f"FOREBAY_{name}_" for name in _COMMANDS.split())
# What it sets in every pod for a service whose name begins so.
_of_kubernetes = re.compile(
    r"FOREBAY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
).fullmatch


def _explain(error: ValidationError) -> str:
    problems = (
        _problem(str(e["loc"][0]) if e["loc"] else "", e["msg"]) for e in error.errors(include_input=False)
    )
    return "; ".join(problems)


def _problem(field: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not field:
        return message
    if field.isupper():  # an alias, which is the variable itself
        return f"{field}: {message}"
    if field not in Settings.model_fields:
        return f"{field}: there is no such setting"
    return f"{variable_of(field)}: {message}"
