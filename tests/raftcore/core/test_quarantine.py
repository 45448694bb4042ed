"""Nodes whose disk went back: quarantine, and the alarm when nobody noticed (D3)."""

from __future__ import annotations

import copy

import pytest

from jepsen_like.sim import SimOptions, run_seed
from jepsen_like.sim.manual import ManualCluster, ManualNode
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core import quarantine
from raftcore.core.config import MS
from raftcore.core.effects import RefusalReason
from raftcore.core.messages import Health, Message
from raftcore.core.progress import Progress
from raftcore.core.raft import PeerStatus

QUARANTINED = Health(quarantined=True)


def peer(node: ManualNode, name: str) -> PeerStatus:
    return next(p for p in node.raft.status().peers if p.node_id == name)


def released(node: ManualNode) -> list[int]:
    return [e.read_id for e in node.effects if isinstance(e, ef.ReadReleased)]


def endings(node: ManualNode) -> list[int]:
    return [e.index for e in node.effects if isinstance(e, ef.EndQuarantine)]


def alarms(node: ManualNode) -> list[ef.FollowerRegressed]:
    return [e for e in node.effects if isinstance(e, ef.FollowerRegressed)]


def is_release(_to: str, m: Message) -> bool:
    return isinstance(m, msg.Heartbeat) and m.release_index > 0


def says_quarantined(m: Message) -> bool:
    return isinstance(m, msg.AppendReply | msg.HeartbeatReply) and m.health.quarantined


def lose_suffix(c: ManualCluster, name: str, keep: int) -> ManualNode:
    """That node crashes, and starts again with what its disk held earlier; FLOOR tells."""
    node = c[name]
    node.image.roll_back(keep)
    node.start()
    assert node.raft.quarantined
    return node


def wiped(absent: str | None = "c", keep: int = 1) -> tuple[ManualCluster, ManualNode, ManualNode]:
    """a leads; a and b hold three entries that are committed, c (if absent) only the first; then
    b loses what came after ``keep``."""
    c = ManualCluster()
    leader = c.elect("a")
    if absent:
        c.isolate(absent)
    leader.propose(b"x")
    leader.propose(b"y")
    c.deliver()
    assert leader.raft.commit_index == 3
    return c, leader, lose_suffix(c, "b", keep)


# -- what it must not do ------------------------------------------------------------------------


@pytest.mark.parametrize("pre_vote", [True, False])
@pytest.mark.parametrize("transfer", [True, False])
def test_quarantine_votes_for_nobody(*, pre_vote: bool, transfer: bool) -> None:
    _, _, b = wiped()
    b.outbox.clear()
    b.receive(msg.VoteRequest("c", 7, 9, 6, pre_vote=pre_vote, transfer=transfer))
    ((_, reply),) = b.outbox
    assert isinstance(reply, msg.VoteReply)
    assert not reply.granted
    assert b.raft.term == (1 if pre_vote else 7), "the term is adopted like anywhere"


def test_quarantine_does_not_campaign_nor_take_leadership_over() -> None:
    _, _, b = wiped()
    for _ in range(3):
        b.time_out()
    b.receive(msg.TimeoutNow("a", 1))
    assert (b.raft.term, b.raft.status().role) == (1, "follower")
    assert b.outbox == []
    because = b.raft.status().not_leader_because
    assert because == (
        "it is in quarantine: its disk went back; "
        "no quorum without it has confirmed yet what it must hold"
    )


def test_quarantine_of_a_lone_voter_leaves_no_leader() -> None:
    c = ManualCluster("a", logs={"a": [1, 1]})
    a = lose_suffix(c, "a", 1)
    for _ in range(3):
        a.time_out()
    assert not a.raft.is_leader


def test_quarantine_serves_no_read_and_asks_for_none() -> None:
    c, _, b = wiped()
    b.receive(msg.Heartbeat("a", 1, 0, 0))
    b.outbox.clear()
    b.read(1)
    refusal = b.effects[-1]
    assert refusal == ef.ReadRefused(1, RefusalReason.NOT_LEADER, "a")
    assert b.outbox == []
    b.receive(msg.ReadIndexRequest("c", 1, 9))
    assert b.outbox == [("c", msg.ReadIndexReply("b", 1, 9, -1))]
    assert c.leaders() == ["a"]


def test_quarantine_follows_and_appends_like_any_other() -> None:
    c, leader, b = wiped()
    c.advance(200)
    assert b.image.last_index == 3
    assert peer(leader, "b").match_index == 3
    assert peer(leader, "b").quarantined


# -- what it counts for -------------------------------------------------------------------------


def test_quarantine_counts_for_no_commit_and_no_read_and_no_contact() -> None:
    c, leader, b = wiped()
    c.advance(100)
    contact_ns = leader.raft.quorum_contact_ns
    c.advance(60)
    assert leader.raft.quorum_contact_ns == contact_ns
    assert b.raft.quorum_contact_ns is None
    leader.propose(b"z")
    leader.read(1)
    c.deliver()
    assert b.image.last_index == 4
    assert leader.raft.commit_index == 3
    assert released(leader) == []
    c.advance(300)
    assert c.leaders() == [], "out of touch with a quorum that counts"


def test_quarantine_of_one_loses_no_acknowledged_write_when_the_leader_goes() -> None:
    """b had acknowledged what it lost; with c, which never had it, it must elect nobody."""
    c, leader, b = wiped()
    c.heal()
    c.isolate("a")
    c.advance(3000)
    assert c.leaders() == ["a"] or c.leaders() == []
    assert c["c"].raft.term == b.raft.term == 1
    c.heal()
    c.advance(2000)
    (name,) = c.leaders()
    assert name == "a"
    assert [n.image.entries[1].data for n in c.nodes.values()] == [b"x"] * 3
    assert not b.raft.quarantined
    assert leader.raft.commit_index == b.raft.commit_index


def test_quarantine_ended_too_early_would_lose_an_acknowledged_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scenario before proves something: here the leader names too low an index."""
    monkeypatch.setattr(quarantine, "release_index", lambda *_: 1)
    c, leader, b = wiped()
    leader.time_out()
    c.deliver(lambda _to, m: not isinstance(m, msg.AppendRequest))
    b.receive(msg.AppendRequest("a", 1, 1, 1, 0, 9, 0, ()))
    assert not b.raft.quarantined
    c.heal()
    c.isolate("a")
    c.drop()
    c.advance(3000)
    names = [name for name in c.leaders() if name != "a"]
    assert len(names) == 1
    assert c[names[0]].image.entries[1].data != b"x"


# -- the way out --------------------------------------------------------------------------------


def test_quarantine_ends_when_a_quorum_without_it_confirms_what_it_holds() -> None:
    c, leader, b = wiped()
    c.advance(200)
    assert b.raft.quarantined, "a alone is no quorum"
    c.heal()
    c.advance(300)
    assert not b.raft.quarantined
    assert endings(b) == [3], "once"
    assert not b.image.quarantined
    leader.propose(b"z")
    c.isolate("c")
    c.deliver()
    assert leader.raft.commit_index == 4, "b counts again"
    b.read(5)
    c.deliver()
    assert released(b) == [5]


def test_quarantine_stays_as_long_as_there_is_no_such_quorum_through_restarts_too() -> None:
    c, _, b = wiped()
    for _ in range(3):
        c.advance(1000)
        assert b.raft.quarantined
        b.start()
    assert endings(b) == []


def test_quarantine_ends_only_when_what_was_confirmed_is_durable_and_known_to_match() -> None:
    c, leader, b = wiped(absent=None)
    b.hold_disk = True
    c.advance(200)
    assert b.raft.quarantined
    because = b.raft.status().not_leader_because
    assert because == (
        "it is in quarantine: its disk went back; it must hold the leader's log up to 3"
    )
    b.hold_disk = False
    b.flush()
    c.deliver(lambda _to, m: not isinstance(m, msg.Heartbeat))
    assert b.image.last_index == 3
    c.advance(100)
    assert not b.raft.quarantined
    assert leader.raft.is_leader


def test_quarantine_is_not_ended_by_a_log_that_is_only_long_enough() -> None:
    """What is there may be of a history that was truncated since."""
    c = ManualCluster(logs={"b": [1, 1, 1, 1]})
    b = lose_suffix(c, "b", 3)
    b.receive(msg.Heartbeat("a", 2, 3, 1, 3, release_index=3))
    assert b.raft.quarantined
    assert b.raft.commit_index == 0


def test_quarantine_that_its_leader_takes_for_the_one_before_forgets_its_word_too() -> None:
    """b was let out, acknowledged more and went back again, and a heard of none of it but that."""
    c, leader, b = wiped(absent=None)
    while b.raft.quarantined:
        c.set_time(c.now_ns + 60 * MS)
        leader.tick()
        c.deliver(lambda to, m: to != "a" or m.sender != "b" or says_quarantined(m))
    c.drop()
    held = peer(leader, "b").match_index
    assert (held, peer(leader, "b").quarantined) == (3, True)
    b.image.commit_hint = 2
    b = lose_suffix(c, "b", 2)
    leader.receive(msg.HeartbeatReply("b", 1, 0, QUARANTINED))
    b.receive(msg.Heartbeat("a", 1, 2, 0, 2, release_index=2))
    assert b.raft.quarantined, "nothing has shown a yet where this run stands"
    c.advance(400)
    assert not b.raft.quarantined
    assert alarms(leader) == []
    assert peer(leader, "b").match_index == b.image.last_index == 3


def test_quarantine_names_no_way_out_before_an_entry_of_the_term_is_committed() -> None:
    c, _, b = wiped()
    c.heal()
    c.isolate("a")
    leader = c.nodes["a"]
    c.advance(1000)
    c.heal()
    term = leader.raft.term
    c.deliver(lambda _to, m: not isinstance(m, msg.AppendReply))
    while not leader.raft.is_leader:
        c.set_time(max(c.now_ns, leader.raft.next_deadline_ns))
        leader.tick()
        c.deliver(lambda _to, m: not isinstance(m, msg.AppendReply))
    leader.time_out()
    c.deliver(lambda _to, m: not isinstance(m, msg.AppendReply))
    leader.time_out()
    assert leader.raft.term > term
    assert not any(is_release(*pair) for pair in c.collect())
    assert b.raft.quarantined
    c.advance(300)
    assert not b.raft.quarantined


def test_quarantine_forgets_what_the_peer_had_acknowledged_before() -> None:
    """Its old word must not count once it is let out: it was let out for less."""
    c = ManualCluster()
    leader = c.elect("a")
    for data in (b"x", b"y", b"z"):
        leader.propose(data)
    c.deliver()
    assert peer(leader, "b").match_index == 4
    b = lose_suffix(c, "b", 1)
    late = msg.AppendReply("b", 1, True, 4, 0, 0, leader.raft._s.leadership.sequence, 0)  # type: ignore[union-attr]
    leader.receive(msg.HeartbeatReply("b", 1, 0, QUARANTINED))
    assert peer(leader, "b").match_index == 0
    leader.receive(late)
    assert peer(leader, "b").match_index == 0, "it answers the run before"
    leader.receive(msg.SnapshotReply("b", 1, 4, 0, True, late.sequence, 0))
    assert peer(leader, "b").match_index == 0
    c.advance(300)
    assert peer(leader, "b").match_index == 4
    assert not b.raft.quarantined
    assert alarms(leader) == []


def test_a_heartbeat_with_the_commit_of_the_run_before_does_not_stop_a_node_in_quarantine() -> None:
    """The leader does not know yet that what was acknowledged is gone."""
    _, _, b = wiped(keep=2)
    hint = b.raft.commit_index
    assert hint == 1
    b.receive(msg.Heartbeat("a", 1, 3, 1, 3))
    assert b.raft.commit_index == hint
    b.receive(msg.AppendRequest("a", 1, 2, 1, 0, 9, 0, ()))
    b.receive(msg.Heartbeat("c", 2, 2, 1, 3))
    assert b.raft.commit_index == hint, "that was shown by another leader"
    b.receive(msg.AppendRequest("c", 2, 2, 1, 0, 9, 0, ()))
    b.receive(msg.Heartbeat("c", 2, 3, 1, 3))
    assert b.raft.commit_index == 2, "as far as this run has seen that the logs agree"


def test_a_node_in_quarantine_is_no_target_of_a_transfer() -> None:
    c = ManualCluster("ab")
    leader = c.elect("a")
    lose_suffix(c, "b", 0)
    c.advance(100)
    leader.step(ev.TransferRequested(leader.now_ns, "b"))
    leader.step(ev.TransferRequested(leader.now_ns))
    details = [e.detail for e in leader.effects if isinstance(e, ef.TransferFinished)]
    assert details == [
        "the disk of b is not healthy",
        "there is no other voter to hand over to",
    ]


# -- a leader that was deposed ------------------------------------------------------------------


def put_back() -> tuple[ManualCluster, ManualNode, ManualNode]:
    """x leads by n's vote, and n's disk goes back to before it, FLOOR and all; l, which led then,
    has heard of nothing and hears nobody but n."""
    c = ManualCluster("lnx")
    leader, n, x = c.elect("l"), c["n"], c["x"]
    leader.propose(b"old")
    c.deliver()
    before = copy.deepcopy(n.image)
    c.isolate("l")
    c.set_time(c.now_ns + 299 * MS)
    leader.now_ns -= 299 * MS  # its clock stands still meanwhile
    for node in (n, x):
        node.now_ns += 400 * MS
    while not x.raft.is_leader:
        x.time_out()
        c.deliver(lambda to, _m: to != "l")
    x.propose(b"acknowledged")
    c.deliver(lambda to, _m: to != "l")
    c.drop()
    assert (x.raft.commit_index, n.raft.commit_index) == (4, 4)
    n.image = before
    n.image.quarantined = True
    c.heal()
    c.isolate("x")
    return c, leader, n


@pytest.mark.parametrize("final", [True, False])
def test_quarantine_is_not_ended_by_a_leader_that_was_deposed(*, final: bool) -> None:
    """Either net holds by itself: that nothing vouches for n's vote, and that nobody but n
    follows l any more."""
    c, leader, n = put_back()
    n.image.quarantine_final = final
    n.start()
    while leader.raft.is_leader:
        leader.time_out()
        c.deliver(lambda to, _m: to in "ln")
    assert n.raft.term == leader.raft.term == 1
    assert n.image.last_index == leader.image.last_index
    assert n.raft.quarantined
    c.advance(2000)
    assert c["x"].raft.commit_index == 4
    assert c["x"].image.entries[-1].data == b"acknowledged"
    assert [name for name in c.leaders() if name != "x"] == []


def test_quarantine_that_is_final_never_ends_and_says_what_to_do() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.propose(b"x")
    c.deliver()
    c["b"].image.quarantine_final = True
    b = lose_suffix(c, "b", 1)
    c.advance(2000)
    assert b.raft.status().quarantine_final
    assert (b.raft.quarantined, endings(b)) == (True, [])
    assert b.image.last_index == leader.image.last_index, "it follows like any other"
    assert b.raft.status().not_leader_because == (
        "it is in quarantine: its disk went back; "
        "nothing vouches for how it voted: remove it and let it join again"
    )


def test_the_way_out_is_named_only_after_a_quorum_answered_what_was_sent_since() -> None:
    c, leader, _ = wiped(absent=None)
    leader.receive(msg.HeartbeatReply("c", 1, 0))
    leader.receive(msg.HeartbeatReply("b", 1, 0, QUARANTINED))
    leader.time_out()
    assert not any(is_release(*pair) for pair in c.collect()), "c spoke before"
    leader.receive(msg.HeartbeatReply("c", 1, 1))
    leader.time_out()
    assert any(is_release(*pair) for pair in c.collect())


# -- the second net -----------------------------------------------------------------------------


def forgetful() -> tuple[ManualCluster, ManualNode]:
    """b lost an entry that it had acknowledged, and nobody noticed."""
    c = ManualCluster()
    leader = c.elect("a")
    leader.propose(b"x")
    c.deliver()
    c["b"].image.roll_back(1)
    c["b"].image.end_quarantine()
    c["b"].start()
    leader.propose(b"y")
    c.deliver(lambda _to, m: not isinstance(m, msg.Heartbeat))
    return c, leader


def test_a_peer_that_went_back_unnoticed_raises_the_alarm_and_counts_no_more() -> None:
    c, leader = forgetful()
    assert alarms(leader) == [ef.FollowerRegressed("b", 2)]
    assert peer(leader, "b").regressed
    c.isolate("c")
    leader.propose(b"z")
    leader.read(1)
    for _ in range(4):
        leader.receive(msg.HeartbeatReply("b", 1, 1))
    assert leader.raft.commit_index == 3
    assert released(leader) == [], "neither do its echoes"
    c.set_time(c.now_ns + 300 * MS)
    leader.receive(msg.HeartbeatReply("b", 1, 1))
    leader.tick()
    assert not leader.raft.is_leader, "nor does it keep the leader in touch"
    assert len(alarms(leader)) == 1


def test_a_peer_that_went_back_counts_again_after_its_quarantine() -> None:
    c, leader = forgetful()
    lose_suffix(c, "b", 0)
    c.advance(400)
    assert not peer(leader, "b").regressed
    assert peer(leader, "b").match_index == 3
    assert not c["b"].raft.quarantined


@pytest.mark.parametrize("seed", range(12))
def test_no_alarm_under_reordering_and_duplication(seed: int) -> None:
    options = SimOptions(
        nodes=3, drop=0.1, duplicate=0.4, delay_ms=20.0, heavy_tail=True, crash_ms=700,
        window=64, snapshot_every=20, rollback_ms=500 if seed % 2 else 0, write_every_ms=5,
    )  # fmt: skip
    result = run_seed(seed, options)
    assert result.failure is None, result.failure


#: Its leader does not send again what it believes to have been acknowledged; or it goes on as if
#: it had lost nothing.
UNSAFE = {"alarm", "I6", "I7", "I9", "I11", "D3", "InvariantError"}
MUTANTS = {"old word stands": {"liveness", *UNSAFE}, "votes": UNSAFE}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulation_notices_a_broken_quarantine(
    mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mutant == "old word stands":
        monkeypatch.setattr(Progress, "restart", lambda *_: None)
    else:
        monkeypatch.setattr("raftcore.core.quarantine.begin", lambda _s, **_: None)
    options = SimOptions(
        nodes=3, drop=0.05, delay_ms=6.0, crash_ms=500, crash_new_leader=0.3, partition_ms=400,
        rollback_ms=150, write_every_ms=5, disk_ms=4.0,
    )  # fmt: skip
    for seed in range(60):
        result = run_seed(seed, options)
        if result.failure is not None:
            assert result.invariant in MUTANTS[mutant], result.failure
            return
    pytest.fail("60 seeds and nobody noticed")
