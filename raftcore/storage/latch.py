"""The two small locks of a store: the latch of its first error, and the count of its readers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from raftcore.errors import StorageError

#: How long an exclusive section waits for short reads to end before that is an error by itself.
READERS_TIMEOUT_S = 30.0


class Latch:
    """Remembers the first storage error; from then on every use raises it again (rule 46).

    A kernel may drop the dirty pages of a failed fsync and report success the next time, so going
    on after the first error would acknowledge what is not there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: StorageError | None = None

    @property
    def error(self) -> StorageError | None:
        return self._error

    def check(self) -> None:
        """Raise the latched error, if there is one."""
        if self._error is not None:
            raise self._error

    def trip(self, error: StorageError) -> StorageError:
        """Latch ``error`` unless an earlier one is; returns the one in force."""
        with self._lock:
            if self._error is None:
                self._error = error
            return self._error

    def poison(self, error: StorageError) -> None:
        """Latch ``error`` in a child after fork(), where the lock's state cannot be known."""
        self._lock = threading.Lock()
        self._error = error


class ReaderGuard:
    """Counts our own readers, because LMDB lets a map grow under them and they then fail."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._exclusive = False

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Hold off exclusive sections; waits while one runs."""
        with self._condition:
            self._wait(lambda: not self._exclusive)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait for every reader to leave, and let none in."""
        with self._condition:
            self._wait(lambda: not self._exclusive)
            self._exclusive = True
            try:
                self._wait(lambda: self._readers == 0)
            except BaseException:
                self._exclusive = False
                self._condition.notify_all()
                raise
        try:
            yield
        finally:
            with self._condition:
                self._exclusive = False
                self._condition.notify_all()

    def _wait(self, predicate: Callable[[], bool]) -> None:
        if not self._condition.wait_for(predicate, READERS_TIMEOUT_S):
            raise StorageError("readers of the log did not end in time")


class WriterThread:
    """Asserts that writer calls come from one thread and never from an event loop's (rule O9).

    A store that never blocks may allow the loop's own thread, which simulations need.
    """

    def __init__(self, *, allow_loop_thread: bool = False) -> None:
        self._ident: int | None = None
        self._allow_loop_thread = allow_loop_thread

    def check(self) -> None:
        """Bind to the first caller's thread; refuse any other."""
        loop_is_fine = self._allow_loop_thread or not on_loop_thread()
        assert loop_is_fine, "a blocking store call on an event loop's thread"
        ident = threading.get_ident()
        if self._ident is None:
            self._ident = ident
        assert ident == self._ident, "writer calls come from one thread only"


def on_loop_thread() -> bool:
    """Whether an asyncio event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
