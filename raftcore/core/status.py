"""What a node's core tells about itself: pictures that can say why."""

from __future__ import annotations

from dataclasses import dataclass

from raftcore.core import health, lease
from raftcore.core.catchup import Staging
from raftcore.core.config import MS
from raftcore.core.membership import stage_of
from raftcore.core.progress import Progress, ProgressState
from raftcore.core.quorum import majority_size
from raftcore.core.state import CoreState, Leadership, Role
from raftcore.core.types import NodeId, Target


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer as the leader sees it, and why it is not sent more."""

    node_id: NodeId
    state: str
    match_index: int
    next_index: int
    inflight_messages: int
    inflight_bytes: int
    contact_age_ms: int
    snapshot_offset: int | None
    regressed: bool
    quarantined: bool
    write_age_ms: int
    paused_because: str | None
    catch_up: str | None  #: of a new voter: which round, and how far it has to go


@dataclass(frozen=True, slots=True)
class Status:
    """An immutable picture of a node's core."""

    node_id: NodeId
    role: str
    term: int
    vote: NodeId | None
    leader_id: NodeId | None
    last_index: int
    durable_index: int
    commit_index: int
    applied_index: int
    first_index: int
    snapshot_index: int
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    uncommitted_bytes: int
    pending_reads: int
    leader_contact_age_ms: int | None
    peers: tuple[PeerStatus, ...]
    not_leader_because: str | None
    quarantined: bool
    quarantine_final: bool
    stalled: bool
    write_age_ms: int
    lease_remaining_ms: int | None
    configuration_index: int  #: the configuration's version
    stage: str
    old_voters: tuple[NodeId, ...]
    leaving: tuple[NodeId, ...]
    target: Target | None
    change_waits_for: str | None
    commit_waits_for: tuple[NodeId, ...]  #: on a leader: whose acknowledgement is missing


def status_of(s: CoreState) -> Status:
    """A picture of ``s`` as it is now."""
    leadership = s.leadership
    contact = s.leader_contact_ns
    return Status(
        node_id=s.node_id,
        role=s.role.value,
        term=s.term,
        vote=s.vote,
        leader_id=s.leader_id,
        last_index=s.log.last_index,
        durable_index=s.log.durable,
        commit_index=s.log.committed,
        applied_index=s.log.applied,
        first_index=s.log.first_index,
        snapshot_index=s.log.snapshot.index if s.log.snapshot else 0,
        voters=s.configuration.voters,
        learners=s.configuration.learners,
        uncommitted_bytes=leadership.uncommitted_bytes if leadership else 0,
        pending_reads=s.pending_reads,
        leader_contact_age_ms=None if contact is None else (s.now_ns - contact) // MS,
        peers=tuple(_peer_statuses(s, leadership)) if leadership else (),
        not_leader_because=_why_not_leader(s),
        quarantined=s.quarantined,
        quarantine_final=s.quarantine_final,
        stalled=health.is_stalled(s),
        write_age_ms=health.write_age_ns(s) // MS,
        lease_remaining_ms=_lease_remaining_ms(s),
        configuration_index=s.configurations.current_index,
        stage=stage_of(s.configuration),
        old_voters=s.configuration.old_voters,
        leaving=s.configuration.leaving,
        target=s.configuration.target,
        change_waits_for=_what_change_waits_for(s),
        commit_waits_for=_whom_commit_waits_for(s, leadership) if leadership else (),
    )


def _lease_remaining_ms(s: CoreState) -> int | None:
    until_ns = lease.valid_until_ns(s)
    return None if until_ns is None else max(until_ns - s.now_ns, 0) // MS


def _peer_statuses(s: CoreState, leadership: Leadership) -> list[PeerStatus]:
    statuses = []
    for peer, p in leadership.progress.items():
        statuses.append(
            PeerStatus(
                node_id=peer,
                state=p.state.value,
                match_index=p.match_index,
                next_index=p.next_index,
                inflight_messages=len(p.inflight),
                inflight_bytes=p.inflight_bytes,
                contact_age_ms=(s.now_ns - p.last_contact_ns) // MS,
                snapshot_offset=p.feed.offset if p.feed else None,
                regressed=p.regressed,
                quarantined=p.health.quarantined,
                write_age_ms=p.health.write_age_ms,
                paused_because=_why_paused(s, p),
                catch_up=_catch_up(s, leadership.staging, peer, p),
            )
        )
    return statuses


def _why_paused(s: CoreState, p: Progress) -> str | None:
    if p.regressed:
        return "it denies entries that it acknowledged"
    if p.feed is not None and s.now_ns < p.feed.not_before_ns:
        wait_ms = (p.feed.not_before_ns - s.now_ns + MS - 1) // MS
        return f"it could not install the snapshot {p.feed.failures} times; again in {wait_ms} ms"
    if p.feed is not None and p.feed.due_ns is not None:
        rate = s.config.snapshot_bytes_per_s
        return f"it is being fed a snapshot, at no more than {rate} bytes per second"
    if p.feed is not None:
        return "it is being fed a snapshot"
    if p.reading is not None:
        return "entries for it are being read from storage"
    if p.inflight and p.state is ProgressState.PROBE:
        return "a probe is unanswered"
    if not p.window_open(s.config.max_inflight_messages, s.config.max_inflight_bytes):
        return "its window is full"
    return None


def _why_not_leader(s: CoreState) -> str | None:
    if s.role is Role.LEADER:
        return None
    if s.removed:
        return "it was removed from the cluster"
    if not s.is_voter:
        return "it is not a voter of the configuration in force"
    if s.quarantined:
        return f"it is in quarantine: its disk went back; {_way_out(s)}"
    if health.is_stalled(s):
        return f"its disk is stalled: a write is unfinished for {health.write_age_ns(s) // MS} ms"
    if s.leader_id is not None:
        return f"it follows {s.leader_id}"
    if s.role is Role.PRE_CANDIDATE:
        return "it asks whether it could win (pre-vote) and has no majority yet"
    if s.role is Role.CANDIDATE:
        return "it campaigns and has no majority yet"
    if s.now_ns < s.no_votes_until_ns:
        wait_ms = (s.no_votes_until_ns - s.now_ns + MS - 1) // MS
        return f"it started under a lease, and votes again in {wait_ms} ms"
    return "it waits for a leader or for its election timeout"


def _way_out(s: CoreState) -> str:
    if s.quarantine_final:
        return "nothing vouches for how it voted: remove it and let it join again"
    if s.release_index is None:
        return "no quorum without it has confirmed yet what it must hold"
    return f"it must hold the leader's log up to {s.release_index}"


def _catch_up(s: CoreState, staging: Staging | None, peer: NodeId, p: Progress) -> str | None:
    if staging is None or staging.index != s.configurations.current_index:
        return None
    rounds = staging.rounds.get(peer)
    if rounds is None:
        return None
    if rounds.caught_up:
        return "caught up"
    missing = max(rounds.goal_index - p.counted_match, 0)
    return f"round {rounds.number} of {s.config.catch_up_rounds}, {missing} entries to go"


def _what_change_waits_for(s: CoreState) -> str | None:
    index, leadership = s.configurations.current_index, s.leadership
    stage = stage_of(s.configuration)
    if s.log.committed < index:
        return f"the {stage} configuration at {index} to be committed"
    if stage == "stable":
        return None
    if leadership is None:
        return "the leader to go on"
    if s.log.committed < leadership.first_index:
        return "an entry of this leader's term to be committed"
    if leadership.transfer is not None:
        return f"leadership to be handed over to {leadership.transfer.target}"
    rounds = {p: _catch_up(s, leadership.staging, p, q) for p, q in leadership.progress.items()}
    lagging = [f"{p} ({text})" for p, text in rounds.items() if text not in (None, "caught up")]
    return f"new voters to catch up: {', '.join(lagging)}"


def _whom_commit_waits_for(s: CoreState, leadership: Leadership) -> tuple[NodeId, ...]:
    """The voters that do not hold the log's end, of each majority that has not got it."""

    def holds(node: NodeId) -> bool:
        match = leadership.progress[node].counted_match if node != s.node_id else s.log.durable
        return match >= s.log.last_index

    missing: set[NodeId] = set()
    for voters in (s.configuration.voters, s.configuration.old_voters):
        without = [voter for voter in voters if not holds(voter)]
        if len(voters) - len(without) < majority_size(voters):
            missing |= set(without)
    return tuple(sorted(missing)) if s.log.committed < s.log.last_index else ()
