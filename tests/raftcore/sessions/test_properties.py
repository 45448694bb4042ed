"""Sessions against a ghost table, over random histories (I13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from raftcore import AppliedPosition, Entry, EntryType
from raftcore.sessions import (
    NO_SESSION,
    SessionLimits,
    SessionRefusal,
    SessionRefused,
    SessionStateMachine,
    SessionTable,
    close_command,
    keep_alive_command,
    limits_command,
    register_command,
    session_command,
)
from raftcore.sessions.format import Reply, SessionState
from raftcore.sessions.table import Answer
from raftcore.testing.machines import LedgerDisk, MemoryLedger, StoredLedger

LIMITS = SessionLimits(max_sessions=3, timeout_ms=100, window=4, reply_bytes=64)


def position(index: int) -> AppliedPosition:
    return AppliedPosition(index, 1, index.to_bytes(32, "big"))


class Histories(RuleBasedStateMachine):
    """Clients send, resend and reorder; nodes batch as they like, restart and copy each other.

    The ghost: a command's payload names its request, so the ledger itself shows what was executed;
    ``first`` has the first reply of each request.
    """

    clients = Bundle("clients")
    looks_inside = True
    make_machine: Callable[[MemoryLedger | StoredLedger], SessionStateMachine] = SessionStateMachine

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Entry] = []
        self.now_ms = 1000
        self.disk = LedgerDisk()
        self.nodes = [self.fresh(0), self.fresh(1)]
        self.results: dict[int, Any] = {}
        self.sent: list[tuple[bytes, int]] = []
        self.first: dict[tuple[bytes, int], Any] = {}

    def fresh(self, node: int) -> SessionStateMachine:
        """Node 0 lives in memory, node 1 on a disk."""
        return type(self).make_machine(StoredLedger(self.disk) if node else MemoryLedger())

    def append(self, data: bytes, client_id: bytes, sequence: int, skew_ms: int = 0) -> Any:
        """An entry, applied by node 0 at once; its result."""
        stamp = max(0, self.now_ms + skew_ms)
        kind = EntryType.COMMAND
        self.log.append(Entry(len(self.log) + 1, 1, kind, data, client_id, sequence, stamp))
        self.catch_up(0, 1 << 30)
        return self.results[len(self.log)]

    def catch_up(self, node: int, batch: int) -> None:
        machine = self.nodes[node]
        while (done := machine.last_applied().index) < len(self.log):
            entries = self.log[done : done + batch]
            results = machine.apply(entries, position(entries[-1].index))
            for entry, result in zip(entries, results, strict=True):
                told = self.results.setdefault(entry.index, result)
                assert told == result, DIFFERENTLY

    @initialize()
    def limits(self) -> None:
        self.append(limits_command(LIMITS), NO_SESSION, 0)

    @rule(target=clients)
    def register(self) -> Any:
        return self.append(register_command(), NO_SESSION, 0).session_id

    @rule(
        client=clients,
        sequence=st.integers(1, 7),
        acknowledged=st.integers(1, 3),
        skew_ms=st.integers(-40, 5),
    )
    def send(self, client: bytes, sequence: int, acknowledged: int, skew_ms: int) -> None:
        self.propose(client, sequence, acknowledged, skew_ms)

    def propose(self, client: bytes, sequence: int, acknowledged: int, skew_ms: int) -> None:
        request = (client, sequence)
        self.sent.append(request)
        payload = b"%b/%d" % (client.hex().encode(), sequence)
        result = self.append(session_command(payload, acknowledged), client, sequence, skew_ms)
        if not isinstance(result, SessionRefused):
            assert self.first.setdefault(request, result) == result, ANEW

    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        """At any distance, in any order."""
        if self.sent:
            client, sequence = data.draw(st.sampled_from(self.sent))
            self.propose(client, sequence, 1, 0)

    @rule(client=clients, acknowledged=st.integers(1, 4))
    def keep_alive(self, client: bytes, acknowledged: int) -> None:
        self.append(keep_alive_command(acknowledged), client, 0)

    @rule(client=clients)
    def close(self, client: bytes) -> None:
        self.append(close_command(), client, 0)

    @rule(ms=st.integers(1, 60))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule(batch=st.integers(1, 7))
    def the_follower_applies(self, batch: int) -> None:
        self.catch_up(1, batch)

    @rule()
    def the_follower_restarts(self) -> None:
        self.nodes[1] = self.fresh(1)

    @rule(batch=st.integers(1, 7))
    def the_leader_is_rebuilt_from_its_log(self, batch: int) -> None:
        self.nodes[0] = self.fresh(0)
        self.catch_up(0, batch)

    @rule(receiver=st.sampled_from([0, 1]), fresh=st.booleans())
    def a_snapshot_is_installed(self, receiver: int, fresh: bool) -> None:
        """The receiver gets the other's state; a leader that fell back applies the rest again."""
        view = self.nodes[1 - receiver].open_snapshot()
        if view.position.index == 0:
            return
        if fresh and receiver == 0:
            self.nodes[0] = self.fresh(0)
        self.nodes[receiver].install_snapshot(view.records(), view.position)
        self.catch_up(0, 1 << 30)

    @invariant()
    def no_request_took_effect_twice(self) -> None:
        if not self.looks_inside:
            return
        for node in self.nodes:
            commands = node.inner.commands  # type: ignore[attr-defined]
            assert len(commands) == len(set(commands))
        assert len(self.nodes[0].inner.commands) == len(self.first)  # type: ignore[attr-defined]

    @invariant()
    def everything_is_bounded(self) -> None:
        if not self.looks_inside:
            return
        for node in self.nodes:
            states = node.table._sessions.values()
            assert len(states) <= (LIMITS if len(self.log) else SessionLimits()).max_sessions
            assert all(len(state.replies) <= LIMITS.window for state in states)

    @invariant()
    def nodes_that_applied_the_same_are_the_same(self) -> None:
        if not self.looks_inside:
            return
        one, two = self.nodes
        if one.last_applied() == two.last_applied():
            assert list(one.table.records()) == list(two.table.records())
        stored = self.disk.contents
        if stored.position.index:
            kept = SessionTable.from_keyed_records(stored.sessions)
            assert list(kept.records()) == list(two.table.records())


Histories.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


# -- the ghost finds what is wrong ----------------------------------------------------------------


class WithoutTableInSnapshots(SessionStateMachine):
    def install_snapshot(self, records: Any, position: AppliedPosition) -> None:
        super().install_snapshot(records, position)
        empty = SessionTable()
        empty.limits, empty.clock_ms = self.table.limits, self.table.clock_ms
        self.table = empty


class ForgettingAtOnce(SessionTable):
    def keep(self, execute: Any, place: int, raw: bytes) -> Any:
        reply = super().keep(execute, place, raw)
        execute.state.replies.pop(execute.entry.sequence, None)
        return reply


class AnsweringAnew(SessionTable):
    def decide(self, entry: Entry, place: int) -> Any:
        decision = super().decide(entry, place)
        repeated = isinstance(decision, Answer) and isinstance(decision.result, Reply)
        return Answer(Reply.of(msgpack.packb(entry.index), 100)) if repeated else decision


class RevivingExpired(SessionTable):
    def decide(self, entry: Entry, place: int) -> Any:
        decision = super().decide(entry, place)
        if decision != Answer(SessionRefused(SessionRefusal.EXPIRED)) or entry.sequence == 0:
            return decision
        number = int.from_bytes(entry.client_id, "big")
        self._sessions[number] = SessionState(number, entry.index, self.clock_ms)
        return super().decide(entry, place)


def with_table(table: type[SessionTable]) -> type[SessionStateMachine]:
    """A machine that begins with that table, and keeps its kind over snapshots and restarts."""

    class Broken(SessionStateMachine):
        @property
        def table(self) -> SessionTable:
            return self._table

        @table.setter
        def table(self, new: SessionTable) -> None:
            self._table = table()
            vars(self._table).update(vars(new))

    return Broken


class LocalClock(SessionStateMachine):
    """Expires by a clock of its own, which differs from node to node."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        if isinstance(inner, StoredLedger):
            self.table.clock_ms += 3000


ANEW = "a repeat was answered anew"
DIFFERENTLY = "two nodes answer one entry differently"


@pytest.mark.parametrize(
    ("mutant", "found"),
    [
        (WithoutTableInSnapshots, f"{ANEW}|{DIFFERENTLY}"),
        (with_table(ForgettingAtOnce), ANEW),
        (with_table(AnsweringAnew), ANEW),
        (with_table(RevivingExpired), ANEW),
        (LocalClock, DIFFERENTLY),
    ],
    ids=["no table in snapshots", "forgotten", "answered anew", "expired revived", "local clock"],
)
def test_the_histories_find_a_broken_table(mutant: type[SessionStateMachine], found: str) -> None:
    """A property that cannot fail proves nothing: each way to break exactly-once is found, by what
    clients are answered alone."""

    class Broken(Histories):
        make_machine = mutant
        looks_inside = False

    with pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(
            Broken,
            settings=settings(
                max_examples=300,
                stateful_step_count=40,
                deadline=None,
                database=None,
                derandomize=True,
                report_multiple_bugs=False,
                phases=[Phase.generate],  # a smaller history would tell nothing more
            ),
        )
