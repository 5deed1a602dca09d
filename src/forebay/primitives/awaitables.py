"""What can be waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

_T_co = TypeVar("_T_co", covariant=True)


class Deferred(Generic[_T_co]):
    """An awaitable that is made when somebody waits, and that nobody has to wait for."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Awaitable[_T_co]]) -> None:
        self._make = make

    def __await__(self) -> Generator[Any, Any, _T_co]:
        return self._make().__await__()


class _Nothing:
    """What there is nothing to wait for."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


NOTHING = _Nothing()  # it may be awaited again and again


def failed(error: BaseException) -> Deferred[Any]:
    """An awaitable that raises."""

    async def fail() -> None:
        raise error

    return Deferred(fail)
