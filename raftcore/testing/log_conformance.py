"""The promises of a store about entries, terms and votes; see :mod:`.storage_conformance`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raftcore.core.membership import decode_configuration, encode_configuration
from raftcore.core.types import Entry, EntryType, HardState, Position
from raftcore.encoding import GENESIS_CHAIN, chain_next, encode_entry
from raftcore.storage.base import LogStorage, Write
from raftcore.testing.storage_model import CONFIGURATION, begin_term, commands


@contextmanager
def refused_by_assertion() -> Iterator[None]:
    """The block breaks the contract, and the store says so by an AssertionError."""
    try:
        yield
    except AssertionError:
        return
    raise RuntimeError("the store accepted what breaks its contract")


class ConformanceBase:
    """What a subclass gives; see :class:`~raftcore.testing.storage_conformance`."""

    def create(self) -> LogStorage:
        """A new bootstrapped store: entry 1 is a configuration of term 1, committed. Opened."""
        raise NotImplementedError

    def reopen(self, storage: LogStorage) -> LogStorage:
        """Close the store and open what is durable again."""
        raise NotImplementedError


class LogConformance(ConformanceBase):
    """The log and the hard state."""

    def test_a_bootstrapped_store_holds_one_committed_configuration(self) -> None:
        storage = self.create()
        found = storage.load()
        assert found.hard_state == HardState(1, None)
        assert (found.first_index, found.last_index, found.commit_hint) == (1, 1, 1)
        assert found.terms == ((1, 1),)
        assert found.snapshot is None
        assert found.before_first == Position(0, 0)
        assert storage.newest_snapshot() is None
        (entry,) = storage.read(1, 1, 10**6)
        assert entry.type is EntryType.CONFIGURATION
        assert found.configurations == ((1, decode_configuration(entry.data)),)
        member = found.configurations[0][1].member(storage.identity.node_id)
        assert member is not None
        assert member.incarnation == storage.identity.incarnation

    def test_entries_come_back_as_they_were_written(self) -> None:
        storage = self.create()
        begin_term(storage, 3)
        written = commands(2, 5, 3, bytes(range(256)))
        storage.persist([Write(None, None, written)])
        assert tuple(storage.read(2, 5, 10**6)) == written
        storage = self.reopen(storage)
        assert tuple(storage.read(2, 5, 10**6)) == written

    def test_hard_state_survives_without_entries(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(7, "b"), None, ())])
        assert self.reopen(storage).load().hard_state == HardState(7, "b")

    def test_several_writes_are_applied_in_order(self) -> None:
        storage = self.create()
        storage.persist(
            [
                Write(HardState(2, "a"), None, commands(2, 9, 2)),
                Write(HardState(3), 6, commands(6, 7, 3)),
                Write(HardState(4), 7, commands(7, 7, 4)),
            ]
        )
        found = self.reopen(storage).load()
        assert found.hard_state == HardState(4)
        assert found.last_index == 7
        assert found.terms == ((1, 1), (2, 2), (6, 3), (7, 4))

    def test_truncation_and_append_are_one_change(self) -> None:
        storage = self.create()
        begin_term(storage, 2)
        storage.persist([Write(None, None, commands(2, 20, 2))])
        begin_term(storage, 3)
        storage.persist([Write(None, 10, commands(10, 12, 3))])
        expected = [*commands(2, 9, 2), *commands(10, 12, 3)]
        assert storage.read(2, 100, 10**6) == expected
        storage = self.reopen(storage)
        assert storage.read(2, 100, 10**6) == expected
        assert storage.load().terms == ((1, 1), (2, 2), (10, 3))

    def test_truncation_alone_shortens_the_log(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        storage.persist([Write(None, 2, ())])
        assert storage.read(2, 9, 10**6) == []
        assert self.reopen(storage).load().last_index == 1

    def test_a_truncated_configuration_is_forgotten(self) -> None:
        storage = self.create()
        raw = encode_configuration(CONFIGURATION)
        entry = Entry(2, 2, EntryType.CONFIGURATION, raw)
        storage.persist([Write(HardState(2), None, (entry,))])
        storage = self.reopen(storage)
        assert storage.load().configurations[1:] == ((2, CONFIGURATION),)
        storage.persist([Write(HardState(3), 2, commands(2, 2, 3))])
        assert len(self.reopen(storage).load().configurations) == 1

    def test_the_chain_is_that_of_the_entries(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 6, 2))])
        chain = GENESIS_CHAIN
        assert storage.chain_at(0) == chain
        for entry in storage.read(1, 6, 10**6):
            chain = chain_next(chain, encode_entry(entry))
            assert storage.chain_at(entry.index) == chain
        assert self.reopen(storage).chain_at(6) == chain

    def test_the_chain_of_an_unknown_place_is_a_lookup_error(self) -> None:
        storage = self.create()
        try:
            storage.chain_at(2)
        except LookupError:
            return
        raise RuntimeError("a chain was given for a place that is not in the log")

    def test_the_commit_hint_never_goes_back_nor_beyond_the_log(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2), commit_hint=5)])
        storage.persist([Write(None, None, commands(10, 10, 2), commit_hint=3)])
        storage = self.reopen(storage)
        assert storage.load().commit_hint == 5
        storage.persist([Write(None, None, (), commit_hint=99)])
        assert self.reopen(storage).load().commit_hint == 10

    def test_an_empty_write_changes_nothing(self) -> None:
        storage = self.create()
        storage.persist([])
        storage.persist([Write(None, None, ())])
        assert self.reopen(storage).load().last_index == 1

    def test_reading_stops_at_the_byte_limit_after_at_least_one_entry(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2, bytes(100)))])
        assert len(storage.read(2, 9, 1)) == 1
        assert len(storage.read(2, 9, 3 * 164)) == 3
        assert len(storage.read(2, 4, 10**6)) == 3
        assert storage.read(10, 12, 10**6) == []
        assert storage.read(0, 5, 10**6) == []

    # -- what breaks the contract ---------------------------------------------------------------

    def test_a_gap_is_refused_and_changes_nothing(self) -> None:
        storage = self.create()
        begin_term(storage, 2)
        with refused_by_assertion():
            storage.persist([Write(None, None, commands(3, 3, 2))])
        with refused_by_assertion():
            storage.persist([Write(None, 5, commands(5, 5, 2))])
        storage.persist([Write(None, None, commands(2, 3, 2))])
        assert storage.read(2, 9, 10**6) == list(commands(2, 3, 2))

    def test_a_falling_term_is_refused(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(5), None, commands(2, 3, 5))])
        with refused_by_assertion():
            storage.persist([Write(None, None, commands(4, 4, 4))])
        with refused_by_assertion():
            storage.persist([Write(HardState(4), None, ())])

    def test_an_entry_of_a_term_not_begun_is_refused(self) -> None:
        storage = self.create()
        with refused_by_assertion():
            storage.persist([Write(None, None, commands(2, 2, 2))])

    def test_a_vote_is_never_changed_within_a_term(self) -> None:
        storage = self.create()
        begin_term(storage, 2, "a")
        for vote in ("b", None):
            with refused_by_assertion():
                begin_term(storage, 2, vote)
        assert self.reopen(storage).load().hard_state == HardState(2, "a")

    def test_committed_entries_are_never_truncated(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2), commit_hint=5)])
        with refused_by_assertion():
            storage.persist([Write(None, 5, ())])
        storage.persist([Write(None, 6, ())])
