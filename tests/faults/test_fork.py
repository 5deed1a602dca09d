"""After a fork: the child never writes the parent's journal, which stays whole, and its lock ends with the parent."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chainlit.context import ChainlitContext

from forebay import ForebayDataLayer, Settings
from forebay.journal.orphan import adopt
from tests.faults.fork_worker import THREAD
from tests.support.patience import PATIENCE


class Worker:
    """A running `fork_worker`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.events: list[str] = []

    def until(self, wanted: str) -> list[str]:
        """Read its events up to one; all so far."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.append(line.rstrip("\n"))
            if self.events[-1].startswith(wanted):
                return self.events
        raise AssertionError(f"it ended before {wanted!r}: {self.events}")

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End the parent, not its children."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        return self._process.wait(PATIENCE)


@contextmanager
def _worker(case: str, url: str, folder: Path) -> Iterator[Worker]:
    """A worker; at the end its standard input is closed, which ends those that it has left behind."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.fork_worker", case, url, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        too_late = threading.Timer(PATIENCE, process.kill)
        too_late.start()
        try:
            yield Worker(process)
        finally:
            too_late.cancel()
            process.kill()
            assert process.stdin is not None
            process.stdin.close()


async def _stored(url: str, folder: Path) -> list[str]:
    """What the next process finds: the names of the thread's steps."""
    layer = ForebayDataLayer(url, settings=Settings(journal_dir=folder))
    thread = await layer.get_thread(THREAD)
    await layer.close()
    return sorted(step["name"] for step in thread["steps"]) if thread else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journals"


_REFUSED = "child refused LayerForked"
_AS_IT_IS = "after before"
_CASES = [
    # what the child does, what is heard of it, what the thread holds in the end
    pytest.param("child_writes", _REFUSED, _AS_IT_IS, id="writes"),
    pytest.param("child_reads", _REFUSED, _AS_IT_IS, id="reads"),
    pytest.param("child_flushes", _REFUSED, _AS_IT_IS, id="flushes"),
    pytest.param("child_closes", None, _AS_IT_IS, id="closes"),
    pytest.param("child_forgets_it", None, _AS_IT_IS, id="forgets"),
    pytest.param("child_makes_its_own", "child closed its own", f"{_AS_IT_IS} child", id="own"),
    pytest.param("child_has_an_unused_one", "child closed it", f"{_AS_IT_IS} child", id="unused"),
]


async def _assert_all_is_well(
    url: str, folder: Path, case: str, heard: str | None, held: str, ending: str
) -> None:
    with _worker(case, url, folder) as worker:
        events = worker.until("acknowledged")
        assert events == [*([heard] if heard else []), "child ended 0", "acknowledged"]
        assert len(list(folder.glob("*.journal"))) == 1, "the parent's"
        assert adopt(folder) is None, "the parent holds it"
        if ending == "closed":
            worker.say("close")
            assert worker.until("closed")[-1] == f"closed {held}"
            assert worker.wait() == 0
            assert list(folder.iterdir()) == []
        else:
            worker.kill()
    assert await _stored(url, folder) == held.split()
    assert list(folder.glob("*.journal*")) == []


@pytest.mark.parametrize(("case", "heard", "held"), _CASES)
async def test_the_parents_journal_is_its_own(
    chainlit_context: ChainlitContext,
    migrated_sqlite_url: str,
    folder: Path,
    case: str,
    heard: str | None,
    held: str,
) -> None:
    await _assert_all_is_well(migrated_sqlite_url, folder, case, heard, held, "killed")


@pytest.mark.parametrize(("case", "heard", "held"), [_CASES[0], _CASES[-1]])
async def test_the_parent_goes_on_with_its_connections(
    chainlit_context: ChainlitContext,
    migrated_postgres_url: str,
    folder: Path,
    case: str,
    heard: str | None,
    held: str,
) -> None:
    """Those are shared after a fork: a word of the child's would be in the middle of the parent's."""
    await _assert_all_is_well(migrated_postgres_url, folder, case, heard, held, "closed")


@pytest.mark.parametrize("case", ["child_outlives", "grandchild_outlives", "program_outlives"])
async def test_the_parents_lock_ends_with_it(
    chainlit_context: ChainlitContext, migrated_sqlite_url: str, folder: Path, case: str
) -> None:
    with _worker(case, migrated_sqlite_url, folder) as worker:
        worker.until("acknowledged")
        if "child lives" not in worker.events:
            worker.until("child lives")
        assert adopt(folder) is None, "the parent holds it"
        worker.kill()
        assert await _stored(migrated_sqlite_url, folder) == ["after", "before"]
        assert list(folder.glob("*.journal*")) == []
