"""The log's LMDB environment: exactly these flags, these tables, these records.

``meta`` holds sealed records; ``entries`` maps an 8-byte big-endian index, so that key order is log
order, to the stored value of :mod:`raftcore.storage.plan`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from raftcore.core.membership import encode_configuration
from raftcore.core.types import (
    FIRST_FEATURE_LEVEL,
    Configuration,
    Entry,
    EntryType,
    HardState,
    SnapshotMeta,
)
from raftcore.encoding import EncodingError, decode_entry
from raftcore.errors import LogCorruptError
from raftcore.storage.base import Identity, Write
from raftcore.storage.files import storage_error
from raftcore.storage.plan import Link, Shape, check_value, plan_batch, split_value
from raftcore.storage.records import (
    FIRST_FORMAT_VERSION,
    RecordError,
    check_format,
    seal,
    stamp,
    unseal,
)

DEFAULT_MAP_SIZE_BYTES = 16 * 2**30
DEFAULT_MAP_LIMIT_BYTES = 256 * 2**30

DATA_FILE = "data.mdb"
_KEY = struct.Struct(">Q")

FORMAT, HARD_STATE, COMMIT_HINT = b"format", b"hard_state", b"commit_hint"
SNAPSHOT, FIRST, LAST, RUNS = b"snap_ptr", b"first", b"last", b"runs"
#: The run in which FLOOR was last known to be there; a program that does not know it leaves this.
FLOOR = b"floor"
META_KEYS = (FORMAT, HARD_STATE, COMMIT_HINT, FIRST, LAST, SNAPSHOT, RUNS, FLOOR)

#: Format 2 has a FLOOR beside it. It is also read by release 0.1 until the log holds what that
#: release does not know: a configuration of a later feature level, or a quarantine.
LOG_FORMAT = 2


def key_of(index: int) -> bytes:
    """The key of an entry."""
    return _KEY.pack(index)


def index_of(key: bytes) -> int:
    """The index that a key stands for.

    Raises:
        LogCorruptError: not a key of this table.
    """
    if len(key) != _KEY.size:
        raise LogCorruptError(f"a key of {len(key)} bytes among the entries")
    index: int = _KEY.unpack(key)[0]
    return index


@dataclass(frozen=True, slots=True)
class Environment:
    """An open environment and its two tables."""

    env: lmdb.Environment
    meta: Any  #: py-lmdb gives its database handles no public type
    entries: Any

    @classmethod
    def open(cls, path: Path, map_size_bytes: int, *, create: bool = False) -> Environment:
        """Open the environment in ``path`` with the only flags that keep every promise.

        ``lib_version`` is given because an environment variable could otherwise choose an engine
        whose files the other one cannot read.
        """
        env = lmdb.open(
            str(path),
            map_size=map_size_bytes,
            subdir=True,
            sync=True,
            metasync=True,
            writemap=False,
            map_async=False,
            meminit=True,
            lock=True,
            readahead=True,
            max_readers=64,
            max_dbs=4,
            max_spare_txns=0,
            mode=0o600,
            lib_version=0,
        )
        try:
            tables = [env.open_db(name, create=create) for name in (b"meta", b"entries")]
            return cls(env, *tables)
        except BaseException:
            env.close()
            raise

    def get_record(self, txn: lmdb.Transaction[bytes], key: bytes) -> dict[str, Any] | None:
        """A meta record, or None.

        Raises:
            LogCorruptError: its checksum is wrong.
        """
        raw = txn.get(key, db=self.meta)
        if raw is None:
            return None
        try:
            return unseal(raw)
        except RecordError as error:
            raise LogCorruptError(f"meta record {key.decode()}: {error}") from error

    def put_record(self, txn: lmdb.Transaction[bytes], key: bytes, body: dict[str, Any]) -> None:
        txn.put(key, seal(body), db=self.meta)

    def put_shape(self, txn: lmdb.Transaction[bytes], old: Shape | None, new: Shape) -> None:
        """Write the records in which ``new`` differs from ``old`` (all of them when None)."""
        for key, before, after in (
            (HARD_STATE, old and hard_state_body(old), hard_state_body(new)),
            (COMMIT_HINT, old and {"index": old.commit_hint}, {"index": new.commit_hint}),
            (FIRST, old and _link_body(old.before), _link_body(new.before)),
            (LAST, old and _link_body(old.tip), _link_body(new.tip)),
        ):
            if before != after:
                self.put_record(txn, key, after)
        if new.snapshot is not None and (old is None or old.snapshot != new.snapshot):
            self.put_pointer(txn, new.snapshot)

    def put_pointer(self, txn: lmdb.Transaction[bytes], meta: SnapshotMeta | None) -> None:
        """Say which snapshot is in force; None when the log alone is."""
        if meta is None:
            txn.delete(SNAPSHOT, db=self.meta)
        else:
            self.put_record(txn, SNAPSHOT, _pointer_body(meta))

    def put_values(
        self, txn: lmdb.Transaction[bytes], first: int, values: tuple[bytes, ...]
    ) -> None:
        """Append entries. LMDB skips an out-of-order key in silence, so the count is checked."""
        if not values:
            return
        items = [(_KEY.pack(index), value) for index, value in enumerate(values, first)]
        consumed, added = txn.cursor(self.entries).putmulti(items, append=True)
        if not consumed == added == len(items):
            raise LogCorruptError(f"only {added} of {len(items)} entries went in after {first - 1}")

    def delete_from(self, txn: lmdb.Transaction[bytes], first: int, limit: int) -> None:
        """Delete the entries from ``first`` up to, not including, ``limit``."""
        cursor = txn.cursor(self.entries)
        found = cursor.set_range(key_of(first))
        while found and index_of(cursor.key()) < limit:
            found = cursor.delete() and bool(cursor.key())

    def get_link(self, txn: lmdb.Transaction[bytes], index: int) -> Link | None:
        """The place of a stored entry, or None when it is not there."""
        raw = txn.get(key_of(index), db=self.entries)
        if raw is None:
            return None
        entry, chain = checked_entry(index, raw)
        return Link(index, entry.term, chain)


def checked_entry(index: int, value: bytes) -> tuple[Entry, bytes]:
    """The entry in stored bytes and the chain after it.

    A torn entry cannot exist in a copy-on-write store, so a mismatch is always corruption.

    Raises:
        LogCorruptError: checksum, form or index is wrong.
    """
    if not check_value(value):
        raise LogCorruptError(f"checksum of entry {index} does not match")
    canonical, chain = split_value(value)
    try:
        entry = decode_entry(canonical)
    except EncodingError as error:
        raise LogCorruptError(f"entry {index}: {error}") from error
    if entry.index != index:
        raise LogCorruptError(f"under key {index} lies entry {entry.index}")
    return entry, chain


# -- records ------------------------------------------------------------------------------------


def format_body(identity: Identity, min_reader: int = FIRST_FORMAT_VERSION) -> dict[str, Any]:
    """Ties the log to the directory it was made for."""
    return stamp(
        {
            "cluster_id": identity.cluster_id,
            "node_id": identity.node_id,
            "incarnation": identity.incarnation.hex(),
        },
        LOG_FORMAT,
        min_reader,
    )


def reader_of(configuration: Configuration) -> int:
    """The oldest reader of a log that holds ``configuration``."""
    first = configuration.level == FIRST_FEATURE_LEVEL
    return FIRST_FORMAT_VERSION if first else LOG_FORMAT


def hard_state_body(shape: Shape) -> dict[str, Any]:
    """Term and vote in one record: no crash can show one without the other (rule 2)."""
    return {"term": shape.hard_state.term, "vote": shape.hard_state.vote}


def hard_state_of(body: dict[str, Any]) -> HardState:
    """Term and vote in a record; KeyError, TypeError or ValueError if it holds none."""
    return HardState(int(body["term"]), body["vote"])


def _link_body(link: Link) -> dict[str, Any]:
    return {"index": link.index, "term": link.term, "chain": link.chain.hex()}


def link_of(body: dict[str, Any]) -> Link:
    """The place in a record; KeyError, TypeError or ValueError if it is none."""
    return Link(int(body["index"]), int(body["term"]), bytes.fromhex(body["chain"]))


@dataclass(frozen=True, slots=True)
class Pointer:
    """The meta record that names the newest adopted snapshot."""

    index: int
    term: int
    size_bytes: int
    digest: bytes


def pointer_of(body: dict[str, Any]) -> Pointer:
    """The pointer in a record; KeyError, TypeError or ValueError if it is none."""
    digest = bytes.fromhex(body["digest"])
    return Pointer(int(body["index"]), int(body["term"]), int(body["size_bytes"]), digest)


def _pointer_body(meta: SnapshotMeta) -> dict[str, Any]:
    return {
        "index": meta.index,
        "term": meta.term,
        "size_bytes": meta.size_bytes,
        "digest": meta.digest.hex(),
    }


@dataclass(frozen=True, slots=True)
class MetaRecords:
    """Everything in the ``meta`` table."""

    format: dict[str, Any]
    shape: Shape  #: without the snapshot, which is in a file
    pointer: Pointer | None
    runs: int
    #: The run that last knew of FLOOR; None before there was one.
    floor_runs: int | None


def read_meta(environment: Environment) -> MetaRecords:
    """All meta records, each verified.

    Raises:
        LogCorruptError: one is missing or damaged.
        FormatTooNewError: a newer release wrote the log.
    """
    with environment.env.begin() as txn:
        bodies = {key: environment.get_record(txn, key) for key in META_KEYS}
    try:
        form = _present(bodies, FORMAT)
        check_format(form, "the log")
        hard_state, hint = _present(bodies, HARD_STATE), _present(bodies, COMMIT_HINT)
        shape = Shape(
            hard_state=hard_state_of(hard_state),
            commit_hint=int(hint["index"]),
            before=link_of(_present(bodies, FIRST)),
            tip=link_of(_present(bodies, LAST)),
        )
        body, floor = bodies[SNAPSHOT], bodies[FLOOR]
        return MetaRecords(
            form,
            shape,
            None if body is None else pointer_of(body),
            int(_present(bodies, RUNS)["count"]),
            None if floor is None else int(floor["runs"]),
        )
    except (RecordError, KeyError, TypeError, ValueError) as error:
        raise LogCorruptError(f"the meta records do not read: {error!r}") from error


def _present(bodies: dict[bytes, dict[str, Any] | None], key: bytes) -> dict[str, Any]:
    body = bodies[key]
    if body is None:
        raise LogCorruptError(f"meta record {key.decode()} is missing")
    return body


def create_log(path: Path, identity: Identity, configuration: Configuration | None) -> None:
    """A new log in the empty directory ``path``: entry 1 is the configuration, committed.

    Term 1 with no vote: every founder holds the same entry as if a leader of term 1 had sent it,
    and nobody can vote in that term for somebody who did not. Without a configuration the log is
    empty and of term 0: that of a node which joins a cluster that others founded.

    Raises:
        StorageError: the disk failed.
    """
    write = Write(None, None, ())
    reader = LOG_FORMAT
    if configuration is not None:
        entry = Entry(1, 1, EntryType.CONFIGURATION, encode_configuration(configuration))
        write = Write(HardState(1, None), None, (entry,), commit_hint=1)
        reader = reader_of(configuration)
    batch = plan_batch(Shape(), [write], lambda index: Link(index, 0, b""))
    try:
        environment = Environment.open(path, DEFAULT_MAP_SIZE_BYTES, create=True)
        try:
            with environment.env.begin(write=True) as txn:
                environment.put_record(txn, FORMAT, format_body(identity, reader))
                environment.put_record(txn, RUNS, {"count": 0})
                environment.put_values(txn, batch.first, batch.values)
                environment.put_shape(txn, None, batch.after)
        finally:
            environment.env.close()
    except lmdb.Error as error:
        raise storage_error(error, "creating the log") from error
