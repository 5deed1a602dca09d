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
from forebay.journal import adopt
from tests.faults.fork_worker import THREAD

_PATIENCE = 60.0


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
        return self._process.wait(_PATIENCE)


@contextmanager
def _worker(case: str, url: str, folder: Path) -> Iterator[Worker]:
    """A worker; at the end its standard input is closed, which ends those that it has left behind."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.fork_worker", case, url, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        too_late = threading.Timer(_PATIENCE, process.kill)
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
_CASES = {
    # what the child does -> what is heard of it, what the thread holds in the end
    "child_writes": (_REFUSED, "after before"),
    "child_reads": (_REFUSED, "after before"),
    "child_flushes": (_REFUSED, "after before"),
    "child_closes": (None, "after before"),
    "child_does_nothing": (None, "after before"),
    "child_makes_its_own": ("child closed its own", "after before child"),
    "child_has_an_unused_one": ("child closed it", "after before child"),
}


@pytest.mark.parametrize("ending", ["closed", "killed"])
@pytest.mark.parametrize("case", _CASES)
async def test_the_parents_journal_is_its_own(
    chainlit_context: ChainlitContext, migrated_url: str, folder: Path, case: str, ending: str
) -> None:
    heard, held = _CASES[case]
    with _worker(case, migrated_url, folder) as worker:
        events = worker.until("acknowledged")
        expected = [heard] if heard else []
        assert events == [*expected, "child ended 0", "acknowledged"]
        assert len(list(folder.glob("*.journal"))) == 1, "the parent's"
        assert adopt(folder) is None, "the parent holds it"
        if ending == "closed":
            worker.say("close")
            assert worker.until("closed")[-1] == f"closed {held}"
            assert worker.wait() == 0
            assert list(folder.iterdir()) == []
        else:
            worker.kill()
    assert await _stored(migrated_url, folder) == held.split()
    assert list(folder.glob("*.journal*")) == []


@pytest.mark.parametrize("case", ["child_outlives", "grandchild_outlives", "program_outlives"])
async def test_the_parents_lock_ends_with_it(
    chainlit_context: ChainlitContext, migrated_url: str, folder: Path, case: str
) -> None:
    with _worker(case, migrated_url, folder) as worker:
        worker.until("acknowledged")
        if "child lives" not in worker.events:
            worker.until("child lives")
        assert adopt(folder) is None, "the parent holds it"
        worker.kill()
        assert await _stored(migrated_url, folder) == ["after", "before"]
        assert list(folder.glob("*.journal*")) == []
