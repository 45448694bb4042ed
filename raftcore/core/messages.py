"""What nodes say to each other. One frozen record per message, no behaviour.

``sender`` is filled from the authenticated connection, not from the bytes (rule 52). Every reply
carries the term and echoes the request's ``sequence``, a counter that is unique per leadership, so
replies to an earlier leadership can be told apart and dropped (rule 24).
"""

from __future__ import annotations

from dataclasses import dataclass

from raftcore.core.types import FIRST_FEATURE_LEVEL, Entry, NodeId, SnapshotMeta


@dataclass(frozen=True, slots=True)
class Message:
    """Common to all: who sent it and in which term the sender was."""

    sender: NodeId
    term: int


@dataclass(frozen=True, slots=True)
class Health:
    """What a node says of itself in its replies to a leader.

    ``write_age_ms`` is the age of its oldest unfinished durable write (D4, rule 48); with
    ``quarantined`` it counts for no quorum of any kind (D3); ``feature_level`` is the newest level
    that its program knows. Release 0.1 says nothing, which the defaults stand for.
    """

    write_age_ms: int = 0
    quarantined: bool = False
    feature_level: int = FIRST_FEATURE_LEVEL


@dataclass(frozen=True, slots=True)
class VoteRequest(Message):
    """RequestVote (thesis 3.4), and its pre-vote form (9.6).

    With ``pre_vote`` the term is the one the sender *would* campaign in, and answering changes no
    state of the receiver. ``transfer`` marks a campaign that the leader asked for, which the sticky
    leader rule lets through (4.2.3).
    """

    last_index: int
    last_term: int
    pre_vote: bool = False
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class VoteReply(Message):
    """A granted reply carries the requested term, a refusal the receiver's own (rule 7)."""

    granted: bool
    pre_vote: bool = False


@dataclass(frozen=True, slots=True)
class AppendRequest(Message):
    """AppendEntries (3.5). Entry k has index ``prev_index + 1 + k`` (rule 29).

    ``read_counter`` is the leader's read round, echoed to confirm leadership (6.4). An empty
    request is also the heartbeat; its ``prev`` is then the match position proven so far or a probe.
    """

    prev_index: int
    prev_term: int
    commit: int
    sequence: int
    read_counter: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class AppendReply(Message):
    """Answer to one :class:`AppendRequest`, named by its ``sequence``.

    On success ``match_index`` is the last index that *this* request verified (rule 19 and M16). On
    rejection ``conflict_index`` and ``conflict_term`` say where the follower's log may still agree:
    the largest index at or below ``prev_index`` whose term is at most the leader's ``prev_term``.
    """

    success: bool
    match_index: int
    conflict_index: int
    conflict_term: int
    sequence: int
    read_counter: int
    health: Health = Health()


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """Leader contact without log positions; ``commit`` never exceeds what is proven to match.

    ``leader_commit`` is the leader's own commit index. Nothing is committed by it: it tells a
    follower how far behind it may be.
    """

    commit: int
    read_counter: int
    leader_commit: int = 0
    #: to a node in quarantine: holding everything up to here durably ends it (D3); 0: not yet
    release_index: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatReply(Message):
    read_counter: int
    health: Health = Health()


@dataclass(frozen=True, slots=True)
class SnapshotChunk(Message):
    """Bytes ``[offset, offset + len(data))`` of the snapshot file that ``meta`` describes."""

    meta: SnapshotMeta
    offset: int
    data: bytes
    sequence: int
    read_counter: int


@dataclass(frozen=True, slots=True)
class SnapshotReply(Message):
    """How far the receiver is with the snapshot at ``index``.

    ``next_offset`` is the first byte still wanted (the sender resumes there after a lost chunk or
    a new connection); ``installed`` says that everything up to ``index`` is durable.
    """

    index: int
    next_offset: int
    installed: bool
    sequence: int
    read_counter: int


@dataclass(frozen=True, slots=True)
class TimeoutNow(Message):
    """Leadership transfer: campaign at once (3.10)."""


@dataclass(frozen=True, slots=True)
class ReadIndexRequest(Message):
    """A follower asks for a linearizable read position; ``read_id`` is its own number."""

    read_id: int


@dataclass(frozen=True, slots=True)
class ReadIndexReply(Message):
    """``index`` to wait for, or -1 when the receiver cannot give one (not leader)."""

    read_id: int
    index: int
