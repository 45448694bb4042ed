"""Checksummed tables over one LMDB transaction.

LMDB returns flipped bits without a word, so every value is ``CRC-32(key, payload) | payload`` and
is verified on every read; the key is part of the sum so that a value that ended up under another
key is found too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final
from zlib import crc32

import lmdb

from raftcore.errors import ExitCode, StorageError

_SUM = struct.Struct(">I")
SUM_SIZE: Final = _SUM.size
#: LMDB's limit. Names from outside may be longer; they name nothing.
KEY_SIZE: Final = 511


class StateCorruptError(StorageError):
    """A record of the state does not match its checksum or its shape.

    The state is disposable: the next start discards it and rebuilds it from snapshot and log.
    """

    code = "E_STATE_CORRUPT"
    exit_code = ExitCode.STORAGE_IO


def seal_value(key: bytes, payload: bytes) -> bytes:
    """The stored bytes of ``payload`` under ``key``."""
    return _SUM.pack(crc32(payload, crc32(key))) + payload


def open_value(key: bytes, raw: memoryview) -> memoryview:
    """The payload of stored bytes.

    Raises:
        StateCorruptError: the checksum does not match.
    """
    payload = raw[SUM_SIZE:]
    if len(raw) < SUM_SIZE or _SUM.unpack_from(raw)[0] != crc32(payload, crc32(key)):
        raise StateCorruptError(f"a record of the state fails its checksum (key {key[:64]!r})")
    return payload


class View:
    """The tables as one transaction sees them.

    A payload is valid until the transaction's next write or its end.
    """

    __slots__ = ("_databases", "_txn")

    def __init__(self, txn: lmdb.Transaction[memoryview], databases: tuple[Any, ...]) -> None:
        self._txn = txn
        self._databases = databases

    def get(self, table: int, key: bytes) -> memoryview | None:
        """The payload under ``key``, or None; also for a key that can not be stored."""
        if not 0 < len(key) <= KEY_SIZE:
            return None
        raw = self._txn.get(key, db=self._databases[table])
        return None if raw is None else open_value(key, raw)

    def scan(
        self, table: int, start: bytes, prefix: bytes = b""
    ) -> Iterator[tuple[bytes, memoryview]]:
        """Records from ``start`` on, in key order, while they begin with ``prefix``."""
        with self._txn.cursor(self._databases[table]) as cursor:
            if not cursor.set_range(start[:KEY_SIZE]):
                return
            for key_view, raw in cursor:
                key = bytes(key_view)
                if not key.startswith(prefix):
                    return
                yield key, open_value(key, raw)

    def scan_back(
        self, table: int, before: bytes, prefix: bytes
    ) -> Iterator[tuple[bytes, memoryview]]:
        """Records below ``before``, in descending key order, while they begin with ``prefix``."""
        with self._txn.cursor(self._databases[table]) as cursor:
            # set_range finds the first key at or above ``before``; the one wanted precedes it
            found = cursor.prev() if cursor.set_range(before[:KEY_SIZE]) else cursor.last()
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                yield key, open_value(key, cursor.value())
                found = cursor.prev()

    def first_key(self, table: int, prefix: bytes = b"") -> bytes | None:
        """The lowest key that begins with ``prefix``."""
        with self._txn.cursor(self._databases[table]) as cursor:
            if not cursor.set_range(prefix[:KEY_SIZE]):
                return None
            key = bytes(cursor.key())
        return key if key.startswith(prefix) else None


class WriteView(View):
    """The tables inside the one write transaction."""

    __slots__ = ()

    def put(self, table: int, key: bytes, payload: bytes) -> None:
        self._txn.put(key, seal_value(key, payload), db=self._databases[table])

    def append(self, table: int, items: list[tuple[bytes, bytes]]) -> None:
        """Store records whose keys all come after those of the table.

        Raises:
            StateCorruptError: they do not.
        """
        sealed = [(key, seal_value(key, payload)) for key, payload in items]
        with self._txn.cursor(self._databases[table]) as cursor:
            _, added = cursor.putmulti(sealed, append=True, overwrite=False)
        if added != len(items):
            raise StateCorruptError("records are not in ascending key order")

    def delete(self, table: int, key: bytes) -> bool:
        """Whether there was such a record."""
        return self._txn.delete(key, db=self._databases[table])
