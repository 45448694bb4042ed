"""The listening side: connections, their limits, and the errors of the HTTP parser.

aiohttp has no public hook for a connection limit, a limit on the time of a request's head, or the
shape of parser errors, so its protocol and server classes are extended here. The version is pinned
to one minor release; tests/guardian/http/test_hygiene.py pins what is relied upon.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, cast

from aiohttp import HttpVersion10, http_parser, web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse

from guardian.domain.problems import Problem
from guardian.http.problems import (
    problem_of_http_error,
    problem_response,
    request_id_of,
)
from guardian.http.ratelimit import IPNetwork, client_of, is_trusted
from guardian.settings import HostPort, Settings
from guardian.telemetry import Metrics

log = logging.getLogger(__name__)

WRITE_TIMEOUT_S: Final = 20.0  #: how long a client may refuse to read its answer
LINGERING_S: Final = 2.0  #: how long unread request bytes are swallowed before closing
BACKLOG: Final = 1024


class ConnectionLimits:
    """Counts open connections, all and by client.

    Args:
        total: open connections at most.
        per_client: from one address (IPv6: one /64); trusted proxies are exempt.
    """

    def __init__(
        self, total: int, per_client: int, proxies: Sequence[IPNetwork], metrics: Metrics
    ) -> None:
        self._total = total
        self._per_client = per_client
        self._proxies = proxies
        self._metrics = metrics
        self._by_client: Counter[str] = Counter()
        self._open = 0

    def enter(self, address: str) -> bool:
        """Whether one more connection from ``address`` may stay; if so it is counted."""
        client = client_of(address)
        limit = ""
        if self._open >= self._total:
            limit = "total"
        elif self._by_client[client] >= self._per_client and not is_trusted(address, self._proxies):
            limit = "address"
        if limit:
            self._metrics.refused_connections.labels(limit=limit).inc()
            return False
        self._open += 1
        self._by_client[client] += 1
        self._metrics.connections.set(self._open)
        return True

    def leave(self, address: str) -> None:
        client = client_of(address)
        self._open -= 1
        self._by_client[client] -= 1
        if self._by_client[client] <= 0:
            del self._by_client[client]
        self._metrics.connections.set(self._open)


class GuardianProtocol(RequestHandler):
    """One connection."""

    __slots__ = ("_address", "_guard", "_head_timer")

    def __init__(self, manager: GuardianServer, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._guard = manager
        self._address: str | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) and peer else ""
        if not self._guard.limits.enter(address):
            cast(asyncio.Transport, transport).abort()
            return
        self._address = address
        super().connection_made(transport)
        _give_up_on_silent_peers(transport)
        self._arm_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm_head_timer()
        if self._address is None:  # refused: nothing was begun
            return
        self._guard.limits.leave(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._address is None:
            return
        super().data_received(data)
        if self._messages or self._request_in_progress:
            self._disarm_head_timer()
        elif data and self._head_timer is None:
            self._arm_head_timer()

    def _arm_head_timer(self) -> None:
        """aiohttp's only timer on an incomplete head is the keep-alive time; a head gets less."""
        self._head_timer = self._loop.call_later(
            self._guard.head_timeout_s, self._head_overdue, self._request_count
        )

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self, request_count: int) -> None:
        self._head_timer = None
        if request_count == self._request_count and not self._request_in_progress:
            self._guard.metrics.protocol_errors.inc()
            self.force_close()

    async def _drain_helper(self) -> None:
        """A client that never reads must not hold a handler and its answer for ever."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await super()._drain_helper()
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionResetError("the client does not read its answer") from None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - quotes what was sent
    ) -> StreamResponse:
        """Errors of the parser (400), and what escaped from the application.

        Nothing of what was sent is quoted, neither in the answer nor in the log.
        """
        if isinstance(exc, ConnectionError) and self.transport is None:
            raise exc  # nobody is left to answer; the caller ends the connection quietly
        if request.writer.output_size > 0:
            raise ConnectionError("a part of an answer is sent already")
        identity = request_id_of(request.headers.get("X-Request-ID"))
        if status == 400:
            self._guard.metrics.protocol_errors.inc()
            kind = type(exc).__name__
            log.debug("unparsable request: %s", kind, extra={"request_id": identity})
            problem = Problem("malformed_request", "The request is not well-formed HTTP")
        else:
            log.error("defect", exc_info=exc, extra={"request_id": identity})
            problem = Problem("internal_error")
        response = problem_response(problem, identity)
        response.force_close()
        return response


def _give_up_on_silent_peers(transport: asyncio.BaseTransport) -> None:
    """Let the kernel end a connection whose peer takes nothing, also while it is being closed and
    nobody waits for it any more."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
    if option is not None and connection is not None and connection.family in _TCP_FAMILIES:
        connection.setsockopt(socket.IPPROTO_TCP, option, int(WRITE_TIMEOUT_S * 1000))


_TCP_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class GuardianServer(web.Server):
    """The protocol factory of one listener."""

    def __init__(
        self,
        plain: web.Server,
        options: dict[str, Any],
        limits: ConnectionLimits,
        head_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._application_handler = plain.request_handler
        super().__init__(self._handle, request_factory=plain.request_factory)
        self._options = options
        self.limits = limits
        self.head_timeout_s = head_timeout_s
        self.metrics = metrics

    async def _handle(self, request: BaseRequest) -> StreamResponse:
        """The application's answer, or a problem for what never gets to its middlewares: versions
        before HTTP/1.0, and what aiohttp makes of the Expect header."""
        if request.version < HttpVersion10:
            problem = Problem("malformed_request", "HTTP/1.0 or later, please")
        else:
            try:
                return await self._application_handler(request)
            except web.HTTPException as error:
                problem = problem_of_http_error(error)
        response = problem_response(problem, request_id_of(request.headers.get("X-Request-ID")))
        response.force_close()
        return response

    def __call__(self) -> GuardianProtocol:
        return GuardianProtocol(self, loop=self._loop, **self._options)


class GuardianRunner(web.AppRunner):
    """An ``AppRunner`` with Guardian's protocol and limits."""

    __slots__ = ("_limits", "_metrics", "_settings")

    def __init__(
        self,
        app: web.Application,
        settings: Settings,
        metrics: Metrics,
        *,
        shutdown_timeout_s: float = 5.0,
    ) -> None:
        super().__init__(app, shutdown_timeout=shutdown_timeout_s)
        self._settings = settings
        self._metrics = metrics
        self._limits = ConnectionLimits(
            settings.connections,
            settings.connections_per_address,
            settings.trusted_proxies or (),
            metrics,
        )

    async def _make_server(self) -> web.Server:
        options: dict[str, Any] = {
            "access_log": None,  # ours knows routes and redacts
            "auto_decompress": False,
            "keepalive_timeout": self._settings.keep_alive_s,
            "lingering_time": LINGERING_S,
        }
        plain = await super()._make_server()
        return GuardianServer(
            plain, options, self._limits, self._settings.head_timeout_s, self._metrics
        )


class HttpServer:
    """The node's HTTP listeners, as an async context manager or by ``start`` and ``stop``.

    Args:
        application: from :func:`guardian.http.build_application`.
        settings: addresses, timeouts and limits.
        metrics: where connections are counted.
        metrics_application: what listens on ``settings.metrics``, if that is set.
        shutdown_timeout_s: how long requests under way may take to finish in :meth:`stop`.
    """

    def __init__(
        self,
        application: web.Application,
        settings: Settings,
        metrics: Metrics,
        *,
        metrics_application: web.Application | None = None,
        shutdown_timeout_s: float = 5.0,
    ) -> None:
        require_c_parser()
        self._settings = settings
        self._main = GuardianRunner(
            application, settings, metrics, shutdown_timeout_s=shutdown_timeout_s
        )
        self._metrics: GuardianRunner | None = None
        if settings.metrics is not None:
            if metrics_application is None:
                raise ValueError("settings.metrics needs a metrics_application")
            self._metrics = GuardianRunner(
                metrics_application, settings, metrics, shutdown_timeout_s=1.0
            )
        #: where it really listens, after :meth:`start`; a port of 0 has become a real one
        self.address = settings.http
        self.metrics_address = settings.metrics

    async def start(self) -> None:
        """Bind and serve. Raises OSError when an address is taken; nothing stays open then."""
        try:
            self.address = await _listen(self._main, self._settings.http)
            if self._metrics is not None and self._settings.metrics is not None:
                self.metrics_address = await _listen(self._metrics, self._settings.metrics)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Accept no more, let requests under way finish, close."""
        await self._main.cleanup()
        if self._metrics is not None:
            await self._metrics.cleanup()

    async def __aenter__(self) -> HttpServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def _listen(runner: GuardianRunner, address: HostPort) -> HostPort:
    await runner.setup()
    site = web.TCPSite(runner, address.host, address.port, backlog=BACKLOG)
    await site.start()
    return HostPort(address.host, site.port)


def require_c_parser() -> None:
    """The pure Python parser has been the laxer one, again and again: never serve with it.

    Raises:
        RuntimeError: aiohttp's C extensions are missing or switched off.
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise RuntimeError("aiohttp's C parser is not loaded (AIOHTTP_NO_EXTENSIONS is set?)")


__all__ = ["ConnectionLimits", "GuardianRunner", "HttpServer"]
