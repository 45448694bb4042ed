"""Sessions around a state machine of the user's.

What must be one atomic unit is the machine's state, its applied position and the session table. A
machine in memory starts empty, so all three come back together from snapshot and log. A machine
that outlives its process has to keep the table with its state: it is a :class:`SessionKeeper`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgpack

from raftcore.core.types import Entry, EntryType
from raftcore.sessions.format import Reply, ReplyKind
from raftcore.sessions.results import ReplyTooLarge
from raftcore.sessions.table import Answer, Decision, Execute, PassOn, SessionTable
from raftcore.statemachine import AppliedPosition, SnapshotSource, StateMachine

#: Given the machine's results: the table's records to store (None: to delete), by key.
SessionWrites = Callable[[Sequence[Any]], Mapping[bytes, bytes | None]]


@runtime_checkable
class SessionKeeper(StateMachine, Protocol):
    """A state machine that outlives its process and keeps the session table beside its state.

    Records are opaque, under keys of at most 8 bytes. ``discard`` forgets them too.
    """

    def session_records(self) -> Mapping[bytes, bytes]:
        """All records kept; empty if the machine is. Read once at start."""
        ...

    def apply_with_sessions(
        self, entries: Sequence[Entry], position: AppliedPosition, session_writes: SessionWrites
    ) -> Sequence[Any]:
        """As ``apply``; and in the *same* atomic write, when all results are known, store what
        ``session_writes(results)`` gives. Called exactly once per call."""
        ...

    def install_with_sessions(
        self, records: Iterable[bytes], position: AppliedPosition, sessions: Mapping[bytes, bytes]
    ) -> None:
        """As ``install_snapshot``; and replace all kept records, in the same atomic write."""
        ...


def _unpack(raw: bytes) -> Any:
    return msgpack.unpackb(raw, strict_map_key=False)


class SessionStateMachine:
    """A state machine that applies each (client id, sequence) at most once.

    Args:
        inner: the machine that applies what gets through. It sees entries without their envelope;
            in place of what it is not to apply it sees a no-op of the same index.
        encode_reply: bytes of a result of ``inner``, for keeping. By default msgpack: None,
            booleans, numbers, strings, bytes, lists and dicts.
        decode_reply: the opposite. The first proposer too gets what comes out of it, so that first
            and later answers are equal.

    Raises:
        ValueError: ``inner`` holds state from an earlier run but no session table.
        LogCorruptError, FormatTooNewError: its table can not be read.
    """

    def __init__(
        self,
        inner: StateMachine,
        *,
        encode_reply: Callable[[Any], bytes] = msgpack.packb,
        decode_reply: Callable[[bytes], Any] = _unpack,
    ) -> None:
        self.inner = inner
        self._keeper = inner if isinstance(inner, SessionKeeper) else None
        self._encode_reply = encode_reply
        self._decode_reply = decode_reply
        self.table = self._load()

    def _load(self) -> SessionTable:
        if self.inner.last_applied().index == 0:
            return SessionTable()
        if self._keeper is None:
            raise ValueError(
                "a state machine that outlives its process must keep the sessions (SessionKeeper)"
            )
        return SessionTable.from_keyed_records(self._keeper.session_records())

    def last_applied(self) -> AppliedPosition:
        return self.inner.last_applied()

    def apply(self, entries: Sequence[Entry], position: AppliedPosition) -> list[Any]:
        """See ``StateMachine.apply``."""
        decisions = [self.table.decide(entry, place) for place, entry in enumerate(entries)]
        handed = [_handed(entry, d) for entry, d in zip(entries, decisions, strict=True)]
        if self._keeper is None:
            results = self._settle(decisions, self.inner.apply(handed, position))
            self.table.forget_changes()  # nobody stores them
            return results
        settled: list[list[Any]] = []

        def session_writes(results: Sequence[Any]) -> Mapping[bytes, bytes | None]:
            settled.append(self._settle(decisions, results))
            return self.table.take_changes()

        self._keeper.apply_with_sessions(handed, position, session_writes)
        assert len(settled) == 1, "the sessions are stored once with each apply"
        return settled[0]

    def _settle(self, decisions: Sequence[Decision], results: Sequence[Any]) -> list[Any]:
        """The result of each entry; replies of what was executed are kept."""
        settled: list[Any] = []
        for place, (decision, result) in enumerate(zip(decisions, results, strict=True)):
            if isinstance(decision, PassOn):
                settled.append(result)
            elif isinstance(decision, Execute):
                raw = self._encode_reply(result)
                settled.append(self._result_of(self.table.keep(decision, place, raw)))
            elif isinstance(decision, Answer):
                settled.append(self._result_of(decision.result))
            else:
                settled.append(settled[decision.place])
        return settled

    def _result_of(self, answer: object) -> Any:
        if not isinstance(answer, Reply):
            return answer
        if answer.kind is ReplyKind.TOO_LARGE:
            return ReplyTooLarge(answer.lost_bytes)
        return self._decode_reply(answer.data)

    def open_snapshot(self) -> SessionSnapshot:
        """The session table as of the last ``apply``, and then the inner machine's view."""
        return SessionSnapshot(list(self.table.records()), self.inner.open_snapshot())

    def install_snapshot(self, records: Iterable[bytes], position: AppliedPosition) -> None:
        """See ``StateMachine.install_snapshot``."""
        rest = iter(records)
        table = SessionTable.from_records(rest)
        if self._keeper is None:
            self.inner.install_snapshot(rest, position)
        else:
            self._keeper.install_with_sessions(rest, position, table.keyed_records())
        self.table = table

    def discard(self) -> None:
        self.inner.discard()
        self.table = SessionTable()

    def close(self) -> None:
        self.inner.close()


class SessionSnapshot:
    """A view of table and state of one moment. The table comes first, because it is small and the
    state can then be streamed."""

    def __init__(self, table: list[bytes], inner: SnapshotSource) -> None:
        self._table = table
        self._inner = inner

    @property
    def position(self) -> AppliedPosition:
        return self._inner.position

    def records(self) -> Iterator[bytes]:
        yield from self._table
        yield from self._inner.records()

    def close(self) -> None:
        self._inner.close()


def _handed(entry: Entry, decision: Decision) -> Entry:
    """What the inner machine sees: indexes stay contiguous whatever is kept from it."""
    if isinstance(decision, PassOn):
        return entry
    if isinstance(decision, Execute):
        return decision.entry
    return Entry(
        entry.index,
        entry.term,
        EntryType.NOOP,
        timestamp_ms=entry.timestamp_ms,
        feature_level=entry.feature_level,
    )
