"""What is read from the bytes on a socket, however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepsen_like.durability.durable_log import LogState
from jepsen_like.durability.ordering import MAX_STREAMS, OrderingMonitor, RaftOrdering
from jepsen_like.durability.streams import (
    HttpStream,
    IgnoredStream,
    InboundStream,
    PeerStream,
    Reply,
    classify,
)
from raftcore.core.messages import AppendRequest, HeartbeatReply, VoteReply
from raftcore.core.types import Entry, EntryType
from raftcore.transport.framing import FrameKind, compress_body, encode_frame
from raftcore.transport.handshake import Introduction, encode_introduction
from raftcore.transport.wire import encode_message

HELLO = encode_frame(FrameKind.HELLO, encode_introduction(Introduction("n1", bytes(16), "c")))


def frame(term: int) -> bytes:
    return encode_frame(FrameKind.MESSAGE, encode_message(HeartbeatReply("n1", term, 0)))


def response(revision: int, body: bytes = b"{}", status: str = "200 OK") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        f"X-Guardian-Revision: {revision}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def compressed(term: int) -> bytes:
    """A message that is worth compressing: an append of many equal bytes."""
    entry = Entry(1, term, EntryType.COMMAND, bytes(1000))
    body = compress_body(
        FrameKind.MESSAGE, encode_message(AppendRequest("n1", term, 0, 0, 0, 1, 1, (entry,)))
    )
    assert body is not None
    return encode_frame(FrameKind.COMPRESSED, body)


def test_compressed_messages_are_read_as_what_they_were() -> None:
    stream = PeerStream()
    stream.sent(HELLO)
    data = frame(1) + compressed(2) + frame(3)
    said = stream.parse(data)
    assert [s.what.term for s in said] == [1, 2, 3]
    assert said[-1].end == len(data)
    heard = InboundStream().feed(HELLO + data)
    assert [message.term for message in heard] == [1, 2, 3]


class FixedLog:
    """A log in a given state."""

    def __init__(self, **state: int) -> None:
        self._state = LogState(**state)  # type: ignore[arg-type]

    def state(self) -> LogState:
        return self._state

    def term_at(self, index: int) -> int | None:
        return None


@pytest.mark.parametrize(
    ("first_bytes", "kind"),
    [
        (HELLO + frame(1), PeerStream),
        (response(1), HttpStream),
        (b"GET / HTTP/1.1\r\n\r\n", IgnoredStream),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", IgnoredStream),  # PostgreSQL's request for TLS
        (frame(1), IgnoredStream),  # a message before any introduction
        (b"", IgnoredStream),
    ],
)
def test_a_stream_is_told_by_its_first_bytes(first_bytes: bytes, kind: type) -> None:
    assert type(classify(first_bytes)) is kind


@given(st.lists(st.integers(1, 60), max_size=40), st.lists(st.integers(0, 60), max_size=40))
def test_every_frame_is_judged_once_however_the_kernel_takes_the_bytes(
    offers: list[int], takes: list[int]
) -> None:
    monitor = OrderingMonitor(RaftOrdering(), FixedLog(term=3))
    data = b"".join(frame(term) for term in range(1, 6))
    monitor.sending("socket:[1]", HELLO)(len(HELLO))
    for offer, take in zip(offers, takes, strict=False):
        chunk = data[:offer]
        taken = min(take, len(chunk))
        monitor.sending("socket:[1]", chunk)(taken or -11)  # nothing taken is EAGAIN
        data = data[taken:]
    monitor.sending("socket:[1]", data)(len(data))
    assert monitor.checked == {"term": 5}
    assert monitor.violation_count == 2  # terms 4 and 5


def test_what_the_kernel_refused_was_never_said() -> None:
    monitor = OrderingMonitor(RaftOrdering(), FixedLog(term=0))
    monitor.sending("socket:[1]", HELLO)(len(HELLO))
    monitor.sending("socket:[1]", frame(7))(-32)
    assert (monitor.checked, monitor.violations) == ({}, [])


def test_what_was_being_handed_over_at_the_end_counts() -> None:
    monitor = OrderingMonitor(RaftOrdering(), FixedLog(term=0))
    monitor.sending("socket:[1]", HELLO)(len(HELLO))
    monitor.sending("socket:[1]", frame(7))
    assert monitor.violation_count == 0
    monitor.finish()
    assert (monitor.checked, monitor.violation_count) == ({"term": 1}, 1)


def test_frames_that_do_not_decode_are_a_violation() -> None:
    monitor = OrderingMonitor(RaftOrdering(), FixedLog(term=1))
    monitor.sending("socket:[1]", HELLO)(len(HELLO))
    monitor.sending("socket:[1]", b"\0\0\0\1\0\0\0\0\4")
    assert "does not decode" in monitor.violations[0]


def test_bytes_that_bypass_the_monitor_count_only_between_peers() -> None:
    monitor = OrderingMonitor(RaftOrdering(), FixedLog(term=1))
    monitor.sending("socket:[1]", HELLO)(len(HELLO))
    monitor.sending("socket:[2]", response(1))(1000)
    monitor.bypassed("socket:[2]", "sendfile")
    assert monitor.violations == []
    monitor.bypassed("socket:[1]", "sendfile")
    assert "unseen" in monitor.violations[0]


def test_a_peer_that_cannot_be_followed_any_longer_is_a_violation() -> None:
    monitor = OrderingMonitor(RaftOrdering(), FixedLog(term=1))
    for number in range(MAX_STREAMS + 1):
        monitor.sending(f"socket:[{number}]", HELLO)(len(HELLO))
    assert len(monitor.violations) == 1


def test_a_response_in_pieces_and_several_in_one_send_are_all_read() -> None:
    stream = HttpStream()
    whole = response(7)
    assert stream.parse(whole[:30]) == []
    stream.sent(whole[:30])
    assert [said.what for said in stream.parse(whole[30:])] == [Reply(200, 7)]
    stream.sent(whole[30:])
    both = response(8, b"x" * 100) + response(9, status="404 Not Found") + response(10)
    assert [said.what for said in stream.parse(both)] == [Reply(200, 8), Reply(200, 10)]


def test_a_document_that_looks_like_a_response_is_not_one() -> None:
    stream = HttpStream()
    said = stream.parse(response(1, b"  " + response(99)))
    assert [s.what for s in said] == [Reply(200, 1)]


def test_client_replies_are_judged_only_where_the_rule_holds() -> None:
    off = OrderingMonitor(RaftOrdering(), FixedLog(last_index=4))
    off.sending("socket:[1]", response(5))(1000)
    assert (off.violations, bool(off.missing())) == ([], True)
    base = OrderingMonitor(RaftOrdering(revision_base=1), FixedLog(last_index=4))
    base.sending("socket:[1]", response(5))(1000)
    assert (base.violations, base.missing()) == ([], [])
    base.sending("socket:[1]", response(6))(1000)
    assert "index 5 is answered, 4 is durable" in base.violations[0]


@given(st.integers(1, 40))
def test_what_arrives_is_put_together(size: int) -> None:
    stream, messages = InboundStream(), []
    reply = VoteReply("n1", 4, granted=True)
    data = HELLO + encode_frame(FrameKind.MESSAGE, encode_message(reply))
    for at in range(0, len(data), size):
        messages += stream.feed(data[at : at + size])
    assert (messages, stream.peer) == ([reply], "n1")


def test_arriving_garbage_is_the_node_s_to_refuse() -> None:
    stream = InboundStream()
    assert stream.feed(b"GET / HTTP/1.1\r\n\r\n") == []
    assert stream.feed(HELLO) == []
    assert stream.peer == ""
