"""Rules 37 to 43, and what else a configuration must survive (thesis chapter 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from jepsen_like.sim.machine import ChainMachine
from jepsen_like.sim.manual import (
    ManualCluster,
    ManualNode,
    configuration_of,
    members_of,
    snapshot_of,
)
from jepsen_like.sim.seen import details, outcomes, peers, removals, short, stages
from raftcore.core import change
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.effects import MembershipOutcome
from raftcore.core.types import EntryType, Member

Wanted = Callable[[str, msg.Message], bool]


def led(
    voters: str = "abc", learners: str = "", **settings: int
) -> tuple[ManualCluster, ManualNode]:
    c = ManualCluster(voters, learners=learners, **settings)
    return c, c.elect("a")


def to(*names: str) -> Wanted:
    return lambda node, _m: node in names


def is_order(_to: str, m: msg.Message) -> bool:
    return isinstance(m, msg.TimeoutNow)


# -- rule 37: not before something of the own term is committed ---------------------------------


def test_rule_37_no_change_before_an_entry_of_the_own_term_is_committed() -> None:
    c = ManualCluster()
    c["a"].time_out()
    c.deliver(lambda _to, m: isinstance(m, msg.VoteRequest | msg.VoteReply))
    assert c["a"].raft.is_leader
    c["a"].change("ab")
    assert outcomes(c["a"]) == [(1, MembershipOutcome.NOT_READY)]
    c.deliver()
    c["a"].change("ab", token=2)
    c.deliver()
    assert outcomes(c["a"])[1:] == [(2, MembershipOutcome.DONE)]


def test_rule_37_the_single_server_schedule_of_2015_loses_nothing() -> None:
    """Two leaders of different terms change the same four members by one server each. With single
    server changes the first one could commit with {a, d, e} what excludes what {b, c} committed."""
    c = ManualCluster("abcd")
    c.join("e")
    one = c.elect("a")
    c.deliver()
    one.change("abcde")
    c.deliver(to("a", "e"))
    for name in "bcd":
        c.cut("a", name)
    c.drop()
    c.run_until(lambda: len(c.leaders()) == 2 or (not one.raft.is_leader and bool(c.leaders())))
    two = c[next(name for name in c.leaders() if name != "a")]
    two.change("bcd")
    assert outcomes(two) == [(1, MembershipOutcome.NOT_READY)], "its own term comes first"
    c.deliver()
    two.change("bcd", token=2)
    c.deliver()
    two.propose(b"committed without a")
    c.deliver()
    assert outcomes(two)[1:] == [(2, MembershipOutcome.DONE)]
    committed = two.raft.commit_index
    # The first leader comes back to its newcomer and to one of the four.
    kept = next(name for name in "bcd" if c[name] is not two)
    c.heal()
    for name in set("bcd") - {kept}:
        c.cut("a", name)
        c.cut("e", name)
        c.cut(kept, name)
    for _ in range(20):
        c.advance(300)
        assert not one.raft.is_leader
        assert not c["e"].raft.is_leader
    c.heal()
    c.advance(3000)
    assert c[kept].image.entries[:committed] == two.image.entries[:committed]
    assert short(c[kept].raft.configuration) == "bcd"


# -- rules 38 and 39: in force on append, gone with its entry -----------------------------------


def test_rule_38_a_configuration_is_in_force_once_it_is_appended() -> None:
    c, a = led()
    a.change("ab")
    assert short(a.raft.configuration) == "ab/abc"
    c.deliver(to("b"))
    assert short(c["b"].raft.configuration) == "ab/abc"
    assert c["b"].raft.commit_index == 1


def test_rule_38_one_change_at_a_time() -> None:
    c, a = led()
    a.change("ab")
    a.change("ac", token=2)
    c.deliver(to("b", "a"))  # the joint configuration is committed, the final one is not
    a.change("ac", token=3)
    assert outcomes(a)[:1] == [(2, MembershipOutcome.IN_PROGRESS)]
    c.deliver()
    assert (1, MembershipOutcome.DONE) in outcomes(a)


def test_rule_39_a_truncated_configuration_goes_out_of_force_and_its_peers_with_it() -> None:
    c, a = led()
    c.isolate("a")
    a.change("abc", "l")
    assert peers(a) == "bcl"
    c.drop()
    c["b"].tick(c["b"].raft.next_deadline_ns + 0)
    c.advance(3000)
    (leader,) = [n for n in c.leaders() if n != "a"]
    c[leader].propose(b"x")
    c.heal()
    c.advance(1000)
    assert short(a.raft.configuration) == "abc"
    assert peers(a) == "bc"
    assert outcomes(a) == [(1, MembershipOutcome.UNKNOWN)]
    assert a.raft.configuration_index == 0


# -- rule 40 and the death of the leader at every stage -----------------------------------------


def reached(node: ManualNode, stage: str) -> bool:
    return short(node.raft.configuration) == stage


@pytest.mark.parametrize("known_to", ["", "b", "bc", "bcd"])
@pytest.mark.parametrize("stage", ["abc(d)!", "bcd/abc", "bcd"])
def test_rule_40_a_successor_finishes_what_it_finds(stage: str, known_to: str) -> None:
    """The leader, which is to be replaced by d, dies when it has sent ``stage`` to some."""
    c, a = led()
    c.join("d")
    c.lose = is_order  # it may not hand over, or it would be another leader that dies
    a.change("bcd")
    c.run_until(lambda: short(a.raft.configuration) == stage)
    c.deliver(lambda to, m: to in known_to and m.sender == "a")
    c.kill("a")
    c.drop()
    c.advance(4000)
    (leader,) = c.leaders()
    found = c[leader].raft.configuration
    if stage == "abc(d)!" and not known_to.strip("d"):
        assert short(found) == "abc"
        return
    assert short(found) == "bcd"
    c[leader].propose(b"x")
    c.advance(200)
    assert {c[n].raft.commit_index for n in "bcd"} == {c[leader].image.last_index}


def test_rule_40_joint_mode_is_not_left_before_the_successor_has_committed_it() -> None:
    c, a = led("abc")
    c.join("d")
    c.join("e")
    a.change("ade")
    c.run_until(lambda: short(a.raft.configuration) == "ade/abc")
    c.deliver(to("d"))
    c.kill("a")
    c.drop()
    d = c["d"]
    for other in "bc":
        c.cut("d", other)
        c.cut("e", other)
    c.advance(3000)
    assert not d.raft.is_leader, "d and e are a majority of the new voters only"
    c.heal()
    c.advance(3000)
    assert len(c.leaders()) == 1
    assert short(c[c.leaders()[0]].raft.configuration) == "ade"


# -- rule 41: a leader that loses its vote ------------------------------------------------------


def test_rule_41_a_leader_hands_over_before_it_is_removed() -> None:
    c, a = led()
    a.propose(b"in", b"flight")
    a.change("bc")
    a.propose(b"too")
    c.advance(300)
    (leader,) = c.leaders()
    assert leader in "bc"
    assert stages(c[leader]) == ["abc!", "bc/abc", "bc"]
    assert c[leader].image.entries[-1].term == 2
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    assert removals(a) == 1
    assert not [e for e in a.effects if isinstance(e, ef.TransferFinished)], "nobody asked for it"
    assert [e.data for e in c[leader].image.entries if e.type is EntryType.COMMAND] == [
        b"in", b"flight", b"too",
    ]  # fmt: skip


def test_rule_41_a_leader_that_can_not_hand_over_does_it_alone_and_steps_down() -> None:
    c, a = led()
    c.lose = is_order
    a.change("bc")
    c.run_until(lambda: short(a.raft.configuration) == "bc")
    assert a.raft.is_leader
    c.drop()
    c.lose = lambda _to, _m: False
    c.advance(700)
    assert removals(a) == 1
    assert c.leaders()
    assert "a" not in c.leaders()
    assert not [e for e in a.effects if isinstance(e, ef.TransferFinished)]


def test_rule_41_a_leader_whose_hand_over_is_aborted_finishes_the_change_itself() -> None:
    c, a = led()
    c.lose = is_order
    a.change("bc")
    c.run_until(lambda: "handed over" in (a.raft.status().change_waits_for or ""))
    a.step(ev.TransferAborted(a.now_ns))
    assert short(a.raft.configuration) == "bc/abc"
    c.run_until(lambda: short(a.raft.configuration) == "bc")
    assert not [e for e in a.effects if isinstance(e, ef.TransferFinished)], "nobody asked for it"


def test_rule_41_a_removed_leader_does_not_count_itself() -> None:
    c, a = led()
    c.lose = is_order
    a.change("bc")
    c.run_until(lambda: short(a.raft.configuration) == "bc")
    final = a.raft.configuration_index
    c.drop()
    c.isolate("c")
    c.advance(150)
    assert a.raft.commit_index < final, "a and b are no majority of b and c"
    assert c["b"].image.last_index == final
    c.heal()
    c.advance(1000)
    assert c["c"].raft.commit_index >= final


def test_rule_41_the_leader_of_two_is_removed_with_entries_in_flight() -> None:
    c, a = led("ab")
    a.propose(b"x")
    a.change("b")
    a.propose(b"y")
    c.advance(500)
    assert c.leaders() == ["b"]
    assert stages(c["b"]) == ["ab!", "b/ab", "b"]
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    c.kill("a")
    c["b"].propose(b"z")
    assert c["b"].raft.commit_index == c["b"].image.last_index
    assert [e.data for e in c["b"].image.entries if e.type is EntryType.COMMAND] == [
        b"x",
        b"y",
        b"z",
    ]


def test_rule_41_a_leader_is_demoted_to_a_learner() -> None:
    c, a = led()
    a.change("bc", "a")
    c.advance(1000)
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    assert a.raft.leader_id in ("b", "c")
    assert removals(a) == 0
    c.advance(3000)
    assert "a" not in c.leaders()


def test_rule_41_the_successor_is_found_within_two_election_timeouts() -> None:
    c, a = led()
    c.lose = lambda to, m: is_order(to, m) and a.raft.configuration.target is not None
    a.change("bc")
    c.run_until(lambda: short(a.raft.configuration) == "bc")
    c.run_until(lambda: not a.raft.is_leader)
    begun = c.now_ns
    c.run_until(lambda: bool(c.leaders()))
    assert c.now_ns - begun <= 2 * 300 * MS


def test_rule_41_a_leader_steps_down_though_nobody_is_there_to_take_over() -> None:
    c, a = led()
    leadership = a.raft._s.leadership
    assert leadership is not None
    c.drop()
    a.raft._s.now_ns += 10**10
    change._step_down(a.raft._s, leadership)
    assert not a.raft.is_leader
    assert not any(isinstance(e, ef.Send) for e in a.raft._s.flush())


# -- rule 42: everybody answers -----------------------------------------------------------------


def test_rule_42_a_voter_that_does_not_know_it_is_one_votes() -> None:
    """The promotion of a is committed by b and c without a; then b dies, and c needs a."""
    c = ManualCluster("bc", learners="a")
    b = c.elect("b")
    c.deliver()
    b.change("abc")
    c.run_until(lambda: short(b.raft.configuration) == "abc/bc")
    c.lose = lambda to, m: to == "a" and isinstance(m, msg.AppendRequest)
    c.drop(to("a"))
    c.deliver()
    assert outcomes(b) == [(1, MembershipOutcome.DONE)]
    assert short(c["c"].raft.configuration) == "abc"
    assert not c["a"].raft._s.is_voter
    c.kill("b")
    c.lose = lambda _to, _m: False
    c.run_until(lambda: c["c"].raft.is_leader)
    assert c["a"].raft._s.vote == "c"


def test_rule_42_a_newcomer_that_knows_nobody_votes() -> None:
    c = ManualCluster()
    d = c.join("d")
    d.receive(msg.VoteRequest("a", 1, 5, 1))
    assert [m for _, m in c.collect()] == [msg.VoteReply("d", 1, True)]


def test_a_newcomer_that_knows_nobody_never_campaigns() -> None:
    c = ManualCluster()
    d = c.join("d")
    for _ in range(10):
        d.time_out()
    d.receive(msg.TimeoutNow("a", 1))
    assert (d.raft.term, c.collect()) == (1, [])
    assert not d.raft.is_leader
    assert d.raft.peers == ()


# -- rule 43: removed nodes ---------------------------------------------------------------------


def test_rule_43_the_only_one_who_knows_the_next_configuration_leads_the_change_to_its_end() -> (
    None
):
    """{a, b, c} -> {a, b, d}: the leader has sent the joint configuration only to c, and dies."""
    c, a = led()
    c.join("d")
    a.change("abd")
    c.run_until(lambda: short(a.raft.configuration) == "abd/abc")
    c.deliver(to("c"))
    c.kill("a")
    c.drop()
    c.run_until(lambda: c["c"].raft.is_leader)
    c.heal()
    c.advance(3000)
    (leader,) = c.leaders()
    assert leader in "bd"
    assert short(c[leader].raft.configuration) == "abd"
    assert removals(c["c"]) == 1


def test_rule_43_a_node_that_an_uncommitted_configuration_removes_campaigns_without_itself() -> (
    None
):
    """{a, b, c, d} -> {a, b, c}: only d has the final configuration when the leader dies, and so
    nobody else can win: the others would need its vote, and its log is longer than theirs."""
    c, a = led("abcd")
    a.change("abc")
    c.run_until(lambda: short(a.raft.configuration) == "abc")
    c.deliver(to("d"))
    c.kill("a")
    c.drop()
    d = c["d"]
    assert short(d.raft.configuration) == "abc"
    c.cut("c", "d")
    c.advance(3000)
    assert c.leaders() == [], "b and d are two, but d does not count"
    c.heal()
    c.run_until(lambda: d.raft.is_leader)
    c.advance(3000)
    (leader,) = c.leaders()
    assert leader in "bc"
    assert short(c[leader].raft.configuration) == "abc"
    assert removals(d) == 1


def test_rule_43_a_member_that_is_out_by_a_committed_configuration_does_not_campaign() -> None:
    c, a = led()
    a.change("ab")
    c.deliver()
    c.advance(100)
    gone = c["c"]
    c.drop()
    for _ in range(5):
        gone.time_out()
    assert c.collect() == []
    assert gone.raft.status().not_leader_because == "it was removed from the cluster"


def test_rule_43_a_removed_node_that_was_not_told_disturbs_nobody() -> None:
    c, a = led()
    c.isolate("c")
    a.change("ab")
    c.advance(1500)
    c.heal()
    c.advance(5000)
    assert a.raft.is_leader
    assert a.raft.term == 1


def test_rule_43_the_same_name_under_another_incarnation_is_somebody_else() -> None:
    """Following the log it meets configurations with its name that do not mean it."""
    c, a = led()
    a.change("ab")
    c.deliver()
    c.advance(2000)
    c.kill("c")
    again = Member("c", "c:2", b"another" + bytes(9))
    node = c.join("c")
    node.config = replace(node.config, incarnation=again.incarnation)
    node.start()
    a.change("", members=(*members_of("ab"), again))
    c.cut("b", "c")
    c.run_until(lambda: node.image.last_index > 0)
    first = replace(c.configuration, members=members_of("abc"))
    assert not node.raft._s.is_voter_of(first)
    c.heal()
    c.advance(500)
    assert outcomes(a)[-1] == (1, MembershipOutcome.DONE)
    assert short(node.raft.configuration) == "abc"
    assert removals(node) == 0
    assert node.raft._s.is_voter


def test_rule_43_a_removed_incarnation_never_comes_back() -> None:
    c, a = led()
    a.change("ab")
    c.deliver()
    a.change("abc", token=2)
    assert outcomes(a)[-1] == (2, MembershipOutcome.INVALID)
    assert "never comes back" in details(a)[-1]


def test_answers_of_a_former_incarnation_do_not_count_for_the_new_one() -> None:
    """Rule 24: it could count as the holder of entries that it has not got."""
    c, a = led()
    a.propose(b"x")
    c.deliver(to("b", "a"))
    (late,) = [m for t, m in c.wire if t == "c" and isinstance(m, msg.AppendRequest)][-1:]
    a.change("ab")
    c.deliver(to("a", "b"))
    c.drop()
    a.change("", members=(*members_of("ab"), Member("c", "c:2", bytes(16))), token=2)
    progress = a.raft._s.leadership.progress["c"]  # type: ignore[union-attr]
    assert progress.match_index == 0
    a.receive(msg.AppendReply("c", 1, True, late.prev_index + 1, 0, 0, late.sequence, 0))
    assert progress.match_index == 0


# -- what else carries a configuration ----------------------------------------------------------


@pytest.mark.parametrize("stage", ["abc(d)!", "abcd/abc"])
def test_rule_39_a_snapshot_carries_the_configuration_of_its_index(stage: str) -> None:
    """M30: a node that is restored from it must need the same majorities."""
    c, a = led(trailing_entries=0, snapshot_chunk_bytes=4000)
    c.isolate("c")
    c.join("d")
    a.change("abcd")
    c.run_until(lambda: short(a.raft.configuration) == stage)
    c.run_until(lambda: a.machine.index >= a.raft.configuration_index)
    index = a.raft.configuration_index
    if short(a.raft.configuration) != stage:
        a.raft.configuration_at(index)
    a.propose(b"x")
    meta = a.take_snapshot()
    assert short(meta.configuration) == short(a.raft.configuration_at(meta.index))
    restarted = c.kill("a")
    c.drop()
    c.revive(restarted)
    assert restarted.raft.configuration_at(meta.index) == meta.configuration
    assert peers(restarted) == "bcd"
    c.heal()
    c.advance(4000)
    assert short(c[c.leaders()[0]].raft.configuration) == "abcd"
    assert short(c["c"].raft.configuration) == "abcd"


def test_a_joint_configuration_that_came_with_a_snapshot_still_needs_both_majorities() -> None:
    c = ManualCluster("a")
    machine = ChainMachine(5, 1, b"c")
    stored = snapshot_of(machine, replace(configuration_of("de", (), "abc"), cluster_id="sim"))
    node = c.join("d")
    chunk = msg.SnapshotChunk("a", 2, stored.meta, 0, stored.data, 1, 0)
    node.receive(chunk)
    assert short(node.raft.configuration) == "de/abc"
    assert peers(node) == "abce"
    node.time_out()
    assert sorted(to for to, m in c.collect() if isinstance(m, msg.VoteRequest)) == list("abce")
    for sender in "ea":
        node.receive(msg.VoteReply(sender, 3, True, pre_vote=True))
    assert node.raft.status().role == "pre_candidate"
    node.receive(msg.VoteReply("b", 3, True, pre_vote=True))
    assert node.raft.status().role == "candidate"
