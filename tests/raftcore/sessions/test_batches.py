"""Replicas cut the log into batches as they like: results and table must not show how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raftcore import AppliedPosition, Entry, EntryType
from raftcore.sessions import (
    NO_SESSION,
    SessionLimits,
    SessionStateMachine,
    close_command,
    keep_alive_command,
    limits_command,
    register_command,
    session_command,
)
from raftcore.testing.machines import MemoryLedger

#: A command: its data, its session (the index of an entry, or none) and its sequence.
Command = tuple[bytes, int, int]

#: Sessions are named by index, so that commands find some that exist and some that do not.
sessions = st.integers(1, 3)
limits = st.builds(
    SessionLimits,
    max_sessions=st.integers(1, 3),
    timeout_ms=st.sampled_from([30, 1000]),
    window=st.integers(2, 4),
    reply_bytes=st.sampled_from([1, 40]),
)
commands: st.SearchStrategy[Command] = st.one_of(
    st.just((register_command(), 0, 0)),
    st.builds(lambda wanted: (limits_command(wanted), 0, 0), limits),
    st.builds(
        lambda size, session, number, first: (session_command(b"x" * size, first), session, number),
        st.sampled_from([0, 20, 60]), sessions, st.integers(1, 4), st.integers(1, 4),
    ),
    st.builds(lambda first, session: (keep_alive_command(first), session, 0), sessions, sessions),
    st.builds(lambda session: (close_command(), session, 0), sessions),
)  # fmt: skip


class Echo(MemoryLedger):
    """Answers with the command itself, so that replies are of any size."""

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[Any]:
        super().apply(entries, position)
        return [e.data if e.type is EntryType.COMMAND else None for e in entries]


def log_of(steps: Sequence[tuple[Command, int]]) -> list[Entry]:
    entries, now_ms = [], 1000
    registered: list[tuple[Command, int]] = [((register_command(), 0, 0), 0)] * 2
    for index, ((data, session, sequence), passed_ms) in enumerate((*registered, *steps), start=1):
        now_ms += passed_ms
        client = session.to_bytes(8, "big") if session else NO_SESSION
        kind = EntryType.COMMAND
        entries.append(Entry(index, 1, kind, data, client, sequence, now_ms))
    return entries


def applied(
    machine: SessionStateMachine, entries: Sequence[Entry], cuts: set[int]
) -> tuple[list[Any], list[bytes]]:
    """What is answered and remembered when a batch ends at each of ``cuts``."""
    results: list[Any] = []
    begin = 0
    for end in sorted({cut for cut in cuts if 0 < cut < len(entries)} | {len(entries)}):
        position = AppliedPosition(end, 1, end.to_bytes(32, "big"))
        results += machine.apply(entries[begin:end], position)
        begin = end
    return results, list(machine.table.records())


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(commands, st.integers(-5, 5)), min_size=8, max_size=25),
    st.sets(st.integers(1, 26)),
)
def test_any_cut_of_a_log_into_batches_gives_equal_results_and_records(
    steps: list[tuple[Command, int]], cuts: set[int]
) -> None:
    entries = log_of(steps)
    one_by_one = applied(SessionStateMachine(Echo()), entries, set(range(len(entries))))
    assert applied(SessionStateMachine(Echo()), entries, cuts) == one_by_one
    assert applied(SessionStateMachine(Echo()), entries, set()) == one_by_one
