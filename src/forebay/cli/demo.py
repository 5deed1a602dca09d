"""`forebay demo`: a Chainlit app on a SQLite file."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path

import click
from rich.text import Text

from forebay.cli import printing
from forebay.primitives.addresses import from_here, origin

_DEMO = Path(__file__).parents[1] / "demo"


@click.command(short_help="Try it: a Chainlit app on a SQLite file.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar="FOREBAY_DEMO_HOST",
    show_envvar=True,
    help="The address to listen on. Whoever reaches it can log in.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    envvar="FOREBAY_DEMO_PORT",
    show_envvar=True,
    help="The port to listen on.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=".demo",
    show_default=True,
    envvar="FOREBAY_DEMO_DATA",
    show_envvar=True,
    help="Where the database and Chainlit's own files go; created if it is missing.",
)
@click.option(
    "--open/--no-open",
    "open_browser",
    default=False,
    envvar="FOREBAY_DEMO_OPEN",
    show_envvar=True,
    help="Open the chat in a browser.",
)
def demo(host: str, port: int, data: Path, open_browser: bool) -> None:
    """Run a Chainlit app on forebay, with a SQLite file; no key and no network is needed.

    A scripted assistant answers with nested steps, a streamed text and a file. Log in, chat, press Ctrl-C,
    start it again: the history is in the sidebar, and each chat goes on where it ended.

    \b
    Example:
      forebay demo --port 8100 --data /tmp/demo --open
    """
    folder = data.resolve()
    database = folder / "chat.db"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        secret = _secret(folder / "secret")
        _copy_if_missing("config.toml", folder / ".chainlit")
        _copy_if_missing("chainlit.md", folder)
    except OSError as error:
        raise click.ClickException(
            f"{folder} can't be written ({error.strerror}); choose another with --data"
        ) from None
    _check_port(host, port)
    os.environ.update(
        CHAINLIT_APP_ROOT=str(folder),
        CHAINLIT_AUTH_SECRET=secret,
        FOREBAY_DATABASE_URL=f"sqlite:///{database}",
        FOREBAY_AUTO_MIGRATE="true",
        FOREBAY_STORAGE="folder",  # also where the environment names somebody's bucket
        FOREBAY_STORAGE_DIR=str(folder / "files"),
    )
    os.environ.pop("DATABASE_URL", None)
    _introduce(_address(host, port), database)
    sys.stdout.flush()
    arguments = ["chainlit", "run", str(_DEMO / "app.py"), "--host", host, "--port", str(port)]
    if not open_browser:
        arguments.append("--headless")
    # The server takes this process's place, so that Ctrl-C and SIGTERM reach it, and it drains.
    os.execv(sys.executable, [sys.executable, "-m", *arguments])


def _introduce(address: str, database: Path) -> None:
    rows = {
        "Chat": address,
        "Login": "demo / demo",
        "Data": str(database),
        "Look in": f'sqlite3 "{database}" "SELECT name, output FROM steps"',
        "Stop": "Ctrl-C",
    }
    for name, value in rows.items():
        # No box around it, and no wrapping: a path that is broken in two can't be copied.
        line = Text(f"{name:<9}", "bold").append(printing.cell(value, "not bold"))
        printing.console().print(line, soft_wrap=True)


def _secret(path: Path) -> str:
    """What signs the logins; kept, so that a login survives a restart."""
    if not path.exists() or not path.read_text():
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
    return path.read_text()


def _copy_if_missing(name: str, folder: Path) -> None:
    """One of the demo's files, where Chainlit looks for it; what is there is somebody's own."""
    if not (folder / name).exists():
        folder.mkdir(exist_ok=True)
        shutil.copyfile(_DEMO / name, folder / name)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            elsewhere = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            option = "--host" if elsewhere else "--port"
            raise click.ClickException(
                f"port {port} on {host} can't be used ({error.strerror}); choose another with {option}"
            ) from None


def _address(host: str, port: int) -> str:
    """What to type into a browser on this machine."""
    return origin(from_here(host), port)
