"""What every :class:`~raftcore.storage.base.LogStorage` must do, as tests you can run on yours.

Subclass :class:`StorageConformance`, give it :meth:`~StorageConformance.create`,
:meth:`~StorageConformance.create_joining`, :meth:`~StorageConformance.reopen` and
:meth:`~StorageConformance.damage_snapshot`, and let pytest collect it (nothing here imports
pytest)::

    class TestMyStore(StorageConformance):
        def create(self): ...
        def create_joining(self): ...
        def reopen(self, storage): ...
        def damage_snapshot(self, storage, meta): ...

:func:`raftcore.testing.storage_model.check_random_history` adds random histories to it.
"""

from __future__ import annotations

from collections.abc import Callable

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Entry, EntryType, HardState, Position, SnapshotMeta
from raftcore.encoding import GENESIS_CHAIN
from raftcore.errors import LogCorruptError, StorageError
from raftcore.storage.base import LogStorage, Write
from raftcore.testing.log_conformance import LogConformance
from raftcore.testing.snapshot_conformance import SnapshotConformance
from raftcore.testing.storage_model import (
    CONFIGURATION,
    begin_term,
    commands,
    make_snapshot,
    receive,
    take_snapshot,
)


def refused_by_the_store(use: Callable[[], object]) -> StorageError:
    """The storage error that ``use`` ends with."""
    try:
        use()
    except StorageError as error:
        return error
    raise RuntimeError("the store did what it must not")


class StorageConformance(LogConformance, SnapshotConformance):
    """The contract, one method a promise. Collected by pytest through a subclass."""

    def create_joining(self) -> LogStorage:
        """A new store of a node that is to join a cluster: it holds nothing. Opened."""
        raise NotImplementedError

    def damage_snapshot(self, storage: LogStorage, meta: SnapshotMeta) -> None:
        """Change a byte of that snapshot's file, behind the back of the open store."""
        raise NotImplementedError

    def _of_several_voters(self) -> LogStorage:
        """A store whose newest configuration has other voters."""
        storage = self.create()
        entry = Entry(2, 2, EntryType.CONFIGURATION, encode_configuration(CONFIGURATION))
        storage.persist([Write(HardState(2, "a"), None, (entry, *commands(3, 30, 2)), 20)])
        return storage

    # -- a node that joins ------------------------------------------------------------------------

    def test_a_joiners_store_is_empty_and_stays_so(self) -> None:
        storage = self.create_joining()
        for _ in range(2):
            found = storage.load()
            assert found.hard_state == HardState()
            assert (found.first_index, found.last_index, found.commit_hint) == (1, 0, 0)
            assert (found.terms, found.configurations, found.snapshot) == ((), (), None)
            assert (found.before_first, found.quarantine) == (Position(0, 0), None)
            assert storage.read(1, 10, 100) == []
            assert storage.chain_at(0) == GENESIS_CHAIN
            storage = self.reopen(storage)

    def test_a_joiner_takes_entries_from_the_first_on(self) -> None:
        storage = self.create_joining()
        begin_term(storage, 3)
        storage = self.reopen(storage)
        first = Entry(1, 1, EntryType.CONFIGURATION, encode_configuration(CONFIGURATION))
        storage.persist([Write(None, None, (first, *commands(2, 9, 3)), 5)])
        found = self.reopen(storage).load()
        assert (found.first_index, found.last_index, found.commit_hint) == (1, 9, 5)
        assert found.configurations == ((1, CONFIGURATION),)

    def test_a_joiner_takes_a_snapshot(self) -> None:
        storage = self.create_joining()
        begin_term(storage, 3)
        meta, raw = make_snapshot(50, 3, b"c" * 32, [b"state"])
        assert receive(storage, meta, raw)
        storage.install_snapshot(meta)
        storage.persist([Write(None, None, commands(51, 55, 3))])
        found = self.reopen(storage).load()
        assert (found.first_index, found.last_index, found.snapshot) == (51, 55, meta)

    # -- quarantine -------------------------------------------------------------------------------

    def test_a_quarantine_survives_restarts_until_it_is_ended(self) -> None:
        storage = self._of_several_voters()
        assert storage.stats().quarantine is None
        storage.enter_quarantine("first")
        storage.enter_quarantine("second")
        assert storage.stats().quarantine == "first"
        for _ in range(2):
            storage = self.reopen(storage)
            found = storage.load()
            assert found.quarantine == "first"
            assert (found.hard_state, found.last_index) == (HardState(2, "a"), 30)
        storage.persist([Write(HardState(3), None, commands(31, 33, 3))])
        storage.end_quarantine()
        storage.end_quarantine()
        assert storage.stats().quarantine is None
        found = self.reopen(storage).load()
        assert (found.quarantine, found.last_index) == (None, 33)

    def test_a_lone_voter_has_nobody_to_ask(self) -> None:
        storage = self.create()
        error = refused_by_the_store(lambda: storage.enter_quarantine("something is lost"))
        assert isinstance(error, LogCorruptError)
        assert "something is lost" in str(error)
        assert self.reopen(storage).load().quarantine is None

    # -- upkeep and scrub -------------------------------------------------------------------------

    def test_upkeep_changes_nothing_that_can_be_read(self) -> None:
        storage = self._of_several_voters()
        storage.maintain()
        storage.maintain()
        found = self.reopen(storage).load()
        assert (found.last_index, found.hard_state) == (30, HardState(2, "a"))

    def test_a_scrub_comes_to_an_end_and_begins_anew(self) -> None:
        storage = self._of_several_voters()
        storage.adopt_snapshot(take_snapshot(storage, 10, [b"state"]))
        for passes in (1, 2):
            steps = 0
            while not storage.scrub(7).finished:
                steps += 1
                assert 0 < steps < 1000
            progress = storage.stats().scrub
            assert (progress.passes, progress.snapshots) == (passes, passes)
            assert progress.entries == 30 * passes

    def test_a_scrub_finds_a_damaged_snapshot_and_that_is_final(self) -> None:
        storage = self._of_several_voters()
        meta = take_snapshot(storage, 10, [b"state" * 100])
        storage.adopt_snapshot(meta)
        self.damage_snapshot(storage, meta)

        def whole_pass() -> None:
            while not storage.scrub(100).finished:
                pass

        assert isinstance(refused_by_the_store(whole_pass), LogCorruptError)
        refused_by_the_store(lambda: begin_term(storage, 9))

    def test_a_transfer_begins_with_a_look_at_the_whole_snapshot_file(self) -> None:
        storage = self._of_several_voters()
        meta = take_snapshot(storage, 10, [b"state" * 100])
        storage.adopt_snapshot(meta)
        assert storage.read_snapshot_chunk(meta, 0, 10) != b""
        self.damage_snapshot(storage, meta)
        assert storage.read_snapshot_chunk(meta, 1, 10) != b"", "one that has begun goes on"
        error = refused_by_the_store(lambda: storage.read_snapshot_chunk(meta, 0, 10))
        assert isinstance(error, LogCorruptError)
        refused_by_the_store(lambda: begin_term(storage, 9))

    # -- the end ----------------------------------------------------------------------------------

    def test_a_closed_store_refuses_every_use(self) -> None:
        storage = self.create()
        storage.close()
        storage.close()
        for use in (
            lambda: storage.read(1, 1, 1),
            lambda: storage.chain_at(1),
            storage.newest_snapshot,
            lambda: storage.persist([Write(HardState(2), None, ())]),
            storage.maintain,
            storage.scrub,
            lambda: storage.enter_quarantine("why"),
        ):
            refused_by_the_store(use)
