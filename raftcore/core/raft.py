"""Raft: one entry point. Events go in, effects come out; roles and terms are dispatched here.

Reading order: ``types``, ``messages``, ``events``, ``effects``; then ``state`` and ``log``; then
``election``, ``replication``, ``reads``, ``snapshots``, ``transfer``; then ``health``,
``quarantine``, ``lease``; ``membership``, ``catchup``, ``change``; ``inbox``; this file last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raftcore.core import (
    change,
    election,
    fingerprint,
    health,
    inbox,
    lease,
    quarantine,
    reads,
    replication,
    snapshots,
    transfer,
)
from raftcore.core import events as ev
from raftcore.core.config import MS, CoreConfig
from raftcore.core.effects import (
    Effect,
    GaveWay,
    ProposalAccepted,
    ProposalRefused,
    RefusalReason,
)
from raftcore.core.errors import InvariantError, MisuseError, PeerViolationError
from raftcore.core.log import RaftLog
from raftcore.core.membership import ConfigurationStack
from raftcore.core.state import CoreState, Role
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
    had said was durable (D3); ``quarantine_final`` if nothing vouches for the hard state either.
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
    quarantine_final: bool = False


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
        if recovered.quarantined:
            quarantine.begin(s, final=recovered.quarantine_final)
        lease.begin_wait(s)
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
            InvariantError: the node must stop, also because something was refused only after it
                had had an effect. Every later step raises it again; so it is with any other
                exception.
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
            if not s.staged:
                raise
            # What is refused must have no effect. A refusal that comes too late is not the peer's
            # or the driver's matter any more: this state is not to be gone on from.
            self._failed = InvariantError(f"refused only after it had an effect: {error}")
            raise self._failed from error
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
        deadlines = [
            leadership.heartbeat_deadline_ns,
            election.quorum_contact_ns(s, leadership) + s.election_timeout_ns,
            *snapshots.feeds_due_ns(leadership),
        ]
        if leadership.transfer is not None:
            deadlines.append(leadership.transfer.deadline_ns)
        if s.unfinished_writes and not health.is_stalled(s):
            deadlines.append(health.stall_ns(s))
        return min(deadlines)

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
        quarantine.settle(s)
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
    def committed_configuration(self) -> Configuration:
        """The last one that is known to be committed, so that it can not go back."""
        return self._s.configurations.committed(self._s.log.committed)[1]

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
    def role(self) -> Role:
        return self._s.role

    @property
    def is_leader(self) -> bool:
        return self._s.role is Role.LEADER

    @property
    def pending_reads(self) -> int:
        """Reads that wait for confirmation or to be applied."""
        return self._s.pending_reads

    @property
    def uncommitted_bytes(self) -> int:
        """On a leader: what takes up room for proposals."""
        leadership = self._s.leadership
        return 0 if leadership is None else leadership.uncommitted_bytes

    @property
    def inflight_messages(self) -> int:
        """On a leader: the most appends that any peer has not answered."""
        leadership = self._s.leadership
        peers = () if leadership is None else leadership.progress.values()
        return max((len(peer.inflight) for peer in peers), default=0)

    @property
    def quorum_contact_ns(self) -> int | None:
        """On a leader: when a quorum was last known to follow it. None on anybody else."""
        leadership = self._s.leadership
        return None if leadership is None else election.quorum_contact_ns(self._s, leadership)

    @property
    def lease_valid_until_ns(self) -> int | None:
        """On a leader: until when it may serve lease reads, by its own clock. None: it may not."""
        return lease.valid_until_ns(self._s)

    @property
    def quarantined(self) -> bool:
        """Whether this node is in quarantine (D3)."""
        return self._s.quarantined

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

    # -- exploring ------------------------------------------------------------------------------

    def clone(self, rng: random.Random | None = None) -> Raft:
        """An independent copy of this core as it is between two steps.

        It draws its timeouts from ``rng``, by default from a copy of this core's own source.
        """
        twin: Raft = object.__new__(Raft)
        twin._s = fingerprint.clone_state(self._s, rng)
        twin._failed = self._failed
        return twin

    def fingerprint(self) -> bytes:
        """Sixteen bytes that are equal for cores that would do the same from now on, whatever
        their random source, their deadlines and how they number their writes and requests."""
        return fingerprint.fingerprint_of(self._s)


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
    if health.must_give_way(s, leadership):
        s.emit(GaveWay(health.write_age_ns(s) // MS))
        election.become_follower(s, s.term, None)
        return
    transfer.check_deadline(s, leadership)
    snapshots.on_tick(s, leadership)
    if s.now_ns >= leadership.heartbeat_deadline_ns:
        leadership.heartbeat_deadline_ns = s.now_ns + s.config.heartbeat_ms * MS
        lease.begin_round(s, leadership)
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
    reads.request(s, event.read_id, by_lease=event.lease)


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


def _on_transfer_aborted(s: CoreState, _event: ev.TransferAborted) -> None:
    transfer.abort(s)


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


_EVENTS: dict[type[ev.Event], Callable[[CoreState, Any], None]] = {
    ev.Tick: _on_tick,
    ev.MessageReceived: inbox.on_message,
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
    ev.TransferAborted: _on_transfer_aborted,
    ev.MembershipRequested: _on_membership_requested,
    ev.PeerUnreachable: _on_peer_unreachable,
    ev.QuarantineEnded: lambda s, _event: quarantine.on_ended(s),
}
