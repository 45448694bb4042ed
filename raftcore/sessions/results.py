"""What a session command gives to its proposer besides the machine's own replies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SessionRefusal(StrEnum):
    """Why a session command was not executed by this entry. The values are stable."""

    EXPIRED = "session_expired"  #: no such session (any more)
    ACKNOWLEDGED = "already_acknowledged"  #: the client said that it has this reply already
    WINDOW_FULL = "window_full"  #: too far ahead of what the client has acknowledged
    MALFORMED = "malformed"  #: not an envelope that this format knows


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """The entry changed nothing in the machine. An *earlier* entry of the same sequence may have:
    for EXPIRED and ACKNOWLEDGED nobody remembers any more."""

    reason: SessionRefusal


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A session was registered. ``session_id`` is the ``client_id`` of its commands."""

    session_id: bytes
    window: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class SessionAlive:
    """A keep-alive was taken."""


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The session is over; also said of one that was over already."""


@dataclass(frozen=True, slots=True)
class LimitsSet:
    """New limits are in force."""


@dataclass(frozen=True, slots=True)
class ReplyTooLarge:
    """The command *was* executed; its reply was too large to be kept.

    The first proposer gets this too: a repeat is answered as the first time, whatever happens.
    """

    size_bytes: int
