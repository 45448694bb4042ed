"""Elections: votes, pre-votes, timers, the sticky leader, check-quorum (rules 1 to 14)."""

from __future__ import annotations

from itertools import product

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode, configuration_of
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.errors import InvariantError
from raftcore.core.messages import Message
from raftcore.core.types import FEATURE_LEVEL, SnapshotMeta, WriteMark

TIMEOUT_NS = 300 * MS
ONE_BYTE_SNAPSHOT = SnapshotMeta(1, 1, b"", configuration_of("abc"), 1, b"")


def vote_request(
    sender: str, term: int, last: tuple[int, int] = (0, 0), *, pre: bool = False, move: bool = False
) -> msg.VoteRequest:
    """``last`` is (index, term)."""
    return msg.VoteRequest(sender, term, last[0], last[1], pre, move)


def heartbeat(sender: str, term: int, commit: int = 0) -> msg.Heartbeat:
    return msg.Heartbeat(sender, term, commit, 0)


def append(sender: str, term: int, prev: tuple[int, int] = (0, 0)) -> msg.AppendRequest:
    return msg.AppendRequest(sender, term, prev[0], prev[1], 0, 1, 0)


def sends(effects: list[ef.Effect]) -> list[Message]:
    return [e.message for e in effects if isinstance(e, ef.Send)]


def persists(effects: list[ef.Effect]) -> list[ef.Persist]:
    return [e for e in effects if isinstance(e, ef.Persist)]


def term_and_vote(node: ManualNode) -> tuple[int, str | None]:
    status = node.raft.status()
    return status.term, status.vote


# -- votes and their durability ---------------------------------------------------------------


def test_rule_1_a_vote_leaves_only_after_it_is_durable_and_survives_a_crash() -> None:
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.receive(vote_request("b", 1))
    assert node.outbox == [], "nothing is said before the write"
    node.flush()
    assert node.outbox == [("b", msg.VoteReply("a", 1, granted=True))]
    node.start()
    node.receive(vote_request("c", 1))
    node.flush()
    assert node.outbox == [("c", msg.VoteReply("a", 1, granted=False))]


def test_rule_1_a_crash_before_the_write_leaves_the_vote_free_and_unspoken() -> None:
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.receive(vote_request("b", 1))
    node.start()
    assert node.outbox == []
    node.receive(vote_request("c", 1))
    node.flush()
    assert node.outbox == [("c", msg.VoteReply("a", 1, granted=True))]


def test_rule_2_term_and_vote_are_one_write() -> None:
    node = ManualCluster()["a"]
    (write,) = persists(node.receive(vote_request("b", 5)))
    assert write.hard_state is not None
    assert (write.hard_state.term, write.hard_state.vote) == (5, "b")
    assert persists(node.time_out()) == []
    (write,) = persists(node.receive(msg.VoteReply("b", 6, True, True)))
    assert write.hard_state is not None
    assert (write.hard_state.term, write.hard_state.vote) == (6, "a")


def test_rule_3_a_candidate_keeps_its_vote_when_the_leader_of_its_term_appears() -> None:
    """The double leader of pre-vote: a vote is cleared only by a higher term."""
    node = ManualCluster()["a"]
    node.time_out()
    node.receive(msg.VoteReply("b", 1, True, True))
    assert term_and_vote(node) == (1, "a")
    # an append of the elected leader that does not match, then a delayed request of a rival
    node.receive(append("b", 1, (7, 1)))
    assert term_and_vote(node) == (1, "a")
    node.outbox.clear()
    node.receive(vote_request("c", 1, (9, 1)))
    assert node.outbox == [("c", msg.VoteReply("a", 1, granted=False))]


def test_rule_3_a_repeated_request_is_granted_again_without_another_write() -> None:
    node = ManualCluster()["a"]
    node.receive(vote_request("b", 1))
    effects = node.receive(vote_request("b", 1))
    assert sends(effects) == [msg.VoteReply("a", 1, granted=True)]
    assert not persists(effects)


def test_rule_4_learning_a_term_from_a_reply_is_not_a_vote() -> None:
    c = ManualCluster(logs={"a": [1, 1], "b": [1, 1]})
    leader = c.elect("a")
    leader.receive(msg.HeartbeatReply("c", 9, 0))
    assert term_and_vote(leader) == (9, None)
    leader.outbox.clear()
    leader.receive(vote_request("c", 9, (0, 0)))
    assert leader.outbox == [("c", msg.VoteReply("a", 9, granted=False))]


SMALL_LOGS = [(), (1,), (2,), (1, 1), (1, 2), (2, 2), (1, 1, 1)]


@pytest.mark.parametrize(("ours", "theirs"), list(product(SMALL_LOGS, repeat=2)))
def test_rule_5_votes_go_only_to_logs_at_least_as_up_to_date(
    ours: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    node = ManualCluster(logs={"a": ours}, terms={"a": 2})["a"]
    last = (len(theirs), theirs[-1] if theirs else 0)
    wanted = (last[1], last[0]) >= ((ours[-1] if ours else 0), len(ours))
    for pre in (True, False):
        (reply,) = sends(node.receive(vote_request("zz", 3, last, pre=pre)))
        assert isinstance(reply, msg.VoteReply)
        assert reply.granted == wanted


def test_rule_6_a_vote_repeated_or_of_another_phase_or_term_is_not_counted() -> None:
    c = ManualCluster("abcde")
    node = c["a"]
    node.time_out()
    for reply in (
        msg.VoteReply("b", 1, True, True),
        msg.VoteReply("b", 1, True, True),
        msg.VoteReply("c", 0, True, False),
        msg.VoteReply("d", 2, True, True),
    ):
        node.receive(reply)
    assert node.raft.status().role == "pre_candidate", "a itself and b are two of five"
    node.receive(msg.VoteReply("c", 1, True, True))
    assert node.raft.status().role == "candidate"
    for reply in (
        msg.VoteReply("b", 1, True),
        msg.VoteReply("b", 1, True),
        msg.VoteReply("c", 1, True, True),
        msg.VoteReply("d", 2, True, True),
        msg.VoteReply("stranger", 1, True),
    ):
        node.receive(reply)
    assert node.raft.status().role == "candidate"
    node.receive(msg.VoteReply("e", 1, True))
    assert node.raft.is_leader


def test_rule_6_a_late_refusal_of_an_earlier_campaign_does_not_cost_the_grant_of_this_one() -> None:
    """A refusal carries the term of who refuses, so an old one looks like one of this campaign."""
    node = ManualCluster("abcde")["a"]
    node.time_out()
    for voter in "bc":
        node.receive(msg.VoteReply(voter, 1, True, True))
    assert node.raft.status().role == "candidate"
    late, grants = msg.VoteReply("b", 1, False), [msg.VoteReply(v, 1, True) for v in "bc"]
    for reply in (late, *grants, late):
        node.receive(reply)
    assert node.raft.is_leader


def test_rule_6_no_vote_where_the_leader_of_the_term_is_known() -> None:
    node = ManualCluster()["a"]
    node.receive(heartbeat("b", 1))
    (reply,) = sends(node.receive(vote_request("c", 1, (5, 1))))
    assert reply == msg.VoteReply("a", 1, granted=False)


def test_rule_6_a_leader_refuses_a_rival_of_its_own_term() -> None:
    leader = ManualCluster()
    node = leader.elect("a")
    (reply,) = sends(node.receive(vote_request("c", 1, (5, 1))))
    assert reply == msg.VoteReply("a", 1, granted=False)


def test_an_election_lost_by_a_majority_of_refusals_ends_at_once() -> None:
    node = ManualCluster()["a"]
    node.time_out()
    for voter in "bc":
        node.receive(msg.VoteReply(voter, 0, False, True))
    assert node.raft.status().role == "follower"
    assert (
        node.raft.status().not_leader_because == "it waits for a leader or for its election timeout"
    )


def test_a_candidate_does_not_lead_before_its_own_vote_is_durable() -> None:
    """Rules 1 and 17: others' votes alone are a majority, and yet it waits."""
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.time_out()
    node.receive(msg.VoteReply("b", 1, True, True))
    assert [m for _, m in node.outbox if isinstance(m, msg.VoteRequest) and not m.pre_vote] == []
    for voter in "bc":
        node.receive(msg.VoteReply(voter, 1, True))
    assert node.raft.status().role == "candidate"
    node.flush()
    assert node.raft.is_leader


def test_the_own_vote_counts_once_however_often_its_write_is_reported() -> None:
    node = ManualCluster("abcde")["a"]
    node.time_out()
    for voter in "bc":
        node.receive(msg.VoteReply(voter, 1, True, True))
    node.receive(msg.VoteReply("b", 1, True))
    deadline = node.raft.next_deadline_ns
    assert node.step(ev.WriteDurable(node.now_ns, WriteMark(1, 1))) == []
    assert node.raft.status().role == "candidate"
    assert node.raft.next_deadline_ns == deadline


def test_a_slow_write_of_the_own_vote_does_not_eat_the_time_of_the_round() -> None:
    """Rule 12: the round's timer begins when the requests leave."""
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.time_out()
    node.receive(msg.VoteReply("b", 1, True, True))
    slow_until = node.raft.next_deadline_ns - 1
    node.now_ns = slow_until
    node.flush()
    assert node.raft.next_deadline_ns >= slow_until + TIMEOUT_NS


# -- pre-vote ---------------------------------------------------------------------------------


def test_rule_7_pre_votes_change_nothing_at_the_receiver() -> None:
    node = ManualCluster(logs={"a": [1, 1]})["a"]
    before = (node.raft.status(), node.raft.next_deadline_ns)
    for term in (0, 1, 2, 50):
        for last in ((0, 0), (9, 0), (9, 1)):
            effects = node.receive(vote_request("b", max(term, last[1]), last, pre=True))
            assert all(isinstance(e, ef.Send) for e in effects)
    assert (node.raft.status(), node.raft.next_deadline_ns) == before


def test_rule_7_a_grant_carries_the_requested_term_and_a_refusal_the_own() -> None:
    node = ManualCluster(logs={"a": [1]}, terms={"a": 4})["a"]
    (granted,) = sends(node.receive(vote_request("b", 5, (1, 1), pre=True)))
    assert granted == msg.VoteReply("a", 5, True, True)
    (refused,) = sends(node.receive(vote_request("b", 5, (0, 0), pre=True)))
    assert refused == msg.VoteReply("a", 4, False, True)


def test_rule_7_a_minority_never_raises_its_term_however_long_it_asks() -> None:
    c = ManualCluster("abcde")
    c.elect("a")
    for one, other in product("de", "abc"):
        c.cut(one, other)
    for _ in range(10_000):
        c["d"].time_out()
        c["d"].outbox.clear()
    c.advance(3000)
    assert c["d"].raft.term == c["e"].raft.term == 1
    c.heal()
    c.advance(2000)
    assert (c.leaders(), c["a"].raft.term) == (["a"], 1)


def test_rule_8_a_node_stuck_on_a_higher_term_pushes_the_leader_out() -> None:
    """It answers a leader of a lower term with its own term instead of staying silent."""
    c = ManualCluster()
    leader = c.elect("a")
    c.isolate("c")
    stuck = c["c"]
    stuck.time_out()
    stuck.receive(msg.VoteReply("b", 2, True, True))  # late news from before the cut
    assert stuck.raft.term == 2
    c.heal()
    c.drop()
    c.advance(4000)
    assert leader.raft.term >= 2
    assert len(c.leaders()) == 1
    assert {n.raft.leader_id for n in c.nodes.values()} == set(c.leaders())


@pytest.mark.parametrize(
    "message",
    [
        heartbeat("b", 1),
        append("b", 1),
        msg.SnapshotChunk("b", 1, ONE_BYTE_SNAPSHOT, 0, b"x", 1, 0),
    ],
)
def test_rule_8_each_message_of_a_stale_leader_is_answered_with_the_term(message: Message) -> None:
    node = ManualCluster(terms={"a": 3})["a"]
    effects = node.receive(message)
    assert sends(effects) == [
        msg.HeartbeatReply("a", 3, 0, msg.Health(feature_level=FEATURE_LEVEL))
    ]
    assert len(effects) == 1


def test_rule_8_a_pre_candidate_forgets_its_leader_and_grants_pre_votes_to_others() -> None:
    node = ManualCluster()["a"]
    node.receive(heartbeat("b", 1))
    node.time_out()
    assert node.raft.leader_id is None
    (reply,) = sends(node.receive(vote_request("c", 2, pre=True)))
    assert reply == msg.VoteReply("a", 2, True, True)


def test_rule_9_long_log_with_low_term_and_short_log_with_high_term_elect_a_leader() -> None:
    c = ManualCluster("ab", logs={"a": [1, 1, 1], "b": [1]}, terms={"a": 1, "b": 7})
    c.advance(4000)
    assert c.leaders() == ["a"]
    assert c["a"].raft.term > 7


def test_rule_10_bridge_topology_the_old_leader_lets_go() -> None:
    """a leads; c is the bridge that sees everybody, a sees nobody but c."""
    c = ManualCluster("abcde")
    c.elect("a")
    for other in "bde":
        c.cut("a", other)
    c.advance(3000)
    (leader,) = [n for n in c.leaders() if n != "a"]
    assert "a" not in c.leaders(), "a leader without a quorum stops within an election timeout"
    before = c[leader].raft.commit_index
    c[leader].propose(b"x")
    c.deliver()
    assert c[leader].raft.commit_index == before + 1


def test_rule_10_a_leader_out_of_touch_with_its_quorum_steps_down_in_one_election_timeout() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    heard_ns = c.now_ns
    c.isolate("a")
    for _ in range(20):
        if not leader.raft.is_leader:
            break
        leader.time_out()
        leader.outbox.clear()
    assert not leader.raft.is_leader
    assert leader.now_ns - heard_ns <= TIMEOUT_NS
    assert term_and_vote(leader) == (1, "a"), "the term and the vote stay"


# -- stickiness -------------------------------------------------------------------------------


def test_rule_11_a_voter_in_touch_with_its_leader_ignores_campaigns_at_any_term() -> None:
    c = ManualCluster()
    c.elect("a")
    for term in range(2, 40):
        for pre in (True, False):
            for node in c.nodes.values():
                (reply,) = sends(node.receive(vote_request("zz", term, (99, 1), pre=pre)))
                assert reply == msg.VoteReply(reply.sender, 1, False, pre)
    assert c.leaders() == ["a"]
    assert all(n.raft.term == 1 for n in c.nodes.values())


def test_rule_11_a_campaign_that_the_leader_asked_for_is_let_through() -> None:
    c = ManualCluster()
    c.elect("a")
    (reply,) = sends(c["b"].receive(vote_request("c", 2, (99, 1), move=True)))
    assert reply == msg.VoteReply("b", 2, granted=True)


def test_rule_11_stickiness_ends_with_the_minimum_timeout() -> None:
    node = ManualCluster()["a"]
    node.receive(heartbeat("b", 1))
    node.now_ns += TIMEOUT_NS - 1
    (reply,) = sends(node.receive(vote_request("c", 2)))
    assert reply == msg.VoteReply("a", 1, granted=False)
    node.now_ns += 1
    (reply,) = sends(node.receive(vote_request("c", 2)))
    assert reply == msg.VoteReply("a", 2, granted=True)


# -- timers -----------------------------------------------------------------------------------

RESETS = {
    "heartbeat of the leader": (heartbeat("b", 3), True),
    "append of the leader": (append("b", 3), True),
    "append of the leader that does not match": (append("b", 3, (9, 3)), True),
    "heartbeat of a new term": (heartbeat("c", 4), True),
    "granted vote": (vote_request("c", 4, (0, 0), move=True), True),
    "stale heartbeat": (heartbeat("c", 2), False),
    "stale append": (append("c", 2), False),
    "refused vote": (vote_request("c", 4), False),
    "stale vote request": (vote_request("c", 2), False),
    "granted pre-vote": (vote_request("c", 5, pre=True), False),
    "vote reply": (msg.VoteReply("c", 3, True), False),
    "append reply": (msg.AppendReply("c", 3, True, 0, 0, 0, 0, 0), False),
    "heartbeat reply": (msg.HeartbeatReply("c", 3, 0), False),
    "higher term in a reply": (msg.HeartbeatReply("c", 9, 0), False),
    "read request": (msg.ReadIndexRequest("c", 3, 1), False),
    "read reply": (msg.ReadIndexReply("c", 3, 1, 0), False),
}


@pytest.mark.parametrize("name", RESETS)
def test_rule_12_table_of_timer_resets(name: str) -> None:
    message, resets = RESETS[name]
    node = ManualCluster(terms={"a": 3})["a"]
    node.receive(heartbeat("b", 3))
    before = node.raft.next_deadline_ns
    node.now_ns += 250 * MS
    node.receive(message)
    after = node.raft.next_deadline_ns
    assert (after != before) == resets
    if resets:
        assert TIMEOUT_NS <= after - node.now_ns < 2 * TIMEOUT_NS


def test_rule_12_a_flood_of_refused_votes_and_stale_appends_does_not_delay_a_campaign() -> None:
    node = ManualCluster(logs={"a": [1, 2]}, terms={"a": 3})["a"]
    deadline = node.raft.next_deadline_ns
    for _ in range(100):
        node.now_ns += (deadline - node.now_ns) // 50
        node.receive(vote_request("b", 3, (0, 0)))
        node.receive(append("c", 2))
    node.tick(deadline)
    assert node.raft.status().role == "pre_candidate"


def test_rule_12_every_round_draws_a_new_timeout_between_once_and_twice_the_minimum() -> None:
    node = ManualCluster()["a"]
    drawn = set()
    for _ in range(200):
        now = node.raft.next_deadline_ns
        node.tick(now)
        drawn.add(node.raft.next_deadline_ns - now)
    assert len(drawn) == 200
    assert min(drawn) >= TIMEOUT_NS
    assert max(drawn) < 2 * TIMEOUT_NS
    assert max(drawn) - min(drawn) > TIMEOUT_NS * 0.9


def test_a_tick_before_the_deadline_does_nothing() -> None:
    node = ManualCluster()["a"]
    assert node.tick(node.raft.next_deadline_ns - 1) == []


def test_rule_13_a_lone_voter_leads_at_once_after_a_restart() -> None:
    c = ManualCluster("a", logs={"a": [1, 1]})
    node = c["a"]
    assert node.raft.next_deadline_ns == node.now_ns
    node.time_out()
    assert node.raft.is_leader
    assert node.raft.commit_index == 3
    assert node.machine.index == 3


def test_rule_13_a_lone_voter_with_a_learner_leads_too() -> None:
    c = ManualCluster("a", learners="z")
    c["a"].time_out()
    c.deliver()
    c.advance(200)
    assert c["z"].machine.index == c["a"].machine.index == 1


def test_rule_14_an_append_of_our_own_term_from_somebody_else_stops_a_leader() -> None:
    for rival in (append("b", 1), heartbeat("b", 1), msg.TimeoutNow("b", 1)):
        c = ManualCluster()
        leader = c.elect("a")
        with pytest.raises(InvariantError, match="leads term 1 too"):
            leader.receive(rival)
        with pytest.raises(InvariantError, match="leads term 1 too"):
            leader.tick()


def test_rule_14_a_follower_that_sees_two_leaders_of_one_term_stops() -> None:
    node = ManualCluster()["a"]
    node.receive(heartbeat("b", 1))
    with pytest.raises(InvariantError, match="both lead term 1"):
        node.receive(heartbeat("c", 1))


# -- who may campaign -------------------------------------------------------------------------


def test_a_learner_never_campaigns_but_answers_votes() -> None:
    """Rule 42: the candidate's configuration decides who votes, not the voter's own."""
    c = ManualCluster("ab", learners="z")
    learner = c["z"]
    for _ in range(5):
        learner.time_out()
    assert learner.raft.term == 0
    assert learner.outbox == []
    assert "not a voter" in (learner.raft.status().not_leader_because or "")
    (reply,) = sends(learner.receive(vote_request("a", 1)))
    assert reply == msg.VoteReply("z", 1, granted=True)


def test_a_pre_candidate_that_grants_a_vote_waits_for_that_candidate() -> None:
    node = ManualCluster()["a"]
    node.receive(msg.HeartbeatReply("b", 1, 0))
    node.time_out()
    assert node.raft.status().role == "pre_candidate"
    (reply,) = sends(node.receive(vote_request("b", 1)))
    assert reply == msg.VoteReply("a", 1, granted=True)
    assert node.raft.status().role == "follower"


def test_votes_that_come_after_the_election_change_nothing() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    before = leader.raft.status()
    leader.receive(msg.VoteReply("c", 1, True))
    leader.receive(msg.VoteReply("c", 1, False))
    assert leader.raft.status() == before


def test_a_new_leader_begins_its_term_with_an_empty_entry() -> None:
    c = ManualCluster(logs={"a": [1], "b": [1], "c": [1]})
    leader = c.elect("a")
    assert leader.image.entries[-1].type.name == "NOOP"
    assert leader.image.entries[-1].term == leader.raft.term


@pytest.mark.parametrize("role", ["follower", "pre_candidate", "candidate"])
def test_status_says_why_a_node_does_not_lead(role: str) -> None:
    node = ManualCluster()["a"]
    if role == "follower":
        node.receive(heartbeat("b", 1))
        expected = "it follows b"
    else:
        node.time_out()
        expected = "pre-vote"
        if role == "candidate":
            node.receive(msg.VoteReply("b", 1, True, True))
            expected = "it campaigns"
    status = node.raft.status()
    assert status.role == role
    assert expected in (status.not_leader_because or "")
