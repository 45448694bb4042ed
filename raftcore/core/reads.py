"""Linearizable reads without a log entry (thesis 6.4): ReadIndex by a monotone counter.

Each batch of reads takes the commit index and the next number of a counter that exists only for
this leadership. Requests and heartbeats carry the counter, replies echo it; once a quorum has
echoed it, the leader was still leader after the commit index was taken, and no earlier echo can be
mistaken for that (rule 33). The read is served when the state machine has applied that index.
"""

from __future__ import annotations

from raftcore.core import lease, replication
from raftcore.core.effects import ReadRefused, ReadReleased, RefusalReason
from raftcore.core.messages import ReadIndexReply, ReadIndexRequest
from raftcore.core.quorum import quorum_value
from raftcore.core.state import CoreState, Leadership, PendingRead, WaitFor
from raftcore.core.types import NodeId


def request(s: CoreState, read_id: int, *, by_lease: bool) -> None:
    """A read asked for on this node. With ``by_lease`` a leader that holds a lease does not ask
    anybody; the position is that of now, when the lease is known to hold (rules 35, 36)."""
    if s.pending_reads >= s.config.max_pending_reads:
        s.emit(ReadRefused(read_id, RefusalReason.OVERLOADED, s.leader_id))
    elif by_lease and lease.is_valid(s):
        _wait_for_apply(s, read_id, s.log.committed)
    elif s.leadership is not None:
        _register(s, s.leadership, read_id, None)
    elif s.leader_id is None or s.quarantined:
        s.emit(ReadRefused(read_id, RefusalReason.NOT_LEADER, s.leader_id))
    else:
        s.remote_reads.add(read_id)
        message = ReadIndexRequest(s.node_id, s.term, read_id)
        s.send(s.leader_id, message, WaitFor.HARD_STATE)


def abandon(s: CoreState, read_id: int) -> None:
    """The answer may have been lost with a connection: without this the bound would fill up."""
    s.remote_reads.discard(read_id)
    s.confirmed_reads.pop(read_id, None)


def on_read_index_request(s: CoreState, m: ReadIndexRequest) -> None:
    """A follower or learner asks for a position."""
    leadership = s.leadership
    if leadership is None or (
        len(leadership.reads) + len(leadership.reads_before_commit) >= s.config.max_pending_reads
    ):
        reply = ReadIndexReply(s.node_id, s.term, m.read_id, -1)
        s.send(m.sender, reply, WaitFor.HARD_STATE)
        return
    _register(s, leadership, m.read_id, m.sender)


def on_read_index_reply(s: CoreState, m: ReadIndexReply) -> None:
    if m.read_id not in s.remote_reads:
        return
    s.remote_reads.discard(m.read_id)
    if m.index < 0:
        s.emit(ReadRefused(m.read_id, RefusalReason.NOT_LEADER, s.leader_id))
    else:
        _wait_for_apply(s, m.read_id, m.index)


def _register(s: CoreState, leadership: Leadership, read_id: int, requester: NodeId | None) -> None:
    read = PendingRead(0, 0, read_id, requester)
    if s.log.committed < leadership.first_index:
        # Until this term's no-op is committed the commit index may lie behind what was
        # acknowledged, also for a lone voter (rules 32, 34).
        leadership.reads_before_commit.append(read)
        return
    _start_round(s, leadership, [read])


def _start_round(s: CoreState, leadership: Leadership, reads: list[PendingRead]) -> None:
    """Take the position first, then confirm leadership (rule 36)."""
    leadership.read_counter += 1
    for read in reads:
        read.counter = leadership.read_counter
        read.index = s.log.committed
        leadership.reads.append(read)
    for peer, progress in leadership.progress.items():
        replication.send_heartbeat(s, leadership, peer, progress)
    release_confirmed(s, leadership)


def on_commit(s: CoreState, leadership: Leadership) -> None:
    """Reads that waited for the term's first commit can start."""
    if leadership.reads_before_commit and s.log.committed >= leadership.first_index:
        waiting, leadership.reads_before_commit = leadership.reads_before_commit, []
        _start_round(s, leadership, waiting)


def release_confirmed(s: CoreState, leadership: Leadership) -> None:
    """Settle the reads whose round a quorum has echoed."""
    if not leadership.reads:
        return

    def echoed(node: NodeId) -> int:
        if node == s.node_id:
            return leadership.read_counter
        return leadership.progress[node].read_counter

    confirmed = quorum_value(s.configuration, echoed)
    while leadership.reads and leadership.reads[0].counter <= confirmed:
        read = leadership.reads.popleft()
        if read.requester is None:
            _wait_for_apply(s, read.read_id, read.index)
        else:
            reply = ReadIndexReply(s.node_id, s.term, read.read_id, read.index)
            s.send(read.requester, reply, WaitFor.NOTHING)


def _wait_for_apply(s: CoreState, read_id: int, index: int) -> None:
    if index <= s.log.applied:
        s.emit(ReadReleased(read_id, index))
        return
    # A position from an earlier leader may be below one that waits already: waiting for the larger
    # one too is still correct, and keeps the queue sorted.
    if s.confirmed_reads:
        index = max(index, next(reversed(s.confirmed_reads.values())))
    s.confirmed_reads[read_id] = index


def on_applied(s: CoreState) -> None:
    waiting = s.confirmed_reads
    while waiting:
        read_id, index = next(iter(waiting.items()))
        if index > s.log.applied:
            return
        del waiting[read_id]
        s.emit(ReadReleased(read_id, index))
