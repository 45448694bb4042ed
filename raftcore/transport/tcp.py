"""The transport over TCP, with or without TLS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

from raftcore.core.messages import Message
from raftcore.core.types import Configuration, Member, NodeId
from raftcore.errors import StoppedError, TlsError, UnknownPeerError
from raftcore.storage.base import Identity
from raftcore.transport.admission import Membership, Standing
from raftcore.transport.base import Receiver
from raftcore.transport.connection import Context, FramedConnection, log
from raftcore.transport.handshake import (
    Facts,
    HandshakeRefusedError,
    Introduction,
    RefusalCode,
)
from raftcore.transport.inbound import InboundConnection
from raftcore.transport.listener import TlsListener, listen_error, listening_sockets
from raftcore.transport.options import TransportOptions, TransportStats
from raftcore.transport.outbound import PeerLink
from raftcore.transport.strangers import Strangers
from raftcore.transport.tls import TlsContexts, TlsOptions, check_plain_allowed


class TcpTransport:
    """Implements :class:`~raftcore.transport.base.Transport` over TCP.

    Our messages to a peer go over the connection that we dialled, its messages to us over the one
    that it dialled. A guest has only the latter, as has a peer that is not where our configuration
    says: it moved while we were behind, and only with our answers can it bring us up to date. Then
    our messages go back over the connection that it dialled. What is sent while no connection
    stands, or when the peer's queue is full, is dropped and counted.

    Args:
        identity: who we are; what the data directory says.
        listen: host and port to accept peers on; port 0 takes a free one, see :attr:`port`.
        configuration: the members as known now.
        founding: the configuration that the cluster was founded with, handed to founders that
            missed the end of the formation; None if it is not known (any more).
        facts: what we say of ourselves in handshakes.
        options: bounds and waits.
        tls: certificates for mutual TLS.
        allow_plain: listen without TLS although others than this machine can connect.
        rng: draws the jitter of the back-off; one of its own if not given.

    Raises:
        PlainTransportError: no TLS, and not allowed without.
        TlsError: the certificates can not be used.
    """

    def __init__(
        self,
        identity: Identity,
        listen: tuple[str, int],
        configuration: Configuration,
        *,
        founding: Configuration | None = None,
        facts: Facts | None = None,
        options: TransportOptions | None = None,
        tls: TlsOptions | None = None,
        allow_plain: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        if tls is None and not allow_plain:
            check_plain_allowed(listen[0])
        self._identity = identity
        self._listen = listen
        self._options = options or TransportOptions()
        self._membership = Membership(
            identity,
            configuration,
            founding,
            {m.node_id: m for m in configuration.members if m.node_id != identity.node_id},
            facts or Facts(),
            self._options.max_protocol_version,
        )
        self._tls = None if tls is None else TlsContexts(tls)
        # Jitter is no secret; a predictable one would only let peers dial in step.
        self._random = rng or random.Random()  # noqa: S311
        self._links: dict[NodeId, PeerLink] = {}
        self._retiring: set[PeerLink] = set()
        self._inbound: dict[NodeId, InboundConnection] = {}
        self._strangers = Strangers(
            self._options.max_handshakes, self._options.max_handshakes_per_host
        )
        self._server: asyncio.Server | TlsListener | None = None
        self._context: Context | None = None
        self._closed = False
        self.stats = TransportStats()

    @property
    def port(self) -> int:
        """The port that is listened on.

        Raises:
            StoppedError: not started.
        """
        if self._server is None or not self._server.sockets:
            raise StoppedError("the transport does not listen")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, receiver: Receiver) -> None:
        """Listen, and begin to connect and to deliver.

        Raises:
            ListenError: the address cannot be listened on.
        """
        assert self._context is None, "a transport starts once"
        loop = asyncio.get_running_loop()
        context = Context(
            membership=self._membership,
            options=self._options,
            stats=self.stats,
            random=self._random,
            receiver=receiver,
            loop=loop,
            tls=self._tls,
        )
        try:
            self._server = await self._make_server(context)
        except OSError as error:
            raise listen_error(*self._listen, error) from error
        # From here on close() finds what there is to close, also when we are cancelled just now.
        self._context = context
        await self._server.start_serving()
        membership = self._membership
        self.configure(membership.configuration, tuple(membership.peers.values()))
        if self._tls is not None:
            task = loop.create_task(self._keep_certificates(self._tls))
            context.tasks.add(task)
            task.add_done_callback(context.tasks.discard)

    def configure(self, configuration: Configuration, peers: Sequence[Member]) -> None:
        """See :meth:`raftcore.transport.base.Transport.configure`."""
        peers = [m for m in peers if m.node_id != self._identity.node_id]
        self._membership.change(configuration, peers)
        context = self._context
        if context is None or self._closed:
            return
        wanted = self._membership.peers
        for node_id, link in list(self._links.items()):
            member = wanted.get(node_id)
            if member is None or (member.address, member.incarnation) != (
                link.member.address,
                link.member.incarnation,
            ):
                del self._links[node_id]
                self._retiring.add(link)
                link.when_gone(self._retiring.discard)
                link.retire()
        for node_id, member in wanted.items():
            if node_id not in self._links:
                self._links[node_id] = PeerLink(context, member)
        for connection in list(self._inbound.values()):
            self._look_again(connection)

    def _look_again(self, connection: InboundConnection) -> None:
        """Whether the one who opened this connection is what it was when it came."""
        assert connection.peer is not None
        try:
            connection.standing = self._membership.standing(
                connection.peer, connection.incarnation, connection.version
            )
        except HandshakeRefusedError as error:
            log.info("hanging up on %s: %s", connection.peer, error.detail)
            del self._inbound[connection.peer]
            connection.finish()

    def send(self, to: NodeId, message: Message) -> None:
        """Queue a message; it is dropped when the peer cannot be reached or its queue is full."""
        link = self._link(to)
        if link is not None and link.connected:
            taken = link.send_message(message)
        elif (back := self._way_back(to)) is not None:
            taken = back.send_message(message)
            back.carries = True
        elif link is not None and link.reachable:
            taken = link.send_message(message)
        else:
            self.stats.dropped_disconnected += 1
            return
        self.stats.messages_out += taken

    async def request(self, to: NodeId, payload: bytes, timeout_s: float) -> bytes:
        """See :meth:`raftcore.transport.base.Transport.request`.

        Raises also OverloadedError and EntryTooLargeError, which are refusals: nothing was sent.
        """
        link = self._link(to)
        if link is None:
            raise UnknownPeerError(f"{to} is not a peer")
        return await link.request(payload, timeout_s)

    def connected(self) -> frozenset[NodeId]:
        return frozenset(node_id for node_id, link in self._links.items() if link.connected)

    def guests(self) -> frozenset[NodeId]:
        """Connected nodes of the cluster that are in none of our configurations."""
        return frozenset(c.peer for c in self._guests() if c.peer is not None)

    def introductions(self) -> Mapping[NodeId, Introduction]:
        """What each connected peer and guest said of itself last."""
        if self._context is None:
            return {}
        known = self._links.keys() | self._inbound.keys()
        said = self._context.introductions
        return {node_id: said[node_id] for node_id in known if node_id in said}

    async def reload_certificates(self) -> None:
        """Use what the certificate files say now for all connections from now on.

        Raises:
            TlsError: they can not be used, and the old ones stay; or there is no TLS.
        """
        if self._tls is None:
            raise TlsError("this transport has no TLS")
        await asyncio.to_thread(self._tls.reload)
        self.stats.tls_reloads += 1

    async def close(self) -> None:
        """Stop listening and hang up; returns when no task and no socket is left."""
        self._closed = True
        context = self._context
        if context is None or self._server is None:
            return
        self._server.close()
        for link in (*self._links.values(), *self._retiring):
            link.close()
        self._links.clear()
        for connection in list(context.connections):
            connection.close()
        tasks = list(context.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(self._server, TlsListener):
            await self._server.end_handshakes()
        endings = [connection.done for connection in context.connections]
        if endings:
            await asyncio.wait(endings, timeout=self._options.close_timeout_s)
        for connection in list(context.connections):
            connection.abort()
        await asyncio.gather(*(connection.done for connection in list(context.connections)))
        await self._server.wait_closed()

    # -- inside -------------------------------------------------------------------------------

    def _link(self, to: NodeId) -> PeerLink | None:
        if to == self._identity.node_id:
            raise ValueError("a node does not send to itself")
        return self._links.get(to)

    def _way_back(self, node_id: NodeId) -> InboundConnection | None:
        """The connection that the node dialled, if it takes our messages there."""
        connection = self._inbound.get(node_id)
        return connection if connection and connection.version >= 2 else None

    def _guests(self) -> list[InboundConnection]:
        return [c for c in self._inbound.values() if c.standing is Standing.GUEST]

    async def _keep_certificates(self, tls: TlsContexts) -> None:
        """Take renewed certificates into use; a broken one leaves things as they are."""
        while True:
            await asyncio.sleep(tls.options.reload_interval_s)
            try:
                if await asyncio.to_thread(tls.reload_if_changed):
                    self.stats.tls_reloads += 1
                    log.info("new connections use the certificates of %s", tls.options.certificate)
            except TlsError as error:
                self.stats.tls_reload_failures += 1
                log.error("the old certificates stay in use: %s", error)

    async def _make_server(self, context: Context) -> asyncio.Server | TlsListener:
        host, port = self._listen

        def make() -> InboundConnection:
            return InboundConnection(context, self._on_opened, self._on_welcomed, self._on_closed)

        def make_if_open(host: str) -> InboundConnection | None:
            if self._closed:
                return None
            connection = make()
            self._make_room(connection, host)
            return connection

        if self._tls is None:
            return await context.loop.create_server(
                make, host, port, reuse_address=True, start_serving=False
            )
        sockets = await listening_sockets(context.loop, host, port)
        return TlsListener(context, sockets, make_if_open, self._strangers.discard)

    def _make_room(self, stranger: FramedConnection, host: str) -> None:
        """Count one more stranger; if there are too many, the oldest loses its place."""
        dropped = self._strangers.add(stranger, host)
        if dropped is None:
            return
        self.stats.refused[RefusalCode.TOO_MANY] += 1
        dropped.abort()
        if isinstance(self._server, TlsListener):
            self._server.drop(dropped)

    def _on_opened(self, connection: InboundConnection) -> None:
        if self._closed:
            connection.abort()
        elif connection not in self._strangers:  # it is since its TLS handshake began
            self._make_room(connection, connection.host)

    def _on_welcomed(self, connection: InboundConnection) -> None:
        assert connection.peer is not None
        older = self._inbound.get(connection.peer)
        if connection.standing is Standing.GUEST:
            others = [guest for guest in self._guests() if guest is not older]
            if len(others) >= self._options.max_guests:
                raise HandshakeRefusedError(
                    RefusalCode.UNKNOWN_NODE,
                    f"{len(others)} nodes that are not members here are connected already",
                )
        self._strangers.discard(connection)
        self._inbound[connection.peer] = connection
        if older is not None:
            older.close()  # the peer came anew: the older one is a leftover
        link = self._links.get(connection.peer)
        if link is not None:
            link.poke()

    def _on_closed(self, connection: InboundConnection) -> None:
        self._strangers.discard(connection)
        peer = connection.peer
        if peer is None or self._inbound.get(peer) is not connection:
            return
        del self._inbound[peer]
        if self._closed:
            return
        link = self._links.get(peer)
        dialled = link is not None and link.connected
        if connection.standing is Standing.GUEST or (connection.carries and not dialled):
            assert self._context is not None
            self._context.receiver.on_peer_lost(peer)
