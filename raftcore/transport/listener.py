"""Accepting connections with TLS.

The loop's own server would keep the certificates that it was started with and would not bound how
many TLS handshakes are under way. Here every connection gets the certificates in use when it comes,
and counts as a stranger from the moment it is accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable

from raftcore.errors import ListenError
from raftcore.transport.connection import Context, FramedConnection, log, worth_a_line

_BACKLOG = 100
#: How long nothing is accepted after the operating system could give no socket.
_EXHAUSTED_S = 0.5


class TlsListener:
    """Listens with TLS; has of :class:`asyncio.Server` what the transport uses.

    Args:
        make: makes the protocol of one connection from that host, or None if it is not wanted.
        on_failed: called with that protocol if the TLS handshake failed.
    """

    def __init__(
        self,
        context: Context,
        sockets: list[socket.socket],
        make: Callable[[str], FramedConnection | None],
        on_failed: Callable[[FramedConnection], None],
    ) -> None:
        self.sockets = sockets
        self._context = context
        self._make = make
        self._on_failed = on_failed
        self._accepting: list[asyncio.Task[None]] = []
        self._securing: dict[asyncio.Task[None], tuple[FramedConnection, socket.socket]] = {}

    async def start_serving(self) -> None:
        loop = self._context.loop
        self._accepting = [loop.create_task(self._accept(sock)) for sock in self.sockets]

    def close(self) -> None:
        for task in self._accepting:
            task.cancel()
        if not self._accepting:
            self._close_sockets()

    async def end_handshakes(self) -> None:
        """End the TLS handshakes under way. Cancelled, a loop would forget their sockets."""
        for _, accepted in self._securing.values():
            _hang_up(accepted)
        await asyncio.gather(*self._securing, return_exceptions=True)

    def drop(self, protocol: FramedConnection) -> None:
        """End the TLS handshake of that protocol, if it is under way."""
        for securing, accepted in self._securing.values():
            if securing is protocol:
                _hang_up(accepted)

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.sockets = []

    async def _accept(self, listening: socket.socket) -> None:
        context = self._context
        while True:
            try:
                accepted, address = await context.loop.sock_accept(listening)
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await asyncio.sleep(_EXHAUSTED_S)
                continue
            protocol = self._make(address[0])
            if protocol is None:
                accepted.close()
                continue
            task = context.loop.create_task(self._secure(accepted, address, protocol))
            self._securing[task] = protocol, accepted
            task.add_done_callback(self._securing.pop)

    async def _secure(
        self, accepted: socket.socket, address: object, protocol: FramedConnection
    ) -> None:
        """Do the TLS handshake; whatever ends it, no place stays taken.

        ``address`` is what the system said at the accept: by now a socket may be reset, and then
        has none.
        """
        context = self._context
        assert context.tls is not None
        secured = False
        try:
            await context.loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=context.tls.server,
                ssl_handshake_timeout=context.options.hello_timeout_s,
                ssl_shutdown_timeout=context.options.close_timeout_s,
            )
            secured = True
        except Exception as error:  # noqa: BLE001 (a stranger may end its handshake as it likes)
            context.stats.tls_failures += 1
            if worth_a_line(context.stats.tls_failures):
                # Some errors of the system say nothing but what they are.
                why = str(error) or type(error).__name__
                log.warning("the TLS handshake with %s failed: %s", address, why)
        finally:
            if not secured:
                self._on_failed(protocol)
                accepted.close()  # uvloop leaves that to the collector


def _hang_up(accepted: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        accepted.shutdown(socket.SHUT_RDWR)


def listen_error(host: str, port: int, error: OSError) -> ListenError:
    """``error`` in words that name the address."""
    where = f"{host or 'all addresses'}, port {port}"
    return ListenError(
        f"can not listen for peers on {where}: {error.strerror or error or type(error).__name__}"
    )


async def listening_sockets(
    loop: asyncio.AbstractEventLoop, host: str, port: int
) -> list[socket.socket]:
    """Sockets that listen on all addresses of ``host``.

    Raises:
        OSError: one of them can not be listened on.
    """
    infos = await loop.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets
