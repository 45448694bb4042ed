"""Servers that an earlier run left behind on a data directory.

A server outlives a guardian that was killed by a second or so (it does a fast shutdown), and the
next guardian may be there sooner. Two servers on one directory must never be; one that is going
is waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from guardian.adapters.postgres.errors import EmbeddedPostgresError

_POLL_S = 0.02
_QUIT_AFTER_S = 20.0


def servers_on(data_dir: Path) -> list[int]:
    """Pids of PostgreSQL processes, postmaster or not, that work in ``data_dir``."""
    if os.uname().sysname == "Linux":
        return _by_proc(data_dir)
    pid = postmaster_pid(data_dir)
    return [pid] if pid is not None and _runs_postgres(pid, data_dir) else []


def postmaster_pid(data_dir: Path) -> int | None:
    """What ``postmaster.pid`` says, alive or not."""
    try:
        first = (data_dir / "postmaster.pid").read_text().split("\n", 1)[0]
        return int(first)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def clear_away(data_dir: Path, *, timeout_s: float) -> None:
    """Return when nothing of PostgreSQL runs on ``data_dir``: shut down what does.

    The caller holds the lock of the directory, so whatever runs there has lost its supervisor.

    Raises:
        EmbeddedPostgresError: it was still there after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    quit_at = time.monotonic() + min(_QUIT_AFTER_S, timeout_s * 2 / 3)
    asked: set[tuple[int, signal.Signals]] = set()
    while pids := servers_on(data_dir):
        now = time.monotonic()
        if now >= deadline:
            raise EmbeddedPostgresError(
                f"a PostgreSQL (pid {pids[0]}) still runs on the data directory after "
                f"{timeout_s:.0f} s; stop it and start again"
            )
        head = postmaster_pid(data_dir)
        # without a postmaster among them, orphaned backends have noticed and are leaving
        targets = [head] if head in pids and head is not None else []
        wanted = signal.SIGINT
        if now >= quit_at:
            wanted, targets = signal.SIGQUIT, pids
        for pid in targets:
            if (pid, wanted) not in asked:
                asked.add((pid, wanted))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, wanted)
        time.sleep(_POLL_S)
    _forget_stale_lock(data_dir)


def _forget_stale_lock(data_dir: Path) -> None:
    """Remove a lock file whose pid belongs to somebody else by now.

    PostgreSQL refuses to start when the pid in its lock file is alive and of the same user, which
    after a restart of a container is often so. On Linux it is certain by now that no process of
    PostgreSQL has the directory; elsewhere only the pid itself is known to be none.
    """
    pid = postmaster_pid(data_dir)
    if pid is not None and not servers_on(data_dir):
        (data_dir / "postmaster.pid").unlink(missing_ok=True)


def _by_proc(data_dir: Path) -> list[int]:
    try:
        wanted = data_dir.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            name = Path(entry.path, "comm").read_bytes().strip()
            # every process of PostgreSQL has its data directory as working directory
            if name == b"postgres" and os.path.samestat(os.stat(f"{entry.path}/cwd"), wanted):
                found.append(int(entry.name))
        except OSError:
            # gone meanwhile (a zombie has no working directory), or another user's
            continue
    return found


def _runs_postgres(pid: int, data_dir: Path) -> bool:
    answer = subprocess.run(  # noqa: S603 - fixed program, a number as argument
        ["/bin/ps", "-p", str(pid), "-o", "command="],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return "postgres" in answer and str(data_dir) in answer
