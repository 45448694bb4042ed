"""What the driver must do after a step, in the order given.

The order is always the same: at most one ``Persist``, a ``PeersChanged`` if there is one, then
every ``Send``, then the rest, and notifications last, so that durability never hangs on what an
observer does.

``Persist`` and ``Send`` are tied together by marks: a ``Send`` with ``after`` may leave only when
the write of that mark is durable (O1, O2, O8). The driver has no other way to know when a message
may go, which is what makes replying before durability impossible to write by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from raftcore.core.messages import Message
from raftcore.core.types import (
    Configuration,
    Entry,
    HardState,
    Member,
    NodeId,
    SnapshotMeta,
    WriteMark,
)


class Effect:
    """Base of all effects."""

    __slots__ = ()


class Notification(Effect):
    """Tells observers something; nothing of the protocol depends on it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Persist(Effect):
    """One atomic durable write: hard state, truncation and entries together (O1, O3).

    ``hard_state`` None leaves it unchanged. ``truncate_from`` removes that index and everything
    after it before ``entries`` are appended. ``commit_hint`` may be stored with it; it is only ever
    a lower bound used at the next start. The driver answers with
    :class:`~raftcore.core.events.WriteDurable`; it may join several writes into one transaction,
    in order.
    """

    mark: WriteMark
    hard_state: HardState | None
    truncate_from: int | None
    entries: tuple[Entry, ...]
    commit_hint: int


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Give ``message`` to the transport; if ``after`` is set, only once that write is durable.

    Marks of successive messages need not ascend, not even within one step: a message that waits for
    term and vote names an earlier write than one before it that waits for entries. To hold back the
    later message until the earlier one may leave is allowed, and keeps their order; to let the
    earlier one go at the later one's mark is not.
    """

    to: NodeId
    message: Message
    after: WriteMark | None


@dataclass(frozen=True, slots=True)
class Apply(Effect):
    """Hand these committed, locally durable entries to the state machine, in order."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class ReadEntries(Effect):
    """Read entries from storage, from ``first`` to at most ``last``, about ``max_bytes``.

    At least one entry is wanted even when it alone is larger. Answered by
    :class:`~raftcore.core.events.EntriesRead` with the same ``request_id``.
    """

    request_id: int
    first: int
    last: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class ReadReleased(Effect):
    """The read may be served: the state machine has applied at least ``index``."""

    read_id: int
    index: int


class RefusalReason(Enum):
    NOT_LEADER = "not_leader"
    OVERLOADED = "overloaded"
    TRANSFERRING = "transferring"


@dataclass(frozen=True, slots=True)
class ReadRefused(Effect):
    """No position could be given; nothing was read. The caller may ask again."""

    read_id: int
    reason: RefusalReason
    leader_id: NodeId | None


@dataclass(frozen=True, slots=True)
class ProposalAccepted(Effect):
    """The proposal was appended at (``index``, ``term``); whether it commits is not known yet."""

    token: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class ProposalRefused(Effect):
    """The proposal was not appended anywhere and never will be."""

    token: int
    reason: RefusalReason
    leader_id: NodeId | None


@dataclass(frozen=True, slots=True)
class LeadershipChanged(Notification):
    """Role, term or known leader of this node changed."""

    role: str
    term: int
    leader_id: NodeId | None


@dataclass(frozen=True, slots=True)
class ConfigurationChanged(Notification):
    """This configuration is now in force (from append on, thesis 4.1)."""

    configuration: Configuration
    index: int


@dataclass(frozen=True, slots=True)
class PeersChanged(Effect):
    """Whom this node talks to from now on: every member of every configuration between the last
    committed one and the one in force, but not itself. Comes before the sends of its step.

    Somebody who is missing here was removed for good: connections to it may end once what was sent
    to it has left.
    """

    peers: tuple[Member, ...]


class MembershipOutcome(Enum):
    DONE = "done"  #: the wanted configuration is committed
    NOT_LEADER = "not_leader"  #: refused: this node does not lead
    IN_PROGRESS = "in_progress"  #: refused: another change is under way
    STALE_VERSION = "stale_version"  #: refused: the configuration has changed meanwhile
    NOT_READY = "not_ready"  #: refused: nothing of this leader's term is committed yet (rule 37)
    INVALID = "invalid"  #: refused: what is wanted can not be
    NOT_CAUGHT_UP = "not_caught_up"  #: given up: a new voter did not catch up; it stays a learner
    UNKNOWN = "unknown"  #: leadership was lost: it may still come about (rule 51)


@dataclass(frozen=True, slots=True)
class MembershipFinished(Notification):
    """What came of a :class:`~raftcore.core.events.MembershipRequested`.

    ``version`` is the index of the configuration in force now.
    """

    token: int
    outcome: MembershipOutcome
    version: int
    detail: str
    leader_id: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Removed(Notification):
    """A committed configuration no longer has this node (rule 43): it will never take part again
    under this incarnation."""

    index: int


@dataclass(frozen=True, slots=True)
class FollowerRegressed(Notification):
    """A peer denied what it had acknowledged: its disk went back. It counts for nothing any more
    (D3, the second net)."""

    peer: NodeId
    match_index: int


@dataclass(frozen=True, slots=True)
class GaveWay(Notification):
    """This node stopped leading because its own disk makes no progress while those of a quorum of
    the others do (D4, rule 48)."""

    write_age_ms: int


@dataclass(frozen=True, slots=True)
class EndQuarantine(Effect):
    """Durably record that the quarantine is over: everything up to ``index``, which a quorum
    without this node confirmed, is durable here. Answered by
    :class:`~raftcore.core.events.QuarantineEnded`."""

    index: int


@dataclass(frozen=True, slots=True)
class Compact(Effect):
    """Log entries below ``first_index`` may be deleted."""

    first_index: int


@dataclass(frozen=True, slots=True)
class StoreSnapshotChunk(Effect):
    """Write received snapshot bytes at ``offset``; offset 0 starts a new file.

    When the file is complete (``offset + len(data) == meta.size_bytes``) the driver verifies the
    digest, makes it durable, installs it into storage and state machine (O6) and answers with
    :class:`~raftcore.core.events.SnapshotInstalled`; before that each stored chunk is answered with
    :class:`~raftcore.core.events.SnapshotChunkStored`.
    """

    meta: SnapshotMeta
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ReadSnapshotChunk(Effect):
    """Read up to ``max_bytes`` of the snapshot from ``offset`` for peer ``to``."""

    to: NodeId
    meta: SnapshotMeta
    offset: int
    max_bytes: int


class TransferRefusal(Enum):
    """Why a transfer was not even begun."""

    NOT_LEADER = "not_leader"  #: this node does not lead
    IN_PROGRESS = "in_progress"  #: another is under way, perhaps for a change of members
    NO_TARGET = "no_target"  #: nobody could take over


@dataclass(frozen=True, slots=True)
class TransferFinished(Notification):
    """Outcome of a leadership transfer that this node was asked for.

    ``succeeded``: this node heard the target lead a later term. ``unknown``: the target was told to
    campaign, and it is not known whether it leads or will. ``refusal``: it was not begun.
    """

    succeeded: bool
    target: NodeId | None
    detail: str
    unknown: bool = False
    refusal: TransferRefusal | None = None
