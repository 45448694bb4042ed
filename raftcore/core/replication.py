"""Replication: appending on both sides, windows, backtracking, the commit rule (thesis 3.5, 3.6).

The leader counts itself through the same door as everybody else: by what its own write has made
durable, while the same entries are already on their way to the followers (10.2.1, rule 17).
"""

from __future__ import annotations

from raftcore.core import health, quarantine, snapshots
from raftcore.core.config import MS
from raftcore.core.effects import Apply, FollowerRegressed, ReadEntries
from raftcore.core.errors import InvariantError
from raftcore.core.messages import AppendReply, AppendRequest, Heartbeat, HeartbeatReply
from raftcore.core.progress import InFlight, Progress, ProgressState
from raftcore.core.quorum import quorum_value
from raftcore.core.state import CoreState, Leadership, WaitFor
from raftcore.core.types import Entry, NodeId

#: A probe carries entries only up to this size: it is repeated until answered.
PROBE_BYTES = 16 << 10
#: A question what was lost that is not answered within this many heartbeat intervals is taken for
#: lost itself, and with it all that is in flight.
LOST_AFTER_HEARTBEATS = 16

# -- the leader's side --------------------------------------------------------------------------


def append_as_leader(s: CoreState, leadership: Leadership, entries: tuple[Entry, ...]) -> None:
    """Append new entries of this term; they are sent by the next :func:`broadcast`."""
    s.append(entries)
    for entry in entries:
        leadership.uncommitted.append((entry.index, entry.size_bytes))
        leadership.uncommitted_bytes += entry.size_bytes


def broadcast(s: CoreState, leadership: Leadership) -> None:
    """Send every peer what its state and window allow."""
    for peer, progress in leadership.progress.items():
        send_append(s, leadership, peer, progress)


def send_append(s: CoreState, leadership: Leadership, peer: NodeId, progress: Progress) -> None:
    """Send ``peer`` as much as it can take now, one message after the other."""
    gone = leadership.departing.get(peer)
    if progress.regressed or (gone is not None and progress.match_index >= gone.index):
        return
    if progress.state is ProgressState.SNAPSHOT:
        snapshots.feed(s, peer, progress)
        return
    config = s.config
    while progress.reading is None:
        probing = progress.state is ProgressState.PROBE
        if probing and progress.inflight:
            return
        if not progress.window_open(config.max_inflight_messages, config.max_inflight_bytes):
            return
        if not probing and progress.next_index > s.log.last_index:
            return
        if not _send_one(s, leadership, peer, progress, probing=probing):
            return


def _send_one(
    s: CoreState, leadership: Leadership, peer: NodeId, progress: Progress, *, probing: bool
) -> bool:
    """One append message, or the start of what must come first; whether a message was sent."""
    first = progress.next_index
    prev_term = s.log.term_at(first - 1)
    if prev_term is None:
        snapshots.begin_feed(s, peer, progress)
        return False
    limit = PROBE_BYTES if probing else s.config.max_append_bytes
    entries = s.log.cached(first, s.log.last_index, limit, s.config.max_append_entries)
    if entries is None and probing:
        entries = ()
    if entries is None:
        progress.reading = s.request_id()
        s.emit(ReadEntries(progress.reading, first, s.log.last_index, limit))
        return False
    _send_entries(s, leadership, peer, progress, prev_term, entries)
    return True


def _send_entries(
    s: CoreState,
    leadership: Leadership,
    peer: NodeId,
    progress: Progress,
    prev_term: int,
    entries: tuple[Entry, ...],
) -> None:
    prev_index = progress.next_index - 1
    assert not entries or entries[0].index == prev_index + 1, "a batch continues its prev (rule 29)"
    request = AppendRequest(
        sender=s.node_id,
        term=s.term,
        prev_index=prev_index,
        prev_term=prev_term,
        commit=s.log.committed,
        sequence=leadership.next_sequence(),
        read_counter=leadership.read_counter,
        entries=entries,
    )
    size_bytes = sum(entry.size_bytes for entry in entries)
    last_index = prev_index + len(entries)
    proven = 0 < prev_index <= progress.match_index
    progress.sent(
        InFlight(request.sequence, prev_index, last_index, size_bytes, proven, s.now_ns)
    )  # fmt: skip
    progress.sent_commit = max(progress.sent_commit, min(request.commit, last_index))
    if progress.state is ProgressState.REPLICATE:
        progress.next_index += len(entries)
    s.send(peer, request, WaitFor.NOTHING)


def on_entries_read(
    s: CoreState, leadership: Leadership, request_id: int, entries: tuple[Entry, ...]
) -> None:
    """Entries that were not in memory have been read for a peer."""
    for peer, progress in leadership.progress.items():
        if progress.reading != request_id:
            continue
        progress.reading = None
        prev_term = s.log.term_at(progress.next_index - 1)
        if prev_term is None:
            # Compacted while being read: only a snapshot can help.
            snapshots.begin_feed(s, peer, progress)
            return
        if entries:
            # An acknowledgement may have moved the peer on while its entries were being read, and
            # what it has no use for any more may be compacted.
            entries = entries[max(progress.next_index - entries[0].index, 0) :]
        if entries:
            s.log.check_read(entries[0].index, entries)
        if entries and entries[0].index == progress.next_index:
            _send_entries(s, leadership, peer, progress, prev_term, entries)
            send_append(s, leadership, peer, progress)
        return


def on_append_reply(s: CoreState, leadership: Leadership, m: AppendReply) -> None:
    """An answer of this term. Unknown or repeated answers change nothing (rule 24)."""
    progress = leadership.progress.get(m.sender)
    if progress is None:
        return
    request = progress.find(m.sequence)
    if m.success:
        progress.forget_through(m.sequence)
        if progress.acknowledge(m.match_index):
            advance_commit(s, leadership)
        if progress.state is ProgressState.PROBE and request is not None:
            progress.become_replicate()
        elif progress.state is ProgressState.SNAPSHOT:
            snapshots.check_caught_up(s, progress)
    elif request is not None and progress.state is not ProgressState.SNAPSHOT:
        _on_rejection(s, leadership, progress, m, request)
    send_append(s, leadership, m.sender, progress)


def _on_rejection(
    s: CoreState, leadership: Leadership, progress: Progress, m: AppendReply, request: InFlight
) -> None:
    """Back to where both logs may agree; each probe falls by at least one term (rule 25)."""
    if request.proven and progress.health.quarantined:
        # It went back once more, before we heard that it had been let out: that is known to it.
        progress.restart(leadership.sequence, leadership.close_counter())
    elif request.proven:
        # It acknowledged this position before the request was sent and denies it now: its disk went
        # back. Probing it again could never end, and counting it could lose a committed entry.
        progress.regressed = True
        s.emit(FollowerRegressed(m.sender, progress.match_index))
        return
    index, _ = s.log.last_index_with_term_at_most(m.conflict_index, m.conflict_term)
    if m.conflict_index < s.log.first_index - 1:
        index = m.conflict_index
    progress.backtrack(min(index, request.prev_index - 1) + 1)


def send_heartbeat(s: CoreState, leadership: Leadership, peer: NodeId, progress: Progress) -> None:
    """Contact without positions. Its commit never exceeds what is proven to match (rule 19)."""
    commit = min(s.log.committed, progress.match_index)
    progress.sent_commit = max(progress.sent_commit, commit)
    heartbeat = Heartbeat(
        sender=s.node_id,
        term=s.term,
        commit=commit,
        read_counter=leadership.read_counter,
        leader_commit=s.log.committed,
        release_index=quarantine.release_index(s, leadership, peer, progress),
    )
    s.send(peer, heartbeat, WaitFor.NOTHING)


def on_heartbeat_reply(s: CoreState, leadership: Leadership, m: HeartbeatReply) -> None:
    """The peer is there. If something in flight may have been lost, find out (rule 28)."""
    progress = leadership.progress.get(m.sender)
    if progress is None:
        return
    if progress.inflight and progress.state is not ProgressState.SNAPSHOT:
        _ask_again(s, leadership, m.sender, progress)
    elif progress.health.quarantined and progress.state is ProgressState.REPLICATE:
        # It leaves quarantine only once it has answered an append of this run (D3).
        progress.become_probe()
    send_append(s, leadership, m.sender, progress)


def _ask_again(s: CoreState, leadership: Leadership, peer: NodeId, progress: Progress) -> None:
    """Something is unanswered, perhaps lost: one more empty append after all that was sent.

    A rejection tells that the connection lost something before it, an acknowledgement that it did
    not. What is in flight stays named meanwhile, so that with a round trip longer than a heartbeat
    an answer still finds its request. One question at a time, and only about what has had time to
    be answered: replies to rounds of reads come far more often than answers of a slow disk. When
    the question stays unanswered too, all counts as lost.
    """
    heartbeat_ns = s.config.heartbeat_ms * MS
    if progress.ask_outstanding:
        if s.now_ns - progress.asked_ns >= LOST_AFTER_HEARTBEATS * heartbeat_ns:
            progress.become_probe()
        return
    if s.now_ns - progress.inflight[0].sent_ns < heartbeat_ns:
        return
    prev_term = s.log.term_at(progress.next_index - 1)
    if prev_term is None:
        progress.become_probe()  # compacted meanwhile: from what is proven, or a snapshot
    elif progress.reading is None:
        _send_entries(s, leadership, peer, progress, prev_term, ())
        progress.asked, progress.asked_ns = leadership.sequence, s.now_ns


def announce_commit(s: CoreState, leadership: Leadership) -> None:
    """Tell followers of a new commit index now, if no append of this step already did."""
    committed = s.log.committed
    for peer, progress in leadership.progress.items():
        if progress.sent_commit < committed and progress.sent_commit < progress.match_index:
            send_heartbeat(s, leadership, peer, progress)


def advance_commit(s: CoreState, leadership: Leadership) -> None:
    """Commit what a quorum holds durably, if it is of this term (3.6.2, Figure 3.7)."""
    if s.log.committed == s.log.last_index:
        return

    def match(node: NodeId) -> int:
        return s.log.durable if node == s.node_id else leadership.progress[node].counted_match

    index = quorum_value(s.configuration, match)
    if s.log.term_at(index) == s.term:
        s.log.commit(index)


def settle_uncommitted(s: CoreState, leadership: Leadership) -> None:
    """Make room for proposals. What others have committed still takes up memory here until it is
    durable: a leader whose own disk hangs must refuse, or nothing would bound it."""
    settled = min(s.log.committed, s.log.durable)
    while leadership.uncommitted and leadership.uncommitted[0][0] <= settled:
        leadership.uncommitted_bytes -= leadership.uncommitted.popleft()[1]


# -- the follower's side ------------------------------------------------------------------------


def on_append_request(s: CoreState, m: AppendRequest) -> None:
    """A request of the current term's leader; contact has been noted already."""
    if s.incoming is not None and s.incoming.installing:
        # What is installed settles the log first (rule 44); the leader asks again.
        return
    verified = m.prev_index + len(m.entries)
    if m.prev_index < s.log.committed:
        # Up to the commit index both logs are equal by leader completeness (rules 26, 27).
        _check_committed(s, m)
        entries = m.entries[s.log.committed - m.prev_index :]
        verified = max(verified, s.log.committed)
    elif s.log.term_at(m.prev_index) == m.prev_term:
        entries = m.entries
    else:
        _reject(s, m)
        return
    _append_from_leader(s, entries)
    quarantine.on_verified(s, verified)
    s.log.commit(min(m.commit, verified))
    reply = AppendReply(
        s.node_id, s.term, True, verified, 0, 0, m.sequence, m.read_counter, health.own(s)
    )  # fmt: skip
    s.send(m.sender, reply, WaitFor.EVERYTHING)


def _check_committed(s: CoreState, m: AppendRequest) -> None:
    """A leader whose log differs from ours at or below our commit index is wrong (rule 21)."""
    positions = [(m.prev_index, m.prev_term)] + [(entry.index, entry.term) for entry in m.entries]
    for index, term in positions[: s.log.committed - m.prev_index + 1]:
        if s.log.term_at(index) not in (None, term):
            raise InvariantError(
                f"{m.sender} has term {term} at the committed index {index}, this node has "
                f"{s.log.term_at(index)}"
            )


def _append_from_leader(s: CoreState, entries: tuple[Entry, ...]) -> None:
    """Append what is new, truncating only at a real conflict (rule 20)."""
    for offset, entry in enumerate(entries):
        ours = s.log.term_at(entry.index)
        if ours == entry.term:
            continue
        if ours is not None:
            s.truncate(entry.index)
        s.append(entries[offset:])
        return


def _reject(s: CoreState, m: AppendRequest) -> None:
    index, term = s.log.last_index_with_term_at_most(m.prev_index - 1, m.prev_term)
    reply = AppendReply(
        s.node_id, s.term, False, 0, index, term, m.sequence, m.read_counter, health.own(s)
    )  # fmt: skip
    s.send(m.sender, reply, WaitFor.EVERYTHING)


def on_heartbeat(s: CoreState, m: Heartbeat) -> None:
    """Contact has been noted. The commit was proven to match before it was sent."""
    if s.incoming is None or not s.incoming.installing:
        s.log.commit(quarantine.provable_commit(s, m))
    quarantine.on_heartbeat(s, m)
    reply = HeartbeatReply(s.node_id, s.term, m.read_counter, health.own(s))
    s.send(m.sender, reply, WaitFor.HARD_STATE)


# -- applying -----------------------------------------------------------------------------------


def hand_out(s: CoreState) -> None:
    """Give the state machine its next batch; one batch is out at a time, so batches grow under
    load by themselves."""
    log = s.log
    if log.handed != log.applied or log.handed == log.committed or s.reading_to_apply is not None:
        return
    if s.incoming is not None and s.incoming.installing:
        return
    first, last = log.applicable()
    if last < first:
        return
    entries = log.cached(first, last, s.config.max_apply_bytes, s.config.max_append_entries)
    if entries is None:
        s.reading_to_apply = s.request_id()
        s.emit(ReadEntries(s.reading_to_apply, first, last, s.config.max_apply_bytes))
        return
    log.handed = entries[-1].index
    s.emit(Apply(entries))


def on_entries_to_apply(s: CoreState, entries: tuple[Entry, ...]) -> None:
    s.reading_to_apply = None
    if s.incoming is not None and s.incoming.installing:
        return
    first, _ = s.log.applicable()
    if not entries:
        raise InvariantError(f"storage has lost the committed entry {first}")
    s.log.check_read(first, entries)
    s.log.handed = entries[-1].index
    s.emit(Apply(entries))
