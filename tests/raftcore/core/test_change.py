"""Membership changes from the request to the outcome (thesis chapter 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from jepsen_like.sim.manual import (
    ManualCluster,
    ManualNode,
    incarnation_of,
    members_of,
)
from jepsen_like.sim.seen import details, outcomes, peers, removals, short, stages
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.effects import MembershipOutcome
from raftcore.core.membership import MAX_MEMBERS
from raftcore.core.types import Lease, Member, Target

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


def test_the_committed_configuration_is_not_the_one_in_force_while_that_may_go_back() -> None:
    c, a = led()
    a.change("abc", "l")
    assert a.raft.configuration.learners == ("l",)
    assert a.raft.committed_configuration.learners == ()
    c.deliver()
    assert a.raft.committed_configuration == a.raft.configuration


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
            "no more than",
        ),
    ],
)
def test_members_that_can_not_be_are_refused(members: tuple[Member, ...], why: str) -> None:
    _, a = led()
    a.step(ev.MembershipRequested(a.now_ns, 1, 0, members))
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]
    assert why in details(a)[0]
    assert stages(a) == []


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("node_id", "é" * 128, "longer than 255"),
        ("node_id", 7, "must be text"),
        ("address", "x" * 513, "longer than 512"),
        ("address", "\ud800", "surrogates"),
        ("incarnation", "d" * 16, "16 bytes"),
        ("voter", 1, "a voter or not"),
        ("attributes", (("port", 8080),), "must be text"),
        ("attributes", (("port",),), "not a pair"),
        ("attributes", [("port", "8080")], "must be a tuple"),
        ("attributes", (("a", "b"),) * 65, "64 pairs"),
        ("attributes", (("a", "b" * 4097),), "longer than 4096"),
        ("attributes", tuple((str(i), "b" * 4096) for i in range(64)), "more than 262144"),
    ],
)
def test_a_member_of_wrong_shape_is_refused_and_nothing_is_appended(
    part: str, value: object, why: str
) -> None:
    c, a = led()
    newcomer = replace(members_of("d")[0], **{part: value})  # type: ignore[arg-type]
    a.step(ev.MembershipRequested(a.now_ns, 1, 0, (*members_of("abc"), newcomer)))
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]
    assert why in details(a)[0]
    a.propose(b"x")
    c.deliver()
    assert a.raft.commit_index == 2, "it goes on"


def test_members_in_a_list_are_refused() -> None:
    _, a = led()
    a.step(ev.MembershipRequested(a.now_ns, 1, 0, list(members_of("abcd"))))  # type: ignore[arg-type]
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]
    assert details(a) == ["members must be a tuple, and no more than 64"]


def test_members_that_would_not_come_back_from_the_log_as_they_are_are_refused() -> None:
    class Special(Member):
        """Has more to it than a log can hold."""

    _, a = led()
    newcomer = Special("d", "d:1", incarnation_of("d"))
    a.step(ev.MembershipRequested(a.now_ns, 1, 0, (*members_of("abc"), newcomer)))
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]
    assert details(a) == ["these members do not come back from the log as they are"]


def test_echoes_of_a_former_member_of_the_same_name_are_not_its_successors() -> None:
    """Heartbeats have no sequence: their rounds tell who was asked (rule 24)."""
    c, a = led("ab", "d")
    c.deliver()
    a.read(1)
    c.deliver()
    assert a.raft._s.leadership is not None
    before = a.raft._s.leadership.read_counter
    assert before > 0
    a.change("ab")
    c.deliver()
    again = Member("d", "d:2", b"another who is d")
    a.step(ev.MembershipRequested(a.now_ns, 2, 2, (*members_of("ab"), replace(again, voter=False))))
    c.kill("d")
    progress = a.raft._s.leadership.progress["d"]
    since = progress.last_contact_ns
    c.set_time(c.now_ns + 100 * MS)
    a.receive(msg.HeartbeatReply("d", 1, before))
    assert (progress.last_contact_ns, progress.read_counter) == (since, 0)
    assert progress.health_ns is None
    a.time_out()
    (round_,) = {m.read_counter for to, m in a.outbox if to == "d" and isinstance(m, msg.Heartbeat)}
    a.receive(msg.HeartbeatReply("d", 1, round_))
    assert progress.last_contact_ns == a.now_ns


def test_a_newcomer_that_can_not_use_the_snapshot_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    c, a = led(trailing_entries=0, catch_up_ms=60_000, snapshot_chunk_bytes=64)
    for i in range(4):
        a.propose(b"x%d" % i)
        c.deliver()
    a.take_snapshot()
    a.propose(b"y")
    c.deliver()
    a.take_snapshot()
    d = c.join("d")

    def damaged(effect: ef.StoreSnapshotChunk) -> None:
        d.received = d.received[: effect.offset] + effect.data
        if len(d.received) < effect.meta.size_bytes:
            d.step(ev.SnapshotChunkStored(d.now_ns, effect.meta, len(d.received)))
        else:
            d.step(ev.SnapshotInstalled(d.now_ns, effect.meta, ok=False))

    monkeypatch.setattr(d, "_store_chunk", damaged)
    a.change("abcd")
    c.advance(30_000, step_ms=60)
    assert outcomes(a) == [(1, MembershipOutcome.NOT_CAUGHT_UP)]
    assert details(a) == ["d could not install the snapshot 5 times; it stays a learner"]
    monkeypatch.undo()
    c.advance(60_000, step_ms=60)
    a.change("abcd", token=2)
    c.advance(2000)
    assert outcomes(a)[1:] == [(2, MembershipOutcome.DONE)]


def test_members_of_a_change_and_those_it_replaces_must_fit_one_configuration() -> None:
    _, a = led()
    names = [f"n{i:02}" for i in range(MAX_MEMBERS - 2)]
    a.change([*names[:2]], names[2:])
    assert outcomes(a) == [(1, MembershipOutcome.INVALID)]
    assert details(a) == [f"{MAX_MEMBERS + 1} members are more than {MAX_MEMBERS}"]
    assert stages(a) == []


@pytest.mark.parametrize(
    "lease",
    [
        Lease(0, 200),
        Lease(119, 200),
        Lease(60_001, 200),
        Lease(1000, -1),
        Lease(1000, 100_001),
        Lease("1000", 200),  # type: ignore[arg-type]
        Lease(True, 200),
    ],
)
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


def test_a_successor_gives_up_too_though_nobody_there_asked() -> None:
    c, a = led(catch_up_ms=1000)
    a.change("abcd")
    c.deliver()
    c.isolate("a")
    c.advance(4000)
    (leader,) = [n for n in c.leaders() if n != "a"]
    assert stages(c[leader]) == ["abc(d)!", "abc(d)"]
    assert outcomes(c[leader]) == []
    c.heal()
    c.advance(500)
    assert outcomes(a) == [(1, MembershipOutcome.UNKNOWN)]


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


# -- feature levels -----------------------------------------------------------------------------


def at_level_one(**settings: int) -> tuple[ManualCluster, ManualNode]:
    """A cluster made by release 0.1, of which only a runs a newer one so far."""
    c = ManualCluster(**settings)
    for name, node in c.nodes.items():
        node.image.base = replace(node.image.base, level=1)
        node.config = replace(node.config, feature_level=1) if name != "a" else node.config
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
    expected = "new voters to catch up: d (round 1 of 10, 2 entries to go)"
    assert a.raft.status().change_waits_for == expected
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


def test_status_says_how_each_new_voter_catches_up() -> None:
    c, a = led(learners="l")
    c.join("d")
    a.change("abcde", "l")
    c.run_until(lambda: "caught up" in catch_ups(a).values())
    assert catch_ups(a) == {
        "b": None, "c": None, "d": "caught up", "e": "round 1 of 10, 2 entries to go", "l": None,
    }  # fmt: skip
    expected = "new voters to catch up: e (round 1 of 10, 2 entries to go)"
    assert a.raft.status().change_waits_for == expected
    c.join("e")
    c.run_until(lambda: a.raft.status().stage == "joint")
    assert set(catch_ups(a).values()) == {None}


def catch_ups(node: ManualNode) -> dict[str, str | None]:
    return {peer.node_id: peer.catch_up for peer in node.raft.status().peers}


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
