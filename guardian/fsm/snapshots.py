"""Snapshots of the state: logical records, apart from any engine, read from one pinned view.

A snapshot is a header, batches of key-value pairs in the order of tables and keys, and a footer
with the number of pairs and the SHA-256 of all records before it. Small pairs share a record of up
to :data:`BATCH_SIZE_BYTES`; a larger value has a record of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import lmdb
import msgspec

from guardian.fsm.handle import Handle, PinnedView
from guardian.fsm.records import CORE, CORE_KEY, STATE_FORMAT, TABLE_NAMES
from guardian.fsm.tables import StateCorruptError, View, WriteView
from raftcore.errors import FormatTooNewError
from raftcore.statemachine import AppliedPosition

BATCH_SIZE_BYTES: Final = 64 * 1024
#: An install commits whenever about this much has been written; only the last commit counts.
INSTALL_COMMIT_BYTES: Final = 8 * 2**20


class Header(msgspec.Struct, array_like=True, frozen=True, tag_field="t", tag=0):
    """First record; every release can read its first field."""

    format: int
    index: int
    term: int
    chain: bytes


class Batch(msgspec.Struct, array_like=True, frozen=True, tag_field="t", tag=1):
    """Pairs of one table, in key order."""

    table: str
    pairs: list[tuple[bytes, bytes]]


class Footer(msgspec.Struct, array_like=True, frozen=True, tag_field="t", tag=2):
    pairs: int
    digest: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Header | Batch | Footer] = msgspec.msgpack.Decoder(
    Header | Batch | Footer
)


def _batches(pinned: PinnedView, table: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """All pairs of a table in key order, each batch read in one step of the view: as many pairs as
    fit into one record, and at least one."""
    start = b""
    while True:
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        with pinned.step() as view:
            for key, payload in view.scan(table, start):
                size += len(key) + len(payload)
                if batch and size > BATCH_SIZE_BYTES:
                    break
                batch.append((key, bytes(payload)))
        if not batch:
            return
        yield batch
        start = batch[-1][0] + b"\0"  # the lowest key after it


class StateSnapshot:
    """A :class:`raftcore.statemachine.SnapshotSource` over a pinned view."""

    def __init__(self, pinned: PinnedView, position: AppliedPosition) -> None:
        self._pinned = pinned
        self._position = position

    @property
    def position(self) -> AppliedPosition:
        return self._position

    def records(self) -> Iterator[bytes]:
        """The state, record by record.

        Raises:
            SnapshotAbortedError: the view was ended because the state needed to grow, or closed.
            StorageError: a record is damaged; final.
        """
        digest, pairs = hashlib.sha256(), 0
        record = _encode(
            Header(STATE_FORMAT, self.position.index, self.position.term, self.position.chain)
        )
        digest.update(record)
        yield record
        for number, table in enumerate(TABLE_NAMES):
            for batch in _batches(self._pinned, number):
                record = _encode(Batch(table, batch))
                digest.update(record)
                pairs += len(batch)
                yield record
        yield _encode(Footer(pairs, digest.digest()))

    def close(self) -> None:
        self._pinned.close()


class Installer:
    """Builds a state from the records of a snapshot; everything is checked before it counts.

    Args:
        records: as :meth:`StateSnapshot.records` gave them.
        position: where the snapshot must stand.
    """

    def __init__(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        self._records = iter(records)
        self._position = position
        self._digest = hashlib.sha256()
        self._pairs = 0

    def build(self, handle: Handle) -> None:
        """Fill the empty environment of ``handle``.

        Raises:
            FormatTooNewError: a newer release wrote the snapshot.
            StateCorruptError: the records are not a whole snapshot of that position.
        """
        self._check_header()
        footer: Footer | None = None
        pending: list[Batch] = []
        pending_bytes = 0
        for raw in self._records:
            if footer is not None:
                raise StateCorruptError("the snapshot goes on after its footer")
            record = _decode(raw)
            if isinstance(record, Batch):
                self._digest.update(raw)
                self._pairs += len(record.pairs)
                pending.append(record)
                pending_bytes += len(raw)
            elif isinstance(record, Footer):
                footer = record
            else:
                raise StateCorruptError("the snapshot has a second header")
            if pending_bytes >= INSTALL_COMMIT_BYTES:
                _store(handle, pending)
                pending, pending_bytes = [], 0
        if footer != Footer(self._pairs, self._digest.digest()):
            raise StateCorruptError("the snapshot is cut short or damaged")
        _store(handle, pending)
        self._check_core(handle)

    def _check_header(self) -> None:
        raw = next(self._records, b"")
        header = _decode(raw)
        if not isinstance(header, Header):
            raise StateCorruptError("the snapshot does not begin with a header")
        if header.format > STATE_FORMAT:
            raise FormatTooNewError(
                f"the snapshot has format {header.format}; this release knows {STATE_FORMAT}"
            )
        self._digest.update(raw)

    def _check_core(self, handle: Handle) -> None:
        with handle.env.begin(buffers=True) as txn:
            core = CORE.get(View(txn, handle.databases), CORE_KEY)
        position = core and AppliedPosition(core.index, core.term, core.log_chain)
        if position != self._position:
            raise StateCorruptError(f"the snapshot stands at {position}, not at {self._position}")


def _decode(raw: bytes) -> Header | Batch | Footer:
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateCorruptError(f"a record of the snapshot is unreadable: {error}") from error


def _store(handle: Handle, batches: list[Batch]) -> None:
    """Append batches in one transaction; the map grows as needed, since nobody reads it yet."""
    while True:
        try:
            with handle.env.begin(write=True, buffers=True) as txn:
                view = WriteView(txn, handle.databases)
                for batch in batches:
                    if batch.table not in TABLE_NAMES:
                        raise StateCorruptError(f"there is no table {batch.table!r}")
                    view.append(TABLE_NAMES.index(batch.table), batch.pairs)
        except lmdb.MapFullError:
            handle.grow(handle.map_size_bytes * 2)
        else:
            return


def state_digest(pinned: PinnedView) -> bytes:
    """SHA-256 over every record of the state in a fixed order: equal for equal logs."""
    digest = hashlib.sha256()
    for number, table in enumerate(TABLE_NAMES):
        digest.update(b"\0" + table.encode() + b"\0")
        for batch in _batches(pinned, number):
            for key, payload in batch:
                digest.update(b"%d %d " % (len(key), len(payload)))
                digest.update(key)
                digest.update(payload)
    return digest.digest()
