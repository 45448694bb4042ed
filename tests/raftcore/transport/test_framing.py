"""Frames out of a byte stream."""

from __future__ import annotations

import struct
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
