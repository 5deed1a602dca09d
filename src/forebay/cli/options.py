"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from forebay.cli import printing

_Command = TypeVar("_Command", bound=Callable[..., Any])

database_url = click.option(
    "--database-url",
    envvar=["FOREBAY_DATABASE_URL", "DATABASE_URL"],
    show_envvar=True,
    metavar="URL",
    help="The database: postgresql://user:password@host/name or sqlite:///path/to/file. Where it holds a password, set"
    " the variable: other users of the machine see a command's options.",
)

app = click.option(
    "--app",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="FOREBAY_APP",
    show_envvar=True,
    metavar="FILE",
    help="A Chainlit app, as app.py: the URL and the settings are those of its data layer, also if that is still"
    " Chainlit's SQLAlchemyDataLayer.",
)


yes = click.option("--yes", "-y", is_flag=True, help="Ask nothing: for a script.")


def any_storage(command: str) -> Callable[[_Command], _Command]:
    """The option of a command, which is named as in variables."""
    return click.option(
        "--any-storage",
        is_flag=True,
        envvar=f"FOREBAY_{command}_ANY_STORAGE",
        show_envvar=True,
        help="Go on where the storage has none of the contents that rows name: they are lost.",
    )


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something goes for good, on standard error. Raises ClickException where the answer is not yes."""
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:  # nobody is there to answer
        agreed = False
    if not agreed:
        raise click.ClickException("nothing was deleted; in a script say --yes")


def journal_dir(command: _Command) -> _Command:
    """`--journal-dir`; None stands for the settings' default."""
    option = click.option(
        "--journal-dir",
        envvar="FOREBAY_JOURNAL_DIR",
        show_envvar=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="The journals' folder; by default .forebay in Chainlit's app root.",
    )
    return option(command)


def folder_of(journal_dir: Path | None, app: Path | None = None) -> Path:
    """The folder that the option names, or the app's, or the settings' default."""
    if journal_dir is not None:
        return journal_dir
    from forebay.cli.application import settings_of

    return settings_of(app).journal_dir


@contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, on a terminal only; to be called with what is done, and of how much."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=printing.console(stderr=True), transient=True) as progress:
        task = progress.add_task(unit, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
