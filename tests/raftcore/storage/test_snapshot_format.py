"""The bytes of a snapshot file: stable, and every damage found."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcore.core.types import Configuration, Member
from raftcore.errors import FormatTooNewError, LogCorruptError
from raftcore.storage import snapshot_format
from raftcore.storage.records import seal, stamp
from raftcore.storage.snapshot_format import SnapshotDecoder, SnapshotEncoder, SnapshotHeader

HEADER = SnapshotHeader(
    7, 3, bytes(range(32)), Configuration("c", (Member("n", "a:1", b"i" * 16),), level=1)
)


def encode(records: list[bytes]) -> tuple[bytes, bytes]:
    raw = bytearray()
    encoder = SnapshotEncoder(HEADER, raw.extend)
    for record in records:
        encoder.write(record)
    digest = encoder.finish()
    assert encoder.size_bytes == len(raw)
    return bytes(raw), digest


def decode(raw: bytes) -> list[bytes]:
    return list(SnapshotDecoder(io.BytesIO(raw)).records())


def test_golden_bytes() -> None:
    """Files like this are on disks and on the wire: a change here needs a new format version."""
    raw, digest = encode([b"one", b"", b"three"])
    assert raw.startswith(b"RAFTSNAP\x00\x00\x01")
    assert (
        b"\x00\x00\x00\x03one\x00\x00\x00\x00\x00\x00\x00\x05three\x00\x00\x00\x00SNAPFOOT" in raw
    )
    assert digest == hashlib.sha256(raw).digest()
    assert digest.hex() == "6947231eefad6e03130df5c5bdbf3a38f1508fa497381673b5bd02389c5b8e89"


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_records_come_back(records: list[bytes]) -> None:
    raw, digest = encode(records)
    decoder = SnapshotDecoder(io.BytesIO(raw))
    assert decoder.header == HEADER
    assert list(decoder.records()) == records
    assert (decoder.digest(), decoder.size_bytes) == (digest, len(raw))


def test_records_are_packed_into_bounded_chunks() -> None:
    sizes: list[int] = []
    encoder = SnapshotEncoder(HEADER, lambda data: sizes.append(len(data)))
    for _ in range(1000):
        encoder.write(bytes(1000))
    encoder.finish()
    assert max(sizes) < snapshot_format.CHUNK_SIZE_BYTES + 100


def test_a_record_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "MAX_RECORD_SIZE_BYTES", 10)
    encoder = SnapshotEncoder(HEADER, lambda data: None)
    with pytest.raises(ValueError, match="too large"):
        encoder.write(bytes(11))


def test_every_single_bit_flip_is_found() -> None:
    raw, _ = encode([b"one", b"two"])
    for position in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(LogCorruptError):
            decode(bytes(damaged))


def test_every_cut_and_every_addition_is_found() -> None:
    raw, _ = encode([b"one", b"two"])
    for length in range(len(raw)):
        with pytest.raises(LogCorruptError):
            decode(raw[:length])
    with pytest.raises(LogCorruptError, match="after the snapshot footer"):
        decode(raw + b"x")


def test_a_removed_chunk_is_found() -> None:
    """Each chunk's checksum is right; the footer knows better."""
    raw, _ = encode([b"a" * 60_000, b"b" * 60_000])
    first = raw.index(b"a" * 100) - 12
    second = raw.index(b"b" * 100) - 12
    with pytest.raises(LogCorruptError, match="footer"):
        decode(raw[:first] + raw[second:])


def with_header(body: bytes) -> bytes:
    return b"RAFTSNAP" + struct.pack(">I", len(body)) + body


@pytest.mark.parametrize("body", [b"nonsense", seal({}), seal(stamp({"index": 1}))])
def test_a_header_that_does_not_read_is_refused(body: bytes) -> None:
    with pytest.raises(LogCorruptError, match="header"):
        SnapshotDecoder(io.BytesIO(with_header(body)))


def test_a_newer_file_is_told_from_a_damaged_one() -> None:
    body = seal({"format_version": 2, "min_reader_version": 3})
    with pytest.raises(FormatTooNewError):
        SnapshotDecoder(io.BytesIO(with_header(body)))


def test_absurd_lengths_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(LogCorruptError, match="header of"):
        SnapshotDecoder(io.BytesIO(b"RAFTSNAP\xff\xff\xff\xff"))
    raw, _ = encode([])
    end = raw.index(b"\x00\x00\x00\x00SNAPFOOT")
    with pytest.raises(LogCorruptError, match="chunk of"):
        decode(raw[:end] + b"\xff\xff\xff\xff")


@pytest.mark.parametrize("payload", [b"\x00\x00", b"\x00\x00\x00\x09short"])
def test_a_record_that_leaves_its_chunk_is_refused(payload: bytes) -> None:
    raw, _ = encode([])
    end = raw.index(b"\x00\x00\x00\x00SNAPFOOT")
    chunk = struct.pack(">II", len(payload), zlib.crc32(payload)) + payload
    with pytest.raises(LogCorruptError, match="inside a record"):
        decode(raw[:end] + chunk + raw[end:])
