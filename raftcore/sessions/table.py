"""The replicated session table: which sequences of which session were executed, and their replies.

It depends on nothing but the entries, in their order. Its clock is the largest stamp of a leader
seen so far, so that it never goes back, whoever leads; it only decides what is *forgotten*, never
what is executed twice: what is forgotten is refused from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from raftcore.core.types import Entry, EntryType
from raftcore.errors import LogCorruptError
from raftcore.sessions.format import (
    NO_SESSION,
    Envelope,
    Header,
    Kind,
    Reply,
    SessionLimits,
    SessionState,
    decode_header,
    decode_sessions,
    encode_header,
    encode_session,
    open_envelope,
    open_limits,
    session_id,
    session_number,
)
from raftcore.sessions.results import (
    LimitsSet,
    SessionAlive,
    SessionClosed,
    SessionOpened,
    SessionRefusal,
    SessionRefused,
)


@dataclass(frozen=True, slots=True)
class PassOn:
    """No session command: the machine applies the entry and its result is the result."""


@dataclass(frozen=True, slots=True)
class Execute:
    """The machine applies ``entry``; its reply is to be kept, if it has at most ``reply_bytes``:
    the limit in force at that entry, whichever batch it comes in."""

    entry: Entry
    state: SessionState
    reply_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The machine is not asked. ``result`` is final, or the kept :class:`Reply`."""

    result: object


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same command is executed at ``place`` of this very batch: its reply is the answer."""

    place: int


Decision = PassOn | Execute | Answer | Repeat


class SessionTable:
    """Decides what becomes of each entry; remembers replies; forgets by rule.

    A batch is decided entry by entry, applied by the machine, and settled; only then are records
    asked for.
    """

    def __init__(self) -> None:
        self.limits = SessionLimits()
        self.clock_ms = 0
        #: by number; the least recently active first
        self._sessions: dict[int, SessionState] = {}
        self._changed: set[int] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    # -- deciding -------------------------------------------------------------------------------

    def decide(self, entry: Entry, place: int) -> Decision:
        """What becomes of ``entry``, the one at ``place`` of its batch."""
        self.clock_ms = max(self.clock_ms, entry.timestamp_ms)
        self._expire()
        if entry.type is not EntryType.COMMAND or not entry.client_id:
            return PassOn()
        envelope = open_envelope(entry.data)
        if envelope is None:
            return _refused(SessionRefusal.MALFORMED)
        if (entry.sequence == 0) == (envelope.kind is Kind.COMMAND):
            return _refused(SessionRefusal.MALFORMED)
        if envelope.kind in (Kind.REGISTER, Kind.LIMITS):
            return self._decide_about_table(entry, envelope)
        return self._decide_in_session(entry, envelope, place)

    def _decide_about_table(self, entry: Entry, envelope: Envelope) -> Answer:
        if entry.client_id != NO_SESSION:
            return _refused(SessionRefusal.MALFORMED)
        if envelope.kind is Kind.REGISTER:
            return Answer(self._register(entry.index))
        limits = open_limits(envelope.payload)
        if limits is None:
            return _refused(SessionRefusal.MALFORMED)
        self.limits = limits
        self._expire()
        self._make_room(limits.max_sessions)
        return Answer(LimitsSet())

    def _register(self, index: int) -> SessionOpened:
        self._make_room(self.limits.max_sessions - 1)
        self._sessions[index] = SessionState(index, index, self.clock_ms)
        self._changed.add(index)
        return SessionOpened(session_id(index), self.limits.window, self.limits.timeout_ms)

    def _decide_in_session(self, entry: Entry, envelope: Envelope, place: int) -> Decision:
        number = session_number(entry.client_id)
        state = None if number is None else self._sessions.get(number)
        if envelope.kind is Kind.CLOSE:
            if state is not None:
                self._forget(state.number)
            return Answer(SessionClosed())
        if state is None:
            # Whether it was executed is not known any more, so it never is again.
            return _refused(SessionRefusal.EXPIRED)
        self._touch(state, entry.index)
        self._acknowledge(state, envelope.first_outstanding)
        if envelope.kind is Kind.KEEP_ALIVE:
            return Answer(SessionAlive())
        return self._decide_command(state, entry, envelope, place)

    def _decide_command(
        self, state: SessionState, entry: Entry, envelope: Envelope, place: int
    ) -> Decision:
        sequence = entry.sequence
        if sequence < state.first_outstanding:
            return _refused(SessionRefusal.ACKNOWLEDGED)
        known = state.replies.get(sequence)
        if known is not None:
            return Answer(known) if isinstance(known, Reply) else Repeat(known)
        if sequence >= state.first_outstanding + self.limits.window:
            return _refused(SessionRefusal.WINDOW_FULL)
        state.replies[sequence] = place
        return Execute(_unwrapped(entry, envelope), state, self.limits.reply_bytes)

    # -- remembering and forgetting -------------------------------------------------------------

    def keep(self, execute: Execute, place: int, raw: bytes) -> Reply:
        """The reply of what was executed at ``place``, as every repeat will get it."""
        state, sequence = execute.state, execute.entry.sequence
        reply = Reply.of(raw, execute.reply_bytes)
        if state.replies.get(sequence) == place:  # else it was acknowledged within the batch
            state.replies[sequence] = reply
        return reply

    def _touch(self, state: SessionState, index: int) -> None:
        del self._sessions[state.number]
        self._sessions[state.number] = state
        state.active_index, state.active_ms = index, self.clock_ms
        self._changed.add(state.number)

    @staticmethod
    def _acknowledge(state: SessionState, first_outstanding: int) -> None:
        if first_outstanding > state.first_outstanding:
            state.first_outstanding = first_outstanding
            for sequence in [s for s in state.replies if s < first_outstanding]:
                del state.replies[sequence]

    def _expire(self) -> None:
        """Sessions are in the order of their last activity and the clock never goes back, so the
        first that may stay ends the search."""
        due_ms = self.clock_ms - self.limits.timeout_ms
        while self._sessions:
            state = next(iter(self._sessions.values()))
            if state.active_ms > due_ms:
                return
            self._forget(state.number)

    def _make_room(self, at_most: int) -> None:
        while len(self._sessions) > at_most:
            self._forget(next(iter(self._sessions)))

    def _forget(self, number: int) -> None:
        del self._sessions[number]
        self._changed.add(number)

    # -- records --------------------------------------------------------------------------------

    def header(self) -> bytes:
        return encode_header(Header(self.clock_ms, self.limits, len(self._sessions)))

    def records(self) -> Iterator[bytes]:
        """The whole table: the header, then each session, in a fixed order."""
        yield self.header()
        for state in self._sessions.values():
            yield encode_session(state)

    def take_changes(self) -> dict[bytes, bytes | None]:
        """What differs since the last call, by key; None for what is gone. The header has the empty
        key and is always there, because the clock moves with every entry."""
        changes: dict[bytes, bytes | None] = {b"": self.header()}
        for number in sorted(self._changed):
            state = self._sessions.get(number)
            changes[session_id(number)] = None if state is None else encode_session(state)
        self.forget_changes()
        return changes

    def forget_changes(self) -> None:
        """What changed so far is stored with the rest, or nowhere."""
        self._changed.clear()

    def keyed_records(self) -> dict[bytes, bytes]:
        """The whole table by the keys of :meth:`take_changes`."""
        found = {session_id(n): encode_session(state) for n, state in self._sessions.items()}
        return {b"": self.header(), **found}

    @classmethod
    def from_records(cls, records: Iterable[bytes]) -> SessionTable:
        """A table from the first records of ``records``; what follows them is left.

        Raises:
            FormatTooNewError: a later release wrote them.
            LogCorruptError: they are no table, or an incomplete one.
        """
        source = iter(records)
        header = decode_header(next(source, b""))
        return cls._from(header, list(islice(source, header.sessions)))

    @classmethod
    def from_keyed_records(cls, records: Mapping[bytes, bytes]) -> SessionTable:
        """A table as a machine kept it; the errors of :meth:`from_records`."""
        header = decode_header(records.get(b"", b""))
        table = cls._from(header, [raw for key, raw in records.items() if key])
        if any(session_id(number) not in records for number in table._sessions):
            raise LogCorruptError("a session is kept under the key of another")
        return table

    @classmethod
    def _from(cls, header: Header, sessions: list[bytes]) -> SessionTable:
        table = cls()
        table.clock_ms, table.limits = header.clock_ms, header.limits
        table._sessions = {state.number: state for state in decode_sessions(sessions)}
        if len(table._sessions) != header.sessions:
            raise LogCorruptError(
                f"the session table says {header.sessions} sessions and has {len(table._sessions)}"
            )
        return table


def _unwrapped(entry: Entry, envelope: Envelope) -> Entry:
    return Entry(
        entry.index,
        entry.term,
        entry.type,
        envelope.payload,
        entry.client_id,
        entry.sequence,
        entry.timestamp_ms,
        entry.feature_level,
    )


def _refused(reason: SessionRefusal) -> Answer:
    return Answer(SessionRefused(reason))
