"""The listener for operators: `/metrics`, `/healthz` and `/readyz`, beside the application and off its port.

`/` is a page to look at. `/healthz` answers 200 while the process should live, `/readyz` while it should get traffic;
else 503 and why. What somebody should look at meanwhile, `/readyz` says as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from typing_extensions import override

from forebay.primitives import posix
from forebay.primitives.addresses import origin
from forebay.settings import parse_address
from forebay.telemetry.page import HEADERS, PAGE
from forebay.telemetry.workers import Together, Workers, families_of

logger = logging.getLogger("forebay.server")

# Why not; None for "all is well".
Check = Callable[[], str | None]

# How often a worker without the port tries to take it, in seconds.
_PORT_INTERVAL = 1.0


class Listener:
    """Serves a registry and probes on `address`: `host:port`, port 0 for any free one, or `off`.

    `ready` and `alive` say why the process should get no traffic, or be started again; `closing`, whether it ends by
    itself; `warning`, what else is wrong. An asynchronous context manager. An address that can't be used is a warning
    in the log, never an error.

    With `journal_dir`, the processes that share it and the address are workers of one command. One of them has the
    port and serves them all; where it ends, another takes it. Such a port is ready, and alive, if all of them are.
    """

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        ready: Check,
        alive: Check = lambda: None,
        closing: Callable[[], bool] = lambda: False,
        journal_dir: Path | None = None,
        *,
        warning: Check = lambda: None,
    ) -> None:
        self._address = address
        self._where = parse_address(address)
        self._registry = registry
        self._checks = {"ready": ready, "alive": alive}
        self._closing = closing
        self._warning = warning
        self._socket: socket.socket | None = None
        self._runners: list[web.AppRunner] = []
        self._waiting: asyncio.Task[None] | None = None
        shared = journal_dir is not None and self._where is not None and self._where[1] != 0
        self._workers = Workers(journal_dir, address) if shared and journal_dir is not None else None
        self._worker_socket: socket.socket | None = None

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
        if self._where is None or self._socket is not None or self._waiting is not None:
            return
        _listening.add(self)
        await self._join_workers()
        try:
            await self._take_port(*self._where)
        except OSError as error:
            if self._workers is not None and error.errno == errno.EADDRINUSE:
                waiting = self._wait_for_port(*self._where)
                self._waiting = asyncio.get_running_loop().create_task(waiting, name="forebay-port")
            else:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        logger.warning(
            "metrics not served address=%s reason=%s; set FOREBAY_METRICS_ADDRESS to another address, or to off",
            self._address,
            error.strerror,
        )

    async def _join_workers(self) -> None:
        if self._workers is None:
            return
        try:
            self._worker_socket = self._workers.join()
        except OSError as error:
            logger.info("metrics of this process alone address=%s reason=%s", self._address, error.strerror)
            self._workers = None
            return
        application = web.Application()
        application.router.add_get("/samples", self._own_samples)
        application.router.add_get("/checks", self._own_checks)
        await self._serve(application, self._worker_socket)

    async def _take_port(self, host: str, port: int) -> None:
        self._socket = _listen(host, port)
        await self._serve(self._application(), self._socket)
        logger.info("metrics served url=%s", self.url)

    async def _serve(self, application: web.Application, on: socket.socket) -> None:
        runner = web.AppRunner(application, access_log=None)
        self._runners.append(runner)
        await runner.setup()
        await web.SockSite(runner, on).start()

    async def _wait_for_port(self, host: str, port: int) -> None:
        """Another process has it: one of the workers, who serves this one too, or a stranger."""
        told = False
        while True:
            await asyncio.sleep(_PORT_INTERVAL)
            with contextlib.suppress(OSError):
                await self._take_port(host, port)
                return
            if not told:
                await self._tell_who_has_it()
                told = True

    async def _tell_who_has_it(self) -> None:
        if self._workers is not None and await self._workers.ask("/checks"):
            logger.info("metrics served by another worker address=%s", self._address)
        else:
            self._warn(OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))

    async def close(self) -> None:
        """Let go of the address."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait([waiting])
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()
        if self._workers is not None:
            self._workers.leave()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the address without a loop: the one that it ran in has ended, or is another process's."""
        for one in (self._socket, self._worker_socket):
            if one is not None:
                one.close()
        if self._workers is not None:
            self._workers.abandon()
        self._socket = self._worker_socket = self._waiting = None
        self._runners = []

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/", _page)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._probe("alive"))
        application.router.add_get("/readyz", self._probe("ready", self._warning))
        return application

    async def _metrics(self, request: web.Request) -> web.Response:
        registry = await self.everybodys_registry()
        body, content_type = exposition(registry, request.headers.get("Accept", ""))
        # As a header: `content_type` takes no parameters, and the version is one.
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    async def everybodys_registry(self) -> CollectorRegistry:
        """This process's, or one with all workers' metrics once there have been several."""
        workers = self._workers
        answers = await workers.ask("/samples") if workers is not None else []
        if workers is None or workers.number is None or not workers.met_others:
            return self._registry
        of_workers = {workers.number: families_of(self._registry.collect())}
        of_workers |= {answer.number: answer.said for answer in answers if answer.said is not None}
        together = CollectorRegistry()
        together.register(Together(of_workers))
        return together

    def _probe(
        self, name: str, warning: Check = lambda: None
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_request: web.Request) -> web.Response:
            reason, also = await self._reason(name), warning()
            said = {"status": "ok"} if reason is None else {"status": "failing", "reason": reason}
            if also is not None:
                said["warning"] = also
            return web.json_response(said, status=200 if reason is None else 503)

        return answer

    async def _reason(self, name: str) -> str | None:
        """Why not; of several workers, of each that does not end by itself, as when one takes another's place."""
        own = self._checks[name]()
        answers = await self._workers.ask("/checks") if self._workers is not None else []
        if self._workers is None or self._workers.number is None or not answers:
            return own
        reasons = {
            answer.number: _reason_of(answer.said, name) for answer in answers if not _is_ending(answer.said)
        }
        if not self._closing() or not reasons:
            reasons[self._workers.number] = own
        failing = (f"worker {number}: {reason}" for number, reason in sorted(reasons.items()) if reason)
        return "; ".join(failing) or None

    async def _own_samples(self, _request: web.Request) -> web.Response:
        return web.json_response(families_of(self._registry.collect()))

    async def _own_checks(self, _request: web.Request) -> web.Response:
        said = {name: check() for name, check in self._checks.items()}
        return web.json_response({**said, "closing": self._closing()})


def _reason_of(said: Any, name: str) -> str | None:
    if said is None:
        return "it does not answer"
    reason: str | None = said[name]
    return reason


def _is_ending(said: Any) -> bool:
    return said is not None and bool(said["closing"])


async def _page(_request: web.Request) -> web.Response:
    return web.Response(body=PAGE.encode(), headers=HEADERS)


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that an Accept header asks for, and the Content-Type that says which it is."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _listen(host: str, port: int) -> socket.socket:
    if ":" not in host:
        return socket.create_server((host, port))
    # All addresses are those of IPv4 too, whatever the system's default is for a socket of IPv6.
    both = ipaddress.IPv6Address(host.partition("%")[0]).is_unspecified and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=both)


# A forked child must not keep the port of its parent.
_listening: weakref.WeakSet[Listener] = weakref.WeakSet()


def _after_fork() -> None:
    for listener in list(_listening):
        with contextlib.suppress(OSError):
            listener.abandon()


posix.after_fork(_after_fork)
