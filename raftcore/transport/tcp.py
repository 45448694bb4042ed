"""The transport over TCP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from raftcore.core.messages import Message
from raftcore.core.types import Configuration, Member, NodeId
from raftcore.errors import StoppedError, UnknownPeerError
from raftcore.storage.base import Identity
from raftcore.transport.base import Receiver
from raftcore.transport.connection import Context
from raftcore.transport.framing import FrameKind, encode_frame
from raftcore.transport.handshake import RefusalCode
from raftcore.transport.inbound import InboundConnection
from raftcore.transport.options import TransportOptions, TransportStats
from raftcore.transport.outbound import PeerLink
from raftcore.transport.wire import MessageEncoder


class TcpTransport:
    """Implements :class:`~raftcore.transport.base.Transport` over TCP.

    Our messages to a peer go over the connection that we dialled, its messages to us over the one
    that it dialled. What is sent while no connection stands, or when the peer's queue is full, is
    dropped and counted.

    Args:
        identity: who we are; what the data directory says.
        listen: host and port to accept peers on; port 0 takes a free one, see :attr:`port`.
        configuration: the members as known now.
        founding: the configuration that the cluster was founded with, handed to founders that
            missed the end of the formation; ``configuration`` if not given.
        options: bounds and waits.
        rng: draws the jitter of the back-off; one of its own if not given.
    """

    def __init__(
        self,
        identity: Identity,
        listen: tuple[str, int],
        configuration: Configuration,
        *,
        founding: Configuration | None = None,
        options: TransportOptions | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._identity = identity
        self._listen = listen
        self._configuration = configuration
        self._peers: tuple[Member, ...] = tuple(
            m for m in configuration.members if m.node_id != identity.node_id
        )
        self._founding = founding or configuration
        self._options = options or TransportOptions()
        # Jitter is no secret; a predictable one would only let peers dial in step.
        self._random = rng or random.Random()  # noqa: S311
        self._encoder = MessageEncoder()
        self._links: dict[NodeId, PeerLink] = {}
        self._inbound: dict[NodeId, InboundConnection] = {}
        self._strangers: set[InboundConnection] = set()
        self._server: asyncio.Server | None = None
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
            OSError: the address cannot be listened on.
        """
        assert self._context is None, "a transport starts once"
        loop = asyncio.get_running_loop()
        context = Context(
            identity=self._identity,
            configuration=self._configuration,
            founding=self._founding,
            options=self._options,
            stats=self.stats,
            random=self._random,
            receiver=receiver,
            loop=loop,
        )
        host, port = self._listen
        self._server = await loop.create_server(
            lambda: InboundConnection(context, self._on_opened, self._on_welcomed, self._on_closed),
            host,
            port,
            reuse_address=True,
            start_serving=False,
        )
        # From here on close() finds what there is to close, also when we are cancelled just now.
        self._context = context
        await self._server.start_serving()
        self.configure(self._configuration, self._peers)

    def configure(self, configuration: Configuration, peers: Sequence[Member]) -> None:
        """These are the members from now on; connections with others end."""
        self._configuration = configuration
        context = self._context
        if context is None or self._closed:
            return
        context.configuration = configuration
        wanted = {m.node_id: m for m in peers}
        self._peers = tuple(peers)
        for node_id, link in list(self._links.items()):
            member = wanted.get(node_id)
            if member is None or (member.address, member.incarnation) != (
                link.member.address,
                link.member.incarnation,
            ):
                del self._links[node_id]
                link.close()
                if member is None or member.incarnation != link.member.incarnation:
                    self._hang_up(node_id)
        for node_id, member in wanted.items():
            if node_id not in self._links:
                self._links[node_id] = PeerLink(context, member)

    def send(self, to: NodeId, message: Message) -> None:
        """Queue a message; it is dropped when the peer cannot be reached or its queue is full."""
        link = self._link(to)
        if link is None or not link.reachable:
            self.stats.dropped_disconnected += 1
            return
        body = self._encoder.encode(message)
        if len(body) >= self._options.max_frame_bytes:
            self.stats.dropped_oversize += 1
            return
        if link.send(encode_frame(FrameKind.MESSAGE, body)):
            self.stats.messages_out += 1

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

    async def close(self) -> None:
        """Stop listening and hang up; returns when no task and no socket is left."""
        self._closed = True
        context = self._context
        if context is None or self._server is None:
            return
        self._server.close()
        for link in self._links.values():
            link.close()
        self._links.clear()
        for connection in list(context.connections):
            connection.close()
        tasks = list(context.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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

    def _on_opened(self, connection: InboundConnection) -> None:
        if self._closed:
            connection.abort()
        elif len(self._strangers) >= self._options.max_handshakes:
            self.stats.refused[RefusalCode.TOO_MANY] += 1
            connection.abort()
        else:
            self._strangers.add(connection)

    def _on_welcomed(self, connection: InboundConnection) -> None:
        assert connection.peer is not None
        self._strangers.discard(connection)
        self._hang_up(connection.peer)  # the peer came anew: the older one is a leftover
        self._inbound[connection.peer] = connection
        link = self._links.get(connection.peer)
        if link is not None:
            link.poke()

    def _on_closed(self, connection: InboundConnection) -> None:
        self._strangers.discard(connection)
        if connection.peer is not None and self._inbound.get(connection.peer) is connection:
            del self._inbound[connection.peer]

    def _hang_up(self, peer: NodeId) -> None:
        connection = self._inbound.pop(peer, None)
        if connection is not None:
            connection.close()
