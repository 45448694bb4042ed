"""What can happen to a node. Each event carries the monotonic time at which it happened.

The core never asks for the time: ``now_ns`` in the event is the only clock there is, so the same
code runs under a real clock and under a simulator's.
"""

from __future__ import annotations

from dataclasses import dataclass

from raftcore.core.messages import Message
from raftcore.core.types import Entry, Lease, Member, NodeId, SnapshotMeta, WriteMark


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at ``now_ns`` (monotonic nanoseconds, never decreasing)."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class Tick(Event):
    """Time passed; the driver sends it when the deadline it was given has come."""


@dataclass(frozen=True, slots=True)
class MessageReceived(Event):
    message: Message


@dataclass(frozen=True, slots=True)
class Proposal:
    """A command to append. ``token`` is the driver's name for it in the answering effects."""

    token: int
    data: bytes
    client_id: bytes = b""
    sequence: int = 0
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Propose(Event):
    """A batch of commands; accepted or refused one by one, in order."""

    proposals: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class ReadRequested(Event):
    """Asks for a linearizable read position, here or through the leader; ``read_id`` names it.

    With ``lease`` a leader that holds a valid lease gives it without asking anybody; otherwise, and
    on any other node, the read is confirmed as usual.
    """

    read_id: int
    lease: bool = False


@dataclass(frozen=True, slots=True)
class ReadAbandoned(Event):
    """Nobody waits for this read any more; it takes up no room from now on."""

    read_id: int


@dataclass(frozen=True, slots=True)
class WriteDurable(Event):
    """Every write up to and including ``mark`` has been committed durably."""

    mark: WriteMark


@dataclass(frozen=True, slots=True)
class EntriesRead(Event):
    """Answer to a :class:`~raftcore.core.effects.ReadEntries`, in order from its ``first``.

    May be shorter than asked for. ``entries`` is empty when ``first`` has been compacted meanwhile.
    """

    request_id: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Applied(Event):
    """The state machine holds everything up to and including ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class SnapshotTaken(Event):
    """A snapshot of the local state machine is durable, verified and pointed to.

    ``keep_from_index`` is the first index after the *older* snapshot that is still kept: the log
    from there on must stay, so that a damaged newest snapshot can be done without (O5).
    """

    meta: SnapshotMeta
    keep_from_index: int


@dataclass(frozen=True, slots=True)
class SnapshotChunkStored(Event):
    """The received snapshot file now holds ``next_offset`` bytes."""

    meta: SnapshotMeta
    next_offset: int


@dataclass(frozen=True, slots=True)
class SnapshotInstalled(Event):
    """A received snapshot is durable in storage and the state machine was rebuilt from it.

    With ``ok`` false the file failed its digest and was thrown away: transfer starts again.
    """

    meta: SnapshotMeta
    ok: bool = True


@dataclass(frozen=True, slots=True)
class SnapshotChunkRead(Event):
    """Bytes of our newest snapshot for a peer; ``data`` empty if that snapshot is gone."""

    to: NodeId
    meta: SnapshotMeta
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TransferRequested(Event):
    """Hand leadership to ``target``, or with None to the member that is furthest along."""

    target: NodeId | None = None


@dataclass(frozen=True, slots=True)
class TransferAborted(Event):
    """Give up the transfer under way, if there is one; its outcome is told as ever."""


@dataclass(frozen=True, slots=True)
class MembershipRequested(Event):
    """State the wanted members, on the leader. Answered by one
    :class:`~raftcore.core.effects.MembershipFinished` with the same ``token``.

    Args:
        token: the driver's name for this request.
        version: index of the configuration that the caller saw; another one in force refuses it.
        members: all members wanted, sorted by id: ``voter`` says as what. Members that are there
            already keep their incarnation; a different one is refused (remove it first).
        lease: the lease wanted from then on, or None for none.
    """

    token: int
    version: int
    members: tuple[Member, ...]
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class QuarantineEnded(Event):
    """Storage has durably recorded that this node is no longer in quarantine (D3)."""


@dataclass(frozen=True, slots=True)
class PeerUnreachable(Event):
    """The transport lost the connection to a peer: what was in flight to it may be gone."""

    peer: NodeId
