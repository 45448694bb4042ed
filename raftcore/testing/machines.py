"""Small state machines: a counter in memory, and one whose state outlives its process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from raftcore.core.types import Entry, EntryType
from raftcore.sessions.machine import SessionWrites
from raftcore.statemachine import AppliedPosition


@dataclass(frozen=True, slots=True)
class ListView:
    """A view of a list of records."""

    position: AppliedPosition
    commands: tuple[bytes, ...]

    def records(self) -> Iterator[bytes]:
        yield from self.commands

    def close(self) -> None:
        """Nothing is held."""


class MemoryLedger:
    """Keeps all commands in order; a command's result is how many there are with it."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self._position = AppliedPosition()

    def last_applied(self) -> AppliedPosition:
        return self._position

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[int | None]:
        """See ``StateMachine.apply``."""
        assert entries[0].index == self._position.index + 1, "an entry twice, or a gap"
        results: list[int | None] = []
        for entry in entries:
            if entry.type is EntryType.COMMAND:
                self.commands.append(entry.data)
                results.append(len(self.commands))
            else:
                results.append(None)
        self._position = position
        return results

    def open_snapshot(self) -> ListView:
        return ListView(self._position, tuple(self.commands))

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        """See ``StateMachine.install_snapshot``."""
        self.commands = list(records)
        self._position = position

    def discard(self) -> None:
        self.commands, self._position = [], AppliedPosition()

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class LedgerContents:
    """All that a stored ledger holds; replaced as a whole, which is what makes it atomic."""

    commands: tuple[bytes, ...] = ()
    position: AppliedPosition = field(default_factory=AppliedPosition)
    sessions: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass
class LedgerDisk:
    """What survives the end of a :class:`StoredLedger`."""

    contents: LedgerContents = field(default_factory=LedgerContents)


class StoredLedger:
    """The ledger on a :class:`LedgerDisk`; keeps sessions too
    (:class:`~raftcore.sessions.SessionKeeper`)."""

    def __init__(self, disk: LedgerDisk) -> None:
        self.disk = disk

    @property
    def commands(self) -> list[bytes]:
        return list(self.disk.contents.commands)

    def last_applied(self) -> AppliedPosition:
        return self.disk.contents.position

    def session_records(self) -> Mapping[bytes, bytes]:
        return self.disk.contents.sessions

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[int | None]:
        """See ``StateMachine.apply``."""
        return self.apply_with_sessions(entries, position, lambda _: {})

    def apply_with_sessions(
        self, entries: Sequence[Entry], position: AppliedPosition, session_writes: SessionWrites
    ) -> list[int | None]:
        """See ``SessionKeeper.apply_with_sessions``."""
        before = self.disk.contents
        assert entries[0].index == before.position.index + 1, "an entry twice, or a gap"
        commands = list(before.commands)
        results: list[int | None] = []
        for entry in entries:
            if entry.type is EntryType.COMMAND:
                commands.append(entry.data)
                results.append(len(commands))
            else:
                results.append(None)
        merged = {**before.sessions, **session_writes(results)}
        sessions = {key: raw for key, raw in merged.items() if raw is not None}
        self.disk.contents = LedgerContents(tuple(commands), position, sessions)
        return results

    def open_snapshot(self) -> ListView:
        contents = self.disk.contents
        return ListView(contents.position, contents.commands)

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        """See ``StateMachine.install_snapshot``."""
        self.install_with_sessions(records, position, {})

    def install_with_sessions(
        self, records: Iterable[bytes], position: AppliedPosition, sessions: Mapping[bytes, bytes]
    ) -> None:
        """See ``SessionKeeper.install_with_sessions``."""
        self.disk.contents = LedgerContents(tuple(records), position, dict(sessions))

    def discard(self) -> None:
        self.disk.contents = LedgerContents()

    def close(self) -> None:
        """The disk stays."""
