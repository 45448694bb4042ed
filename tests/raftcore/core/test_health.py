"""Disks that hang (rule 48, D4): who notices, who gives way, who must not campaign."""

from __future__ import annotations

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode, log_of
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.messages import Health, Message
from raftcore.core.types import FEATURE_LEVEL

STALL_MS = 500
HEALTHY = Health(0, quarantined=False, feature_level=FEATURE_LEVEL)


def gave_way(node: ManualNode) -> list[int]:
    return [e.write_age_ms for e in node.effects if isinstance(e, ef.GaveWay)]


def healths(node: ManualNode) -> list[Health]:
    return [m.health for _, m in node.outbox if isinstance(m, msg.AppendReply | msg.HeartbeatReply)]


def stalled_leader(c: ManualCluster) -> ManualNode:
    """a leads, and its disk hangs from now on in the middle of a write."""
    leader = c.elect("a")
    leader.hold_disk = True
    leader.propose(b"x")
    c.deliver()
    return leader


# -- the leader's disk ------------------------------------------------------------------------


def test_rule_48_a_leader_alone_stalled_gives_way_although_its_followers_commit() -> None:
    c = ManualCluster()
    leader = stalled_leader(c)
    assert leader.raft.commit_index == 2, "progress of the commit index is no evidence of health"
    c.advance(STALL_MS - 20)
    assert c.leaders() == ["a"]
    c.advance(30)
    assert gave_way(leader) == [STALL_MS + 10]
    assert not leader.raft.is_leader
    c.advance(700)
    (new,) = c.leaders()
    assert new in "bc"
    c[new].propose(b"y")
    c.deliver()
    assert c[new].machine.index == c[new].raft.status().last_index


def test_rule_48_it_gives_way_at_its_own_deadline_not_at_the_next_heartbeat() -> None:
    c = ManualCluster(heartbeat_ms=100, election_timeout_ms=200, stall_ms=250)
    leader = stalled_leader(c)
    issued = c.now_ns
    c.advance(240)
    c.set_time(issued + 250 * MS)
    assert leader.raft.next_deadline_ns == issued + 250 * MS + 1
    leader.tick(issued + 250 * MS)
    assert leader.raft.is_leader, "older than the bound, not as old"
    leader.tick(leader.raft.next_deadline_ns)
    assert gave_way(leader) == [250]


def test_rule_48_the_bound_is_no_shorter_than_the_election_timeout() -> None:
    c = ManualCluster(election_timeout_ms=900)
    leader = stalled_leader(c)
    c.advance(880)
    assert c.leaders() == ["a"]
    c.advance(100)
    assert gave_way(leader) == [910]


def test_rule_48_where_all_disks_stall_nobody_campaigns_and_service_resumes() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    for node in c.nodes.values():
        node.hold_disk = True
    leader.propose(b"x")
    c.advance(3000)
    assert c.leaders() == ["a"]
    assert leader.raft.status().stalled
    for node in c.nodes.values():
        node.hold_disk = False
        node.flush()
    c.advance(100)
    assert [node.machine.index for node in c.nodes.values()] == [2, 2, 2]
    assert {node.raft.term for node in c.nodes.values()} == {1}
    assert not any(gave_way(node) for node in c.nodes.values())


@pytest.mark.parametrize("voters", ["a", "ab"])
def test_rule_48_nobody_gives_way_whom_the_others_can_not_do_without(voters: str) -> None:
    c = ManualCluster(voters, learners="l")
    leader = stalled_leader(c)
    c.advance(2000)
    assert c.leaders() == ["a"]
    assert gave_way(leader) == []


@pytest.mark.parametrize("health", [Health(write_age_ms=251), Health(quarantined=True)])
def test_rule_48_a_quorum_of_the_others_must_be_healthy(health: Health) -> None:
    c = ManualCluster("abcd")
    leader = stalled_leader(c)
    for _ in range(20):
        c.set_time(c.now_ns + 50 * MS)
        for name in "bc":
            leader.receive(msg.HeartbeatReply(name, 1, 0, HEALTHY))
        leader.receive(msg.HeartbeatReply("d", 1, 0, health))
        leader.tick()
    assert gave_way(leader) == []
    assert leader.raft._s.leadership is not None
    leader.receive(msg.HeartbeatReply("d", 1, leader.raft._s.leadership.read_counter, HEALTHY))
    leader.tick()
    assert len(gave_way(leader)) == 1


def test_rule_48_what_a_peer_said_long_ago_does_not_count() -> None:
    c = ManualCluster("abcd")
    leader = stalled_leader(c)
    leader.receive(msg.HeartbeatReply("d", 1, 0, HEALTHY))
    for _ in range(20):
        c.set_time(c.now_ns + 50 * MS)
        for name in "bc":
            leader.receive(msg.HeartbeatReply(name, 1, 0, HEALTHY))
        leader.tick()
    assert leader.raft.is_leader


def test_rule_48_a_peer_that_never_spoke_of_its_disk_does_not_count() -> None:
    """A snapshot's receiver is there, but says nothing of its health."""
    c = ManualCluster()
    leader = stalled_leader(c)
    for name in "bc":
        leader.raft._s.leadership.progress[name].health_ns = None  # type: ignore[union-attr]
    c.set_time(c.now_ns + 501 * MS)
    for name in "bc":
        leader.receive(msg.SnapshotReply(name, 1, 1, 0, False, 1, 0))
    leader.tick()
    assert leader.raft.is_leader


def test_rule_48_the_oldest_unfinished_write_decides() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.hold_disk = True
    for _ in range(3):
        leader.propose(b"x")
        c.advance(200)
    assert leader.raft.status().write_age_ms == 600 or not leader.raft.is_leader
    c = ManualCluster()
    leader = c.elect("a")
    leader.hold_disk = True
    for _ in range(8):
        leader.propose(b"x")
        c.advance(200)
        leader.flush(max(len(leader.pending) - 1, 0))
    assert leader.raft.is_leader, "a slow disk that gets on is not stalled"
    assert leader.raft.status().write_age_ms == 200
    leader.flush()
    assert leader.raft.status().write_age_ms == 0


# -- a follower's disk ------------------------------------------------------------------------


def test_replies_carry_the_age_of_the_oldest_write_and_the_feature_level() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    b = c["b"]
    b.hold_disk = True
    leader.propose(b"x")
    c.deliver()
    c.set_time(c.now_ns + 70 * MS)
    b.receive(msg.Heartbeat("a", 1, 0, 0))
    assert healths(b) == [Health(70, quarantined=False, feature_level=FEATURE_LEVEL)]
    c.deliver()
    (status,) = [p for p in leader.raft.status().peers if p.node_id == "b"]
    assert status.write_age_ms == 70
    b.flush()
    b.outbox.clear()
    b.receive(msg.AppendRequest("a", 1, 1, 1, 0, 9, 0, ()))
    b.receive(msg.AppendRequest("a", 1, 7, 1, 0, 9, 0, ()))
    assert healths(b) == [HEALTHY, HEALTHY]


def test_rule_48_a_follower_whose_disk_hangs_does_not_stop_the_others() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    c["b"].hold_disk = True
    for _ in range(10):
        leader.propose(b"x")
        c.advance(100)
    assert c.leaders() == ["a"]
    assert leader.machine.index == c["c"].machine.index == 11
    assert c["b"].machine.index == 1
    c["b"].hold_disk = False
    c["b"].flush()
    c.advance(200)
    assert c["b"].machine.index == 11


def hang(c: ManualCluster, name: str) -> ManualNode:
    """The disk of that follower hangs until it is stalled."""
    node = c[name]
    node.hold_disk = True
    c["a"].propose(b"x")
    c.advance(STALL_MS + 50)
    assert node.raft.status().stalled
    return node


def test_rule_48_a_node_whose_disk_is_stalled_does_not_campaign() -> None:
    c = ManualCluster(logs={"a": [1], "b": [1]})
    c.elect("a")
    b = hang(c, "b")
    c.isolate("a")
    term = b.raft.term
    for _ in range(5):
        b.time_out()
    assert (b.raft.term, b.raft.status().role) == (term, "follower")
    because = b.raft.status().not_leader_because
    assert because is not None
    assert because.startswith("its disk is stalled: a write is unfinished for ")
    b.hold_disk = False
    b.flush()
    b.time_out()
    assert b.raft.status().role == "pre_candidate"


def test_rule_48_a_node_whose_disk_is_stalled_takes_no_leadership_over() -> None:
    c = ManualCluster()
    c.elect("a")
    b = hang(c, "b")
    b.receive(msg.TimeoutNow("a", 1))
    assert (b.raft.term, b.raft.status().role) == (1, "follower")


def test_a_node_whose_disk_is_stalled_is_no_target_of_a_transfer() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    hang(c, "b")
    leader.step(ev.TransferRequested(leader.now_ns, "b"))
    (finished,) = [e for e in leader.effects if isinstance(e, ef.TransferFinished)]
    assert (finished.succeeded, finished.detail) == (False, "the disk of b is not healthy")
    leader.step(ev.TransferRequested(leader.now_ns))
    sent: list[tuple[str, Message]] = c.collect()
    assert [to for to, m in sent if isinstance(m, msg.TimeoutNow)] == ["c"]


def stalled_pre_candidate(*, held_ms: int) -> tuple[ManualCluster, ManualNode]:
    """b asks whether it could win, c's answer is on its way, and b's disk has hung for long."""
    c = ManualCluster(stall_ms=1000)
    leader, b = c.elect("a"), c["b"]
    c.advance(200)
    b.hold_disk = True
    leader.propose(b"x")
    c.deliver(lambda to, _m: to == "b")
    c.isolate("a")
    c.drop()
    b.time_out()
    assert b.raft.status().role == "pre_candidate"
    c.set_time(max(n.now_ns for n in c.nodes.values()) + held_ms * MS)
    return c, b


def test_rule_48_a_stalled_node_does_not_campaign_on_votes_it_asked_for_before() -> None:
    c, b = stalled_pre_candidate(held_ms=1500)
    c.deliver()
    assert b.raft.status().stalled
    assert (b.raft.status().role, b.raft.term) == ("follower", 1)


def test_rule_48_a_stalled_nodes_candidacy_ends_with_its_time() -> None:
    c, b = stalled_pre_candidate(held_ms=0)
    late = [pair for pair in c.collect() if pair[0] == "c"]
    c.drop()
    c.set_time(c.now_ns + 1500 * MS)
    b.time_out()
    assert (b.raft.status().stalled, b.raft.status().role) == (True, "follower")
    for _, m in late:
        c["c"].receive(m)
    c.deliver()
    assert (b.raft.status().role, b.raft.term) == ("follower", 1)


def test_a_candidate_whose_disk_hangs_meanwhile_campaigns_again_when_it_comes_back() -> None:
    c = ManualCluster(terms={"a": 1}, logs={"a": [1], "b": [1], "c": [1]})
    a = c["a"]
    c.set_time(a.raft.next_deadline_ns)
    a.hold_disk = True
    a.tick()
    c.deliver()
    assert a.raft.status().role == "candidate"
    a.time_out()
    c.set_time(c.now_ns + 900 * MS)
    a.time_out()
    assert a.raft.status().stalled
    a.hold_disk = False
    a.flush()
    c.drop()
    a.time_out()
    c.deliver()
    assert c.leaders() == ["a"]
    assert log_of(1) == a.image.entries[:1]
