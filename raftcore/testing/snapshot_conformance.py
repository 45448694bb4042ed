"""The promises of a store about snapshots and compaction; see :mod:`.storage_conformance`."""

from __future__ import annotations

from dataclasses import replace

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Entry, EntryType, HardState, Position, SnapshotMeta
from raftcore.storage.base import LogStorage, Write
from raftcore.testing.log_conformance import ConformanceBase, refused_by_assertion
from raftcore.testing.storage_model import (
    CONFIGURATION,
    begin_term,
    commands,
    make_snapshot,
    receive,
    take_snapshot,
)


class SnapshotConformance(ConformanceBase):
    """Snapshots of one's own and of a leader, and the log that they allow to be cut."""

    # -- local snapshots ------------------------------------------------------------------------

    def _with_snapshot(self, index: int, last: int) -> tuple[LogStorage, SnapshotMeta]:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, last, 2), commit_hint=last)])
        meta = take_snapshot(storage, index, [b"state %d" % index])
        storage.adopt_snapshot(meta)
        return storage, meta

    def test_a_finished_snapshot_gives_its_records_back(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        records = [b"", b"x", bytes(200_000), *(b"record %d" % n for n in range(5000))]
        meta = take_snapshot(storage, 5, records)
        assert (meta.index, meta.term, meta.chain) == (5, 2, storage.chain_at(5))
        assert meta.configuration == CONFIGURATION
        storage.adopt_snapshot(meta)
        assert list(storage.snapshot_records(meta)) == records
        storage = self.reopen(storage)
        assert storage.newest_snapshot() == meta
        assert list(storage.snapshot_records(meta)) == records

    def test_a_snapshot_counts_only_once_adopted(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        take_snapshot(storage, 5, [])
        assert storage.newest_snapshot() is None

    def test_an_aborted_snapshot_leaves_nothing(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        writer = storage.begin_snapshot(5, 2, storage.chain_at(5), CONFIGURATION)
        writer.write(b"record")
        writer.abort()
        assert self.reopen(storage).newest_snapshot() is None

    def test_the_file_is_transferred_as_size_and_digest_say(self) -> None:
        storage, meta = self._with_snapshot(5, 9)
        raw = b""
        while chunk := storage.read_snapshot_chunk(meta, len(raw), 100):
            assert len(chunk) <= 100
            raw += chunk
        assert len(raw) == meta.size_bytes
        other = self.create()
        begin_term(other, 2)
        assert receive(other, meta, raw)
        other.install_snapshot(meta)
        assert list(other.snapshot_records(meta)) == [b"state 5"]

    def test_a_snapshot_not_there_is_read_as_empty(self) -> None:
        storage, meta = self._with_snapshot(5, 9)
        assert storage.read_snapshot_chunk(meta, meta.size_bytes, 100) == b""
        assert storage.read_snapshot_chunk(replace(meta, index=4), 0, 100) == b""
        assert storage.read_snapshot_chunk(replace(meta, digest=bytes(32)), 0, 100) == b""

    def test_the_last_two_snapshots_are_kept(self) -> None:
        storage, first = self._with_snapshot(5, 30)
        second = take_snapshot(storage, 12, [b"second"])
        assert storage.adopt_snapshot(second) == 6
        third = take_snapshot(storage, 20, [b"third"])
        assert storage.adopt_snapshot(third) == 13
        assert storage.read_snapshot_chunk(first, 0, 10) == b""
        assert storage.read_snapshot_chunk(second, 0, 10) != b""
        assert storage.newest_snapshot() == third

    def test_with_one_snapshot_the_whole_log_stays_its_fallback(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        assert storage.adopt_snapshot(take_snapshot(storage, 5, [])) == 1

    def test_adopting_an_older_snapshot_changes_nothing(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        older, newer = take_snapshot(storage, 4, []), take_snapshot(storage, 6, [])
        storage.adopt_snapshot(newer)
        storage.adopt_snapshot(older)
        assert storage.newest_snapshot() == newer

    def test_configurations_up_to_the_snapshot_are_in_the_snapshot(self) -> None:
        storage = self.create()
        later = Entry(6, 2, EntryType.CONFIGURATION, encode_configuration(CONFIGURATION))
        storage.persist([Write(HardState(2), None, (*commands(2, 5, 2), later))])
        storage.adopt_snapshot(take_snapshot(storage, 4, []))
        assert self.reopen(storage).load().configurations == ((6, CONFIGURATION),)

    def test_a_snapshot_overtaken_while_it_was_written_changes_nothing(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        writer = storage.begin_snapshot(5, 2, storage.chain_at(5), CONFIGURATION)
        begin_term(storage, 3)
        newer, raw = make_snapshot(50, 3, b"c" * 32, [b"newer"])
        assert receive(storage, newer, raw)
        storage.install_snapshot(newer)
        storage.adopt_snapshot(writer.finish())
        late = storage.begin_snapshot(6, 2, bytes(32), CONFIGURATION)
        storage.adopt_snapshot(late.finish())
        assert self.reopen(storage).load().snapshot == newer

    def test_a_snapshot_overtaken_while_it_arrived_changes_nothing(self) -> None:
        storage, own = self._with_snapshot(5, 9)
        for index in (4, 5):
            meta, raw = make_snapshot(index, 2, storage.chain_at(index), [b"leader's"])
            assert receive(storage, meta, raw)
            storage.install_snapshot(meta)
            assert storage.newest_snapshot() == own
        assert list(storage.snapshot_records(meta)) == [b"state 5"]
        assert self.reopen(storage).load().snapshot == own

    # -- compaction -----------------------------------------------------------------------------

    def test_compaction_goes_in_bounded_steps(self) -> None:
        storage, _ = self._with_snapshot(8, 12)
        assert not storage.compact(8, max_entries=3)
        assert storage.read(3, 3, 10**6) == []
        assert storage.read(4, 12, 10**6) == list(commands(4, 12, 2))
        assert not storage.compact(8, max_entries=3)
        assert storage.compact(8, max_entries=3)
        assert storage.compact(8, max_entries=3)
        found = self.reopen(storage).load()
        assert (found.first_index, found.last_index) == (8, 12)
        assert found.terms == ((8, 2),)
        assert found.before_first == Position(2, 7)

    def test_the_place_before_the_first_entry_keeps_its_chain(self) -> None:
        storage, _ = self._with_snapshot(8, 12)
        chain = storage.chain_at(7)
        storage.compact(8)
        assert storage.chain_at(7) == chain
        assert self.reopen(storage).chain_at(7) == chain

    def test_the_whole_log_may_be_compacted_into_its_snapshot(self) -> None:
        storage, meta = self._with_snapshot(9, 9)
        assert storage.compact(10)
        storage = self.reopen(storage)
        found = storage.load()
        assert (found.first_index, found.last_index) == (10, 9)
        assert found.terms == ()
        assert found.before_first == meta.position
        assert storage.chain_at(9) == meta.chain
        storage.persist([Write(None, None, commands(10, 11, 2))])
        assert self.reopen(storage).read(10, 11, 10**6) == list(commands(10, 11, 2))

    def test_compaction_beyond_the_snapshot_is_refused(self) -> None:
        storage, _ = self._with_snapshot(5, 9)
        with refused_by_assertion():
            storage.compact(7)

    def test_truncation_into_the_snapshot_is_refused(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        storage.adopt_snapshot(take_snapshot(storage, 5, []))
        with refused_by_assertion():
            storage.persist([Write(None, 5, ())])

    # -- snapshots from a leader ------------------------------------------------------------------

    def test_an_installed_snapshot_replaces_a_log_that_ends_before_it(self) -> None:
        storage = self.create()
        begin_term(storage, 4)
        meta, raw = make_snapshot(50, 4, b"c" * 32, [b"one", b"two"])
        assert receive(storage, meta, raw)
        assert storage.newest_snapshot() is None
        storage.install_snapshot(meta)
        assert storage.read(1, 1, 10**6) == []
        storage = self.reopen(storage)
        found = storage.load()
        assert (found.first_index, found.last_index, found.commit_hint) == (51, 50, 50)
        assert found.snapshot == meta
        assert found.configurations == ()
        assert found.before_first == meta.position
        assert storage.chain_at(50) == meta.chain
        assert list(storage.snapshot_records(meta)) == [b"one", b"two"]
        storage.persist([Write(None, None, commands(51, 52, 4))])
        assert self.reopen(storage).load().last_index == 52

    def test_the_suffix_stays_when_the_log_holds_the_snapshots_last_entry(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        meta, raw = make_snapshot(6, 2, storage.chain_at(6), [b"state"])
        assert receive(storage, meta, raw)
        storage.install_snapshot(meta)
        assert storage.read(7, 9, 10**6) == list(commands(7, 9, 2))
        found = self.reopen(storage).load()
        assert (found.first_index, found.last_index, found.snapshot) == (1, 9, meta)

    def test_the_log_goes_when_its_entry_there_is_of_another_term(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(3), None, commands(2, 9, 2))])
        meta, raw = make_snapshot(6, 3, b"c" * 32, [])
        assert receive(storage, meta, raw)
        storage.install_snapshot(meta)
        found = self.reopen(storage).load()
        assert (found.first_index, found.last_index) == (7, 6)

    def test_installing_an_older_snapshot_changes_nothing(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        meta, raw = make_snapshot(4, 2, storage.chain_at(4), [])
        assert receive(storage, meta, raw)
        own = take_snapshot(storage, 6, [])
        storage.adopt_snapshot(own)
        storage.install_snapshot(meta)
        assert storage.newest_snapshot() == own

    def test_own_and_received_snapshots_of_one_place_do_not_harm_each_other(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        meta, raw = make_snapshot(6, 2, storage.chain_at(6), [b"leader's"])
        writer = storage.begin_snapshot(6, 2, storage.chain_at(6), CONFIGURATION)
        writer.write(b"own")
        assert receive(storage, meta, raw)
        storage.install_snapshot(meta)
        storage.adopt_snapshot(writer.finish())
        current = storage.newest_snapshot()
        assert current is not None
        assert len(list(storage.snapshot_records(current))) == 1
        assert self.reopen(storage).load().snapshot == current

    def test_a_received_snapshot_after_ones_own_of_the_same_place(self) -> None:
        storage = self.create()
        storage.persist([Write(HardState(2), None, commands(2, 9, 2))])
        meta, raw = make_snapshot(6, 2, storage.chain_at(6), [b"leader's"])
        receiver = storage.receive_snapshot(meta)
        receiver.write(0, raw)
        own = take_snapshot(storage, 6, [b"own"])
        storage.adopt_snapshot(own)
        assert receiver.finish()
        storage.install_snapshot(meta)
        assert list(storage.snapshot_records(own)) == [b"own"]
        assert self.reopen(storage).load().snapshot == own

    def test_chunks_may_repeat_and_a_gap_is_not_taken(self) -> None:
        storage = self.create()
        begin_term(storage, 2)
        meta, raw = make_snapshot(50, 2, b"c" * 32, [b"state" * 100])
        receiver = storage.receive_snapshot(meta)
        assert receiver.write(0, raw[:100]) == 100
        assert receiver.write(0, raw[:100]) == 100
        assert receiver.write(200, raw[200:300]) == 100
        assert receiver.write(50, raw[50:150]) == 150
        assert receiver.write(150, raw[150:] + b"more") == 150
        assert receiver.write(150, raw[150:]) == meta.size_bytes
        assert receiver.finish()

    def test_a_received_snapshot_that_does_not_verify_is_refused(self) -> None:
        storage = self.create()
        begin_term(storage, 2)
        meta, raw = make_snapshot(50, 2, b"c" * 32, [b"state" * 100])
        flipped = bytearray(raw)
        flipped[len(raw) // 2] ^= 1
        assert not receive(storage, meta, bytes(flipped))
        assert not receive(storage, replace(meta, digest=bytes(32)), raw)
        assert not receive(storage, replace(meta, chain=bytes(32)), raw)
        assert not receive(storage, meta, raw[:-1])
        assert not receive(storage, meta, b"")
        assert self.reopen(storage).newest_snapshot() is None

    def test_an_aborted_receipt_can_be_begun_again(self) -> None:
        storage = self.create()
        begin_term(storage, 2)
        meta, raw = make_snapshot(50, 2, b"c" * 32, [b"state"])
        receiver = storage.receive_snapshot(meta)
        receiver.write(0, raw[:10])
        receiver.abort()
        assert receive(storage, meta, raw)

    def test_a_receipt_begun_anew_is_not_harmed_by_the_end_of_the_old_one(self) -> None:
        storage = self.create()
        begin_term(storage, 2)
        meta, raw = make_snapshot(50, 2, b"c" * 32, [b"state"])
        old, new = storage.receive_snapshot(meta), storage.receive_snapshot(meta)
        old.write(0, raw[:10])
        new.write(0, raw)
        old.abort()
        assert new.finish()
        storage.install_snapshot(meta)
        assert list(storage.snapshot_records(meta)) == [b"state"]
