"""The listener for operators: `/metrics`, `/healthz` and `/readyz`, beside the application and off its port.

`/` is a page to look at. `/healthz` answers 200 while the process should live, `/readyz` while it should get traffic;
else 503 and why.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import weakref
from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from typing_extensions import override

from forebay.primitives import posix
from forebay.primitives.addresses import origin
from forebay.settings import parse_address
from forebay.telemetry.page import HEADERS, PAGE

logger = logging.getLogger("forebay.server")

# Why not; None for "all is well".
Check = Callable[[], str | None]


class Listener:
    """Serves a registry and probes on `address`: `host:port`, port 0 for any free one, or `off`.

    `ready` and `alive` say why the process should get no traffic, or be started again. An asynchronous context
    manager. An address that can't be used is a warning in the log, never an error.
    """

    def __init__(
        self, address: str, registry: CollectorRegistry, ready: Check, alive: Check = lambda: None
    ) -> None:
        self._address = address
        self._registry = registry
        self._ready = ready
        self._alive = alive
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None

    @override
    def __repr__(self) -> str:
        return f"<Listener {self.url or 'closed'}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str | None:
        """Where it listens, as in `http://127.0.0.1:9464`; None while it does not."""
        if self._socket is None:
            return None
        host, port = self._socket.getsockname()[:2]
        return origin(host, port)

    async def start(self) -> None:
        """Listen, unless the address is `off`, or can't be used."""
        where = parse_address(self._address)
        if where is None or self._socket is not None:
            return
        try:
            self._socket = _listen(*where)
        except OSError as error:
            logger.warning(
                "metrics not served address=%s reason=%s; set FOREBAY_METRICS_ADDRESS to another address, or to off",
                self._address,
                error.strerror,
            )
            return
        _listening.add(self)
        self._runner = web.AppRunner(self._application(), access_log=None)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()
        logger.info("metrics served url=%s", self.url)

    async def close(self) -> None:
        """Let go of the address."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the address without a loop: the one that it ran in has ended, or is another process's."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._runner = None

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/", _page)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._probe(self._alive))
        application.router.add_get("/readyz", self._probe(self._ready))
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = exposition(self._registry, request.headers.get("Accept", ""))
        # As a header: `content_type` takes no parameters, and the version is one.
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    def _probe(self, check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_request: web.Request) -> web.Response:
            reason = check()
            if reason is None:
                return web.json_response({"status": "ok"})
            return web.json_response({"status": "failing", "reason": reason}, status=503)

        return answer


async def _page(_request: web.Request) -> web.Response:
    return web.Response(body=PAGE.encode(), headers=HEADERS)


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that an Accept header asks for, and the Content-Type that says which it is."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


# A forked child must not keep the port of its parent.
_listening: weakref.WeakSet[Listener] = weakref.WeakSet()


def _after_fork() -> None:
    for listener in list(_listening):
        with contextlib.suppress(OSError):
            listener.abandon()


posix.after_fork(_after_fork)
