"""A network inside one process, for tests: same bytes, no sockets, faults on demand.

Every message goes through :mod:`raftcore.transport.wire` and is delivered by the event loop, never
from inside ``send``. With a seeded generator and the same calls, the same messages are lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence

from raftcore.core.messages import Message
from raftcore.core.types import Configuration, Member, NodeId
from raftcore.errors import OutcomeUnknownError, UnknownPeerError
from raftcore.storage.base import Identity
from raftcore.transport.admission import Membership, Standing
from raftcore.transport.base import Receiver
from raftcore.transport.handshake import HandshakeRefusedError, RefusalCode
from raftcore.transport.inbound import answer_request
from raftcore.transport.options import DEFAULT_MAX_GUESTS
from raftcore.transport.outbound import response_payload
from raftcore.transport.versions import PROTOCOL_VERSION, negotiate
from raftcore.transport.wire import (
    MessageEncoder,
    Request,
    Response,
    bounded_timeout_s,
    decode_message,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

Link = tuple[NodeId, NodeId]


class MemoryNetwork:
    """Connects :class:`MemoryTransport` objects; faults are set here.

    Args:
        rng: decides which messages are lost.

    Attributes:
        drop_probability: share of messages that is lost, drawn per message.
        deliver: if set, asked (sender, receiver, message); False loses the message.
        delay_s: if set, asked (sender, receiver) for the seconds a message takes; delays that
            differ reorder messages.
        delivered, lost: how many messages were.
    """

    def __init__(self, rng: random.Random) -> None:
        self.drop_probability = 0.0
        self.deliver: Callable[[NodeId, NodeId, Message], bool] | None = None
        self.delay_s: Callable[[NodeId, NodeId], float] | None = None
        self.delivered = 0
        self.lost = 0
        self._random = rng
        self._transports: dict[NodeId, MemoryTransport] = {}
        self._cut: set[Link] = set()

    # -- faults -------------------------------------------------------------------------------

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Nothing passes from ``source`` to ``target`` any more (the other direction stays)."""
        if (source, target) not in self._cut:
            self._cut.add((source, target))
            self._lose(source, target)

    def heal(self, source: NodeId, target: NodeId) -> None:
        """Undo :meth:`cut`."""
        self._cut.discard((source, target))

    def partition(self, *groups: Iterable[NodeId]) -> None:
        """Cut every link between nodes of different groups, in both directions."""
        sides = [tuple(group) for group in groups]
        for side in sides:
            for other in sides:
                if side is not other:
                    for source in side:
                        for target in other:
                            self.cut(source, target)

    def heal_all(self) -> None:
        self._cut.clear()

    def can_reach(self, source: NodeId, target: NodeId) -> bool:
        """Whether a message sent now would find a started transport there."""
        return target in self._transports and (source, target) not in self._cut

    # -- for the transports -------------------------------------------------------------------

    def attach(self, transport: MemoryTransport) -> None:
        self._transports[transport.node_id] = transport

    def detach(self, transport: MemoryTransport) -> None:
        if self._transports.get(transport.node_id) is not transport:
            return  # a restarted node has taken its place
        del self._transports[transport.node_id]
        for other in list(self._transports):
            self._lose(other, transport.node_id)

    def transport_of(self, node_id: NodeId) -> MemoryTransport | None:
        return self._transports.get(node_id)

    def nodes(self) -> frozenset[NodeId]:
        return frozenset(self._transports)

    def pass_on(self, source: NodeId, target: NodeId, message: Message, body: bytes) -> None:
        """Deliver ``body`` at ``target`` later, unless a fault has it."""
        if (
            not self.can_reach(source, target)
            or (self.deliver is not None and not self.deliver(source, target, message))
            or (self.drop_probability > 0 and self._random.random() < self.drop_probability)
        ):
            self.lost += 1
            return
        self._later(source, target, lambda: self._arrive(source, target, body))

    def _arrive(self, source: NodeId, target: NodeId, body: bytes) -> None:
        transport = self._transports.get(target)
        if transport is None or (source, target) in self._cut:
            self.lost += 1  # it was on its way when the link was cut or the node stopped
            return
        self.delivered += 1
        transport.receiver.on_message(
            decode_message(body, source, newest=transport.max_protocol_version)
        )

    def _lose(self, source: NodeId, target: NodeId) -> None:
        transport = self._transports.get(source)
        if transport is not None:
            asyncio.get_running_loop().call_soon(transport.peer_lost, target)

    def _later(self, source: NodeId, target: NodeId, call: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if self.delay_s is None:
            loop.call_soon(call)
        else:
            loop.call_later(self.delay_s(source, target), call)


class MemoryTransport:
    """Implements :class:`~raftcore.transport.base.Transport` over a :class:`MemoryNetwork`.

    A connection stands as soon as both are started and nothing is cut: from a node to each of its
    peers that lets it in. Who is let in is decided as over TCP, once configurations with
    incarnations are there: members, and guests of protocol version 2, over whose own connection
    they are answered.

    Args:
        network: the network it belongs to.
        node_id: who it is.
        configuration: the members; everybody on the network if None.
        incarnation: who it is among those that had its name; what the configurations say if None.
        max_protocol_version: the newest protocol version spoken.
        max_guests: how many nodes that it does not know are let in at once.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        node_id: NodeId,
        configuration: Configuration | None = None,
        *,
        incarnation: bytes | None = None,
        max_protocol_version: int = PROTOCOL_VERSION,
        max_guests: int = DEFAULT_MAX_GUESTS,
    ) -> None:
        self.node_id = node_id
        self.max_protocol_version = max_protocol_version
        self._network = network
        self._incarnation = incarnation
        self._membership: Membership | None = None
        if configuration is not None:
            self.configure(configuration, configuration.members)
        self._max_guests = max_guests
        self._guests: set[NodeId] = set()
        self._told_removed = False
        self._encoder = MessageEncoder()
        self._receiver: Receiver | None = None
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._closed = False

    @property
    def receiver(self) -> Receiver:
        assert self._receiver is not None, "not started"
        return self._receiver

    async def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._network.attach(self)

    def configure(self, configuration: Configuration, peers: Sequence[Member]) -> None:
        peers = [member for member in peers if member.node_id != self.node_id]
        own = configuration.member(self.node_id)
        if self._incarnation is None and own is not None:
            self._incarnation = own.incarnation
        if self._membership is None:
            identity = Identity(configuration.cluster_id, self.node_id, self._incarnation or b"")
            self._membership = Membership(identity, configuration, None)
        self._membership.change(configuration, peers)

    def send(self, to: NodeId, message: Message) -> None:
        if to == self.node_id:
            raise ValueError("a node does not send to itself")
        target = self._network.transport_of(to)
        if self._closed or target is None or not self._connected_with(target):
            self._network.lost += 1
            return
        version = negotiate(self.max_protocol_version, target.max_protocol_version)
        self._network.pass_on(self.node_id, to, message, self._encoder.encode(message, version))

    async def request(self, to: NodeId, payload: bytes, timeout_s: float) -> bytes:
        if to == self.node_id:
            raise ValueError("a node does not ask itself")
        target = self._network.transport_of(to)
        if (
            self._closed
            or target is None
            or not self._is_peer(to)
            or target.standing_of(self) is not Standing.PEER
            or not self._network.can_reach(self.node_id, to)
        ):
            raise UnknownPeerError(f"{to} cannot be reached")
        timeout_s = bounded_timeout_s(timeout_s)
        body = encode_request(Request(0, round(timeout_s * 1000), payload))
        task = asyncio.get_running_loop().create_task(target.answer(self.node_id, body))
        target.track(task)
        # wait() leaves the peer's work alone when the asker gives up, as a network would.
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done or task.cancelled() or not self._network.can_reach(to, self.node_id):
            raise OutcomeUnknownError(f"{to} was asked and did not answer")
        return response_payload(decode_response(task.result()))

    def connected(self) -> frozenset[NodeId]:
        return frozenset(
            node
            for node in self._network.nodes()
            if self._is_peer(node) and self._network.can_reach(self.node_id, node)
        )

    def guests(self) -> frozenset[NodeId]:
        """Nodes that were let in although none of our configurations has them."""
        return frozenset(self._guests)

    async def close(self) -> None:
        self._closed = True
        self._network.detach(self)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- for the network ----------------------------------------------------------------------

    def peer_lost(self, peer: NodeId) -> None:
        if not self._closed and self._is_peer(peer):
            self.receiver.on_peer_lost(peer)

    async def answer(self, sender: NodeId, body: bytes) -> bytes:
        response: Response = await answer_request(self.receiver, sender, decode_request(body))
        return encode_response(response)

    def track(self, task: asyncio.Task[bytes]) -> None:
        """Remember a request being answered here, to end it with the transport."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def standing_of(self, dialler: MemoryTransport) -> Standing | None:
        """What the node that dials us is to us; None if it is not let in, which it is told."""
        membership = self._membership
        if membership is None or dialler._incarnation is None:
            return Standing.PEER if self._is_peer(dialler.node_id) else None
        version = negotiate(self.max_protocol_version, dialler.max_protocol_version)
        try:
            standing = membership.standing(dialler.node_id, dialler._incarnation, version)
        except HandshakeRefusedError as error:
            self._guests.discard(dialler.node_id)
            if error.code == RefusalCode.REMOVED:
                dialler.was_removed(error.detail)
            return None
        if standing is Standing.PEER:
            self._guests.discard(dialler.node_id)
        else:
            self._guests &= self._network.nodes()
            if len(self._guests - {dialler.node_id}) >= self._max_guests:
                return None
            self._guests.add(dialler.node_id)
        return standing

    def was_removed(self, detail: str) -> None:
        """A peer turned this node away for good; said once."""
        if not self._told_removed and not self._closed:
            self._told_removed = True
            asyncio.get_running_loop().call_soon(self.receiver.on_removed, detail)

    def _connected_with(self, target: MemoryTransport) -> bool:
        """Whether we dialled it and were let in, or it dialled us and is our guest."""
        if self._is_peer(target.node_id):
            return target.standing_of(self) is not None
        return target._is_peer(self.node_id) and self.standing_of(target) is Standing.GUEST

    def _is_peer(self, node_id: NodeId) -> bool:
        if node_id == self.node_id:
            return False
        return self._membership is None or node_id in self._membership.peers
