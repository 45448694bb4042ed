"""The limit on the rate at which one peer is fed a snapshot (``snapshot_bytes_per_s``)."""

from __future__ import annotations

import itertools

import pytest

from jepsen_like.sim.manual import ManualCluster, ManualNode
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS, CoreConfig
from raftcore.core.messages import Message

#: 400 bytes in 400 ms: less often than heartbeats, and than an election timeout.
RATE = 1000


def lagging(*names: str, rate: int = RATE) -> tuple[ManualCluster, ManualNode]:
    """These followers lack entries that the leader has compacted; a snapshot has three chunks."""
    c = ManualCluster(
        "abcde", trailing_entries=0, snapshot_chunk_bytes=400, snapshot_bytes_per_s=rate
    )
    for name in names:
        c.isolate(name)
    leader = c.elect("a")
    for _ in range(3):
        leader.propose(b"x")
        c.deliver()
        leader.take_snapshot()
    c.heal()
    c.set_time(c.now_ns + 60 * MS)
    return c, leader


def is_chunk(_to: str, message: Message) -> bool:
    return isinstance(message, msg.SnapshotChunk)


def chunks_by_time(c: ManualCluster, duration_ms: int) -> dict[str, list[int]]:
    """When chunks were sent to whom, in ms from now. Everything arrives at once."""
    start_ns = c.now_ns
    sent: dict[str, list[int]] = {}
    for _ in range(duration_ms // 10):
        c.set_time(c.now_ns + 10 * MS)
        for node in c.nodes.values():
            if node.raft.next_deadline_ns <= node.now_ns:
                node.tick()
        for _ in range(10):
            for to, message in c.collect():
                if is_chunk(to, message):
                    sent.setdefault(to, []).append((c.now_ns - start_ns) // MS)
            wire, c.wire = c.wire, []
            for to, message in wire:
                c[to].receive(message)
    return sent


def test_chunks_of_one_peer_are_no_closer_than_the_rate_allows() -> None:
    c, leader = lagging("b")
    (times,) = chunks_by_time(c, 1500).values()
    assert len(times) == 3
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [400, 400]
    assert c["b"].machine.index == leader.machine.index


def test_several_peers_are_fed_side_by_side_each_at_its_own_pace() -> None:
    c, leader = lagging("b", "c")
    sent = chunks_by_time(c, 1500)
    assert sorted(sent) == ["b", "c"]
    for name, times in sent.items():
        assert len(times) == 3
        assert times[2] - times[0] == 800
        assert c[name].machine.index == leader.machine.index


def test_without_a_limit_chunks_follow_each_other_at_once() -> None:
    c, _ = lagging("b", rate=0)
    (times,) = chunks_by_time(c, 1500).values()
    assert len(set(times)) == 1


def test_the_next_chunk_goes_by_its_own_deadline_with_nothing_else_happening() -> None:
    c, leader = lagging("b")
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    c.deliver()
    (peer,) = [p for p in leader.raft.status().peers if p.node_id == "b"]
    assert peer.snapshot_offset == 400
    assert peer.paused_because == (
        "it is being fed a snapshot, at no more than 1000 bytes per second"
    )
    due_ns = c.now_ns + 400 * MS
    ticks = 0
    while leader.now_ns < due_ns:
        ticks += 1
        for name in "cde":
            leader.receive(msg.HeartbeatReply(name, 1, 0))
        assert not any(is_chunk(*pair) for pair in c.collect())
        leader.time_out()
    assert leader.now_ns == due_ns, "the core asked for this very moment"
    assert ticks < 12
    assert any(is_chunk(*pair) for pair in c.collect())


def test_a_lost_connection_does_not_make_the_next_chunk_go_into_nothing() -> None:
    """It goes when the peer is heard of again, not by the clock."""
    c, leader = lagging("b")
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    c.deliver()
    leader.step(ev.PeerUnreachable(leader.now_ns, "b"))
    for _ in range(8):
        c.set_time(c.now_ns + 60 * MS)
        for name in "cde":
            leader.receive(msg.HeartbeatReply(name, 1, 0))
        leader.tick()
    assert not any(is_chunk(*pair) for pair in c.collect())
    leader.receive(msg.HeartbeatReply("b", 1, 0))
    assert any(is_chunk(*pair) for pair in c.collect())


@pytest.mark.parametrize("setting", ["snapshot_bytes_per_s", "stall_ms"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        CoreConfig("a", **{setting: -1})  # type: ignore[arg-type]
