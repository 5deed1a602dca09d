"""`forebay drain`: write out the journals in a folder."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.errors import told
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from forebay.doctor.database import Target
    from forebay.pipeline import Drain


@click.command(short_help="Write out the journals in a folder.")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(file_okay=False, path_type=Path))
@options.database_url
@options.app
@click.option(
    "--watch",
    is_flag=True,
    envvar="FOREBAY_DRAIN_WATCH",
    show_envvar=True,
    help="Go on: adopt journals as their processes end, and write out those of processes with FOREBAY_WRITER=external.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    envvar="FOREBAY_DRAIN_TIMEOUT",
    show_envvar=True,
    metavar="SECONDS",
    help="Give up after so long, without --watch; by default it goes on for as long as the database is away.",
)
@click.option(
    "--any-database",
    is_flag=True,
    envvar="FOREBAY_DRAIN_ANY_DATABASE",
    show_envvar=True,
    help="Also the journals that were made for a database under another URL.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_DRAIN_JSON",
    show_envvar=True,
    help="Print one JSON object at the end: journals, changes, written, dead_lettered, dropped, left, parked.",
)
def drain(
    folder: Path | None,
    database_url: str | None,
    app: Path | None,
    watch: bool,
    timeout: float | None,
    any_database: bool,
    as_json: bool,
) -> None:
    """Write the journals in DIR to the database: what killed processes have left, each change once.

    Without DIR, those in FOREBAY_JOURNAL_DIR, or in the folder of the app that --app names.

    A journal whose process lives is left to it. With --watch it is a daemon, for a sidecar or a service, and serves
    /metrics, /healthz and /readyz on FOREBAY_METRICS_ADDRESS. It ends on SIGTERM or Ctrl-C, when the processes it
    writes for have ended too, or after FOREBAY_CLOSE_TIMEOUT. Without --watch it keeps nothing for
    FOREBAY_JOURNAL_KEEP: it ends, and nobody would look whether the database goes back.

    Exit codes: 0, nothing is left; 1, something is (damaged, for another database, or in use), or an error.

    \b
    Examples:
      forebay drain --app app.py
      forebay drain /var/lib/chat/journals
      forebay drain /var/lib/chat/journals --watch
    """
    application = application_of(app, database_url)
    folder = folder or application.settings.journal_dir
    if not folder.is_dir():
        if not watch:
            raise click.ClickException(f"there is no folder {folder}")
        folder.mkdir(mode=0o700, parents=True)  # the processes to watch have not started yet
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    done = asyncio.run(
        _run(folder, application.target, watch=watch, timeout=timeout, any_database=any_database)
    )
    if as_json:
        printing.say_json(done)
    elif not watch:
        printing.say(_told(done))
    if done["left"] and not watch:
        raise SystemExit(1)


def _told(done: dict[str, Any]) -> str:
    lines = [f"{done['changes']} changes of {done['journals']} journals written out."]
    if done["dead_lettered"]:
        lines.append(f"{done['dead_lettered']} rows refused: see `forebay dead-letters list`.")
    lines += [f"Left: {visible(path)}: {_why_left(Path(path))}" for path in done["left"]]
    lines += [
        f"Parked: {visible(f'{journal_id}: {reason}')}" for journal_id, reason in done["parked"].items()
    ]
    return "\n".join(lines)


def _why_left(path: Path) -> str:
    from forebay.journal.ownership import is_owned, is_written_out

    if path.suffix == ".damaged":
        return "damaged; what could be read of it is in the database"
    if is_owned(path) or is_written_out(path):
        return "a process that lives has it, and writes it itself"
    return "for another database, or it can't be read; the log above says which"


async def _run(
    folder: Path, target: Target, *, watch: bool, timeout: float | None, any_database: bool
) -> dict[str, Any]:
    from forebay.pipeline import Drain
    from forebay.telemetry.collector import Metrics
    from forebay.telemetry.health import Health
    from forebay.telemetry.listener import Listener

    settings, metrics = target.settings, Metrics()
    draining = Drain(folder, target.store(), settings, metrics, any_database=any_database)
    counts = draining.counts
    health = Health(
        lambda: draining.failure, lambda: counts.written.total() > 0, settings.ready_grace, time.monotonic
    )
    try:
        if watch:
            async with Listener(
                settings.metrics_address,
                metrics.registry,
                health.reason,
                warning=lambda: draining.letterbox.warning,
            ):
                await _watch(draining, settings.close_timeout)
        else:
            with printing.console(stderr=True).status("Writing out the journals"):
                await _once(draining, timeout)
    finally:
        await draining.close()
    return {
        "journals": draining.journals,
        "changes": draining.changes,
        "written": dict(counts.written),
        "dead_lettered": counts.dead_lettered.total(),
        "dropped": counts.dropped.total(),
        "left": [str(path) for path in draining.left()],
        "parked": draining.parked,
    }


async def _once(draining: Drain, timeout: float | None) -> None:
    try:
        async with asyncio.timeout(timeout):
            await draining.run()
    except TimeoutError:
        reason = draining.failure or "there was too much to write"
        printing.say(f"Gave up after {timeout:g} s: {visible(told(reason))}", err=True)


async def _watch(draining: Drain, close_timeout: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    working = asyncio.create_task(draining.run(stop))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        await asyncio.wait([working], timeout=close_timeout)
        working.cancel()
        await asyncio.wait([working])
    if not working.cancelled():
        working.result()
