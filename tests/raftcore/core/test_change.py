"""Membership changes, scenario by scenario (thesis chapter 4, rules 37 to 43)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from jepsen_like.sim.machine import ChainMachine
from jepsen_like.sim.manual import (
    ManualCluster,
    ManualNode,
    configuration_of,
    incarnation_of,
    members_of,
    snapshot_of,
)
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.effects import MembershipOutcome
from raftcore.core.membership import MAX_MEMBERS, decode_configuration
from raftcore.core.types import Configuration, EntryType, Lease, Member, Target

Wanted = Callable[[str, msg.Message], bool]


def outcomes(node: ManualNode) -> list[tuple[int, MembershipOutcome]]:
    return [(e.token, e.outcome) for e in node.effects if isinstance(e, ef.MembershipFinished)]


def details(node: ManualNode) -> list[str]:
    return [e.detail for e in node.effects if isinstance(e, ef.MembershipFinished)]


def stages(node: ManualNode) -> list[str]:
    """The configurations in a node's log, in short: voters, old voters after a slash, learners in
    brackets, an exclamation mark for staging."""
    found = [decode_configuration(e.data) for e in node.image.entries
             if e.type is EntryType.CONFIGURATION]  # fmt: skip
    return [short(c) for c in found]


def short(c: Configuration) -> str:
    text = "".join(c.voters)
    text += f"/{''.join(c.old_voters)}" if c.old_voters else ""
    text += f"({''.join(c.learners)})" if c.learners else ""
    return text + ("!" if c.target else "")


def removals(node: ManualNode) -> int:
    return sum(isinstance(e, ef.Removed) for e in node.effects)


def peers(node: ManualNode) -> str:
    return "".join(m.node_id for m in node.raft.peers)


def led(
    voters: str = "abc", learners: str = "", **settings: int
) -> tuple[ManualCluster, ManualNode]:
    c = ManualCluster(voters, learners=learners, **settings)
    return c, c.elect("a")


def to(*names: str) -> Wanted:
    return lambda node, _m: node in names


# -- whole changes ------------------------------------------------------------------------------


def test_a_learner_is_added_by_one_entry_and_told_before_anything_is_sent_to_it() -> None:
    c, a = led()
    c.join("l")
    effects = a.change("abc", "l")
    changed = next(i for i, e in enumerate(effects) if isinstance(e, ef.PeersChanged))
    assert isinstance(effects[0], ef.Persist)
    assert changed == 1
    assert [m.node_id for m in effects[1].peers] == ["b", "c", "l"]  # type: ignore[attr-defined]
    assert any(isinstance(e, ef.Send) and e.to == "l" for e in effects[2:])
    c.deliver()
    assert stages(a) == ["abc(l)"]
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    c.advance(100)
    assert stages(c["l"]) == ["abc(l)"]


def test_a_learner_is_removed_by_one_entry_and_its_incarnation_retired() -> None:
    c, a = led(learners="l")
    a.change("abc")
    c.deliver()
    assert stages(a) == ["abc"]
    assert a.raft.configuration.retired == (incarnation_of("l"),)
    c.advance(100)
    assert removals(c["l"]) == 1
    assert c["l"].raft.removed


def test_a_new_voter_catches_up_from_nothing_and_then_counts() -> None:
    c, a = led()
    for i in range(50):
        a.propose(b"%d" % i)
    c.deliver()
    c.join("d")
    a.change("abcd")
    c.advance(500)
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    assert stages(a) == ["abc(d)!", "abcd/abc", "abcd"]
    assert stages(c["d"]) == stages(a)
    c.isolate("b")
    a.propose(b"x")
    c.deliver()
    assert a.raft.commit_index == c["d"].image.last_index, "a, c and d are a majority of four"


def test_a_follower_is_removed_and_learns_it() -> None:
    c, a = led()
    a.change("ab")
    c.deliver()
    assert stages(a) == ["ab/abc", "ab"]
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    c.advance(200)
    assert removals(c["c"]) == 1
    assert removals(a) == removals(c["b"]) == 0
    c.advance(3000)
    assert removals(c["c"]) == 1
    assert (peers(a), peers(c["b"])) == ("b", "a")
    assert c["c"].raft.term == a.raft.term == 1, "it does not campaign (rule 43)"


def test_a_removed_member_is_told_although_the_first_message_is_lost() -> None:
    c, a = led()
    a.change("ab")
    c.deliver(to("a", "b"))
    assert short(a.raft.configuration) == "ab"
    c.drop(to("c"))
    assert peers(a) == "bc"
    c.advance(400)
    assert removals(c["c"]) == 1
    c.advance(2000)
    assert peers(a) == "b"
    assert "c" not in [p.node_id for p in a.raft.status().peers]


def test_nothing_is_sent_to_whom_the_driver_no_longer_knows_as_a_peer() -> None:
    c, a = led()
    c.isolate("c")
    a.change("ab")
    known, sent = set("bc"), 0
    for _ in range(100):
        c.set_time(c.now_ns + 10 * MS)
        for effect in a.tick():
            if isinstance(effect, ef.PeersChanged):
                known = {m.node_id for m in effect.peers}
            elif isinstance(effect, ef.Send):
                assert effect.to in known
                sent += effect.to == "c"
        c["b"].tick()
        c.deliver()
    assert sent > 1
    assert known == {"b"}


def test_one_request_replaces_a_dead_voter() -> None:
    c, a = led()
    c.kill("c")
    c.join("d")
    a.change("abd")
    c.advance(500)
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    assert stages(a) == ["abc(d)!", "abd/abc", "abd"]
    assert a.raft.configuration.retired == (incarnation_of("c"),)


def test_a_voter_is_demoted_and_stays_a_learner() -> None:
    c, a = led()
    a.change("ab", "c")
    c.deliver()
    assert stages(a) == ["ab/abc(c)", "ab(c)"]
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    c.advance(3000)
    assert removals(c["c"]) == 0
    assert c["c"].raft.term == 1


def test_address_and_attributes_change_by_one_entry() -> None:
    c, a = led()
    moved = [replace(m, address="new:1", attributes=(("http", "x"),)) if m.node_id == "b" else m
             for m in members_of("abc")]  # fmt: skip
    effects = a.change("", members=tuple(moved))
    assert any(isinstance(e, ef.PeersChanged) for e in effects)
    c.deliver()
    assert stages(a) == ["abc"]
    assert a.raft.configuration.members == tuple(moved)
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]


def test_the_lease_changes_by_one_entry() -> None:
    c, a = led()
    a.change("abc", lease=Lease(2000, 500))
    c.deliver()
    assert c["b"].raft.configuration.lease == Lease(2000, 500)
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]


def test_all_voters_are_replaced_at_once() -> None:
    c, a = led("a")
    for name in "xyz":
        c.join(name)
    a.change("xyz")
    c.advance(2500)
    assert stages(a) == ["a(xyz)!", "xyz/a", "xyz"]
    assert removals(a) == 1
    assert not a.raft.is_leader
    (leader,) = c.leaders()
    assert leader in "xyz"
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]


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
    """Two leaders of different terms change the same configuration of four by one server each."""
    c = ManualCluster("abcd")
    c.join("e")
    one = c.elect("a")
    one.change("abcde")  # reaches nobody but the newcomer
    c.deliver(to("a", "e"))
    c.isolate("a")
    c.drop()
    for name in "bcd":
        c[name].tick(c[name].raft.next_deadline_ns)
        c.advance(2500)
        break
    (leader,) = [n for n in c.leaders() if n != "a"]
    two = c[leader]
    gone = next(n for n in "dcb" if n != leader)
    two.change("".join(n for n in "abcd" if n != gone))
    c.advance(300)
    two.propose(b"committed")
    c.deliver()
    assert outcomes(two) == [(1, MembershipOutcome.DONE)]
    committed = two.raft.commit_index
    # The first leader comes back with its newcomer only: two of five are not a majority, and it
    # may not change anything on the way before it commits in a term of its own.
    c.heal()
    for other in "bcd":
        c.cut("a", other)
        c.cut("e", other)
    c.advance(5000)
    assert not c["a"].raft.is_leader
    c.heal()
    c.advance(3000)
    assert c["a"].raft.commit_index >= committed
    assert c["a"].image.entries[:committed] == two.image.entries[:committed]


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


def is_order(_to: str, m: msg.Message) -> bool:
    return isinstance(m, msg.TimeoutNow)


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


# -- refusals -----------------------------------------------------------------------------------


def test_only_a_leader_changes_members() -> None:
    c, _ = led()
    c["b"].change("ab")
    finished = [e for e in c["b"].effects if isinstance(e, ef.MembershipFinished)]
    assert [(f.outcome, f.leader_id) for f in finished] == [(MembershipOutcome.NOT_LEADER, "a")]


def test_a_change_that_was_meant_for_another_configuration_is_refused() -> None:
    _, a = led()
    a.change("abc", version=7)
    assert outcomes(a) == [(1, MembershipOutcome.STALE_VERSION)]


def test_what_is_so_already_is_done_without_an_entry() -> None:
    _, a = led()
    a.change("abc")
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    assert stages(a) == []


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ((), "there must be a voter"),
        (members_of((), "ab"), "there must be a voter"),
        (members_of("ab")[::-1], "sorted"),
        (members_of("ab") + members_of("b"), "without repeats"),
        ((Member("", "x:1", bytes(16)),), "must have ids"),
        ((Member("a", "", incarnation_of("a")),), "address"),
        ((Member("a", "x:1", bytes(16)),), "remove it first"),
        ((*members_of("ab"), Member("d", "b:1", bytes(16))), "address of its own"),
        ((*members_of("ab"), Member("d", "d:1", incarnation_of("a"))), "same incarnation"),
        ((*members_of("ab"), Member("d", "d:1", b"short")), "16 bytes"),
        (
            tuple(Member(f"{i:03}", f"{i}:1", b"%016d" % i) for i in range(MAX_MEMBERS + 1)),
            "more than",
        ),
    ],
)
def test_members_that_can_not_be_are_refused(members: tuple[Member, ...], why: str) -> None:
    _, a = led()
    a.step(ev.MembershipRequested(a.now_ns, 1, 0, members))
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]
    assert why in details(a)[0]
    assert stages(a) == []


@pytest.mark.parametrize("lease", [Lease(0, 200), Lease(1000, -1), Lease(1000, 1_000_000)])
def test_a_lease_that_can_not_be_is_refused(lease: Lease) -> None:
    _, a = led()
    a.change("abc", lease=lease)
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]


def test_no_change_while_leadership_is_being_transferred() -> None:
    _, a = led()
    a.step(ev.TransferRequested(a.now_ns, "b"))
    a.change("ab")
    assert outcomes(a) == [(1, MembershipOutcome.IN_PROGRESS)]


def test_a_change_waits_for_a_transfer_to_end() -> None:
    c, a = led()
    a.change("ab")
    a.step(ev.TransferRequested(a.now_ns, "b"))
    c.lose = is_order
    c.deliver()
    assert stages(a) == ["ab/abc"]
    c.advance(400)
    assert stages(a) == ["ab/abc", "ab"]


# -- giving up, taking another's place ----------------------------------------------------------


def test_a_newcomer_that_is_dead_is_given_up_and_stays_a_learner() -> None:
    c, a = led(catch_up_ms=2000)
    a.change("abcd")
    c.advance(1900)
    assert stages(a) == ["abc(d)!"]
    assert outcomes(a) == []
    c.advance(400)
    assert stages(a) == ["abc(d)!", "abc(d)"]
    assert outcomes(a) == [(1, MembershipOutcome.NOT_CAUGHT_UP)]
    assert details(a) == ["d made no progress for 2000 ms; it stays a learner"]


def test_one_newcomer_that_dies_later_keeps_the_other_out_too() -> None:
    """Nobody is promoted into a majority that the dead one is already part of."""
    c, a = led(catch_up_ms=2000)
    c.join("d")
    a.change("abcde")
    c.advance(500)
    c.kill("d")
    c.advance(400)
    c.join("e")
    c.advance(1200)
    assert a.raft.configuration.voters == ("a", "b", "c")
    c.advance(1600)
    assert stages(a) == ["abc(de)!", "abc(de)"]
    assert outcomes(a) == [(1, MembershipOutcome.NOT_CAUGHT_UP)]


def test_a_newcomer_that_never_ends_a_round_in_time_is_given_up_after_so_many_rounds() -> None:
    c, a = led(catch_up_rounds=3)
    c.join("d")
    a.change("abcd")

    def held(_to: str, m: msg.Message) -> bool:
        return m.sender == "d" and isinstance(m, msg.AppendReply)

    for _ in range(5):
        for _ in range(33):
            c.set_time(c.now_ns + 10 * MS)
            a.tick()
            c.deliver(lambda to, m: not held(to, m))
        late = [m for to, m in c.collect() if held(to, m)]
        c.drop(held)
        a.propose(b"more than it has acknowledged")
        for m in late:
            a.receive(m)
    assert outcomes(a) == [(1, MembershipOutcome.NOT_CAUGHT_UP)]
    assert details(a) == ["d did not catch up in 3 rounds; it stays a learner"]
    assert short(a.raft.configuration) == "abc(d)"


def test_rule_42_promotion_does_not_wait_for_the_newcomer_to_equal_the_leader() -> None:
    """Under load it never does: whenever it answers there is more."""
    c, a = led()
    d = c.join("d")
    a.change("abcd")
    seen_equal = False
    for _ in range(200):
        a.propose(b"load")
        c.deliver(lambda to, m: "d" not in (to, m.sender))
        c.collect()
        in_flight, c.wire = c.wire, []
        a.propose(b"more load")
        progress = a.raft._s.leadership.progress["d"]  # type: ignore[union-attr]
        seen_equal |= progress.match_index == a.raft.last_position.index
        for name, m in in_flight:
            c.nodes[name].receive(m)
        c.set_time(c.now_ns + 5 * MS)
        a.tick()
    assert not seen_equal
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    assert short(d.raft.configuration) == "abcd"


def test_a_staging_that_waits_can_be_called_off() -> None:
    c, a = led()
    a.change("abcd")
    c.deliver()
    a.change("abc", token=2)
    c.deliver()
    assert outcomes(a) == [(1, MembershipOutcome.UNKNOWN), (2, MembershipOutcome.DONE)]
    assert stages(a) == ["abc(d)!", "abc"]
    assert a.raft.configuration.retired == (incarnation_of("d"),)


def test_another_newcomer_takes_the_place_of_one_that_never_comes() -> None:
    c, a = led()
    a.change("abcd")
    c.deliver()
    c.join("e")
    a.change("abce", token=2)
    c.advance(500)
    assert outcomes(a) == [(1, MembershipOutcome.UNKNOWN), (2, MembershipOutcome.DONE)]
    assert stages(a) == ["abc(d)!", "abc(de)!", "abce/abc", "abce"]


def test_who_asks_for_what_is_under_way_already_waits_for_it_too() -> None:
    c, a = led()
    a.change("abcd")
    c.deliver()
    a.change("abcd", token=2)
    assert outcomes(a) == [(1, MembershipOutcome.UNKNOWN)]
    c.join("d")
    c.advance(500)
    assert outcomes(a)[1:] == [(2, MembershipOutcome.DONE)]
    assert stages(a) == ["abc(d)!", "abcd/abc", "abcd"]


def test_a_refused_request_leaves_the_one_under_way_alone() -> None:
    c, a = led()
    a.change("ab")
    a.change("", token=2)
    c.deliver()
    assert outcomes(a) == [(2, MembershipOutcome.IN_PROGRESS), (1, MembershipOutcome.DONE)]


def test_who_asked_learns_what_a_successor_has_made_of_it() -> None:
    c, a = led()
    c.join("d")
    a.change("abcd")
    c.run_until(lambda: short(a.raft.configuration) == "abcd/abc")
    c.deliver(to("b", "d"))
    c.isolate("a")
    c.drop()
    c.advance(3000)
    assert outcomes(a) == []
    c.heal()
    c.advance(500)
    assert outcomes(a) == [(1, MembershipOutcome.DONE)]
    assert not a.raft.is_leader


def test_a_superseding_request_that_was_lost_ends_as_unknown_although_the_old_one_goes_on() -> None:
    c, a = led()
    a.change("abcd")
    c.deliver()
    c.isolate("a")
    a.change("abc", token=2)
    c.drop()
    c.advance(3000)
    c[c.leaders()[-1]].propose(b"x", b"y")
    c.heal()
    c.advance(300)
    assert outcomes(a) == [(1, MembershipOutcome.UNKNOWN), (2, MembershipOutcome.UNKNOWN)]
    assert short(a.raft.configuration) == "abc(d)!"


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
    c.cut("b", "d")  # neither of them can win without c
    c["b"].tick(c["b"].now_ns)
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
    c, a = led()
    a.change("ab")
    c.run_until(lambda: short(a.raft.configuration) == "ab")
    c.deliver(to("c"))
    c.kill("a")
    c.drop()
    c.cut("b", "c")
    c.advance(3000)
    assert not c["c"].raft.is_leader, "its own vote counts for nothing"
    c.heal()
    c.cuts.add(("b", "c"))  # b never gets to ask
    c["b"].raft._s.election_deadline_ns = 10**15
    c.cuts.clear()
    c.advance(1500)
    # Two of a and b are needed, and a is dead.
    assert not c["c"].raft.is_leader
    assert c["c"].raft._s.role.value != "follower" or c["c"].raft.term == 1


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


# -- feature levels -----------------------------------------------------------------------------


def at_level_one(**settings: int) -> tuple[ManualCluster, ManualNode]:
    c = ManualCluster(**settings)
    for node in c.nodes.values():
        node.image.base = replace(node.image.base, level=1)
        node.start()
    return c, c.elect("a")


def reply(sender: str, level: int) -> msg.HeartbeatReply:
    return msg.HeartbeatReply(sender, 1, 0, msg.Health(feature_level=level))


def test_members_can_not_change_before_all_know_how_to() -> None:
    _, a = at_level_one()
    a.change("ab")
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]
    assert "until all members run a release" in details(a)[0]


def test_the_level_is_raised_once_all_members_know_it() -> None:
    c, a = at_level_one()
    c.drop()
    a.receive(reply("b", 2))
    assert a.raft.configuration.level == 1
    a.receive(reply("c", 2))
    assert a.raft.configuration.level == 2
    c.deliver(lambda _to, m: isinstance(m, msg.AppendRequest | msg.AppendReply))
    a.propose(b"x")
    assert [e.feature_level for e in a.image.entries] == [1, 2, 2]


def test_the_level_is_not_raised_beyond_what_this_node_knows() -> None:
    c, a = at_level_one(feature_level=1)
    c.drop()
    a.receive(reply("b", 2))
    a.receive(reply("c", 2))
    assert a.raft.configuration.level == 1


# -- saying why ---------------------------------------------------------------------------------


def test_status_says_how_far_a_change_is_and_what_it_waits_for() -> None:
    c, a = led()
    assert a.raft.status().stage == "stable"
    assert a.raft.status().change_waits_for is None
    a.change("bcd")
    status = a.raft.status()
    assert (status.stage, status.configuration_index) == ("staging", 2)
    assert status.target == Target(("b", "c", "d"))
    assert status.change_waits_for == "the staging configuration at 2 to be committed"
    assert status.commit_waits_for == ("b", "c")
    c.deliver()
    assert a.raft.status().change_waits_for == "d to catch up: round 1 of 10, 2 entries to go"
    assert a.raft.status().commit_waits_for == ()
    assert c["b"].raft.status().change_waits_for == "the leader to go on"
    assert c["b"].raft.status().commit_waits_for == ()
    c.join("d")
    c.lose = is_order
    c.run_until(lambda: a.raft._s.leadership.transfer is not None)  # type: ignore[union-attr]
    assert (a.raft.status().change_waits_for or "").startswith("leadership to be handed over to ")
    c.run_until(lambda: short(a.raft.configuration) == "bcd/abc")
    status = a.raft.status()
    assert (status.stage, status.old_voters, status.leaving) == ("joint", ("a", "b", "c"), ("a",))
    assert status.change_waits_for == "the joint configuration at 3 to be committed"
    c.run_until(lambda: short(a.raft.configuration) == "bcd")
    assert a.raft.status().change_waits_for == "the stable configuration at 4 to be committed"


def test_status_says_that_nothing_of_this_term_is_committed() -> None:
    c, a = led()
    a.change("abcd")
    c.deliver()
    c.kill("a")
    c.drop()
    c.set_time(c.now_ns + 600 * MS)
    c["b"].tick()
    c.deliver(lambda _to, m: isinstance(m, msg.VoteRequest | msg.VoteReply))
    expected = "an entry of this leader's term to be committed"
    assert c["b"].raft.status().change_waits_for == expected
