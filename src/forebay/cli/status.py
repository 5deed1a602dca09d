"""`forebay status`: running processes, live in the terminal, off their metrics."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forebay.cli import options, printing
from forebay.cli.application import settings_of
from forebay.cli.snapshot import Snapshot
from forebay.errors import SettingsError
from forebay.primitives.addresses import from_here, origin

if TYPE_CHECKING:
    import aiohttp

_TIMEOUT = 5.0
_NOT_READY = 3
_WARN_AT, _ALARM_AT = 0.5, 0.9  # of the queue's or the journal's capacity


@dataclass(frozen=True)
class _Look:
    """What came of asking one process: a snapshot, or why there is none; and why it is not ready, if it is not."""

    snapshot: Snapshot | None
    reason: str | None
    not_ready: str | None = None


@click.command(short_help="Running processes: do writes keep up, was anything lost?")
@options.app
@click.argument("addresses", metavar="[ADDRESS]...", nargs=-1)
@click.option(
    "--watch", is_flag=True, envvar="FOREBAY_STATUS_WATCH", show_envvar=True, help="Go on, until Ctrl-C."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    envvar="FOREBAY_STATUS_INTERVAL",
    show_envvar=True,
    metavar="SECONDS",
    help="How often to look, with --watch.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_STATUS_JSON",
    show_envvar=True,
    help="Print one JSON object, by address, and end.",
)
def status(app: Path | None, addresses: tuple[str, ...], watch: bool, interval: float, as_json: bool) -> None:
    """Show how running processes fare: whether writes keep up, whether anything was lost.

    An ADDRESS is a process's FOREBAY_METRICS_ADDRESS, as host:port, or the URL that its log names; by default this
    environment's. Rates and times are since the last look with --watch, else of all; means are exact, quantiles are
    upper bounds.

    Exit codes: 0, all are ready; 3, one is not; 1, one can't be reached; 2, wrong usage.

    \b
    Examples:
      forebay status --watch
      forebay status 10.0.0.4:9464 10.0.0.5:9464
      forebay status --json | jq '.[].queue_changes'
    """
    urls = {address: _url(address) for address in addresses or (_default_address(app),)}
    if watch and not as_json:
        _watch(urls, interval)
        return
    looks = asyncio.run(_looks(urls))
    if as_json:
        printing.say_json({address: _summary(look) for address, look in looks.items()})
    else:
        printing.console().print(_view(looks, {}))
    raise SystemExit(_exit_code(looks))


def _default_address(app: Path | None) -> str:
    address = settings_of(app).metrics_address
    if address.strip().lower() == "off":
        raise SettingsError(
            "FOREBAY_METRICS_ADDRESS is off here; name a process's address, as in 127.0.0.1:9464"
        )
    return address


def _url(address: str) -> str:
    if address.startswith(("http://", "https://")):
        parts = urllib.parse.urlsplit(address)
        return address if parts.path not in ("", "/") else parts._replace(path="/metrics").geturl()
    from forebay.settings import parse_address

    try:
        where = parse_address(address)
    except ValueError as error:
        raise click.BadParameter(f"{address}: {error}") from None
    if where is None:
        raise click.BadParameter(f"{address}: it names no process")
    return f"{origin(from_here(where[0]), where[1])}/metrics"


async def _looks(urls: dict[str, str]) -> dict[str, _Look]:
    """All of them, side by side."""
    import aiohttp

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as http:
        found = await asyncio.gather(*(_look(http, url) for url in urls.values()))
    return dict(zip(urls, found, strict=True))


async def _look(http: aiohttp.ClientSession, url: str) -> _Look:
    import aiohttp

    try:
        async with http.get(url) as response:
            content_type, text = response.headers.get("Content-Type", ""), await response.text()
    except aiohttp.InvalidURL:
        return _Look(None, "is not an address")
    except (aiohttp.ClientError, OSError) as error:
        return _Look(None, f"can't be reached ({_reason(error)})")
    except UnicodeDecodeError:
        return _Look(None, "answers no text; that is not the metrics' port")
    if not content_type.startswith("text/plain"):
        return _Look(None, f"answers {content_type or 'something else'}; that is not the metrics' port")
    try:
        snapshot = Snapshot.parse(text, time.monotonic())
    except ValueError as error:
        return _Look(None, str(error))
    return _Look(snapshot, None, None if snapshot.total("ready") else await _why_not(http, url))


def _reason(error: Exception) -> str:
    """In the system's words, where it is the system's error."""
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT:.0f} s"
    code = error.errno if isinstance(error, OSError) else None
    return os.strerror(code) if code is not None and code > 0 else str(error)


async def _why_not(http: aiohttp.ClientSession, url: str) -> str:
    """What its `/readyz` says, beside its metrics; one that is published by an app alone has none."""
    import aiohttp

    probe = url.removesuffix("/metrics") + "/readyz"
    try:
        async with http.get(probe) as answer:
            return f"not ready: {json.loads(await answer.text())['reason']}"
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
        return "not ready"


def _exit_code(looks: dict[str, _Look]) -> int:
    if any(look.snapshot is None for look in looks.values()):
        return 1
    ready = all(look.snapshot.total("ready") for look in looks.values() if look.snapshot is not None)
    return 0 if ready else _NOT_READY


def _watch(urls: dict[str, str], interval: float) -> None:
    before: dict[str, _Look] = {}
    with Live(console=printing.console(), auto_refresh=False) as live:
        try:
            while True:
                started = time.monotonic()
                looks = asyncio.run(_looks(urls))
                live.update(_view(looks, before), refresh=True)
                before = looks
                time.sleep(max(0.0, interval - (time.monotonic() - started)))
        except KeyboardInterrupt:
            return


# ---- what is shown

_Cell = Callable[[Snapshot, Snapshot | None], Text]


def _view(looks: dict[str, _Look], before: dict[str, _Look]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for address in looks:
        table.add_column(printing.cell(address), min_width=24, overflow="fold")
    for name, cell in _ROWS:
        if _is_worth_a_row(name, looks):
            table.add_row(Text(name, "dim"), *_cells(cell, looks, before))
    failing = [
        printing.cell(f"{address} {look.reason}", "red")
        for address, look in looks.items()
        if look.snapshot is None
    ]
    failing += [
        printing.cell(f"{address} is {look.not_ready}", "red")
        for address, look in looks.items()
        if look.not_ready
    ]
    return Group(table, *failing) if failing else table


def _is_worth_a_row(name: str, looks: dict[str, _Look]) -> bool:
    metrics = _WHERE_THERE_IS_ONE.get(name)
    return metrics is None or any(
        look.snapshot and look.snapshot.total(metric) for look in looks.values() for metric in metrics
    )


def _cells(cell: _Cell, looks: dict[str, _Look], before: dict[str, _Look]) -> Sequence[Text]:
    cells = []
    for address, look in looks.items():
        earlier = before[address].snapshot if address in before else None
        cells.append(cell(look.snapshot, earlier) if look.snapshot is not None else Text("-", "dim"))
    return cells


def _ready(now: Snapshot, _before: Snapshot | None) -> Text:
    return Text("ready", "green") if now.total("ready") else Text("not ready", "red")


def _fill(bytes_name: str, capacity_name: str) -> _Cell:
    def cell(now: Snapshot, _before: Snapshot | None) -> Text:
        used, capacity = now.total(bytes_name) or 0.0, now.total(capacity_name) or 0.0
        if not capacity:
            return Text("-", "dim")
        share = used / capacity
        style = "red" if share >= _ALARM_AT else "yellow" if share >= _WARN_AT else "green"
        length = min(10, round(share * 10))
        bar = Text("█" * length, style).append("░" * (10 - length), "dim")
        return bar.append(f" {share:.0%} of {_bytes(capacity)}", "not dim")

    return cell


def _queued(now: Snapshot, _before: Snapshot | None) -> Text:
    age = now.total("queue_oldest_age_seconds") or 0.0
    rows = f"{now.total('queue_changes') or 0:,.0f} rows"
    return Text(f"{rows}, the oldest {_seconds(age)} old", "yellow" if age > 5 else "")


def _parked(now: Snapshot, _before: Snapshot | None) -> Text:
    threads, changes = now.total("parked_threads") or 0, now.total("parked_changes") or 0
    said = f"{threads:,.0f} threads that the database holds up, {changes:,.0f} changes"
    return Text(said, "yellow") if threads else Text("none", "green")


def _journals(now: Snapshot, _before: Snapshot | None) -> Text:
    unread, others = now.total("journals_parked") or 0, now.total("journals_left_alone") or 0
    said = [f"{unread:,.0f} can't be read or removed"] if unread else []
    said += [f"{others:,.0f} are another database's: `forebay doctor` says what to type"] if others else []
    return printing.cell("; ".join(said), "yellow") if said else Text("none", "green")


def _flow(name: str) -> _Cell:
    def cell(now: Snapshot, before: Snapshot | None) -> Text:
        rate = now.rate(name, before)
        total = f"{now.total(name) or 0:,.0f}"
        return Text(total if rate is None else f"{rate:,.0f}/s, {total} in all")

    return cell


def _quantiles(name: str) -> _Cell:
    def cell(now: Snapshot, before: Snapshot | None) -> Text:
        found = [now.quantile(name, share, before) for share in (0.5, 0.99)]
        mean = now.mean(name, before)
        if mean is None or None in found:
            return Text("-", "dim")
        bounds = " / ".join(f"≤ {_seconds(value)}" for value in found if value is not None)
        return Text(f"{_seconds(mean)}, {bounds}")

    return cell


def _losses(now: Snapshot, _before: Snapshot | None) -> Text:
    found = {
        "dropped": now.by_label("changes_dropped_total", "reason"),
        "turned away": now.by_label("changes_refused_total", "reason"),
    }
    lines = _letters(now) + [
        f"{sum(reasons.values()):,.0f} {name} ({', '.join(reasons)})"
        for name, reasons in found.items()
        if reasons
    ]
    return printing.cell("; ".join(lines), "red") if lines else Text("none", "green")


def _letters(now: Snapshot) -> list[str]:
    """What lies there now: those that were retried, or discarded, since are nobody's concern any more."""
    letters, waiting = now.total("dead_letters") or 0, now.total("dead_letters_waiting") or 0
    said = [f"{letters:,.0f} dead letters"] if letters else []
    return said + ([f"{waiting:,.0f} refused rows that can't be kept as such yet"] if waiting else [])


def _retries(now: Snapshot, _before: Snapshot | None) -> Text:
    found = now.by_label("flush_retries_total", "reason")
    said = ", ".join(f"{count:,.0f} {reason}" for reason, count in found.items())
    return printing.cell(said, "yellow") if said else Text("none", "green")


def _versions(now: Snapshot, _before: Snapshot | None) -> Text:
    return printing.cell(
        f"forebay {now.info('version')}, Chainlit {now.info('chainlit')}, Python {now.info('python')}"
    )


# These rows stand where the process has what they are about: a journal, another one that writes.
_WHERE_THERE_IS_ONE = {
    "journal": ("journal_capacity_bytes",),
    "handed over": ("changes_handed_over_total",),
    "parked": ("parked_threads",),
    "journals left behind": ("journals_parked", "journals_left_alone"),
}

_ROWS: tuple[tuple[str, _Cell], ...] = (
    ("state", _ready),
    ("queue", _fill("queue_bytes", "queue_capacity_bytes")),
    ("queued", _queued),
    ("journal", _fill("journal_bytes", "journal_capacity_bytes")),
    ("parked", _parked),
    ("journals left behind", _journals),
    ("accepted", _flow("changes_accepted_total")),
    ("coalesced", _flow("changes_coalesced_total")),
    ("written", _flow("rows_written_total")),
    ("handed over", _flow("changes_handed_over_total")),
    ("not written", _losses),
    ("failed attempts", _retries),
    ("write latency: mean, p50 / p99", _quantiles("write_latency_seconds")),
    ("flush: mean, p50 / p99", _quantiles("flush_duration_seconds")),
    ("journal sync: mean, p50 / p99", _quantiles("journal_commit_duration_seconds")),
    ("read: mean, p50 / p99", _quantiles("read_duration_seconds")),
    ("loop lag: mean, p50 / p99", _quantiles("event_loop_lag_seconds")),
    ("runs", _versions),
)


def _seconds(value: float) -> str:
    if value == float("inf"):
        return "∞"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs" if value else "0 s"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _summary(look: _Look) -> dict[str, Any]:
    if look.snapshot is None:
        return {"error": look.reason}
    now = look.snapshot
    names = (
        *("queue_changes", "queue_bytes", "queue_capacity_bytes", "queue_oldest_age_seconds"),
        *("journal_bytes", "journal_capacity_bytes", "journal_spilled_changes"),
        *("parked_threads", "parked_changes", "journals_parked", "journals_left_alone"),
        *("dead_letters", "dead_letters_waiting"),
        *("changes_accepted_total", "changes_coalesced_total", "rows_written_total"),
        *("changes_handed_over_total", "flush_retries_total"),
    )
    return {
        "ready": bool(now.total("ready")),
        "reason": look.not_ready,
        **{name: now.total(name) for name in names},
        "dead_lettered": now.by_label("changes_dead_lettered_total", "reason"),
        "dropped": now.by_label("changes_dropped_total", "reason"),
        "refused": now.by_label("changes_refused_total", "reason"),
        "write_latency_mean_seconds": now.mean("write_latency_seconds"),
        "write_latency_p99_seconds": _finite(now.quantile("write_latency_seconds", 0.99)),
        "version": now.info("version"),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value == float("inf") else value
