"""How long a test waits for what must come. A limit here ends a hang, and no machine is too slow for it.

What must not be waited for gets a time of its own that is far longer, so that the limit tells the two apart.
"""

from __future__ import annotations

import asyncio

PATIENCE = 120.0  # seconds
FOR_EVER = 100_000.0  # seconds: for a timeout of forebay's that must not be what ends something


def patience() -> asyncio.Timeout:
    """A context that ends what hangs."""
    return asyncio.timeout(PATIENCE)
