"""The disk's health, here and as the peers tell it (D4, rule 48).

A disk that hangs reports no error: the node goes on sending heartbeats, and the cluster is frozen
under a leader that can not write. So every node knows the age of its oldest unfinished durable
write and tells it in its replies. Progress of the commit index is no evidence of health: the
followers can commit without the leader's own disk.

A leader whose disk is stalled lets go, but only if a quorum of the others has told of healthy disks
just now: where all disks are slow an election would help nobody.
"""

from __future__ import annotations

from raftcore.core.config import MS
from raftcore.core.messages import AppendReply, Health, HeartbeatReply
from raftcore.core.progress import Progress
from raftcore.core.quorum import quorum_value
from raftcore.core.state import CoreState, Leadership
from raftcore.core.types import NodeId


def write_age_ns(s: CoreState) -> int:
    """Age of the oldest durable write that is not finished; 0 if there is none."""
    return s.now_ns - s.unfinished_writes[0][1] if s.unfinished_writes else 0


def stall_bound_ns(s: CoreState) -> int:
    """A write unfinished for longer than this means that the disk is stalled."""
    return max(s.election_timeout_ns, s.config.stall_ms * MS)


def is_stalled(s: CoreState) -> bool:
    return write_age_ns(s) > stall_bound_ns(s)


def own(s: CoreState) -> Health:
    """What this node says of itself in a reply."""
    return Health(write_age_ns(s) // MS, s.quarantined, s.config.feature_level)


def note_reply(s: CoreState, leadership: Leadership, progress: Progress, m: object) -> None:
    """A peer answered: keep what it says of its health."""
    if not isinstance(m, AppendReply | HeartbeatReply):
        return
    if m.health.quarantined and not progress.health.quarantined:
        progress.restart(leadership.sequence, leadership.close_counter())
    progress.health = m.health
    progress.health_ns = s.now_ns


def can_lead(s: CoreState, progress: Progress) -> bool:
    """Whether that peer counts, and its disk was well when it last spoke of it.

    Well is half of the bound: where all disks stall at once, those of the followers do so later
    than the leader's by the way of a message and back, and must not look healthy for that.
    """
    return progress.counts and 2 * progress.health.write_age_ms * MS <= stall_bound_ns(s)


# -- giving way ---------------------------------------------------------------------------------


def must_give_way(s: CoreState, leadership: Leadership) -> bool:
    """Our disk is stalled, and those of a quorum without us are not."""
    return is_stalled(s) and _others_are_healthy(s, leadership)


def _others_are_healthy(s: CoreState, leadership: Leadership) -> bool:
    """A quorum in which this node counts for nothing: a sole voter never has one."""

    def healthy(node: NodeId) -> int:
        progress = leadership.progress.get(node)
        if progress is None or progress.health_ns is None:
            return 0
        fresh = s.now_ns - progress.health_ns <= s.election_timeout_ns
        return int(fresh and can_lead(s, progress))

    return quorum_value(s.configuration, healthy) == 1


def stall_ns(s: CoreState) -> int:
    """When the oldest unfinished write becomes a stall. Once it has, each round of heartbeats looks
    again."""
    return s.unfinished_writes[0][1] + stall_bound_ns(s) + 1
