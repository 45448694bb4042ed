"""Linearizable reads (rules 32 to 34, 36)."""

from __future__ import annotations

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.effects import RefusalReason
from raftcore.core.messages import Message


def released(node: ManualNode) -> list[int]:
    return [e.read_id for e in node.effects if isinstance(e, ef.ReadReleased)]


def refused(node: ManualNode) -> list[tuple[int, RefusalReason]]:
    return [(e.read_id, e.reason) for e in node.effects if isinstance(e, ef.ReadRefused)]


def is_append(_to: str, message: Message) -> bool:
    return isinstance(message, msg.AppendRequest | msg.AppendReply)


def test_a_read_on_the_leader_is_served_after_a_quorum_has_confirmed_it() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.read(1)
    assert released(leader) == []
    c.deliver()
    assert released(leader) == [1]


def test_rule_32_a_new_leader_serves_no_read_before_an_entry_of_its_term_is_committed() -> None:
    c = ManualCluster(logs={"a": [1, 1], "b": [1, 1], "c": [1]})
    leader = c["a"]
    c.set_time(leader.raft.next_deadline_ns)
    leader.tick()
    c.deliver(lambda to, m: not is_append(to, m))
    assert leader.raft.is_leader
    leader.read(1)
    c["b"].receive(msg.Heartbeat("a", 2, 0, 0))
    c["b"].read(2)
    c.deliver(lambda to, m: not is_append(to, m))
    leader.time_out()
    c.deliver(lambda to, m: not is_append(to, m))
    assert (released(leader), released(c["b"])) == ([], [])
    assert leader.raft.status().pending_reads == 2
    c.deliver()
    assert (released(leader), released(c["b"])) == ([1], [2])
    positions = [e.index for n in "ab" for e in c[n].effects if isinstance(e, ef.ReadReleased)]
    assert positions == [3, 3], "what the earlier term left is covered"


def test_rule_33_an_echo_of_an_earlier_round_confirms_nothing() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.read(1)
    c.deliver()
    c.isolate("a")
    leader.read(2)
    for _ in range(3):
        leader.receive(msg.HeartbeatReply("b", 1, 1))
        leader.receive(msg.HeartbeatReply("c", 1, 1))
    assert released(leader) == [1]
    leader.receive(msg.HeartbeatReply("b", 1, 2))
    assert released(leader) == [1, 2]


def test_rule_33_the_counter_begins_anew_with_each_leadership() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    for read_id in (1, 2, 3):
        leader.read(read_id)
    c.deliver()
    leader.receive(msg.HeartbeatReply("c", 5, 0))
    c.set_time(10**9)
    c.elect("a")
    leader.read(4)
    leader.receive(msg.HeartbeatReply("b", 1, 3))  # late, of the first leadership
    assert 4 not in released(leader)
    c.deliver()
    assert 4 in released(leader)


def test_rule_33_a_paused_leader_that_was_replaced_serves_nothing() -> None:
    c = ManualCluster()
    old = c.elect("a")
    c.isolate("a")
    c.set_time(c.now_ns + 1000 * MS)
    c["b"].tick()
    c.deliver()
    assert c["b"].raft.is_leader
    c["b"].propose(b"newer")
    c.deliver()
    c.heal()
    old.read(1)
    c.deliver()
    assert released(old) == []
    assert refused(old) == [(1, RefusalReason.NOT_LEADER)]


def test_rule_34_a_lone_voter_recommits_before_it_serves_a_read() -> None:
    c = ManualCluster("a", logs={"a": [1, 1]})
    node = c["a"]
    node.hold_disk = True
    node.time_out()
    node.flush(1)
    assert node.raft.is_leader
    assert node.raft.commit_index == 0, "the commit index was not on disk"
    node.read(1)
    assert released(node) == []
    node.flush()
    assert released(node) == [1]
    assert node.machine.index == 3


def test_rule_36_the_position_is_taken_before_leadership_is_confirmed() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.read(1)
    leader.propose(b"later")
    c.deliver()
    (release,) = [e for e in leader.effects if isinstance(e, ef.ReadReleased)]
    assert release.index == 1


def test_a_confirmed_read_waits_until_its_position_is_applied() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.hold_apply = True
    leader.propose(b"x")
    c.deliver()
    leader.read(1)
    leader.read(2)
    c.deliver()
    assert released(leader) == []
    assert leader.raft.status().pending_reads == 2
    leader.apply_now()
    assert released(leader) == [1, 2]


def test_followers_and_learners_read_through_the_leader() -> None:
    c = ManualCluster(learners="z")
    c.elect("a")
    c.advance(100)
    for name in "bz":
        c[name].read(7)
    c.deliver()
    assert released(c["b"]) == released(c["z"]) == [7]


def test_a_confirmed_position_below_one_that_waits_already_keeps_the_order() -> None:
    c = ManualCluster()
    c.elect("a")
    c.advance(100)
    follower = c["b"]
    follower.hold_apply = True
    c["a"].propose(b"x", b"y")
    c.deliver()
    follower.read(1)
    follower.read(2)
    follower.receive(msg.ReadIndexReply("a", 1, 1, 3))
    follower.receive(msg.ReadIndexReply("a", 1, 2, 2))
    follower.apply_now()
    assert released(follower) == [1, 2]


def test_reads_without_a_leader_are_refused() -> None:
    node = ManualCluster()["a"]
    node.read(1)
    assert refused(node) == [(1, RefusalReason.NOT_LEADER)]


def test_a_node_that_does_not_lead_says_so_to_whoever_asks_it() -> None:
    node = ManualCluster(terms={"a": 3})["a"]
    for term in (2, 3):
        node.outbox.clear()
        node.receive(msg.ReadIndexRequest("b", term, 5))
        assert node.outbox == [("b", msg.ReadIndexReply("a", 3, 5, -1))]


def test_a_refusal_by_the_leader_refuses_the_read_here() -> None:
    node = ManualCluster()["a"]
    node.receive(msg.Heartbeat("b", 1, 0, 0))
    node.read(1)
    node.receive(msg.ReadIndexReply("b", 1, 1, -1))
    node.receive(msg.ReadIndexReply("b", 1, 1, -1))
    assert refused(node) == [(1, RefusalReason.NOT_LEADER)]


@pytest.mark.parametrize("how", ["new leader", "timeout", "new term"])
def test_reads_asked_of_a_leader_that_is_gone_are_refused(how: str) -> None:
    node = ManualCluster()["a"]
    node.receive(msg.Heartbeat("b", 1, 0, 0))
    node.read(2)
    node.read(1)
    if how == "timeout":
        node.time_out()
    elif how == "new term":
        node.receive(msg.HeartbeatReply("c", 2, 0))
    else:
        node.receive(msg.Heartbeat("c", 2, 0, 0))
    assert refused(node) == [(1, RefusalReason.NOT_LEADER), (2, RefusalReason.NOT_LEADER)]
    node.receive(msg.ReadIndexReply("b", 1, 1, 0))
    assert released(node) == []


def test_a_learner_whose_leader_is_silent_refuses_what_it_asked_of_it() -> None:
    """It never campaigns, and used to wait for the dead leader's answer for ever."""
    learner = ManualCluster("ab", learners="z")["z"]
    learner.receive(msg.Heartbeat("a", 1, 0, 0))
    learner.read(1)
    learner.time_out()
    assert refused(learner) == [(1, RefusalReason.NOT_LEADER)]
    assert learner.raft.leader_id is None


def test_stepping_down_refuses_reads_here_and_answers_those_from_elsewhere() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    c.drop()
    leader.read(1)
    leader.receive(msg.ReadIndexRequest("b", 1, 9))
    leader.outbox.clear()
    leader.receive(msg.HeartbeatReply("c", 4, 0))
    assert refused(leader) == [(1, RefusalReason.NOT_LEADER)]
    assert ("b", msg.ReadIndexReply("a", 4, 9, -1)) in leader.outbox


def test_pending_reads_are_bounded_here_and_for_others() -> None:
    """Rule I20: beyond the bound reads are refused."""
    c = ManualCluster(max_pending_reads=2)
    leader = c.elect("a")
    c.isolate("a")
    for read_id in range(1, 5):
        leader.read(read_id)
    assert refused(leader) == [(3, RefusalReason.OVERLOADED), (4, RefusalReason.OVERLOADED)]
    leader.outbox.clear()
    leader.receive(msg.ReadIndexRequest("b", 1, 9))
    assert leader.outbox == [("b", msg.ReadIndexReply("a", 1, 9, -1))]
    follower = c["b"]
    for read_id in range(1, 4):
        follower.read(read_id)
    assert refused(follower) == [(3, RefusalReason.OVERLOADED)]


def test_a_late_answer_to_an_earlier_run_releases_a_read_of_the_same_number() -> None:
    """Why the owner of a core must not begin to number its reads at the same place in each run:
    the core can not tell the answer to read 1 of the run before from that to read 1 of this one,
    and the position in it is older than the read."""
    c = ManualCluster()
    leader = c.elect("a")
    c.advance(200)
    follower = c["b"]
    follower.read(1)
    c.deliver(lambda _to, m: not isinstance(m, msg.ReadIndexReply))
    ((_, late),) = c.wire
    c.wire.clear()
    follower.start()
    c.isolate("b")
    leader.propose(b"acknowledged before the next read is asked for")
    c.deliver()
    acknowledged = leader.raft.applied_index
    follower.receive(msg.Heartbeat("a", 1, 1, 0))
    follower.effects.clear()
    follower.read(1)
    follower.receive(late)
    (stale,) = [e for e in follower.effects if isinstance(e, ef.ReadReleased)]
    assert stale.index < acknowledged, "this is what a random first number prevents"
    other = 1 + 0x2F5A_11C3_9D07_44E1
    follower.read(other)
    follower.receive(late)
    assert released(follower) == [1], "another number is safe"


def test_an_abandoned_read_is_taken_out_of_the_middle_of_the_queue() -> None:
    c = ManualCluster()
    c.elect("a")
    c.advance(100)
    follower = c["b"]
    follower.hold_apply = True
    c["a"].propose(b"x")
    c.deliver()
    for read_id in (1, 2, 3):
        follower.read(read_id)
        c.deliver()
    queue = follower.raft._s.confirmed_reads
    follower.step(ev.ReadAbandoned(follower.now_ns, 2))
    assert follower.raft._s.confirmed_reads is queue, "it used to be built anew each time"
    assert follower.raft.status().pending_reads == 2
    follower.apply_now()
    assert released(follower) == [1, 3]


def test_an_abandoned_read_takes_up_no_room() -> None:
    c = ManualCluster(max_pending_reads=1)
    c.elect("a")
    c.advance(100)
    follower = c["b"]
    for read_id in range(1, 6):
        follower.read(read_id)
        c.drop()
        follower.step(ev.ReadAbandoned(follower.now_ns, read_id))
    assert refused(follower) == []
    follower.hold_apply = True
    c["a"].propose(b"x")
    c.deliver()
    follower.read(6)
    c.deliver()
    follower.step(ev.ReadAbandoned(follower.now_ns, 6))
    assert follower.raft.status().pending_reads == 0
    follower.apply_now()
    assert released(follower) == []
