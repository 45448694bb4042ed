"""What is verified before a log is believed (D1, steps 5, 6 and 9). Nothing here changes the log.

Structure first, with plain reads, because mapping a file that is cut short kills the process; then
the content, entry by entry: checksum, hash chain, index without a gap, term never falling.
"""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import lmdb.verify

from raftcore.core.membership import decode_configuration
from raftcore.core.types import Configuration, Entry, EntryType, SnapshotMeta
from raftcore.encoding import chain_next
from raftcore.errors import GapError, LogCorruptError, StorageError, TruncatedFileError
from raftcore.storage import walk
from raftcore.storage.environment import DATA_FILE, Environment, Pointer, checked_entry, index_of
from raftcore.storage.files import Files, storage_error, storage_errors
from raftcore.storage.free_list import check_free_list
from raftcore.storage.plan import Link, Shape, split_value
from raftcore.storage.records import RecordError, seal, unseal
from raftcore.storage.snapshots import SnapshotDirectory

_log = logging.getLogger(__name__)

#: Up to here the structure is verified in this process, above it by a child that only reads.
VERIFY_LIMIT_BYTES = 2**30
#: The child's time: a fixed part, and what a slow disk needs at 20 MB/s.
WALK_TIMEOUT_S = 60.0
WALK_BYTES_PER_S = 20e6

CLEAN_FILE = "CLEAN"

_META_MAGIC = 0xBEEFC0DE
_META = struct.Struct("=16xI4x16xI")  # page header, magic, version, address and map size, page size


# -- the file ------------------------------------------------------------------------------------


def check_file(directory: Path, files: Files, *, clean: bool, verify_limit_bytes: int) -> None:
    """Steps 5 and 6: the file's structure, and its pages on the disk rather than in the cache.

    Raises:
        TruncatedFileError: cut short; it has not been mapped.
        LogCorruptError: not an LMDB file, or its structure is damaged.
        StorageError: the disk failed.
    """
    path = directory / DATA_FILE
    try:
        _check_size(path)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            files.fsync(fd)
            files.fsync_directory(directory)
            if hasattr(os, "posix_fadvise"):
                # Later reads must come from the disk, not from what this kernel remembers.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise LogCorruptError(f"{path} is missing") from error
    except OSError as error:
        raise storage_error(error, f"checking {path}") from error
    if not clean:
        check_structure(directory, verify_limit_bytes=verify_limit_bytes)


def check_structure(directory: Path, *, verify_limit_bytes: int = VERIFY_LIMIT_BYTES) -> None:
    """Whether the file may be mapped and every page of it reached. Writes and maps nothing.

    Raises:
        TruncatedFileError, LogCorruptError: see :func:`check_file`.
        StorageError: the disk failed.
    """
    path = directory / DATA_FILE
    try:
        size = _check_size(path)
    except FileNotFoundError as error:
        raise LogCorruptError(f"{path} is missing") from error
    except OSError as error:
        raise storage_error(error, f"checking {path}") from error
    if size <= verify_limit_bytes:
        _verify_structure(directory)
    else:
        _walk_in_child(directory, size)


def _check_size(path: Path) -> int:
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        head = source.read(_META.size)
    if len(head) < _META.size:
        raise TruncatedFileError(f"{path} has {size} bytes")
    magic, page_size = _META.unpack(head)
    if magic != _META_MAGIC or page_size < 512:
        raise LogCorruptError(f"{path} does not begin with an LMDB meta page")
    if size % page_size or size < 2 * page_size:
        raise TruncatedFileError(f"{path} has {size} bytes, not whole pages of {page_size}")
    return size


def _verify_structure(directory: Path) -> None:
    """LMDB's own offline verifier: every reachable page, by plain reads."""
    try:
        problems: list[str] = lmdb.verify.verify(  # type: ignore[no-untyped-call]
            str(directory), True
        )
    except lmdb.verify.VerifyError as error:
        raise LogCorruptError(f"{directory / DATA_FILE}: {error}") from error
    if problems:
        cut = any("beyond" in problem or "unreadable" in problem for problem in problems)
        kind = TruncatedFileError if cut else LogCorruptError
        raise kind(f"{directory / DATA_FILE}: {len(problems)} problems, first: {problems[0]}")


def _walk_in_child(directory: Path, size_bytes: int) -> None:
    """Every entry by a reader that may die, the free list, which no reader comes by, on its own."""
    command = [sys.executable, "-P", walk.__file__, str(directory)]
    timeout = WALK_TIMEOUT_S + size_bytes / WALK_BYTES_PER_S
    try:
        child = subprocess.run(  # noqa: S603 - our own interpreter, file and path
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"reading {directory} took more than {timeout:.0f} s") from error
    if child.returncode == -signal.SIGBUS:
        raise TruncatedFileError(f"{directory / DATA_FILE} ends before its last page")
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip()[-300:]
        raise LogCorruptError(f"reading {directory} ended with {child.returncode}: {said}")
    with storage_errors(f"reading {directory}"):
        check_free_list(directory / DATA_FILE)


# -- the clean mark ------------------------------------------------------------------------------


def is_clean(directory: Path) -> bool:
    """Whether the log was closed properly and its file has not been touched since."""
    try:
        return unseal((directory / CLEAN_FILE).read_bytes()) == _file_body(directory)
    except (FileNotFoundError, RecordError):
        return False


def remove_clean_mark(directory: Path, files: Files) -> None:
    """Durably, before the first change: from here on only a proper close renews it."""
    path = directory / CLEAN_FILE
    files.remove(path.with_name(CLEAN_FILE + ".tmp"))
    files.remove(path)


def leave_clean_mark(directory: Path, files: Files) -> None:
    """Say that the file is whole as it lies here; the environment must be closed."""
    files.write_atomically(directory / CLEAN_FILE, seal(_file_body(directory)))


def _file_body(directory: Path) -> dict[str, int]:
    status = (directory / DATA_FILE).stat()
    return {
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "device": status.st_dev,
        "inode": status.st_ino,
    }


# -- the content ---------------------------------------------------------------------------------


class VerifiedLog:
    """Entries of the log, verified, reduced to what the core needs at its start."""

    def __init__(self, before: Link) -> None:
        self.terms: list[tuple[int, int]] = []
        self.configurations: list[tuple[int, Configuration]] = []
        self.links: dict[int, Link] = {before.index: before}
        self.before = before
        self.tip = before

    def add(self, entry: Entry, link: Link, wanted: set[int]) -> None:
        """The next entry; ``wanted`` are indexes whose places the caller needs."""
        if entry.term > self.tip.term or not self.terms:
            self.terms.append((entry.index, entry.term))
        if entry.type is EntryType.CONFIGURATION:
            self.configurations.append((entry.index, _configuration(entry.index, entry.data)))
        if entry.index in wanted:
            self.links[entry.index] = link
        self.tip = link


def verified_entries(
    environment: Environment, txn: lmdb.Transaction[bytes], before: Link
) -> Iterator[tuple[Entry, Link, bytes]]:
    """Every entry in order with its place and its stored bytes.

    Raises:
        LogCorruptError: the next one does not follow: checksum, chain, index or term.
    """
    previous = before
    for key, value in txn.cursor(environment.entries):
        index = index_of(key)
        if index != previous.index + 1:
            raise LogCorruptError(f"entry {index} follows entry {previous.index}")
        entry, chain = checked_entry(index, value)
        check_follows(previous, entry, chain, value)
        previous = Link(index, entry.term, chain)
        yield entry, previous, value


def check_follows(previous: Link, entry: Entry, chain: bytes, value: bytes) -> None:
    """An entry continues the one before it.

    Raises:
        LogCorruptError: its chain or its term does not.
    """
    if chain != chain_next(previous.chain, split_value(value)[0]):
        raise LogCorruptError(f"the hash chain breaks at entry {entry.index}")
    if entry.term < previous.term:
        raise LogCorruptError(f"the term falls at entry {entry.index}")


def verify_entries(environment: Environment, shape: Shape, wanted: set[int]) -> VerifiedLog:
    """Read the whole log in order; ``wanted`` are indexes whose places the caller needs.

    Raises:
        LogCorruptError: anything does not fit. Nothing is ever truncated for it.
    """
    found = VerifiedLog(shape.before)
    with environment.env.begin() as txn:
        for entry, link, _ in verified_entries(environment, txn, shape.before):
            found.add(entry, link, wanted)
    if found.tip != shape.tip:
        raise LogCorruptError(
            f"the log ends at {found.tip.index}, the meta record says {shape.tip.index}"
        )
    if shape.commit_hint > shape.tip.index or shape.tip.term > shape.hard_state.term:
        raise LogCorruptError("the commit hint or the term lies outside the log")
    return found


def _configuration(index: int, data: bytes) -> Configuration:
    try:
        return decode_configuration(data)
    except ValueError as error:
        raise LogCorruptError(f"entry {index}: {error}") from error


# -- the snapshot --------------------------------------------------------------------------------


def choose_snapshot(
    snapshots: SnapshotDirectory, pointer: Pointer | None, shape: Shape
) -> SnapshotMeta | None:
    """The snapshot in force: the one pointed to, or an older good one the log continues.

    None means that the log alone is complete, from entry 1.

    Raises:
        GapError: no good snapshot has a log that continues it: never start from nothing.
    """
    if pointer is None:
        chosen = None
    else:
        chosen = snapshots.verified_or_none(pointer.index, pointer.term)
        if chosen is None or chosen.digest != pointer.digest:
            _log.error("snapshot %d-%d is not usable", pointer.index, pointer.term)
            chosen = _older_snapshot(snapshots, pointer, shape)
    start = 0 if chosen is None else chosen.index
    if shape.first_index > start + 1:
        raise GapError(f"the log begins at {shape.first_index}, the snapshot ends at {start}")
    if pointer is not None and max(shape.tip.index, start) < pointer.index:
        raise GapError(f"the log ends at {shape.tip.index}, below snapshot {pointer.index}")
    return chosen


def _older_snapshot(
    snapshots: SnapshotDirectory, pointer: Pointer, shape: Shape
) -> SnapshotMeta | None:
    for index, term in snapshots.positions():
        if index < pointer.index and shape.first_index <= index + 1:
            meta = snapshots.verified_or_none(index, term)
            if meta is not None:
                return meta
    return None


def check_snapshot_fits(meta: SnapshotMeta, link: Link | None) -> None:
    """Where the log still holds the snapshot's place, both must tell the same history."""
    if link is not None and (link.term, link.chain) != (meta.term, meta.chain):
        raise LogCorruptError(f"snapshot {meta.index}-{meta.term} is of another history")
