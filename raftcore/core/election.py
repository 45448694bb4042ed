"""Elections: timers, pre-vote, votes, the sticky leader, check-quorum (thesis 3.4, 4.2.3, 9.6).

Pre-vote, check-quorum and sticky leader are always on, together: each of them alone has known ways
to leave a connected quorum without a leader (rules 8 to 11).
"""

from __future__ import annotations

from raftcore.core import health, lease, replication
from raftcore.core.config import MS
from raftcore.core.effects import ReadRefused, RefusalReason, TransferFinished
from raftcore.core.messages import ReadIndexReply, VoteReply, VoteRequest
from raftcore.core.progress import Progress
from raftcore.core.quorum import VoteResult, quorum_value, vote_result
from raftcore.core.state import Candidacy, CoreState, HandedOver, Leadership, Role, WaitFor
from raftcore.core.types import Entry, EntryType, NodeId, Position


def reset_election_timer(s: CoreState) -> None:
    """Draw a new deadline, uniform between the timeout and twice it (3.4)."""
    timeout_ns = s.election_timeout_ns
    s.election_deadline_ns = s.now_ns + timeout_ns + s.rng.randrange(timeout_ns)


def heard_from_leader(s: CoreState, leader: NodeId) -> None:
    """A valid message of the current term's leader came: the only contact that counts (rule 12)."""
    if s.role is not Role.FOLLOWER:
        become_follower(s, s.term, leader)
    elif s.leader_id != leader:
        _refuse_remote_reads(s)
    s.leader_id = leader
    s.leader_contact_ns = s.now_ns
    reset_election_timer(s)


def become_follower(s: CoreState, term: int, leader: NodeId | None) -> None:
    """Follow in ``term``. The vote is cleared only if the term grows (rule 3)."""
    if term > s.term:
        s.set_hard_state(term, None)
    if s.leadership is not None:
        _end_leadership(s, s.leadership)
    if s.leader_id != leader:
        _refuse_remote_reads(s)
    if s.role is not Role.FOLLOWER:
        # A node that led or campaigned starts over with a full timeout.
        reset_election_timer(s)
    s.role = Role.FOLLOWER
    s.candidacy = None
    s.leader_id = leader


def _end_leadership(s: CoreState, leadership: Leadership) -> None:
    """Everything that belonged to the leadership ends with it (rule 50)."""
    for read in [*leadership.reads_before_commit, *leadership.reads]:
        if read.requester is None:
            s.emit(ReadRefused(read.read_id, RefusalReason.NOT_LEADER, None))
        else:
            reply = ReadIndexReply(s.node_id, s.term, read.read_id, -1)
            s.send(read.requester, reply, WaitFor.HARD_STATE)
    transfer = leadership.transfer
    if transfer is not None and not transfer.requested:
        pass  # nobody waits for it: the successor carries on with the change
    elif transfer is not None and transfer.timeout_now_sent:
        # Only the leader of a later term shows what came of it; see transfer.settle_handed_over.
        s.handed_over = HandedOver(transfer.target, s.now_ns + 2 * s.election_timeout_ns)
    elif transfer is not None:
        detail = "leadership was lost before the hand-over"
        s.emit(TransferFinished(False, transfer.target, detail))
    s.leadership = None


def _refuse_remote_reads(s: CoreState) -> None:
    """Reads that were asked of a former leader have no one to answer them any more."""
    for read_id in sorted(s.remote_reads):
        s.emit(ReadRefused(read_id, RefusalReason.NOT_LEADER, None))
    s.remote_reads.clear()


# -- campaigning --------------------------------------------------------------------------------


def may_campaign(s: CoreState) -> bool:
    """A voter of the configuration in force; and one that an uncommitted configuration removes,
    as perhaps nobody else holds that: it does not count itself then (rule 43).

    It must remember what it promised (D3), and have a disk that could bear a term (D4).
    """
    if s.quarantined or health.is_stalled(s) or (s.incoming is not None and s.incoming.installing):
        return False
    _, committed = s.configurations.committed(s.log.committed)
    return s.is_voter or s.is_voter_of(committed)


def on_election_timeout(s: CoreState) -> None:
    reset_election_timer(s)
    if lease.promised(s):
        return  # the lease came into force after this deadline was drawn
    # Forget the leader, or this node would refuse others' pre-votes for its sake (rule 8).
    s.leader_id = None
    _refuse_remote_reads(s)
    if not may_campaign(s):
        if s.role is Role.PRE_CANDIDATE:
            become_follower(s, s.term, None)  # nor go on with what it had begun
        return
    s.role = Role.PRE_CANDIDATE
    s.candidacy = Candidacy({s.node_id: True})
    if vote_result(s.configuration, s.candidacy.votes) is VoteResult.WON:
        campaign(s, transfer=False)
        return
    _ask_for_votes(s, pre_vote=True, transfer=False)


def campaign(s: CoreState, *, transfer: bool) -> None:
    """Stand for election in a new term. The own vote counts once it is durable (rules 1, 17)."""
    become_follower(s, s.term, None)
    s.set_hard_state(s.term + 1, None)
    s.set_hard_state(s.term, s.node_id)
    s.role = Role.CANDIDATE
    s.candidacy = Candidacy()
    reset_election_timer(s)
    _ask_for_votes(s, pre_vote=False, transfer=transfer)


def _ask_for_votes(s: CoreState, *, pre_vote: bool, transfer: bool) -> None:
    request = VoteRequest(
        sender=s.node_id,
        term=s.term + 1 if pre_vote else s.term,
        last_index=s.log.last_index,
        last_term=s.log.last_term,
        pre_vote=pre_vote,
        transfer=transfer,
    )
    for peer in s.voters():
        if peer != s.node_id:
            s.send(peer, request, WaitFor.HARD_STATE)


def on_hard_state_durable(s: CoreState) -> None:
    """A candidate's vote for itself counts from now on."""
    if s.role is Role.CANDIDATE and s.vote == s.node_id:
        assert s.candidacy is not None
        if s.node_id not in s.candidacy.votes:
            s.candidacy.votes[s.node_id] = True
            # The requests leave only now: a slow disk must not eat the round's time (rule 12).
            reset_election_timer(s)
            _count_votes(s)


def on_vote_reply(s: CoreState, m: VoteReply) -> None:
    """Terms have been compared already: a real reply is of our term."""
    wanted = Role.PRE_CANDIDATE if m.pre_vote else Role.CANDIDATE
    if s.role is not wanted or s.candidacy is None:
        return
    if m.granted and m.term != (s.term + 1 if m.pre_vote else s.term):
        return
    # A grant is of exactly this term. A refusal carries the term of whoever refuses, so it may
    # answer an earlier campaign: it gives way to a grant, whichever of them comes first (rule 6).
    s.candidacy.votes[m.sender] = m.granted or s.candidacy.votes.get(m.sender, False)
    _count_votes(s)


def _count_votes(s: CoreState) -> None:
    assert s.candidacy is not None
    result = vote_result(s.configuration, s.candidacy.votes)
    if result is VoteResult.LOST:
        become_follower(s, s.term, None)
    elif result is VoteResult.WON:
        if s.role is Role.PRE_CANDIDATE and not may_campaign(s):
            become_follower(s, s.term, None)  # it might when it asked
        elif s.role is Role.PRE_CANDIDATE:
            campaign(s, transfer=False)
        elif s.hard_state_durable:
            become_leader(s)


def become_leader(s: CoreState) -> None:
    """Lead this term, beginning with a no-op: nothing earlier commits or is read before (6.4)."""
    assert s.hard_state_durable, "a leader speaks of its term only once it is durable"
    s.role = Role.LEADER
    s.candidacy = None
    s.leader_id = s.node_id
    s.leader_contact_ns = None
    next_index = s.log.last_index + 1
    leadership = Leadership(
        progress={m.node_id: Progress(next_index, s.now_ns) for m in s.peers()},
        heartbeat_deadline_ns=s.now_ns + s.config.heartbeat_ms * MS,
        first_index=next_index,
    )
    s.leadership = leadership
    noop = Entry(
        next_index, s.term, EntryType.NOOP, feature_level=s.configuration.level
    )  # fmt: skip
    replication.append_as_leader(s, leadership, (noop,))
    replication.broadcast(s, leadership)


# -- answering ----------------------------------------------------------------------------------


def is_sticky(s: CoreState) -> bool:
    """Whether a leader is alive as far as this node knows, within the minimum timeout (4.2.3).

    A leader counts itself: check-quorum takes its role away when it has lost its quorum.
    """
    if s.role is Role.LEADER or lease.binds(s):
        return True
    contact = s.leader_contact_ns
    return (
        s.leader_id is not None
        and contact is not None
        and s.now_ns - contact < s.election_timeout_ns
    )


def up_to_date(s: CoreState, m: VoteRequest) -> bool:
    """The candidate's log is at least as up to date as ours: term first, then index (3.6.1)."""
    return Position(m.last_term, m.last_index) >= s.log.last_position


def refuse_vote(s: CoreState, m: VoteRequest) -> None:
    """A refusal carries our own term, so that a candidate behind learns of it (rules 7, 9)."""
    reply = VoteReply(s.node_id, s.term, granted=False, pre_vote=m.pre_vote)
    s.send(m.sender, reply, WaitFor.HARD_STATE)


def on_pre_vote_request(s: CoreState, m: VoteRequest) -> None:
    """Would we vote for it? Changes nothing here, whatever the answer (rule 7)."""
    if m.term > s.term and up_to_date(s, m) and not is_sticky(s) and not s.quarantined:
        reply = VoteReply(s.node_id, m.term, granted=True, pre_vote=True)
        s.send(m.sender, reply, WaitFor.HARD_STATE)
    else:
        refuse_vote(s, m)


def on_vote_request(s: CoreState, m: VoteRequest) -> None:
    """A request of our own term (a higher one has been adopted or refused already)."""
    free = s.vote == m.sender or (s.vote is None and s.leader_id is None)
    # The term may have come from elsewhere: a promise under a lease does not end with its term.
    bound = s.quarantined or (lease.binds(s) and not m.transfer)
    if s.role is Role.LEADER or bound or not free or not up_to_date(s, m):
        refuse_vote(s, m)
        return
    if s.role is Role.PRE_CANDIDATE:
        become_follower(s, s.term, None)  # it has a candidate to wait for now
    if s.vote is None:
        s.set_hard_state(s.term, m.sender)
    reset_election_timer(s)
    s.send(m.sender, VoteReply(s.node_id, s.term, granted=True), WaitFor.HARD_STATE)


# -- check-quorum -------------------------------------------------------------------------------


def quorum_contact_ns(s: CoreState, leadership: Leadership) -> int:
    """When a quorum, this node included, was last known to follow."""

    def contact(node: NodeId) -> int:
        return s.now_ns if node == s.node_id else leadership.progress[node].last_contact_ns

    return quorum_value(s.configuration, contact)


def check_quorum(s: CoreState, leadership: Leadership) -> None:
    """A leader out of touch with its quorum for an election timeout stops leading (rule 10)."""
    if s.now_ns - quorum_contact_ns(s, leadership) >= s.election_timeout_ns:
        become_follower(s, s.term, None)
