"""What a node asks of its transport.

Messages of the protocol may be lost, delayed, repeated and reordered; Raft copes. A transport only
promises that what arrives is intact and that ``sender`` is who the connection was authenticated as.
All methods are called on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raftcore.core.messages import Message
from raftcore.core.types import Configuration, Member, NodeId


class Receiver(Protocol):
    """Where a transport delivers."""

    def on_message(self, message: Message) -> None: ...

    def on_peer_lost(self, peer: NodeId) -> None:
        """The connection over which we send to ``peer`` broke; what was in flight may be gone."""
        ...

    async def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        """Answer an application request from a member.

        A RefusedError reaches the caller as one, with its code. After any other exception the
        caller is told that the outcome is unknown: nobody can say how far the work had come.
        """
        ...

    async def on_join(self, joiner: Member) -> Configuration:
        """A node with an empty directory asks to become a member (``joiner.voter``: as a voter).

        Returns the configuration in force once the wish was taken; raises NotLeaderError with a
        hint, or another RefusedError if it is not welcome.
        """
        ...

    def on_removed(self, detail: str) -> None:
        """A member said that this node's incarnation is retired (rule 43)."""
        ...


class Transport(Protocol):
    """Carries messages between the members of one cluster."""

    async def start(self, receiver: Receiver) -> None:
        """Listen and begin to deliver."""
        ...

    def configure(self, configuration: Configuration, peers: Sequence[Member]) -> None:
        """Talk to ``peers`` from now on; ``configuration`` is the one in force.

        ``peers`` are the members of every configuration that may still decide something, without
        this node; who is missing is hung up on after what was sent to it has left. A node of the
        same cluster that is in none of them (it was added, and this node has not heard of it yet)
        is answered over its own connection (rule 42), unless its incarnation is retired.
        """
        ...

    def send(self, to: NodeId, message: Message) -> None:
        """Queue a message. Never blocks: when the peer's bounded queue is full it is dropped."""
        ...

    async def request(self, to: NodeId, payload: bytes, timeout_s: float) -> bytes:
        """Ask a member's application and await its answer, for some weeks at most.

        Raises:
            UnknownPeerError: nothing was sent.
            OutcomeUnknownError: it was sent (or may have been) and no answer came.
            RefusedError: the peer's application refused before doing anything, or the timeout is
                not a number.
        """
        ...

    def connected(self) -> frozenset[NodeId]:
        """Peers that an authenticated connection stands to right now."""
        ...

    async def close(self) -> None: ...
