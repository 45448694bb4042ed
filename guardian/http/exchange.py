"""One request on its way through: what middlewares found out, and how a handler answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from guardian.domain.entities import Principal
from guardian.domain.problems import Problem
from guardian.http import parameters, shapes
from guardian.http.endpoints import Endpoint
from guardian.http.health import Health
from guardian.settings import Settings
from guardian.telemetry import Metrics
from guardian.usecases.executing import Call, Consistency, Expected, Level, Seen, Written
from guardian.usecases.paging import Page, PageRequest
from guardian.usecases.ports import Log
from guardian.usecases.services import Services

T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)

#: what use cases leave of the deadline, so that theirs is the more telling answer
DEADLINE_MARGIN: Final = 0.9


@dataclass(frozen=True, slots=True)
class Environment:
    """What all requests of an application share."""

    services: Services
    log: Log
    health: Health
    settings: Settings
    metrics: Metrics
    version: str
    #: by route, as the router knows them
    endpoints: dict[web.AbstractRoute, Endpoint]
    openapi: bytes
    docs: bytes
    docs_policy: str


ENVIRONMENT: Final = web.AppKey("environment", Environment)
REQUEST_ID: Final = web.RequestKey("request_id", str)
PRINCIPAL: Final = web.RequestKey("principal", Principal)
BODY: Final = web.RequestKey("body", msgspec.Struct)


class Exchange:
    """A request with its surroundings, as handlers see it."""

    __slots__ = ("environment", "request", "services")

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.environment = request.app[ENVIRONMENT]
        self.services = self.environment.services

    # the request

    @property
    def principal(self) -> Principal:
        """Who asks; only on routes with a user's token."""
        return self.request[PRINCIPAL]

    def path(self, name: str) -> str:
        return self.request.match_info[name]

    def body(self, kind: type[B]) -> B:
        body = self.request[BODY]
        assert isinstance(body, kind), "the endpoint table names the body's type"
        return body

    def page(self) -> PageRequest:
        return PageRequest.parse(
            parameters.parameter(self.request, "limit"),
            parameters.parameter(self.request, "cursor"),
        )

    def consistency(self, default: Level = Level.LINEARIZABLE) -> Consistency:
        return Consistency.parse(
            parameters.parameter(self.request, "consistency"),
            parameters.parameter(self.request, "min_revision"),
            default=default,
            timeout_s=self.environment.settings.request_deadline_s * DEADLINE_MARGIN,
        )

    def call(self) -> Call:
        return Call(
            parameters.idempotency_key(self.request),
            timeout_s=self.environment.settings.request_deadline_s * DEADLINE_MARGIN,
        )

    def expected(self, given: int | msgspec.UnsetType | None) -> Expected:
        return parameters.expected_version(self.request, given)

    # the answer

    def seen(
        self, seen: Seen[T], consistency: Consistency, shape: msgspec.Struct, version: int = 0
    ) -> web.Response:
        """An answer from local state; with a ``version`` it is conditional and has an ETag."""
        headers = seen_headers(seen, consistency)
        if version:
            headers["ETag"] = f'"{version}"'
            if parameters.none_match(self.request, version):
                return web.Response(status=304, headers=headers)
        return json_response(shape, headers=headers)

    def written(
        self, written: Written[T], shape: msgspec.Struct | None, status: int, version: int = 0
    ) -> web.Response:
        """An answer to a write; without a shape it has no body."""
        headers = {"X-Guardian-Revision": str(written.revision)}
        if written.replayed:
            headers["Idempotency-Replayed"] = "true"
        if version:
            headers["ETag"] = f'"{version}"'
        if shape is None:
            return web.Response(status=status, headers=headers)
        return json_response(shape, status=status, headers=headers)


Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]


def seen_headers(seen: Seen[T], consistency: Consistency) -> dict[str, str]:
    headers = {"X-Guardian-Revision": str(seen.revision)}
    if consistency.level is Level.LOCAL and seen.staleness_ms is not None:
        headers["X-Guardian-Staleness-Ms"] = str(seen.staleness_ms)
    return headers


def page_shape(page: Page[T], shape: Callable[[T], shapes.T]) -> shapes.Items[shapes.T]:
    return shapes.Items([shape(item) for item in page.items], page.next_cursor)


def json_response(
    shape: msgspec.Struct, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(shape),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def no_content() -> web.Response:
    return web.Response(status=204)


def path_number(text: str) -> int:
    """A number in a path; what is none names nothing.

    Raises:
        Problem: ``not_found``.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and text[0] != "0"):
        raise Problem("not_found")
    return int(text)


def sorted_methods(methods: Iterable[str]) -> str:
    return ", ".join(sorted(methods))
