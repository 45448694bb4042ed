"""A data directory of a node that does not run: locked for the time, read, never changed.

Everything the tools know of a directory they learn through :class:`ClosedDirectory`. It opens no
file for writing, takes the lock on the LOCK file that is there, and maps the log only after its
structure has been verified by plain reads: mapping a file that is cut short kills the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from raftcore.core.types import Entry
from raftcore.errors import IdentityError, LockedError, LogCorruptError, StorageError
from raftcore.storage.base import Identity
from raftcore.storage.directory import ENGINE
from raftcore.storage.environment import (
    Environment,
    MetaRecords,
    checked_entry,
    index_of,
    key_of,
    read_meta,
)
from raftcore.storage.files import Files, storage_error, storage_errors
from raftcore.storage.floor import FLOOR_FILE, Floor, FloorFile
from raftcore.storage.opening import judge_floor
from raftcore.storage.plan import Link
from raftcore.storage.quarantine import Quarantine, QuarantineFile
from raftcore.storage.records import RecordError, check_format, unseal
from raftcore.storage.recovery import check_structure
from raftcore.storage.snapshots import SnapshotDirectory

#: Where recovery and restore record what the directory was made from.
ORIGIN_FILE = "ORIGIN"


class ClosedDirectory:
    """A directory locked for reading. Made by :meth:`open`; a context manager."""

    def __init__(self, path: Path, lock_fd: int | None) -> None:
        self.path = path
        self.log_path = _current_log(path)
        self.snapshots = SnapshotDirectory(path / "snap", Files())
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ClosedDirectory:
        """Lock the directory against every node that would open it, and against other tools.

        Raises:
            LockedError: a node runs on it.
            IdentityError: no such directory.
            FormatTooNewError: its QUARANTINE record is a newer release's.
            StorageError: the operating system refused.
        """
        root = Path(path).absolute()
        with storage_errors(f"opening {root}"):
            if not root.is_dir():
                raise IdentityError(f"{root} is not a directory")
            fd = _lock_existing(root / "LOCK")
            try:
                return cls(root.resolve(), fd)
            except BaseException:
                if fd is not None:
                    os.close(fd)
                raise

    @property
    def locked(self) -> bool:
        """Whether there was a LOCK file to lock: a copy that was made by hand may have none."""
        return self._lock_fd is not None

    def record(self, name: str) -> dict[str, Any] | None:
        """The body of a sealed record in the directory, or None.

        Raises:
            IdentityError: it is damaged.
            FormatTooNewError: a newer release wrote it.
        """
        try:
            body = unseal((self.path / name).read_bytes())
            check_format(body, name)
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise IdentityError(f"{name} in {self.path} is damaged: {error}") from error
        except OSError as error:
            raise storage_error(error, f"reading {name}") from error
        return body

    def identity(self) -> Identity:
        """Whom the directory belongs to.

        Raises:
            IdentityError: no identity, or a damaged one.
            FormatTooNewError: a newer release wrote it.
            LogCorruptError: another engine wrote the log.
        """
        body = self.record("IDENTITY")
        if body is None:
            forming = " (it is still forming)" if (self.path / "FOUNDING").exists() else ""
            raise IdentityError(f"{self.path} has no IDENTITY{forming}")
        try:
            engine = body["engine"]
            found = Identity(
                str(body["cluster_id"]), str(body["node_id"]), bytes.fromhex(body["incarnation"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IdentityError(f"IDENTITY is incomplete: {error!r}") from error
        if engine != ENGINE:
            raise LogCorruptError(f"the log was written by engine {engine}, this is {ENGINE}")
        return found

    def floor(self) -> Floor | None:
        """What FLOOR says, or None.

        Raises:
            FormatTooNewError: a newer release wrote it.
        """
        with storage_errors("reading FLOOR"):
            return FloorFile(self.path / FLOOR_FILE, self.identity().incarnation, Files()).read()

    def quarantine(self) -> Quarantine | None:
        """Why and since when the node is in quarantine, or None.

        Raises:
            FormatTooNewError: a newer release wrote it.
        """
        with storage_errors("reading QUARANTINE"):
            return QuarantineFile(self.path, Files()).read()

    def doubt(self, log: ClosedLog | None) -> str | None:
        """Why the node may have lost what it once acknowledged, or None.

        Raises:
            FormatTooNewError: a newer release wrote one of the records.
        """
        quarantine = self.quarantine()
        if quarantine is not None:
            return f"it is in quarantine: {quarantine.reason}"
        return None if log is None else log.lost(self.floor()) or None

    def log(self) -> ClosedLog:
        """The log, mapped for reading; its structure is verified first.

        Also after a clean stop: pages that rot change neither size nor time of the file.

        Raises:
            IdentityError: there is neither a log nor an identity.
            TruncatedFileError, LogCorruptError: it cannot be read.
            FormatTooNewError: a newer release wrote it.
        """
        with storage_errors(f"looking at {self.log_path}"):
            if not self.log_path.is_dir():
                self.identity()  # a directory of nobody is not a damaged one
                raise LogCorruptError(f"{self.log_path} is missing")
        check_structure(self.log_path)
        return ClosedLog.open(self.log_path)

    def close(self) -> None:
        """Release the lock. Harmless when repeated."""
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> ClosedDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ClosedLog:
    """A log mapped for reading only. A context manager."""

    def __init__(self, environment: Environment, records: MetaRecords) -> None:
        self.environment = environment
        self.records = records

    @classmethod
    def open(cls, path: Path) -> ClosedLog:
        """Map the log in ``path``, whose structure has been verified, and read its meta records.

        Raises:
            LogCorruptError: not a log of ours, or a meta record is damaged.
            FormatTooNewError: a newer release wrote it.
        """
        with _reading(f"opening {path}"):
            # lock=False: LMDB's own lock file would be written to. Our lock keeps writers away.
            env = lmdb.open(
                str(path),
                readonly=True,
                lock=False,
                create=False,
                max_dbs=4,
                max_spare_txns=0,
                lib_version=0,
            )
            try:
                tables = [env.open_db(name, create=False) for name in (b"meta", b"entries")]
                environment = Environment(env, *tables)
                return cls(environment, read_meta(environment))
            except BaseException:
                env.close()
                raise

    def raw_entries(self, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """(index, stored bytes) from ``first`` on, in order; nothing is verified."""
        with _reading("reading the log"), self.environment.env.begin() as txn:
            cursor = txn.cursor(self.environment.entries)
            found = cursor.set_range(key_of(first))
            while found:
                yield index_of(cursor.key()), cursor.value()
                found = cursor.next()

    def entries(self, first: int = 0, last: int | None = None) -> Iterator[tuple[Entry, Link]]:
        """Entries ``first..last`` that are there, each with its place; checksums are verified.

        Raises:
            LogCorruptError: one does not verify.
        """
        for index, value in self.raw_entries(first):
            if last is not None and index > last:
                return
            entry, chain = checked_entry(index, value)
            yield entry, Link(index, entry.term, chain)

    def link_at(self, index: int) -> Link | None:
        """The place at ``index``: of an entry, or just before the first one; None if not known.

        Raises:
            LogCorruptError: the entry does not verify.
        """
        if index == self.records.shape.before.index:
            return self.records.shape.before
        if index <= 0:
            return None
        with _reading("reading the log"), self.environment.env.begin() as txn:
            return self.environment.get_link(txn, index)

    def lost(self, floor: Floor | None) -> str:
        """What ``floor`` says that this log held and does not hold any more; empty if nothing."""
        return judge_floor(floor, self.records)[0]

    def copy_to(self, path: Path) -> None:
        """A compact copy of the environment in the empty directory ``path``; synced by the caller.

        Raises:
            StorageError: reading or writing failed.
        """
        try:
            self.environment.env.copy(str(path), compact=True)
        except lmdb.Error as error:
            raise storage_error(error, f"copying the log to {path}") from error

    def close(self) -> None:
        """Unmap. Harmless when repeated."""
        self.environment.env.close()

    def __enter__(self) -> ClosedLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def _reading(doing: str) -> Iterator[None]:
    """Nothing is written here, so whatever LMDB complains of is the state of the file."""
    try:
        yield
    except lmdb.Error as error:
        raise LogCorruptError(f"{doing}: {type(error).__name__}: {error}") from error


def _current_log(root: Path) -> Path:
    """Where the log is: aside, while a damaged one is being exchanged for what was kept of it."""
    quarantine = QuarantineFile(root, Files()).read()
    aside = root / "log.new"
    exchanging = quarantine is not None and quarantine.replaces is not None
    return aside if exchanging and aside.is_dir() else root / "log"


def _lock_existing(path: Path) -> int | None:
    """Lock the LOCK file without writing to it; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(fd, 100, 0).decode(errors="replace").strip()
        os.close(fd)
        raise LockedError(f"{path.parent} is in use ({owner or 'holder unknown'})") from error
    except OSError as error:
        os.close(fd)
        raise StorageError(f"locking {path}: {error}") from error
    return fd
