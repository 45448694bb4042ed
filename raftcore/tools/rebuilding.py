"""A new directory of a new cluster, made from what an old one held.

Recovery after a lost quorum and restore of a backup both end here. The new log is the old one
rewritten: the same commands at the same indexes and terms, so that everything the state machine
derived from them (versions, revisions, sessions) comes out the same; but the only configuration in
it is that of the new cluster, at its very beginning: in the snapshot's header, or as entry 1. The
old configurations become no-ops, because a node of the new cluster refuses, rightly, whatever names
another cluster; the hash chain is computed anew from there.

The new cluster has an id of its own, so a survivor of the old one can neither talk to it nor vote
in it, and its one member an incarnation of its own. Where it came from is kept in ORIGIN.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, Entry, EntryType, HardState, Member, SnapshotMeta
from raftcore.errors import IdentityError, LogCorruptError, RefusedError, StorageError
from raftcore.storage.base import Identity, Write
from raftcore.storage.closed import ORIGIN_FILE, ClosedDirectory, ClosedLog
from raftcore.storage.directory import INCARNATION_SIZE, DataDirectory
from raftcore.storage.environment import (
    DATA_FILE,
    DEFAULT_MAP_SIZE_BYTES,
    FORMAT,
    RUNS,
    Environment,
    format_body,
    reader_of,
)
from raftcore.storage.files import Files, storage_error, storage_errors
from raftcore.storage.plan import Link, Shape, plan_batch
from raftcore.storage.records import seal, stamp
from raftcore.storage.recovery import check_snapshot_fits, choose_snapshot, verify_entries
from raftcore.storage.salvage import survey
from raftcore.storage.snapshot_format import SnapshotHeader
from raftcore.storage.snapshots import FileSnapshotWriter, SnapshotDirectory
from raftcore.tools.progress import Progress, silent
from raftcore.tools.verification import verify
from raftcore.transport.address import parse_address
from raftcore.transport.checks import (
    MAX_ADDRESS_BYTES,
    WireError,
    check_attributes,
    check_node_id,
    check_text,
)

#: How many earlier origins are kept.
MAX_HISTORY = 32
#: One transaction of the new log holds at most so much.
_BATCH_ENTRIES = 1000
_BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A verified log, as a node would believe it. ``shape.snapshot`` is the snapshot in force.

    ``configurations`` are those known along it, oldest first, the snapshot's included. The last two
    read it again, from the files.
    """

    identity: Identity
    shape: Shape
    configurations: tuple[tuple[int, Configuration], ...]
    origin: dict[str, Any] | None
    size_bytes: int
    records: Callable[[], Iterator[bytes]]
    entries: Callable[[], Iterator[Entry]]

    @property
    def configuration(self) -> Configuration:
        """The one in force."""
        return self.configurations[-1][1]


@dataclass(frozen=True, slots=True)
class NewMember:
    """Who the one member of the new cluster is to be. None: as the node whose log it is was."""

    node_id: str | None = None
    address: str | None = None
    attributes: tuple[tuple[str, str], ...] | None = None

    def resolve(self, source: Source, incarnation: bytes) -> Member:
        """The member.

        Raises:
            RefusedError: that node was no member, so its address has to be given; or the address is
                none, or id, address or attributes are more than a peer takes.
        """
        known = source.configuration.member(source.identity.node_id)
        address = known.address if self.address is None and known else self.address
        attributes = known.attributes if self.attributes is None and known else self.attributes
        if address is None:
            raise RefusedError(f"{source.identity.node_id} was no member: its address is needed")
        node_id = source.identity.node_id if self.node_id is None else self.node_id
        try:
            parse_address(address)
            # What no peer would take from this member, it must not be.
            check_text(address, MAX_ADDRESS_BYTES)
            check_node_id(node_id)
            check_attributes(attributes or ())
        except (ValueError, WireError) as error:
            raise RefusedError(f"no member can be so: {error}") from error
        return Member(node_id, address, incarnation, attributes=attributes or ())


AS_BEFORE = NewMember()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The directory that was made."""

    path: Path
    identity: Identity
    old_cluster_id: str
    epoch: int
    last_index: int


def verified_source(directory: ClosedDirectory, log: ClosedLog) -> Source:
    """Verify everything that a start of the node would verify, and more: the snapshot's body.

    Raises:
        IdentityError: the log is not of that directory.
        LogCorruptError, GapError: a node would not start on it either.
    """
    identity, records = _owner(directory, log), log.records
    snapshot = choose_snapshot(directory.snapshots, records.pointer, records.shape)
    places = {index for index, _ in directory.snapshots.positions()}
    verified = verify_entries(log.environment, records.shape, places)
    base: list[tuple[int, Configuration]] = []
    start = 0
    if snapshot is not None:
        check_snapshot_fits(snapshot, verified.links.get(snapshot.index))
        start, base = snapshot.index, [(snapshot.index, snapshot.configuration)]
    configurations = (*base, *(c for c in verified.configurations if c[0] > start))
    if not configurations:
        raise LogCorruptError(f"{directory.path} holds no configuration: it never had any data")
    with storage_errors("looking at the log"):
        size_bytes = (directory.log_path / DATA_FILE).stat().st_size
    return Source(
        identity=identity,
        shape=replace(records.shape, snapshot=snapshot),
        configurations=configurations,
        origin=directory.record(ORIGIN_FILE),
        size_bytes=size_bytes,
        records=lambda: directory.snapshots.records(_present(snapshot)),
        entries=lambda: (entry for entry, _ in log.entries(start + 1)),
    )


def salvaged_source(directory: ClosedDirectory, log: ClosedLog) -> Source:
    """What verifies of a log that does not verify as a whole: its beginning, or a snapshot.

    Raises:
        IdentityError: the log is not of that directory.
        LogCorruptError: not even that much is left.
    """
    identity = _owner(directory, log)
    remains = survey(log.environment, identity.cluster_id, directory.snapshots, directory.floor())
    shape = remains.shape
    if not remains.configurations:
        raise LogCorruptError(f"nothing of the log in {directory.path} names its members")
    return Source(
        identity=identity,
        shape=shape,
        configurations=remains.configurations,
        origin=directory.record(ORIGIN_FILE),
        size_bytes=0,
        records=lambda: directory.snapshots.records(_present(shape.snapshot)),
        entries=lambda: (e for e, _ in log.entries(shape.snapshot_index + 1, shape.tip.index)),
    )


def _owner(directory: ClosedDirectory, log: ClosedLog) -> Identity:
    identity, found = directory.identity(), log.records.format
    expected = format_body(identity)
    if any(found.get(key) != expected[key] for key in ("cluster_id", "node_id", "incarnation")):
        raise IdentityError(f"the log in {directory.path} was made for another directory")
    return identity


def _present(snapshot: SnapshotMeta | None) -> SnapshotMeta:
    assert snapshot is not None, "records are only asked for where there is a snapshot"
    return snapshot


def derive_epoch_cluster_id(old_cluster_id: str, epoch: int, incarnation: bytes) -> str:
    """The id of the new cluster: 32 hex digits.

    The fresh incarnation is part of it, so that two recoveries from the same directories make two
    clusters that refuse each other, never two halves of one.
    """
    raw = json.dumps([old_cluster_id, epoch, incarnation.hex()]).encode()
    return hashlib.sha256(b"raftcore epoch" + raw).digest()[:16].hex()


def rebuild(
    source: Source,
    into: str | os.PathLike[str],
    member: NewMember = AS_BEFORE,
    *,
    kind: str,
    term: int = 0,
    details: dict[str, Any] | None = None,
    allow_unsupported_fs: bool = False,
    files: Files | None = None,
    staging: str = "",
    on_progress: Progress = silent,
) -> Rebuilt:
    """Make ``into``, which must not exist or be empty, the directory of a new cluster of one.

    ``staging`` is the name of what the caller itself keeps in it meanwhile. ``kind`` and
    ``details`` go into ORIGIN. ``term`` is the highest that anybody in the old cluster is known to
    have seen: the new one begins there. IDENTITY comes last: a directory that a crash left
    unfinished is refused by every start, and can be removed.

    Raises:
        RefusedError: ``into`` is not empty, or see :meth:`NewMember.resolve`. Nothing was made.
        StorageError: the disk failed, or what was written does not verify.
    """
    files = files or Files()
    path = Path(into).absolute()
    check_empty(path, staging)
    incarnation = secrets.token_bytes(INCARNATION_SIZE)
    new = member.resolve(source, incarnation)
    epoch = _next_epoch(source.origin)
    cluster_id = derive_epoch_cluster_id(source.identity.cluster_id, epoch, incarnation)
    configuration = Configuration(
        cluster_id,
        (new,),
        level=source.configuration.level,
    )
    identity = Identity(cluster_id, new.node_id, incarnation)
    with contextlib.closing(
        DataDirectory.open(
            path, new.node_id, allow_unsupported_fs=allow_unsupported_fs, files=files
        )
    ) as directory:
        with storage_errors(f"building {path}"):
            files.make_directory(directory.snapshot_path)
            meta = _write_snapshot(source, directory, configuration)
            files.reached("rebuild:snapshot")
            shape = _first_shape(meta, max(term, source.shape.hard_state.term))
            _write_log(source, directory, identity, configuration, shape, on_progress)
            files.reached("rebuild:log")
            origin = _origin_body(source, kind, epoch, details or {})
            files.write_atomically(path / ORIGIN_FILE, seal(origin))
        directory.adopt_log(configuration, incarnation)
    _check_result(path, on_progress)
    return Rebuilt(path, identity, source.identity.cluster_id, epoch, source.shape.tip.index)


def check_empty(path: Path, staging: str = "") -> None:
    """``path`` is free, or an empty directory but for ``staging``.

    Raises:
        RefusedError: it is not.
    """
    with storage_errors(f"looking at {path}"):
        if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {staging}):
            raise RefusedError(f"{path} is not an empty directory")


def check_outside(path: str | os.PathLike[str], directories: Iterable[Path]) -> None:
    """What is made is not made in a directory that is only to be read.

    Raises:
        RefusedError: it would be.
    """
    for directory in directories:
        if Path(path).resolve().is_relative_to(directory.resolve()):
            raise RefusedError(f"{path} is in {directory}, which is never changed")


def _next_epoch(origin: dict[str, Any] | None) -> int:
    return 1 if origin is None else int(origin["epoch"]) + 1


def _origin_body(source: Source, kind: str, epoch: int, details: dict[str, Any]) -> dict[str, Any]:
    """What the directory was made from, for the audit; nothing ever decides by it."""
    old, tip = source.identity, source.shape.tip
    return stamp(
        {
            "kind": kind,
            "epoch": epoch,
            "made_unix_s": int(time.time()),
            "cluster_id": old.cluster_id,
            "node_id": old.node_id,
            "incarnation": old.incarnation.hex(),
            "last_index": tip.index,
            "last_term": tip.term,
            "chain": tip.chain.hex(),
            "details": details,
            "history": _history(source.origin),
        }
    )


def _history(origin: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Earlier epochs, newest first, without their details."""
    if origin is None:
        return []
    last = {k: v for k, v in origin.items() if k not in {"history", "details"}}
    return [last, *origin["history"]][:MAX_HISTORY]


def _write_snapshot(
    source: Source, directory: DataDirectory, configuration: Configuration
) -> SnapshotMeta | None:
    """The same records under a header that names the new cluster."""
    old = source.shape.snapshot
    if old is None:
        return None
    snapshots = SnapshotDirectory(directory.snapshot_path, directory.files)
    header = SnapshotHeader(old.index, old.term, old.chain, configuration)
    writer = FileSnapshotWriter(snapshots, header, contextlib.nullcontext)
    for record in source.records():
        writer.write(record)
    return writer.finish()


def _first_shape(meta: SnapshotMeta | None, term: int) -> Shape:
    """The new log before its first entry.

    No vote: nobody of the new cluster has asked for one yet, whatever the old one did in that term.
    """
    hard_state = HardState(term, None)
    if meta is None:
        return Shape(hard_state=hard_state)
    link = Link(meta.index, meta.term, meta.chain)
    return Shape(hard_state, commit_hint=meta.index, before=link, tip=link, snapshot=meta)


def _write_log(
    source: Source,
    directory: DataDirectory,
    identity: Identity,
    configuration: Configuration,
    shape: Shape,
    on_progress: Progress,
) -> None:
    """The entries after the snapshot, in bounded transactions. All of them count as committed: the
    one voter of the new cluster holds them durably."""
    path, files = directory.log_path, directory.files
    files.make_directory(path)
    map_size_bytes = max(DEFAULT_MAP_SIZE_BYTES, 2 * source.size_bytes)
    total = source.shape.tip.index
    try:
        environment = Environment.open(path, map_size_bytes, create=True)
        try:
            with environment.env.begin(write=True) as txn:
                environment.put_record(txn, FORMAT, format_body(identity, reader_of(configuration)))
                environment.put_record(txn, RUNS, {"count": 0})
                environment.put_shape(txn, None, shape)
            for entries in _batches(_rewritten(source.entries(), configuration, shape.tip.index)):
                write = Write(None, None, entries, commit_hint=entries[-1].index)
                batch = plan_batch(shape, [write], lambda index: Link(index, 0, b""))
                with environment.env.begin(write=True) as txn:
                    environment.put_values(txn, batch.first, batch.values)
                    environment.put_shape(txn, shape, batch.after)
                shape = batch.after
                on_progress("writing the new log", shape.tip.index, total)
        finally:
            environment.env.close()
    except lmdb.Error as error:
        raise storage_error(error, "writing the new log") from error
    files.fsync_path(path / DATA_FILE)
    files.fsync_directory(path)


def _rewritten(
    entries: Iterable[Entry], configuration: Configuration, start: int
) -> Iterator[Entry]:
    """The same entries without the old cluster's configurations."""
    for entry in entries:
        if start == 0 and entry.index == 1:
            if entry.type is not EntryType.CONFIGURATION:
                raise LogCorruptError("a log from the beginning starts with its configuration")
            yield replace(entry, data=encode_configuration(configuration))
        elif entry.type is EntryType.CONFIGURATION:
            yield replace(entry, type=EntryType.NOOP, data=b"")
        else:
            yield entry


def _batches(entries: Iterable[Entry]) -> Iterator[tuple[Entry, ...]]:
    batch: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        batch.append(entry)
        size_bytes += entry.size_bytes
        if len(batch) >= _BATCH_ENTRIES or size_bytes >= _BATCH_BYTES:
            yield tuple(batch)
            batch, size_bytes = [], 0
    if batch:
        yield tuple(batch)


def _check_result(path: Path, on_progress: Progress) -> None:
    """Read back what was written before anybody relies on it."""
    with ClosedDirectory.open(path) as made:
        report = verify(made, on_progress=on_progress)
    if not report.sound:
        raise StorageError(f"{path} does not verify: {report.findings[0].detail}")
