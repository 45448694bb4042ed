"""Leadership transfer (rules 11 and 50)."""

from __future__ import annotations

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.effects import RefusalReason
from raftcore.core.types import SnapshotMeta


def transfer(node: ManualNode, target: str | None = None) -> None:
    node.step(ev.TransferRequested(node.now_ns, target))


def outcomes(node: ManualNode) -> list[tuple[bool, str | None, str]]:
    found = [e for e in node.effects if isinstance(e, ef.TransferFinished)]
    return [(e.succeeded, e.target, e.detail) for e in found]


def refusals(effects: list[ef.Effect]) -> list[RefusalReason]:
    return [e.reason for e in effects if isinstance(e, ef.ProposalRefused)]


def is_timeout_now(_to: str, message: msg.Message) -> bool:
    return isinstance(message, msg.TimeoutNow)


@pytest.mark.parametrize("target", [None, "b", "c"])
def test_leadership_moves_without_waiting_for_a_timeout(target: str | None) -> None:
    c = ManualCluster()
    leader = c.elect("a")
    transfer(leader, target)
    c.deliver()
    (new,) = c.leaders()
    assert new == target or target is None
    assert c[new].raft.term == 2
    assert outcomes(leader) == [(True, new, "the target leads a later term")]


def test_a_target_that_lags_is_brought_up_to_date_first() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    c.isolate("b")
    leader.propose(b"x")
    c.deliver()
    c.heal()
    transfer(leader, "b")
    assert not any(is_timeout_now(*pair) for pair in c.collect())
    c.advance(200)
    assert c.leaders() == ["b"]
    assert c["b"].image.entries[1].data == b"x"


def test_the_member_furthest_along_and_in_touch_is_chosen() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    c.isolate("c")
    leader.propose(b"x")
    c.deliver()
    transfer(leader)
    assert [to for to, m in c.collect() if is_timeout_now(to, m)] == ["b"]


def test_writes_are_refused_while_it_is_under_way() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    transfer(leader, "b")
    assert refusals(leader.propose(b"x")) == [RefusalReason.TRANSFERRING]


@pytest.mark.parametrize("target", ["a", "zz", "l"])
def test_a_target_that_can_not_lead_is_refused(target: str) -> None:
    c = ManualCluster(learners="l")
    leader = c.elect("a")
    transfer(leader, target)
    assert outcomes(leader) == [(False, target, "there is no other voter to hand over to")]
    assert refusals(leader.propose(b"x")) == []


def test_nobody_to_hand_over_to() -> None:
    c = ManualCluster("a", learners="l")
    c["a"].time_out()
    transfer(c["a"])
    assert [o[0] for o in outcomes(c["a"])] == [False]


def test_only_a_leader_hands_over_and_only_once_at_a_time() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    transfer(c["b"], "c")
    assert outcomes(c["b"]) == [(False, "c", "this node does not lead")]
    transfer(leader, "b")
    transfer(leader, "c")
    assert outcomes(leader) == [(False, "c", "a transfer is under way already")]
    finished = [e for e in (*c["b"].effects, *leader.effects) if isinstance(e, ef.TransferFinished)]
    told = [e.refusal for e in finished]
    assert told == [ef.TransferRefusal.NOT_LEADER, ef.TransferRefusal.IN_PROGRESS]


@pytest.mark.parametrize(
    "step", ["catching up", "order lost", "target dead", "deposed", "no quorum"]
)
def test_rule_50_a_transfer_that_fails_anywhere_leaves_no_flag_behind(step: str) -> None:
    c = ManualCluster()
    leader = c.elect("a")
    if step == "catching up":
        c.isolate("b")
        leader.propose(b"x")
        c.deliver()
    transfer(leader, "b")
    if step == "order lost":
        assert c.drop(is_timeout_now) == 1
    elif step in ("target dead", "no quorum"):
        c.drop()
        c.isolate("b" if step == "target dead" else "a")
    elif step == "deposed":
        c.drop()
        leader.receive(msg.HeartbeatReply("c", 7, 0))
    c.advance(1000)
    (outcome,) = outcomes(leader)
    assert outcome[0] == (step == "deposed" and c.leaders() == ["b"])
    c.heal()
    c.drop()
    c.advance(2000)
    (new,) = c.leaders()
    assert refusals(c[new].propose(b"after")) == []
    if new != "a":
        transfer(c[new], "a")
        c.advance(200)
        assert refusals(leader.propose(b"again")) == []
    c.advance(200)
    assert len(outcomes(leader)) == 1


def test_a_transfer_whose_leadership_ends_without_a_new_term_has_not_succeeded() -> None:
    """It used to be reported as a success when check-quorum ended the leadership."""
    c = ManualCluster()
    leader = c.elect("a")
    c.set_time(leader.now_ns + 290 * MS)
    transfer(leader, "b")
    c.isolate("a")
    c.advance(20)
    assert not leader.raft.is_leader
    assert outcomes(leader) == [], "the target may lead by now"
    while not outcomes(leader):
        leader.time_out()
    (finished,) = [e for e in leader.effects if isinstance(e, ef.TransferFinished)]
    detail = "leadership is over and no new leader is known yet"
    assert finished == ef.TransferFinished(False, "b", detail, unknown=True)
    assert leader.now_ns - c.now_ns <= 600 * MS


def test_a_term_that_somebody_else_wins_is_no_success() -> None:
    """Any new term used to be taken for the target's."""
    c = ManualCluster()
    leader = c.elect("a")
    transfer(leader, "b")
    assert c.drop(is_timeout_now) == 1
    leader.receive(msg.HeartbeatReply("c", 5, 0))
    assert outcomes(leader) == []
    leader.receive(msg.Heartbeat("c", 5, 0, 0))
    assert outcomes(leader) == [(False, "b", "c leads a later term instead")]


def test_a_transfer_whose_leadership_ends_before_the_order_has_failed() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    c.isolate("b")
    leader.propose(b"x")
    transfer(leader, "b")
    leader.receive(msg.HeartbeatReply("c", 5, 0))
    assert outcomes(leader) == [(False, "b", "leadership was lost before the hand-over")]


@pytest.mark.parametrize("sent", [True, False])
def test_a_transfer_given_up_after_the_order_may_happen_yet(sent: bool) -> None:
    c = ManualCluster()
    leader = c.elect("a")
    if not sent:
        c.isolate("b")
        leader.propose(b"x")
        c.deliver()
    transfer(leader, "b")
    c.drop(is_timeout_now)
    c.advance(310)
    (finished,) = [e for e in leader.effects if isinstance(e, ef.TransferFinished)]
    assert (finished.succeeded, finished.unknown) == (False, sent)
    assert leader.raft.is_leader


@pytest.mark.parametrize("sent", [True, False])
def test_a_transfer_that_is_aborted_ends_at_once_and_writes_are_taken_again(sent: bool) -> None:
    c = ManualCluster()
    leader = c.elect("a")
    if not sent:
        c.isolate("b")
        leader.propose(b"x")
        c.deliver()
    transfer(leader, "b")
    assert c.drop(is_timeout_now) == sent
    leader.step(ev.TransferAborted(leader.now_ns))
    (finished,) = [e for e in leader.effects if isinstance(e, ef.TransferFinished)]
    assert finished == ef.TransferFinished(False, "b", "the transfer was aborted", unknown=sent)
    assert refusals(leader.propose(b"y")) == []
    leader.step(ev.TransferAborted(leader.now_ns))
    c.heal()
    c.advance(310)
    assert c.leaders() == ["a"]
    assert len(outcomes(leader)) == 1, "aborted once"
    transfer(leader, "c")
    c.deliver()
    assert c.leaders() == ["c"]


def test_an_order_that_was_sent_is_obeyed_although_the_transfer_was_aborted() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    transfer(leader, "b")
    leader.step(ev.TransferAborted(leader.now_ns))
    c.deliver()
    assert c.leaders() == ["b"]
    assert [o[0] for o in outcomes(leader)] == [False]


@pytest.mark.parametrize("name", ["a", "b"])
def test_where_no_transfer_is_under_way_there_is_none_to_abort(name: str) -> None:
    c = ManualCluster()
    c.elect("a")
    node = c[name]
    node.step(ev.TransferAborted(node.now_ns))
    assert outcomes(node) == []
    assert c.leaders() == ["a"]


def test_a_late_order_to_campaign_is_obeyed_by_followers_that_can_only() -> None:
    c = ManualCluster("ab", learners="z")
    for name, role in (("b", "candidate"), ("z", "follower")):
        node = c[name]
        node.receive(msg.TimeoutNow("a", 1))
        assert node.raft.status().role == role
    busy = ManualCluster()["b"]
    meta = SnapshotMeta(5, 1, b"", ManualCluster().configuration, 10, b"")
    whole = msg.SnapshotChunk("a", 1, meta, 0, b"x" * 10, 1, 0)
    busy.raft.step(ev.MessageReceived(0, whole))  # it is being installed from now on
    busy.receive(msg.TimeoutNow("a", 1))
    assert busy.raft.status().role == "follower"
    busy.receive(msg.TimeoutNow("a", 0))
    assert busy.raft.term == 1


def test_a_node_with_a_part_of_a_snapshot_can_still_take_over() -> None:
    """A transfer to such a node used to fail for ever, also when appends had overtaken the part."""
    node = ManualCluster()["b"]
    meta = SnapshotMeta(5, 1, b"", ManualCluster().configuration, 10, b"")
    node.receive(msg.SnapshotChunk("a", 1, meta, 0, b"x", 1, 0))
    node.receive(msg.TimeoutNow("a", 1))
    assert node.raft.status().role == "candidate"
