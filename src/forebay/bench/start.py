"""The start, in a process of its own: what it costs until the first row is stored, and how long the loop stands still.

Chainlit is imported before the clock runs, as the server has done that. The order, a line of JSON on standard input,
holds a URL that may hold a password; the result is a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array
from pathlib import Path

import chainlit.data.base
import chainlit.user_session  # noqa: F401  # what `chainlit run` has imported
from chainlit.context import init_http_context

_AFTER = 0.05  # seconds in which the loop runs before the first write and after it


async def _measure(url: str, folder: Path, started: float) -> dict[str, float]:
    from forebay import ForebayDataLayer, Settings
    from forebay.bench.gauges import lag_sampled
    from forebay.bench.workload import new_id

    init_http_context()
    imported, lags = time.process_time(), array("d")
    with lag_sampled(lags):
        await asyncio.sleep(_AFTER)
        layer = ForebayDataLayer(
            url, settings=Settings(journal_dir=folder, metrics_address="off", storage="none")
        )
        await layer.create_step(
            {"id": new_id(), "threadId": new_id(), "name": "s", "type": "run", "output": "The first"}
        )
        await layer.flush()
        stored = time.process_time()
        await asyncio.sleep(_AFTER)
    await layer.close()
    return {
        "cpu_ms": (stored - started) * 1000,
        "import_cpu_ms": (imported - started) * 1000,
        "stall_ms": max(lags) * 1000,
    }


def main() -> None:
    """Obey one order."""
    order = json.loads(sys.stdin.readline())
    result = asyncio.run(_measure(order["url"], Path(order["folder"]), time.process_time()))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
