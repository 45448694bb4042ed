"""The rules of the dissertation's summaries, one test each, in their order.

The page ``docs/paper-rules.md`` lists them with these tests, and where we do something else.
Sections and figures are of Ongaro's dissertation.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.types import Entry, EntryType, Position

ROOT = Path(__file__).parents[3]


def entries(first: int, *terms: int) -> tuple[Entry, ...]:
    return tuple(
        Entry(index, term, EntryType.COMMAND, b"x") for index, term in enumerate(terms, start=first)
    )


def append(
    term: int, prev: tuple[int, int], *terms: int, commit: int = 0, sender: str = "a"
) -> msg.AppendRequest:
    return msg.AppendRequest(
        sender, term, prev[0], prev[1], commit, 1, 0, entries(prev[0] + 1, *terms)
    )


def answer(node: ManualNode) -> msg.Message:
    """What the node said last."""
    return node.outbox[-1][1]


def asked_for_vote(term: int, last: tuple[int, int] = (0, 0)) -> msg.VoteRequest:
    return msg.VoteRequest("c", term, last[0], last[1])


def follower(*log: int, term: int = 0) -> ManualNode:
    """Node b of a, b and c, with that log."""
    return ManualCluster(logs={"b": log}, terms={"b": max([term, *log])})["b"]


def terms_of(node: ManualNode) -> list[int]:
    return [entry.term for entry in node.image.entries]


def elected(**settings: int) -> tuple[ManualCluster, ManualNode]:
    cluster = ManualCluster(**settings)
    return cluster, cluster.elect("a")


# -- Figure 3.1: state --------------------------------------------------------------------------


def test_term_vote_and_log_are_durable_before_an_answer() -> None:
    """Term, vote and log are on disk before a node answers."""
    for message in (asked_for_vote(3), append(3, (0, 0), 3)):
        node = follower()
        node.hold_disk = True
        node.receive(message)
        assert node.outbox == []
        node.flush()
        assert node.outbox
        assert node.image.hard_state.term == 3


def test_a_leader_begins_by_knowing_nothing_of_its_peers() -> None:
    """The next index of each peer begins behind the leader's log, what matches at zero."""
    cluster = ManualCluster(logs={"a": (1, 1)}, terms={"b": 1, "c": 1})
    cluster["a"].time_out()
    cluster.deliver(lambda _to, m: isinstance(m, msg.VoteRequest | msg.VoteReply))
    peers = cluster["a"].raft.status().peers
    assert [(p.next_index, p.match_index) for p in peers] == [(3, 0), (3, 0)]


# -- Figure 3.1: AppendEntries ------------------------------------------------------------------


def test_append_1_a_leader_of_an_earlier_term_is_refused() -> None:
    """A request of an earlier term is refused, with the later term."""
    node = follower(1, term=5)
    node.receive(append(4, (1, 1), 4))
    assert terms_of(node) == [1]
    assert (type(answer(node)), answer(node).term) == (msg.HeartbeatReply, 5)


@pytest.mark.parametrize(("prev", "accepted"), [((1, 1), True), ((2, 2), False), ((3, 1), False)])
def test_append_2_the_log_must_hold_what_comes_before(
    prev: tuple[int, int], accepted: bool
) -> None:
    """Entries are accepted only behind an entry that both have."""
    node = follower(1, 1)
    node.receive(append(2, prev, 2))
    reply = answer(node)
    assert isinstance(reply, msg.AppendReply)
    assert reply.success is accepted


def test_append_3_what_conflicts_goes_with_all_that_follows() -> None:
    """An entry of another term at the same index goes, and everything after it."""
    node = follower(1, 1, 1, 1)
    node.receive(append(2, (1, 1), 2))
    assert terms_of(node) == [1, 2]


def test_append_4_what_is_new_is_appended_and_what_is_there_stays() -> None:
    """Only what the log does not have is appended; a late request takes nothing away."""
    node = follower(1, 1)
    node.receive(append(1, (1, 1), 1, 1))
    assert terms_of(node) == [1, 1, 1]
    node.receive(append(1, (0, 0), 1))
    assert terms_of(node) == [1, 1, 1]


@pytest.mark.parametrize(("commit", "expected"), [(1, 1), (9, 2)])
def test_append_5_commit_follows_the_leader_as_far_as_the_request_reaches(
    commit: int, expected: int
) -> None:
    """Commit becomes the leader's, but no more than the last entry of this request."""
    node = follower(1, 1, 1)
    node.receive(append(1, (1, 1), 1, commit=commit))
    assert node.raft.commit_index == expected


# -- Figure 3.1: RequestVote --------------------------------------------------------------------


def test_vote_1_a_candidate_of_an_earlier_term_is_refused() -> None:
    """A request of an earlier term is refused."""
    node = follower(term=5)
    node.receive(asked_for_vote(4))
    assert answer(node) == msg.VoteReply("b", 5, granted=False)


@pytest.mark.parametrize(
    ("last", "granted"),
    [((3, 2), True), ((2, 2), True), ((1, 3), True), ((1, 2), False), ((9, 1), False)],
)
def test_vote_2_is_for_a_log_at_least_as_up_to_date(last: tuple[int, int], granted: bool) -> None:
    """The last entries decide: the later term, or in one term the longer log."""
    node = follower(1, 2)
    node.receive(asked_for_vote(4, last))
    assert answer(node) == msg.VoteReply("b", 4, granted=granted)


def test_vote_2_is_given_once_in_a_term() -> None:
    """Who has voted votes for nobody else in that term, and again for the same."""
    node = follower()
    node.receive(asked_for_vote(1))
    node.receive(msg.VoteRequest("a", 1, 0, 0))
    assert answer(node) == msg.VoteReply("b", 1, granted=False)
    node.receive(asked_for_vote(1))
    assert answer(node) == msg.VoteReply("b", 1, granted=True)


# -- Figure 3.1: rules for all ------------------------------------------------------------------


def test_all_1_what_is_committed_is_applied_in_order() -> None:
    """Whenever more is committed than applied, the next entries are applied."""
    node = follower(1, 1, 1)
    node.receive(append(1, (3, 1), commit=2))
    assert node.machine.index == 2
    node.receive(append(1, (3, 1), 1, commit=4))
    assert node.machine.index == 4


@pytest.mark.parametrize("role", ["leader", "candidate"])
def test_all_2_a_later_term_makes_a_follower(role: str) -> None:
    """Whoever hears of a later term adopts it and follows."""
    cluster = ManualCluster()
    node = cluster["a"]
    if role == "leader":
        cluster.elect("a")
    else:
        node.time_out()
        node.receive(msg.VoteReply("b", 1, True, pre_vote=True))
    assert node.raft.status().role == role
    node.receive(msg.VoteReply("b", 7, granted=False))
    assert (node.raft.status().role, node.raft.term) == ("follower", 7)


# -- Figure 3.1: followers ----------------------------------------------------------------------


def test_followers_1_answer_candidates_and_leaders() -> None:
    """A follower answers what it is asked."""
    node = follower()
    for message in (asked_for_vote(1), append(1, (0, 0)), msg.Heartbeat("a", 1, 0, 0)):
        node.outbox.clear()
        node.receive(message)
        assert len(node.outbox) == 1


def test_followers_2_campaign_when_they_hear_no_leader() -> None:
    """Who hears no leader for an election timeout, and gives no vote, campaigns."""
    node = follower()
    deadline = node.raft.next_deadline_ns
    node.tick(deadline - 1)
    assert node.raft.status().role == "follower"
    for message in (append(1, (0, 0)), asked_for_vote(2)):
        node.receive(message)
        assert node.raft.next_deadline_ns > deadline
        node.tick(deadline)
        assert node.raft.status().role == "follower"
        deadline = node.raft.next_deadline_ns
        node.now_ns = deadline - 1
    node.time_out()
    assert node.raft.status().role == "pre_candidate"


# -- Figure 3.1: candidates ---------------------------------------------------------------------


def candidate(name: str = "a") -> ManualNode:
    node = ManualCluster()[name]
    node.time_out()
    node.receive(msg.VoteReply("b", 1, True, pre_vote=True))
    return node


def test_candidates_1_begin_a_term_vote_for_themselves_and_ask_all() -> None:
    """A campaign raises the term, votes for itself, and asks everybody."""
    node = candidate()
    assert (node.image.hard_state.term, node.image.hard_state.vote) == (1, "a")
    asked = [to for to, m in node.outbox if isinstance(m, msg.VoteRequest) and not m.pre_vote]
    assert asked == ["b", "c"]


def test_candidates_1_draw_a_new_timeout() -> None:
    """A campaign starts the timer anew, with another random time."""
    node = candidate()
    waits = set()
    for _ in range(5):
        wait = node.raft.next_deadline_ns - node.now_ns
        assert 300 * MS <= wait <= 600 * MS
        waits.add(wait)
        node.time_out()
    assert len(waits) > 1


def test_candidates_2_lead_with_a_majority() -> None:
    """Votes of a majority make a leader."""
    node = candidate()
    assert not node.raft.is_leader
    node.receive(msg.VoteReply("c", 1, granted=True))
    assert node.raft.is_leader


def test_candidates_3_follow_a_leader_of_their_term() -> None:
    """A candidate that hears the leader of its term follows it."""
    node = candidate()
    node.receive(append(1, (0, 0), sender="b"))
    assert (node.raft.status().role, node.raft.leader_id) == ("follower", "b")


def test_candidates_4_begin_again_when_time_is_up() -> None:
    """A round without an outcome is followed by another."""
    node = candidate()
    node.outbox.clear()
    node.time_out()
    node.receive(msg.VoteReply("b", 2, True, pre_vote=True))
    assert (node.raft.status().role, node.raft.term) == ("candidate", 2)


# -- Figure 3.1: leaders ------------------------------------------------------------------------


def test_leaders_1_are_heard_at_once_and_again_before_anybody_times_out() -> None:
    """A new leader makes itself known at once, and keeps doing so while idle."""
    cluster = ManualCluster()
    leader = cluster["a"]
    leader.time_out()
    cluster.deliver(lambda _to, m: isinstance(m, msg.VoteRequest | msg.VoteReply))
    assert {to for to, m in cluster.wire if isinstance(m, msg.AppendRequest)} == {"b", "c"}
    cluster.deliver()
    for _ in range(5):
        leader.time_out()
        beats = {to for to, m in leader.outbox if isinstance(m, msg.Heartbeat)}
        assert beats == {"b", "c"}
        cluster.set_time(leader.now_ns)
        cluster.deliver()
    assert leader.raft.is_leader


def test_leaders_2_append_commands_and_answer_when_they_are_applied() -> None:
    """A command is appended at the leader, and has taken effect once it is applied there."""
    cluster, leader = elected()
    effects = leader.propose(b"x")
    assert any(isinstance(e, ef.ProposalAccepted) for e in effects)
    assert leader.machine.index == 1
    cluster.deliver()
    assert leader.machine.index == 2


def test_leaders_3_send_what_a_peer_is_missing() -> None:
    """Whoever lacks entries is sent them, from its next index on."""
    _, leader = elected()
    leader.propose(b"x", b"y")
    sent = [m for to, m in leader.outbox if to == "b" and isinstance(m, msg.AppendRequest)]
    assert [entry.data for m in sent for entry in m.entries] == [b"x", b"y"]
    assert leader.raft.status().peers[0].next_index == 4


def test_leaders_3_note_what_a_peer_has_taken() -> None:
    """An acknowledgement moves next and match index of its peer."""
    cluster, leader = elected()
    leader.propose(b"x")
    cluster.deliver()
    assert [(p.match_index, p.next_index) for p in leader.raft.status().peers] == [(2, 3)] * 2


def test_leaders_3_go_back_after_a_rejection_and_try_again() -> None:
    """A rejection for the log's sake makes the leader try further back."""
    cluster = ManualCluster(logs={"a": (1, 1, 2), "b": (1,), "c": (1, 1, 2)})
    cluster.elect("a")
    assert terms_of(cluster["b"]) == [1, 1, 2, 3]


def test_leaders_4_commit_what_a_majority_holds_if_it_is_of_their_term() -> None:
    """An index is committed when a majority holds it and its entry is of the leader's own term."""
    cluster = ManualCluster(logs={"a": (1, 1), "b": (1, 1), "c": ()}, terms={"c": 1})
    leader = cluster["a"]
    leader.time_out()
    cluster.deliver(lambda _to, m: isinstance(m, msg.VoteRequest | msg.VoteReply))
    assert leader.raft.commit_index == 0, "all of it is on a majority, but of an earlier term"
    cluster.deliver()
    assert leader.raft.commit_index == 3


# -- Figure 5.3: InstallSnapshot ----------------------------------------------------------------


def fed(*, b_log: tuple[int, ...] = ()) -> tuple[ManualNode, ManualNode]:
    """A leader of term 3 with a snapshot of 900 bytes at 5@3, and b, which has not heard of it."""
    cluster = ManualCluster(logs={"a": (2,), "b": b_log}, trailing_entries=0)
    cluster.isolate("b")
    leader = cluster.elect("a")
    leader.propose(b"x", b"y", b"z")
    cluster.deliver()
    leader.take_snapshot()
    assert leader.raft.last_position == Position(3, 5)
    return leader, cluster["b"]


def chunks(leader: ManualNode) -> list[msg.SnapshotChunk]:
    """All chunks of the leader's snapshot."""
    stored = leader.image.snapshot
    assert stored is not None
    return [
        msg.SnapshotChunk("a", 3, stored.meta, at, stored.data[at : at + 400], at, 0)
        for at in (0, 400, 800)
    ]


def test_snapshot_1_of_an_earlier_term_is_refused() -> None:
    """A chunk of an earlier term is refused, with the later term."""
    leader, node = fed()
    node.receive(asked_for_vote(7))
    node.receive(chunks(leader)[0])
    assert node.received == b""
    assert (type(answer(node)), answer(node).term) == (msg.HeartbeatReply, 7)


def test_snapshot_2_3_4_chunks_are_put_together_by_offset() -> None:
    """The first chunk begins a file, each is written at its place, and more is waited for."""
    leader, node = fed()
    wanted = []
    for chunk in chunks(leader)[:2]:
        node.receive(chunk)
        reply = answer(node)
        assert isinstance(reply, msg.SnapshotReply)
        wanted.append(reply.next_offset)
    assert wanted == [400, 800]
    assert node.image.snapshot is None


def test_snapshot_5_the_whole_file_takes_the_place_of_older_ones() -> None:
    """The last chunk makes it the newest snapshot; an older one that comes later is ignored."""
    leader, node = fed()
    for chunk in chunks(leader):
        node.receive(chunk)
    assert node.image.snapshot is not None
    assert node.image.snapshot.meta.index == 5
    effects = node.receive(chunks(leader)[0])
    assert not any(isinstance(e, ef.StoreSnapshotChunk) for e in effects)


def test_snapshot_6_a_log_that_holds_its_last_entry_keeps_what_follows() -> None:
    """Where the log agrees with the snapshot's last entry, what comes after it stays."""
    leader, node = fed(b_log=(2, 3, 3, 3, 3, 3))
    for chunk in chunks(leader):
        node.receive(chunk)
    assert node.raft.last_position == Position(3, 6)
    assert node.machine.index == 5


def test_snapshot_7_8_any_other_log_goes_and_machine_and_members_are_the_snapshot_s() -> None:
    """Otherwise the log goes; state machine and configuration are those of the snapshot."""
    leader, node = fed(b_log=(1, 1, 1, 1, 1, 1, 1))
    for chunk in chunks(leader):
        node.receive(chunk)
    status = node.raft.status()
    assert (status.first_index, status.last_index, node.machine.index) == (6, 5, 5)
    assert node.machine.chain == leader.machine.chain
    assert node.raft.configuration == leader.raft.configuration


# -- chapter 4: membership ----------------------------------------------------------------------


def test_members_1_change_on_the_leader_only() -> None:
    """Only a leader takes a request for other members."""
    cluster, _ = elected()
    (finished,) = [
        e for e in cluster["b"].change(("a", "b")) if isinstance(e, ef.MembershipFinished)
    ]
    assert finished.outcome is ef.MembershipOutcome.NOT_LEADER


def test_members_2_a_configuration_is_in_force_when_it_is_appended() -> None:
    """Each node uses the newest configuration in its log, committed or not (4.1)."""
    cluster, leader = elected()
    cluster.isolate("a")
    leader.change(("a", "b"))
    assert leader.raft.configuration.voters == ("a", "b")
    assert leader.raft.commit_index == 1


def test_members_3_new_voters_catch_up_first() -> None:
    """A server does not count before it has caught up (4.2.1)."""
    cluster, leader = elected()
    leader.change(("a", "b", "c", "d"))
    cluster.deliver()
    assert leader.raft.configuration.voters == ("a", "b", "c"), "d does not even exist yet"
    cluster.join("d")
    cluster.advance(1000)
    assert leader.raft.configuration.voters == ("a", "b", "c", "d")


def test_members_4_one_change_at_a_time() -> None:
    """A change begins when the one before it is committed."""
    cluster, leader = elected()
    cluster.isolate("a")
    leader.change(("a", "b"))
    (finished,) = [e for e in leader.change(("a", "c")) if isinstance(e, ef.MembershipFinished)]
    assert finished.outcome is ef.MembershipOutcome.IN_PROGRESS


def test_members_5_joint_mode_needs_both_majorities() -> None:
    """Between old and new voters, majorities of both decide (4.3)."""
    cluster, leader = elected()
    for name in ("d", "e"):
        cluster.join(name)
    leader.change(("a", "d", "e"))
    cluster.run_until(lambda: bool(leader.raft.configuration.old_voters))
    for name in ("b", "c"):
        cluster.isolate(name)
    cluster.deliver()
    assert leader.raft.configuration.old_voters == ("a", "b", "c"), "a d e alone decide nothing"
    cluster.heal()
    cluster.advance(500)
    assert cluster["d"].raft.configuration.voters == ("a", "d", "e")


def test_members_6_a_leader_that_is_removed_leads_no_longer_than_needed() -> None:
    """A leader that is not a member any more steps down (4.2.2)."""
    cluster, leader = elected()
    leader.change(("b", "c"))
    cluster.advance(1000)
    assert not leader.raft.is_leader
    assert cluster.leaders()
    assert cluster[cluster.leaders()[0]].raft.configuration.voters == ("b", "c")


def test_members_7_a_voter_that_hears_its_leader_ignores_campaigns() -> None:
    """Within the minimum election timeout of a leader's message votes are not given (4.2.3)."""
    cluster, _ = elected()
    cluster["b"].receive(asked_for_vote(9))
    assert answer(cluster["b"]) == msg.VoteReply("b", 1, granted=False)
    assert cluster["b"].raft.term == 1


def test_members_8_whoever_asks_is_answered() -> None:
    """Requests are answered though their sender is in no configuration that we know (4.1)."""
    node = follower()
    node.receive(msg.VoteRequest("stranger", 1, 0, 0))
    assert answer(node) == msg.VoteReply("b", 1, granted=True)
    node = follower()
    node.receive(append(1, (0, 0), 1, sender="stranger"))
    assert node.raft.leader_id == "stranger"


# -- section 3.10: transfer ---------------------------------------------------------------------


def transfer_from(leader: ManualNode, target: str) -> None:
    leader.step(ev.TransferRequested(leader.now_ns, target))


def test_transfer_1_no_new_commands_meanwhile() -> None:
    """The leader that hands over takes no new commands."""
    _, leader = elected()
    transfer_from(leader, "b")
    (refused,) = [e for e in leader.propose(b"x") if isinstance(e, ef.ProposalRefused)]
    assert refused.reason is ef.RefusalReason.TRANSFERRING


def test_transfer_2_the_target_gets_the_whole_log_first() -> None:
    """The target is told to campaign when its log is that of the leader."""
    cluster, leader = elected()
    leader.propose(b"x")
    transfer_from(leader, "b")
    assert not any(isinstance(m, msg.TimeoutNow) for _, m in leader.outbox)
    cluster.deliver(lambda to, m: isinstance(m, msg.AppendRequest | msg.AppendReply))
    assert any(isinstance(m, msg.TimeoutNow) for _, m in cluster.wire)


def test_transfer_3_the_target_campaigns_at_once() -> None:
    """The target begins the next term without waiting, and whoever hears its leader votes too."""
    cluster, leader = elected()
    transfer_from(leader, "b")
    cluster.deliver()
    assert cluster.leaders() == ["b"]
    assert cluster.now_ns < leader.raft.next_deadline_ns


def test_transfer_4_is_given_up_after_an_election_timeout() -> None:
    """If it does not come about in an election timeout, commands are taken again."""
    cluster, leader = elected()
    transfer_from(leader, "b")
    cluster.drop()
    cluster.advance(300)
    assert leader.raft.is_leader
    assert any(isinstance(e, ef.ProposalAccepted) for e in leader.propose(b"x"))


# -- sections 6.2, 6.4, 9.6 ---------------------------------------------------------------------


def test_check_quorum_a_leader_without_answers_steps_down() -> None:
    """A leader that no majority answers for an election timeout lets go (6.2)."""
    cluster, leader = elected()
    cluster.isolate("a")
    cluster.advance(301)
    assert not leader.raft.is_leader


def test_read_1_waits_for_a_commit_of_the_own_term() -> None:
    """A leader must have committed something of its term before it answers reads (6.4)."""
    cluster = ManualCluster()
    leader = cluster["a"]
    leader.time_out()
    cluster.deliver(lambda _to, m: isinstance(m, msg.VoteRequest | msg.VoteReply))
    leader.read(1)
    assert not released(leader)
    cluster.deliver()
    assert released(leader) == [1]


def released(node: ManualNode) -> list[int]:
    return [e.index for e in node.effects if isinstance(e, ef.ReadReleased)]


def test_read_2_3_takes_the_commit_index_and_then_asks_a_majority() -> None:
    """The position is the commit index of the moment; a round of heartbeats confirms the leader."""
    cluster, leader = elected()
    leader.read(1)
    assert not released(leader)
    leader.propose(b"x")
    cluster.deliver()
    assert released(leader) == [1]


def test_read_4_5_waits_until_that_is_applied() -> None:
    """It is served when the state machine has come that far."""
    cluster, leader = elected()
    leader.hold_apply = True
    leader.propose(b"x")
    cluster.deliver()
    leader.read(1)
    cluster.deliver()
    assert not released(leader)
    leader.apply_now()
    assert released(leader) == [2]


def test_read_6_followers_ask_their_leader_for_a_position() -> None:
    """A follower serves reads at a position that its leader gives."""
    cluster, _ = elected()
    cluster["b"].read(1)
    cluster.deliver()
    assert released(cluster["b"]) == [1]


def test_pre_vote_1_no_term_begins_without_hope_to_win() -> None:
    """The term is raised only when a majority would vote for it (9.6)."""
    node = ManualCluster()["a"]
    for _ in range(5):
        node.time_out()
        node.receive(msg.VoteReply("b", 0, False, pre_vote=True))
    assert node.raft.term == 0


@pytest.mark.parametrize(("in_touch", "last"), [(True, (9, 1)), (False, (0, 0))])
def test_pre_vote_2_is_refused_by_who_hears_a_leader_or_has_a_better_log(
    in_touch: bool, last: tuple[int, int]
) -> None:
    """A voter would not vote while it hears a leader, nor for a log behind its own (9.6)."""
    node = follower(1)
    if in_touch:
        node.receive(append(1, (1, 1)))
    node.receive(msg.VoteRequest("c", 2, *last, pre_vote=True))
    assert answer(node) == msg.VoteReply("b", 1, granted=False, pre_vote=True)


# -- the page -----------------------------------------------------------------------------------


def test_the_page_names_every_test_here_and_no_other() -> None:
    page = (ROOT / "docs" / "paper-rules.md").read_text(encoding="utf-8")
    named = re.findall(r"^\|.*\| `(test_\w+)` \|", page, re.MULTILINE)
    here = {name for name in globals() if name.startswith("test_")}
    here.discard("test_the_page_names_every_test_here_and_no_other")
    assert len(named) == len(set(named))
    assert set(named) == here
