"""Bytes of a snapshot file: logical records, versioned, every chunk with its own checksum (O5).

Layout, big-endian::

    magic "RAFTSNAP"
    u32 header length   header (a sealed record: format, index, term, chain, configuration)
    chunks:  u32 payload length (> 0)   u32 CRC-32 of the payload   payload
             payload: records, each u32 length and bytes
    u32 0    the end of the chunks
    footer:  "SNAPFOOT"  u64 body length  u64 number of records  SHA-256 of the body  u32 CRC-32

The body is everything before the footer. Records never span chunks.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from raftcore.core.membership import decode_configuration, encode_configuration
from raftcore.core.types import Configuration
from raftcore.errors import LogCorruptError
from raftcore.storage.records import RecordError, check_format, seal, stamp, unseal

MAGIC = b"RAFTSNAP"
FOOTER_MAGIC = b"SNAPFOOT"
CHUNK_SIZE_BYTES = 64 * 1024
#: One record may be larger than a chunk's usual size, but not than this.
MAX_RECORD_SIZE_BYTES = 64 * 2**20
MAX_HEADER_SIZE_BYTES = 16 * 2**20

_LENGTH = struct.Struct(">I")
_CHUNK = struct.Struct(">II")
_FOOTER = struct.Struct(">8sQQ32s")
_FOOTER_SIZE = _FOOTER.size + 4


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What the snapshot stands for."""

    index: int
    term: int
    chain: bytes
    configuration: Configuration


class SnapshotEncoder:
    """Turns records into the bytes of a file, given to ``sink`` piece by piece."""

    def __init__(self, header: SnapshotHeader, sink: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._body = hashlib.sha256()
        self._file = hashlib.sha256()
        self._pending = bytearray()
        self._records = 0
        self.size_bytes = 0
        raw = seal(
            stamp(
                {
                    "index": header.index,
                    "term": header.term,
                    "chain": header.chain.hex(),
                    "configuration": encode_configuration(header.configuration).decode(),
                }
            )
        )
        self._emit(MAGIC + _LENGTH.pack(len(raw)) + raw)

    def write(self, record: bytes) -> None:
        """Append one record.

        Raises:
            ValueError: it is larger than :data:`MAX_RECORD_SIZE_BYTES`.
        """
        if len(record) > MAX_RECORD_SIZE_BYTES:
            raise ValueError(f"a snapshot record of {len(record)} bytes is too large")
        if self._pending and len(self._pending) + len(record) > CHUNK_SIZE_BYTES:
            self._flush()
        self._pending += _LENGTH.pack(len(record))
        self._pending += record
        self._records += 1

    def finish(self) -> bytes:
        """Write what is pending and the footer; returns the SHA-256 of the whole file."""
        self._flush()
        self._emit(_LENGTH.pack(0))
        footer = _FOOTER.pack(FOOTER_MAGIC, self.size_bytes, self._records, self._body.digest())
        self._emit(footer + _LENGTH.pack(zlib.crc32(footer)))
        return self._file.digest()

    def _flush(self) -> None:
        if self._pending:
            payload = bytes(self._pending)
            self._pending.clear()
            self._emit(_CHUNK.pack(len(payload), zlib.crc32(payload)) + payload)

    def _emit(self, data: bytes) -> None:
        self._sink(data)
        self._body.update(data)
        self._file.update(data)
        self.size_bytes += len(data)


class SnapshotDecoder:
    """Reads and verifies the bytes of a file, front to back, in bounded memory.

    Raises :class:`LogCorruptError` wherever the bytes are not what the format says, and
    :class:`FormatTooNewError` for a file that needs a newer reader.
    """

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._body = hashlib.sha256()
        self._file = hashlib.sha256()
        self._size = 0
        self.header = self._read_header()

    def records(self) -> Iterator[bytes]:
        """Each record; the footer is verified after the last one."""
        count = 0
        while size := _LENGTH.unpack(self._take(_LENGTH.size))[0]:
            if size > MAX_RECORD_SIZE_BYTES + CHUNK_SIZE_BYTES:
                raise LogCorruptError(f"a snapshot chunk of {size} bytes")
            checksum = _LENGTH.unpack(self._take(_LENGTH.size))[0]
            payload = self._take(size)
            if zlib.crc32(payload) != checksum:
                raise LogCorruptError("checksum of a snapshot chunk does not match")
            for record in _split(payload):
                count += 1
                yield record
        self._check_footer(count)

    def digest(self) -> bytes:
        """SHA-256 of the whole file, once :meth:`records` is exhausted."""
        return self._file.digest()

    @property
    def size_bytes(self) -> int:
        """How much has been read."""
        return self._size

    def _read_header(self) -> SnapshotHeader:
        if self._take(len(MAGIC)) != MAGIC:
            raise LogCorruptError("not a snapshot file")
        size = _LENGTH.unpack(self._take(_LENGTH.size))[0]
        if size > MAX_HEADER_SIZE_BYTES:
            raise LogCorruptError(f"a snapshot header of {size} bytes")
        try:
            body = unseal(self._take(size))
            check_format(body, "the snapshot")
            return SnapshotHeader(
                int(body["index"]),
                int(body["term"]),
                bytes.fromhex(body["chain"]),
                decode_configuration(body["configuration"].encode()),
            )
        except (RecordError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise LogCorruptError(f"the snapshot header does not read: {error!r}") from error

    def _check_footer(self, count: int) -> None:
        expected = _FOOTER.pack(FOOTER_MAGIC, self._size, count, self._body.digest())
        footer = self._take(_FOOTER_SIZE)
        if footer != expected + _LENGTH.pack(zlib.crc32(expected)):
            raise LogCorruptError("the snapshot footer does not match its body")
        if self._source.read(1):
            raise LogCorruptError("bytes after the snapshot footer")

    def _take(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise LogCorruptError("the snapshot file ends too early")
        self._body.update(data)
        self._file.update(data)
        self._size += size
        return data


def _split(payload: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(payload):
        start = offset + _LENGTH.size
        if start > len(payload):
            raise LogCorruptError("a snapshot chunk ends inside a record")
        offset = start + _LENGTH.unpack_from(payload, offset)[0]
        if offset > len(payload):
            raise LogCorruptError("a snapshot chunk ends inside a record")
        yield payload[start:offset]
