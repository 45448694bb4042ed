"""The network inside one process, and its faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from raftcore.core.messages import Health, Heartbeat, HeartbeatReply
from raftcore.core.types import Configuration, Member
from raftcore.errors import NotLeaderError, OutcomeUnknownError, RefusedError, UnknownPeerError
from raftcore.transport.memory import MemoryNetwork, MemoryTransport

Eventually = Callable[[Callable[[], object]], Awaitable[None]]


class Net:
    def __init__(self, recorder: Any) -> None:
        self.network = MemoryNetwork(random.Random(3))
        self.receivers = {node_id: recorder() for node_id in "abc"}
        self.transports = {node_id: MemoryTransport(self.network, node_id) for node_id in "abc"}


@pytest.fixture
async def net(recorder: Any) -> AsyncIterator[Net]:
    net = Net(recorder)
    for node_id, transport in net.transports.items():
        await transport.start(net.receivers[node_id])
    yield net
    for transport in net.transports.values():
        await transport.close()


def beat(number: int, sender: str = "a") -> Heartbeat:
    return Heartbeat(sender, 1, 0, number)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_messages_are_delivered_by_the_loop_with_the_true_sender(net: Net) -> None:
    net.transports["a"].send("b", beat(1, sender="somebody else"))
    assert net.receivers["b"].messages == []
    await settle()
    assert net.receivers["b"].messages == [beat(1)]
    assert net.network.delivered == 1


async def test_a_cut_link_carries_nothing_in_its_direction(net: Net) -> None:
    net.network.cut("a", "b")
    net.network.cut("a", "b")
    net.transports["a"].send("b", beat(1))
    net.transports["b"].send("a", beat(2, "b"))
    await settle()
    assert net.receivers["b"].messages == []
    assert net.receivers["a"].messages == [beat(2, "b")]
    assert net.receivers["a"].lost == ["b"]
    assert net.transports["a"].connected() == {"c"}
    assert net.transports["b"].connected() == {"a", "c"}
    net.network.heal("a", "b")
    net.transports["a"].send("b", beat(3))
    await settle()
    assert net.receivers["b"].messages == [beat(3)]


async def test_what_is_on_its_way_is_lost_with_the_link(net: Net) -> None:
    net.transports["a"].send("b", beat(1))
    net.network.cut("a", "b")
    await settle()
    assert net.receivers["b"].messages == []
    assert net.network.lost == 1


async def test_a_partition_separates_groups_and_heals(net: Net) -> None:
    net.network.partition({"a"}, {"b", "c"})
    assert [sorted(t.connected()) for t in net.transports.values()] == [[], ["c"], ["b"]]
    net.network.heal_all()
    assert net.transports["a"].connected() == {"b", "c"}


async def test_the_same_seed_loses_the_same_messages(net: Net, recorder: Any) -> None:
    received = []
    for _ in range(2):
        again = Net(recorder)
        again.network.drop_probability = 0.5
        for node_id, transport in again.transports.items():
            await transport.start(again.receivers[node_id])
        for number in range(100):
            again.transports["a"].send("b", beat(number))
        await settle()
        received.append(again.receivers["b"].messages)
    assert received[0] == received[1]
    assert 20 < len(received[0]) < 80


async def test_single_messages_can_be_lost_on_purpose(net: Net) -> None:
    net.network.deliver = lambda source, target, message: message.read_counter != 2
    for number in (1, 2, 3):
        net.transports["a"].send("b", beat(number))
    await settle()
    assert net.receivers["b"].messages == [beat(1), beat(3)]


async def test_delays_reorder(net: Net, eventually: Eventually) -> None:
    delays = iter((0.05, 0.0))
    net.network.delay_s = lambda source, target: next(delays)
    net.transports["a"].send("b", beat(1))
    net.transports["a"].send("b", beat(2))
    await eventually(lambda: net.receivers["b"].messages == [beat(2), beat(1)])


async def test_a_closed_transport_is_lost_to_the_others_and_a_restart_takes_its_place(
    net: Net, recorder: Any
) -> None:
    old = net.transports["b"]
    await old.close()
    await settle()
    assert net.receivers["a"].lost == net.receivers["c"].lost == ["b"]
    old.send("a", beat(1, "b"))
    net.transports["b"] = MemoryTransport(net.network, "b")
    net.receivers["b"] = recorder()
    await net.transports["b"].start(net.receivers["b"])
    await old.close()
    net.transports["a"].send("b", beat(2))
    await settle()
    assert net.receivers["b"].messages == [beat(2)]
    assert net.receivers["a"].messages == []


async def test_only_members_are_peers(net: Net) -> None:
    members = tuple(Member(i, f"{i}:1", bytes(16)) for i in "ab")
    net.transports["a"].configure(Configuration("c", members), members)
    net.transports["a"].send("c", beat(1))
    await settle()
    assert net.transports["a"].connected() == {"b"}
    assert net.receivers["c"].messages == []
    for attempt in (lambda: net.transports["a"].send("a", beat(1)),):
        with pytest.raises(ValueError, match="itself"):
            attempt()


async def test_requests_end_as_over_a_real_network(net: Net, eventually: Eventually) -> None:
    asker = net.transports["a"]
    receiver = net.receivers["b"]

    async def echo(sender: str, payload: bytes) -> bytes:
        return sender.encode() + payload

    async def refuse(sender: str, payload: bytes) -> bytes:
        raise NotLeaderError("c")

    async def hang(sender: str, payload: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def cut_off(sender: str, payload: bytes) -> bytes:
        net.network.cut("b", "a")
        return b"done"

    receiver.answer = echo
    assert await asker.request("b", b"?", 20) == b"a?"
    receiver.answer = refuse
    with pytest.raises(NotLeaderError) as caught:
        await asker.request("b", b"?", 20)
    assert caught.value.leader_id == "c"
    receiver.answer = hang
    with pytest.raises(OutcomeUnknownError):
        await asker.request("b", b"?", 0.01)
    pending = asyncio.ensure_future(asker.request("b", b"?", 20))
    await settle()
    await net.transports["b"].close()
    with pytest.raises(OutcomeUnknownError):
        await pending
    with pytest.raises(UnknownPeerError):
        await asker.request("b", b"?", 20)
    with pytest.raises(ValueError, match="itself"):
        await asker.request("a", b"?", 20)
    net.transports["b"] = MemoryTransport(net.network, "b")
    await net.transports["b"].start(receiver)
    receiver.answer = cut_off
    with pytest.raises(OutcomeUnknownError):
        await asker.request("b", b"?", 20)


# -- who is let in ----------------------------------------------------------------------------

MEMBERS = tuple(Member(i, f"{i}:1", i.encode() * 16) for i in "abc")


def configuration(*ids: str, retired: str = "") -> Configuration:
    members = tuple(m for m in MEMBERS if m.node_id in ids)
    return Configuration("c", members, retired=tuple(i.encode() * 16 for i in retired))


async def started(recorder: Any, **versions: int) -> Net:
    """Three transports that have been told who they are."""
    net = Net(recorder)
    for node_id in "abc":
        transport = MemoryTransport(
            net.network, node_id, max_protocol_version=versions.get(node_id, 2),
            incarnation=node_id.encode() * 16, max_guests=1,
        )  # fmt: skip
        net.transports[node_id] = transport
        transport.configure(configuration(*"abc"), MEMBERS)
        await transport.start(net.receivers[node_id])
    return net


async def test_a_guest_is_heard_and_answered(recorder: Any) -> None:
    net = await started(recorder)
    a, b = net.transports["a"], net.transports["b"]
    a.configure(configuration("a", "c"), ())
    b.send("a", beat(1, "b"))
    a.send("b", beat(2))
    await settle()
    assert net.receivers["a"].messages == [beat(1, "b")]
    assert net.receivers["b"].messages == [beat(2)]
    assert (a.guests(), a.connected(), b.connected()) == ({"b"}, frozenset(), {"a", "c"})
    with pytest.raises(UnknownPeerError):
        await b.request("a", b"?", 20)
    with pytest.raises(UnknownPeerError):
        await a.request("b", b"?", 20)
    b.configure(configuration("b"), ())  # neither knows the other any more
    a.send("b", beat(3))
    await settle()
    assert len(net.receivers["b"].messages) == 1


async def test_guests_are_bounded_in_number_as_over_tcp(recorder: Any) -> None:
    net = await started(recorder)
    net.transports["a"].configure(configuration("a"), ())
    net.transports["b"].send("a", beat(1, "b"))
    net.transports["c"].send("a", beat(2, "c"))
    await settle()
    assert net.receivers["a"].messages == [beat(1, "b")]
    await net.transports["b"].close()
    net.transports["c"].send("a", beat(3, "c"))
    await settle()
    assert net.receivers["a"].messages == [beat(1, "b"), beat(3, "c")]


async def test_a_removed_member_is_told_once_and_not_heard(recorder: Any) -> None:
    net = await started(recorder)
    a, b = net.transports["a"], net.transports["b"]
    a.configure(configuration("a", "c", retired="b"), configuration("c").members)
    for number in range(3):
        b.send("a", beat(number, "b"))
        a.send("b", beat(number))
    await settle()
    assert net.receivers["a"].messages == net.receivers["b"].messages == []
    assert len(net.receivers["b"].removed) == 1
    assert a.guests() == frozenset()
    # As long as a configuration that still has it may decide something, it is heard.
    a.configure(configuration("a", "c", retired="b"), configuration("b", "c").members)
    b.send("a", beat(7, "b"))
    await settle()
    assert net.receivers["a"].messages == [beat(7, "b")]


async def test_another_incarnation_of_a_member_is_not_heard(recorder: Any) -> None:
    net = await started(recorder)
    await net.transports["b"].close()
    wiped = MemoryTransport(net.network, "b", incarnation=bytes(16))
    wiped.configure(configuration("a", "c"), configuration("a", "c").members)
    await wiped.start(net.receivers["b"])
    wiped.send("a", beat(1, "b"))
    await settle()
    assert net.receivers["a"].messages == []
    assert net.receivers["b"].removed == []


async def test_a_node_of_version_1_hears_nothing_of_version_2_and_is_no_guest(
    recorder: Any,
) -> None:
    net = await started(recorder, b=1)
    reply = HeartbeatReply("a", 1, 3, Health(7, True, 2))
    for target in "bc":
        net.transports["a"].send(target, reply)
    await settle()
    assert net.receivers["b"].messages == [HeartbeatReply("a", 1, 3)]
    assert net.receivers["c"].messages == [reply]
    net.transports["a"].configure(configuration("a", "c"), configuration("c").members)
    net.transports["b"].send("a", beat(1, "b"))
    await settle()
    assert net.receivers["a"].messages == []


async def test_any_timeout_but_not_a_number_may_be_asked_with(net: Net) -> None:
    async def answer(sender: str, payload: bytes) -> bytes:
        return payload

    net.receivers["a"].answer = answer
    asker = net.transports["b"]
    for timeout_s in (30 * 86400.0, float("inf")):
        assert await asker.request("a", b"?", timeout_s) == b"?"
    with pytest.raises(RefusedError, match="not a number"):
        await asker.request("a", b"?", float("nan"))
