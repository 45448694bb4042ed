"""Client sessions: a command takes effect once, however often it is sent (thesis 6.3, rule 49).

:class:`SessionStateMachine` wraps the user's state machine; :class:`Session` is the client's side.
``docs/sessions.md`` has the contract.
"""

from raftcore.sessions.client import Proposer, Session, set_session_limits
from raftcore.sessions.format import (
    NO_SESSION,
    Kind,
    SessionLimits,
    close_command,
    keep_alive_command,
    limits_command,
    register_command,
    session_command,
)
from raftcore.sessions.machine import SessionKeeper, SessionStateMachine, SessionWrites
from raftcore.sessions.results import (
    LimitsSet,
    ReplyTooLarge,
    SessionAlive,
    SessionClosed,
    SessionOpened,
    SessionRefusal,
    SessionRefused,
)
from raftcore.sessions.table import SessionTable

__all__ = [
    "NO_SESSION",
    "Kind",
    "LimitsSet",
    "Proposer",
    "ReplyTooLarge",
    "Session",
    "SessionAlive",
    "SessionClosed",
    "SessionKeeper",
    "SessionLimits",
    "SessionOpened",
    "SessionRefusal",
    "SessionRefused",
    "SessionStateMachine",
    "SessionTable",
    "SessionWrites",
    "close_command",
    "keep_alive_command",
    "limits_command",
    "register_command",
    "session_command",
    "set_session_limits",
]
