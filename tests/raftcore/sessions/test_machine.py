"""A machine with sessions: what is executed, what is answered, what is forgotten (rule 49)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from raftcore import AppliedPosition, Entry, EntryType
from raftcore.errors import LogCorruptError
from raftcore.sessions import (
    NO_SESSION,
    LimitsSet,
    ReplyTooLarge,
    SessionAlive,
    SessionClosed,
    SessionLimits,
    SessionOpened,
    SessionRefusal,
    SessionRefused,
    SessionStateMachine,
    close_command,
    keep_alive_command,
    limits_command,
    register_command,
    session_command,
)
from raftcore.testing.machines import LedgerDisk, MemoryLedger, StoredLedger

EXPIRED = SessionRefused(SessionRefusal.EXPIRED)
MALFORMED = SessionRefused(SessionRefusal.MALFORMED)


class LongAnswers(MemoryLedger):
    """Every command's result is long."""

    def apply(self, entries: Any, position: AppliedPosition) -> Any:
        results = super().apply(entries, position)
        return [None if result is None else "r" * 500 for result in results]


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def machine(ledger: MemoryLedger) -> SessionStateMachine:
    return SessionStateMachine(ledger)


# -- once, and the first reply --------------------------------------------------------------------


def test_a_repeat_gets_the_first_reply_and_changes_nothing(
    script: Any, machine: Any, ledger: Any
) -> None:
    client = script.register(machine)
    assert script.say(machine, client, 1) == 1
    assert script.say(machine, client, 2) == 2
    assert script.say(machine, client, 1) == 1
    assert ledger.commands == [b"x", b"x"]


def test_a_repeat_within_one_batch_gets_the_first_reply(
    script: Any, machine: Any, ledger: Any
) -> None:
    client = script.register(machine)
    for sequence in (1, 1, 2, 1, 2):
        script.append(session_command(b"x", 1), client, sequence)
    assert script.apply(machine) == [1, 1, 2, 1, 2]
    assert len(ledger.commands) == 2


def test_the_session_decides_and_not_the_number_alone(script: Any, machine: Any) -> None:
    first, second = script.register(machine), script.register(machine)
    assert first != second
    assert script.say(machine, first, 1) == 1
    assert script.say(machine, second, 1) == 2
    assert script.say(machine, first, 1) == 1


def test_sequences_may_come_in_any_order(script: Any, machine: Any) -> None:
    client = script.register(machine)
    assert [script.say(machine, client, n) for n in (3, 1, 2, 1, 3)] == [1, 2, 3, 2, 1]


def test_commands_without_a_session_pass_untouched(script: Any, machine: Any, ledger: Any) -> None:
    script.append(b"", type=EntryType.NOOP)
    script.append(b"plain")
    script.append(b"plain", b"", 9)
    assert script.apply(machine) == [None, 1, 2]
    assert ledger.commands == [b"plain", b"plain"]


def test_the_machine_sees_every_index_and_no_envelope(script: Any) -> None:
    seen: list[Entry] = []

    class Watched(MemoryLedger):
        def apply(self, entries: Any, position: AppliedPosition) -> Any:
            seen.extend(entries)
            return super().apply(entries, position)

    machine = SessionStateMachine(Watched())
    client = script.register(machine)
    script.say(machine, client, 1, b"payload")
    script.say(machine, client, 1, b"payload")
    assert [entry.index for entry in seen] == [1, 2, 3]
    assert [entry.type for entry in seen] == [
        EntryType.NOOP, EntryType.COMMAND, EntryType.NOOP,
    ]  # fmt: skip
    assert (seen[1].data, seen[1].client_id, seen[1].sequence) == (b"payload", client, 1)
    assert {entry.timestamp_ms for entry in seen} == {script.now_ms}


def test_first_and_repeated_reply_are_equal_also_where_the_codec_changes_them(
    script: Any,
) -> None:
    class Pairs(MemoryLedger):
        def apply(self, entries: Any, position: AppliedPosition) -> Any:
            return [(r, {r: "n"}) for r in super().apply(entries, position)]

    machine = SessionStateMachine(Pairs())
    client = script.register(machine)
    assert script.say(machine, client, 1) == [1, {1: "n"}]
    assert script.say(machine, client, 1) == [1, {1: "n"}]


# -- what a client acknowledges -------------------------------------------------------------------


def test_an_acknowledged_reply_is_dropped_and_its_number_never_executed(
    script: Any, machine: Any, ledger: Any
) -> None:
    client = script.register(machine)
    for sequence in (1, 2, 3):
        script.say(machine, client, sequence)
    assert script.say(machine, client, 4, first_outstanding=3) == 4
    assert [script.say(machine, client, n) for n in (1, 2)] == [
        SessionRefused(SessionRefusal.ACKNOWLEDGED)
    ] * 2
    assert script.say(machine, client, 3) == 3
    (state,) = machine.table._sessions.values()
    assert sorted(state.replies) == [3, 4]
    assert len(ledger.commands) == 4


def test_a_number_that_was_given_up_takes_no_effect_when_it_arrives_late(
    script: Any, machine: Any, ledger: Any
) -> None:
    client = script.register(machine)
    script.say(machine, client, 2, first_outstanding=2)
    assert script.say(machine, client, 1) == SessionRefused(SessionRefusal.ACKNOWLEDGED)
    assert len(ledger.commands) == 1


def test_acknowledging_within_the_batch_that_executes_keeps_nothing(
    script: Any, machine: Any
) -> None:
    client = script.register(machine)
    script.append(session_command(b"x", 1), client, 1)
    script.append(session_command(b"x", 2), client, 2)
    script.append(session_command(b"x", 2), client, 1)
    assert script.apply(machine) == [1, 2, SessionRefused(SessionRefusal.ACKNOWLEDGED)]
    (state,) = machine.table._sessions.values()
    assert sorted(state.replies) == [2]


def test_a_sequence_beyond_the_window_is_refused_and_may_come_again(
    script: Any, machine: Any, ledger: Any
) -> None:
    client = script.register(machine)
    window = machine.table.limits.window
    for sequence in range(1, window + 1):
        assert script.say(machine, client, sequence) == sequence
    full = SessionRefused(SessionRefusal.WINDOW_FULL)
    assert script.say(machine, client, window + 1) == full
    assert len(ledger.commands) == window
    again = script.say(machine, client, window + 1, first_outstanding=2)
    assert again == window + 1


def test_a_reply_that_is_too_large_is_kept_from_everybody(script: Any) -> None:
    machine = SessionStateMachine(MemoryLedger(), encode_reply=lambda _: bytes(2000))
    client = script.register(machine)
    assert script.say(machine, client, 1) == ReplyTooLarge(2000)
    assert script.say(machine, client, 1) == ReplyTooLarge(2000)
    assert machine.inner.commands == [b"x"]


# -- life of a session ----------------------------------------------------------------------------


def test_the_limit_of_a_reply_is_the_one_in_force_at_its_entry(make_script: Any) -> None:
    """A later change of limits in the same batch must not reach back: batches differ by node."""
    told, tables = [], []
    for batch in (1, 1 << 30):
        script, machine = make_script(), SessionStateMachine(LongAnswers())
        client = script.register(machine)
        script.append(session_command(b"x", 1), client, 1)
        script.append(limits_command(SessionLimits(reply_bytes=100)), NO_SESSION)
        script.append(session_command(b"x", 1), client, 2)
        script.append(limits_command(SessionLimits(reply_bytes=1000)), NO_SESSION)
        told.append(script.apply(machine, batch=batch))
        tables.append(list(machine.table.records()))
    assert told[0] == told[1]
    assert tables[0] == tables[1]
    assert (told[0][0], type(told[0][2])) == ("r" * 500, ReplyTooLarge)


def test_an_unknown_session_executes_nothing(script: Any, machine: Any, ledger: Any) -> None:
    for client in (NO_SESSION, b"\0" * 7 + b"\x09", b"odd", b"x" * 16):
        assert script.say(machine, client, 1) == EXPIRED
    assert ledger.commands == []


def test_a_session_expires_by_replicated_time_and_is_not_executed_again(
    script: Any, machine: Any, ledger: Any
) -> None:
    client = script.register(machine)
    script.say(machine, client, 1)
    script.now_ms += machine.table.limits.timeout_ms - 1
    assert script.say(machine, client, 1) == 1
    script.now_ms += machine.table.limits.timeout_ms
    assert script.say(machine, client, 1) == EXPIRED
    assert script.say(machine, client, 2) == EXPIRED
    assert ledger.commands == [b"x"]
    assert len(machine.table) == 0


def test_a_keep_alive_prolongs_and_acknowledges(script: Any, machine: Any) -> None:
    client = script.register(machine)
    script.say(machine, client, 1)
    for _ in range(3):
        script.now_ms += machine.table.limits.timeout_ms - 1
        assert script.command(machine, keep_alive_command(2), client) == SessionAlive()
    (state,) = machine.table._sessions.values()
    assert state.replies == {}
    script.now_ms += machine.table.limits.timeout_ms
    assert script.command(machine, keep_alive_command(2), client) == EXPIRED


def test_the_clock_never_goes_back_when_another_leaders_clock_is_behind(
    script: Any, machine: Any
) -> None:
    client = script.register(machine)
    script.now_ms -= 500_000
    script.say(machine, client, 1)
    assert machine.table.clock_ms == 1_000_000
    script.now_ms = 1_000_000 + machine.table.limits.timeout_ms - 1
    assert script.say(machine, client, 1) == 1, "the stamp that was behind shortened a session"


def test_entries_of_every_type_move_the_clock(script: Any, machine: Any) -> None:
    script.register(machine)
    script.now_ms += machine.table.limits.timeout_ms
    script.append(b"", type=EntryType.NOOP)
    script.apply(machine)
    assert len(machine.table) == 0


def test_one_session_too_many_ends_the_least_recently_active(script: Any, machine: Any) -> None:
    limits = SessionLimits(max_sessions=2)
    assert script.command(machine, limits_command(limits)) == LimitsSet()
    old, idle = script.register(machine), script.register(machine)
    script.say(machine, old, 1)
    new = script.register(machine)
    assert script.say(machine, idle, 1) == EXPIRED
    assert script.say(machine, old, 1) == 1
    assert script.say(machine, new, 1) == 2


def test_closing_ends_a_session_and_is_harmless_again(script: Any, machine: Any) -> None:
    client = script.register(machine)
    for _ in range(2):
        assert script.command(machine, close_command(), client) == SessionClosed()
    assert script.say(machine, client, 1) == EXPIRED


def test_closing_in_the_batch_that_executes(script: Any, machine: Any, ledger: Any) -> None:
    client = script.register(machine)
    script.append(session_command(b"x", 1), client, 1)
    script.append(close_command(), client)
    script.append(session_command(b"x", 1), client, 1)
    assert script.apply(machine) == [1, SessionClosed(), EXPIRED]
    assert ledger.commands == [b"x"]


def test_smaller_limits_take_effect_at_once(script: Any, machine: Any) -> None:
    clients = [script.register(machine) for _ in range(4)]
    script.now_ms += 10
    script.say(machine, clients[0], 1)
    limits = SessionLimits(max_sessions=2, timeout_ms=50, window=1)
    script.command(machine, limits_command(limits))
    assert len(machine.table) == 2
    script.now_ms += 45
    assert script.say(machine, clients[0], 1) == 1
    assert len(machine.table) == 1
    assert script.say(machine, clients[0], 2) == SessionRefused(SessionRefusal.WINDOW_FULL)


@pytest.mark.parametrize(
    ("data", "client_id", "sequence"),
    [
        (b"", NO_SESSION, 1),
        (b"not an envelope", NO_SESSION, 1),
        (b"\x02" + session_command(b"", 1)[1:], NO_SESSION, 1),
        (session_command(b"", 1), NO_SESSION, 0),
        (register_command(), NO_SESSION, 1),
        (register_command(), b"12345678", 0),
        (limits_command(SessionLimits()), b"12345678", 0),
        (limits_command(SessionLimits()) + b"x", NO_SESSION, 0),
        (limits_command(SessionLimits())[:-4] + b"\xff" * 4, NO_SESSION, 0),
        (b"\x01\x09" + bytes(8), NO_SESSION, 0),
    ],
)
def test_a_stray_command_is_refused_and_stops_nobody(
    script: Any, machine: Any, ledger: Any, data: bytes, client_id: bytes, sequence: int
) -> None:
    script.append(data, client_id, sequence)
    assert script.apply(machine) == [MALFORMED]
    assert ledger.commands == []


def test_an_opened_session_says_its_bounds(script: Any, machine: Any) -> None:
    opened = script.command(machine, register_command())
    limits = machine.table.limits
    assert opened == SessionOpened((1).to_bytes(8, "big"), limits.window, limits.timeout_ms)


# -- snapshots, restarts, stores ------------------------------------------------------------------


def test_a_repeat_after_a_snapshot_gets_the_first_reply(
    script: Any, machine: Any, moved: Any
) -> None:
    client = script.register(machine)
    script.say(machine, client, 1)
    script.say(machine, client, 2)
    other = SessionStateMachine(MemoryLedger())
    moved(machine, other)
    assert script.say(other, client, 1) == 1
    assert script.say(other, client, 3) == 3
    assert other.inner.commands == [b"x"] * 3


def test_a_snapshot_shows_the_table_of_its_moment(script: Any, machine: Any) -> None:
    client = script.register(machine)
    script.say(machine, client, 1)
    view = machine.open_snapshot()
    before = list(machine.open_snapshot().records())
    script.say(machine, client, 2)
    script.register(machine)
    assert list(view.records()) == before
    assert view.position == script.position(2)


def test_expiry_is_the_same_after_a_snapshot(script: Any, machine: Any, moved: Any) -> None:
    clients = []
    for _ in range(5):
        script.now_ms += 1000
        clients.append(script.register(machine))
    script.say(machine, clients[0], 1)
    other = SessionStateMachine(MemoryLedger())
    moved(machine, other)
    for target in (machine, other):
        script.apply(target)
    script.now_ms += machine.table.limits.timeout_ms - 1500
    script.append(b"tick")
    for target in (machine, other):
        script.apply(target)
        left = [clients[3], clients[4], clients[0]]
        assert [number.to_bytes(8, "big") for number in target.table._sessions] == left
    assert list(machine.table.records()) == list(other.table.records())


def test_a_discarded_machine_forgets_its_sessions(script: Any, machine: Any) -> None:
    script.register(machine)
    machine.discard()
    assert len(machine.table) == 0
    assert machine.last_applied() == AppliedPosition()


def test_a_machine_with_a_store_of_its_own_must_keep_the_sessions(script: Any) -> None:
    class Kept(MemoryLedger):
        def last_applied(self) -> AppliedPosition:
            return AppliedPosition(3, 1, bytes(32))

    with pytest.raises(ValueError, match="SessionKeeper"):
        SessionStateMachine(Kept())


def test_a_stored_machine_answers_a_repeat_after_a_restart(script: Any, moved: Any) -> None:
    disk = LedgerDisk()
    machine = SessionStateMachine(StoredLedger(disk))
    client = script.register(machine)
    gone = script.register(machine)
    script.say(machine, client, 1)
    script.command(machine, close_command(), gone)
    again = SessionStateMachine(StoredLedger(disk))
    assert script.say(again, client, 1) == 1
    assert script.say(again, client, 2) == 2
    assert script.say(again, gone, 1) == EXPIRED
    assert disk.contents.sessions == again.table.keyed_records()


def test_a_stored_machine_keeps_the_sessions_of_an_installed_snapshot(
    script: Any, machine: Any, moved: Any
) -> None:
    client = script.register(machine)
    script.say(machine, client, 1)
    disk = LedgerDisk()
    moved(machine, SessionStateMachine(StoredLedger(disk)))
    again = SessionStateMachine(StoredLedger(disk))
    assert script.say(again, client, 1) == 1
    assert disk.contents.commands == (b"x",)
    again.discard()
    assert disk.contents.sessions == {}


def test_a_store_that_lost_its_sessions_is_found_out(script: Any) -> None:
    disk = LedgerDisk()
    ledger = StoredLedger(disk)
    machine = SessionStateMachine(ledger)
    script.register(machine)
    ledger.install_with_sessions([], script.position(1), {})
    with pytest.raises(LogCorruptError):
        SessionStateMachine(StoredLedger(disk))


def test_a_crash_before_or_after_the_write_of_a_batch_doubles_nothing(script: Any) -> None:
    """State, position and table are one write: replaying the log after a crash on either side of
    it gives the same."""

    class Power(Exception):  # noqa: N818
        """It went."""

    class Failing(StoredLedger):
        after = False

        def apply_with_sessions(self, entries: Any, position: Any, session_writes: Any) -> Any:
            if self.after:
                super().apply_with_sessions(entries, position, session_writes)
            raise Power

    disk = LedgerDisk()
    client = script.register(SessionStateMachine(StoredLedger(disk)))
    for sequence in (1, 2):
        script.append(session_command(b"x", 1), client, sequence)
    for after in (False, True):
        failing = Failing(disk)
        failing.after = after
        machine = SessionStateMachine(failing)
        with pytest.raises(Power):
            script.apply(machine, batch=1)
    recovered = SessionStateMachine(StoredLedger(disk))
    script.apply(recovered)
    assert [script.say(recovered, client, n) for n in (1, 2)] == [1, 2]
    assert len(disk.contents.commands) == 2


def test_a_keeper_that_does_not_store_the_sessions_is_found_out(script: Any) -> None:
    class Forgetful(StoredLedger):
        def apply_with_sessions(self, entries: Any, position: Any, session_writes: Any) -> Any:
            return super().apply_with_sessions(entries, position, lambda _: {})

    with pytest.raises(AssertionError, match="stored once"):
        script.register(SessionStateMachine(Forgetful(LedgerDisk())))


def test_closing_closes_the_machine(script: Any) -> None:
    closed: list[bool] = []

    class Closing(MemoryLedger):
        def close(self) -> None:
            closed.append(True)

        def records(self) -> Iterable[bytes]:
            return ()

    SessionStateMachine(Closing()).close()
    assert closed == [True]
