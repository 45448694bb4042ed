"""Bytes of sessions: the envelope of a session command, and the table's records.

All numbers are big-endian. An entry with a ``client_id`` is a session command and its data is an
envelope::

    u8 format version (1)   u8 kind   u64 first outstanding   payload

The first record of a table is its header, the others are one session each, the least recently
active first::

    8 bytes magic   u8 format version (1)   u64 clock   limits   u32 number of sessions
    u8 format version (1)   u64 id   u64 active index   u64 active ms   u64 first outstanding
        u32 number of replies, then of each: u64 sequence   u8 kind   u32 length   bytes

An envelope of another version is *refused*, not fatal: one stray proposal must not stop a cluster.
A later version may only be written into entries of a higher feature level, so that the members of
a cluster never judge the same entry differently.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from raftcore.errors import FormatTooNewError, LogCorruptError

SESSION_FORMAT: Final = 1
MAGIC: Final = b"raftsess"
#: The ``client_id`` of commands that belong to no session: registering, and setting limits.
NO_SESSION: Final = bytes(8)

_ENVELOPE = struct.Struct(">BBQ")
_LIMITS = struct.Struct(">IQII")
_HEADER = struct.Struct(">8sBQIQIII")
_SESSION = struct.Struct(">BQQQQI")
_REPLY = struct.Struct(">QBI")
_U64 = struct.Struct(">Q")

MAX_SESSIONS: Final = 1 << 16
MAX_WINDOW: Final = 1 << 12
#: A session is one record of a snapshot, which may be a few MiB.
MAX_SESSION_BYTES: Final = 1 << 22
MAX_TABLE_BYTES: Final = 1 << 30
MAX_TIMEOUT_MS: Final = 366 * 24 * 60 * 60 * 1000


class Kind(IntEnum):
    """What a session command asks for."""

    COMMAND = 0
    REGISTER = 1
    KEEP_ALIVE = 2
    CLOSE = 3
    LIMITS = 4


_KINDS = tuple(Kind)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of the table. They are replicated state, changed by a command: were they a setting of
    each node, two nodes could forget differently.

    Args:
        max_sessions: one more and the least recently active one ends.
        timeout_ms: a session ends after so much replicated time without a command.
        window: replies kept per session; how far a sequence may be ahead of the first outstanding.
        reply_bytes: the largest reply that is kept.
    """

    max_sessions: int = 1024
    timeout_ms: int = 60 * 60 * 1000
    window: int = 64
    reply_bytes: int = 1024

    def __post_init__(self) -> None:
        session_bytes = self.window * self.reply_bytes
        if not (
            0 < self.max_sessions <= MAX_SESSIONS
            and 0 < self.timeout_ms <= MAX_TIMEOUT_MS
            and 0 < self.window <= MAX_WINDOW
            and self.reply_bytes >= 0
            and session_bytes <= MAX_SESSION_BYTES
            and session_bytes * self.max_sessions <= MAX_TABLE_BYTES
        ):
            raise ValueError(f"not acceptable as limits of sessions: {self}")

    def as_tuple(self) -> tuple[int, int, int, int]:
        return self.max_sessions, self.timeout_ms, self.window, self.reply_bytes


# -- commands -------------------------------------------------------------------------------------


class Envelope(NamedTuple):
    """A session command, taken apart."""

    kind: Kind
    first_outstanding: int
    payload: bytes


def session_command(payload: bytes, first_outstanding: int) -> bytes:
    """``payload`` as a command of a session; propose it with the session's id and a sequence.

    Args:
        payload: what the wrapped machine is to apply.
        first_outstanding: the lowest sequence (they begin at 1) whose reply is still wanted. All
            lower ones are forgotten, and never executed later.
    """
    return _ENVELOPE.pack(SESSION_FORMAT, Kind.COMMAND, first_outstanding) + payload


def register_command() -> bytes:
    """Propose with :data:`NO_SESSION` and sequence 0; the result is a ``SessionOpened``."""
    return _ENVELOPE.pack(SESSION_FORMAT, Kind.REGISTER, 0)


def keep_alive_command(first_outstanding: int) -> bytes:
    """Propose with the session's id and sequence 0; the result is a ``SessionAlive``."""
    return _ENVELOPE.pack(SESSION_FORMAT, Kind.KEEP_ALIVE, first_outstanding)


def close_command() -> bytes:
    """Propose with the session's id and sequence 0; the result is a ``SessionClosed``."""
    return _ENVELOPE.pack(SESSION_FORMAT, Kind.CLOSE, 0)


def limits_command(limits: SessionLimits) -> bytes:
    """Propose with :data:`NO_SESSION` and sequence 0; the result is a ``LimitsSet``."""
    return _ENVELOPE.pack(SESSION_FORMAT, Kind.LIMITS, 0) + _LIMITS.pack(*limits.as_tuple())


def open_envelope(raw: bytes) -> Envelope | None:
    """The command in ``raw``, or None if it is none of this format."""
    if len(raw) < _ENVELOPE.size:
        return None
    version, kind, first_outstanding = _ENVELOPE.unpack_from(raw)
    if version != SESSION_FORMAT or kind >= len(_KINDS):
        return None
    return Envelope(_KINDS[kind], first_outstanding, raw[_ENVELOPE.size :])


def open_limits(payload: bytes) -> SessionLimits | None:
    """The limits in a LIMITS command, or None if they are not acceptable."""
    try:
        return SessionLimits(*_LIMITS.unpack(payload))
    except (struct.error, ValueError):
        return None


def session_id(number: int) -> bytes:
    """The ``client_id`` of the session that was registered at log index ``number``."""
    return _U64.pack(number)


def session_number(client_id: bytes) -> int | None:
    """The opposite of :func:`session_id`; None if it is no session's id."""
    return _U64.unpack(client_id)[0] if len(client_id) == _U64.size else None


# -- records --------------------------------------------------------------------------------------


class ReplyKind(IntEnum):
    KEPT = 0
    TOO_LARGE = 1  #: the bytes are the size that it had


class Reply(NamedTuple):
    """The remembered outcome of one command."""

    kind: ReplyKind
    data: bytes

    @classmethod
    def of(cls, data: bytes, limit_bytes: int) -> Reply:
        """What is kept of a reply of these bytes."""
        if len(data) <= limit_bytes:
            return cls(ReplyKind.KEPT, data)
        return cls(ReplyKind.TOO_LARGE, _U64.pack(len(data)))

    @property
    def lost_bytes(self) -> int:
        """How large a reply that was not kept had been."""
        size: int = _U64.unpack(self.data)[0]
        return size


@dataclass(slots=True)
class SessionState:
    """What is remembered of one session. ``first_outstanding`` only grows; a sequence at or above
    it was executed if and only if it is in ``replies``.

    While a batch is decided, ``replies`` holds the place in the batch of what is executed in it.
    """

    number: int
    active_index: int
    active_ms: int
    first_outstanding: int = 1
    replies: dict[int, Reply | int] = field(default_factory=dict)


class Header(NamedTuple):
    """The part of a table that belongs to no session."""

    clock_ms: int
    limits: SessionLimits
    sessions: int


def encode_header(header: Header) -> bytes:
    limits = header.limits.as_tuple()
    return _HEADER.pack(MAGIC, SESSION_FORMAT, header.clock_ms, *limits, header.sessions)


def decode_header(raw: bytes) -> Header:
    """The header in a record.

    Raises:
        FormatTooNewError: a later release wrote it.
        LogCorruptError: it is no header; the state was perhaps made without sessions.
    """
    if raw[: len(MAGIC)] != MAGIC:
        raise LogCorruptError("the state holds no session table")
    _check_version(raw[len(MAGIC) : len(MAGIC) + 1])
    try:
        _, _, clock_ms, *limits, sessions = _HEADER.unpack(raw)
        return Header(clock_ms, SessionLimits(*limits), sessions)
    except (struct.error, ValueError) as error:
        raise LogCorruptError("the header of the session table is damaged") from error


def encode_session(state: SessionState) -> bytes:
    """The record of one session; of a settled one, in which nothing is being executed."""
    parts = [
        _SESSION.pack(
            SESSION_FORMAT,
            state.number,
            state.active_index,
            state.active_ms,
            state.first_outstanding,
            len(state.replies),
        )
    ]
    for sequence, reply in sorted(state.replies.items()):
        assert isinstance(reply, Reply), "a session is recorded between batches"
        parts.append(_REPLY.pack(sequence, reply.kind, len(reply.data)) + reply.data)
    return b"".join(parts)


def decode_session(raw: bytes) -> SessionState:
    """The session in a record; the errors of :func:`decode_header`."""
    _check_version(raw[:1])
    try:
        _, number, active_index, active_ms, first_outstanding, count = _SESSION.unpack_from(raw)
        state = SessionState(number, active_index, active_ms, first_outstanding)
        offset = _SESSION.size
        for _ in range(count):
            sequence, kind, size = _REPLY.unpack_from(raw, offset)
            offset += _REPLY.size
            data = raw[offset : offset + size]
            offset += size
            state.replies[sequence] = Reply(ReplyKind(kind), data)
    except (struct.error, ValueError) as error:
        raise LogCorruptError("the record of a session is damaged") from error
    if offset != len(raw) or len(state.replies) != count:
        raise LogCorruptError("the record of a session has another length than it says")
    return state


def decode_sessions(records: Iterable[bytes]) -> list[SessionState]:
    """Sessions, the least recently active first, however they come."""
    return sorted(map(decode_session, records), key=lambda state: state.active_index)


def _check_version(raw: bytes) -> None:
    if raw and raw[0] > SESSION_FORMAT:
        raise FormatTooNewError(f"the session table has format {raw[0]}; this is {SESSION_FORMAT}")
    if raw != bytes([SESSION_FORMAT]):
        raise LogCorruptError("a record of the session table has no format version")
