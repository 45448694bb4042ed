"""A node that joins begins with nothing, and may be cut off between any two things it is given."""

from __future__ import annotations

from typing import Any

import pytest

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, Entry, EntryType, HardState, Member, Position
from raftcore.encoding import GENESIS_CHAIN
from raftcore.errors import IdentityError
from raftcore.storage.base import Write
from raftcore.testing.storage_model import begin_term, commands, make_snapshot, receive


def joined(place: Any, name: str = "node") -> Any:
    directory = place.directory(name)
    directory.join("cluster")
    return place.log(directory)


def founding() -> Configuration:
    return Configuration(
        "cluster", (Member("n2", "b:1", b"b" * 16), Member("n3", "c:1", b"c" * 16))
    )


def first_entry() -> Entry:
    return Entry(1, 1, EntryType.CONFIGURATION, encode_configuration(founding()))


def test_a_joiners_log_holds_nothing(place: Any) -> None:
    log = joined(place)
    found = log.load()
    assert (found.first_index, found.last_index, found.commit_hint) == (1, 0, 0)
    assert found.hard_state == HardState()
    assert (found.terms, found.configurations, found.snapshot) == ((), (), None)
    assert (found.before_first, found.quarantine) == (Position(0, 0), None)
    assert log.read(1, 1, 100) == []
    assert log.chain_at(0) == GENESIS_CHAIN
    assert log.newest_snapshot() is None
    assert log.configuration == Configuration("cluster", ())
    assert log.compact(1)
    assert place.reopen(log).load() == found


def test_the_incarnation_that_members_were_shown_is_the_one_it_keeps(place: Any) -> None:
    directory = place.directory("node")
    shown = directory.founding_incarnation()
    directory.close()
    directory = place.directory("node")
    assert directory.founding_incarnation() == shown
    assert directory.join("cluster").incarnation == shown
    directory.close()
    again = place.directory("node")
    assert again.identity.incarnation == shown
    assert again.marker().cluster_id == "cluster"
    assert place.log(again).identity.incarnation == shown


def test_a_directory_that_was_never_to_join_has_no_log(place: Any) -> None:
    directory = place.directory("node")
    directory.founding_incarnation()
    with pytest.raises(IdentityError, match="no identity"):
        place.log(directory)


def test_entries_from_the_first_on_are_taken_and_a_restart_may_come_at_any_time(
    place: Any,
) -> None:
    log = joined(place)
    begin_term(log, 5)
    log = place.reopen(log)
    assert log.load().hard_state == HardState(5)
    log.persist([Write(None, None, (first_entry(),), 1)])
    log = place.reopen(log)
    assert log.load().configurations == ((1, founding()),)
    assert log.configuration == founding()
    log.persist([Write(None, None, commands(2, 30, 5), 20)])
    log = place.again(place.crash(log).name)
    found = log.load()
    assert (found.first_index, found.last_index, found.terms) == (1, 30, ((1, 1), (2, 5)))
    log.persist([Write(HardState(6), 21, commands(21, 22, 6))])
    assert place.reopen(log).load().last_index == 22


def test_a_first_entry_may_be_cut_again(place: Any) -> None:
    """A leader that was deposed before anything of this was committed."""
    log = joined(place)
    log.persist([Write(HardState(5), None, (first_entry(), *commands(2, 4, 5)))])
    log.persist([Write(HardState(6), 1, ())])
    found = place.reopen(log).load()
    assert (found.first_index, found.last_index, found.hard_state) == (1, 0, HardState(6))
    assert found.quarantine is None


def test_a_snapshot_is_installed_into_the_empty_log(place: Any) -> None:
    log = joined(place)
    begin_term(log, 5)
    meta, raw = make_snapshot(70, 5, b"c" * 32, [b"state"])
    assert receive(log, meta, raw)
    path = place.crash(log)
    log = place.again(path.name)
    assert log.load().snapshot is None, "not installed: it counts for nothing"
    assert receive(log, meta, raw)
    log.install_snapshot(meta)
    log = place.again(place.crash(log).name)
    found = log.load()
    assert (found.first_index, found.last_index, found.snapshot) == (71, 70, meta)
    assert list(log.snapshot_records(meta)) == [b"state"]
    assert log.configuration == meta.configuration
    log.persist([Write(None, None, commands(71, 80, 5))])
    assert place.reopen(log).load().last_index == 80


def test_a_joiners_log_that_went_back_is_quarantined_though_it_knows_nobody(place: Any) -> None:
    log = joined(place)
    path = place.close(log)
    before = (path / "log" / "data.mdb").read_bytes()
    log = place.again("node")
    begin_term(log, 5)
    place.close(log)
    (path / "log" / "data.mdb").write_bytes(before)
    found = place.again("node").load()
    assert found.hard_state == HardState(5)
    assert "its term is 0, it was 5" in found.quarantine


def test_a_joiners_snapshots_and_entries_are_scrubbed(place: Any) -> None:
    log = joined(place)
    assert log.scrub().finished is False
    assert log.scrub().finished
    log.maintain()
    assert log.stats().used_bytes > 0
