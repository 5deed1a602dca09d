"""`forebay demo`: a Chainlit app on a SQLite file."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

import click

_APP = Path(__file__).parents[1] / "demo" / "app.py"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, envvar="FOREBAY_DEMO_HOST", show_envvar=True)
@click.option("--port", default=8000, show_default=True, envvar="FOREBAY_DEMO_PORT", show_envvar=True)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=".demo",
    show_default=True,
    envvar="FOREBAY_DEMO_DATA",
    show_envvar=True,
    help="Where the database and Chainlit's own files go; created if it is missing.",
)
@click.option("--open/--no-open", "open_browser", default=False, help="Open the chat in a browser.")
def demo(host: str, port: int, data: Path, open_browser: bool) -> None:
    """Run a Chainlit app on forebay, with a SQLite file; no key and no network is needed.

    A scripted assistant answers with nested steps, a streamed text and a file. Log in, chat, press Ctrl-C,
    start it again: the history is in the sidebar, and each chat goes on where it ended.
    """
    folder = data.resolve()
    database = folder / "chat.db"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        secret = _secret(folder / "secret")
    except OSError as error:
        raise click.ClickException(
            f"{folder} can't be written ({error.strerror}); choose another with --data"
        ) from None
    _check_port(host, port)
    os.environ.update(
        CHAINLIT_APP_ROOT=str(folder),
        CHAINLIT_AUTH_SECRET=secret,
        FOREBAY_DATABASE_URL=f"sqlite:///{database}",
    )
    os.environ.pop("DATABASE_URL", None)
    # No box around it: a wrapped path can't be copied.
    click.echo(
        f"Chat     http://{host}:{port}\nLogin    demo / demo\nData     {database}\n"
        f'Look in  sqlite3 "{database}" "SELECT name, output FROM steps"\nStop     Ctrl-C\n'
    )
    sys.stdout.flush()
    arguments = ["chainlit", "run", str(_APP), "--host", host, "--port", str(port)]
    if not open_browser:
        arguments.append("--headless")
    # The server takes this process's place, so that Ctrl-C and SIGTERM reach it, and it drains.
    os.execv(sys.executable, [sys.executable, "-m", *arguments])


def _secret(path: Path) -> str:
    """What signs the logins; kept, so that a login survives a restart."""
    if not path.exists():
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
    return path.read_text()


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"port {port} on {host} can't be used ({error.strerror}); choose another with --port"
            ) from None
