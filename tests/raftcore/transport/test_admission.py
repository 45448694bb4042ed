"""Guests, removed members and joiners: who is let in although no configuration has it, and who is
not (rules 42, 43 and 52)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from raftcore.core.messages import Health, Heartbeat, HeartbeatReply
from raftcore.core.types import Configuration, Member
from raftcore.errors import NotLeaderError, RefusedError, UnknownPeerError
from raftcore.storage.base import Identity
from raftcore.transport.admission import Membership, RunsSeen, Standing
from raftcore.transport.checks import check_configuration
from raftcore.transport.framing import FrameDecoder, FrameKind, encode_frame
from raftcore.transport.handshake import (
    Facts,
    HandshakeRefusedError,
    Introduction,
    Joining,
    RefusalCode,
    decode_introduction,
    decode_refusal,
    encode_introduction,
    encode_refusal,
    introduce,
    removed_subject,
)
from raftcore.transport.options import TransportOptions
from raftcore.transport.wire import encode_message

Eventually = Callable[[Callable[[], object]], Awaitable[None]]

A, B, D = (i.encode().ljust(16, b"-") for i in "abd")


def without(configuration: Configuration, *ids: str, retired: bool = False) -> Configuration:
    gone = [m for m in configuration.members if m.node_id in ids]
    return replace(
        configuration,
        members=tuple(m for m in configuration.members if m not in gone),
        retired=tuple(m.incarnation for m in gone) if retired else (),
    )


def configure(transport: Any, configuration: Configuration) -> None:
    transport.configure(configuration, configuration.members)


# -- guests -----------------------------------------------------------------------------------


async def test_a_guest_is_answered_over_its_own_connection(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", configuration=without(cluster.configuration, "b"))
    b = await cluster.start("b")
    await eventually(lambda: a.guests() == {"b"})
    b.send("a", Heartbeat("b", 7, 0, 0))
    await eventually(lambda: cluster.receivers["a"].messages == [Heartbeat("b", 7, 0, 0)])
    reply = HeartbeatReply("a", 7, 3, Health(5, True, 2))
    a.send("b", reply)
    await eventually(lambda: cluster.receivers["b"].messages == [reply])
    assert a.connected() == frozenset()
    assert b.connected() == {"a"}
    assert set(a.introductions()) == {"b"}


async def test_a_peer_that_is_not_where_we_dial_is_answered_over_its_own_connection(
    make_cluster: Any, eventually: Eventually
) -> None:
    """A node that is filled with old entries knows a leader that has moved at its old address."""
    cluster = make_cluster("a", "b", "d")
    nowhere = f"127.0.0.1:{cluster.ports['d']}"  # d is not started
    a = await cluster.start("a", configuration=cluster.with_member("b", address=nowhere))
    b = await cluster.start("b")
    await eventually(lambda: b.connected() == {"a"})
    assert a.guests() == a.connected() == frozenset()
    reply = HeartbeatReply("a", 7, 3, Health(5, True, 2))
    a.send("b", reply)
    await eventually(lambda: cluster.receivers["b"].messages == [reply])
    configure(a, cluster.configuration)  # it has learnt where b is
    await eventually(lambda: a.connected() == {"b"})
    assert (cluster.receivers["a"].lost, cluster.receivers["b"].lost) == ([], [])


async def test_the_end_of_the_only_connection_to_a_peer_is_told(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "d")
    nowhere = f"127.0.0.1:{cluster.ports['d']}"  # d is not started
    a = await cluster.start("a", configuration=cluster.with_member("b", address=nowhere))
    b = await cluster.start("b")
    await eventually(lambda: b.connected() == {"a"})
    a.send("b", Heartbeat("a", 7, 0, 0))
    await b.close()
    await eventually(lambda: cluster.receivers["a"].lost == ["b"])


async def test_a_node_without_any_member_takes_the_cluster_in_as_guests(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "d")
    d = await cluster.start("d", configuration=Configuration("c0ffee", ()))
    await cluster.start("a")
    await cluster.start("b")
    await eventually(lambda: d.guests() == {"a", "b"})
    for sender in "ab":
        cluster.transports[sender].send("d", Heartbeat(sender, 1, 0, 0))
    await eventually(lambda: len(cluster.receivers["d"].messages) == 2)
    for sender in "ab":
        d.send(sender, HeartbeatReply("d", 1, 0))
        await eventually(lambda: cluster.receivers[sender].messages)  # noqa: B023


async def test_a_guest_that_becomes_a_member_is_dialled_and_stays_connected(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", configuration=without(cluster.configuration, "b"))
    b = await cluster.start("b")
    await eventually(lambda: a.guests() == {"b"})
    configure(a, cluster.configuration)
    assert a.guests() == frozenset()
    await eventually(lambda: a.connected() == {"b"})
    assert cluster.receivers["b"].lost == []
    configure(a, without(cluster.configuration, "b"))  # the change was undone: a guest again
    assert a.guests() == {"b"}
    a.send("b", Heartbeat("a", 7, 0, 0))
    await eventually(lambda: cluster.receivers["b"].messages)
    assert b.stats.losses == 0


async def test_the_end_of_a_guests_connection_is_told(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", configuration=without(cluster.configuration, "b"))
    b = await cluster.start("b")
    await eventually(lambda: a.guests() == {"b"})
    await b.close()
    await eventually(lambda: cluster.receivers["a"].lost == ["b"])
    a.send("b", Heartbeat("a", 7, 0, 0))
    assert a.stats.dropped_disconnected == 1


async def test_requests_of_guests_are_refused(make_cluster: Any, eventually: Eventually) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", configuration=without(cluster.configuration, "b"))
    b = await cluster.start("b")
    await eventually(lambda: b.connected() == {"a"})
    with pytest.raises(UnknownPeerError, match="not a member"):
        await b.request("a", b"?", 20)
    with pytest.raises(UnknownPeerError):
        await a.request("b", b"?", 20)


async def test_guests_are_bounded_in_number(make_cluster: Any, eventually: Eventually) -> None:
    cluster = make_cluster("a", "b", "d", max_guests=1)
    a = await cluster.start("a", configuration=without(cluster.configuration, "b", "d"))
    b = await cluster.start("b", configuration=without(cluster.configuration, "d"))
    await eventually(lambda: a.guests() == {"b"})
    d = await cluster.start("d", configuration=without(cluster.configuration, "b"))
    await eventually(lambda: a.stats.refused[RefusalCode.UNKNOWN_NODE])
    assert d.connected() == frozenset()
    assert a.guests() == {"b"}
    await b.close()
    await eventually(lambda: a.guests() == {"d"})


async def test_a_guest_that_dials_again_does_not_count_twice(
    make_cluster: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_guests=1)
    a = await cluster.start("a", configuration=without(cluster.configuration, "b"))
    hello = encode_introduction(introduce(Identity("c0ffee", "b", B)))
    for _ in range(3):
        peer = await dial(a.port)
        peer.say(encode_frame(FrameKind.HELLO, hello))
        assert FrameDecoder().feed(await peer.reader.read(1 << 16))[0].kind is FrameKind.WELCOME
    assert a.guests() == {"b"}
    assert not a.stats.refused


# -- removed members --------------------------------------------------------------------------


def membership(configuration: Configuration, *peers: Member) -> Membership:
    return Membership(
        Identity("c0ffee", "a", A), configuration, None, {m.node_id: m for m in peers}
    )


def test_who_may_still_decide_something_is_a_peer_although_a_newer_configuration_retires_it() -> (
    None
):
    leaving = Member("b", "b:1", B)
    retiring = Configuration("c0ffee", (Member("a", "a:1", A),), retired=(B,))
    assert membership(retiring, leaving).standing("b", B, 2) is Standing.PEER
    with pytest.raises(HandshakeRefusedError) as caught:
        membership(retiring).standing("b", B, 2)
    assert caught.value.code == RefusalCode.REMOVED
    assert caught.value.subject == removed_subject("c0ffee", B)


@pytest.mark.parametrize(
    ("node_id", "incarnation", "version", "code"),
    [
        ("a", A, 2, RefusalCode.UNKNOWN_NODE),
        ("a", bytes(16), 2, RefusalCode.UNKNOWN_NODE),
        ("b", bytes(16), 2, RefusalCode.INCARNATION),
        ("d", D, 1, RefusalCode.UNKNOWN_NODE),
        ("b", b"r" * 16, 2, RefusalCode.REMOVED),
        ("z", b"r" * 16, 1, RefusalCode.REMOVED),
    ],
)
def test_who_is_not_let_in(
    node_id: str, incarnation: bytes, version: int, code: RefusalCode
) -> None:
    known = Member("b", "b:1", B)
    configuration = Configuration("c0ffee", (Member("a", "a:1", A), known), retired=(b"r" * 16,))
    with pytest.raises(HandshakeRefusedError) as caught:
        membership(configuration, known).standing(node_id, incarnation, version)
    assert caught.value.code == code


async def test_a_removal_that_is_said_of_somebody_else_is_not_believed(
    make_cluster: Any, eventually: Eventually
) -> None:
    refusal = HandshakeRefusedError(
        RefusalCode.REMOVED, "somebody was removed", removed_subject("c0ffee", D)
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(encode_frame(FrameKind.REFUSE, encode_refusal(refusal)))
        await writer.drain()
        writer.close()

    cluster = make_cluster("a", "b")
    server = await asyncio.start_server(serve, "127.0.0.1", cluster.ports["b"])
    a = await cluster.start("a")
    await eventually(lambda: a.stats.rejected[RefusalCode.REMOVED] >= 2)
    assert cluster.receivers["a"].removed == []
    await a.close()
    server.close()
    await server.wait_closed()


async def test_a_peer_with_a_retired_incarnation_is_hung_up_on_and_never_a_guest(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    await cluster.start("b")
    await eventually(lambda: "b" in a._inbound)
    configure(a, without(cluster.configuration, "b", retired=True))
    assert a.guests() == frozenset()
    await eventually(lambda: cluster.receivers["b"].removed)
    assert a.guests() == frozenset()


# -- runs -------------------------------------------------------------------------------------


def said(runs: int, incarnation: bytes = B) -> Introduction:
    return introduce(Identity("c0ffee", "b", incarnation), Facts(2, runs))


def test_a_count_of_runs_that_goes_back_is_noticed_for_each_incarnation() -> None:
    runs = RunsSeen()
    assert [runs.went_back(said(n)) for n in (5, 5, 7, 6, 7)] == [False] * 3 + [True, False]
    assert not runs.went_back(said(1, D))
    assert not runs.went_back(said(0))  # says nothing


async def test_a_guest_raises_no_alarm_whatever_count_of_runs_it_says(
    make_cluster: Any, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", configuration=without(cluster.configuration, "b"))
    for runs in (9, 8, 7):
        b = await cluster.start("b", facts=Facts(2, runs))
        await eventually(lambda: a.guests() == {"b"})
        await b.close()
        await eventually(lambda: a.guests() == frozenset())
    assert a.stats.directories_put_back == 0
    assert "older copy" not in caplog.text


async def test_a_directory_that_was_put_back_raises_an_alarm_and_is_let_in(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    b = await cluster.start("b", facts=Facts(2, 9))
    await eventually(lambda: a.connected() == {"b"} and b.connected() == {"a"})
    assert a.stats.directories_put_back == 0
    await b.close()
    b = await cluster.start("b", facts=Facts(2, 8, 450))
    await eventually(lambda: a.stats.directories_put_back >= 1)
    await eventually(lambda: b.connected() == {"a"})
    assert a.introductions()["b"].facts == Facts(2, 8, 450)


# -- joining ----------------------------------------------------------------------------------


def joining_hello(**changes: Any) -> Introduction:
    return replace(
        introduce(Identity("c0ffee", "d", D), Facts(2, 1)),
        joining=Joining("127.0.0.1:4", True, (("http", "h:1"),)),
        **changes,
    )


async def ask(dial: Any, port: int, hello: Introduction) -> tuple[FrameKind, bytes]:
    peer = await dial(port)
    peer.say(encode_frame(FrameKind.HELLO, encode_introduction(hello)))
    (frame,) = FrameDecoder().feed(await peer.hear_all())
    return frame


async def test_whoever_does_not_know_the_cluster_is_told_its_id_and_nothing_is_decided(
    make_cluster: Any, dial: Any
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    kind, body = await ask(dial, a.port, joining_hello(cluster_id=""))
    assert kind is FrameKind.WELCOME
    welcome = decode_introduction(body)
    assert (welcome.cluster_id, welcome.configuration) == ("c0ffee", b"")


async def test_the_node_decides_about_a_joiner(make_cluster: Any, dial: Any) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    asked: list[Member] = []

    async def decide(joiner: Member) -> Configuration:
        asked.append(joiner)
        members = sorted((*cluster.configuration.members, joiner), key=lambda m: m.node_id)
        return replace(cluster.configuration, members=tuple(members))

    cluster.receivers["a"].decide = decide
    kind, body = await ask(dial, a.port, joining_hello())
    assert kind is FrameKind.WELCOME
    configuration = check_configuration(decode_introduction(body).configuration)
    assert configuration.member("d") == Member("d", "127.0.0.1:4", D, attributes=(("http", "h:1"),))
    assert asked == [configuration.member("d")]
    assert a._context.joins == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cluster_id": "another"}, RefusalCode.CLUSTER_ID),
        ({"node_id": "b"}, RefusalCode.ALREADY_BOOTSTRAPPED),
        ({"node_id": "b", "cluster_id": ""}, RefusalCode.ALREADY_BOOTSTRAPPED),
        ({"node_id": "a"}, RefusalCode.ALREADY_BOOTSTRAPPED),
        ({"node_id": "a", "incarnation": A}, RefusalCode.WRONG_NODE),
        ({"incarnation": b"r" * 16}, RefusalCode.REMOVED),
        ({"incarnation": b"r" * 16, "cluster_id": ""}, RefusalCode.REMOVED),
    ],
)
async def test_a_joiner_that_can_not_become_a_member_is_told_why_and_nothing_is_decided(
    make_cluster: Any, dial: Any, changes: dict[str, Any], code: RefusalCode
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", configuration=replace(cluster.configuration, retired=(b"r" * 16,)))
    kind, body = await ask(dial, a.port, joining_hello(**changes))
    assert kind is FrameKind.REFUSE
    refusal = decode_refusal(body)
    assert refusal.code == code
    if code is RefusalCode.ALREADY_BOOTSTRAPPED:
        assert "remove it first" in refusal.detail


async def test_the_successor_of_a_member_on_its_way_out_may_join_before_that_one_is_told(
    make_cluster: Any, dial: Any
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    # b is a peer still, until its removal is committed and told
    removing = without(cluster.configuration, "b", retired=True)
    a.configure(removing, cluster.configuration.members)
    kind, body = await ask(dial, a.port, joining_hello(node_id="b", cluster_id=""))
    assert kind is FrameKind.WELCOME
    assert decode_introduction(body).cluster_id == cluster.configuration.cluster_id


@pytest.mark.parametrize(
    ("raised", "code", "subject"),
    [
        (NotLeaderError("b"), "not_leader", "the address of b"),
        (NotLeaderError("z"), "not_leader", ""),
        (NotLeaderError(None), "not_leader", ""),
        (RefusedError("not welcome"), "refused", ""),
        (KeyError("a bug"), "refused", ""),
    ],
)
async def test_what_the_node_says_no_with_reaches_the_joiner(
    make_cluster: Any, dial: Any, raised: Exception, code: str, subject: str
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")

    async def decide(joiner: Member) -> Configuration:
        raise raised

    cluster.receivers["a"].decide = decide
    kind, body = await ask(dial, a.port, joining_hello())
    assert kind is FrameKind.REFUSE
    refusal = decode_refusal(body)
    expected = cluster.configuration.member("b").address if subject else ""
    assert (refusal.code, refusal.subject) == (code, expected)
    assert a.stats.refused == {code: 1}


async def test_joiners_are_bounded_in_number_and_in_time(
    make_cluster: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_joins=1, join_timeout_s=0.2, hello_timeout_s=0.1)
    a = await cluster.start("a")
    waiting = asyncio.Event()

    async def decide(joiner: Member) -> Configuration:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    cluster.receivers["a"].decide = decide
    first = asyncio.ensure_future(ask(dial, a.port, joining_hello()))
    await waiting.wait()
    _, body = await ask(dial, a.port, joining_hello())
    assert decode_refusal(body).code == RefusalCode.TOO_MANY
    _, body = await first
    assert "in time" in decode_refusal(body).detail
    await eventually(lambda: a._context.joins == 0)


async def test_a_joiner_that_talks_on_while_it_is_decided_about_is_hung_up_on(
    make_cluster: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")

    async def decide(joiner: Member) -> Configuration:
        return cluster.configuration

    cluster.receivers["a"].decide = decide
    peer = await dial(a.port)
    hello = encode_frame(FrameKind.HELLO, encode_introduction(joining_hello()))
    message = encode_frame(FrameKind.MESSAGE, encode_message(Heartbeat("d", 9, 0, 0)))
    peer.say(hello + message)
    frames = FrameDecoder().feed(await peer.hear_all())
    assert [decode_refusal(f.body).code for f in frames] == [RefusalCode.BAD_HELLO]
    assert cluster.receivers["a"].messages == []


async def test_a_node_of_version_1_knows_no_joiners(make_cluster: Any, dial: Any) -> None:
    cluster = make_cluster("a", "b", max_protocol_version=1)
    a = await cluster.start("a")
    for cluster_id, code in (("", "cluster_id"), ("c0ffee", "unknown_node")):
        _, body = await ask(dial, a.port, joining_hello(cluster_id=cluster_id))
        assert decode_refusal(body).code == code


def test_options_of_the_handshake_are_checked() -> None:
    for wrong in (
        {"max_guests": 0},
        {"max_protocol_version": 3},
        {"max_protocol_version": 0},
        {"compress_above_bytes": -1},
    ):
        with pytest.raises(ValueError):
            TransportOptions(**wrong)
