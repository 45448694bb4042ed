"""Both stores keep the contract, alone and against a model over random histories."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftcore.core.types import Configuration, Member, SnapshotMeta
from raftcore.storage.base import LogStorage
from raftcore.storage.directory import DataDirectory
from raftcore.storage.lmdb_log import LmdbLog, open_log
from raftcore.storage.memory import MemoryDisk, MemoryLog
from raftcore.testing.storage_conformance import StorageConformance
from raftcore.testing.storage_model import check_random_history

MAP_SIZE_BYTES = 16 * 2**20


def new_memory_log() -> MemoryLog:
    member = Member("n1", "127.0.0.1:1", b"i" * 16)
    return MemoryLog(MemoryDisk.bootstrapped("n1", Configuration("cluster", (member,))))


def reopen_memory_log(storage: LogStorage) -> MemoryLog:
    log = cast(MemoryLog, storage)
    log.close()
    return MemoryLog(log.disk)


class LmdbStores:
    """Bootstrapped LMDB stores under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open: list[LmdbLog] = []

    def create(self) -> LmdbLog:
        directory = DataDirectory.open(self.root / f"n{len(self.open)}", "n1")
        member = Member("n1", "127.0.0.1:1", directory.founding_incarnation())
        directory.bootstrap(Configuration("cluster", (member,)))
        return self._open(directory)

    def create_joining(self) -> LmdbLog:
        directory = DataDirectory.open(self.root / f"n{len(self.open)}", "n1")
        directory.join("cluster")
        return self._open(directory)

    def damage_snapshot(self, storage: LogStorage, meta: SnapshotMeta) -> None:
        path = cast(LmdbLog, storage)._directory.snapshot_path / f"{meta.index}-{meta.term}.snap"
        raw = bytearray(path.read_bytes())
        raw[-100] ^= 1
        path.write_bytes(raw)

    def _open(self, directory: DataDirectory) -> LmdbLog:
        self.open.append(open_log(directory, map_size_bytes=MAP_SIZE_BYTES))
        return self.open[-1]

    def reopen(self, storage: LogStorage) -> LmdbLog:
        log = cast(LmdbLog, storage)
        log.close()
        log._directory.close()
        return self._open(DataDirectory.open(log._directory.path, "n1"))

    def close(self) -> None:
        for log in self.open:
            log.close()
            log._directory.close()


class TestMemoryLog(StorageConformance):
    def create(self) -> LogStorage:
        return new_memory_log()

    def create_joining(self) -> LogStorage:
        return MemoryLog(MemoryDisk.joining("n1", "cluster", b"i" * 16))

    def reopen(self, storage: LogStorage) -> LogStorage:
        return reopen_memory_log(storage)

    def damage_snapshot(self, storage: LogStorage, meta: SnapshotMeta) -> None:
        snapshots = cast(MemoryLog, storage).disk.snapshots
        found, raw = snapshots[meta.index, meta.term]
        snapshots[meta.index, meta.term] = found, raw[:-100] + b"?" + raw[-99:]


class TestLmdbLog(StorageConformance):
    stores: LmdbStores

    @pytest.fixture(autouse=True)
    def _stores(self, tmp_path: Path) -> Iterator[None]:
        self.stores = LmdbStores(tmp_path)
        yield
        self.stores.close()

    def create(self) -> LogStorage:
        return self.stores.create()

    def create_joining(self) -> LogStorage:
        return self.stores.create_joining()

    def reopen(self, storage: LogStorage) -> LogStorage:
        return self.stores.reopen(storage)

    def damage_snapshot(self, storage: LogStorage, meta: SnapshotMeta) -> None:
        self.stores.damage_snapshot(storage, meta)


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_memory_log_equals_the_model_over_random_histories(seed: int) -> None:
    check_random_history(random.Random(seed), new_memory_log, reopen_memory_log, steps=25)


@given(st.integers(0, 2**32))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_lmdb_log_equals_the_model_over_random_histories(seed: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        stores = LmdbStores(Path(root))
        try:
            check_random_history(random.Random(seed), stores.create, stores.reopen, steps=25)
        finally:
            stores.close()


def test_the_suite_finds_a_store_that_forgets_the_vote() -> None:
    """A suite that cannot fail proves nothing: a store with one lie in it is found out."""

    class Forgetful(MemoryLog):
        def persist(self, writes: Any) -> None:
            super().persist([_without_hard_state(write) for write in writes])

    def _without_hard_state(write: Any) -> Any:
        return type(write)(None, write.truncate_from, write.entries, write.commit_hint)

    class Suite(StorageConformance):
        def create(self) -> LogStorage:
            return Forgetful(new_memory_log().disk)

        def reopen(self, storage: LogStorage) -> LogStorage:
            return Forgetful(cast(MemoryLog, storage).disk)

    with pytest.raises(AssertionError):
        Suite().test_hard_state_survives_without_entries()
    with pytest.raises(RuntimeError):
        Suite().test_a_vote_is_never_changed_within_a_term()
