"""Bringing log and state machine together: what is rebuilt, and what is a loss (D5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from raftcore.core.types import Configuration, Entry, HardState, Member
from raftcore.errors import LogCorruptError
from raftcore.runtime.recovery import recover
from raftcore.statemachine import AppliedPosition
from raftcore.storage.base import Write
from raftcore.storage.memory import MemoryDisk, MemoryLog
from raftcore.testing.storage_model import commands


class Machine:
    """A state machine that is only a position."""

    def __init__(self, position: AppliedPosition) -> None:
        self.position = position
        self.discarded = 0

    def last_applied(self) -> AppliedPosition:
        return self.position

    def discard(self) -> None:
        self.discarded += 1
        self.position = AppliedPosition()

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        raise AssertionError("there is no snapshot")

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> Sequence[Any]:
        raise AssertionError("nothing is applied in a recovery")

    def open_snapshot(self) -> Any:
        raise AssertionError("nothing is saved in a recovery")

    def close(self) -> None:
        """Nothing to release."""


def log_of(*voters: str) -> MemoryLog:
    members = tuple(Member(n, f"{n}:1", n.encode() * 8) for n in voters)
    log = MemoryLog(MemoryDisk.bootstrapped(voters[0], Configuration("cluster", members)))
    log.persist([Write(HardState(2, "n1"), None, commands(2, 20, 2), 20)])
    return log


def test_a_state_ahead_of_the_log_begins_a_quarantine_and_is_thrown_away() -> None:
    log, machine = log_of("n1", "n2", "n3"), Machine(AppliedPosition(30, 2, b"?" * 32))
    recovery = recover(log, machine)
    assert recovery.state.quarantined
    assert recovery.rebuilt
    assert (recovery.state.applied, recovery.state.last_index) == (0, 20)
    assert recovery.state.hard_state == HardState(2, "n1")
    assert machine.discarded == 1
    assert log.disk.quarantine is not None
    assert "has applied 30, but the log ends at 20" in log.disk.quarantine
    again = recover(MemoryLog(log.disk), Machine(AppliedPosition()))
    assert again.state.quarantined, "it survives the next start, without any state"


def test_a_state_ahead_of_the_log_begins_a_quarantine_without_an_end() -> None:
    """FLOOR, too, was at ease with that log: nothing tells how far term and vote went back."""
    log = log_of("n1", "n2", "n3")
    recovery = recover(log, Machine(AppliedPosition(30, 5, b"?" * 32)))
    assert recovery.state.quarantine_final
    assert recovery.state.hard_state == HardState(5), "it was in that term"
    assert recovery.quarantine is not None
    assert recovery.quarantine.endswith("remove it and let it join again")
    again = recover(MemoryLog(log.disk), Machine(AppliedPosition()))
    assert again.state.quarantine_final


def test_a_quarantine_that_is_vouched_for_has_an_end() -> None:
    log = log_of("n1", "n2", "n3")
    log.enter_quarantine("the log was damaged")
    log.disk.vouched = True
    recovery = recover(MemoryLog(log.disk), Machine(AppliedPosition()))
    assert (recovery.quarantine, recovery.state.quarantined) == ("the log was damaged", True)
    assert not recovery.state.quarantine_final


def test_a_state_of_a_later_term_than_the_log_has_there_begins_a_quarantine_too() -> None:
    """The log went back and was not shorter for it: an entry that was replaced came back."""
    log, machine = log_of("n1", "n2", "n3"), Machine(AppliedPosition(20, 3, b"?" * 32))
    recovery = recover(log, machine)
    assert recovery.state.quarantine_final
    assert machine.discarded == 1
    assert log.disk.quarantine == (
        "the state machine has applied 20 of term 3, but the log has term 2 there: "
        "the log went back"
    )


def test_a_state_of_an_earlier_history_is_only_rebuilt() -> None:
    log, machine = log_of("n1", "n2", "n3"), Machine(AppliedPosition(20, 2, b"?" * 32))
    recovery = recover(log, machine)
    assert (recovery.rebuilt, recovery.state.quarantined) == (True, False)
    assert machine.discarded == 1


def test_the_first_reason_of_a_quarantine_stays() -> None:
    log = log_of("n1", "n2", "n3")
    log.enter_quarantine("the log was damaged")
    recovery = recover(MemoryLog(log.disk), Machine(AppliedPosition(30, 2, b"?" * 32)))
    assert recovery.state.quarantined
    assert log.disk.quarantine == "the log was damaged"


def test_a_lone_voter_whose_state_is_ahead_refuses_to_run_and_keeps_its_state() -> None:
    log, machine = log_of("n1"), Machine(AppliedPosition(30, 2, b"?" * 32))
    with pytest.raises(LogCorruptError, match="the log went back"):
        recover(log, machine)
    assert machine.discarded == 0
    assert log.disk.quarantine is None


def test_a_joiner_begins_with_nothing_and_is_not_in_quarantine() -> None:
    log = MemoryLog(MemoryDisk.joining("n4", "cluster", b"n4" * 8))
    recovery = recover(log, Machine(AppliedPosition()))
    state = recovery.state
    assert (state.first_index, state.last_index, state.applied) == (1, 0, 0)
    assert state.base_configuration == Configuration("cluster", ())
    assert not state.quarantined
    assert state.hard_state == HardState()
