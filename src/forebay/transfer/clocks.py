"""Which clocks a source's times are by: as somebody says, or as the rows tell; refused where the two differ."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from forebay.database.official import Clocks
from forebay.errors import SettingsError

_MONTH = timedelta(days=27)
_QUARTER, _HOUR = 900.0, 3600.0
_LATE = 1.0  # seconds that two clocks may differ


@dataclass(frozen=True)
class Zones:
    """Where the application's and the database's clocks stood."""

    application: tzinfo = UTC
    database: tzinfo = UTC


def zone(name: str) -> tzinfo:
    """A time zone by its name, as Europe/Berlin. Raises SettingsError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingsError("a time zone is a name as Europe/Berlin, America/New_York or UTC") from None


def settled(clocks: Clocks, application: str | None, database: str | None) -> Zones:
    """The zones that were said, or that the rows tell.

    Raises SettingsError where the rows contradict what was said, or tell no single offset.
    """
    of_database = _of_database(clocks, database)
    return Zones(_of_application(clocks, application, of_database), of_database)


def _of_database(clocks: Clocks, said: str | None) -> tzinfo:
    if said is not None:
        found = zone(said)
        for month, seconds in clocks.database.items():
            if seconds not in _within(found, month):
                raise _contradiction("--database-timezone", said, month, f"at UTC{_shown(seconds)}")
        return found
    offsets = set(clocks.database.values())
    if len(offsets) > 1:
        shown = ", ".join(f"UTC{_shown(seconds)}" for seconds in sorted(offsets))
        raise SettingsError(
            f"the database's clock was at {shown}: say its time zone with --database-timezone"
        )
    return timezone(timedelta(seconds=offsets.pop())) if offsets else UTC


def _of_application(clocks: Clocks, said: str | None, database: tzinfo) -> tzinfo:
    ahead = {month: least + max(_within(database, month)) for month, least in clocks.between.items()}
    if said is not None:
        found = zone(said)
        for month, most in ahead.items():
            if min(_within(found, month)) > most + _LATE:
                raise _contradiction("--app-timezone", said, month, f"at most at UTC{_shown(most)}")
        return found
    least = min(clocks.between.values(), default=0.0)
    if 0 <= least < _HOUR:  # threads that were changed only after a while
        return database
    month = min(clocks.between, key=lambda one: clocks.between[one])
    seconds = (ahead[month] + _LATE) // _QUARTER * _QUARTER
    return timezone(timedelta(seconds=seconds)) if abs(seconds) < 24 * _HOUR else database


def _contradiction(option: str, said: str, month: datetime, found: str) -> SettingsError:
    return SettingsError(f"{option}={said} contradicts the rows: in {month:%Y-%m} that clock was {found}")


def _within(found: tzinfo, month: datetime) -> set[float]:
    """The offsets that a zone has in a month: two in those in which summer time begins and ends."""
    offsets = (found.utcoffset(month), found.utcoffset(month + _MONTH))
    return {offset.total_seconds() for offset in offsets if offset is not None}


def _shown(seconds: float) -> str:
    sign, minutes = ("-" if seconds < 0 else "+"), int(abs(seconds)) // 60
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}"


def utc(moment: datetime, found: tzinfo) -> datetime:
    """A clock's time, which says no zone, in UTC."""
    return moment.replace(tzinfo=found).astimezone(UTC)


def microseconds(moment: datetime) -> int:
    """Since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
