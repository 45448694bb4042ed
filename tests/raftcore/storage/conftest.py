"""What the storage tests share: a directory that can be opened again and again, and file faults."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftcore.core.types import Configuration, HardState, Member, SnapshotMeta
from raftcore.storage.base import Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.files import Files
from raftcore.storage.lmdb_log import LmdbLog, open_log
from raftcore.testing.storage_model import commands

MAP_SIZE_BYTES = 64 * 2**20


class Crash(BaseException):
    """The process died here."""


class FaultyFiles(Files):
    """Crashes or fails at the n-th named step, or fails the n-th fsync, or only writes them down.

    With ``tear_at`` the n-th write to the middle of a file is cut in half, and the process dies.
    """

    def __init__(
        self,
        crash_at: int | None = None,
        fail_fsync_at: int | None = None,
        tear_at: int | None = None,
        fail_at: int | None = None,
    ) -> None:
        self.steps: list[str] = []
        self.fsyncs = 0
        self.pwrites = 0
        self.crash_at = crash_at
        self.fail_fsync_at = fail_fsync_at
        self.tear_at = tear_at
        self.fail_at = fail_at

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self.pwrites += 1
        if self.tear_at == self.pwrites - 1:
            super().pwrite(fd, data[: len(data.rstrip(b"\0")) // 2], offset)
            raise Crash("torn")
        super().pwrite(fd, data, offset)

    def reached(self, step: str) -> None:
        self.steps.append(step)
        if self.crash_at == len(self.steps) - 1:
            raise Crash(step)
        if self.fail_at is not None and len(self.steps) > self.fail_at:
            raise OSError(5, "Input/output error")

    def fsync(self, fd: int) -> None:
        self.fsyncs += 1
        if self.fail_fsync_at is not None and self.fsyncs > self.fail_fsync_at:
            raise OSError(5, "Input/output error")
        super().fsync(fd)


class Place:
    """Data directories below one root; everything opened is closed when the test ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = (f"node{n}" for n in itertools.count())
        self._open: list[Any] = []

    def directory(self, name: str, files: Files | None = None) -> DataDirectory:
        """Open ``name`` as a directory of node ``n1``."""
        directory = DataDirectory.open(self.root / name, "n1", files=files)
        self._open.append(directory)
        return directory

    def bootstrap(self, directory: DataDirectory) -> None:
        member = Member("n1", "127.0.0.1:1", directory.founding_incarnation())
        directory.bootstrap(Configuration("cluster", (member,)))

    def voter(self, name: str, last: int = 50, files: Files | None = None) -> LmdbLog:
        """A new log of one voter of three, with committed entries up to ``last``."""
        directory = self.directory(name, files)
        own = Member("n1", "127.0.0.1:1", directory.founding_incarnation())
        others = (Member(n, f"{n}:1", n.encode() * 8) for n in ("n2", "n3"))
        directory.bootstrap(Configuration("cluster", (own, *others)))
        log = self.log(directory)
        log.persist([Write(HardState(2), None, commands(2, last, 2), commit_hint=last)])
        return log

    def create(self, name: str | None = None, files: Files | None = None) -> LmdbLog:
        """A new bootstrapped log, opened."""
        directory = self.directory(name or next(self.names), files)
        self.bootstrap(directory)
        return self.log(directory)

    def filled(self, name: str, last: int = 50, files: Files | None = None) -> LmdbLog:
        """A new log with committed entries up to ``last``."""
        log = self.create(name, files)
        log.persist([Write(HardState(2), None, commands(2, last, 2), commit_hint=last)])
        return log

    def snapshot(self, log: LmdbLog, index: int) -> SnapshotMeta:
        """Take and adopt a local snapshot that holds the cluster's own configuration."""
        (entry,) = log.read(index, index, 1)
        configuration = log._configurations.current
        writer = log.begin_snapshot(index, entry.term, log.chain_at(index), configuration)
        writer.write(b"state at %d" % index)
        meta = writer.finish()
        log.compact(log.adopt_snapshot(meta))
        return meta

    def log(self, directory: DataDirectory, **options: Any) -> LmdbLog:
        options.setdefault("map_size_bytes", MAP_SIZE_BYTES)
        log = open_log(directory, **options)
        self._open.append(log)
        return log

    def close(self, log: LmdbLog) -> Path:
        """Close log and directory; the directory's path."""
        path = log._directory.path
        log.close()
        log._directory.close()
        return path

    def reopen(self, log: LmdbLog, **options: Any) -> LmdbLog:
        return self.again(self.close(log).name, **options)

    def again(self, name: str, **options: Any) -> LmdbLog:
        directory = self.directory(name)
        try:
            return self.log(directory, **options)
        except BaseException:
            directory.close()
            raise

    def crash(self, log: LmdbLog) -> Path:
        """End a run as a crash does: nothing is said about how the log was left."""
        log._abandon()
        log._directory.close()
        return log._directory.path

    def edit(self, path: Path, offset: int, data: bytes) -> None:
        """Change bytes of a file that nobody has open."""
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def hashes(self, path: Path) -> dict[str, str]:
        """A digest of every file below ``path`` but for the locks, and the mark of a clean stop,
        which a start takes before it maps the log, whether it is refused then or not."""
        return {
            str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(path.rglob("*"))
            if file.is_file() and file.name not in ("LOCK", "lock.mdb", "CLEAN")
        }

    def crash_all(self) -> None:
        """End every run as a crash does."""
        for thing in reversed(self._open):
            thing._abandon() if isinstance(thing, LmdbLog) else thing.close()
        self._open.clear()

    def close_all(self) -> None:
        for thing in reversed(self._open):
            thing.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.close_all()


@pytest.fixture
def faulty_files() -> Callable[..., FaultyFiles]:
    return FaultyFiles


@pytest.fixture
def crash() -> type[BaseException]:
    return Crash


class Children:
    """Python child processes that run a script; all are gone when the test ends."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        )
        self._started.append(child)
        return child

    def run(self, script: str, *arguments: object) -> tuple[int, str]:
        """Run to the end: exit code (negative for a signal), and what it printed."""
        child = self.start(script, *arguments)
        out, err = child.communicate(timeout=60)
        return child.returncode, out + err

    def stop_all(self) -> None:
        for child in self._started:
            if child.poll() is None:
                child.kill()
            child.communicate()


@pytest.fixture
def children() -> Iterator[Children]:
    found = Children()
    yield found
    found.stop_all()
