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
from raftcore.transport.base import Receiver
from raftcore.transport.inbound import answer_request
from raftcore.transport.outbound import response_payload
from raftcore.transport.wire import (
    MessageEncoder,
    Request,
    Response,
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
        transport.receiver.on_message(decode_message(body, source))

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

    Args:
        network: the network it belongs to.
        node_id: who it is.
        configuration: the members; everybody on the network if None.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        node_id: NodeId,
        configuration: Configuration | None = None,
    ) -> None:
        self.node_id = node_id
        self._network = network
        self._configuration = configuration
        self._peers: set[NodeId] | None = None
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
        self._configuration = configuration
        self._peers = {member.node_id for member in peers}

    def send(self, to: NodeId, message: Message) -> None:
        if to == self.node_id:
            raise ValueError("a node does not send to itself")
        body = self._encoder.encode(message)
        if self._closed or not self._is_peer(to):
            self._network.lost += 1
            return
        self._network.pass_on(self.node_id, to, message, body)

    async def request(self, to: NodeId, payload: bytes, timeout_s: float) -> bytes:
        if to == self.node_id:
            raise ValueError("a node does not ask itself")
        target = self._network.transport_of(to)
        if (
            self._closed
            or target is None
            or not self._is_peer(to)
            or not self._network.can_reach(self.node_id, to)
        ):
            raise UnknownPeerError(f"{to} cannot be reached")
        body = encode_request(Request(0, max(0, round(timeout_s * 1000)), payload))
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

    def _is_peer(self, node_id: NodeId) -> bool:
        if node_id == self.node_id:
            return False
        if self._peers is not None:
            return node_id in self._peers
        return self._configuration is None or self._configuration.member(node_id) is not None
