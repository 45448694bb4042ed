"""Frames out of a byte stream."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcore.transport.framing import (
    FRAME_OVERHEAD_BYTES,
    Frame,
    FrameDecoder,
    FrameKind,
    WireError,
    compress_body,
    decompress_frame,
    encode_frame,
)

frames = st.lists(st.tuples(st.sampled_from(FrameKind), st.binary(max_size=50)), max_size=6)


def test_the_bytes_of_a_frame_are_those_of_the_first_release() -> None:
    assert encode_frame(FrameKind.MESSAGE, b"body").hex() == "00000005c94e857304626f6479"


@given(frames, st.data())
def test_frames_come_out_however_the_stream_is_cut(
    sent: list[tuple[FrameKind, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(kind, body) for kind, body in sent)
    decoder = FrameDecoder(64)
    received: list[Frame] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    assert received == sent
    assert decoder.buffered_bytes == 0


@given(frames, st.data())
def test_damaged_streams_raise_nothing_but_a_wire_error(
    sent: list[tuple[FrameKind, bytes]], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(encode_frame(kind, body) for kind, body in sent) or b"\x00")
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        received = FrameDecoder(64).feed(bytes(stream))
    except WireError:
        return
    assert len(received) <= len(sent)


def test_a_flipped_bit_is_noticed() -> None:
    raw = bytearray(encode_frame(FrameKind.MESSAGE, b"body"))
    raw[-1] ^= 1
    with pytest.raises(WireError, match="checksum"):
        FrameDecoder().feed(bytes(raw))


def test_an_oversize_frame_is_refused_by_its_length_alone() -> None:
    decoder = FrameDecoder(1000)
    with pytest.raises(WireError, match="at most 1000"):
        decoder.feed(struct.pack(">II", 0xFFFFFFFF, 0))
    assert decoder.buffered_bytes == 8


def test_the_cap_counts_the_kind_byte() -> None:
    body = bytes(99)
    assert FrameDecoder(100).feed(encode_frame(FrameKind.MESSAGE, body)) == [
        (FrameKind.MESSAGE, body)
    ]
    with pytest.raises(WireError):
        FrameDecoder(99).feed(encode_frame(FrameKind.MESSAGE, body))


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(WireError, match="0 bytes"):
        FrameDecoder().feed(struct.pack(">II", 0, 0))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(WireError, match="kind 99"):
        FrameDecoder().feed(struct.pack(">II", 1, zlib.crc32(b"\x63")) + b"\x63")


def test_the_overhead_is_what_a_frame_costs_besides_its_body() -> None:
    assert len(encode_frame(FrameKind.HELLO, bytes(10))) == 10 + FRAME_OVERHEAD_BYTES


# -- compression ------------------------------------------------------------------------------


def compressed(kind: int, size: int, stream: bytes) -> Frame:
    return Frame(FrameKind.COMPRESSED, struct.pack(">BI", kind, size) + stream)


def test_the_layout_of_a_compressed_frame_is_final() -> None:
    """The zlib stream itself may differ between versions of zlib."""
    raw = bytes.fromhex("040000006478014b4ca43d00007a4725e5")
    frame = Frame(FrameKind.COMPRESSED, raw)
    assert decompress_frame(frame, 1000) == (FrameKind.MESSAGE, b"a" * 100)
    assert encode_frame(FrameKind.COMPRESSED, raw)[8] == 7
    body = compress_body(FrameKind.MESSAGE, b"a" * 100)
    assert body is not None
    assert body[:5] == raw[:5]


@given(
    st.sampled_from((FrameKind.MESSAGE, FrameKind.REQUEST, FrameKind.RESPONSE)),
    st.binary(max_size=300),
    st.integers(1, 50),
)
def test_what_is_compressed_comes_out_as_it_was(kind: FrameKind, body: bytes, times: int) -> None:
    packed = compress_body(kind, body * times)
    if packed is None:
        return
    assert len(packed) < len(body * times)
    frame = Frame(FrameKind.COMPRESSED, packed)
    assert decompress_frame(frame, len(body) * times + 1) == (kind, body * times)


def test_what_would_not_shrink_is_not_compressed() -> None:
    assert compress_body(FrameKind.MESSAGE, b"") is None
    assert compress_body(FrameKind.MESSAGE, bytes(range(256))) is None


BOMB = zlib.compress(bytes(100 << 20), 9)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Frame(FrameKind.COMPRESSED, b""), "shorter than its header"),
        (Frame(FrameKind.COMPRESSED, bytes(4)), "shorter than its header"),
        (compressed(FrameKind.HELLO, 1, zlib.compress(b"x")), "can not be compressed"),
        (compressed(FrameKind.COMPRESSED, 1, zlib.compress(b"x")), "can not be compressed"),
        (compressed(99, 1, zlib.compress(b"x")), "can not be compressed"),
        (compressed(4, 1 << 20, zlib.compress(bytes(1 << 20))), "at most 1048576"),
        (compressed(4, 2**32 - 1, BOMB), "at most 1048576"),
        (compressed(4, 1000, BOMB), "the size it states"),
        (compressed(4, 3, zlib.compress(b"xx")), "the size it states"),
        (compressed(4, 1, zlib.compress(b"xx")), "the size it states"),
        (compressed(4, 2, zlib.compress(b"xx")[:-1]), "the size it states"),
        (compressed(4, 2, zlib.compress(b"xx") + b"more"), "the size it states"),
        (compressed(4, 2, b"not zlib at all"), "damaged"),
        (compressed(4, 2, b""), "the size it states"),
    ],
)
def test_a_compressed_frame_that_is_not_what_it_states_is_a_wire_error(
    frame: Frame, reason: str
) -> None:
    with pytest.raises(WireError, match=reason):
        decompress_frame(frame, 1 << 20)


def test_a_bomb_is_not_inflated_beyond_what_it_states() -> None:
    tracemalloc.start()
    with pytest.raises(WireError):
        decompress_frame(compressed(4, 1000, BOMB), 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=100))
def test_random_bytes_are_no_compressed_frame(raw: bytes) -> None:
    with pytest.raises(WireError):
        decompress_frame(Frame(FrameKind.COMPRESSED, raw), 1 << 20)
