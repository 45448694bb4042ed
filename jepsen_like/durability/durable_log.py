"""What a node's log holds durably, read from outside while the node runs.

A private copy of ``data.mdb`` is kept that receives exactly the ranges that became durable, when
they did: at any moment it is the file that a power loss would leave. It is opened with LMDB, which
is what recovery would do, and read through raftcore's own tables.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb

from jepsen_like.durability.file_image import FileImage
from jepsen_like.durability.images import Images
from raftcore.errors import RaftcoreError
from raftcore.storage.environment import (
    DATA_FILE,
    DEFAULT_MAP_LIMIT_BYTES,
    Environment,
    index_of,
    read_meta,
)

#: LMDB's two meta pages are the first two of the file.
_META_PAGES = 2
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogState:
    """What survives a power loss now. ``missing`` says why nothing does, empty otherwise."""

    term: int = 0
    vote: str | None = None
    before_index: int = 0
    last_index: int = 0
    snapshot_index: int = 0
    missing: str = ""


class DurableLog:
    """Follows the log of one node.

    Args:
        images: the images of the node's data directory.
        log: the log's directory, relative to it.
        copy: an empty private directory for the copy.
    """

    def __init__(self, images: Images, log: str, copy: Path) -> None:
        self._images = images
        self._path = os.path.join(images.root, log, DATA_FILE)
        self._relative = os.path.join(log, DATA_FILE)
        self._directory = copy
        self._copy = os.open(copy / DATA_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._environment: Environment | None = None
        self._inode: tuple[int, int] | None = None
        self._state: LogState | None = None
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        #: Commits whose meta page became durable before pages that it leads to.
        self.unordered: list[str] = []
        self._torn = False
        #: Completed durable commits.
        self.commits = 0
        self._find()
        images.observe(self._became_durable)

    def state(self) -> LogState:
        """What the log holds durably at this moment."""
        names = self._images.names
        if names.pending and names.is_pending(self._path):
            return LogState(missing=f"the name of {self._relative} is not durable")
        if self._inode is None:
            self._find()
        if self._inode is None:
            return LogState(missing=f"nothing of {self._relative} is durable")
        if self._torn:
            return LogState(missing="the durable meta page leads to pages that are not durable")
        if self._state is None:
            self._state = self._read()
        return self._state

    def term_at(self, index: int) -> int | None:
        """The term of the durable entry at ``index``, None if it is not there."""
        if self.state().missing:
            return None
        environment = self._opened()
        with environment.env.begin() as txn:
            link = environment.get_link(txn, index)
        return None if link is None else link.term

    def close(self) -> None:
        if self._environment is not None:
            self._environment.env.close()
            self._environment = None
        os.close(self._copy)

    # -- keeping the copy ---------------------------------------------------------------------

    def _became_durable(self, image: FileImage, ranges: Sequence[tuple[int, int]]) -> None:
        if image.path != self._relative:
            return
        found = os.fstat(image.descriptor)
        if (found.st_dev, found.st_ino) != self._inode:
            self._start(image)
        else:
            for start, end in ranges:
                self._copy_range(image, start, end)
            os.ftruncate(self._copy, image.durable_size_bytes)
        self._state = None
        if any(start < _META_PAGES * self._page_bytes for start, _ in ranges):
            self._committed(image)

    def _committed(self, image: FileImage) -> None:
        self.commits += 1
        pending = sum(end - start for start, end in image.pending())
        self._torn = pending > 0
        if pending:
            self.unordered.append(
                f"commit {self.commits}: the meta page became durable before {pending} bytes "
                "that were written earlier"
            )

    def _find(self) -> None:
        """Begin with the file that stands there already, if one does."""
        existing = self._images.open(self._path)
        if existing is not None:
            self._start(existing)

    def _start(self, image: FileImage) -> None:
        """Another file stands under the name: copy all of it."""
        if self._environment is not None:
            self._environment.env.close()
            self._environment = None
        found = os.fstat(image.descriptor)
        self._inode = (found.st_dev, found.st_ino)
        self._state = None
        os.ftruncate(self._copy, 0)
        size = image.durable_size_bytes
        for start in range(0, size, _BLOCK_BYTES):
            self._copy_range(image, start, min(size, start + _BLOCK_BYTES))
        os.ftruncate(self._copy, size)

    def _copy_range(self, image: FileImage, start: int, end: int) -> None:
        data = image.read_durable(start, end)
        if data.count(0) != len(data) or start < os.fstat(self._copy).st_size:
            os.pwrite(self._copy, data, start)

    # -- reading the copy ---------------------------------------------------------------------

    def _read(self) -> LogState:
        try:
            environment = self._opened()
            records = read_meta(environment)
            with environment.env.begin() as txn:
                cursor = txn.cursor(environment.entries)
                last = index_of(cursor.key()) if cursor.last() else records.shape.before.index
        except (lmdb.Error, RaftcoreError) as error:
            return LogState(missing=f"the durable image does not read: {error!r}")
        if last != records.shape.tip.index:
            return LogState(missing=f"the log ends at {last}, not at {records.shape.tip.index}")
        return LogState(
            records.shape.hard_state.term,
            records.shape.hard_state.vote,
            records.shape.before.index,
            last,
            records.pointer.index if records.pointer else 0,
        )

    def _opened(self) -> Environment:
        if self._environment is None:
            if os.fstat(self._copy).st_size < _META_PAGES * self._page_bytes:
                raise lmdb.InvalidError("shorter than its meta pages")
            env = lmdb.open(
                str(self._directory),
                map_size=DEFAULT_MAP_LIMIT_BYTES,
                readonly=True,
                lock=False,
                create=False,
                max_dbs=4,
                lib_version=0,
            )
            try:
                meta = env.open_db(b"meta", create=False)
                entries = env.open_db(b"entries", create=False)
            except lmdb.Error:
                env.close()
                raise
            self._environment = Environment(env, meta, entries)
        return self._environment
