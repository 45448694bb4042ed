"""An open LMDB environment with who uses it, and the long views on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import lmdb

from guardian.fsm.records import TABLE_NAMES
from guardian.fsm.tables import StateCorruptError, View
from raftcore.errors import RefusedError, StorageError

MAX_READERS: Final = 128


class SnapshotAbortedError(RefusedError):
    """The view of a snapshot was ended because the state needed to grow or was closed."""

    code = "snapshot_aborted"


class Handle:
    """One open environment with its tables, and who uses it."""

    def __init__(self, path: Path, map_size_bytes: int) -> None:
        """Open or create. ``lib_version`` is given because an environment variable could otherwise
        choose an engine whose files the other one can not read."""
        self.env = lmdb.open(
            str(path),
            map_size=map_size_bytes,
            subdir=True,
            sync=False,
            metasync=False,
            writemap=False,
            map_async=False,
            meminit=True,
            lock=True,
            readahead=True,
            max_readers=MAX_READERS,
            max_dbs=len(TABLE_NAMES),
            max_spare_txns=4,
            mode=0o600,
            lib_version=0,
        )
        self.databases: tuple[Any, ...] = ()
        # LMDB maps at least what the file holds, whatever was asked for
        self.map_size_bytes: int = self.env.info()["map_size"]
        self.users = 0  #: leases of any kind: the environment stays open
        self.readers = 0  #: short reads: the map must not grow
        self.pins: set[PinnedView] = set()  #: long reads: growth waits for them, or ends them
        self.retired = False

    def open_tables(self) -> None:
        """Open the tables, creating what is missing; the first commit of this process."""
        self.env.reader_check()
        with self.env.begin(write=True) as txn:
            self.databases = tuple(self.env.open_db(name.encode(), txn=txn) for name in TABLE_NAMES)

    def grow(self, size_bytes: int) -> None:
        """Enlarge the map; nobody may have a transaction open."""
        self.env.set_mapsize(size_bytes)
        self.map_size_bytes = size_bytes

    def used(self) -> float:
        """Which part of the map is in use."""
        info = self.env.info()
        page_size: int = self.env.stat()["psize"]
        return (info["last_pgno"] + 1) * page_size / self.map_size_bytes


class PinnedView:
    """A view that stays as it is while writes go on, read in steps by one other thread.

    Args:
        handle: the environment to look at; it stays open until
        release: is called with this view, at :meth:`close`.
        fail: latches an error of reading and returns the one to raise.
    """

    def __init__(
        self,
        handle: Handle,
        fail: Callable[[Exception, str], StorageError],
        release: Callable[[PinnedView], None],
    ) -> None:
        self._handle = handle
        self._fail = fail
        self._release = release
        self._lock = threading.Lock()
        self._txn: lmdb.Transaction[memoryview] | None = handle.env.begin(buffers=True)

    @contextlib.contextmanager
    def step(self) -> Iterator[View]:
        """One bounded look into the view; it can be ended between two, not within one.

        Raises:
            SnapshotAbortedError: it was ended.
        """
        with self._lock:
            if self._txn is None:
                raise SnapshotAbortedError("the state had to grow, or was closed")
            try:
                yield View(self._txn, self._handle.databases)
            except (lmdb.Error, StateCorruptError) as error:
                raise self._fail(error, "read a snapshot") from error

    def abort(self) -> None:
        """End the view; the next step raises."""
        with self._lock:
            if self._txn is not None:
                self._txn.abort()
                self._txn = None

    def close(self) -> None:
        """Release the view and its environment."""
        self.abort()
        self._release(self)
