"""Snapshot files: written, received, read and cleaned up by rule O5.

A finished file is ``<index>-<term>.snap``. What is still being written ends in ``.tmp`` or
``.recv``; what was found damaged is set aside as ``.bad``. Which file counts is said by the log's
meta table alone: a file nobody points to has no effect.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from io import FileIO
from pathlib import Path

from raftcore.core.types import SnapshotMeta
from raftcore.errors import FormatTooNewError, LogCorruptError, StorageError
from raftcore.storage.files import FILE_MODE, Files, storage_errors
from raftcore.storage.snapshot_format import SnapshotDecoder, SnapshotEncoder, SnapshotHeader

_log = logging.getLogger(__name__)

KEPT_SNAPSHOTS = 2

#: Wraps each operation of a writer or receiver, so that a failing disk latches its store.
Guard = Callable[[], AbstractContextManager[None]]

_NAME = re.compile(r"(\d{1,19})-(\d{1,19})\.snap")


class SnapshotDirectory:
    """The ``snap/`` directory. Knows files; the log knows which of them is in force."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self.files = files
        #: Files that were finished or verified in this run, by (index, term).
        self.finished: dict[tuple[int, int], SnapshotMeta] = {}
        self._numbers = itertools.count()

    def prepare(self) -> None:
        """Create the directory and remove what an interrupted write or receipt left."""
        with storage_errors(f"preparing {self.path}"):
            self.files.make_directory(self.path)
            for leftover in (*self.path.glob("*.tmp"), *self.path.glob("*.recv")):
                self.files.remove(leftover)

    def file_of(self, index: int, term: int) -> Path:
        return self.path / f"{index}-{term}.snap"

    def unfinished(self, path: Path, suffix: str) -> Path:
        """A name for a file being written, never used twice: a late abort hits only its own."""
        return path.with_name(f"{path.name}.{next(self._numbers)}.{suffix}")

    def positions(self) -> list[tuple[int, int]]:
        """(index, term) of every finished file, newest first."""
        if not self.path.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.path.iterdir())
        return sorted(((int(m[1]), int(m[2])) for m in matches if m), reverse=True)

    def verify(self, index: int, term: int) -> SnapshotMeta:
        """Read the whole file and return what it stands for.

        Raises:
            LogCorruptError: missing, cut short or damaged anywhere.
            FormatTooNewError: a newer release wrote it.
        """
        path = self.file_of(index, term)
        try:
            with storage_errors(f"reading {path.name}"), path.open("rb") as source:
                decoder = SnapshotDecoder(source)
                for _ in decoder.records():
                    pass
        except LogCorruptError as error:
            raise LogCorruptError(f"snapshot {path.name}: {error}") from error
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise LogCorruptError(f"snapshot {path.name} is missing") from error
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
                # What the disk can not read is as good as damaged (D4): the older one may do.
                raise LogCorruptError(f"snapshot {path.name} can not be read") from error
            raise
        header = decoder.header
        if (header.index, header.term) != (index, term):
            raise LogCorruptError(f"snapshot {path.name} is of {header.index}-{header.term}")
        meta = _meta(header, decoder.size_bytes, decoder.digest())
        self.finished[index, term] = meta
        return meta

    def verified_or_none(self, index: int, term: int) -> SnapshotMeta | None:
        """Like :meth:`verify`, with None for a file that is missing or damaged."""
        try:
            return self.verify(index, term)
        except LogCorruptError as error:
            _log.warning("%s", error)
            return None

    def has(self, index: int, term: int) -> bool:
        """Whether a finished file of that place is there and known to be good."""
        return (index, term) in self.finished and self.file_of(index, term).exists()

    def set_aside(self, index: int, term: int) -> None:
        """Keep a damaged file for whoever wants to look at it, out of everybody's way."""
        path = self.file_of(index, term)
        if path.exists():
            with storage_errors(f"setting {path.name} aside"):
                self.files.rename(path, path.with_suffix(".snap.bad"))

    def remove(self, positions: Iterable[tuple[int, int]]) -> None:
        """Unlink those finished files."""
        with storage_errors("removing old snapshots"):
            for position in positions:
                # Forgotten first: whoever finds the file gone then knows that it was meant to be.
                self.finished.pop(position, None)
                self.files.remove(self.file_of(*position))

    def read_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes:
        """File bytes from ``offset``; empty at the end or when the file is gone.

        The first read of a transfer looks at the whole file: a damaged one would be sent, refused
        by its receiver and sent again for ever.

        Raises:
            LogCorruptError: the file is not the one that ``meta`` describes any more.
        """
        path = self.file_of(meta.index, meta.term)
        with storage_errors(f"reading {path.name}"):
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:
                return b""
            with file:
                if offset == 0 and hashlib.file_digest(file, "sha256").digest() != meta.digest:
                    raise LogCorruptError(f"snapshot {path.name} is damaged")
                return os.pread(file.fileno(), max_bytes, offset)

    def records(self, meta: SnapshotMeta) -> Iterator[bytes]:
        """The records of a finished file; the digest is compared after the last one."""
        path = self.file_of(meta.index, meta.term)
        with storage_errors(f"reading {path.name}"), path.open("rb") as source:
            decoder = SnapshotDecoder(source)
            yield from decoder.records()
            if decoder.digest() != meta.digest:
                raise LogCorruptError(f"snapshot {path.name} is not the one it was")


def _meta(header: SnapshotHeader, size_bytes: int, digest: bytes) -> SnapshotMeta:
    return SnapshotMeta(
        index=header.index,
        term=header.term,
        chain=header.chain,
        configuration=header.configuration,
        size_bytes=size_bytes,
        digest=digest,
    )


def _create(path: Path) -> FileIO:
    """A new unbuffered file: what is written has left the process, and close() has no news."""
    return FileIO(path, "w", opener=lambda name, flags: os.open(name, flags, FILE_MODE))


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class FileSnapshotWriter:
    """A local snapshot being written; used by one thread at a time."""

    def __init__(self, directory: SnapshotDirectory, header: SnapshotHeader, guard: Guard) -> None:
        self._directory = directory
        self._header = header
        self._guard = guard
        self._path = directory.file_of(header.index, header.term)
        self._tmp = directory.unfinished(self._path, "tmp")
        with guard():
            self._file = _create(self._tmp)
            self._encoder = SnapshotEncoder(header, partial(_write_all, self._file))

    def write(self, record: bytes) -> None:
        """Append one record.

        Raises:
            ValueError: the record is too large.
            StorageError: the disk failed; final.
        """
        with self._guard():
            self._encoder.write(record)

    def finish(self) -> SnapshotMeta:
        """Footer, flush, fsync, rename, fsync of the directory, re-read and verify (O5).

        Raises:
            LogCorruptError: what was read back is not what was written; final.
            StorageError: the disk failed; final.
        """
        files = self._directory.files
        with self._guard(), self._file:
            digest = self._encoder.finish()
            files.reached("snap:written")
            files.fsync(self._file.fileno())
            self._file.close()
            files.reached("snap:synced")
            if self._directory.has(self._header.index, self._header.term):
                # The leader's snapshot of the same place came first and may be in force already.
                files.remove(self._tmp)
                return self._directory.verify(self._header.index, self._header.term)
            files.rename(self._tmp, self._path)
            files.reached("snap:renamed")
            meta = self._directory.verify(self._header.index, self._header.term)
            if meta.digest != digest:
                raise LogCorruptError(f"{self._path.name} reads back as something else")
            files.reached("snap:verified")
            return meta

    def abort(self) -> None:
        """Throw the unfinished file away. Harmless when repeated or after :meth:`finish`."""
        self._file.close()
        with self._guard():
            self._directory.files.remove(self._tmp)


class FileSnapshotReceiver:
    """A snapshot file arriving in chunks; used by one thread at a time."""

    def __init__(self, directory: SnapshotDirectory, meta: SnapshotMeta, guard: Guard) -> None:
        self._directory = directory
        self._meta = meta
        self._guard = guard
        self._path = directory.file_of(meta.index, meta.term)
        self._recv = directory.unfinished(self._path, "recv")
        self._next = 0
        with guard():
            self._file = _create(self._recv)

    def write(self, offset: int, data: bytes) -> int:
        """Store bytes at ``offset``; returns the next offset wanted.

        A repeat is harmless and a gap is ignored: the answer tells the sender where to go on.
        Bytes past the announced size are refused in the same way.

        Raises:
            StorageError: the disk failed; final.
        """
        skip = self._next - offset
        fits = offset + len(data) <= self._meta.size_bytes
        if 0 <= skip < len(data) and fits:
            with self._guard():
                _write_all(self._file, data[skip:])
            self._next = offset + len(data)
        return self._next

    def finish(self) -> bool:
        """Verify everything, make it durable, give it its name; False if it does not verify.

        Raises:
            StorageError: the disk failed; final.
        """
        files = self._directory.files
        with self._guard(), self._file:
            files.reached("recv:written")
            files.fsync(self._file.fileno())
            self._file.close()
            files.reached("recv:synced")
            if not self._verifies():
                files.remove(self._recv)
                return False
            if self._directory.has(self._meta.index, self._meta.term):
                # Our own snapshot of the same place came first and may be in force already.
                files.remove(self._recv)
                return True
            files.rename(self._recv, self._path)
            files.reached("recv:renamed")
            self._directory.finished[self._meta.index, self._meta.term] = self._meta
            return True

    def _verifies(self) -> bool:
        try:
            with self._recv.open("rb") as source:
                decoder = SnapshotDecoder(source)
                for _ in decoder.records():
                    pass
        except (LogCorruptError, FormatTooNewError) as error:
            _log.warning("received snapshot %s: %s", self._path.name, error)
            return False
        return _meta(decoder.header, decoder.size_bytes, decoder.digest()) == self._meta

    def abort(self) -> None:
        """Throw away what has arrived. Harmless when repeated or after :meth:`finish`."""
        self._file.close()
        with self._guard():
            self._directory.files.remove(self._recv)
