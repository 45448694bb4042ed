"""Canonical bytes of an entry: the same in the log, in the hash chain and on the wire.

Layout, big-endian, 45 bytes of header and then client id and data::

    u8  format version (1)      u8  entry type
    u64 index                   u64 term
    u8  client id length        u64 sequence
    u64 timestamp_ms            u16 feature level
    u64 data length             client id, data

The hash chain over a log is ``SHA-256(previous chain + canonical entry)``; the chain before the
first entry ever is 32 zero bytes.
"""

from __future__ import annotations

import hashlib
import struct

from raftcore.core.types import MAX_INDEX, MAX_TERM, Entry, EntryType

ENTRY_FORMAT = 1
GENESIS_CHAIN = bytes(32)

_HEADER = struct.Struct(">BBQQBQQHQ")
_TYPES = tuple(EntryType)


class EncodingError(ValueError):
    """The bytes are not a canonical entry."""


def encode_entry(entry: Entry) -> bytes:
    """The canonical bytes of ``entry``."""
    client_id, data = entry.client_id, entry.data
    return (
        _HEADER.pack(
            ENTRY_FORMAT,
            entry.type,
            entry.index,
            entry.term,
            len(client_id),
            entry.sequence,
            entry.timestamp_ms,
            entry.feature_level,
            len(data),
        )
        + client_id
        + data
    )


def decode_entry(raw: bytes | memoryview) -> Entry:
    """The entry that ``raw`` is the canonical form of; exactly, with nothing left over.

    Raises:
        EncodingError: unknown format, unknown type, numbers out of bounds, wrong length.
    """
    try:
        version, kind, index, term, id_size, sequence, timestamp_ms, level, data_size = (
            _HEADER.unpack_from(raw)
        )
    except struct.error as error:
        raise EncodingError("an entry is shorter than its header") from error
    if version != ENTRY_FORMAT:
        raise EncodingError(f"entry format {version} is not known here")
    if kind >= len(_TYPES):
        raise EncodingError(f"entry type {kind} is not known here")
    if not 0 < index <= MAX_INDEX or not 0 < term <= MAX_TERM:
        raise EncodingError(f"index {index} or term {term} is out of bounds")
    start = _HEADER.size + id_size
    if len(raw) != start + data_size:
        raise EncodingError("an entry's length does not match its header")
    return Entry(
        index=index,
        term=term,
        type=_TYPES[kind],
        data=bytes(raw[start:]),
        client_id=bytes(raw[_HEADER.size : start]),
        sequence=sequence,
        timestamp_ms=timestamp_ms,
        feature_level=level,
    )


def chain_next(previous: bytes, canonical: bytes) -> bytes:
    """The hash chain after an entry with these canonical bytes."""
    digest = hashlib.sha256(previous)
    digest.update(canonical)
    return digest.digest()
