"""A web server in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def served(**pages: web.Response | object) -> AsyncIterator[str]:
    """Serve each page at its name: a response, or a handler. The server's address."""
    app = web.Application()
    for name, page in pages.items():
        app.router.add_get(f"/{name}", page if callable(page) else _giving(page))  # type: ignore[arg-type]
    async with running(app) as url:
        yield url


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    """The address of an application, while it is there."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def _giving(page: object) -> object:
    async def give(_: web.Request) -> object:
        return page

    return give
