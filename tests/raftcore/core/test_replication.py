"""Replication, the commit rule, backtracking, windows, applying (rules 16 to 31)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepsen_like.sim.manual import ManualCluster, ManualNode, log_of, position_of
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.errors import InvariantError
from raftcore.core.messages import Message
from raftcore.core.raft import PeerStatus
from raftcore.core.replication import LOST_AFTER_HEARTBEATS
from raftcore.core.types import Entry, EntryType, Position


def append(
    sender: str, term: int, prev: tuple[int, int], *terms: int, commit: int = 0, sequence: int = 1
) -> msg.AppendRequest:
    """Entries after ``prev`` (index, term) with these terms."""
    entries = tuple(
        Entry(index, t, EntryType.COMMAND, f"{index}@{t}".encode())
        for index, t in enumerate(terms, start=prev[0] + 1)
    )
    return msg.AppendRequest(sender, term, prev[0], prev[1], commit, sequence, 0, entries)


def replies(effects: list[ef.Effect]) -> list[msg.AppendReply]:
    found = [e.message for e in effects if isinstance(e, ef.Send)]
    return [m for m in found if isinstance(m, msg.AppendReply)]


def requests(pairs: list[tuple[str, Message]], to: str) -> list[msg.AppendRequest]:
    return [m for t, m in pairs if t == to and isinstance(m, msg.AppendRequest)]


def terms_of(node: ManualNode) -> list[int]:
    return [entry.term for entry in node.image.entries]


def peer(node: ManualNode, name: str) -> PeerStatus:
    return next(p for p in node.raft.status().peers if p.node_id == name)


def is_append(_to: str, message: Message) -> bool:
    return isinstance(message, msg.AppendRequest)


# -- the commit rule --------------------------------------------------------------------------


def test_rule_16_figure_8_an_old_entry_on_a_majority_is_not_committed_by_counting() -> None:
    """Thesis 3.6.2, Figure 3.7: (c) the entry of term 2 reaches a majority, (d) is overwritten."""
    logs = {"s1": [1, 2], "s2": [1, 2], "s3": [1], "s4": [1], "s5": [1, 3]}
    c = ManualCluster(["s1", "s2", "s3", "s4", "s5"], logs=logs, terms=dict.fromkeys(logs, 3))
    s1 = c["s1"]
    c.isolate("s5")
    s1.time_out()
    # the entry of term 2 goes to s3, but nothing of term 4 gets through
    c.deliver(lambda _to, m: not isinstance(m, msg.AppendRequest))
    assert s1.raft.is_leader
    s1.hold_disk = True
    c.drop()
    s1.receive(msg.AppendReply("s2", 4, True, 2, 0, 0, 1, 0))
    s1.receive(msg.AppendReply("s3", 4, True, 2, 0, 0, 1, 0))
    assert s1.raft.commit_index == 0, "index 2 is on s1, s2 and s3, but of term 2"
    s1.receive(msg.AppendReply("s2", 4, True, 3, 0, 0, 1, 0))
    s1.receive(msg.AppendReply("s3", 4, True, 3, 0, 0, 1, 0))
    s1.flush()
    assert s1.raft.commit_index == 3, "an entry of term 4 commits all before it"


def test_rule_17_the_leader_counts_itself_only_after_its_own_write() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.hold_disk = True
    leader.propose(b"x")
    c.cut("a", "c")
    assert requests(c.collect(), "b"), "entries are sent beside the leader's own write"
    c.deliver()
    assert leader.raft.commit_index == 1, "b alone is not a majority"
    leader.flush()
    assert leader.raft.commit_index == 2


def test_rule_17_a_committed_entry_survives_the_crash_of_the_leader() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.hold_disk = True
    leader.propose(b"x")
    c.deliver()
    assert leader.raft.commit_index == 2, "b and c hold it durably without the leader"
    leader.start()
    c.elect("b")
    assert [e.data for e in c["b"].image.entries] == [b"", b"x", b""]


def test_rule_19_a_follower_commits_only_what_this_request_verified() -> None:
    """Its own suffix is of an older term; the leader's commit index is far ahead."""
    node = ManualCluster(logs={"a": [1, 1, 2, 2, 2]})["a"]
    (reply,) = replies(node.receive(append("b", 3, (1, 1), 1, commit=9)))
    assert reply.success
    assert reply.match_index == 2, "what was verified, not the end of the log"
    assert node.raft.commit_index == 2


def test_rule_19_heartbeats_carry_no_more_than_what_is_proven_to_match() -> None:
    c = ManualCluster(logs={"a": [1, 1], "b": [1, 1]})
    leader = c.elect("a")
    c.isolate("c")
    leader.propose(b"x")
    c.deliver()
    assert leader.raft.commit_index >= 3
    c.heal()
    leader.time_out()
    sent = {to: m for to, m in leader.outbox if isinstance(m, msg.Heartbeat)}
    assert sent["c"].commit <= peer(leader, "c").match_index
    assert sent["b"].commit == leader.raft.commit_index


# -- appending and truncating -----------------------------------------------------------------


def test_rule_20_every_pair_of_appends_reordered_or_repeated_loses_nothing_acknowledged() -> None:
    batches = [
        append("b", 2, (0, 0), 1, 1),
        append("b", 2, (1, 1), 1),
        append("b", 2, (2, 1), 2, 2),
        append("b", 2, (3, 2), 2),
        append("b", 2, (4, 2)),
    ]
    for order in itertools.permutations(batches, 3):
        node = ManualCluster()["a"]
        acknowledged = 0
        for message in (*batches[:3], *order):
            for reply in replies(node.receive(message)):
                if reply.success:
                    acknowledged = max(acknowledged, reply.match_index)
            assert node.image.last_index >= acknowledged
        assert terms_of(node) == [1, 1, 2, 2]


def test_rule_20_a_conflict_truncates_from_the_first_difference_in_one_write() -> None:
    node = ManualCluster(logs={"a": [1, 1, 2, 2, 2]})["a"]
    effects = node.receive(append("b", 3, (1, 1), 1, 3, 3))
    (write,) = [e for e in effects if isinstance(e, ef.Persist)]
    assert write.truncate_from == 3
    assert [e.index for e in write.entries] == [3, 4]
    assert terms_of(node) == [1, 1, 3, 3]


@pytest.mark.parametrize(
    "message",
    [
        append("b", 5, (1, 1), 5, 5),
        append("b", 5, (0, 0), 1, 5),
        append("b", 5, (1, 2)),
    ],
)
def test_rule_21_a_leader_that_contradicts_what_is_committed_stops_the_node(
    message: msg.AppendRequest,
) -> None:
    node = ManualCluster(logs={"a": [1, 1, 1]})["a"]
    node.receive(append("b", 2, (3, 1), commit=2))
    assert node.raft.commit_index == 2
    before = list(node.image.entries)
    with pytest.raises(InvariantError, match="committed index"):
        node.receive(message)
    assert node.image.entries == before


@given(st.lists(st.integers(0, 7), min_size=1, max_size=25), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_rule_22_match_never_exceeds_what_the_peer_holds_durably(
    choices: list[int], rng: random.Random
) -> None:
    """Whatever is lost, repeated and reordered between a leader and its followers."""
    c = ManualCluster(logs={"b": [1, 1, 1], "a": [1, 2, 2], "c": [1]}, max_inflight_messages=3)
    c.cut("b", "c")
    leader = c.elect("a")
    for choice in choices:
        if choice == 0:
            leader.propose(b"x")
        elif choice == 1:
            leader.time_out()
        elif choice == 2:
            c.drop(lambda _to, _m: rng.random() < 0.5)
        elif c.collect():
            to, message = rng.choice(c.wire)
            if choice != 3:  # otherwise it is delivered and stays on the wire
                c.wire.remove((to, message))
            c[to].receive(message)
        for p in leader.raft.status().peers:
            image = c[p.node_id].image
            assert image.last_index >= p.match_index
            ours = leader.image.chain_at(min(p.match_index, leader.image.last_index))
            assert image.chain_at(min(p.match_index, leader.image.last_index)) == ours


def test_rule_24_replies_of_an_earlier_leadership_change_nothing() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    for _ in range(3):
        leader.propose(b"x")
    c.deliver(lambda to, _m: to != "a")
    old = [m for _, m in c.collect() if isinstance(m, msg.AppendReply)]
    assert len(old) >= 2
    c.drop()
    leader.receive(msg.Heartbeat("b", 2, 0, 0))  # b led meanwhile
    c.drop()
    c.set_time(10**9)
    leader = c.elect("a")
    before = leader.raft.status()
    assert before.term == 3
    for reply in old:
        leader.receive(reply)
    assert leader.raft.status() == before


def test_rule_24_a_rejection_is_heeded_once() -> None:
    c = ManualCluster(logs={"a": [1, 2, 3, 3], "b": [1, 2, 2, 2, 2], "c": [1, 2, 3, 3]})
    leader = c["a"]
    leader.time_out()
    c.deliver(lambda _to, m: not is_append(_to, m))
    (probe,) = requests(c.wire, "b")
    rejection = msg.AppendReply("b", 4, False, 0, 2, 2, probe.sequence, 0)
    leader.receive(rejection)
    before = peer(leader, "b")
    assert before.next_index == 3
    leader.receive(rejection)
    assert peer(leader, "b") == before


def sorted_terms(*allowed: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from(allowed), max_size=14).map(sorted)


@given(sorted_terms(1, 2), sorted_terms(3, 5, 7, 9), sorted_terms(4, 6, 8, 10))
@settings(max_examples=80)
def test_rule_25_probes_are_bounded_by_the_terms_in_the_logs(
    common: list[int], ours: list[int], theirs: list[int]
) -> None:
    """Logs that agree on ``common`` and were then written by different leaders."""
    logs = {"a": common + ours, "b": common + theirs, "c": []}
    c = ManualCluster("abc", logs=logs, terms=dict.fromkeys("abc", 11))
    c.isolate("b")
    leader = c.elect("a")
    c.heal()
    leader.time_out()
    c.deliver()
    assert c["b"].image.entries == leader.image.entries
    assert peer(leader, "b").match_index == leader.image.last_index
    rejections = [m for m in replies(c["b"].effects) if not m.success]
    assert len(rejections) <= min(len(set(ours)), len(set(theirs))) + 1


def compacted_follower() -> ManualNode:
    """Five entries of term 1, all committed; the log begins at 4 behind a snapshot at 3."""
    c = ManualCluster(trailing_entries=0)
    node = c["a"]
    node.receive(append("b", 1, (0, 0), 1, 1, 1, commit=3))
    node.take_snapshot()
    node.receive(append("b", 1, (3, 1), 1, 1, commit=5))
    assert (node.raft.status().first_index, node.raft.commit_index) == (4, 5)
    return node


@pytest.mark.parametrize("prev", range(6))
def test_rule_26_an_append_that_straddles_the_snapshot_matches(prev: int) -> None:
    node = compacted_follower()
    before = list(node.image.entries)
    message = append("b", 1, (prev, 1 if prev else 0), *[1] * (7 - prev), commit=5)
    (reply,) = replies(node.receive(message))
    assert reply.success
    assert reply.match_index == 7
    assert node.image.entries[: len(before)] == before
    assert node.image.last_index == 7


def test_rule_27_a_repeated_first_append_leaves_a_compacted_log_as_it_is() -> None:
    node = compacted_follower()
    before = list(node.image.entries)
    effects = node.receive(append("b", 1, (0, 0), 1, 1))
    assert not [e for e in effects if isinstance(e, ef.Persist)]
    assert replies(effects)[0].match_index == 5
    assert node.image.entries == before


# -- windows ----------------------------------------------------------------------------------


def lost_window(lose_probes: int) -> tuple[ManualCluster, ManualNode]:
    """A leader whose whole window to b was lost, and as many of the probes behind it."""
    c = ManualCluster(max_inflight_messages=2, max_append_entries=1)
    leader = c.elect("a")
    c.advance(100)
    for _ in range(4):
        leader.propose(b"x")
    assert peer(leader, "b").paused_because == "its window is full"
    c.drop(lambda to, m: to == "b" and is_append(to, m))
    c.deliver()
    while lose_probes:
        c.set_time(c.now_ns + 60 * MS)
        leader.tick()
        c.deliver(lambda to, m: not (to == "b" and is_append(to, m)))
        lose_probes -= c.drop()
    return c, leader


@pytest.mark.parametrize("lose_probes", [0, 1, 2, 5])
def test_rule_28_a_lost_window_is_noticed_by_heartbeats_however_many_probes_are_lost_too(
    lose_probes: int,
) -> None:
    c, leader = lost_window(lose_probes)
    assert peer(leader, "b").inflight_messages <= 2 + 1
    c.advance((LOST_AFTER_HEARTBEATS + 3) * 60)
    assert c["b"].image.entries == leader.image.entries
    assert peer(leader, "b").match_index == leader.image.last_index


def test_a_lost_append_whose_place_was_compacted_meanwhile_leads_to_a_snapshot() -> None:
    """Found by simulation: the peer stayed at the compacted position for ever."""
    c = ManualCluster(trailing_entries=0, max_append_entries=1, max_inflight_messages=1)
    leader = c.elect("a")
    c.advance(100)
    for _ in range(4):
        leader.propose(b"x")
        c.drop(lambda to, m: to == "b" and is_append(to, m))
        c.deliver()
        leader.take_snapshot()
    assert peer(leader, "b").next_index < leader.raft.status().first_index
    c.advance(400)
    assert c["b"].machine == leader.machine


def test_replies_to_rounds_of_reads_do_not_ask_what_was_lost() -> None:
    """Each of them used to send an empty append: half of all appends under load."""
    c = ManualCluster()
    leader = c.elect("a")
    c.advance(100)
    leader.propose(b"x")
    c.collect()

    def asked() -> int:
        for _ in range(20):
            leader.receive(msg.HeartbeatReply("b", 1, 0))
        return len(leader.outbox)

    leader.outbox.clear()
    assert asked() == 0, "nothing has had time to be answered"
    c.set_time(c.now_ns + 59 * MS)
    assert asked() == 0
    c.set_time(c.now_ns + 1 * MS)
    assert asked() == 1
    for _ in range(LOST_AFTER_HEARTBEATS - 1):
        c.set_time(c.now_ns + 60 * MS)
        assert asked() == 1, "one question at a time"
    assert peer(leader, "b").state == "replicate"
    c.set_time(c.now_ns + 60 * MS)
    assert asked() == 2, "the question was lost too: probe"
    assert peer(leader, "b").state == "probe"
    c.wire = [("b", leader.outbox[-1][1])]
    c.deliver()
    assert c["b"].image.entries == leader.image.entries


@pytest.mark.parametrize("round_trip_ms", [100, 250])
def test_a_round_trip_longer_than_a_heartbeat_does_not_stop_probing(round_trip_ms: int) -> None:
    """Each heartbeat used to forget the probe whose answer was still on its way."""
    c = ManualCluster("ab", logs={"a": [1, 2, 2], "b": [1, 1]}, terms={"a": 2, "b": 2})
    leader = c["a"]
    c.set_time(leader.raft.next_deadline_ns)
    leader.tick()
    c.deliver(lambda _to, m: not is_append(_to, m))
    assert leader.raft.is_leader
    late: list[tuple[int, str, Message]] = []
    for _ in range(400):
        c.set_time(c.now_ns + 5 * MS)
        if leader.raft.next_deadline_ns <= c.now_ns:
            leader.tick()
        late += [(c.now_ns + round_trip_ms * MS // 2, to, m) for to, m in c.collect()]
        c.wire.clear()
        due = [x for x in late if x[0] <= c.now_ns]
        late = [x for x in late if x[0] > c.now_ns]
        for _, to, message in due:
            c[to].receive(message)
    assert leader.raft.is_leader
    assert c["b"].image.entries == leader.image.entries
    assert leader.raft.commit_index == 4


def test_the_window_bounds_messages_and_bytes_in_flight() -> None:
    c = ManualCluster(max_inflight_messages=3, max_append_entries=1)
    leader = c.elect("a")
    c.deliver()
    for _ in range(10):
        leader.propose(b"x")
    assert peer(leader, "b").inflight_messages == 3
    c = ManualCluster(max_inflight_bytes=250, max_append_bytes=1)
    leader = c.elect("a")
    c.deliver()
    for _ in range(10):
        leader.propose(b"x" * 36)
    assert peer(leader, "b").inflight_bytes == 300, "the message that closes the window may pass it"


def test_a_lost_connection_makes_the_leader_probe_again() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    c.deliver()
    leader.propose(b"x")
    c.drop()
    leader.step(ev.PeerUnreachable(leader.now_ns, "b"))
    assert peer(leader, "b").state == "probe"
    c.advance(200)
    assert c["b"].image.entries == leader.image.entries
    for stranger in ("zz", "a"):
        assert leader.step(ev.PeerUnreachable(leader.now_ns, stranger)) == []
    assert c["b"].step(ev.PeerUnreachable(leader.now_ns, "a")) == []


def test_a_peer_that_denies_what_it_acknowledged_is_not_counted_nor_asked_any_more() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.propose(b"x")
    c.deliver()
    match = peer(leader, "b").match_index
    assert match == 2
    leader.propose(b"y")
    (request,) = requests(c.collect(), "b")
    c.drop()
    assert request.prev_index == match, "it was acknowledged before this was sent"
    leader.receive(msg.AppendReply("b", 1, False, 0, 0, 0, request.sequence, 0))
    assert peer(leader, "b").regressed
    assert peer(leader, "b").paused_because == "it denies entries that it acknowledged"
    leader.propose(b"z")
    assert not requests(leader.outbox, "b")


# -- reading entries that are not in memory ---------------------------------------------------


def far_behind(**options: Any) -> tuple[ManualCluster, ManualNode]:
    """b lacks entries that the leader no longer has in memory; reads from storage are held."""
    c = ManualCluster(logs={"a": [1] * 6, "c": [1] * 6}, entry_cache_bytes=1, **options)
    c.isolate("b")
    leader = c.elect("a")
    leader.propose(b"x", b"y")
    c.deliver()
    c.heal()
    leader.hold_reads = True
    c.advance(100)
    return c, leader


def test_entries_out_of_memory_are_read_from_storage_for_a_peer() -> None:
    c, leader = far_behind()
    (read,) = leader.to_read
    assert (read.first, read.last) == (1, 9)
    assert peer(leader, "b").paused_because == "entries for it are being read from storage"
    c.advance(200)
    assert leader.to_read == [read], "one read at a time"
    leader.read_now()
    leader.hold_reads = False
    c.deliver()
    assert c["b"].image.entries == leader.image.entries


def test_a_read_whose_beginning_is_compacted_meanwhile_harms_nothing() -> None:
    """The peer acknowledged, late, what was being read for it; nothing needs that any more."""
    _, leader = far_behind(trailing_entries=2)
    (read,) = leader.to_read
    entries = tuple(leader.image.entries)
    leader.to_read.clear()
    leader.receive(msg.AppendReply("b", leader.raft.term, True, 8, 0, 0, 1, 0))
    leader.take_snapshot()
    assert leader.raft.status().first_index > read.first
    leader.outbox.clear()
    leader.step(ev.EntriesRead(leader.now_ns, read.request_id, entries))
    assert [e.index for m in requests(leader.outbox, "b") for e in m.entries] == [9]


def test_rule_29_a_short_read_is_sent_and_the_rest_is_read_next() -> None:
    _, leader = far_behind()
    (read,) = leader.to_read
    leader.to_read.clear()
    leader.step(ev.EntriesRead(leader.now_ns, read.request_id, tuple(leader.image.entries[:2])))
    assert [e.index for e in requests(leader.outbox, "b")[-1].entries] == [1, 2]
    assert leader.to_read[0].first == 3
    leader.outbox.clear()
    leader.receive(msg.HeartbeatReply("b", leader.raft.term, 0))
    assert not requests(leader.outbox, "b"), "nothing is sent after a place that is being read"


@pytest.mark.parametrize("wrong", ["shifted", "hole", "foreign"])
def test_rule_29_a_wrong_read_stops_the_sender(wrong: str) -> None:
    _, leader = far_behind()
    (read,) = leader.to_read
    entries = list(leader.image.entries)
    if wrong == "shifted":
        entries = [Entry(e.index + 1, e.term, e.type, e.data) for e in entries[-1:]]
    elif wrong == "hole":
        del entries[1]
    else:
        entries = log_of(9)
    with pytest.raises(InvariantError, match="storage gave"):
        leader.step(ev.EntriesRead(leader.now_ns, read.request_id, tuple(entries)))
    assert not requests(leader.outbox, "b")


def test_an_acknowledgement_during_a_read_moves_the_peer_on() -> None:
    """Found by simulation: the leader took its own progress for misuse by the driver."""
    _, leader = far_behind()
    (read,) = leader.to_read
    leader.receive(msg.AppendReply("b", leader.raft.term, True, 3, 0, 0, 1, 0))
    leader.step(ev.EntriesRead(leader.now_ns, read.request_id, tuple(leader.image.entries)))
    assert requests(leader.outbox, "b")[-1].entries[0].index == 4


def test_an_acknowledgement_of_all_that_is_being_read_leaves_nothing_to_send() -> None:
    _, leader = far_behind()
    (read,) = leader.to_read
    leader.receive(msg.AppendReply("b", leader.raft.term, True, 3, 0, 0, 1, 0))
    leader.outbox.clear()
    leader.step(ev.EntriesRead(leader.now_ns, read.request_id, tuple(leader.image.entries[:2])))
    assert not requests(leader.outbox, "b")


def test_what_a_peer_passed_during_a_read_may_be_compacted_when_it_arrives() -> None:
    """Found by simulation: with a slow disk the leader took it for a wrong read."""
    _, leader = far_behind(trailing_entries=2)
    (read,) = leader.to_read
    entries = tuple(leader.image.entries)
    leader.receive(msg.AppendReply("b", leader.raft.term, True, 7, 0, 0, 1, 0))
    leader.take_snapshot()
    leader.take_snapshot()
    assert leader.raft.status().first_index == 8
    leader.step(ev.EntriesRead(leader.now_ns, read.request_id, entries))
    assert [e.index for e in requests(leader.outbox, "b")[-1].entries] == [8, 9]


def test_a_read_that_found_nothing_is_asked_again_later() -> None:
    _, leader = far_behind()
    (read,) = leader.to_read
    leader.to_read.clear()
    leader.step(ev.EntriesRead(leader.now_ns, read.request_id, ()))
    assert not requests(leader.outbox, "b")
    leader.receive(msg.HeartbeatReply("b", leader.raft.term, 0))
    assert leader.to_read


def test_a_read_overtaken_by_compaction_ends_in_a_snapshot() -> None:
    _, leader = far_behind(trailing_entries=0)
    (read,) = leader.to_read
    leader.take_snapshot()
    leader.take_snapshot()
    assert leader.raft.status().first_index > read.first
    effects = leader.step(ev.EntriesRead(leader.now_ns, read.request_id, ()))
    assert [type(e) for e in effects] == [ef.ReadSnapshotChunk]
    assert peer(leader, "b").state == "snapshot"


def test_a_read_for_a_leadership_that_is_over_is_ignored() -> None:
    _, leader = far_behind()
    (read,) = leader.to_read
    leader.receive(msg.HeartbeatReply("c", 99, 0))
    assert leader.step(ev.EntriesRead(leader.now_ns, read.request_id, ())) == []


def test_a_read_that_nobody_asked_for_is_ignored() -> None:
    _, leader = far_behind()
    assert leader.step(ev.EntriesRead(leader.now_ns, 999, ())) == []


# -- durability and applying ------------------------------------------------------------------


def test_acknowledgements_leave_only_after_the_write() -> None:
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.receive(append("b", 1, (0, 0), 1))
    node.receive(append("b", 1, (1, 1), 1, sequence=2))
    assert node.outbox == []
    node.flush(1)
    assert [m.match_index for _, m in node.outbox if isinstance(m, msg.AppendReply)] == [1]
    node.flush(1)
    assert [m.match_index for _, m in node.outbox if isinstance(m, msg.AppendReply)] == [1, 2]


def test_rule_30_the_completion_of_an_old_write_vouches_for_nothing_new() -> None:
    """ABA: leaders A, C, A write the same index while the disk is slow."""
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.receive(append("b", 1, (0, 0), 1, 1))
    node.receive(append("c", 2, (0, 0), 2, 2))
    node.receive(append("b", 3, (0, 0), 3, 3, commit=2))
    assert node.raft.status().durable_index == 0
    node.flush(1)
    assert node.raft.status().durable_index == 0, "those bytes are overwritten already"
    assert node.machine.index == 0
    node.flush(1)
    assert node.raft.status().durable_index == 0
    node.flush(1)
    assert node.raft.status().durable_index == 2
    assert terms_of(node) == [3, 3]
    assert node.machine.index == 2


def test_rule_30_each_acknowledgement_names_its_own_write() -> None:
    node = ManualCluster()["a"]
    node.hold_disk = True
    marks = []
    for term, leader in ((1, "b"), (2, "c"), (3, "b")):
        effects = node.receive(append(leader, term, (0, 0), term))
        (write,) = [e for e in effects if isinstance(e, ef.Persist)]
        (send,) = [e for e in effects if isinstance(e, ef.Send)]
        assert send.after == write.mark
        marks.append((write.mark.sequence, write.mark.term))
    assert marks == [(1, 1), (2, 2), (3, 3)]


def test_rule_31_nothing_is_applied_before_it_is_durable_here() -> None:
    node = ManualCluster()["a"]
    node.hold_disk = True
    node.receive(append("b", 1, (0, 0), 1, 1, commit=2))
    assert node.raft.commit_index == 2
    assert not [e for e in node.effects if isinstance(e, ef.Apply)]
    node.start()
    assert node.raft.status().last_index == 0
    assert node.machine.index == 0
    node.receive(append("b", 1, (0, 0), 1, 1, commit=2))
    node.flush()
    assert node.machine.index == 2


def test_entries_are_applied_one_batch_at_a_time() -> None:
    node = ManualCluster(max_append_entries=2)["a"]
    node.hold_apply = True
    node.receive(append("b", 1, (0, 0), 1, 1, 1, commit=3))
    assert [[e.index for e in b.entries] for b in node.to_apply] == [[1, 2]]
    node.apply_now()
    assert node.machine.index == 3


def restarted_with_unapplied(**options: Any) -> ManualNode:
    """Three committed entries on disk, none of them in memory nor applied."""
    c = ManualCluster(logs={"a": [1, 1, 1]}, **options)
    node = c["a"]
    node.hold_reads = True
    node.receive(append("b", 1, (3, 1), commit=3))
    return node


def test_entries_out_of_memory_are_read_to_be_applied() -> None:
    node = restarted_with_unapplied()
    (read,) = node.to_read
    assert (read.first, read.last) == (1, 3)
    node.read_now()
    assert node.machine.index == 3


def test_committed_entries_that_storage_has_lost_stop_the_node() -> None:
    """An empty answer used to be asked for again, in a circle without end."""
    node = restarted_with_unapplied()
    with pytest.raises(InvariantError, match="lost the committed entry 1"):
        node.step(ev.EntriesRead(node.now_ns, node.to_read[0].request_id, ()))


def test_foreign_entries_are_not_applied() -> None:
    node = restarted_with_unapplied()
    with pytest.raises(InvariantError, match="storage gave"):
        node.step(ev.EntriesRead(node.now_ns, node.to_read[0].request_id, tuple(log_of(2))))
    assert node.machine.index == 0


def test_followers_learn_of_a_commit_at_once() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    leader.propose(b"x")
    c.deliver()
    assert {n.machine.index for n in c.nodes.values()} == {2}, "without any further tick"


def test_a_single_entry_larger_than_a_message_still_goes() -> None:
    c = ManualCluster(max_append_bytes=10)
    leader = c.elect("a")
    c.deliver()
    leader.propose(b"x" * 1000, b"y" * 1000)
    c.deliver()
    assert c["b"].image.last_index == 3


def test_replies_of_strangers_are_ignored() -> None:
    c = ManualCluster()
    leader = c.elect("a")
    before = leader.raft.status()
    for message in (
        msg.AppendReply("zz", 1, True, 1, 0, 0, 1, 0),
        msg.HeartbeatReply("zz", 1, 0),
        msg.SnapshotReply("zz", 1, 1, 0, True, 1, 0),
    ):
        assert leader.receive(message) == []
    assert leader.raft.status() == before


def test_positions_are_compared_as_a_whole() -> None:
    c = ManualCluster(logs={"a": [1, 2]})
    assert position_of(c["a"]) == Position(2, 2)
