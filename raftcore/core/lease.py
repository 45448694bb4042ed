"""Lease reads (thesis 6.4.1, rule 35): reads on the leader without asking anybody.

A quorum that answered a heartbeat votes for nobody else for one minimum election timeout after it
*received* it, by each member's own clock. So from the moment the leader *sent* it, it is the only
leader for that time, less what clocks may differ. Everything here serves to keep both halves of
that sentence true:

* Only members count that hold the lease's configuration and all that this leader's log begins with:
  before that another configuration may tell them a shorter timeout.
* Members keep their promise also when they hear of a higher term, or see the lease begin; after a
  restart, when they do not know any more what they promised, they vote for nobody for the longest
  election timeout.
* A transfer breaks the promise on purpose: once the order was sent there is no lease in this term.
"""

from __future__ import annotations

from raftcore.core import health
from raftcore.core.config import MS
from raftcore.core.quorum import quorum_value
from raftcore.core.state import CoreState, Leadership
from raftcore.core.types import NodeId

PPM = 1_000_000

# -- the leader's side --------------------------------------------------------------------------


def begin_round(s: CoreState, leadership: Leadership) -> None:
    """Heartbeats are about to be sent: their echoes are to tell that they come after now."""
    if s.configuration.lease is not None:
        leadership.read_counter += 1
        leadership.rounds.append((leadership.read_counter, s.now_ns))


def valid_until_ns(s: CoreState) -> int | None:
    """Until when this node is certainly the only leader; None without a lease."""
    leadership, lease = s.leadership, s.configuration.lease
    if leadership is None or lease is None or leadership.lease_broken or health.is_stalled(s):
        return None
    since = max(leadership.first_index, s.configurations.current_index)
    if s.log.committed < since:
        return None
    echoed = _echoed_by_quorum(s, leadership, since)
    for counter, sent_ns in reversed(leadership.rounds):
        if counter <= echoed:
            length_ns = lease.election_timeout_ms * MS * (PPM - lease.clock_error_ppm) // PPM
            return sent_ns + length_ns
    return None


def _echoed_by_quorum(s: CoreState, leadership: Leadership, since: int) -> int:
    def echoed(node: NodeId) -> int:
        if node == s.node_id:
            return leadership.read_counter
        progress = leadership.progress[node]
        return progress.read_counter if progress.counted_match >= since else 0

    return quorum_value(s.configuration, echoed)


def is_valid(s: CoreState) -> bool:
    until_ns = valid_until_ns(s)
    return until_ns is not None and s.now_ns < until_ns


# -- the voters' side ---------------------------------------------------------------------------


def begin_wait(s: CoreState) -> None:
    """This node has just started: it does not know what it promised in its last run."""
    if s.configuration.lease is not None:
        s.no_votes_until_ns = s.now_ns + 2 * s.election_timeout_ns


def binds(s: CoreState) -> bool:
    """Whether a promise to a leader, known or forgotten, holds this node's vote back."""
    return s.now_ns < s.no_votes_until_ns or promised(s)


def promised(s: CoreState) -> bool:
    """Whether a leader may still hold a lease by this node's word, whatever term it is in now."""
    contact = s.leader_contact_ns
    return (
        s.configuration.lease is not None
        and contact is not None
        and s.now_ns - contact < s.election_timeout_ns
    )
