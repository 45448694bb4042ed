"""A node in quarantine: it had said that something was durable which its disk no longer holds (D3).

It votes for nobody, does not campaign and serves no read, for it may have forgotten what it
promised; it follows and appends like any other. The leader counts it for nothing.

The way out: a leader that has committed an entry of its term, and whose commit index is held by a
quorum *without* this node, names that index. Whatever was ever committed by this node's word is at
or below it. Once the node holds the leader's log durably up to there, nothing that it promised is
missing any more. No such quorum: it stays in quarantine, through restarts too.

Only a leader that still leads may name it. One that was deposed with this node's vote does not know
of what was committed since, and a node that has forgotten that vote would believe it. Two things
keep such a leader from letting it out:

* Term and vote must be vouched for, by a FLOOR that did not go back with the log. If not, the
  quarantine is *final*: there is no way out but to remove the node and let it join again.
* The quorum without the node must have answered heartbeats that were sent after the leader had
  heard of the quarantine, and so still follow it.

That what a node hears is meant for this run rests on connections that do not outlive a process: no
message reaches a run that was sent to an earlier one.
"""

from __future__ import annotations

from raftcore.core.effects import EndQuarantine
from raftcore.core.messages import Heartbeat
from raftcore.core.progress import Progress
from raftcore.core.quorum import quorum_value
from raftcore.core.state import CoreState, Leadership
from raftcore.core.types import NodeId, Position

# -- the node itself ----------------------------------------------------------------------------


def begin(s: CoreState, *, final: bool) -> None:
    """This run begins in quarantine."""
    s.quarantined = True
    s.quarantine_final = final
    s.verified = Position(0, 0)


def on_verified(s: CoreState, index: int) -> None:
    """An append of our term has shown that up to ``index`` our log is the leader's."""
    if s.verified is not None:
        s.verified = max(s.verified, Position(s.term, index))


def provable_commit(s: CoreState, m: Heartbeat) -> int:
    """What a heartbeat may commit here. It carries what our last run acknowledged, and the leader
    can not know yet that it is gone: only what came in this run is proven (rule 19)."""
    if s.verified is None:
        return m.commit
    return min(m.commit, s.verified.index) if s.verified.term == s.term else 0


def on_heartbeat(s: CoreState, m: Heartbeat) -> None:
    """A leader of our term, which is at least the one that we remember, names the way out."""
    if s.quarantined and not s.quarantine_final and m.release_index > 0:
        s.release_index = m.release_index


def settle(s: CoreState) -> None:
    """Ask storage to end the quarantine, once.

    Durable alone is not enough: an append of this term must have shown that our log is the leader's
    up to there. So the leader knows where this run stands: what an earlier one acknowledged beyond
    that, in a quarantine that the leader takes for this one, is refuted before we count again.
    """
    wanted = s.release_index
    if wanted is None or s.ending_quarantine or s.verified is None:
        return
    if s.verified >= Position(s.term, wanted) and min(s.log.durable, s.log.committed) >= wanted:
        s.ending_quarantine = True
        s.emit(EndQuarantine(wanted))


def on_ended(s: CoreState) -> None:
    """Storage has recorded that it is over."""
    s.quarantined = False
    s.release_index = None


# -- its leader ---------------------------------------------------------------------------------


def release_index(s: CoreState, leadership: Leadership, peer: NodeId, progress: Progress) -> int:
    """What ``peer`` must hold to leave quarantine; 0 as long as nobody can say."""
    if not progress.health.quarantined:
        return 0
    committed = s.log.committed
    if committed < leadership.first_index or not _still_followed(s, leadership, peer, progress):
        return 0

    def match(node: NodeId) -> int:
        if node == peer:
            return 0
        return s.log.durable if node == s.node_id else leadership.progress[node].counted_match

    return committed if quorum_value(s.configuration, match) >= committed else 0


def _still_followed(s: CoreState, leadership: Leadership, peer: NodeId, progress: Progress) -> bool:
    """Whether a quorum without ``peer`` has answered what was sent after its quarantine became
    known here."""

    def answered(node: NodeId) -> int:
        if node == peer:
            return 0
        if node == s.node_id:
            return 1
        other = leadership.progress[node]
        return int(other.counts and other.read_counter > progress.after_counter)

    return quorum_value(s.configuration, answered) == 1
