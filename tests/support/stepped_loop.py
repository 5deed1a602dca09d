"""An event loop that a test steps: it runs until nothing more can happen, and time passes when the test says so."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

from typing_extensions import override

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_PATIENCE = 30.0  # real seconds that a thread may take


class SteppedLoop(asyncio.SelectorEventLoop):
    """Its clock stands still but for `run`. Work in its executor is waited for.

    `busy` tells whether another thread has still to say something. What goes wrong in a callback is in `errors`.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._selected = _Selector(self)
        super().__init__(self._selected)
        self._busy = busy
        self._now = 0.0
        self._until = 0.0
        self._at_work = 0
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    @override
    def time(self) -> float:
        """The stepped clock."""
        return self._now

    @property
    def is_busy(self) -> bool:
        """Whether there is something in a thread to wait for."""
        return self._at_work > 0 or self._busy()

    @override
    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """As the base class; what runs there is waited for."""
        future = super().run_in_executor(executor, func, *args)
        self._at_work += 1
        future.add_done_callback(self._worked)
        return future

    def _worked(self, _future: Any) -> None:
        self._at_work -= 1

    def run(self, seconds: float = 0.0) -> None:
        """Run until nothing more happens within so many seconds of the stepped clock."""
        self._until = self._now + seconds
        self.run_forever()
        self._now = self._until

    def complete(self, call: Coroutine[Any, Any, _T], seconds: float = 0.0) -> _T:
        """Run a coroutine that must come to its end by then; its result."""
        task = self.create_task(call)
        self.run(seconds)
        assert task.done(), f"it waits for something: {task}"
        return task.result()

    def nothing_to_do(self, timeout: float | None) -> None:
        """Let time pass to the next timer, or stop."""
        if timeout is not None and self._now + timeout <= self._until:
            self._now += timeout
        else:
            self.stop()


class _Selector(selectors.DefaultSelector):
    """Where the loop would sleep, it waits for threads, or moves its clock."""

    def __init__(self, loop: SteppedLoop) -> None:
        super().__init__()
        self._loop = loop

    @override
    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self._loop.is_busy:
            events = super().select(_PATIENCE)
            assert events, "a thread does not answer"
        else:
            self._loop.nothing_to_do(timeout)
        return events
