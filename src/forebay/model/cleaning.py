"""Values of any type -> values that both databases take, by rules that never lose a row.

- text: NUL and lone surrogates become U+FFFD; bytes are read as UTF-8; objects become their JSON.
- JSON: NaN and infinities become null; integers beyond 64 bits become strings; sets become lists; keys that
  are not strings become strings; what has no JSON form becomes `str(value)`; a cycle or more than
  `MAX_DEPTH` levels end in "…".
- times are UTC, ISO 8601, with a `Z`; a time without a zone is taken as UTC.

A value that can't be made to fit its column raises `Misfit`, and the caller keeps it elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import orjson

from forebay.model.schema import Kind

MAX_DEPTH = 100
_REPLACEMENT = "\ufffd"
_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_BOOLS = {"true": True, "false": False, "1": True, "0": False}


class Misfit(ValueError):
    """The value has no form that its column can hold."""


def timestamp(moment: datetime) -> str:
    """A time as Chainlit writes it: UTC, ISO 8601, microseconds, `Z`."""
    zoned = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return zoned.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def now() -> str:
    """The present time, as `timestamp` writes it."""
    return timestamp(datetime.now(UTC))


def utc(written: str) -> str:
    """A time in ISO 8601 with an offset as `timestamp` writes it; any other text as it is."""
    if written[-1:] == "Z":
        return written
    try:
        moment = datetime.fromisoformat(written)
        return timestamp(moment) if moment.tzinfo is not None else written
    except (ValueError, OverflowError):
        return written


def text(value: Any) -> str:
    """Any value as text that UTF-8 and both databases can hold."""
    written = value if type(value) is str else _as_text(value)
    if written.isascii():
        return written if "\x00" not in written else written.replace("\x00", _REPLACEMENT)
    return _without_strays(written)


def _without_strays(written: str) -> str:
    try:
        written.encode()
    except UnicodeEncodeError:
        # Halves of a pair that stand side by side are joined; a half alone is replaced.
        written = written.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return written.replace("\x00", _REPLACEMENT)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return json(value).decode()
    return _digits(value) if isinstance(value, int) else _any_text(value)


def _digits(number: int) -> str:
    """Decimal; hexadecimal beyond the 4,300 digits that Python writes, since they take quadratic time."""
    try:
        return str(int(number))
    except ValueError:
        return hex(number)


def _any_text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # a __str__ of the application's own may fail in any way
        return f"<{type(value).__name__}>"


def identifier(value: Any) -> str | None:
    """An id as text; an empty one means that there is none."""
    return text(value) or None


def boolean(value: Any) -> bool:
    """True or false, also from 0, 1 and their names."""
    if isinstance(value, bool):
        return value
    known = _BOOLS.get(text(value).strip().lower()) if isinstance(value, int | str) else None
    if known is None:
        raise Misfit
    return known


def integer(value: Any) -> int:
    """A whole number of 32 bits, which is what the tables hold."""
    try:
        number = int(value)
        whole = number == float(value)
    except (TypeError, ValueError, OverflowError):
        raise Misfit from None
    if not whole or number not in _INT32:
        raise Misfit
    return number


def strings(value: Any) -> list[str]:
    """A list of texts, also as JSON; another text is a list of one, and None within is left out."""
    if isinstance(value, str | bytes):
        value = _listed(value)
    if isinstance(value, set | frozenset):
        return sorted(text(item) for item in value if item is not None)
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return [text(item) for item in value if item is not None]
    raise Misfit


def _listed(value: str | bytes) -> list[Any]:
    """What subclasses for SQLite give: it has no lists."""
    try:
        listed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return [value]
    return listed if isinstance(listed, list) else [value]


def document(value: Any) -> bytes:
    """An object or a list as JSON, frozen at this moment; text that holds one is read."""
    if type(value) is dict and not value:
        return b"{}"
    if isinstance(value, str | bytes):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise Misfit from None
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        raise Misfit
    return json(value)


def json(value: Any) -> bytes:
    """Any value as JSON in UTF-8."""
    try:
        written = orjson.dumps(value, default=_default, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except (TypeError, RecursionError):  # orjson's JSONEncodeError is a TypeError
        return orjson.dumps(_scrub(value, ()))
    # A NUL may hide behind an escape; an escaped backslash before "u0000" only looks like one.
    return written if b"\\u0000" not in written else orjson.dumps(_scrub(value, ()))


def _default(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    return text(value)


def _scrub(value: Any, path: tuple[int, ...]) -> Any:
    """`value` with everything replaced that JSON or a database would refuse. `path`: the ids of its parents."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        return int(value) if value in _INT64 else _digits(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _scrub_container(value, path)


def _scrub_container(value: Any, path: tuple[int, ...]) -> Any:
    if id(value) in path or len(path) >= MAX_DEPTH:
        return "…"
    inner = (*path, id(value))
    if isinstance(value, Mapping):
        return {text(key): _scrub(item, inner) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrub(item, inner) for item in value]
    if isinstance(value, set | frozenset):
        return [_scrub(item, inner) for item in sorted(value, key=str)]
    return _scrub(_plain(value), inner)


def _plain(value: Any) -> Any:
    """What orjson makes of the types that it knows by itself (dataclasses, UUIDs, enums), else its text."""
    try:
        return orjson.loads(orjson.dumps(value, default=_default, option=orjson.OPT_PASSTHROUGH_DATETIME))
    except (TypeError, RecursionError):
        return _any_text(value)


CLEANERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.ID: identifier,
    Kind.TEXT: text,
    Kind.BOOL: boolean,
    Kind.INT: integer,
    Kind.LIST: strings,
    Kind.OBJECT: document,
}
