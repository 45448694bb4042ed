"""Disks that hang and disks that went back: what nodes with real threads do about them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raftcore import OutcomeUnknownError
from raftcore.trace import Kind

#: A write unfinished for this long is a stalled disk.
STALL = {"stall_ms": 200}


def name(node: Any) -> str:
    return str(node.config.node_id)


async def test_a_leader_whose_disk_hangs_gives_way_and_what_it_accepted_is_unknown(
    three: Any,
) -> None:
    await three.start(**STALL)
    old = await three.leader()
    await old.propose(b"before")
    three.gates[name(old)].close()
    lost = asyncio.create_task(old.propose(b"perhaps", timeout_s=20))
    with pytest.raises(OutcomeUnknownError):
        await lost
    new = await three.leader(*(name(node) for node in three.others(old)))
    assert (await new.propose(b"after")).result >= 2
    (event,) = three.traces[name(old)].of(Kind.GAVE_WAY)
    assert event.fields["write_age_ms"] >= STALL["stall_ms"]
    assert old.status().counters.gave_way == 1
    three.gates[name(old)].open()
    commands = three.commands(new)
    await three.until("it has caught up", lambda: three.commands(old) == commands)


async def test_a_node_whose_disk_hangs_still_answers_and_says_so(three: Any) -> None:
    await three.start(**STALL)
    leader = await three.leader()
    await leader.propose(b"before")
    slow = three.others(leader)[0]
    three.gates[name(slow)].close()
    await leader.propose(b"x")
    await three.until("it is stalled", lambda: slow.status().disk.write_age_ms > 200)
    text = slow.status().describe()
    assert "writes waiting, oldest" in text
    assert leader.is_leader, "one slow follower is nothing to a leader"
    three.gates[name(slow)].open()
    await three.until_equal([b"before", b"x"])


async def test_when_every_disk_hangs_nobody_gives_way_and_all_goes_on_afterwards(
    three: Any,
) -> None:
    await three.start(**STALL)
    leader = await three.leader()
    await leader.propose(b"before")
    await three.until_equal([b"before"])
    term = leader.status().core.term
    for gate in three.gates.values():
        gate.close()
    waiting = asyncio.create_task(leader.propose(b"waits", timeout_s=20))
    await three.until(
        "all have hung for long",
        lambda: all(node.status().disk.write_age_ms > 1000 for node in three.nodes.values()),
    )
    assert leader.is_leader, "there is nobody better"
    assert {node.status().core.term for node in three.nodes.values()} == {term}
    for gate in three.gates.values():
        gate.open()
    assert (await waiting).result == 2
    await three.until_equal([b"before", b"waits"])


async def test_while_its_disk_hangs_a_node_stops_within_its_time(three: Any) -> None:
    await three.start(**STALL)
    leader = await three.leader()
    slow = three.others(leader)[0]
    three.gates[name(slow)].close()
    await leader.propose(b"x")
    await three.until("it hangs", lambda: three.gates[name(slow)].waiting)
    stopping = asyncio.create_task(slow.stop(handover=False))
    await leader.propose(b"y")  # the loop is not held up by it
    three.gates[name(slow)].open()
    async with asyncio.timeout(20):
        await stopping
