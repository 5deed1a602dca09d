"""No test depends on how fast the machine is: its limits end a hang, and its asserts compare no moments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent.parent
_LIMITS = (
    *("asyncio.timeout", "asyncio.wait_for", "anyio.fail_after", "anyio.move_on_after"),
    *("stop_after_delay", "subprocess.run", "urllib.request.urlopen"),
)
_METHODS = ("communicate", "join", "result", "wait")  # a process's, a thread's, a future's
_NO_LIMIT = "asyncio.wait"  # of what it does not wait for nothing fails
_CLOCKS = ("time.monotonic", "time.perf_counter", "time.time", "perf_counter", "monotonic")
_ENOUGH = 120.0  # seconds


def _is_short(call: ast.Call) -> bool:
    """A limit in seconds that a slow machine may need longer than."""
    name = ast.unparse(call.func)
    is_method = isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS and name != _NO_LIMIT
    if name not in _LIMITS and not is_method:
        return False
    limits = (
        *call.args[-1:],
        *(keyword.value for keyword in call.keywords if keyword.arg in ("timeout", "delay")),
    )
    values = (each.value for each in limits if isinstance(each, ast.Constant))
    return any(isinstance(value, int | float) and value < _ENOUGH for value in values)


def _is_near(deadline: ast.BinOp) -> bool:
    """A moment that is so far from now."""
    if not isinstance(deadline.op, ast.Add) or not isinstance(deadline.right, ast.Constant):
        return False
    now, seconds = deadline.left, deadline.right.value
    return (
        isinstance(now, ast.Call)
        and ast.unparse(now.func) in _CLOCKS
        and isinstance(seconds, int | float)
        and seconds < _ENOUGH
    )


def _is_upper_bound(test: ast.expr) -> bool:
    """What has passed since a moment is to be less than something."""
    if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.Lt | ast.LtE):
        return False
    calls = (ast.unparse(each.func) for each in ast.walk(test.left) if isinstance(each, ast.Call))
    return isinstance(test.left, ast.BinOp) and any(call in _CLOCKS for call in calls)


def _faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Call) and _is_short(node)) or (
            isinstance(node, ast.BinOp) and _is_near(node)
        ):
            yield f"{node.lineno}: take patience() or PATIENCE of tests.support.patience"
        elif isinstance(node, ast.Assert) and _is_upper_bound(node.test):
            yield f"{node.lineno}: a slow machine fails this; let the wrong way last FOR_EVER instead"


def test_no_test_depends_on_the_machines_speed() -> None:
    found = [f"{path}:{fault}" for path in _TESTS.rglob("*.py") for fault in _faults(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "async with asyncio.timeout(5): ...",
        "await asyncio.wait_for(it, 30)",
        "with anyio.fail_after(30): ...",
        "await asyncio.wait_for(it, timeout=1.5)",
        "subprocess.run(command, check=True, timeout=30)",
        "process.wait(10)",
        "stop = stop_after_delay(30)",
        "assert time.monotonic() - started < 9",
        "deadline = time.monotonic() + 20",
    ],
)
def test_what_does_is_found(source: str) -> None:
    assert [*_faults(f"async def f():\n    {source}")]
