"""The entry point: contract with the driver, proposals, status, recovery."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core import validation
from raftcore.core.config import CoreConfig
from raftcore.core.effects import RefusalReason
from raftcore.core.errors import InvariantError, MisuseError, PeerViolationError
from raftcore.core.raft import Raft
from raftcore.core.state import CoreState
from raftcore.core.types import Configuration, Entry, EntryType, Position, WriteMark


def outcomes(effects: list[ef.Effect]) -> list[int | RefusalReason]:
    """Index of each accepted proposal, reason of each refused one, in order."""
    found: list[int | RefusalReason] = []
    for effect in effects:
        if isinstance(effect, ef.ProposalAccepted):
            found.append(effect.index)
        elif isinstance(effect, ef.ProposalRefused):
            found.append(effect.reason)
    return found


def restart(node: ManualNode, **changes: object) -> Raft:
    recovered = replace(node.image.recover(node.machine.index), **changes)  # type: ignore[arg-type]
    return Raft(CoreConfig("a"), recovered, random.Random(1), 0)


# -- contract ---------------------------------------------------------------------------------


def test_time_must_not_go_back() -> None:
    node = ManualCluster()["a"]
    node.raft.step(ev.Tick(5))
    with pytest.raises(MisuseError, match="time went back"):
        node.raft.step(ev.Tick(4))
    node.raft.step(ev.Tick(5))


def test_an_unknown_event_is_misuse() -> None:
    @dataclass(frozen=True, slots=True)
    class Stranger(ev.Event):
        pass

    with pytest.raises(MisuseError, match="not an event"):
        ManualCluster()["a"].raft.step(Stranger(0))


def test_the_completion_of_a_write_that_was_never_issued_is_misuse() -> None:
    node = ManualCluster()["a"]
    with pytest.raises(MisuseError, match="never issued"):
        node.raft.step(ev.WriteDurable(0, WriteMark(1, 0)))
    node.receive(msg.VoteRequest("b", 1, 0, 0))
    assert node.step(ev.WriteDurable(0, WriteMark(1, 1))) == [], "twice does no harm"


def test_misuse_half_way_through_a_step_stops_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    node = ManualCluster()["a"]

    def fail_late(_index: int) -> None:
        node.raft._s.set_hard_state(9, None)
        raise MisuseError("too late to refuse")

    monkeypatch.setattr(node.raft._s.log, "applied_to", fail_late)
    for _ in range(2):
        with pytest.raises(InvariantError, match="too late"):
            node.raft.step(ev.Applied(0, 0))
    with pytest.raises(InvariantError, match="too late"):
        node.raft.step(ev.Tick(0))


def test_a_peer_refused_half_way_through_a_step_is_no_matter_of_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever drives the core goes on after a violation: that must not be with half a step."""
    node = ManualCluster()["a"]

    def fail_late(s: CoreState, _m: msg.Message) -> None:
        s.set_hard_state(9, None)
        raise PeerViolationError("too late to refuse")

    monkeypatch.setattr(validation, "check", fail_late)
    for _ in range(2):
        with pytest.raises(InvariantError, match="after it had an effect: too late") as raised:
            node.receive(msg.Heartbeat("b", 1, 0, 0))
        assert isinstance(raised.value.__cause__, PeerViolationError)


def test_a_broken_assertion_stops_the_core_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    node = ManualCluster()["a"]

    def broken(_index: int) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(node.raft._s.log, "applied_to", broken)
    with pytest.raises(AssertionError, match="a bug"):
        node.raft.step(ev.Applied(0, 0))
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="a bug"):
        node.raft.step(ev.Tick(10**12))


def test_equal_seeds_and_events_give_equal_effects() -> None:
    runs = []
    for _ in range(2):
        c = ManualCluster()
        c.elect("b").propose(b"x")
        c.advance(3000)
        runs.append([node.effects for node in c.nodes.values()])
    assert runs[0] == runs[1]


# -- recovery ---------------------------------------------------------------------------------


def test_what_was_durable_is_there_after_a_restart() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.propose(b"x")
    c.deliver()
    before = leader.raft.status()
    leader.start()
    after = leader.raft.status()
    assert (after.term, after.vote, after.last_index) == (before.term, before.vote, 2)
    assert after.role == "follower"


def test_a_state_machine_ahead_of_the_log_means_that_the_log_went_back() -> None:
    node = ManualCluster(logs={"a": [1]})["a"]
    with pytest.raises(InvariantError, match="the log ends at 1"):
        restart(node, applied=2)
    with pytest.raises(InvariantError, match="the log ends at 1"):
        restart(node, commit_hint=2)


def test_a_state_machine_behind_the_log_can_not_be_started() -> None:
    node = ManualCluster()["a"]
    with pytest.raises(InvariantError, match="the state machine stands at 0"):
        restart(node, first_index=5, last_index=4, before_first=Position(1, 4))


def test_the_commit_hint_is_taken_over() -> None:
    node = ManualCluster(logs={"a": [1, 1]})["a"]
    assert restart(node, commit_hint=2).commit_index == 2


# -- proposals --------------------------------------------------------------------------------


def test_proposals_are_refused_where_nobody_leads() -> None:
    c = ManualCluster()
    assert outcomes(c["b"].propose(b"x")) == [RefusalReason.NOT_LEADER]
    c.elect("a")
    c.advance(100)
    (refusal,) = c["b"].propose(b"x")
    assert refusal == ef.ProposalRefused(0, RefusalReason.NOT_LEADER, "a")


def test_a_batch_gets_consecutive_positions_in_one_write() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    effects = leader.propose(b"x", b"y", b"z")
    assert outcomes(effects) == [2, 3, 4]
    assert sum(isinstance(e, ef.Persist) for e in effects) == 1


def test_uncommitted_bytes_are_bounded_and_one_proposal_is_always_possible() -> None:
    """Rule I20."""
    c = ManualCluster(max_uncommitted_bytes=200)
    leader = c.elect("a")
    assert outcomes(leader.propose(b"x" * 1000, b"y")) == [2, RefusalReason.OVERLOADED]
    assert outcomes(leader.propose(b"z")) == [RefusalReason.OVERLOADED]
    c.deliver()
    assert leader.raft.status().uncommitted_bytes == 0
    assert outcomes(leader.propose(b"z")) == [3]


def test_a_leader_whose_own_disk_hangs_refuses_although_others_commit() -> None:
    """Rule I20: what waits for the leader's own disk is in its memory, committed or not."""
    c = ManualCluster(max_uncommitted_bytes=1000)
    leader = c.elect("a")
    leader.hold_disk = True
    accepted = refused = 0
    for _ in range(30):
        for outcome in outcomes(leader.propose(b"x" * 36)):
            accepted += isinstance(outcome, int)
            refused += outcome is RefusalReason.OVERLOADED
        c.deliver()
    assert leader.raft.commit_index == leader.raft.status().last_index == 1 + accepted
    assert (accepted, refused) == (10, 20)
    leader.flush()
    assert leader.raft.status().uncommitted_bytes == 0
    assert outcomes(leader.propose(b"y")) == [12]


def test_rule_51_a_deposed_leader_says_nothing_about_what_it_had_accepted() -> None:
    """Accepted proposals are neither refused nor failed later: the outcome is unknown."""
    c = ManualCluster()
    leader = c.elect("a")
    c.cut("a", "c")
    accepted = outcomes(leader.propose(b"one"))
    c.deliver(lambda to, m: to == "b" or isinstance(m, msg.VoteRequest))
    c.isolate("a")
    leader.propose(b"two")
    leader.effects.clear()
    leader.receive(msg.HeartbeatReply("c", 5, 0))
    assert outcomes(leader.effects) == []
    assert [e.role for e in leader.effects if isinstance(e, ef.LeadershipChanged)] == ["follower"]
    c.drop()
    c.set_time(10**9)
    c["b"].receive(msg.HeartbeatReply("c", 5, 0))
    c["b"].time_out()
    c.deliver()
    assert c["b"].raft.is_leader
    c.heal()
    c.advance(300)
    data = [e.data for e in leader.image.entries if e.type is EntryType.COMMAND]
    assert data == [b"one"], "the successor committed the one and dropped the other"
    assert accepted == [2]


# -- effects ----------------------------------------------------------------------------------


def test_the_write_comes_before_the_messages_that_wait_for_it() -> None:
    effects = ManualCluster()["a"].receive(msg.VoteRequest("b", 1, 0, 0))
    kinds = [type(e) for e in effects]
    assert kinds.index(ef.Persist) < kinds.index(ef.Send)


def test_marks_of_messages_need_not_ascend() -> None:
    """A driver that holds messages back must not conclude from one mark to the next."""
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.receive(msg.Heartbeat("b", 1, 0, 0))
    entries = (Entry(1, 1, EntryType.COMMAND, b"x"),)
    node.receive(msg.AppendRequest("b", 1, 0, 0, 0, 1, 0, entries))
    node.receive(msg.Heartbeat("b", 1, 0, 0))
    marks = [e.after and e.after.sequence for e in node.effects if isinstance(e, ef.Send)]
    assert marks == [1, 2, 1]


def test_leadership_changes_are_announced_once() -> None:
    c = ManualCluster()
    c.elect("a")
    c.advance(1000)
    seen = [
        (e.role, e.term, e.leader_id) for e in c["a"].effects if isinstance(e, ef.LeadershipChanged)
    ]
    assert seen == [("pre_candidate", 0, None), ("candidate", 1, None), ("leader", 1, "a")]
    seen = [
        (e.role, e.term, e.leader_id) for e in c["b"].effects if isinstance(e, ef.LeadershipChanged)
    ]
    assert seen == [("follower", 1, None), ("follower", 1, "a")]


# -- status -----------------------------------------------------------------------------------


def test_status_is_a_picture_of_everything() -> None:
    c = ManualCluster(learners="z")
    leader = c.elect("a")
    leader.propose(b"x")
    c.deliver()
    status = leader.raft.status()
    assert (status.node_id, status.role, status.term, status.vote) == ("a", "leader", 1, "a")
    assert (status.voters, status.learners) == (("a", "b", "c"), ("z",))
    assert (status.last_index, status.commit_index, status.applied_index) == (2, 2, 2)
    assert [p.node_id for p in status.peers] == ["b", "c", "z"]
    assert {p.paused_because for p in status.peers} == {None}
    assert status.not_leader_because is None
    follower = c["b"].raft
    assert follower.status().leader_contact_age_ms == 0
    assert (follower.leader_id, follower.term, follower.is_leader) == ("a", 1, False)
    assert (follower.commit_index, follower.applied_index) == (2, 2)
    assert isinstance(follower.configuration, Configuration)
    leader.propose(b"y")
    assert {p.inflight_messages for p in leader.raft.status().peers} == {1}


def test_what_is_asked_after_every_step_is_what_the_status_says() -> None:
    c = ManualCluster()
    leader, follower = c.elect("a"), c["b"]
    leader.hold_disk = True
    leader.propose(b"x" * 100)
    leader.read(1)
    follower.read(2)
    for node in (leader, follower):
        raft, status = node.raft, node.raft.status()
        assert raft.role.value == status.role
        assert raft.first_index == status.first_index == 1
        assert raft.durable_index == status.durable_index == 1
        assert raft.uncommitted_bytes == status.uncommitted_bytes
        assert raft.pending_reads == status.pending_reads == 1
        sent = [peer.inflight_messages for peer in status.peers]
        assert raft.inflight_messages == max(sent, default=0)
    assert leader.raft.uncommitted_bytes == 164
    assert (leader.raft.inflight_messages, follower.raft.inflight_messages) == (1, 0)


def test_status_names_an_unanswered_probe() -> None:
    c = ManualCluster()
    c.isolate("b")
    leader = c.elect("a")
    reasons = {p.node_id: p.paused_because for p in leader.raft.status().peers}
    assert reasons == {"b": "a probe is unanswered", "c": None}


def test_the_next_deadline_of_a_leader_covers_heartbeat_quorum_and_transfer() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    assert leader.raft.next_deadline_ns == leader.now_ns + 60 * 10**6
    started = leader.now_ns
    leader.step(ev.TransferRequested(leader.now_ns, "b"))
    c.isolate("a")
    deadlines = []
    for _ in range(5):
        leader.time_out()
        deadlines.append(leader.now_ns - started)
    assert deadlines == [n * 10**6 for n in (60, 120, 180, 240, 300)]
