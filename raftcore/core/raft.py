"""Raft: one entry point. Events go in, effects come out; roles and terms are dispatched here.

Reading order: ``types``, ``messages``, ``events``, ``effects``; then ``state`` and ``log``; then
``election``, ``replication``, ``reads``, ``snapshots``, ``transfer``; this file last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raftcore.core import change, election, reads, replication, snapshots, transfer, validation
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS, CoreConfig
from raftcore.core.effects import (
    Effect,
    ProposalAccepted,
    ProposalRefused,
    RefusalReason,
)
from raftcore.core.errors import InvariantError, MisuseError, PeerViolationError
from raftcore.core.log import RaftLog
from raftcore.core.membership import ConfigurationStack
from raftcore.core.state import CoreState, Leadership, Role, WaitFor
from raftcore.core.status import PeerStatus, Status, status_of
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Member,
    NodeId,
    Position,
    SnapshotMeta,
)

if TYPE_CHECKING:
    import random

__all__ = ["PeerStatus", "Raft", "RecoveredState", "Status"]


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """What the driver read from disk: hard state, log positions, configurations, snapshot.

    ``terms`` are runs (first index, term) over ``first_index..last_index``; ``base_configuration``
    is in force at ``base_index`` (the snapshot's, or an empty one at 0) and ``configurations`` are
    the configuration entries after it. ``commit_hint`` is a lower bound of the commit index and
    ``applied`` what the state machine holds. A node that is ``quarantined`` lost something that it
    had said was durable (D3).
    """

    hard_state: HardState
    first_index: int
    last_index: int
    terms: tuple[tuple[int, int], ...]
    before_first: Position
    snapshot: SnapshotMeta | None
    base_index: int
    base_configuration: Configuration
    configurations: tuple[tuple[int, Configuration], ...]
    commit_hint: int
    applied: int
    quarantined: bool = False


class Raft:
    """The protocol core of one node. Pure: no clock, no I/O, no randomness but ``rng``.

    Args:
        config: timing and bounds.
        recovered: what the node held when it stopped.
        rng: source of election timeouts; equal seeds and events give equal effects.
        now_ns: monotonic time of construction.

    Raises:
        InvariantError: what was recovered contradicts itself (the state machine is ahead of the
            durable log: the log went back).
    """

    def __init__(
        self, config: CoreConfig, recovered: RecoveredState, rng: random.Random, now_ns: int
    ) -> None:
        snapshot_index = recovered.snapshot.index if recovered.snapshot else 0
        committed = max(recovered.commit_hint, snapshot_index, recovered.applied)
        if committed > recovered.last_index:
            raise InvariantError(
                f"{committed} was committed or applied, but the log ends at {recovered.last_index}"
            )
        if recovered.applied < recovered.first_index - 1:
            raise InvariantError(
                f"the log begins at {recovered.first_index}, but the state machine stands at "
                f"{recovered.applied}"
            )
        log = RaftLog(
            first_index=recovered.first_index,
            last_index=recovered.last_index,
            terms=recovered.terms,
            before_first=recovered.before_first,
            snapshot=recovered.snapshot,
            committed=committed,
            applied=recovered.applied,
            cache_bytes=config.entry_cache_bytes,
        )
        configurations = ConfigurationStack(recovered.base_index, recovered.base_configuration)
        for index, configuration in recovered.configurations:
            configurations.push(index, configuration)
        s = CoreState(config, log, configurations, recovered.hard_state, rng, now_ns)
        election.reset_election_timer(s)
        if s.voters() == [s.node_id]:
            s.election_deadline_ns = now_ns  # nobody to wait for (rule 13)
        self._s = s
        self._failed: Exception | None = None

    # -- the entry point ------------------------------------------------------------------------

    def step(self, event: ev.Event) -> list[Effect]:
        """Handle one event; the effects are to be executed in order.

        Raises:
            MisuseError: the driver broke the contract; nothing changed.
            PeerViolationError: the message was impossible; it had no effect.
            InvariantError: the node must stop. Every later step raises it again; so it is with any
                other exception.
        """
        s = self._s
        if self._failed is not None:
            raise self._failed
        if event.now_ns < s.now_ns:
            raise MisuseError(f"time went back from {s.now_ns} to {event.now_ns}")
        handler = _EVENTS.get(type(event))
        if handler is None:
            raise MisuseError(f"{type(event).__name__} is not an event of the core")
        s.now_ns = event.now_ns
        try:
            handler(s, event)
            self._settle()
            return s.flush()
        except (MisuseError, PeerViolationError) as error:
            if s.staged:  # what is refused must have no effect
                self._failed = error
            raise
        except Exception as error:
            # Whatever it was, it left the state between two valid ones: never go on from there.
            self._failed = error
            raise

    @property
    def next_deadline_ns(self) -> int:
        """When a :class:`~raftcore.core.events.Tick` is wanted at the latest."""
        s = self._s
        leadership = s.leadership
        if leadership is None:
            if s.handed_over is not None:
                return min(s.election_deadline_ns, s.handed_over.deadline_ns)
            return s.election_deadline_ns
        deadline = min(
            leadership.heartbeat_deadline_ns,
            election.quorum_contact_ns(s, leadership) + s.election_timeout_ns,
        )
        if leadership.transfer is not None:
            deadline = min(deadline, leadership.transfer.deadline_ns)
        return deadline

    def _settle(self) -> None:
        """What follows from any event: commit, reads, apply, hand-over."""
        s = self._s
        leadership = s.leadership
        if leadership is not None:
            replication.advance_commit(s, leadership)
            replication.settle_uncommitted(s, leadership)
            change.sync_peers(s, leadership)
            reads.on_commit(s, leadership)
            reads.release_confirmed(s, leadership)
            replication.announce_commit(s, leadership)
            transfer.proceed(s, leadership)
            change.proceed(s, leadership)
        change.settle(s)
        transfer.settle_handed_over(s)
        snapshots.drop_overtaken(s)
        replication.hand_out(s)

    # -- looking in -----------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        """The configuration in force here."""
        return self._s.configuration

    @property
    def configuration_index(self) -> int:
        """Index of the configuration in force: its version."""
        return self._s.configurations.current_index

    @property
    def peers(self) -> tuple[Member, ...]:
        """Whom this node talks to; :class:`~raftcore.core.effects.PeersChanged` says when that
        changes."""
        return self._s.announced_peers

    @property
    def removed(self) -> bool:
        """Whether a committed configuration has removed this node, as far as this run has seen."""
        return self._s.removed

    def configuration_at(self, index: int) -> Configuration:
        """The configuration in force at ``index``, for a snapshot there."""
        return self._s.configurations.at(index)

    @property
    def is_leader(self) -> bool:
        return self._s.role is Role.LEADER

    @property
    def quorum_contact_ns(self) -> int | None:
        """On a leader: when a quorum was last known to follow it. None on anybody else."""
        leadership = self._s.leadership
        return None if leadership is None else election.quorum_contact_ns(self._s, leadership)

    @property
    def leader_id(self) -> NodeId | None:
        return self._s.leader_id

    @property
    def term(self) -> int:
        return self._s.term

    @property
    def first_index(self) -> int:
        return self._s.log.first_index

    @property
    def durable_index(self) -> int:
        return self._s.log.durable

    @property
    def last_position(self) -> Position:
        """Where the accepted log ends."""
        return self._s.log.last_position

    @property
    def commit_index(self) -> int:
        return self._s.log.committed

    @property
    def applied_index(self) -> int:
        return self._s.log.applied

    def status(self) -> Status:
        """A picture that can say why."""
        return status_of(self._s)


# -- events -------------------------------------------------------------------------------------


def _on_tick(s: CoreState, _event: ev.Tick) -> None:
    leadership = s.leadership
    if leadership is None:
        if s.now_ns >= s.election_deadline_ns:
            election.on_election_timeout(s)
        return
    election.check_quorum(s, leadership)
    if s.leadership is None:
        return
    transfer.check_deadline(s, leadership)
    if s.now_ns >= leadership.heartbeat_deadline_ns:
        leadership.heartbeat_deadline_ns = s.now_ns + s.config.heartbeat_ms * MS
        for peer, progress in leadership.progress.items():
            replication.send_heartbeat(s, leadership, peer, progress)


def _on_propose(s: CoreState, event: ev.Propose) -> None:
    leadership = s.leadership
    reason = None
    if leadership is None:
        reason = RefusalReason.NOT_LEADER
    elif leadership.transfer is not None:
        reason = RefusalReason.TRANSFERRING
    if leadership is None or reason is not None:
        for p in event.proposals:
            s.emit(ProposalRefused(p.token, reason or RefusalReason.NOT_LEADER, s.leader_id))
        return
    accepted: list[Entry] = []
    room = s.config.max_uncommitted_bytes - leadership.uncommitted_bytes
    index = s.log.last_index
    for p in event.proposals:
        # One proposal may always be under way, however large, or it could never be accepted.
        if room <= 0:
            s.emit(ProposalRefused(p.token, RefusalReason.OVERLOADED, s.leader_id))
            continue
        index += 1
        entry = Entry(
            index, s.term, EntryType.COMMAND, p.data, p.client_id, p.sequence, p.timestamp_ms,
            s.configuration.level,
        )  # fmt: skip
        room -= entry.size_bytes
        accepted.append(entry)
        s.emit(ProposalAccepted(p.token, index, s.term))
    if accepted:
        replication.append_as_leader(s, leadership, tuple(accepted))
        replication.broadcast(s, leadership)


def _on_read_requested(s: CoreState, event: ev.ReadRequested) -> None:
    reads.request(s, event.read_id)


def _on_read_abandoned(s: CoreState, event: ev.ReadAbandoned) -> None:
    reads.abandon(s, event.read_id)


def _on_write_durable(s: CoreState, event: ev.WriteDurable) -> None:
    s.write_durable(event.mark)
    if s.hard_state_durable:
        election.on_hard_state_durable(s)


def _on_entries_read(s: CoreState, event: ev.EntriesRead) -> None:
    if event.request_id == s.reading_to_apply:
        replication.on_entries_to_apply(s, event.entries)
    elif s.leadership is not None:
        replication.on_entries_read(s, s.leadership, event.request_id, event.entries)


def _on_applied(s: CoreState, event: ev.Applied) -> None:
    s.log.applied_to(event.index)
    reads.on_applied(s)


def _on_snapshot_chunk_read(s: CoreState, event: ev.SnapshotChunkRead) -> None:
    if s.leadership is not None:
        snapshots.on_chunk_read(s, s.leadership, event)


def _on_snapshot_installed(s: CoreState, event: ev.SnapshotInstalled) -> None:
    snapshots.on_installed(s, event)
    reads.on_applied(s)


def _on_transfer_requested(s: CoreState, event: ev.TransferRequested) -> None:
    transfer.request(s, event.target)


def _on_membership_requested(s: CoreState, event: ev.MembershipRequested) -> None:
    change.request(s, event)


def _on_peer_unreachable(s: CoreState, event: ev.PeerUnreachable) -> None:
    if s.leadership is None:
        return
    progress = s.leadership.progress.get(event.peer)
    if progress is None:
        return
    if progress.feed is not None:
        progress.feed.reopen()
    else:
        progress.become_probe()


# -- messages -----------------------------------------------------------------------------------


def _on_message(s: CoreState, event: ev.MessageReceived) -> None:
    m = event.message
    validation.check(s, m)
    if isinstance(m, msg.VoteRequest):
        _on_any_vote_request(s, m)
        return
    if isinstance(m, msg.VoteReply) and m.pre_vote and m.granted:
        election.on_vote_reply(s, m)
        return
    if m.term > s.term:
        leads = isinstance(m, msg.AppendRequest | msg.Heartbeat | msg.SnapshotChunk)
        election.become_follower(s, m.term, m.sender if leads else None)
    elif m.term < s.term:
        _answer_the_past(s, m)
        return
    _MESSAGES[type(m)](s, m)


def _on_any_vote_request(s: CoreState, m: msg.VoteRequest) -> None:
    if m.pre_vote:
        election.on_pre_vote_request(s, m)
        return
    if m.term > s.term:
        if election.is_sticky(s) and not m.transfer:
            # A leader is alive: not even the term is adopted (4.2.3, rule 11).
            election.refuse_vote(s, m)
            return
        election.become_follower(s, m.term, None)
    if m.term < s.term:
        election.refuse_vote(s, m)
    else:
        election.on_vote_request(s, m)


def _answer_the_past(s: CoreState, m: msg.Message) -> None:
    """A message of an earlier term changes nothing; a stale leader learns of the new term (8)."""
    if isinstance(m, msg.AppendRequest | msg.Heartbeat | msg.SnapshotChunk):
        s.send(m.sender, msg.HeartbeatReply(s.node_id, s.term, 0), WaitFor.HARD_STATE)
    elif isinstance(m, msg.ReadIndexRequest):
        reply = msg.ReadIndexReply(s.node_id, s.term, m.read_id, -1)
        s.send(m.sender, reply, WaitFor.HARD_STATE)


def _from_leader(s: CoreState, m: msg.Message) -> None:
    if s.role is Role.LEADER:
        raise InvariantError(f"{m.sender} leads term {m.term} too")  # rule 14
    if s.leader_id not in (None, m.sender) and s.leader_contact_ns is not None:
        raise InvariantError(f"{m.sender} and {s.leader_id} both lead term {m.term}")
    election.heard_from_leader(s, m.sender)


def _heard_from_peer(s: CoreState, leadership: Leadership, m: Any) -> None:
    progress = leadership.progress.get(m.sender)
    if progress is None:
        return
    progress.last_contact_ns = s.now_ns
    progress.read_counter = max(progress.read_counter, m.read_counter)
    if isinstance(m, msg.AppendReply | msg.HeartbeatReply):
        progress.feature_level = m.health.feature_level


def _answers_a_former_member(leadership: Leadership, m: Any) -> bool:
    """The peer came after the request was sent: another incarnation, now gone, was asked."""
    progress = leadership.progress.get(m.sender)
    if progress is None or isinstance(m, msg.HeartbeatReply):
        return False
    return bool(m.sequence <= progress.after_sequence)


def _leaders(
    handle: Callable[[CoreState, Any], None],
) -> Callable[[CoreState, Any], None]:
    """For messages that only the term's leader sends."""

    def handler(s: CoreState, m: Any) -> None:
        _from_leader(s, m)
        handle(s, m)

    return handler


def _replies(
    handle: Callable[[CoreState, Leadership, Any], None],
) -> Callable[[CoreState, Any], None]:
    """For answers to a leader; they mean nothing to anybody else."""

    def handler(s: CoreState, m: Any) -> None:
        leadership = s.leadership
        if leadership is not None and not _answers_a_former_member(leadership, m):
            _heard_from_peer(s, leadership, m)
            handle(s, leadership, m)

    return handler


def _on_snapshot_reply(s: CoreState, leadership: Leadership, m: msg.SnapshotReply) -> None:
    progress = leadership.progress.get(m.sender)
    if progress is not None:
        snapshots.on_reply(s, progress, m)
        # The next chunk, or the entries after the snapshot, without waiting for a heartbeat.
        replication.send_append(s, leadership, m.sender, progress)


def _on_timeout_now(s: CoreState, _m: msg.TimeoutNow) -> None:
    transfer.on_timeout_now(s)


_MESSAGES: dict[type[msg.Message], Callable[[CoreState, Any], None]] = {
    msg.VoteReply: election.on_vote_reply,
    msg.AppendRequest: _leaders(replication.on_append_request),
    msg.AppendReply: _replies(replication.on_append_reply),
    msg.Heartbeat: _leaders(replication.on_heartbeat),
    msg.HeartbeatReply: _replies(replication.on_heartbeat_reply),
    msg.SnapshotChunk: _leaders(snapshots.on_chunk),
    msg.SnapshotReply: _replies(_on_snapshot_reply),
    msg.TimeoutNow: _leaders(_on_timeout_now),
    msg.ReadIndexRequest: reads.on_read_index_request,
    msg.ReadIndexReply: reads.on_read_index_reply,
}

_EVENTS: dict[type[ev.Event], Callable[[CoreState, Any], None]] = {
    ev.Tick: _on_tick,
    ev.MessageReceived: _on_message,
    ev.Propose: _on_propose,
    ev.ReadRequested: _on_read_requested,
    ev.ReadAbandoned: _on_read_abandoned,
    ev.WriteDurable: _on_write_durable,
    ev.EntriesRead: _on_entries_read,
    ev.Applied: _on_applied,
    ev.SnapshotTaken: snapshots.on_taken,
    ev.SnapshotChunkStored: snapshots.on_chunk_stored,
    ev.SnapshotInstalled: _on_snapshot_installed,
    ev.SnapshotChunkRead: _on_snapshot_chunk_read,
    ev.TransferRequested: _on_transfer_requested,
    ev.MembershipRequested: _on_membership_requested,
    ev.PeerUnreachable: _on_peer_unreachable,
}
