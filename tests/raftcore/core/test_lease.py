"""Lease reads (rule 35), and the voters' promise that they rest on (rule 11)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jepsen_like.sim import SimOptions, run_seed
from jepsen_like.sim.manual import ManualCluster, ManualNode, configuration_of
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import lease, replication, transfer
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.membership import encode_configuration
from raftcore.core.messages import Health, Message
from raftcore.core.state import CoreState, Leadership
from raftcore.core.types import Entry, EntryType, Lease

TIMEOUT_MS = 300
#: A leader of these clusters may rely on 270 of 300 ms.
LEASE = Lease(TIMEOUT_MS, 100_000)
LENGTH_NS = 270 * MS


def cluster(
    voters: str = "abc", learners: str = "", wanted: Lease | None = LEASE, **settings: int
) -> ManualCluster:
    """Members that have waited since their start, so that they vote."""
    c = ManualCluster(voters, learners=learners, lease=wanted, **settings)
    timeout_ms = max(TIMEOUT_MS, wanted.election_timeout_ms if wanted else 0)
    c.set_time(2 * timeout_ms * MS)
    return c


def leading(voters: str = "abc", learners: str = "") -> tuple[ManualCluster, ManualNode]:
    """a leads and holds a lease."""
    c = cluster(voters, learners)
    leader = c.elect("a")
    beat(c)
    assert leader.raft.lease_valid_until_ns == c.now_ns + LENGTH_NS
    return c, leader


def beat(c: ManualCluster, wanted: Callable[[str, Message], bool] = lambda _to, _m: True) -> None:
    """One round of heartbeats of a, answered at once."""
    leader = c["a"]
    c.set_time(c.now_ns + 60 * MS)
    leader.tick()
    c.deliver(wanted)


def released(node: ManualNode) -> list[int]:
    return [e.read_id for e in node.effects if isinstance(e, ef.ReadReleased)]


def granted(node: ManualNode, request: msg.VoteRequest) -> bool:
    node.outbox.clear()
    node.receive(request)
    (reply,) = [m for _, m in node.outbox if isinstance(m, msg.VoteReply)]
    return reply.granted


def asks(
    candidate: str, term: int, *, pre_vote: bool = False, transfer: bool = False
) -> msg.VoteRequest:
    return msg.VoteRequest(candidate, term, 10**6, term - 1, pre_vote, transfer)


# -- the leader -------------------------------------------------------------------------------


def test_rule_35_a_leader_with_a_lease_serves_a_read_without_asking_anybody() -> None:
    c, leader = leading()
    c.isolate("a")
    leader.read(1, by_lease=True)
    assert released(leader) == [1]
    assert c.collect() == []
    leader.read(2)
    assert released(leader) == [1], "it was not asked for by lease"


def test_rule_35_a_lease_read_waits_until_its_position_is_applied() -> None:
    c, leader = leading()
    leader.hold_apply = True
    leader.propose(b"x")
    c.deliver()
    leader.read(1, by_lease=True)
    assert released(leader) == []
    leader.apply_now()
    assert released(leader) == [1]


def test_rule_35_the_lease_begins_when_the_heartbeat_was_sent() -> None:
    c, leader = leading()
    c.set_time(c.now_ns + 60 * MS)
    sent_ns = c.now_ns
    leader.tick()
    c.set_time(c.now_ns + 50 * MS)
    c.deliver()
    assert leader.raft.lease_valid_until_ns == sent_ns + LENGTH_NS
    assert leader.raft.status().lease_remaining_ms == 220
    c.isolate("a")
    c.set_time(sent_ns + LENGTH_NS - 1)
    leader.read(1, by_lease=True)
    assert released(leader) == [1]
    c.set_time(sent_ns + LENGTH_NS)
    leader.read(2, by_lease=True)
    assert released(leader) == [1]
    assert leader.raft.status().lease_remaining_ms == 0
    assert leader.raft.is_leader


def test_rule_35_a_read_without_a_valid_lease_is_confirmed_as_usual() -> None:
    c, leader = leading()
    c.set_time(c.now_ns + 280 * MS)
    leader.read(1, by_lease=True)
    assert released(leader) == []
    c.deliver()
    assert released(leader) == [1]
    plain = cluster(wanted=None)
    node = plain.elect("a")
    beat(plain)
    node.read(1, by_lease=True)
    assert released(node) == []
    assert node.raft.lease_valid_until_ns is None


def test_rule_35_a_follower_asks_the_leader_also_for_a_lease_read() -> None:
    c, _ = leading()
    c["b"].read(1, by_lease=True)
    assert c["b"].outbox == [("a", msg.ReadIndexRequest("b", 1, 1))]
    assert c["b"].raft.lease_valid_until_ns is None
    c.deliver()
    assert released(c["b"]) == [1]


def test_rule_35_no_lease_before_an_entry_of_the_term_is_committed() -> None:
    c = cluster()
    leader = c["a"]
    leader.time_out()
    c.deliver(lambda _to, m: not isinstance(m, msg.AppendRequest))
    beat(c, lambda _to, m: not isinstance(m, msg.AppendRequest))
    assert leader.raft.is_leader
    assert leader.raft.lease_valid_until_ns is None
    c.deliver()
    assert leader.raft.lease_valid_until_ns is not None


def test_rule_35_only_members_that_hold_what_this_leadership_began_with_count() -> None:
    """Before that, another configuration in their log may tell them a shorter timeout."""
    c = cluster("abcde")
    behind = "de"

    def kept_back(to: str, m: Message) -> bool:
        return not (to in behind and isinstance(m, msg.AppendRequest))

    leader = c["a"]
    leader.time_out()
    c.deliver(kept_back)
    assert leader.raft.commit_index == 1
    c.isolate("b")
    c.isolate("c")
    beat(c, kept_back)
    assert leader.raft.lease_valid_until_ns is None
    c.deliver()
    assert leader.raft.lease_valid_until_ns == c.now_ns + LENGTH_NS


def test_rule_35_echoes_of_learners_do_not_count() -> None:
    c, leader = leading("abc", "l")
    until_ns = leader.raft.lease_valid_until_ns
    for name in "bc":
        c.isolate(name)
    beat(c)
    assert leader.raft.lease_valid_until_ns == until_ns


def test_rule_35_echoes_of_a_member_in_quarantine_do_not_count() -> None:
    c, leader = leading()
    leader.receive(msg.HeartbeatReply("b", 1, 0, Health(quarantined=True)))
    c.isolate("c")
    until_ns = leader.raft.lease_valid_until_ns
    c.set_time(c.now_ns + 60 * MS)
    leader.tick()
    leader.receive(msg.HeartbeatReply("b", 1, 2, Health(quarantined=True)))
    assert leader.raft.lease_valid_until_ns == until_ns


def test_rule_35_a_lone_voter_holds_its_own_lease_and_waits_for_nobody() -> None:
    c = ManualCluster("a", lease=LEASE)
    c["a"].time_out()
    assert (c["a"].raft.is_leader, c.now_ns) == (True, 0)
    c["a"].time_out()
    assert c["a"].raft.lease_valid_until_ns == c["a"].now_ns + LENGTH_NS


def test_rule_35_a_stalled_leader_has_no_lease() -> None:
    c, leader = leading()
    for node in c.nodes.values():
        node.hold_disk = True
    leader.propose(b"x")
    c.advance(490)
    assert leader.raft.lease_valid_until_ns is not None
    c.advance(100)
    assert leader.raft.is_leader
    assert leader.raft.lease_valid_until_ns is None
    leader.read(1, by_lease=True)
    assert released(leader) == []


def test_rule_35_a_change_of_the_lease_counts_once_it_is_committed() -> None:
    c, leader = leading()
    s = leader.raft._s
    assert s.leadership is not None
    longer = configuration_of("abc", lease=Lease(600, 500_000))
    entry = Entry(2, 1, EntryType.CONFIGURATION, encode_configuration(longer))
    c.isolate("c")
    replication.append_as_leader(s, s.leadership, (entry,))
    replication.broadcast(s, s.leadership)
    leader.tick()
    assert leader.raft.configuration == longer
    assert leader.raft.lease_valid_until_ns is None
    c.deliver()
    assert leader.raft.commit_index == 2
    beat(c)
    assert leader.raft.lease_valid_until_ns == c.now_ns + 300 * MS


# -- transfers --------------------------------------------------------------------------------


def test_rule_35_an_aborted_transfer_whose_order_was_sent_brings_no_lease_back() -> None:
    c, leader = leading()
    assert leader.raft.lease_valid_until_ns is not None
    leader.step(ev.TransferRequested(leader.now_ns, "b"))
    assert c.drop(lambda _to, m: isinstance(m, msg.TimeoutNow)) == 1
    leader.step(ev.TransferAborted(leader.now_ns))
    c.advance(1000)
    assert c.leaders() == ["a"]
    assert leader.raft.lease_valid_until_ns is None


def test_rule_35_after_a_transfer_was_ordered_there_is_no_lease_in_this_term() -> None:
    c, leader = leading()
    leader.step(ev.TransferRequested(leader.now_ns, "b"))
    assert leader.raft.lease_valid_until_ns is None
    assert c.drop(lambda _to, m: isinstance(m, msg.TimeoutNow)) == 1
    c.advance(1000)
    (outcome,) = [e for e in leader.effects if isinstance(e, ef.TransferFinished)]
    assert outcome.unknown
    assert c.leaders() == ["a"]
    assert leader.raft.lease_valid_until_ns is None
    leader.read(1, by_lease=True)
    c.deliver()
    assert released(leader) == [1], "reads are confirmed as usual"


def test_rule_35_a_transfer_that_only_prepared_leaves_the_lease() -> None:
    c, leader = leading()
    c.isolate("b")
    leader.propose(b"x")
    c.deliver()
    leader.step(ev.TransferRequested(leader.now_ns, "b"))
    assert leader.raft.lease_valid_until_ns is not None


# -- the voters -------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_vote", [True, False])
def test_rule_11_restarted_voter_grants_nothing_for_the_longest_election_timeout(
    *, pre_vote: bool
) -> None:
    c, _ = leading()
    b = c["b"]
    b.start()
    started = b.now_ns
    c.set_time(started + 2 * TIMEOUT_MS * MS - 1)
    assert not granted(b, asks("c", 5, pre_vote=pre_vote))
    assert b.raft.term == 1
    because = b.raft.status().not_leader_because
    assert because == "it started under a lease, and votes again in 1 ms"
    c.set_time(started + 2 * TIMEOUT_MS * MS)
    assert granted(b, asks("c", 5, pre_vote=pre_vote))


def test_rule_11_restarted_voter_obeys_a_transfer_at_once() -> None:
    c, _ = leading()
    c["b"].start()
    assert granted(c["b"], asks("c", 2, transfer=True))


def test_rule_11_restarted_voter_without_a_lease_votes_at_once() -> None:
    c = cluster(wanted=None)
    c.elect("a")
    c["b"].start()
    assert granted(c["b"], asks("c", 2))


def test_rule_35_the_promise_outlives_the_term_it_was_given_in() -> None:
    """A message of a higher term, from anybody, used to make a voter free at once."""
    c, _ = leading()
    b, contact_ns = c["b"], c.now_ns
    b.receive(msg.VoteReply("c", 5, granted=False))
    assert (b.raft.term, b.raft.leader_id) == (5, None)
    assert not granted(b, asks("c", 5)), "the term is adopted already, the vote is free"
    assert not granted(b, asks("c", 6, pre_vote=True))
    assert not granted(b, asks("c", 6))
    c.set_time(contact_ns + TIMEOUT_MS * MS - 1)
    assert not granted(b, asks("c", 5))
    c.set_time(contact_ns + TIMEOUT_MS * MS)
    assert granted(b, asks("c", 5))


def test_rule_35_a_transfer_is_free_of_the_promise() -> None:
    c, _ = leading()
    b = c["b"]
    b.receive(msg.VoteReply("c", 5, granted=False))
    assert granted(b, asks("c", 5, transfer=True))


def test_rule_35_a_lease_that_begins_after_the_deadline_was_drawn_holds_the_voter_back() -> None:
    c = cluster(wanted=None)
    c.elect("a")
    b = c["b"]
    longer = configuration_of("abc", lease=Lease(2000, 1000))
    entry = Entry(2, 1, EntryType.CONFIGURATION, encode_configuration(longer))
    c.set_time(c.now_ns + 100 * MS)
    b.receive(msg.AppendRequest("a", 1, 1, 1, 1, 9, 0, (entry,)))
    contact_ns = b.now_ns
    assert b.raft.next_deadline_ns < contact_ns + 2000 * MS, "drawn before"
    b.time_out()
    assert (b.raft.status().role, b.raft.leader_id) == ("follower", "a")
    assert b.raft.next_deadline_ns >= b.now_ns + 2000 * MS
    b.time_out()
    assert b.raft.status().role == "pre_candidate"


@pytest.mark.parametrize(("wanted_ms", "effective_ms"), [(100, 300), (900, 900)])
def test_rule_35_the_lease_s_election_timeout_is_a_minimum_for_all(
    wanted_ms: int, effective_ms: int
) -> None:
    c = cluster(wanted=Lease(wanted_ms, 0))
    c.elect("a")
    b, contact_ns = c["b"], c.now_ns
    b.receive(msg.Heartbeat("a", 1, 0, 0))
    assert b.raft.next_deadline_ns >= contact_ns + effective_ms * MS
    c.set_time(contact_ns + effective_ms * MS - 1)
    assert not granted(b, asks("c", 2))
    c.set_time(contact_ns + effective_ms * MS)
    assert granted(b, asks("c", 2))


def test_a_cluster_that_starts_under_a_lease_finds_a_leader() -> None:
    c = ManualCluster(lease=LEASE)
    c.advance(2000)
    assert len(c.leaders()) == 1


# -- broken leases, and who notices -------------------------------------------------------------


def no_wait_after_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "begin_wait", lambda _s: None)


def resumed_after_an_aborted_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    check = transfer.check_deadline

    def resume(s: CoreState, leadership: Leadership) -> None:
        check(s, leadership)
        leadership.lease_broken = leadership.transfer is not None

    monkeypatch.setattr(transfer, "check_deadline", resume)


def promise_ends_with_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    promised = lease.promised
    monkeypatch.setattr(lease, "promised", lambda s: s.leader_id is not None and promised(s))


def longer_than_clocks_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is as long as the promise, by a clock that may be slower."""
    valid = lease.valid_until_ns

    def too_long(s: CoreState) -> int | None:
        until_ns = valid(s)
        return None if until_ns is None else until_ns + TIMEOUT_MS * MS - LENGTH_NS

    monkeypatch.setattr(lease, "valid_until_ns", too_long)


def depose(c: ManualCluster) -> None:
    """d has not heard of a for long: it campaigns, and if b and c let it, leads and commits."""
    c.isolate("a")
    d = c["d"]
    d.time_out()
    c.deliver()
    if d.raft.is_leader:
        d.propose(b"new")
        c.deliver()


def restarts(c: ManualCluster) -> None:
    """b and c start again, and do not know that they have just promised a the lease."""
    for name in "bc":
        c[name].start()
    depose(c)


def a_late_order(c: ManualCluster) -> None:
    """a's order to b arrives when a has long given the transfer up and holds its quorum."""
    c["a"].step(ev.TransferRequested(c["a"].now_ns, "b"))
    c.drop(lambda _to, m: isinstance(m, msg.TimeoutNow))
    c.advance(1000)
    beat(c)
    c.isolate("a")
    c["b"].receive(msg.TimeoutNow("a", 1))
    c.deliver()
    c["b"].propose(b"new")
    c.deliver()


def a_foreign_term(c: ManualCluster) -> None:
    """b and c hear of a higher term, from somebody else, right after their promise."""
    for name in "bcd":
        c[name].receive(msg.VoteReply("e", 5, granted=False))
    depose(c)


def a_slow_clock(c: ManualCluster) -> None:
    """While a's clock shows 280 ms those of b and c show 301, which the bound allows."""
    start_ns = c.now_ns
    for name in "bc":
        c[name].now_ns = start_ns + 301 * MS
    depose(c)
    c["a"].now_ns = start_ns + 280 * MS


#: For each broken rule a scenario, and whether a is deposed also if the rule holds.
SCENARIOS: dict[
    Callable[[pytest.MonkeyPatch], None], tuple[Callable[[ManualCluster], None], bool]
] = {
    no_wait_after_restart: (restarts, False),
    resumed_after_an_aborted_transfer: (a_late_order, True),
    promise_ends_with_the_term: (a_foreign_term, False),
    longer_than_clocks_allow: (a_slow_clock, True),
}


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("mutant", SCENARIOS, ids=lambda m: m.__name__)
def test_rule_35_a_deposed_leader_serves_no_stale_read(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, *, broken: bool
) -> None:
    """Each scenario serves a stale read once the rule that forbids it is broken, and only then."""
    c, leader = leading("abcde")
    c.cut("a", "d")
    if broken:
        mutant(monkeypatch)
    scenario, deposes = SCENARIOS[mutant]
    scenario(c)
    committed = max(node.raft.commit_index for node in c.nodes.values())
    assert (committed > leader.raft.commit_index) is (deposes or broken)
    assert leader.raft.is_leader
    leader.read(99, by_lease=True)
    assert (99 in released(leader)) is (broken or not deposes)
    stale = 99 in released(leader) and leader.machine.index < committed
    assert stale is broken


#: Reads by lease on leaders that are replaced without noticing it.
LEASING = SimOptions(
    nodes=5, delay_ms=4.0, disk_ms=3.0, crash_ms=2000, partition_ms=500, pause_ms=900,
    transfer_ms=900, read_every_ms=3, write_every_ms=8, drift_ppm=100_000, lease=True,
    hang_ms=2000, rollback_ms=2500,
)  # fmt: skip

#: Leaders that stand still while others are elected, asked for many reads meanwhile.
PAUSING = SimOptions(
    nodes=3, delay_ms=3.0, disk_ms=3.0, partition_ms=600, pause_ms=300, read_every_ms=4,
    write_every_ms=8, lease=True,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_rule_35_no_lease_read_is_stale_whatever_clocks_do_within_the_bound(seed: int) -> None:
    result = run_seed(seed, LEASING)
    assert result.failure is None, result.failure
    assert result.counters["reads asked for by lease"] > 20


def test_rule_35_the_simulation_notices_a_lease_that_is_longer_than_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    valid = lease.valid_until_ns

    def too_long(s: CoreState) -> int | None:
        until_ns = valid(s)
        return None if until_ns is None else until_ns + 5 * TIMEOUT_MS * MS

    monkeypatch.setattr(lease, "valid_until_ns", too_long)
    for seed in range(20):
        result = run_seed(seed, PAUSING)
        if result.failure is not None:
            assert result.invariant == "I12", result.failure
            return
    pytest.fail("20 seeds and nobody noticed")
