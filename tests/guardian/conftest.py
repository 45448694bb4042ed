"""A PostgreSQL that is frozen, for whoever has to live with one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guardian.adapters.postgres.embedded import EmbeddedPostgres

Freeze = Callable[[EmbeddedPostgres], contextlib.AbstractContextManager[None]]


@pytest.fixture
def frozen() -> Freeze:
    """A block in which a server keeps its connections and answers nothing."""
    if os.uname().sysname != "Linux":
        pytest.skip("finds the server's processes in /proc")
    return _frozen


@contextlib.contextmanager
def _frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """Stop every process of the server, the postmaster first: it starts no more of them."""
    assert server.pid is not None
    stopped: list[int] = []
    try:
        os.kill(server.pid, signal.SIGSTOP)
        stopped.append(server.pid)
        for pid in _children(server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the name in parentheses may hold anything; the parent is the second after it
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(entry.name))
    return found
