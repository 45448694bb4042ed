"""Who is let in, and who is told why not. No refusal changes anything (rules 43 and 52)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcore.core.membership import decode_configuration
from raftcore.core.messages import Heartbeat
from raftcore.storage.base import Identity
from raftcore.transport.framing import FrameDecoder, FrameKind, encode_frame
from raftcore.transport.handshake import (
    MAX_HELLO_BYTES,
    Facts,
    Founder,
    HandshakeRefusedError,
    Introduction,
    Joining,
    RefusalCode,
    decode_introduction,
    decode_refusal,
    encode_introduction,
    encode_refusal,
)
from raftcore.transport.options import TransportOptions
from raftcore.transport.strangers import Strangers
from raftcore.transport.wire import WireError, encode_message

Eventually = Callable[[Callable[[], object]], Awaitable[None]]

GOLDEN = Path(__file__).parent / "golden"

FOUNDERS = (
    Founder("n1", "10.0.0.1:7000", (("http", "10.0.0.1:8080"),)),
    Founder("n2", "10.0.0.2:7000"),
)
SAMPLES = {
    "hello": Introduction("n1", bytes(range(16)), "0123456789abcdef", version=1),
    "hello_forming": Introduction(
        "n1", bytes(range(16)), forming=True, founders=FOUNDERS, proposal="abcd", version=1
    ),
    "welcome_to_founder": Introduction(
        "n2", bytes(range(16, 32)), "0123456789abcdef", configuration=b"{}", version=1
    ),
}
NEWER = {"version": 2, "facts": Facts(2, 17, 300), "compressions": ("zlib",)}
NEWER_SAMPLES = {name: replace(sample, **NEWER) for name, sample in SAMPLES.items()} | {
    "hello_joining": replace(
        SAMPLES["hello"],
        **NEWER,
        joining=Joining("10.0.0.4:7000", False, (("http", "10.0.0.4:8080"),)),
    ),
}
REFUSAL = HandshakeRefusedError(RefusalCode.CLUSTER_ID, "this is another cluster")
NEWER_REFUSAL = HandshakeRefusedError(RefusalCode.NOT_LEADER, "ask n2", "10.0.0.2:7000")


def golden(version: int = 1) -> dict[str, bytes]:
    text = (GOLDEN / ("handshake.txt" if version == 1 else f"handshake-{version}.txt")).read_text()
    lines = (line.split() for line in text.splitlines())
    return {name: bytes.fromhex(raw) for name, raw in lines}


# -- bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_of_introductions_are_those_of_the_first_release(name: str) -> None:
    assert encode_introduction(SAMPLES[name]).hex() == golden()[name].hex()
    assert decode_introduction(golden()[name]) == SAMPLES[name]
    assert decode_introduction(golden()[name], newest=1) == SAMPLES[name]


@pytest.mark.parametrize("name", NEWER_SAMPLES)
def test_the_bytes_of_introductions_of_version_2_are_final(name: str) -> None:
    assert encode_introduction(NEWER_SAMPLES[name]).hex() == golden(2)[name].hex()
    assert decode_introduction(golden(2)[name]) == NEWER_SAMPLES[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_node_of_version_1_ignores_what_version_2_says(name: str) -> None:
    heard = decode_introduction(golden(2)[name], newest=1)
    assert heard == replace(SAMPLES[name], version=2)


def test_the_bytes_of_a_refusal_with_a_subject_are_final() -> None:
    assert encode_refusal(NEWER_REFUSAL).hex() == golden(2)["refuse"].hex()
    decoded = decode_refusal(golden(2)["refuse"])
    assert (decoded.code, decoded.detail, decoded.subject) == (
        NEWER_REFUSAL.code, NEWER_REFUSAL.detail, NEWER_REFUSAL.subject
    )  # fmt: skip
    # Release 0.1 takes three fields and no more.
    assert len(msgpack.unpackb(encode_refusal(NEWER_REFUSAL, version=1))) == 3


def test_the_bytes_of_a_refusal_are_those_of_the_first_release() -> None:
    assert encode_refusal(REFUSAL).hex() == golden()["refuse"].hex()
    decoded = decode_refusal(golden()["refuse"])
    assert (decoded.code, decoded.detail) == (REFUSAL.code, REFUSAL.detail)


def fields_of(name: str, version: int = 1) -> list[Any]:
    fields = msgpack.unpackb(golden(version)[name])
    assert isinstance(fields, list)
    return fields


def changed(position: int, value: object) -> bytes:
    fields = fields_of("hello_forming")
    fields[position] = value
    return msgpack.packb(fields)


def changed_joiner(position: int, value: object) -> bytes:
    fields = fields_of("hello_joining", 2)
    fields[position] = value
    return msgpack.packb(fields)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", RefusalCode.BAD_HELLO),
        (msgpack.packb([b"raftcore"]), RefusalCode.BAD_HELLO),
        (changed(0, b"etcd"), RefusalCode.BAD_HELLO),
        (changed(1, 0), RefusalCode.BAD_HELLO),
        (changed(2, 2), RefusalCode.BAD_HELLO),
        (changed(3, ""), RefusalCode.BAD_HELLO),
        (changed(3, b"\xff\xfe"), RefusalCode.BAD_HELLO),
        (changed(3, "n" * 256), RefusalCode.BAD_HELLO),
        (changed(4, b"short"), RefusalCode.BAD_HELLO),
        (changed(5, "c" * 129), RefusalCode.BAD_HELLO),
        (changed(6, 1), RefusalCode.BAD_HELLO),
        (changed(7, [[]]), RefusalCode.BAD_HELLO),
        (changed(7, [[["n1", "a:1"]], ""]), RefusalCode.BAD_HELLO),
        (changed(7, [[["n1", "a:1", [["k"]]]], ""]), RefusalCode.BAD_HELLO),
        (changed(7, [[["n1", "a:1", [["k", "v", "w"]]]], ""]), RefusalCode.BAD_HELLO),
        (changed(8, "text"), RefusalCode.BAD_HELLO),
        (msgpack.packb([b"raftcore", 1, 1, "n1", bytes(16)]), RefusalCode.BAD_HELLO),
        (msgpack.packb([*fields_of("hello"), "more"]), RefusalCode.BAD_HELLO),
        (msgpack.packb([b"raftcore", 9, 9]), RefusalCode.PROTOCOL_VERSION),
        (msgpack.packb([*fields_of("hello", 2), "more"]), RefusalCode.BAD_HELLO),
        (msgpack.packb(fields_of("hello", 2)[:-1]), RefusalCode.BAD_HELLO),
        (msgpack.packb(fields_of("hello", 2)[:9]), RefusalCode.BAD_HELLO),
        (changed_joiner(9, 0), RefusalCode.BAD_HELLO),
        (changed_joiner(9, 2**40), RefusalCode.BAD_HELLO),
        (changed_joiner(10, -1), RefusalCode.BAD_HELLO),
        (changed_joiner(10, 2**63), RefusalCode.BAD_HELLO),
        (changed_joiner(11, 2**32), RefusalCode.BAD_HELLO),
        (changed_joiner(11, None), RefusalCode.BAD_HELLO),
        (changed_joiner(12, "zlib"), RefusalCode.BAD_HELLO),
        (changed_joiner(12, ["z" * 65]), RefusalCode.BAD_HELLO),
        (changed_joiner(12, [b"zlib"]), RefusalCode.BAD_HELLO),
        (changed_joiner(12, ["zlib"] * 17), RefusalCode.BAD_HELLO),
        (changed_joiner(13, "h:1"), RefusalCode.BAD_HELLO),
        (changed_joiner(13, ["h:1", True]), RefusalCode.BAD_HELLO),
        (changed_joiner(13, ["nonsense", True, []]), RefusalCode.BAD_HELLO),
        (changed_joiner(13, ["h:1", 1, []]), RefusalCode.BAD_HELLO),
        (changed_joiner(13, ["h:1", True, [["a"]]]), RefusalCode.BAD_HELLO),
        (changed_joiner(13, ["h:1", True, [["a", "b"]] * 65]), RefusalCode.BAD_HELLO),
    ],
)
def test_a_malformed_introduction_is_refused_by_code(raw: bytes, code: RefusalCode) -> None:
    with pytest.raises(HandshakeRefusedError) as caught:
        decode_introduction(raw)
    assert caught.value.code == code


def test_a_newer_peer_that_still_speaks_our_version_may_say_more() -> None:
    fields = [*fields_of("hello", 2), "something new"]
    fields[1] = 3
    heard = decode_introduction(msgpack.packb(fields))
    assert heard == replace(NEWER_SAMPLES["hello"], version=3)


@given(st.sampled_from(sorted(NEWER_SAMPLES)), st.sampled_from((1, 2)), st.data())
def test_mutated_introductions_raise_nothing_but_refusals(
    name: str, version: int, data: st.DataObject
) -> None:
    raw = bytearray(golden(version if name in SAMPLES else 2)[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(at, min(len(raw), at + 4)))
        raw[at:end] = data.draw(st.binary(max_size=4))
    try:
        introduction = decode_introduction(bytes(raw))
    except HandshakeRefusedError:
        return
    assert len(introduction.incarnation) == 16
    assert introduction.node_id


@given(st.binary(max_size=100))
def test_a_refusal_out_of_random_bytes_is_a_wire_error(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_refusal(raw)


# -- the acceptor -----------------------------------------------------------------------------


def hello_frame(**changes: Any) -> bytes:
    known = Introduction("b", b"b".ljust(16, b"-"), "c0ffee")
    return encode_frame(FrameKind.HELLO, encode_introduction(replace(known, **changes)))


def refusal_in(raw: bytes) -> str:
    frames = FrameDecoder().feed(raw)
    assert [frame.kind for frame in frames] == [FrameKind.REFUSE]
    return decode_refusal(frames[0].body).code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cluster_id": "another"}, RefusalCode.CLUSTER_ID),
        ({"cluster_id": ""}, RefusalCode.CLUSTER_ID),
        ({"node_id": "z", "version": 1}, RefusalCode.UNKNOWN_NODE),
        ({"node_id": "a", "incarnation": b"a".ljust(16, b"-")}, RefusalCode.UNKNOWN_NODE),
        ({"incarnation": b"wiped and re-made"[:16]}, RefusalCode.INCARNATION),
        ({"version": 7, "min_version": 7}, RefusalCode.PROTOCOL_VERSION),
        ({"forming": True, "incarnation": bytes(16)}, RefusalCode.ALREADY_BOOTSTRAPPED),
        ({"forming": True, "node_id": "z"}, RefusalCode.ALREADY_BOOTSTRAPPED),
    ],
)
async def test_a_stranger_is_refused_by_name_and_nothing_of_it_is_delivered(
    make_cluster: Any, dial: Any, changes: dict[str, Any], code: RefusalCode
) -> None:
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    peer = await dial(transport.port)
    huge_term = encode_message(Heartbeat("b", 2**62, 0, 0))
    peer.say(hello_frame(**changes) + encode_frame(FrameKind.MESSAGE, huge_term))
    assert refusal_in(await peer.hear_all()) == code
    assert transport.stats.refused == {code: 1}
    assert cluster.receivers["a"].messages == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        struct.pack(">II", MAX_HELLO_BYTES + 1, 0),
        struct.pack(">II", 3, 0) + b"\x01ab",
        encode_frame(FrameKind.HELLO, b"\xc1"),
        encode_frame(FrameKind.MESSAGE, encode_message(Heartbeat("b", 5, 0, 0))),
        encode_frame(FrameKind.WELCOME, b""),
    ],
    ids=["http", "oversize", "crc", "not-msgpack", "message-first", "welcome-first"],
)
async def test_garbage_instead_of_a_hello_is_refused(
    make_cluster: Any, dial: Any, garbage: bytes
) -> None:
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    peer = await dial(transport.port)
    peer.say(garbage)
    assert refusal_in(await peer.hear_all()) == RefusalCode.BAD_HELLO
    assert transport.stats.refused == {RefusalCode.BAD_HELLO: 1}
    assert cluster.receivers["a"].messages == []


@pytest.mark.parametrize(
    "garbage",
    [
        encode_frame(FrameKind.MESSAGE, b"\xc1"),
        encode_frame(FrameKind.MESSAGE, msgpack.packb([1, 5, 2**63, 0, 0])),
        encode_frame(FrameKind.REQUEST, b"\x90"),
        encode_frame(FrameKind.HELLO, b""),
        encode_frame(FrameKind.RESPONSE, b""),
        struct.pack(">II", 2**32 - 1, 0),
        struct.pack(">II", 2, 7) + b"\x04x",
    ],
    ids=["message", "huge-term", "request", "hello-again", "response", "oversize", "crc"],
)
async def test_a_member_that_sends_nonsense_is_hung_up_on(
    make_cluster: Any, dial: Any, garbage: bytes
) -> None:
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    peer = await dial(transport.port)
    message = encode_frame(FrameKind.MESSAGE, encode_message(Heartbeat("b", 5, 0, 0)))
    peer.say(hello_frame() + message + garbage + message)
    frames = FrameDecoder().feed(await peer.hear_all())
    assert [frame.kind for frame in frames] in ([FrameKind.WELCOME], [])
    assert transport.stats.bad_frames == 1
    assert cluster.receivers["a"].messages == [Heartbeat("b", 5, 0, 0)]


async def test_a_slow_stranger_runs_out_of_time(make_cluster: Any, dial: Any) -> None:
    cluster = make_cluster("a", "b", hello_timeout_s=0.1)
    transport = await cluster.start("a")
    peer = await dial(transport.port)
    peer.say(hello_frame()[:20])
    assert refusal_in(await peer.hear_all()) == RefusalCode.HELLO_TIMEOUT
    assert transport.stats.refused == {RefusalCode.HELLO_TIMEOUT: 1}


async def test_strangers_are_bounded_in_number(
    make_cluster: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_handshakes=2)
    transport = await cluster.start("a")
    waiting = [await dial(transport.port) for _ in range(2)]
    await eventually(lambda: len(transport._strangers) == 2)
    await dial(transport.port)  # takes the place of the oldest
    assert await waiting[0].hear_all() == b""
    assert transport.stats.refused == {RefusalCode.TOO_MANY: 1}
    assert len(transport._strangers) == 2


async def test_strangers_that_stay_silent_do_not_keep_a_member_out(
    make_cluster: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", max_handshakes=4)
    transport = await cluster.start("a")
    for _ in range(4):
        await dial(transport.port)
    await eventually(lambda: len(transport._strangers) == 4)
    await cluster.start("b")
    await eventually(lambda: cluster.transports["b"].connected() == {"a"})
    assert transport.stats.refused == {RefusalCode.TOO_MANY: 1}


def test_one_host_takes_places_of_its_own_strangers_and_not_of_others() -> None:
    strangers: Any = Strangers(4, 2)
    assert [strangers.add(name, name[0]) for name in ("a1", "b1", "b2")] == [None] * 3
    assert strangers.add("b3", "b") == "b1"
    assert strangers.add("b4", "b") == "b2"
    assert "a1" in strangers
    assert strangers.add("c1", "c") is None
    assert strangers.add("d1", "d") == "a1"  # full: the oldest of all
    strangers.discard("b3")
    strangers.discard("b3")
    assert strangers.add("b5", "b") is None
    assert len(strangers) == 4


async def test_a_member_that_dials_again_replaces_its_older_connection(
    make_cluster: Any, dial: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    transport = await cluster.start("a")
    first = await dial(transport.port)
    first.say(hello_frame())
    await eventually(lambda: "b" in transport._inbound)
    second = await dial(transport.port)
    second.say(hello_frame())
    frames = FrameDecoder().feed(await first.hear_all())
    assert [frame.kind for frame in frames] == [FrameKind.WELCOME]
    second.say(encode_frame(FrameKind.MESSAGE, encode_message(Heartbeat("b", 5, 0, 0))))
    await eventually(lambda: len(cluster.receivers["a"].messages) == 1)


async def test_a_late_founder_with_the_known_incarnation_gets_the_founding_configuration(
    make_cluster: Any, dial: Any
) -> None:
    cluster = make_cluster("a", "b")
    moved = cluster.with_member("b", address="127.0.0.1:1")
    transport = await cluster.start("a", configuration=moved, founding=cluster.configuration)
    peer = await dial(transport.port)
    peer.say(hello_frame(forming=True, cluster_id=""))
    (frame,) = FrameDecoder().feed(await peer.hear_all())
    assert frame.kind is FrameKind.WELCOME
    welcome = decode_introduction(frame.body)
    assert decode_configuration(welcome.configuration) == cluster.configuration
    assert (welcome.node_id, welcome.cluster_id) == ("a", "c0ffee")
    assert not transport.stats.refused


# -- the dialler ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        (Identity("another", "b", b"b".ljust(16, b"-")), RefusalCode.CLUSTER_ID),
        (Identity("c0ffee", "b", bytes(16)), RefusalCode.INCARNATION),
    ],
    ids=["cluster", "incarnation"],
)
async def test_two_that_do_not_belong_together_refuse_each_other(
    make_cluster: Any, eventually: Eventually, identity: Identity, code: RefusalCode
) -> None:
    cluster = make_cluster("a", "b")
    a = await cluster.start("a")
    b = await cluster.start("b", identity=identity)
    await eventually(lambda: a.stats.refused[code] and b.stats.rejected[code])
    await eventually(lambda: a.stats.rejected[code])
    a.send("b", Heartbeat("a", 99, 0, 0))
    b.send("a", Heartbeat("b", 99, 0, 0))
    assert a.connected() == b.connected() == frozenset()
    assert cluster.receivers["a"].messages == cluster.receivers["b"].messages == []


async def test_another_member_at_the_dialled_address_is_not_taken_for_the_peer(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b", "c")
    await cluster.start("c")
    address = f"127.0.0.1:{cluster.ports['c']}"
    a = await cluster.start("a", configuration=cluster.with_member("b", address=address))
    await eventually(lambda: a.stats.rejected[RefusalCode.WRONG_NODE])
    assert a.connected() <= {"c"}


@pytest.mark.parametrize(
    ("answer", "counter"),
    [
        (
            encode_frame(FrameKind.REFUSE, msgpack.packb([b"raftcore", "of the future", ""])),
            "other",
        ),
        (
            encode_frame(
                FrameKind.WELCOME,
                encode_introduction(Introduction("b", b"b".ljust(16, b"-"), forming=True)),
            ),
            "forming",
        ),
        (encode_frame(FrameKind.REFUSE, b"\x90"), None),
        (encode_frame(FrameKind.MESSAGE, b""), None),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", None),
        (b"", None),
    ],
    ids=["unknown-code", "still-forming", "bad-refusal", "message", "ssh", "hang-up"],
)
async def test_whatever_answers_the_dialler_only_costs_the_attempt(
    make_cluster: Any, eventually: Eventually, answer: bytes, counter: str | None
) -> None:

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if not answer:
            writer.close()
        await reader.read()
        writer.close()

    cluster = make_cluster("a", "b")
    server = await asyncio.start_server(serve, "127.0.0.1", cluster.ports["b"])
    a = await cluster.start("a")
    await eventually(lambda: a.stats.connect_failures >= 2)
    assert a.connected() == frozenset()
    if counter is not None:
        assert a.stats.rejected[counter] >= 1
    await a.close()
    server.close()
    await server.wait_closed()


async def test_an_answer_frame_that_no_peer_sends_ends_an_established_connection(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start_all()
    inbound = cluster.transports["b"]._inbound["a"]
    inbound.write_now(encode_frame(FrameKind.REQUEST, b""))
    await eventually(lambda: cluster.receivers["a"].lost == ["b"])
    assert cluster.transports["a"].stats.bad_frames == 1
    assert cluster.receivers["a"].messages == []


async def test_an_acceptor_of_version_1_sends_no_messages(
    make_cluster: Any, eventually: Eventually
) -> None:
    cluster = make_cluster("a", "b")
    await cluster.start("a", options=TransportOptions(max_protocol_version=1))
    b = await cluster.start("b")
    await eventually(lambda: b.connected() == {"a"} and "b" in cluster.transports["a"]._inbound)
    inbound = cluster.transports["a"]._inbound["b"]
    message = encode_message(Heartbeat("a", 1, 0, 0), 1)
    inbound.write_now(encode_frame(FrameKind.MESSAGE, message))
    await eventually(lambda: b.stats.bad_frames == 1)
    assert cluster.receivers["b"].messages == []
