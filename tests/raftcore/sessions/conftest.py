"""A log by hand, and machines with sessions that apply it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from raftcore import AppliedPosition, Entry, EntryType
from raftcore.sessions import NO_SESSION, SessionStateMachine, register_command, session_command


class Script:
    """A log that is written entry by entry, and machines that apply it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.now_ms = 1_000_000

    def append(self, data: bytes, client_id: bytes = b"", sequence: int = 0, **more: Any) -> Entry:
        more.setdefault("timestamp_ms", self.now_ms)
        kind = more.pop("type", EntryType.COMMAND)
        entry = Entry(len(self.entries) + 1, 1, kind, data, client_id, sequence, **more)
        self.entries.append(entry)
        return entry

    def position(self, index: int) -> AppliedPosition:
        return AppliedPosition(index, 1, index.to_bytes(32, "big"))

    def apply(self, machine: SessionStateMachine, *, batch: int = 1 << 30) -> list[Any]:
        """Everything that ``machine`` has not applied yet, in batches; the results."""
        results: list[Any] = []
        while (done := machine.last_applied().index) < len(self.entries):
            entries = self.entries[done : done + batch]
            results += machine.apply(entries, self.position(entries[-1].index))
        return results

    def register(self, machine: SessionStateMachine) -> bytes:
        self.append(register_command(), NO_SESSION)
        client_id: bytes = self.apply(machine)[-1].session_id
        return client_id

    def say(
        self,
        machine: SessionStateMachine,
        client_id: bytes,
        sequence: int,
        data: bytes = b"x",
        first_outstanding: int = 1,
    ) -> Any:
        """One command of a session; its result."""
        self.append(session_command(data, first_outstanding), client_id, sequence)
        return self.apply(machine)[-1]

    def command(
        self, machine: SessionStateMachine, data: bytes, client_id: bytes = NO_SESSION
    ) -> Any:
        """One command without a sequence; its result."""
        self.append(data, client_id)
        return self.apply(machine)[-1]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def make_script() -> type[Script]:
    return Script


@pytest.fixture
def moved() -> Any:
    """A snapshot of one machine, installed on another."""

    def move(source: SessionStateMachine, target: SessionStateMachine) -> None:
        view = source.open_snapshot()
        records: Sequence[bytes] = list(view.records())
        target.install_snapshot(iter(records), view.position)
        view.close()

    return move
