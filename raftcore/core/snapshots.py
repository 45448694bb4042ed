"""Snapshot transfer in chunks, resumable by offset, on both sides; compaction of the log.

A transfer lives in the peer's progress, not in a call: a lost chunk or connection costs one chunk,
and heartbeats go on beside it (rule 45).
"""

from __future__ import annotations

from raftcore.core.config import MS
from raftcore.core.effects import (
    Compact,
    ConfigurationChanged,
    ReadSnapshotChunk,
    StoreSnapshotChunk,
)
from raftcore.core.errors import InvariantError
from raftcore.core.events import (
    SnapshotChunkRead,
    SnapshotChunkStored,
    SnapshotInstalled,
    SnapshotTaken,
)
from raftcore.core.membership import ConfigurationStack
from raftcore.core.messages import SnapshotChunk, SnapshotReply
from raftcore.core.progress import Progress, ProgressState, SnapshotFeed
from raftcore.core.state import CoreState, IncomingSnapshot, Leadership, WaitFor
from raftcore.core.types import NodeId

#: A chunk without an answer is sent again after this many election timeouts, and then after twice
#: as long each time. Lost connections are reported; this is only against a lost frame, and a chunk
#: that is merely slow must not be joined on its link by another.
RESEND_AFTER_TIMEOUTS = 10
#: Waiting times are doubled at most this often.
MAX_DOUBLINGS = 6
SECOND_NS = 1000 * MS

# -- the leader's side --------------------------------------------------------------------------


def begin_feed(s: CoreState, peer: NodeId, progress: Progress) -> None:
    """What the peer needs is compacted: feed it the newest snapshot."""
    meta = s.log.snapshot
    if meta is None:
        raise InvariantError("the log is compacted and there is no snapshot")
    progress.become_snapshot(meta)
    feed(s, peer, progress)


def feed(s: CoreState, peer: NodeId, progress: Progress) -> None:
    """Ask for the next chunk to be read, unless one is under way."""
    current = progress.feed
    assert current is not None, "a peer in state SNAPSHOT has a feed"
    earliest_ns = max(current.not_before_ns, progress.paced_until_ns)
    if s.now_ns < earliest_ns:
        current.due_ns = earliest_ns
        return
    current.due_ns = None
    if current.waiting_since_ns is not None:
        patience_ns = _doubled(RESEND_AFTER_TIMEOUTS * s.election_timeout_ns, current.resends)
        if s.now_ns - current.waiting_since_ns < patience_ns:
            return
        current.resends += 1
    current.waiting_since_ns = s.now_ns
    limit = s.config.snapshot_chunk_bytes
    s.emit(ReadSnapshotChunk(peer, current.meta, current.offset, limit))


def feeds_due_ns(leadership: Leadership) -> list[int]:
    """When the chunks may be read that only wait for their time."""
    feeds = [p.feed for p in leadership.progress.values() if p.feed is not None]
    return [feed.due_ns for feed in feeds if feed.due_ns is not None]


def on_tick(s: CoreState, leadership: Leadership) -> None:
    """Feed those whose time has come: nothing else may happen that would."""
    for peer, progress in leadership.progress.items():
        current = progress.feed
        if current is not None and current.due_ns is not None and s.now_ns >= current.due_ns:
            feed(s, peer, progress)


def _doubled(time_ns: int, times: int) -> int:
    return time_ns << min(times, MAX_DOUBLINGS)


def on_chunk_read(s: CoreState, leadership: Leadership, event: SnapshotChunkRead) -> None:
    """The driver has read a chunk for a peer."""
    progress = leadership.progress.get(event.to)
    if progress is None or progress.feed is None or progress.feed.meta != event.meta:
        return
    if event.offset != progress.feed.offset:
        return
    if not event.data:
        # That snapshot is gone, a newer one has taken its place.
        newest = s.log.snapshot
        if newest is None or newest == event.meta:
            raise InvariantError("the newest snapshot can not be read")
        progress.feed = SnapshotFeed(newest)
        feed(s, event.to, progress)
        return
    chunk = SnapshotChunk(
        sender=s.node_id,
        term=s.term,
        meta=event.meta,
        offset=event.offset,
        data=event.data,
        sequence=leadership.next_sequence(),
        read_counter=leadership.read_counter,
    )
    progress.feed.sequence = chunk.sequence
    progress.feed.complete = event.offset + len(event.data) == event.meta.size_bytes
    rate = s.config.snapshot_bytes_per_s
    progress.paced_until_ns = s.now_ns + (len(event.data) * SECOND_NS // rate if rate else 0)
    s.send(event.to, chunk, WaitFor.NOTHING)


def on_reply(s: CoreState, progress: Progress, m: SnapshotReply) -> None:
    """The peer says how far it is; the caller goes on sending.

    Only the answer to the last chunk, or one that brings the peer further, lets the next one go:
    otherwise each chunk that was sent twice would be followed by two, for ever.
    """
    if m.installed:
        progress.failed_installs = 0
        progress.acknowledge(m.index)
        check_caught_up(s, progress)
        if progress.feed is not None and m.sequence == progress.feed.sequence:
            progress.feed.reopen()  # it holds an older snapshot now, and still needs this one
        return
    current = progress.feed
    if current is None or m.index != current.meta.index:
        return
    wanted = m.next_offset if 0 <= m.next_offset < current.meta.size_bytes else 0
    if m.sequence == current.sequence:
        if current.complete and wanted == 0:
            # It had everything and threw it away: damaged here or on the way, or it started anew.
            pause_ns = _doubled(s.election_timeout_ns, current.failures)
            current.start_over(s.now_ns + pause_ns)
            progress.failed_installs += 1
        else:
            current.advance(wanted)
    elif wanted > current.offset:
        current.advance(wanted)


def check_caught_up(s: CoreState, progress: Progress) -> None:
    """Back to appending once the peer holds what the log continues from."""
    if progress.state is ProgressState.SNAPSHOT and progress.match_index >= s.log.first_index - 1:
        progress.become_probe()


# -- the follower's side ------------------------------------------------------------------------


def on_chunk(s: CoreState, m: SnapshotChunk) -> None:
    """A chunk of the current term's leader; contact has been noted already."""
    incoming = s.incoming
    if m.meta.index <= s.log.committed:
        # Stale (rule 44): everything up to the commit index is here.
        if incoming is None or not incoming.installing:
            s.incoming = None
            _reply(s, m.sender, m.meta.index, 0, m.sequence, m.read_counter, installed=True)
        return
    if incoming is not None and incoming.meta != m.meta and not incoming.installing:
        if incoming.term == m.term and m.meta.index < incoming.meta.index:
            return  # a late chunk of a snapshot that the same leader has given up (rule 45)
        incoming = None
    if incoming is None:
        incoming = s.incoming = IncomingSnapshot(m.meta, m.sender, m.term)
    # What is being written is answered to whoever asked last: a leader waits for the answer to its
    # last chunk, and a new leader for one to itself.
    if (m.term, m.sequence) > (incoming.term, incoming.sequence):
        incoming.leader, incoming.term = m.sender, m.term
        incoming.sequence, incoming.read_counter = m.sequence, m.read_counter
    if incoming.storing or incoming.installing:
        return
    if m.offset != incoming.next_offset:
        _progress(s, incoming)
        return
    incoming.storing = True
    incoming.installing = m.offset + len(m.data) == m.meta.size_bytes
    s.emit(StoreSnapshotChunk(m.meta, m.offset, m.data))


def on_chunk_stored(s: CoreState, event: SnapshotChunkStored) -> None:
    incoming = s.incoming
    if incoming is None or incoming.meta != event.meta:
        return
    # Not the end after all, if the end was sent: the file has not got what comes before it.
    incoming.storing = incoming.installing = False
    incoming.next_offset = event.next_offset
    _progress(s, incoming)


def on_installed(s: CoreState, event: SnapshotInstalled) -> None:
    """Storage and state machine stand at the snapshot, or it turned out to be damaged."""
    incoming = s.incoming
    if incoming is None or incoming.meta != event.meta:
        raise InvariantError("a snapshot was installed that was not being received")
    s.incoming = None
    if not event.ok:
        incoming.next_offset = 0
        _progress(s, incoming)
        return
    s.reading_to_apply = None
    if s.log.restore(event.meta):
        s.configurations.compact(event.meta.index)
    else:
        s.configurations = ConfigurationStack(event.meta.index, event.meta.configuration)
        s.emit(ConfigurationChanged(event.meta.configuration, event.meta.index))
    _progress(s, incoming, installed=True)


def drop_overtaken(s: CoreState) -> None:
    """A snapshot of which a part has come is of no use once appends have committed what it holds.

    It must not stay: what a node is receiving it would otherwise hold for ever.
    """
    incoming = s.incoming
    if incoming is None or incoming.storing or incoming.installing:
        return
    if incoming.meta.index <= s.log.committed:
        s.incoming = None


def _progress(s: CoreState, incoming: IncomingSnapshot, *, installed: bool = False) -> None:
    """Tell the leader, unless its term is over: to another leadership the answer's sequence would
    name something else (rule 24). A new leader learns it from the answer to its own chunk."""
    if incoming.term == s.term:
        _reply(
            s, incoming.leader, incoming.meta.index, incoming.next_offset,
            incoming.sequence, incoming.read_counter, installed=installed,
        )  # fmt: skip


def _reply(
    s: CoreState,
    to: NodeId,
    index: int,
    next_offset: int,
    sequence: int,
    read_counter: int,
    *,
    installed: bool,
) -> None:
    reply = SnapshotReply(
        s.node_id, s.term, index, next_offset, installed, sequence, read_counter
    )  # fmt: skip
    s.send(to, reply, WaitFor.EVERYTHING)


# -- compaction ---------------------------------------------------------------------------------


def on_taken(s: CoreState, event: SnapshotTaken) -> None:
    """A local snapshot is durable: compact what nobody needs any more (O5)."""
    log = s.log
    if event.meta.index > log.applied:
        raise InvariantError(f"a snapshot at {event.meta.index} is ahead of applied {log.applied}")
    if log.snapshot is None or event.meta.index > log.snapshot.index:
        log.snapshot = event.meta
    keep_from = min(event.keep_from_index, event.meta.index + 1 - s.config.trailing_entries)
    if s.leadership is not None:
        for progress in s.leadership.progress.values():
            if progress.feed is not None:
                # A peer being fed needs the log from its snapshot on when it is done.
                keep_from = min(keep_from, progress.feed.meta.index + 1)
    if keep_from > log.first_index:
        log.compact(keep_from)
        s.configurations.compact(keep_from - 1)
        s.emit(Compact(keep_from))
