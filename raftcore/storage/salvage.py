"""What can be kept of a log that is damaged (D4): verified, copied into a new one, nothing removed.

An entry that does not verify says nothing about the entries after it, so the prefix before it is
kept, or the newest verified snapshot, or nothing at all. What was lost had perhaps been
acknowledged: the node that goes on with the rest is in quarantine until it has everything again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from raftcore.core.types import Configuration, SnapshotMeta
from raftcore.errors import LogCorruptError
from raftcore.storage.base import Identity
from raftcore.storage.environment import (
    COMMIT_HINT,
    FIRST,
    FLOOR,
    FORMAT,
    HARD_STATE,
    LOG_FORMAT,
    RUNS,
    SNAPSHOT,
    Environment,
    Pointer,
    format_body,
    hard_state_of,
    link_of,
    pointer_of,
)
from raftcore.storage.files import Files, storage_errors
from raftcore.storage.floor import Floor, restored
from raftcore.storage.plan import GENESIS, Link, Shape
from raftcore.storage.recovery import VerifiedLog, verified_entries
from raftcore.storage.snapshots import SnapshotDirectory
from raftcore.storage.transactions import Transactions

_T = TypeVar("_T")

#: Entries and bytes copied per transaction.
COPY_ENTRIES = 1000
COPY_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Remains:
    """What verifies of a damaged log.

    ``configurations`` are all that are known with their indexes, oldest first, also those beyond
    what is kept: the snapshot's, then those after it. ``vouched``: FLOOR vouches for term and vote.
    """

    shape: Shape
    configurations: tuple[tuple[int, Configuration], ...]
    runs: int
    vouched: bool

    @property
    def configuration(self) -> Configuration | None:
        """The newest known."""
        return self.configurations[-1][1] if self.configurations else None


def survey(
    environment: Environment, cluster_id: str, snapshots: SnapshotDirectory, floor: Floor | None
) -> Remains:
    """Find what can be kept; changes nothing.

    Raises:
        LogCorruptError: nothing says which term and vote this node may have promised.
    """
    hard_state = restored(floor, _readable(environment, HARD_STATE, hard_state_of))
    if hard_state is None:
        raise LogCorruptError("neither the log nor FLOOR says which term and vote were promised")
    before = _readable(environment, FIRST, link_of) or GENESIS
    prefix = _verified_prefix(environment, before, {p[0] for p in snapshots.positions()})
    snapshot = _usable_snapshot(environment, cluster_id, snapshots, prefix)
    start = 0 if snapshot is None else snapshot.index
    tip = prefix.tip
    if not before.index <= start <= tip.index:  # the prefix does not continue the snapshot
        before = tip = _link_of(snapshot)
    if tip.term > hard_state.term:
        raise LogCorruptError(f"the log is of term {tip.term}, but only {hard_state.term} is known")
    hint = _readable(environment, COMMIT_HINT, lambda body: int(body["index"])) or 0
    runs = _readable(environment, RUNS, lambda body: int(body["count"]))
    known = _readable(environment, FLOOR, lambda body: int(body["runs"]))
    floor_runs = 0 if floor is None else floor.runs
    # The same judgement as of a sound log: a program that does not know FLOOR may have run last.
    stale = None not in (known, runs) and known != runs and floor_runs <= (runs or 0)
    base = () if snapshot is None else ((start, snapshot.configuration),)
    return Remains(
        Shape(hard_state, min(max(hint, start), tip.index), before, tip, snapshot),
        (*base, *(c for c in prefix.configurations if c[0] > start)),
        runs or 0,
        floor is not None and not stale,
    )


def _readable(
    environment: Environment, key: bytes, parse: Callable[[dict[str, Any]], _T]
) -> _T | None:
    """A meta record, or None when it is missing or does not read."""
    try:
        with environment.env.begin() as txn:
            body = environment.get_record(txn, key)
        return None if body is None else parse(body)
    except (LogCorruptError, KeyError, TypeError, ValueError, lmdb.Error):
        return None


def _verified_prefix(environment: Environment, before: Link, wanted: set[int]) -> VerifiedLog:
    found = VerifiedLog(before)
    try:
        with environment.env.begin() as txn:
            for entry, link, _ in verified_entries(environment, txn, before):
                found.add(entry, link, wanted)
    except (LogCorruptError, lmdb.Error):
        return found  # here it breaks; what came before it was verified
    return found


def _usable_snapshot(
    environment: Environment,
    cluster_id: str,
    snapshots: SnapshotDirectory,
    prefix: VerifiedLog,
) -> SnapshotMeta | None:
    """The newest one that verifies and was in force, at the pointer or before it.

    Where the pointer does not read, any finished file of this cluster: whoever made or sent one had
    it committed.
    """
    pointer = _readable(environment, SNAPSHOT, pointer_of)
    if pointer is None and prefix.before.index == 0 and _is_absent(environment, SNAPSHOT):
        return None  # nothing was compacted either: there never was one
    for index, term in snapshots.positions():
        if pointer is not None and index > pointer.index:
            continue
        meta = snapshots.verified_or_none(index, term)
        if meta is not None and _belongs(meta, cluster_id, pointer, prefix):
            return meta
    return None


def _is_absent(environment: Environment, key: bytes) -> bool:
    with environment.env.begin() as txn:
        return txn.get(key, db=environment.meta) is None


def _belongs(
    meta: SnapshotMeta, cluster_id: str, pointer: Pointer | None, prefix: VerifiedLog
) -> bool:
    if meta.configuration.cluster_id != cluster_id:
        return False
    if pointer is not None and meta.index == pointer.index and meta.digest != pointer.digest:
        return False
    link = prefix.links.get(meta.index)
    return link is None or (link.term, link.chain) == (meta.term, meta.chain)


def _link_of(snapshot: SnapshotMeta | None) -> Link:
    if snapshot is None:
        return GENESIS
    return Link(snapshot.index, snapshot.term, snapshot.chain)


def build_log(
    aside: Path,
    source: Environment,
    identity: Identity,
    remains: Remains,
    map_bytes: tuple[int, int],
    files: Files,
) -> None:
    """A new log in ``aside`` that holds ``remains``; whole and durable when this returns.

    ``map_bytes`` are size and limit of its map. The records come last: without them a log that was
    cut off while it was built is none.

    Raises:
        StorageError: the disk failed.
    """
    shape = remains.shape
    with storage_errors(f"building {aside}"):
        files.make_directory(aside)
        target = Transactions(
            Environment.open(aside, map_bytes[0], create=True), map_bytes[1], files
        )
        try:
            with target.final("building a log from what is left"):
                _copy_entries(source, target, shape)
                target.durable(lambda txn: _put_records(target, txn, identity, remains))
        finally:
            target.close()
        files.fsync_path(aside / "data.mdb")
        files.fsync_directory(aside)
        files.reached("salvage:built")


def _copy_entries(source: Environment, target: Transactions, shape: Shape) -> None:
    count = shape.tip.index - shape.before.index
    first, values, size_bytes = shape.first_index, list[bytes](), 0
    with source.env.begin() as txn:
        kept = verified_entries(source, txn, shape.before)
        for _, _, value in itertools.islice(kept, count):
            values.append(value)
            size_bytes += len(value)
            if len(values) >= COPY_ENTRIES or size_bytes >= COPY_BYTES:
                _copy_chunk(target, first, tuple(values))
                first, values, size_bytes = first + len(values), [], 0
    _copy_chunk(target, first, tuple(values))


def _copy_chunk(target: Transactions, first: int, values: tuple[bytes, ...]) -> None:
    target.durable(lambda txn: target.environment.put_values(txn, first, values))


def _put_records(
    target: Transactions, txn: lmdb.Transaction[bytes], identity: Identity, remains: Remains
) -> None:
    environment = target.environment
    # A reader that does not know of quarantine would vote.
    environment.put_record(txn, FORMAT, format_body(identity, LOG_FORMAT))
    environment.put_record(txn, RUNS, {"count": remains.runs})
    environment.put_record(txn, FLOOR, {"runs": remains.runs})
    environment.put_shape(txn, None, remains.shape)
