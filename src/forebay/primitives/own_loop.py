"""An event loop in a thread of its own, for what must not end with its caller's."""

from __future__ import annotations

import asyncio
import threading

from typing_extensions import override


class OwnLoop:
    """Runs from `start` until `end`, or until the process does, which it does not keep from ending."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    @override
    def __repr__(self) -> str:
        return f"<OwnLoop {self.thread.name} {'running' if self.thread.is_alive() else 'not running'}>"

    def start(self) -> None:
        """Run what was scheduled, and from now on what is."""
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            self.loop.close()

    async def end(self) -> None:
        """Stop, and return when the thread has ended. To be called in another loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self.thread.join)
