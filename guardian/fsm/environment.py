"""The state's own LMDB environment: written without syncing, disposable, replaceable (D5).

One thread writes (the apply thread). Reads come from any thread at any time, also while the
environment grows, is replaced by an install or closes: a reader leases the environment that is
current, and an environment that was replaced is closed by whoever releases its last lease.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import lmdb
import lmdb.verify

from guardian.fsm.handle import Handle, PinnedView
from guardian.fsm.mark import DATA_FILE, MARK_FILE, Mark, boot_id, why_not_reusable
from guardian.fsm.tables import StateCorruptError, View, WriteView
from raftcore.errors import ForkedError, NoSpaceError, StorageError
from raftcore.storage.files import Files, storage_error
from raftcore.storage.latch import Latch

_log = logging.getLogger(__name__)

DEFAULT_MAP_SIZE_BYTES: Final = 16 * 2**30
DEFAULT_MAP_LIMIT_BYTES: Final = 1024 * 2**30
#: How long growth of the map waits for an open snapshot before it ends it.
DEFAULT_SNAPSHOT_WAIT_S: Final = 30.0
#: How long growth and closing wait for short reads; longer is a bug of ours.
READERS_TIMEOUT_S: Final = 30.0
#: After an unclean stop a file up to this size is checked page by page before it is mapped.
VERIFY_LIMIT_BYTES: Final = 256 * 2**20
#: The map grows between batches once it is this full, so that a batch rarely has to be repeated.
GROW_AT: Final = 0.75

#: What a byte of commands may cost in pages: its own, and those copied on write around it.
GROWTH_PER_BYTE: Final = 4


class _Read:
    """A short read: the current environment leased, one read transaction open."""

    __slots__ = ("_environment", "_handle", "_txn")

    def __init__(self, environment: StateEnvironment) -> None:
        self._environment = environment

    def __enter__(self) -> View:
        self._handle = self._environment.lease_reader()
        try:
            self._txn = self._handle.env.begin(buffers=True)
        except lmdb.Error as error:
            self._environment.release_reader(self._handle)
            raise self._environment.fail(error, "begin a read") from error
        return View(self._txn, self._handle.databases)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._txn.abort()
        self._environment.release_reader(self._handle)
        if isinstance(error, (lmdb.Error, StateCorruptError)):
            raise self._environment.fail(error, "read") from error


class StateEnvironment:
    """The directory ``state/`` and the environment in it.

    Args:
        path: the directory; ``<path>.new`` and ``<path>.old`` beside it are ours too.
        cluster_id: a state of another cluster is discarded.
        incarnation: 16 bytes; a state of another incarnation is discarded.
        map_size_bytes: size of the memory map to begin with; the file is only as large as its data.
        map_limit_bytes: the map doubles when full, up to this.
        snapshot_wait_s: how long growth waits for an open snapshot before it ends it.
    """

    def __init__(
        self,
        path: Path,
        *,
        cluster_id: str,
        incarnation: bytes,
        map_size_bytes: int = DEFAULT_MAP_SIZE_BYTES,
        map_limit_bytes: int = DEFAULT_MAP_LIMIT_BYTES,
        snapshot_wait_s: float = DEFAULT_SNAPSHOT_WAIT_S,
        files: Files | None = None,
        boot: str | None = None,
    ) -> None:
        self._path = path
        self._new_path = path.with_name(path.name + ".new")
        self._old_path = path.with_name(path.name + ".old")
        self._cluster_id = cluster_id
        self._incarnation = incarnation
        self._map_size_bytes = map_size_bytes
        self._map_limit_bytes = map_limit_bytes
        self._snapshot_wait_s = snapshot_wait_s
        self._files = files or Files()
        self._boot = boot_id() if boot is None else boot
        self._latch = Latch()
        self._condition = threading.Condition()
        self._exclusive = False  #: no short read may begin
        self._growing = False  #: no long read may begin
        self._closed = False
        self._pid = os.getpid()
        try:
            self._current = self._open()
        except (lmdb.Error, OSError) as error:
            raise storage_error(error, f"open the state in {path}") from error

    # -- opening ---------------------------------------------------------------------------------

    def _open(self) -> Handle:
        for leftover in (self._new_path, self._old_path):
            if leftover.exists():
                shutil.rmtree(leftover)
        self._files.make_directory(self._path.parent)
        if self._path.exists():
            reason = self._why_discard()
            if reason is not None:
                self._discard(reason)
        try:
            return self._open_at(self._path)
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
            self._discard(str(error))
            return self._open_at(self._path)

    def _discard(self, reason: str) -> None:
        _log.warning("the state in %s is discarded: %s", self._path, reason)
        shutil.rmtree(self._path)

    def _why_discard(self) -> str | None:
        reason = why_not_reusable(
            self._path,
            boot=self._boot,
            cluster_id=self._cluster_id,
            incarnation=self._incarnation,
        )
        if reason is not None:
            return reason
        mark = Mark.read(self._path)
        assert mark is not None, "a reusable state has a mark"
        data = self._path / DATA_FILE
        if not mark.clean and data.stat().st_size <= VERIFY_LIMIT_BYTES:
            # A torn structure would be followed by a wild read, so it is looked for in the file
            # before it is mapped. A clean state is not read through; should it kill the process
            # none the less, it is unclean at the next start.
            verify: Callable[..., list[str]] = lmdb.verify.verify
            try:
                faults = verify(str(data), subdir=False)
            except lmdb.verify.VerifyError as error:
                faults = [str(error)]
            if faults:
                return f"its structure is damaged: {faults[0]}"
        return None

    def _open_at(self, path: Path) -> Handle:
        """Open ``path``; its MARK is durable before anything is committed there (D5.1)."""
        self._files.make_directory(path)
        handle = Handle(path, self._map_size_bytes)
        try:
            self._write_mark(path, clean=False)
            handle.open_tables()
        except BaseException:
            handle.env.close()
            raise
        return handle

    def _write_mark(self, path: Path, *, clean: bool) -> None:
        Mark.of(
            path,
            boot=self._boot,
            cluster_id=self._cluster_id,
            incarnation=self._incarnation,
            clean=clean,
        ).write(path, self._files)

    # -- errors ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what makes the environment unusable, if anything does.

        Raises:
            StorageError: the first error, for ever; or it is closed; or this is a forked child.
        """
        self._latch.check()
        if self._closed:
            raise StorageError("the state is closed")
        if os.getpid() != self._pid:
            raise ForkedError("the state was opened before fork()")

    def fail(self, error: Exception, doing: str) -> StorageError:
        """Latch ``error`` and remove the mark, so that the next start rebuilds the state (D5.4)."""
        failure = self._latch.trip(storage_error(error, f"{doing} in the state"))
        try:
            self._files.remove(self._path / MARK_FILE)
        except OSError:
            _log.exception("the mark of a failed state can not be removed")
        return failure

    # -- reading ---------------------------------------------------------------------------------

    def read(self) -> _Read:
        """A short read, as a context manager over a :class:`View`. Never hold it across an await
        or while calling back into this object."""
        return _Read(self)

    def lease_reader(self) -> Handle:
        self.check()
        with self._condition:
            while self._exclusive:
                self._condition.wait()
            if self._closed:
                raise StorageError("the state is closed")
            handle = self._current
            handle.users += 1
            handle.readers += 1
        return handle

    def release_reader(self, handle: Handle) -> None:
        with self._condition:
            handle.readers -= 1
            if self._exclusive:
                self._condition.notify_all()
            self._release(handle)

    def _release(self, handle: Handle) -> None:
        """Give back one lease; the condition is held."""
        handle.users -= 1
        if handle.retired and handle.users == 0:
            handle.env.close()

    def pin(self) -> PinnedView:
        """A long view, for a snapshot. Close it."""
        self.check()
        with self._condition:
            while self._growing and not self._closed:
                self._condition.wait()
            self.check()
            handle = self._current
            try:
                pinned = PinnedView(handle, self.fail, lambda view: self._unpin(handle, view))
            except lmdb.Error as error:
                raise self.fail(error, "begin a snapshot") from error
            handle.users += 1
            handle.pins.add(pinned)
        return pinned

    def _unpin(self, handle: Handle, pinned: PinnedView) -> None:
        with self._condition:
            if pinned in handle.pins:
                handle.pins.remove(pinned)
                self._release(handle)
                self._condition.notify_all()

    # -- writing (the apply thread only) ---------------------------------------------------------

    @contextlib.contextmanager
    def write(self) -> Iterator[WriteView]:
        """One write transaction: committed at the end, aborted by an exception.

        Raises:
            lmdb.MapFullError: nothing happened; :meth:`grow` and repeat.
            StorageError: final.
        """
        self.check()
        handle = self._current
        try:
            with handle.env.begin(write=True, buffers=True) as txn:
                yield WriteView(txn, handle.databases)
        except lmdb.MapFullError:
            raise
        except (lmdb.Error, StateCorruptError) as error:
            raise self.fail(error, "write") from error

    def grow_ahead(self) -> None:
        """Grow the map before it is full, if it soon will be and no snapshot is open.

        Raises:
            StorageError: the environment can not be used.
        """
        self.check()
        handle = self._current
        if handle.pins or handle.used() < GROW_AT:
            return
        if handle.map_size_bytes < self._map_limit_bytes:
            self.grow()

    def grow(self, needed_bytes: int = 0) -> None:
        """Double the map, and again until the growth has room for ``needed_bytes`` several times.

        No write transaction may be open. An open snapshot is waited for, and ended when it takes
        too long. Short reads are waited for, and new ones wait: LMDB would let the map move under
        them.

        Raises:
            NoSpaceError: the limit is reached. Not latched: reads may go on.
        """
        handle = self._current
        size = handle.map_size_bytes * 2
        while size - handle.map_size_bytes < GROWTH_PER_BYTE * needed_bytes:
            size *= 2
        size = min(size, self._map_limit_bytes)
        if size <= handle.map_size_bytes:
            raise NoSpaceError(f"the state's map has its full size of {size} bytes")
        try:
            self._end_pins(handle)
            with self._condition:
                self._exclude(handle)
                handle.grow(size)
                self._map_size_bytes = size
        except lmdb.Error as error:
            raise self.fail(error, "grow the map") from error
        finally:
            with self._condition:
                self._growing = self._exclusive = False
                self._condition.notify_all()
        _log.info("the state's map has grown to %d bytes", size)

    def _end_pins(self, handle: Handle) -> None:
        """Let no new long view begin, wait for those that are open, then end them."""
        with self._condition:
            self._growing = True
            self._condition.wait_for(lambda: not handle.pins, self._snapshot_wait_s)
            pins = list(handle.pins)
        # Without the condition: ending a view waits for its step, and short reads must not.
        for pinned in pins:
            _log.warning("a snapshot is ended because the state's map must grow")
            pinned.abort()

    def _exclude(self, handle: Handle) -> None:
        """Let no new short read begin and wait for the running ones; the condition is held."""
        self._exclusive = True
        if not self._condition.wait_for(lambda: handle.readers == 0, READERS_TIMEOUT_S):
            raise self.fail(StorageError("a read does not end"), "wait for readers")

    def replace(self, build: Callable[[Handle], None]) -> None:
        """Replace the whole state by what ``build`` puts into an empty environment (D5.2).

        It is built beside the live one, synced, and renamed into place; a crash at any step leaves
        the old state, the new one, or none, never a mixture. If ``build`` raises, the live state
        is as it was.

        Raises:
            StorageError: final, unless ``build`` raised it.
        """
        self.check()
        if self._new_path.exists():
            shutil.rmtree(self._new_path)
        try:
            handle = self._open_at(self._new_path)
        except (lmdb.Error, OSError) as error:
            raise self.fail(error, "create the new state") from error
        try:
            self._build(handle, build)
        except BaseException:
            handle.env.close()
            shutil.rmtree(self._new_path, ignore_errors=True)
            raise
        try:
            self._swap(handle)
        except OSError as error:
            raise self.fail(error, "put the new state into place") from error

    def _build(self, handle: Handle, build: Callable[[Handle], None]) -> None:
        self._files.reached("state:created")
        try:
            build(handle)
        except lmdb.Error as error:
            raise self.fail(error, "build the new state") from error
        self._files.reached("state:built")
        try:
            handle.env.sync(True)
            self._files.fsync_directory(self._new_path)
        except (lmdb.Error, OSError) as error:
            raise self.fail(error, "sync the new state") from error
        self._files.reached("state:synced")

    def _swap(self, handle: Handle) -> None:
        self._files.rename(self._path, self._old_path)
        self._files.reached("state:moved away")
        self._files.rename(self._new_path, self._path)
        self._files.reached("state:moved in")
        with self._condition:
            old, self._current = self._current, handle
            old.retired = True
            old.users += 1
            self._release(old)
        shutil.rmtree(self._old_path)
        self._files.reached("state:old removed")

    # -- syncing and closing ---------------------------------------------------------------------

    def sync(self) -> None:
        """Flush what was committed, off the write path; from any one thread, every 5 to 30 s.

        Raises:
            StorageError: final.
        """
        self.check()
        with self._condition:
            handle = self._current
            handle.users += 1
        try:
            handle.env.sync(True)
        except lmdb.Error as error:
            raise self.fail(error, "sync") from error
        finally:
            with self._condition:
                self._release(handle)

    def close(self) -> None:
        """Sync, mark clean, close. Open snapshots are ended. A failed state is only closed.

        Raises:
            StorageError: the sync failed; the mark is gone.
        """
        with self._condition:
            if self._closed:
                return
            handle = self._current
            pins = list(handle.pins)
        for pinned in pins:
            pinned.abort()
        with self._condition:
            try:
                self._exclude(handle)
            finally:
                self._closed = True
                self._exclusive = False
                self._condition.notify_all()
        try:
            if self._latch.error is None:
                handle.env.sync(True)
                self._write_mark(self._path, clean=True)
        except (lmdb.Error, OSError) as error:
            raise self.fail(error, "close") from error
        finally:
            with self._condition:
                handle.retired = True
                handle.users += 1
                self._release(handle)
