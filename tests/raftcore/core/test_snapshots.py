"""Snapshots: transfer in chunks, stale and racing ones, compaction (rules 26, 44, 45)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jepsen_like.sim.disk import StoredSnapshot
from jepsen_like.sim.machine import ChainMachine
from jepsen_like.sim.manual import (
    ManualCluster,
    ManualNode,
    configuration_of,
    log_of,
    snapshot_of,
)
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS
from raftcore.core.errors import InvariantError
from raftcore.core.membership import encode_configuration
from raftcore.core.messages import Message
from raftcore.core.raft import PeerStatus
from raftcore.core.types import Entry, EntryType


def machine_at(*terms: int) -> ChainMachine:
    machine = ChainMachine()
    for entry in log_of(*terms):
        machine.apply(entry)
    return machine


def snapshot(*terms: int) -> StoredSnapshot:
    """Of the state after entries of these terms."""
    return snapshot_of(machine_at(*terms), configuration_of("abc"))


def chunk(
    sender: str, term: int, stored: StoredSnapshot, offset: int, size: int = 400, sequence: int = 1
) -> msg.SnapshotChunk:
    data = stored.data[offset : offset + size]
    return msg.SnapshotChunk(sender, term, stored.meta, offset, data, sequence, 0)


def answers(node: ManualNode) -> list[msg.SnapshotReply]:
    found = [m for _, m in node.outbox if isinstance(m, msg.SnapshotReply)]
    node.outbox.clear()
    return found


def receive_all(node: ManualNode, stored: StoredSnapshot, term: int = 5) -> None:
    for offset in (0, 400, 800):
        node.receive(chunk("b", term, stored, offset))


def peer(node: ManualNode, name: str) -> PeerStatus:
    return next(p for p in node.raft.status().peers if p.node_id == name)


def is_chunk(_to: str, message: Message) -> bool:
    return isinstance(message, msg.SnapshotChunk)


def lagging(chunk_bytes: int = 400) -> tuple[ManualCluster, ManualNode]:
    """b lacks entries that the leader has compacted."""
    c = ManualCluster(trailing_entries=0, snapshot_chunk_bytes=chunk_bytes)
    c.isolate("b")
    leader = c.elect("a")
    for _ in range(3):
        leader.propose(b"x")
        c.deliver()
        leader.take_snapshot()
    leader.propose(b"y")
    c.deliver()
    assert leader.raft.status().first_index > 1
    c.heal()
    c.set_time(c.now_ns + 60 * MS)
    return c, leader


def sequence_of_the_last_chunk(leader: ManualNode) -> int:
    return [m for _, m in leader.outbox if isinstance(m, msg.SnapshotChunk)][-1].sequence


# -- a whole transfer -------------------------------------------------------------------------


def test_a_follower_behind_the_log_is_fed_a_snapshot_and_goes_on_from_there() -> None:
    c, leader = lagging()
    c.advance(100)
    assert c["b"].machine == leader.machine
    assert c["b"].image.snapshots
    assert peer(leader, "b").state == "replicate"
    leader.propose(b"z")
    c.deliver()
    assert c["b"].machine == leader.machine


def test_a_new_leader_finds_out_by_a_rejection_that_only_a_snapshot_helps() -> None:
    c, leader = lagging()
    c.isolate("b")
    term = leader.raft.term
    c["c"].receive(msg.TimeoutNow("a", term))
    c.deliver()
    assert c.leaders() == ["c"]
    c["c"].take_snapshot()
    c.deliver()
    assert c["c"].raft.status().first_index > 1
    c.heal()
    c.advance(100)
    assert c["b"].image.snapshots
    assert c["b"].machine == c["c"].machine


def test_chunks_follow_each_other_without_waiting_for_heartbeats() -> None:
    """Each chunk used to wait for the next heartbeat's reply."""
    c, leader = lagging()
    leader.time_out()
    c.deliver()
    assert c["b"].machine.index == leader.machine.index, "within one heartbeat"


def test_rule_45_a_lost_chunk_costs_one_chunk() -> None:
    c, leader = lagging()
    leader.time_out()
    c.deliver(lambda to, m: not is_chunk(to, m))
    first = [m for _, m in c.wire if isinstance(m, msg.SnapshotChunk)]
    assert [m.offset for m in first] == [0]
    c["b"].receive(first[0])
    c.wire.clear()
    c.deliver(lambda to, m: not is_chunk(to, m))
    assert peer(leader, "b").snapshot_offset == 400
    assert peer(leader, "b").paused_because == "it is being fed a snapshot"
    assert c.drop(is_chunk) == 1
    leader.step(ev.PeerUnreachable(leader.now_ns, "b"))
    leader.time_out()
    c.collect()
    c.deliver(lambda to, m: not is_chunk(to, m))
    assert [m.offset for _, m in c.wire if isinstance(m, msg.SnapshotChunk)] == [400]
    c.deliver()
    assert c["b"].machine == leader.machine


def test_an_unanswered_chunk_is_sent_again_after_ten_election_timeouts_then_twenty() -> None:
    c, leader = lagging()
    leader.time_out()
    c.deliver(lambda to, m: not is_chunk(to, m))
    assert c.drop(is_chunk) == 1
    started = c.now_ns
    lost_at: list[int] = []
    while len(lost_at) < 2:
        c.set_time(c.now_ns + 60 * MS)
        leader.time_out()
        c.deliver(lambda to, m: not is_chunk(to, m))
        if c.drop(is_chunk):
            lost_at.append((c.now_ns - started) // MS)
    assert lost_at == [3000, 9000]
    leader.step(ev.PeerUnreachable(leader.now_ns, "b"))
    c.advance(100)
    assert c["b"].machine == leader.machine


def test_a_link_slower_than_a_chunk_in_an_election_timeout_carries_each_chunk_once() -> None:
    """Chunks used to be sent again after 300 ms, and each repeated answer set off one more."""
    c, leader = lagging(chunk_bytes=60)
    start = free_ns = c.now_ns
    sent_bytes = 0
    under_way: list[tuple[int, str, Message]] = []
    while not c["b"].image.snapshots:
        c.set_time(c.now_ns + 5 * MS)
        assert c.now_ns < start + 20_000 * MS, "the transfer does not end"
        for node in c.nodes.values():
            if node.raft.next_deadline_ns <= node.now_ns:
                node.tick()
        if c.now_ns % (50 * MS) == start % (50 * MS):
            leader.propose(b"w")
        for to, message in c.collect():
            arrival_ns = c.now_ns
            if (message.sender, to) == ("a", "b"):  # one after the other, chunks take their time
                if isinstance(message, msg.SnapshotChunk):
                    sent_bytes += len(message.data)
                    free_ns = max(free_ns, c.now_ns) + 400 * MS
                arrival_ns = max(free_ns, c.now_ns)
            under_way.append((arrival_ns, to, message))
        c.wire.clear()
        for arrival in [a for a in under_way if a[0] <= c.now_ns]:
            under_way.remove(arrival)
            c[arrival[1]].receive(arrival[2])
    assert c.leaders() == ["a"]
    assert sent_bytes <= 2 * c["b"].image.snapshots[-1].meta.size_bytes


def test_only_the_answer_to_the_last_chunk_or_progress_lets_the_next_one_go() -> None:
    _, leader = lagging()
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    index = leader.image.snapshots[-1].meta.index
    first = sequence_of_the_last_chunk(leader)
    leader.receive(msg.SnapshotReply("b", 1, index, 400, False, first, 0))
    second = sequence_of_the_last_chunk(leader)
    assert second > first
    for sequence, offset in ((first, 400), (first, 0), (0, 400)):
        leader.receive(msg.SnapshotReply("b", 1, index, offset, False, sequence, 0))
        assert sequence_of_the_last_chunk(leader) == second
    assert peer(leader, "b").snapshot_offset == 400
    leader.receive(msg.SnapshotReply("b", 1, index, 800, False, first, 0))
    assert peer(leader, "b").snapshot_offset == 800
    assert sequence_of_the_last_chunk(leader) > second


def test_a_peer_that_installed_an_older_snapshot_is_fed_on() -> None:
    _, leader = lagging()
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    first = sequence_of_the_last_chunk(leader)
    leader.receive(msg.SnapshotReply("b", 1, 1, 0, True, first - 1, 0))
    assert sequence_of_the_last_chunk(leader) == first
    leader.receive(msg.SnapshotReply("b", 1, 1, 0, True, first, 0))
    assert peer(leader, "b").match_index == 1
    assert sequence_of_the_last_chunk(leader) > first


def test_a_snapshot_that_the_peer_can_not_install_is_sent_again_only_after_a_growing_pause() -> (
    None
):
    """It used to be fed again at once, for ever, and nothing said so."""
    c, leader = lagging()
    intact = [stored.data for stored in leader.image.snapshots]
    for stored in leader.image.snapshots:
        stored.data = b"!" + stored.data[1:]
    c.advance(3000)
    b = c["b"]
    begun = [e for e in b.effects if isinstance(e, ef.StoreSnapshotChunk) and e.offset == 0]
    assert 3 <= len(begun) <= 5
    because = peer(leader, "b").paused_because
    assert because is not None
    assert because.startswith(f"it could not install the snapshot {len(begun)} times; again in ")
    for stored, data in zip(leader.image.snapshots, intact, strict=True):
        stored.data = data
    c.advance(3000)
    assert b.machine == leader.machine
    assert peer(leader, "b").paused_because is None


def test_rule_45_the_log_is_kept_for_a_peer_that_is_being_fed() -> None:
    c, leader = lagging()
    leader.time_out()
    c.deliver(lambda to, m: not is_chunk(to, m))
    fed = leader.image.snapshots[-1].meta.index
    c.drop(is_chunk)
    for _ in range(3):
        leader.propose(b"more")
        c.deliver(lambda to, m: not is_chunk(to, m))
        leader.take_snapshot()
    assert leader.raft.status().first_index == fed + 1
    leader.step(ev.PeerUnreachable(leader.now_ns, "b"))
    c.advance(800)
    assert c["b"].machine == leader.machine


def test_a_snapshot_that_was_replaced_meanwhile_is_started_anew() -> None:
    c, leader = lagging()
    leader.time_out()
    c.deliver(lambda to, m: not is_chunk(to, m))
    old = leader.image.snapshots[-1].meta
    for _ in range(2):
        leader.propose(b"more")
        c.deliver(lambda to, m: not is_chunk(to, m))
        leader.take_snapshot()
    c.deliver()
    installed = c["b"].image.snapshots[-1].meta
    assert installed.index > old.index
    assert c["b"].machine == leader.machine


def test_the_newest_snapshot_must_be_readable() -> None:
    _, leader = lagging()
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    leader.image.snapshots.clear()
    leader.step(ev.PeerUnreachable(leader.now_ns, "b"))
    with pytest.raises(InvariantError, match="can not be read"):
        leader.receive(msg.HeartbeatReply("b", 1, 0))


def test_bytes_read_for_a_feed_that_has_moved_on_are_not_sent() -> None:
    c, leader = lagging()
    leader.time_out()
    c.deliver(lambda to, m: not is_chunk(to, m))
    c.drop()
    meta = leader.image.snapshots[-1].meta
    other = replace(meta, index=1)
    for event in (
        ev.SnapshotChunkRead(leader.now_ns, "b", meta, 7, b"x"),
        ev.SnapshotChunkRead(leader.now_ns, "b", other, 0, b"x"),
        ev.SnapshotChunkRead(leader.now_ns, "c", meta, 0, b"x"),
        ev.SnapshotChunkRead(leader.now_ns, "zz", meta, 0, b"x"),
    ):
        assert leader.step(event) == []
    leader.receive(msg.HeartbeatReply("c", 9, 0))
    assert leader.step(ev.SnapshotChunkRead(leader.now_ns, "b", meta, 0, b"x")) == []


def test_a_peer_that_catches_up_by_itself_is_not_fed_any_more() -> None:
    _, leader = lagging()
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    assert peer(leader, "b").state == "snapshot"
    first = leader.raft.status().first_index
    leader.receive(msg.AppendReply("b", 1, True, first - 2, 0, 0, 1, 0))
    assert peer(leader, "b").state == "snapshot", "not yet where the log begins"
    leader.receive(msg.AppendReply("b", 1, False, 0, 0, 0, 1, 0))
    assert peer(leader, "b").state == "snapshot"
    leader.receive(msg.AppendReply("b", 1, True, first - 1, 0, 0, 1, 0))
    assert peer(leader, "b").state != "snapshot"


def test_an_answer_about_another_snapshot_does_not_move_the_feed() -> None:
    _, leader = lagging()
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    sequence = sequence_of_the_last_chunk(leader)
    leader.receive(msg.SnapshotReply("b", 1, 1, 400, False, sequence, 0))
    assert peer(leader, "b").snapshot_offset == 0
    index = leader.image.snapshots[-1].meta.index
    leader.receive(msg.SnapshotReply("b", 1, index, 400, False, sequence, 0))
    assert peer(leader, "b").snapshot_offset == 400


@pytest.mark.parametrize("offset", [-1, 900, 10**9])
def test_an_answer_that_wants_bytes_beyond_the_end_begins_the_transfer_anew(offset: int) -> None:
    """It used to stop the leader, which took the empty read for a lost snapshot."""
    _, leader = lagging()
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    index = leader.image.snapshots[-1].meta.index
    leader.receive(
        msg.SnapshotReply("b", 1, index, 400, False, sequence_of_the_last_chunk(leader), 0)
    )
    leader.receive(
        msg.SnapshotReply("b", 1, index, offset, False, sequence_of_the_last_chunk(leader), 0)
    )
    assert peer(leader, "b").snapshot_offset == 0


def test_feeding_without_a_snapshot_stops_the_node() -> None:
    _, leader = lagging()
    leader.raft._s.log.snapshot = None
    with pytest.raises(InvariantError, match="there is no snapshot"):
        leader.receive(msg.HeartbeatReply("b", 1, 0))


# -- receiving --------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [1, 2, 3])
def test_rule_44_a_snapshot_at_or_below_commit_is_ignored(index: int) -> None:
    node = ManualCluster(logs={"a": [1, 1, 1, 1]})["a"]
    node.receive(msg.AppendRequest("b", 5, 4, 1, 3, 1, 0))
    node.outbox.clear()
    before = node.raft.status()
    node.receive(chunk("b", 5, snapshot(*[1] * index), 0))
    assert [(m.index, m.installed) for m in answers(node)] == [(index, True)]
    assert node.raft.status() == before
    assert not node.image.snapshots


def test_rule_44_a_snapshot_that_matches_the_log_keeps_what_follows_it() -> None:
    node = ManualCluster(logs={"a": [1, 1, 1, 2]})["a"]
    receive_all(node, snapshot(1, 1))
    assert node.image.last_index == 4
    status = node.raft.status()
    assert (status.last_index, status.commit_index, status.applied_index) == (4, 2, 2)
    assert [m.installed for m in answers(node)] == [False, False, True]


def test_rule_44_a_snapshot_that_does_not_match_drops_the_log() -> None:
    node = ManualCluster(logs={"a": [1, 1, 2, 2]})["a"]
    receive_all(node, snapshot(1, 1, 1))
    status = node.raft.status()
    assert (status.first_index, status.last_index, status.durable_index) == (4, 3, 3)
    assert (node.image.first_index, node.image.last_index) == (4, 3)
    (changed,) = [e for e in node.effects if isinstance(e, ef.ConfigurationChanged)]
    assert changed.index == 3


def hold_install(node: ManualNode, stored: StoredSnapshot) -> ef.StoreSnapshotChunk:
    """Receive all but the end of a snapshot; returns the last chunk, which is being installed."""
    node.receive(chunk("b", 5, stored, 0))
    node.receive(chunk("b", 5, stored, 400))
    message = chunk("b", 5, stored, 800)
    effects = node.raft.step(ev.MessageReceived(node.now_ns, message))
    (store,) = [e for e in effects if isinstance(e, ef.StoreSnapshotChunk)]
    node.outbox.clear()
    return store


def test_rule_44_nothing_is_appended_committed_or_applied_during_an_install() -> None:
    node = ManualCluster(logs={"a": [1]})["a"]
    node.receive(msg.AppendRequest("b", 5, 1, 1, 1, 1, 0))
    store = hold_install(node, snapshot(1, 1, 1))
    before = node.raft.status()
    entries = tuple(log_of(1, 1, 1, 1)[1:])
    assert node.receive(msg.AppendRequest("b", 5, 1, 1, 4, 2, 0, entries)) == []
    effects = node.receive(msg.Heartbeat("b", 5, 1, 0))
    assert [type(e) for e in effects] == [ef.Send], "contact is confirmed all the same"
    node.receive(chunk("b", 5, snapshot(1, 1, 1), 800))
    node.receive(chunk("b", 5, snapshot(1), 0))
    assert answers(node) == [], "not even what is stale is answered now"
    node.time_out()
    after = node.raft.status()
    assert (after.last_index, after.commit_index, after.term, after.role) == (
        before.last_index, 1, 5, "follower",
    )  # fmt: skip
    node.outbox.clear()
    node._execute(store)
    assert node.machine.index == 3
    node.receive(msg.AppendRequest("b", 5, 3, 1, 4, 3, 0, entries[2:]))
    assert node.machine.index == 4


def test_rule_44_a_read_to_apply_that_ends_after_an_install_is_dropped() -> None:
    node = ManualCluster(logs={"a": [1, 1]})["a"]
    node.hold_reads = True
    node.receive(msg.AppendRequest("b", 5, 2, 1, 1, 1, 0))
    (read,) = node.to_read
    store = hold_install(node, snapshot(1, 1, 1))
    entries = tuple(log_of(1))
    assert node.step(ev.EntriesRead(node.now_ns, read.request_id, entries)) == []
    node._execute(store)
    assert node.machine.index == 3
    assert node.step(ev.EntriesRead(node.now_ns, read.request_id, entries)) == []


def test_rule_44_a_crash_during_an_install_leaves_the_old_state_or_the_new() -> None:
    for crash_after in (False, True):
        node = ManualCluster(logs={"a": [1]})["a"]
        store = hold_install(node, snapshot(1, 1, 1))
        if crash_after:
            node._execute(store)
        node.start()
        assert node.raft.status().last_index == (3 if crash_after else 1)
        receive_all(node, snapshot(1, 1, 1), term=6)
        assert node.machine.index == 3


def test_a_damaged_snapshot_is_thrown_away_and_asked_for_again() -> None:
    node = ManualCluster()["a"]
    good = snapshot(1, 1)
    bad = StoredSnapshot(good.meta, good.data[:-1] + b"!")
    receive_all(node, bad)
    assert [(m.next_offset, m.installed) for m in answers(node)][-1] == (0, False)
    assert node.machine.index == 0
    receive_all(node, good)
    assert node.machine.index == 2


def test_a_chunk_out_of_order_is_answered_with_what_is_wanted() -> None:
    node = ManualCluster()["a"]
    stored = snapshot(1)
    node.receive(chunk("b", 5, stored, 400))
    node.receive(chunk("b", 5, stored, 0))
    node.receive(chunk("b", 5, stored, 0))
    assert [m.next_offset for m in answers(node)] == [0, 400, 400]


def test_a_chunk_while_one_is_being_written_is_answered_with_it() -> None:
    node = ManualCluster(terms={"a": 5})["a"]
    stored = snapshot(1)
    first = node.raft.step(ev.MessageReceived(0, chunk("b", 5, stored, 0, sequence=4)))
    assert any(isinstance(e, ef.StoreSnapshotChunk) for e in first)
    assert node.receive(chunk("b", 5, stored, 0, sequence=5)) == []
    assert node.receive(chunk("b", 5, stored, 0, sequence=3)) == [], "a late one"
    node.step(ev.SnapshotChunkStored(0, stored.meta, 400))
    assert [(m.next_offset, m.sequence) for m in answers(node)] == [(400, 5)]


def test_a_new_leader_is_answered_when_the_chunk_of_the_old_one_is_written() -> None:
    """Otherwise it would wait in vain, until it takes its own chunk for lost."""
    node = ManualCluster(terms={"a": 5})["a"]
    stored = snapshot(1)
    node.raft.step(ev.MessageReceived(0, chunk("b", 5, stored, 0, sequence=9)))
    node.receive(chunk("c", 6, stored, 0, sequence=2))
    node.outbox.clear()
    node.step(ev.SnapshotChunkStored(0, stored.meta, 400))
    assert [to for to, _ in node.outbox] == ["c"]
    assert [(m.next_offset, m.sequence) for m in answers(node)] == [(400, 2)]


def test_a_new_leaders_other_snapshot_takes_the_place_of_one_being_written() -> None:
    node = ManualCluster(terms={"a": 5})["a"]
    old, new = snapshot(1), snapshot(1, 1)
    node.raft.step(ev.MessageReceived(0, chunk("b", 5, old, 0)))
    node.receive(chunk("c", 6, new, 0))
    assert node.step(ev.SnapshotChunkStored(0, old.meta, 400)) == []
    assert [(m.index, m.next_offset) for m in answers(node)] == [(2, 400)]


def test_an_end_that_does_not_fit_what_was_stored_leaves_no_install_behind() -> None:
    """The node used to wait for ever for an install that nobody had begun."""
    node = ManualCluster()["a"]
    stored = snapshot(1, 1)
    hold_install(node, stored)
    node.step(ev.SnapshotChunkStored(node.now_ns, stored.meta, 0))
    assert [m.next_offset for m in answers(node)] == [0]
    node.receive(msg.AppendRequest("b", 5, 0, 0, 2, 7, 0, tuple(log_of(1, 1))))
    assert node.machine.index == 2


def test_rule_45_a_transfer_is_given_up_for_a_newer_snapshot_or_leader_only() -> None:
    node = ManualCluster()["a"]
    old, new = snapshot(1), snapshot(1, 1)
    node.receive(chunk("b", 5, new, 0))
    node.receive(chunk("b", 5, old, 0))
    assert [(m.index, m.next_offset) for m in answers(node)] == [(2, 400)]
    node.receive(chunk("c", 6, old, 0))
    assert [(m.index, m.next_offset) for m in answers(node)] == [(1, 400)]
    node.receive(chunk("c", 6, new, 0))
    assert [(m.index, m.next_offset) for m in answers(node)] == [(2, 400)]


def test_a_transfer_resumes_under_a_new_leader_with_the_same_snapshot() -> None:
    node = ManualCluster()["a"]
    stored = snapshot(1, 1)
    node.receive(chunk("b", 5, stored, 0))
    node.receive(chunk("c", 6, stored, 0))
    assert [m.next_offset for m in answers(node)] == [400, 400]
    node.receive(chunk("c", 6, stored, 400))
    node.receive(chunk("c", 6, stored, 800))
    assert node.machine.index == 2


def test_an_answer_to_a_leader_whose_term_is_over_is_not_sent() -> None:
    """Its sequence would name something else in the new leadership (rule 24)."""
    node = ManualCluster()["a"]
    store = hold_install(node, snapshot(1, 1))
    node.receive(msg.Heartbeat("c", 6, 0, 0))
    node.outbox.clear()
    node._execute(store)
    assert answers(node) == []
    assert node.machine.index == 2
    node.receive(chunk("c", 6, snapshot(1, 1), 0))
    assert [(m.term, m.installed) for m in answers(node)] == [(6, True)]


def test_a_stored_chunk_of_a_snapshot_that_is_not_wanted_any_more_is_ignored() -> None:
    node = ManualCluster(logs={"a": [1, 1]})["a"]
    meta = snapshot(1).meta
    assert node.step(ev.SnapshotChunkStored(0, meta, 400)) == []
    node.receive(chunk("b", 5, snapshot(1, 1), 0))
    assert node.step(ev.SnapshotChunkStored(0, meta, 100)) == []
    node.outbox.clear()
    node.receive(msg.AppendRequest("b", 5, 2, 1, 2, 1, 0))
    node.receive(chunk("b", 5, snapshot(1, 1), 400))
    assert [m.installed for m in answers(node)] == [True], "it got there by appends"


def test_an_install_that_nobody_asked_for_stops_the_node() -> None:
    node = ManualCluster()["a"]
    with pytest.raises(InvariantError, match="not being received"):
        node.step(ev.SnapshotInstalled(0, snapshot(1).meta))


def test_reads_that_waited_for_a_position_in_the_snapshot_are_released() -> None:
    node = ManualCluster()["a"]
    node.receive(msg.Heartbeat("b", 5, 0, 0))
    node.read(1)
    node.receive(msg.ReadIndexReply("b", 5, 1, 2))
    receive_all(node, snapshot(1, 1))
    assert [e.read_id for e in node.effects if isinstance(e, ef.ReadReleased)] == [1]


# -- taking and compacting --------------------------------------------------------------------


def applied_node(count: int, **options: Any) -> ManualNode:
    c = ManualCluster("a", **options)
    node = c["a"]
    node.time_out()
    for _ in range(count - 1):
        node.propose(b"x")
    assert node.machine.index == count
    return node


def test_compaction_keeps_trailing_entries_and_the_log_after_the_older_snapshot() -> None:
    node = applied_node(10, trailing_entries=4)
    node.take_snapshot()
    assert node.raft.status().first_index == 7
    node.propose(*[b"x"] * 5)
    node.take_snapshot()
    assert node.raft.status().first_index == 11, "the older snapshot is at 10"
    assert node.image.first_index == 11


def test_a_late_report_of_an_older_snapshot_does_not_go_back() -> None:
    node = applied_node(5, trailing_entries=0)
    late = snapshot_of(node.machine.copy(), node.raft.configuration).meta
    node.propose(b"x")
    newest = node.take_snapshot()
    node.step(ev.SnapshotTaken(node.now_ns, late, 1))
    assert node.raft.status().snapshot_index == newest.index


def test_a_snapshot_ahead_of_what_is_applied_stops_the_node() -> None:
    node = applied_node(2)
    with pytest.raises(InvariantError, match="ahead of applied"):
        node.step(ev.SnapshotTaken(node.now_ns, snapshot(1, 1, 1).meta, 1))


def test_a_configuration_in_a_compacted_part_stays_in_force() -> None:
    """Rule 39."""
    wider = configuration_of("abcd")
    node = ManualCluster(trailing_entries=0)["a"]
    entries = (*log_of(1), Entry(2, 1, EntryType.CONFIGURATION, encode_configuration(wider)))
    node.receive(msg.AppendRequest("b", 1, 0, 0, 2, 1, 0, entries))
    assert node.raft.configuration == wider
    node.start()
    assert node.raft.configuration == wider, "from the log"
    node.receive(msg.AppendRequest("b", 1, 2, 1, 2, 2, 0))
    node.take_snapshot()
    assert node.raft.status().first_index == 3
    assert node.raft.configuration_at(2) == wider
    node.start()
    assert node.raft.configuration == wider, "from the snapshot"


def test_a_truncated_configuration_goes_out_of_force_on_the_node() -> None:
    """Rule 39."""
    node = ManualCluster()["a"]
    before = node.raft.configuration
    wider = configuration_of("abcd")
    entry = Entry(1, 1, EntryType.CONFIGURATION, encode_configuration(wider))
    node.receive(msg.AppendRequest("b", 1, 0, 0, 0, 1, 0, (entry,)))
    assert node.raft.configuration == wider
    effects = node.receive(msg.AppendRequest("c", 2, 0, 0, 0, 1, 0, tuple(log_of(2))))
    assert node.raft.configuration == before
    changed = [e for e in effects if isinstance(e, ef.ConfigurationChanged)]
    assert [(e.configuration, e.index) for e in changed] == [(before, 0)]


def test_a_part_of_a_snapshot_that_appends_have_overtaken_is_forgotten() -> None:
    node = ManualCluster()["a"]
    stored = snapshot(1, 1)
    node.receive(chunk("b", 5, stored, 0))
    node.receive(msg.AppendRequest("c", 6, 0, 0, 1, 1, 0, tuple(log_of(1, 1))))
    assert node.raft._s.incoming is not None, "only one of its two entries is committed"
    node.receive(msg.Heartbeat("c", 6, 2, 0))
    assert node.raft._s.incoming is None


def test_a_part_that_is_being_written_is_forgotten_when_that_is_done() -> None:
    node = ManualCluster()["a"]
    stored = snapshot(1, 1)
    node.raft.step(ev.MessageReceived(0, chunk("b", 5, stored, 0)))
    node.receive(msg.AppendRequest("c", 6, 0, 0, 2, 1, 0, tuple(log_of(1, 1))))
    assert node.raft._s.incoming is not None
    node.step(ev.SnapshotChunkStored(0, stored.meta, 400))
    assert node.raft._s.incoming is None
