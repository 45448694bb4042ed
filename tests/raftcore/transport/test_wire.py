"""What messages look like in bytes, and what bytes are not messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcore.core.membership import encode_configuration
from raftcore.core.messages import (
    AppendReply,
    AppendRequest,
    Health,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftcore.core.types import (
    MAX_INDEX,
    MAX_TERM,
    Configuration,
    Entry,
    EntryType,
    Lease,
    Member,
    SnapshotMeta,
    Target,
)
from raftcore.encoding import encode_entry
from raftcore.transport import wire
from raftcore.transport.checks import MAX_COUNTER
from raftcore.transport.wire import (
    MessageEncoder,
    Request,
    Response,
    ResponseStatus,
    UnknownMessageError,
    WireError,
    decode_message,
    decode_request,
    decode_response,
    encode_message,
    encode_request,
    encode_response,
)

GOLDEN = Path(__file__).parent / "golden"

CONFIGURATION = Configuration(
    "0123456789abcdef",
    (
        Member("n1", "10.0.0.1:7000", bytes(range(16)), attributes=(("http", "10.0.0.1:8080"),)),
        Member("n2", "[::1]:7000", bytes(range(16, 32)), voter=False),
    ),
    old_voters=("n1",),
    level=1,
)
ENTRIES = (
    Entry(8, 2, EntryType.NOOP),
    Entry(9, 3, EntryType.COMMAND, b"put", b"client", 17, 1_700_000_000_000, 1),
    Entry(10, 3, EntryType.CONFIGURATION, encode_configuration(CONFIGURATION)),
)
META = SnapshotMeta(7, 2, bytes(range(32)), CONFIGURATION, 1 << 20, bytes(range(32, 64)))

SAMPLES: dict[str, Message] = {
    "vote_request": VoteRequest("n1", 4, 10, 3, pre_vote=True, transfer=False),
    "vote_reply": VoteReply("n1", 4, granted=True, pre_vote=True),
    "append_request": AppendRequest("n1", 4, 7, 2, 6, 300, 12, ENTRIES),
    "append_request_empty": AppendRequest("n1", 4, 10, 3, 10, 301, 13),
    "append_reply": AppendReply("n1", 4, False, 0, 6, 2, 300, 12),
    "heartbeat": Heartbeat("n1", 4, 9, 14, 11),
    "heartbeat_reply": HeartbeatReply("n1", 4, 14),
    "snapshot_chunk": SnapshotChunk("n1", 4, META, 256, b"chunk", 5, 15),
    "snapshot_reply": SnapshotReply("n1", 4, 7, 261, True, 5, 15),
    "timeout_now": TimeoutNow("n1", 4),
    "read_index_request": ReadIndexRequest("n1", 4, 99),
    "read_index_reply": ReadIndexReply("n1", 4, 99, -1),
}
#: A configuration with everything that feature level 2 knows.
NEWER_CONFIGURATION = replace(
    CONFIGURATION,
    old_voters=(),
    target=Target(("n1", "n2"), ()),
    retired=(bytes(range(32, 48)),),
    lease=Lease(500, 200),
    level=2,
)
JOINT_CONFIGURATION = replace(
    NEWER_CONFIGURATION, target=None, old_voters=("n1", "n2"), leaving=("n2",)
)
HEALTH = Health(1234, True, 2)
#: The same messages with what version 2 added.
NEWER_SAMPLES: dict[str, Message] = SAMPLES | {
    "append_reply": AppendReply("n1", 4, False, 0, 6, 2, 300, 12, HEALTH),
    "heartbeat": Heartbeat("n1", 4, 9, 14, 11, 10),
    "heartbeat_reply": HeartbeatReply("n1", 4, 14, HEALTH),
    "snapshot_chunk": SnapshotChunk(
        "n1", 4, replace(META, configuration=NEWER_CONFIGURATION), 256, b"chunk", 5, 15
    ),
    "snapshot_chunk_joint": SnapshotChunk(
        "n1", 4, replace(META, configuration=JOINT_CONFIGURATION), 256, b"chunk", 5, 15
    ),
}
REQUEST = Request(3, 1500, b"question")
RESPONSES = {
    "response_ok": Response(3, ResponseStatus.OK, b"answer"),
    "response_refused": Response(3, ResponseStatus.REFUSED, b"", "not_leader", "no", "n2"),
}


def golden(version: int = 1) -> dict[str, bytes]:
    text = (GOLDEN / ("wire.txt" if version == 1 else f"wire-{version}.txt")).read_text()
    lines = (line.split() for line in text.splitlines())
    return {name: bytes.fromhex(raw) for name, raw in lines}


# -- the bytes are final ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_of_every_message_type_are_those_of_the_first_release(name: str) -> None:
    assert encode_message(SAMPLES[name], 1).hex() == golden()[name].hex()
    assert decode_message(golden()[name], "n1") == SAMPLES[name]
    assert decode_message(golden()[name], "n1", newest=1) == SAMPLES[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_version_2_adds_is_left_out_for_a_peer_of_version_1(name: str) -> None:
    sample = NEWER_SAMPLES[name]
    if not isinstance(sample, SnapshotChunk):  # its configuration's format is another matter
        assert encode_message(sample, 1).hex() == golden()[name].hex()


@pytest.mark.parametrize("name", NEWER_SAMPLES)
def test_the_bytes_of_every_message_type_in_version_2_are_final(name: str) -> None:
    assert encode_message(NEWER_SAMPLES[name], 2).hex() == golden(2)[name].hex()
    assert decode_message(golden(2)[name], "n1") == NEWER_SAMPLES[name]


@pytest.mark.parametrize("name", NEWER_SAMPLES)
def test_a_connection_of_version_1_takes_nothing_of_version_2(name: str) -> None:
    with pytest.raises(WireError, match="version 2"):
        decode_message(golden(2)[name], "n1", newest=1)


@pytest.mark.parametrize("name", NEWER_SAMPLES)
def test_fields_that_a_newer_peer_adds_at_the_end_are_ignored(name: str) -> None:
    longer = msgpack.packb([*fields_of(name, 2), "something new", 7])
    assert decode_message(longer, "n1", newer_peer=True) == NEWER_SAMPLES[name]
    with pytest.raises(WireError, match="fields"):
        decode_message(longer, "n1")


@pytest.mark.parametrize("name", NEWER_SAMPLES)
def test_a_newer_peer_leaves_no_field_out(name: str) -> None:
    fields = fields_of(name, 2)
    with pytest.raises(WireError):
        decode_message(msgpack.packb(fields[:-1]), "n1", newer_peer=True)


def test_a_type_that_only_a_newer_peer_knows_is_told_from_nonsense() -> None:
    raw = msgpack.packb([2, 77, 4, b"x"])
    with pytest.raises(UnknownMessageError, match="77"):
        decode_message(raw, "n1", newer_peer=True)
    with pytest.raises(WireError, match="type 77"):
        decode_message(raw, "n1")


def test_the_bytes_of_requests_and_responses_are_those_of_the_first_release() -> None:
    known = golden()
    assert encode_request(REQUEST).hex() == known["request"].hex()
    assert decode_request(known["request"]) == REQUEST
    for name, response in RESPONSES.items():
        assert encode_response(response).hex() == known[name].hex()
        assert decode_response(known[name]) == response


def test_every_message_type_has_a_sample() -> None:
    # By name: a class made again for its slots is listed among the subclasses beside the old one.
    known = {subclass.__name__ for subclass in Message.__subclasses__()}
    assert {type(sample).__name__ for sample in SAMPLES.values()} == known


def test_the_sender_is_who_the_connection_belongs_to() -> None:
    raw = encode_message(SAMPLES["vote_request"])
    assert decode_message(raw, "n7") == replace(SAMPLES["vote_request"], sender="n7")


# -- round trip -------------------------------------------------------------------------------

terms = st.integers(0, MAX_TERM)
indexes = st.integers(0, MAX_INDEX - 10)
counters = st.integers(0, MAX_COUNTER)
blobs = st.binary(max_size=40)


@st.composite
def appends(draw: st.DrawFn) -> AppendRequest:
    prev = draw(indexes)
    entry_terms = sorted(draw(st.lists(st.integers(1, MAX_TERM), max_size=5)))
    entries = tuple(
        Entry(
            prev + 1 + k,
            term,
            draw(st.sampled_from(EntryType)),
            draw(blobs),
            draw(blobs),
            draw(st.integers(0, 2**64 - 1)),
            draw(st.integers(0, 2**64 - 1)),
            draw(st.integers(0, 2**16 - 1)),
        )
        for k, term in enumerate(entry_terms)
    )
    term = draw(st.integers(entry_terms[-1] if entry_terms else 0, MAX_TERM))
    first = entry_terms[0] if entry_terms else term
    return AppendRequest(
        "n1", term, prev, draw(st.integers(0, min(first, term))), draw(indexes), draw(counters),
        draw(counters), entries,
    )  # fmt: skip


@st.composite
def chunks(draw: st.DrawFn) -> SnapshotChunk:
    data, offset = draw(blobs), draw(st.integers(0, 2**40))
    size = offset + len(data) + draw(st.integers(0, 2**40))
    names = draw(st.lists(st.text("abé漢", min_size=1, max_size=9), unique=True))
    voters = draw(st.lists(st.sampled_from(names), min_size=1)) if names else []
    members = tuple(
        Member(n, f"{n}:1", draw(st.binary(min_size=16, max_size=16)), n in voters)
        for n in sorted(names)
    )
    meta = SnapshotMeta(
        draw(indexes), draw(terms), draw(st.binary(min_size=32, max_size=32)),
        Configuration("c", members, tuple(sorted(names[:2]))), size,
        draw(st.binary(min_size=32, max_size=32)),
    )  # fmt: skip
    return SnapshotChunk("n1", draw(terms), meta, offset, data, draw(counters), draw(counters))


healths = st.builds(Health, counters, st.booleans(), st.integers(1, 2**31))
messages = st.one_of(
    appends(),
    chunks(),
    st.builds(VoteRequest, st.just("n1"), terms, indexes, terms, st.booleans(), st.booleans()),
    st.builds(VoteReply, st.just("n1"), terms, st.booleans(), st.booleans()),
    st.builds(
        AppendReply,
        st.just("n1"),
        terms,
        st.booleans(),
        indexes,
        indexes,
        terms,
        counters,
        counters,
        healths,
    ),
    st.builds(Heartbeat, st.just("n1"), terms, indexes, counters, indexes, indexes),
    st.builds(HeartbeatReply, st.just("n1"), terms, counters, healths),
    st.builds(
        SnapshotReply, st.just("n1"), terms, indexes, counters, st.booleans(), counters, counters
    ),
    st.builds(TimeoutNow, st.just("n1"), terms),
    st.builds(ReadIndexRequest, st.just("n1"), terms, counters),
    st.builds(ReadIndexReply, st.just("n1"), terms, counters, st.integers(-1, MAX_INDEX)),
)


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode_message(encode_message(message), "n1") == message


@given(messages)
def test_version_1_loses_what_version_2_added_and_nothing_else(message: Message) -> None:
    expected = message
    if isinstance(message, Heartbeat):
        expected = replace(message, release_index=0)
    elif isinstance(message, AppendReply | HeartbeatReply):
        expected = replace(message, health=Health())
    assert decode_message(encode_message(message, 1), "n1") == expected


@given(st.integers(0, MAX_COUNTER), st.sampled_from(ResponseStatus), blobs, st.text(max_size=20))
def test_responses_survive_whatever_the_text(
    number: int, status: ResponseStatus, payload: bytes, text: str
) -> None:
    response = Response(number, status, payload, "code", text)
    decoded = decode_response(encode_response(response))
    assert replace(decoded, detail=text) == response


def test_a_long_or_unencodable_text_is_cut_not_refused() -> None:
    response = Response(1, ResponseStatus.REFUSED, b"", "c" * 500, "é\ud800" * 5000)
    decoded = decode_response(encode_response(response))
    assert decoded.code == "c" * 128
    assert decoded.detail.startswith("é?é?")
    assert len(decoded.detail.encode()) <= 4096


# -- nonsense ---------------------------------------------------------------------------------


def fields_of(name: str, version: int = 1) -> list[object]:
    value = msgpack.unpackb(golden(version)[name])
    assert isinstance(value, list)
    return value


def changed(name: str, position: int, value: object, version: int = 1) -> bytes:
    fields = fields_of(name, version)
    fields[position] = value
    return msgpack.packb(fields)


def renumbered(*indexes: int) -> list[bytes]:
    return [encode_entry(replace(ENTRIES[0], index=index)) for index in indexes]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x91" * 3000, "not msgpack"),
        (b"\x93\x01\x09", "not msgpack"),
        (msgpack.packb([1, 9, 4]) + b"\x00", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (msgpack.packb({1: 2}), "not msgpack"),
        (b"\x93\x01\x09\xd4\x01\x00", "not msgpack"),
        (b"\x93\x01\x09\xd6\xff\x00\x00\x00\x00", "not msgpack"),
        (msgpack.packb([1, 5, 4, "x\ud800"], unicode_errors="surrogatepass"), "not msgpack"),
        (msgpack.packb(7), "expected an array"),
        (msgpack.packb([1, 9]), "shorter than its header"),
        (msgpack.packb([3, 9, 4]), "version 3"),
        (msgpack.packb([0, 9, 4]), "version 0"),
        (msgpack.packb([True, 9, 4]), "version True"),
        (msgpack.packb([1, 77, 4]), "type 77"),
        (msgpack.packb([1, "9", 4]), "expected an integer"),
        (msgpack.packb([1, 9, 4, 4]), "4 fields"),
        (msgpack.packb([1, 9, -1]), "outside"),
        (msgpack.packb([1, 9, 2**63]), "outside"),
        (msgpack.packb([1, 9, MAX_TERM + 1]), "outside"),
        (msgpack.packb([1, 9, True]), "expected an integer, got bool"),
        (msgpack.packb([1, 9, 4.0]), "expected an integer, got float"),
        (changed("vote_request", 3, -1), "outside"),
        (changed("vote_request", 3, MAX_INDEX + 1), "outside"),
        (changed("vote_request", 5, 1), "expected a boolean"),
        (changed("heartbeat", 4, 2**63), "outside"),
        (changed("read_index_reply", 4, -2), "outside"),
        (changed("append_request", 8, b"x"), "expected an array"),
        (changed("append_request", 8, [b"x"]), "shorter than its header"),
        (changed("append_request", 8, ["x"]), "expected bytes"),
        (changed("append_request", 8, [b""] * 70_000), "not msgpack"),
        (changed("append_request", 8, renumbered(9)), "entry 9 where 8"),
        (changed("append_request", 8, renumbered(8, 10)), "entry 10 where 9"),
        (changed("append_request", 4, 3), "after one of term 3"),
        (changed("append_request", 2, 2), "from a leader of term 2"),
        (changed("snapshot_chunk", 3, []), "metadata of 0 fields"),
        (changed("snapshot_chunk", 3, None), "expected an array"),
        (changed("snapshot_chunk", 4, 1 << 20), "beyond the snapshot's end"),
        (changed("snapshot_chunk", 5, "chunk"), "expected bytes"),
        (changed("heartbeat", 6, -1, 2), "outside"),
        (changed("heartbeat", 6, None, 2), "expected an integer"),
        (changed("heartbeat", 6, MAX_INDEX + 1, 2), "outside"),
        (changed("heartbeat_reply", 4, 7, 2), "expected an array"),
        (changed("heartbeat_reply", 4, [1, False], 2), "health of 2 fields"),
        (changed("heartbeat_reply", 4, [1, False, 2, 3], 2), "longer than 3"),
        (changed("heartbeat_reply", 4, [-1, False, 2], 2), "outside"),
        (changed("heartbeat_reply", 4, [1, 0, 2], 2), "expected a boolean"),
        (changed("append_reply", 9, [1, False, 0], 2), "outside"),
        (changed("append_reply", 9, [1, False, 2**40], 2), "outside"),
        (msgpack.packb(fields_of("append_reply", 2)[:-1]), "has 9 fields"),
        (msgpack.packb([2, *fields_of("heartbeat")[1:]]), "has 6 fields"),
    ],
)  # fmt: skip
def test_nonsense_is_a_wire_error(raw: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode_message(raw, "n1")


def newer(**changes: object) -> bytes:
    """A configuration of feature level 2 with some fields changed."""
    return json.dumps(json.loads(encode_configuration(NEWER_CONFIGURATION)) | changes).encode()


def test_a_configuration_that_is_only_written_anew_still_passes() -> None:
    meta = fields_of("snapshot_chunk", 2)[3]
    assert isinstance(meta, list)
    meta[3] = newer()
    assert (
        decode_message(changed("snapshot_chunk", 3, meta, 2), "n1")
        == (NEWER_SAMPLES["snapshot_chunk"])
    )


@pytest.mark.parametrize(
    "configuration",
    [
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"format":2,"cluster_id":"c","members":[],"old_voters":[]}',
        b'{"format":1,"cluster_id":7,"members":[],"old_voters":[]}',
        b'{"format":1,"cluster_id":"c","members":[],"old_voters":[1]}',
        b'{"format":1,"cluster_id":"c","members":[],"old_voters":[""]}',
        b'{"format":1,"cluster_id":"\\ud800","members":[],"old_voters":[]}',
        b'{"format":1,"cluster_id":"%b","members":[],"old_voters":[]}' % (b"c" * 129),
        b'{"format":1,"cluster_id":"c","members":7,"old_voters":[]}',
        b'{"format":1,"cluster_id":"c","members":[7],"old_voters":[]}',
        b'{"format":1,"cluster_id":"c","members":[{"node_id":["n"],"address":"a:1",'
        b'"incarnation":"","voter":true,"attributes":[]}],"old_voters":[]}',
        b'{"format":1,"cluster_id":"c","members":[{"node_id":"n","address":"a:1",'
        b'"incarnation":"00","voter":true,"attributes":[]}],"old_voters":[]}',
        b'{"format":1,"cluster_id":"c","members":[{"node_id":"n","address":9,'
        b'"incarnation":"","voter":true,"attributes":[]}],"old_voters":[]}',
        b'{"format":1,"cluster_id":"c","members":[{"node_id":"n","address":"a:1",'
        b'"incarnation":"","voter":1,"attributes":[]}],"old_voters":[]}',
        b'{"format":1,"cluster_id":"c","members":[{"node_id":"n","address":"a:1",'
        b'"incarnation":"","voter":true,"attributes":[["a",1]]}],"old_voters":[]}',
        b" " * ((1 << 20) + 1),
        b'{"format":3,"cluster_id":"c","members":[],"old_voters":[]}',
        newer(level=0),
        newer(level=2**40),
        newer(level=True),
        newer(leaving=[""]),
        newer(leaving=7),
        newer(leaving=["n" * 256]),
        newer(retired=["00"]),
        newer(retired=["0g" * 16]),
        newer(retired=["00" * 16] * 5000),
        newer(lease=[0, 5]),
        newer(lease=[500]),
        newer(lease=[500, 10**7]),
        newer(lease=["500", 5]),
        newer(target={"voters": [""], "learners": []}),
        newer(target={"voters": ["n1"]}),
        newer(target=[1]),
    ],
)
def test_a_snapshot_with_a_malformed_configuration_is_a_wire_error(configuration: bytes) -> None:
    meta = fields_of("snapshot_chunk")[3]
    assert isinstance(meta, list)
    meta[3] = configuration
    with pytest.raises(WireError):
        decode_message(changed("snapshot_chunk", 3, meta), "n1")


@pytest.mark.parametrize("position", [2, 5])
def test_a_snapshot_digest_has_its_length(position: int) -> None:
    meta = fields_of("snapshot_chunk")[3]
    assert isinstance(meta, list)
    meta[position] = b"short"
    with pytest.raises(WireError, match="expected 32 bytes"):
        decode_message(changed("snapshot_chunk", 3, meta), "n1")


@pytest.mark.parametrize(
    "raw",
    [b"", msgpack.packb([1]), msgpack.packb([2, 1, 1, b""]), msgpack.packb([1, -1, 1, b""])],
)
def test_a_malformed_request_is_a_wire_error(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_request(raw)


@pytest.mark.parametrize("status", [3, -1, "0"])
def test_a_response_of_unknown_status_is_a_wire_error(status: object) -> None:
    with pytest.raises(WireError):
        decode_response(msgpack.packb([1, 1, status, b"", "", "", ""]))


@given(st.sampled_from(sorted(SAMPLES)), st.sampled_from((1, 2)), st.data())
def test_mutated_bytes_are_a_message_or_a_wire_error(
    name: str, version: int, data: st.DataObject
) -> None:
    raw = bytearray(golden(version)[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        end = data.draw(st.integers(at, min(len(raw), at + 6)))
        raw[at:end] = data.draw(st.binary(max_size=6))
    try:
        message = decode_message(bytes(raw), "n1")
    except WireError:
        return
    # What passes is in range: it can be said again, and means the same.
    assert 0 <= message.term <= MAX_TERM
    assert decode_message(encode_message(message), "n1") == message


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_a_wire_error(raw: bytes) -> None:
    for decode in (lambda b: decode_message(b, "n1"), decode_request, decode_response):
        try:
            decode(raw)
        except WireError:
            continue


# -- encoding once ----------------------------------------------------------------------------


def test_a_batch_for_several_followers_is_encoded_once_whatever_they_speak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(wire, "encode_entry", lambda e: calls.append(e) or encode_entry(e))
    encoder = MessageEncoder()
    requests = [
        AppendRequest("n1", 4, 7, 2, 6, sequence, 12, ENTRIES) for sequence in (300, 301, 302)
    ]
    encoded = [
        encoder.encode(request, version)
        for request, version in zip(requests, (1, 2, 2), strict=True)
    ]
    assert calls == list(ENTRIES)
    assert encoder.hits == 2
    assert [decode_message(raw, "n1") for raw in encoded] == requests


def test_equal_batches_of_other_identity_are_not_confused() -> None:
    encoder = MessageEncoder(cached_batches=2)
    for index in range(1, 50):
        # Each tuple dies right away, so that ids are used again.
        request = AppendRequest("n1", 4, index - 1, 1, 0, 1, 1, (Entry(index, 1, EntryType.NOOP),))
        assert decode_message(encoder.encode(request), "n1") == request
        del request


def test_the_cache_of_batches_is_bounded_in_number_and_in_bytes() -> None:
    entries = [(Entry(1, 1, EntryType.COMMAND, bytes(100)),) for _ in range(4)]
    requests = [AppendRequest("n1", 4, 0, 0, 0, 1, 1, batch) for batch in entries]
    for encoder in (MessageEncoder(cached_batches=2), MessageEncoder(cached_bytes=320)):
        for request in requests:
            encoder.encode(request)
        encoder.encode(requests[3])
        encoder.encode(requests[2])
        assert encoder.hits == 2
        encoder.encode(requests[0])
        assert encoder.hits == 2
    small = MessageEncoder(cached_bytes=100)
    small.encode(requests[0])
    small.encode(requests[0])
    assert small.hits == 0
