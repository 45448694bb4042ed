"""From the use cases to an ``aiohttp`` application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import msgspec
from aiohttp import web

from guardian.http.docs import docs_page, docs_policy
from guardian.http.endpoints import ENDPOINTS, Endpoint
from guardian.http.exchange import ENVIRONMENT, REQUEST_ID, Environment, Exchange, Handler
from guardian.http.health import Health
from guardian.http.middleware import Throttle, middlewares
from guardian.http.middleware.receive import expect_continue
from guardian.http.middleware.throttle import THROTTLE
from guardian.http.openapi import openapi_document
from guardian.http.problems import SECURITY_HEADERS, new_request_id
from guardian.http.routes import HANDLERS
from guardian.settings import Settings
from guardian.telemetry import METRICS_CONTENT_TYPE, Metrics
from guardian.usecases.ports import Log
from guardian.usecases.services import Services


def build_application(
    services: Services,
    log: Log,
    health: Health,
    settings: Settings,
    metrics: Metrics,
    *,
    version: str | None = None,
) -> web.Application:
    """The service as an application; :class:`guardian.http.HttpServer` serves it.

    Args:
        services: the use cases.
        log: for redirects to the leader.
        health: for the probes.
        settings: limits, deadlines, and whether metrics have a listener of their own.
        metrics: where requests are counted, and what ``/metrics`` shows.
        version: of the software; by default the installed distribution's.
    """
    version = version or _installed_version()
    throttle = Throttle(settings)
    application = web.Application(
        middlewares=middlewares(throttle), client_max_size=settings.body_limit
    )
    with_metrics = settings.metrics is None
    served = [e for e in ENDPOINTS if with_metrics or e.operation != "metrics"]
    application[THROTTLE] = throttle
    application[ENVIRONMENT] = Environment(
        services=services,
        log=log,
        health=health,
        settings=settings,
        metrics=metrics,
        version=version,
        endpoints=_route(application, served),
        openapi=msgspec.json.encode(openapi_document(version, with_metrics=with_metrics)),
        docs=docs_page(version),
        docs_policy=docs_policy(),
    )
    application.on_response_prepare.append(_finish)
    return application


def build_metrics_application(metrics: Metrics) -> web.Application:
    """What listens on ``settings.metrics``: ``/metrics`` alone."""

    async def show(_: web.Request) -> web.Response:
        headers = {"Content-Type": METRICS_CONTENT_TYPE}
        return web.Response(body=metrics.render(), headers=headers)

    application = web.Application()
    application.router.add_get("/metrics", show)
    application.on_response_prepare.append(_finish)
    return application


def _route(
    application: web.Application, served: list[Endpoint]
) -> dict[web.AbstractRoute, Endpoint]:
    """Register every endpoint; whatever answers GET answers HEAD."""
    routes: dict[web.AbstractRoute, Endpoint] = {}
    resources: dict[str, web.Resource] = {}
    for endpoint in served:
        if endpoint.path not in resources:
            resources[endpoint.path] = application.router.add_resource(endpoint.path)
        handler = _adapted(HANDLERS[endpoint.operation])
        methods = ("GET", "HEAD") if endpoint.method == "GET" else (endpoint.method,)
        for method in methods:
            route = resources[endpoint.path].add_route(
                method, handler, expect_handler=expect_continue
            )
            routes[route] = endpoint
    return routes


def _adapted(handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await handler(Exchange(request))

    return handle


async def _finish(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every response, also of those that no middleware made."""
    headers = response.headers
    if REQUEST_ID in request:
        headers["X-Request-ID"] = request[REQUEST_ID]
    elif "X-Request-ID" not in headers:
        headers["X-Request-ID"] = new_request_id()
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.popall("Server", None)


def _installed_version() -> str:
    try:
        return installed_version("guardian-config")
    except PackageNotFoundError:
        return "unknown"


assert set(HANDLERS) == {endpoint.operation for endpoint in ENDPOINTS}
