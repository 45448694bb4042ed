"""Nodes of different releases, and compression between those that know it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from raftcore.core.messages import (
    AppendReply,
    AppendRequest,
    Health,
    Heartbeat,
    HeartbeatReply,
    Message,
    TimeoutNow,
)
from raftcore.core.types import Entry, EntryType
from raftcore.storage.base import Identity
from raftcore.transport.framing import FrameDecoder, FrameKind, compress_body, encode_frame
from raftcore.transport.handshake import Facts, decode_introduction, encode_introduction, introduce
from raftcore.transport.options import TransportOptions
from raftcore.transport.wire import encode_message

Eventually = Callable[[Callable[[], object]], Awaitable[None]]

OLD, NEW = TransportOptions(max_protocol_version=1), TransportOptions()
HEALTH = Health(17, True, 2)
SAID: list[Message] = [
    HeartbeatReply("", 1, 2, HEALTH),
    AppendReply("", 1, True, 5, 0, 0, 1, 2, HEALTH),
    Heartbeat("", 1, 2, 3, 4, 5),
    AppendRequest("", 1, 0, 0, 0, 1, 1, (Entry(1, 1, EntryType.COMMAND, b"x"),)),
    TimeoutNow("", 1),
]
#: What is left of them in version 1.
HEARD_BY_OLD: list[Message] = [
    HeartbeatReply("", 1, 2),
    AppendReply("", 1, True, 5, 0, 0, 1, 2),
    Heartbeat("", 1, 2, 3, 4),
    *SAID[3:],
]


def by(sender: str, messages: list[Message]) -> list[Message]:
    return [replace(message, sender=sender) for message in messages]


@pytest.mark.parametrize(
    ("versions", "heard"),
    [((NEW, NEW), SAID), ((NEW, OLD), HEARD_BY_OLD), ((OLD, NEW), HEARD_BY_OLD)],
    ids=["both new", "to an old one", "from an old one"],
)
async def test_each_connection_speaks_the_older_version_of_its_ends(
    make_cluster: Any, eventually: Eventually, versions: tuple[Any, Any], heard: list[Message]
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a", options=versions[0])
    b = await cluster.start("b", options=versions[1])
    await eventually(lambda: a.connected() == {"b"} and b.connected() == {"a"})
    for message in SAID:
        a.send("b", message)
        b.send("a", message)
    await eventually(lambda: len(cluster.receivers["a"].messages) == len(SAID))
    await eventually(lambda: len(cluster.receivers["b"].messages) == len(SAID))
    assert cluster.receivers["b"].messages == by("a", heard)
    assert cluster.receivers["a"].messages == by("b", heard)


async def test_a_cluster_in_the_middle_of_an_upgrade_talks_in_all_directions(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "c")
    for node_id, options in (("a", NEW), ("b", OLD), ("c", NEW)):
        await cluster.start(node_id, options=options)
    transports = cluster.transports
    await eventually(lambda: all(len(t.connected()) == 2 for t in transports.values()))
    reply = HeartbeatReply("", 1, 2, HEALTH)
    for source, transport in transports.items():
        for target in transports.keys() - {source}:
            transport.send(target, reply)
    for node_id, receiver in cluster.receivers.items():
        await eventually(lambda: len(receiver.messages) == 2)  # noqa: B023
        for message in receiver.messages:
            both_new = "b" not in (node_id, message.sender)
            assert message.health == (HEALTH if both_new else Health())
    # The old one is replaced: everybody hears everything.
    await transports["b"].close()
    await cluster.start("b", options=NEW)
    await eventually(lambda: all(len(t.connected()) == 2 for t in transports.values()))
    transports["b"].send("a", reply)
    await eventually(lambda: len(cluster.receivers["a"].messages) == 3)
    assert cluster.receivers["a"].messages[-1].health == HEALTH


@pytest.mark.parametrize("options", [NEW, OLD], ids=["new", "old"])
async def test_what_is_queued_while_dialling_leaves_in_the_version_that_was_agreed_on(
    make_cluster: Any, eventually: Eventually, options: TransportOptions
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start("b", options=options)
    a = await cluster.start("a")
    for message in SAID:
        a.send("b", message)
    assert not a.connected()
    await eventually(lambda: len(cluster.receivers["b"].messages) == len(SAID))
    heard = SAID if options is NEW else HEARD_BY_OLD
    assert cluster.receivers["b"].messages == by("a", heard)


async def test_what_nodes_say_of_themselves_is_known_of_new_ones_only(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "c")
    a = await cluster.start("a", facts=Facts(2, 3, 300))
    b = await cluster.start("b", facts=Facts(2, 4, 300), options=OLD)
    c = await cluster.start("c", facts=Facts(2, 5, 400))
    await eventually(lambda: all(len(t.connected()) == 2 for t in (a, b, c)))
    assert {i: said.facts for i, said in a.introductions().items()} == {
        "b": Facts(1, 0, 0),
        "c": Facts(2, 5, 400),
    }


# -- a peer of the future ---------------------------------------------------------------------


async def future_peer(dial: Any, transport: Any) -> Any:
    """A connection of a peer that speaks version 9 and says more than we know."""
    hello = introduce(Identity("c0ffee", "b", b"b".ljust(16, b"-")))
    fields = msgpack.unpackb(encode_introduction(replace(hello, version=9)))
    peer = await dial(transport.port)
    peer.say(encode_frame(FrameKind.HELLO, msgpack.packb([*fields, "new", 7])))
    (frame,) = FrameDecoder().feed(await peer.reader.read(1 << 16))
    assert frame.kind is FrameKind.WELCOME
    assert decode_introduction(frame.body).version == 2
    return peer


async def test_what_a_newer_peer_says_beyond_us_is_dropped_and_counted(
    make_cluster: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    peer = await future_peer(dial, a)
    known = msgpack.unpackb(encode_message(Heartbeat("b", 1, 0, 0)))
    for body in (
        msgpack.packb([2, 77, 4, "what is this"]),
        msgpack.packb([*known, "one field more"]),
        msgpack.packb([2, 200, 1]),
    ):
        peer.say(encode_frame(FrameKind.MESSAGE, body))
    await eventually(lambda: a.stats.unknown_messages == 2)
    assert cluster.receivers["a"].messages == [Heartbeat("b", 1, 0, 0)]
    assert a.stats.bad_frames == 0


@pytest.mark.parametrize(
    "body",
    [
        msgpack.packb([9, 5, 1, 0, 0, 0, 0]),
        msgpack.packb([2, 5, 1, 0, 0, 0]),
        msgpack.packb([2, 5, 2**63, 0, 0, 0, 0]),
        msgpack.packb([2, "5", 1]),
        b"\xc1",
    ],
    ids=["a version not agreed on", "a field less", "a huge term", "no number", "no msgpack"],
)
async def test_nonsense_of_a_newer_peer_is_nonsense(
    make_cluster: Any, dial: Any, eventually: Eventually, body: bytes
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    peer = await future_peer(dial, a)
    peer.say(encode_frame(FrameKind.MESSAGE, body))
    assert await peer.hear_all() == b""
    assert (a.stats.bad_frames, a.stats.unknown_messages) == (1, 0)
    assert cluster.receivers["a"].messages == []


# -- compression ------------------------------------------------------------------------------


def large(sequence: int = 1) -> AppendRequest:
    document = json.dumps([{"name": f"service-{k}", "replicas": k} for k in range(2000)])
    entry = Entry(1, 1, EntryType.COMMAND, document.encode())
    return AppendRequest("a", 1, 0, 0, 0, sequence, 1, (entry,))


async def pair(make_cluster: Any, eventually: Eventually, **options: Any) -> Any:
    cluster = make_cluster("a", "b")
    await cluster.start("a", options=TransportOptions(compress_above_bytes=1000))
    await cluster.start("b", options=TransportOptions(**options))
    transports = cluster.transports.values()
    await eventually(lambda: all(len(t.connected()) == 1 for t in transports))
    return cluster


async def test_large_frames_are_compressed_and_small_ones_are_not(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = await pair(make_cluster, eventually)
    a, b = cluster.transports["a"].stats, cluster.transports["b"].stats
    before = b.bytes_in
    cluster.transports["a"].send("b", large())
    cluster.transports["a"].send("b", Heartbeat("a", 1, 0, 0))
    await eventually(lambda: len(cluster.receivers["b"].messages) == 2)
    assert cluster.receivers["b"].messages == [large(), Heartbeat("a", 1, 0, 0)]
    assert (a.compressed_out, b.compressed_in) == (1, 1)
    size = len(encode_message(large()))
    assert b.bytes_in - before < size / 3
    assert a.compressed_saved_bytes > size / 2
    # Each side decides what it sends; both can read it.
    cluster.transports["b"].send("a", replace(large(), sender="b"))
    await eventually(lambda: cluster.receivers["a"].messages)
    assert b.compressed_out == 0


async def test_requests_and_answers_are_compressed_too(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = await pair(make_cluster, eventually)

    async def echo(sender: str, payload: bytes) -> bytes:
        return payload

    for receiver in cluster.receivers.values():
        receiver.answer = echo
    a, b = cluster.transports["a"], cluster.transports["b"]
    assert await a.request("b", bytes(5000), 20) == bytes(5000)
    assert await b.request("a", bytes(5000), 20) == bytes(5000)
    assert (a.stats.compressed_out, a.stats.compressed_in) == (2, 0)


async def test_nothing_compressed_is_sent_to_a_node_of_version_1(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = await pair(make_cluster, eventually, max_protocol_version=1)
    cluster.transports["a"].send("b", large())
    await eventually(lambda: cluster.receivers["b"].messages == [large()])
    assert cluster.transports["a"].stats.compressed_out == 0


def packed(body: bytes, kind: FrameKind = FrameKind.MESSAGE) -> bytes:
    found = compress_body(kind, body)
    assert found is not None
    return encode_frame(FrameKind.COMPRESSED, found)


@pytest.mark.parametrize(
    "garbage",
    [
        encode_frame(FrameKind.COMPRESSED, b""),
        encode_frame(
            FrameKind.COMPRESSED, struct.pack(">BI", 4, 500) + zlib.compress(bytes(50 << 20))
        ),
        encode_frame(
            FrameKind.COMPRESSED, struct.pack(">BI", 4, 2**32 - 1) + zlib.compress(bytes(9))
        ),
        packed(bytes(5000)),
        packed(bytes(5000), FrameKind.HELLO),
        packed(bytes(5000), FrameKind.RESPONSE),
    ],
    ids=["empty", "bomb", "absurd size", "no message", "hello", "response"],
)
async def test_a_bad_compressed_frame_ends_the_connection_and_changes_nothing(
    make_cluster: Any, dial: Any, garbage: bytes
) -> None:
    cluster = make_cluster("a", "b", max_frame_bytes=1 << 20)
    a = await cluster.start("a")
    hello = introduce(Identity("c0ffee", "b", b"b".ljust(16, b"-")))
    peer = await dial(a.port)
    message = encode_frame(FrameKind.MESSAGE, encode_message(Heartbeat("b", 5, 0, 0)))
    peer.say(encode_frame(FrameKind.HELLO, encode_introduction(hello)) + garbage + message)
    await peer.hear_all()
    assert a.stats.bad_frames == 1
    assert cluster.receivers["a"].messages == []


@pytest.mark.parametrize("version", [1, None], ids=["version 1", "before the hello"])
async def test_compression_that_was_not_agreed_on_ends_the_connection(
    make_cluster: Any, dial: Any, version: int | None
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    peer = await dial(a.port)
    if version is not None:
        hello = introduce(Identity("c0ffee", "b", b"b".ljust(16, b"-")), version=version)
        peer.say(encode_frame(FrameKind.HELLO, encode_introduction(hello)))
    peer.say(packed(encode_message(replace(large(), sender="b"))))
    await peer.hear_all()
    assert a.stats.bad_frames == 1
    assert cluster.receivers["a"].messages == []
