"""`/metrics` on the Chainlit app's own port, for who scrapes nothing else. Whoever reaches the app may read it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forebay.telemetry.listener import exposition

_ROUTE = "forebay-metrics"


def publish(registry: Callable[[], Awaitable[CollectorRegistry]]) -> None:
    """Serve what `registry` gives from the Chainlit app, if there is one in this process; a later one takes its place.

    Chainlit answers every path that it does not know with its page, so the route stands before that one, and
    below the path that `--root-path` gives.
    """
    server = sys.modules.get("chainlit.server")
    app = getattr(server, "app", None)
    if server is None or app is None:
        return
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "name", "") != _ROUTE]

    async def metrics(request: Request) -> Response:
        body, content_type = exposition(await registry(), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    path = f"{server.config.run.root_path}/metrics"
    routes.insert(0, Route(path, metrics, methods=["GET"], name=_ROUTE))
