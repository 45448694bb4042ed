"""What a directory says of itself, without verifying it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftcore.core.membership import decode_configuration
from raftcore.core.types import Configuration, EntryType, HardState, Position
from raftcore.errors import LogCorruptError, StorageError
from raftcore.storage.base import Identity
from raftcore.storage.closed import ORIGIN_FILE, ClosedDirectory, ClosedLog
from raftcore.storage.environment import Pointer, checked_entry
from raftcore.storage.files import storage_errors
from raftcore.storage.floor import Floor
from raftcore.storage.quarantine import Quarantine
from raftcore.storage.recovery import is_clean
from raftcore.storage.snapshot_format import SnapshotDecoder

#: Place of the entry's type in its canonical bytes, for scans that decode nothing.
_TYPE_OFFSET = 1


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A finished snapshot file. ``problem`` says why its header does not read, or is None."""

    name: str
    index: int
    term: int
    size_bytes: int
    in_force: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What :func:`inspect` found."""

    path: Path
    identity: Identity
    formats: dict[str, int]
    locked: bool
    clean: bool  #: the log was closed properly and has not been touched since
    runs: int
    hard_state: HardState
    commit_hint: int
    first_index: int
    last: Position
    chain: bytes
    pointer: Pointer | None
    configuration_index: int
    configuration: Configuration | None
    snapshots: tuple[SnapshotFile, ...]
    origin: dict[str, Any] | None
    floor: Floor | None
    quarantine: Quarantine | None
    lost: str  #: what FLOOR says that the log held and does not hold any more; empty if nothing
    sizes: dict[str, int]


def inspect(directory: ClosedDirectory) -> Inspection:
    """Read identity, meta records, configuration and sizes.

    Raises:
        StorageError: something of it does not read; :func:`~raftcore.tools.verification.verify`
            says everything that is wrong.
    """
    identity_record = directory.record("IDENTITY") or {}
    identity = directory.identity()
    clean = is_clean(directory.log_path)
    with directory.log() as log:
        records = log.records
        index, configuration = configuration_in_force(directory, log)
        return Inspection(
            path=directory.path,
            identity=identity,
            formats={
                "identity": identity_record["format_version"],
                "log": records.format["format_version"],
            },
            locked=directory.locked,
            clean=clean,
            runs=records.runs,
            hard_state=records.shape.hard_state,
            commit_hint=records.shape.commit_hint,
            first_index=records.shape.first_index,
            last=records.shape.tip.position,
            chain=records.shape.tip.chain,
            pointer=records.pointer,
            configuration_index=index,
            configuration=configuration,
            snapshots=tuple(_snapshot_files(directory, records.pointer)),
            origin=directory.record(ORIGIN_FILE),
            floor=directory.floor(),
            quarantine=directory.quarantine(),
            lost=log.lost(directory.floor()),
            sizes=sizes_on_disk(directory.path),
        )


def configuration_in_force(
    directory: ClosedDirectory, log: ClosedLog
) -> tuple[int, Configuration | None]:
    """Index and value of the last configuration entry, else the snapshot's, else (0, None).

    Raises:
        LogCorruptError: that entry does not verify.
    """
    last: tuple[int, bytes] | None = None
    for index, value in log.raw_entries():
        if value[_TYPE_OFFSET : _TYPE_OFFSET + 1] == bytes([EntryType.CONFIGURATION]):
            last = index, value
    if last is not None:
        entry, _ = checked_entry(*last)
        try:
            return entry.index, decode_configuration(entry.data)
        except ValueError as error:
            raise LogCorruptError(f"entry {entry.index}: {error}") from error
    pointer = log.records.pointer
    if pointer is None:
        return 0, None
    return pointer.index, snapshot_configuration(directory, pointer.index, pointer.term)


def snapshot_configuration(directory: ClosedDirectory, index: int, term: int) -> Configuration:
    """The configuration in the header of that snapshot; its body is not read.

    Raises:
        LogCorruptError: the header does not read.
        StorageError: the file does not.
    """
    path = directory.snapshots.file_of(index, term)
    with storage_errors(f"reading {path.name}"), path.open("rb") as source:
        return SnapshotDecoder(source).header.configuration


def _snapshot_files(directory: ClosedDirectory, pointer: Pointer | None) -> Iterator[SnapshotFile]:
    for index, term in directory.snapshots.positions():
        path = directory.snapshots.file_of(index, term)
        problem = None
        try:
            snapshot_configuration(directory, index, term)
        except StorageError as error:
            problem = str(error)
        in_force = pointer is not None and (pointer.index, pointer.term) == (index, term)
        yield SnapshotFile(path.name, index, term, path.stat().st_size, in_force, problem)


def sizes_on_disk(path: Path) -> dict[str, int]:
    """Bytes that each file or directory right below ``path`` takes on the disk."""
    with storage_errors(f"looking at {path}"):
        found = {}
        for child in sorted(path.iterdir()):
            below = child.rglob("*") if child.is_dir() and not child.is_symlink() else ()
            found[child.name] = sum(512 * p.lstat().st_blocks for p in (child, *below))
        return found
