"""Transactions on the log's environment: durable writes, short reads, and the first error kept."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator

import lmdb

from raftcore.errors import ForkedError, NoSpaceError, StorageError
from raftcore.storage.environment import Environment
from raftcore.storage.files import Files, storage_error
from raftcore.storage.latch import Latch, ReaderGuard

_log = logging.getLogger(__name__)

#: With less free space than this, a short write is taken for a full disk.
FULL_BELOW_BYTES = 2**20


class Transactions:
    """Runs every transaction of one log. Any failure is latched, except a map that may grow."""

    def __init__(
        self,
        environment: Environment,
        map_limit_bytes: int,
        files: Files,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.environment = environment
        self.map_limit_bytes = map_limit_bytes
        self.commits = 0
        self.commit_ns = 0
        self._files = files
        self._clock_ns = clock_ns
        self._latch = Latch()
        self._readers = ReaderGuard()
        self._closed = False

    def check(self) -> None:
        """Raise the first error again, if there was one."""
        self._latch.check()

    @property
    def usable(self) -> bool:
        """Open, and nothing has failed."""
        return self._latch.error is None

    def durable(self, fill: Callable[[lmdb.Transaction[bytes]], object]) -> None:
        """One durable transaction; when the map is full, grow it and try the same afresh.

        A full map is found before anything is written and leaves the environment sound, which is
        what makes this the only failure that may be tried again. Call it inside :meth:`final`.
        """
        while True:  # ends at the latest when the map has reached its limit
            try:
                self._commit(fill)
            except lmdb.MapFullError:
                self._grow_map()
            else:
                return

    def _commit(self, fill: Callable[[lmdb.Transaction[bytes]], object]) -> None:
        with self.environment.env.begin(write=True) as txn:
            fill(txn)
            self._files.reached("commit:filled")
            started_ns = self._clock_ns()
        self.commits += 1
        self.commit_ns += self._clock_ns() - started_ns
        self._files.reached("commit:done")

    def _grow_map(self) -> None:
        env = self.environment.env
        size_bytes = min(2 * env.info()["map_size"], self.map_limit_bytes)
        if size_bytes <= env.info()["map_size"]:
            raise NoSpaceError(f"the log's map is at its limit of {self.map_limit_bytes} bytes")
        with self._readers.exclusive():
            env.set_mapsize(size_bytes)
        _log.warning("the log's memory map was full and is now %d bytes", size_bytes)

    @contextlib.contextmanager
    def reading(self, doing: str) -> Iterator[lmdb.Transaction[bytes]]:
        """A short read transaction, never held across anything that waits."""
        with self.final(doing), self._readers.reading(), self.environment.env.begin() as txn:
            yield txn

    @contextlib.contextmanager
    def final(self, doing: str) -> Iterator[None]:
        """Latch whatever storage failure the block ends with."""
        self._latch.check()
        try:
            yield
        except (StorageError, lmdb.Error, OSError) as error:
            latched = self._latch.trip(self._typed(error, doing))
            if latched is error:
                raise
            raise latched from error

    def _typed(self, error: Exception, doing: str) -> StorageError:
        """LMDB says EIO for any short write; on a full disk that is what made it short."""
        if isinstance(error, lmdb.Error) and getattr(error, "code", 0) == errno.EIO:
            try:
                status = os.statvfs(self.environment.env.path())
            except OSError as second:
                return StorageError(f"{doing}: {error}; then {second}")
            if status.f_bavail * status.f_frsize < FULL_BELOW_BYTES:
                return NoSpaceError(f"{doing}: {error}; the disk is full")
        return storage_error(error, doing)

    def guard(self, doing: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """:meth:`final`, to be entered later and more than once."""
        return lambda: self.final(doing)

    def close(self) -> bool:
        """Close the environment once readers are out; True if it was open and never failed."""
        if self._closed or isinstance(self._latch.error, ForkedError):
            return False
        self._closed = True
        sound = self._latch.error is None
        with self._readers.exclusive():
            self._latch.trip(StorageError("the log is closed"))
            self.environment.env.close()
        return sound

    def abandon(self) -> None:
        """Close after a failed open: nothing is believed about how it was left."""
        self._latch.trip(StorageError("the log could not be opened"))
        self.close()

    def poison(self) -> None:
        """Make every use in this process, a child after fork(), raise :class:`ForkedError`."""
        self._latch.poison(
            ForkedError("the log was opened before fork(); the child may not use it")
        )
