"""Directories of a whole cluster, as stopped nodes leave them, for the tests of the tools."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raftcore.core.types import Configuration, Entry, HardState, Member
from raftcore.storage.base import Write
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import LmdbLog, open_log
from raftcore.testing.storage_model import commands

MAP_SIZE_BYTES = 64 * 2**20
CLUSTER_ID = "c0ffee00c0ffee00c0ffee00c0ffee00"


class Directories:
    """Directories below one root, each of a node of one founded cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.configuration = Configuration(CLUSTER_ID, ())

    def path(self, name: str) -> Path:
        return self.root / name

    def found(self, *names: str, cluster_id: str = CLUSTER_ID) -> Configuration:
        """Found a cluster of those nodes; every log holds entry 1."""
        with contextlib.ExitStack() as held:
            opened = [
                held.enter_context(contextlib.closing(DataDirectory.open(self.path(name), name)))
                for name in names
            ]
            members = tuple(
                Member(d.node_id, f"127.0.0.1:{7000 + n}", d.founding_incarnation())
                for n, d in enumerate(opened)
            )
            self.configuration = Configuration(cluster_id, members)
            for directory in opened:
                directory.bootstrap(self.configuration)
        return self.configuration

    @contextlib.contextmanager
    def log(self, name: str, node_id: str | None = None) -> Iterator[LmdbLog]:
        """The log of a node, open for writing as the node would have it."""
        with (
            contextlib.closing(DataDirectory.open(self.path(name), node_id or name)) as directory,
            contextlib.closing(open_log(directory, map_size_bytes=MAP_SIZE_BYTES)) as log,
        ):
            yield log

    def append(self, name: str, entries: Sequence[Entry], *, term: int, commit: int) -> None:
        """Write entries as a node in ``term`` would."""
        with self.log(name) as log:
            log.persist([Write(HardState(term, None), None, tuple(entries), commit_hint=commit)])

    def fill(self, name: str, last: int, *, term: int = 2, commit: int | None = None) -> None:
        """Commands from entry 2 to ``last``, committed unless said otherwise."""
        entries = commands(2, last, term)
        self.append(name, entries, term=term, commit=last if commit is None else commit)

    def snapshot(self, name: str, index: int, *, compact_to: int | None = None) -> Path:
        """A snapshot at ``index``, with a record per entry; perhaps the log begins later then."""
        with self.log(name) as log:
            term = log.read(index, index, 1)[0].term
            writer = log.begin_snapshot(index, term, log.chain_at(index), self.configuration)
            for number in range(1, index + 1):
                writer.write(b"record %d" % number)
            log.adopt_snapshot(writer.finish())
            if compact_to is not None:
                log.compact(compact_to)
        return self.path(name) / "snap" / f"{index}-{term}.snap"

    def edit(self, path: Path, offset: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def flip(self, path: Path, offset: int) -> None:
        """Flip one bit of a file."""
        raw = path.read_bytes()
        self.edit(path, offset, bytes([raw[offset] ^ 1]))

    def damage(self, name: str) -> None:
        """Flip a bit in every command of a log, also in those that no page holds any more."""
        path = self.path(name) / "log" / "data.mdb"
        path.write_bytes(path.read_bytes().replace(b"client", b"cliens"))

    def fingerprint(self, *names: str) -> dict[str, tuple[int, str]]:
        """Time of change and content of everything below those directories."""
        found = {}
        for name in names:
            root = self.path(name)
            for path in sorted([root, *root.rglob("*")]):
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                found[str(path)] = (path.stat().st_mtime_ns, content)
        return found


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return Directories(tmp_path)


@pytest.fixture
def three(directories: Directories) -> Directories:
    """``n1`` and ``n2`` hold entries to 20, ``n3`` to 15; all of term 2, committed to 15."""
    directories.found("n1", "n2", "n3")
    for name, last in (("n1", 20), ("n2", 20), ("n3", 15)):
        directories.fill(name, last, commit=15)
    return directories
