"""What a node tells about itself: status, figures, trace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftcore import (
    FIGURES,
    HistogramValue,
    NodeOptions,
    OutcomeUnknownError,
    OverloadedError,
    RefusedError,
    StorageError,
    TraceEvent,
)
from raftcore.core.messages import VoteReply
from raftcore.errors import LogCorruptError, StoppedError
from raftcore.metrics import OTHER_LABEL
from raftcore.trace import Kind


def figures(node: Any) -> dict[tuple[str, str], Any]:
    """Every sample, by name and label."""
    samples = node.figures()
    found = {(s.figure.name, s.label): s.value for s in samples}
    assert len(found) == len(samples), "a figure twice"
    return found


def name(node: Any) -> str:
    return str(node.config.node_id)


# -- figures --------------------------------------------------------------------------------------


async def test_work_shows_in_the_figures(one: Any) -> None:
    node = await one.lone()
    for number in range(10):
        await node.propose(b"x%d" % number)
    await node.read_barrier()
    found = figures(node)
    assert {figure for figure, _ in found} <= set(FIGURES)
    assert found["proposals", ""] == 10
    assert (
        found["entries_applied", ""] == found["applied_index", ""] == node.status().core.last_index
    )
    for histogram in ("proposal_seconds", "commit_seconds"):
        assert found[histogram, ""].count == 10
        assert 0 < found[histogram, ""].mean < 20
    assert found["read_seconds", ""].count == 1
    assert found["write_seconds", ""].count == found["writes", ""]
    assert found["write_bytes", ""].total == found["bytes_written", ""] >= 20
    assert found["apply_entries", ""].total == found["entries_applied", ""]
    assert (found["is_leader", ""], found["has_leader", ""], found["voters", ""]) == (1, 1, 1)
    assert (found["quarantined", ""], found["removed", ""]) == (0, 0)
    assert ("leader_contact_age_seconds", "") not in found, "what has no value is left out"


async def test_refusals_are_counted_by_their_reason(one: Any) -> None:
    node = await one.lone(options=NodeOptions(max_entry_bytes=10, max_pending_proposals=1))
    one.gates["a"].close()
    waiting = asyncio.create_task(node.propose(b"1"))
    await one.until("it is at the gate", lambda: one.gates["a"].waiting)
    for command in (b"2", b"x" * 11):
        with pytest.raises(RefusedError):
            await node.propose(command)
    found = figures(node)
    assert found["proposals_refused", "overloaded"] == 1
    assert found["proposals_refused", "entry_too_large"] == 1
    assert node.status().counters.proposals_refused == 2
    one.gates["a"].open()
    await waiting


async def test_the_leader_measures_its_peers(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.propose(b"x")
    peers = [name(node) for node in three.others(leader)]
    await three.until(
        "both have answered",
        lambda: all(("peer_round_trip_seconds", peer) in figures(leader) for peer in peers),
    )
    found = figures(leader)
    for peer in peers:
        value = found["peer_round_trip_seconds", peer]
        assert isinstance(value, HistogramValue)
        assert value.count >= 1
        assert found["peer_lag_entries", peer] >= 0
        assert found["peer_contact_age_seconds", peer] >= 0
    follower = figures(three.others(leader)[0])
    assert ("leader_contact_age_seconds", "") in follower
    assert not [key for key in follower if key[0] == "peer_lag_entries"]


async def test_a_write_that_hangs_grows_old_in_the_figures(one: Any) -> None:
    node = await one.lone()
    one.gates["a"].close()
    waiting = asyncio.create_task(node.propose(b"x"))
    await one.until("the write has an age", lambda: figures(node)["write_age_seconds", ""] > 0.05)
    assert figures(node)["writes_waiting", ""] >= 1
    assert "its own disk" in node.status().commit_waits_for
    one.gates["a"].open()
    await waiting
    assert figures(node)["write_age_seconds", ""] == 0


async def test_a_stopped_node_has_no_figures(one: Any) -> None:
    node = await one.lone()
    await node.stop()
    with pytest.raises(StoppedError):
        node.figures()


# -- status ---------------------------------------------------------------------------------------


async def test_the_status_says_what_the_commit_waits_for(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.propose(b"x")
    cut_off, other = three.others(leader)
    assert leader.status().commit_waits_for is None
    three.network.partition({name(cut_off)}, {name(leader), name(other)})
    three.gates[name(other)].close()
    waiting = asyncio.create_task(leader.propose(b"y"))
    await three.until("it waits", lambda: leader.status().commit_waits_for)
    index = leader.status().core.commit_index + 1
    why = leader.status().commit_waits_for
    assert f"entries {index} to {index} on a quorum" in why
    assert f"{name(cut_off)} (not connected)" in why
    assert f"{name(other)} (" in why
    assert other.status().commit_waits_for is None, "a follower does not know"
    three.gates[name(other)].open()
    await waiting


async def test_the_description_is_for_people(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.propose(b"x")
    text = leader.status().describe()
    assert text.startswith(f"node {name(leader)}: leader in term ")
    for node in three.nodes.values():
        assert f"  {name(node)} {name(node)}:1, voter" in text
    assert "members: version 1, stable" in text
    assert "None" not in text
    follower = three.others(leader)[0].status().describe()
    assert f"it follows {name(leader)}" in follower


async def test_the_status_of_snapshots(one: Any) -> None:
    node = await one.lone()
    await node.propose(b"x" * 100)
    assert node.status().snapshot.last_bytes is None
    one.snapshot_gates["a"].close()
    taking = asyncio.create_task(node.snapshot())
    await one.until("it is being taken", lambda: one.snapshot_gates["a"].waiting)
    assert node.status().snapshot.taking_bytes == 0
    assert "taking one" in node.status().describe()
    one.snapshot_gates["a"].open()
    index = await taking
    snapshot = node.status().snapshot
    assert (snapshot.last_index, snapshot.taking_bytes) == (index, None)
    assert snapshot.last_bytes > 100
    assert snapshot.last_age_ms >= 0


# -- trace ----------------------------------------------------------------------------------------


async def test_an_election_a_write_and_a_stop_are_traced_in_order(one: Any) -> None:
    node = await one.lone()
    proposed = await node.propose(b"x")
    await node.stop()
    events = list(one.traces["a"].events)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert events[0].kind is Kind.NODE_STARTED
    assert events[-1].kind is Kind.NODE_STOPPED
    assert events[-1].fields == {"failure": None}
    leading = one.traces["a"].of(Kind.ROLE_CHANGED)[-1]
    assert leading.fields == {"role": "leader", "term": proposed.term}
    assert one.traces["a"].of(Kind.LEADER_KNOWN)[-1].fields["leader"] == "a"
    committed = [event.fields["index"] for event in one.traces["a"].of(Kind.COMMIT_ADVANCED)]
    assert committed == sorted(set(committed))
    assert proposed.index in committed


async def test_votes_and_connections_are_traced(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    term = leader.status().core.term
    granted = [
        event.fields
        for node in three.others(leader)
        for event in three.traces[name(node)].of(Kind.VOTE_GRANTED)
    ]
    assert {"candidate": name(leader), "term": term} in granted
    await three.until(
        "connections were looked at",
        lambda: len(three.traces[name(leader)].of(Kind.PEER_CONNECTED)) == 2,
    )
    lost = name(three.others(leader)[0])
    three.network.partition({lost}, set(three.nodes) - {lost})
    await three.until("the loss is told", lambda: three.traces[name(leader)].of(Kind.PEER_LOST))
    assert leader.status().counters.peers_lost_by[lost] == 1


async def test_a_transfer_and_a_snapshot_are_traced(three: Any) -> None:
    await three.start()
    leader = await three.leader()
    await leader.propose(b"x")
    index = await leader.snapshot()
    trace = three.traces[name(leader)]
    assert [e.fields for e in trace.of(Kind.SNAPSHOT_STARTED)] == [{"index": index}]
    (taken,) = trace.of(Kind.SNAPSHOT_TAKEN)
    assert taken.fields["index"] == index
    target = await leader.transfer_leadership()
    (finished,) = trace.of(Kind.TRANSFER_FINISHED)
    assert (finished.fields["target"], finished.fields["outcome"]) == (target, "done")


async def test_callbacks_hear_every_event_on_a_turn_of_their_own(one: Any) -> None:
    node = one.build("a")
    heard: list[TraceEvent] = []
    node.on_event(heard.append)
    await node.start()
    await one.leader()
    await one.until("all were told", lambda: heard == list(one.traces["a"].events))
    assert Kind.ROLE_CHANGED in {event.kind for event in heard}


async def test_the_first_failure_is_traced(one: Any) -> None:
    node = await one.lone()
    one.disks["a"].failure = StorageError("the disk is on fire")
    with pytest.raises(OutcomeUnknownError):
        await node.propose(b"x")
    with pytest.raises(StorageError):
        await node.wait_stopped()
    (failed,) = one.traces["a"].of(Kind.NODE_FAILED)
    assert "on fire" in str(failed.fields["error"])
    await node.stop()
    (stopped,) = one.traces["a"].of(Kind.NODE_STOPPED)
    assert "on fire" in str(stopped.fields["failure"])


async def test_a_violation_is_traced(one: Any) -> None:
    node = await one.lone()
    node.on_message(VoteReply("a", 1, granted=True))
    assert one.traces["a"].of(Kind.PEER_VIOLATION)


# -- once a second --------------------------------------------------------------------------------


async def test_an_idle_node_looks_after_its_store(one: Any) -> None:
    node = await one.lone()
    log = one.logs["a"]
    looked: list[int] = []
    log.maintain = lambda: looked.append(1)
    await one.until("the store was looked after twice", lambda: len(looked) >= 2)
    assert node.status().disk.free_bytes is not None


async def test_while_the_disk_hangs_one_wish_waits_and_not_a_queue_of_them(one: Any) -> None:
    node = await one.lone()
    one.gates["a"].close()
    waiting = asyncio.create_task(node.propose(b"x"))
    await one.until("it is at the gate", lambda: one.gates["a"].waiting)
    looked: list[int] = []
    one.logs["a"].maintain = lambda: looked.append(1)
    for _ in range(100):
        node._driver.writer.maintain()
    one.gates["a"].open()
    await waiting
    await one.until("it was looked after", lambda: looked)
    assert len(looked) <= 2


async def test_the_whole_log_is_verified_in_the_background(one: Any) -> None:
    node = await one.lone(options=NodeOptions(scrub_interval_s=0.5))
    for number in range(20):
        await node.propose(b"%d" % number)
    await one.until("a pass is over", lambda: one.traces["a"].of(Kind.SCRUB_FINISHED))
    assert node.status().storage.scrub.passes >= 1
    found = figures(node)
    assert found["scrub_passes", ""] >= 1
    assert found["scrub_entries", ""] >= 20


async def test_damage_that_nobody_reads_is_found_and_ends_the_node(one: Any) -> None:
    node = await one.lone(options=NodeOptions(scrub_interval_s=0.5))

    for number in range(20):
        await node.propose(b"%d" % number)
    disk = one.disks["a"]
    disk.values[5] = disk.values[5][:-1] + bytes([disk.values[5][-1] ^ 1])
    async with asyncio.timeout(20):
        with pytest.raises(LogCorruptError):
            await node.wait_stopped()


# -- refusals say which ---------------------------------------------------------------------------


async def test_callers_may_wait_for_an_index(one: Any) -> None:
    node = await one.lone(options=NodeOptions(max_pending_waits=2))
    proposed = await node.propose(b"x")
    assert await node.wait_applied(proposed.index) >= proposed.index
    ahead = asyncio.create_task(node.wait_applied(proposed.index + 2))
    far = asyncio.create_task(node.wait_applied(10**9, timeout_s=0.05))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await node.wait_applied(10**9)
    with pytest.raises(RefusedError) as late:
        await far
    assert late.value.code == "read_timeout"
    again = asyncio.create_task(node.wait_applied(10**9))  # there is room again
    await node.propose(b"y")
    await node.propose(b"z")
    assert await ahead == proposed.index + 2
    await node.stop()
    with pytest.raises(StoppedError):
        await again


async def test_strangers_that_come_and_go_add_no_labels(one: Any) -> None:
    node = await one.lone()
    for number in range(200):
        node.on_peer_lost(f"stranger{number}")
    assert node.status().counters.peers_lost_by == {OTHER_LABEL: 200}


async def test_one_change_configures_the_transport_once(
    three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three.start()
    leader = await three.leader()
    await leader.propose(b"x")
    version = leader.configuration_version
    transport = leader._transport
    configure = transport.configure
    configured: list[Any] = []

    def watched(*who: Any) -> None:
        configured.append(who)
        configure(*who)

    monkeypatch.setattr(transport, "configure", watched)
    await leader.add_learner(three.member("d"))
    assert leader.configuration_version > version
    assert len(configured) == len(set(configured)), "the same is not told twice"
    assert configured[-1][0] == leader.configuration
