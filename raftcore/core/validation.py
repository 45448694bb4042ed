"""What no correct member can send, found before a message has any effect (rules 15, 29).

Peers are authenticated by the transport, but a node with a bug or a damaged disk must not be able
to spread the damage: each check here is one that the handlers rely on afterwards.
"""

from __future__ import annotations

from raftcore.core import messages as msg
from raftcore.core.errors import PeerViolationError
from raftcore.core.membership import check_configuration, decode_configuration
from raftcore.core.state import CoreState, Leadership
from raftcore.core.types import MAX_INDEX, MAX_TERM, MAX_TERM_JUMP, Configuration, EntryType


def check(s: CoreState, m: msg.Message) -> None:
    """Raises PeerViolationError if ``m`` is impossible. Changes nothing."""
    if m.sender == s.node_id:
        raise PeerViolationError("a message from ourselves came from outside")
    if not 0 <= m.term <= min(MAX_TERM, s.term + MAX_TERM_JUMP):
        raise PeerViolationError(f"{m.sender} is in term {m.term}, this node in {s.term}")
    if isinstance(m, msg.AppendRequest):
        _check_append(s, m)
    elif isinstance(m, msg.VoteRequest):
        _check_position(m, m.last_index, m.last_term)
    elif isinstance(m, msg.SnapshotChunk):
        _check_chunk(s, m)
    elif s.leadership is not None and m.term == s.term:
        _check_reply(s, s.leadership, m)


def _check_position(m: msg.Message, index: int, term: int) -> None:
    if not 0 <= index <= MAX_INDEX or not 0 <= term <= m.term:
        raise PeerViolationError(f"{m.sender} speaks of ({index}, {term}) in term {m.term}")


def _check_append(s: CoreState, m: msg.AppendRequest) -> None:
    """Entry k has index prev + 1 + k, and terms never fall."""
    _check_position(m, m.prev_index, m.prev_term)
    term = m.prev_term
    for index, entry in enumerate(m.entries, start=m.prev_index + 1):
        if entry.index != index or not term <= entry.term <= m.term:
            raise PeerViolationError(f"{m.sender} sent entries that do not continue each other")
        term = entry.term
        if entry.type is EntryType.CONFIGURATION:
            try:
                configuration = decode_configuration(entry.data)
            except ValueError as error:
                raise PeerViolationError(f"{m.sender} sent at {index} {error}") from error
            _check_configuration(s, m, configuration)


def _check_configuration(s: CoreState, m: msg.Message, configuration: Configuration) -> None:
    """A configuration makes sense, never changes its cluster, and somebody can vote under it."""
    try:
        check_configuration(configuration)
    except ValueError as error:
        raise PeerViolationError(f"{m.sender} sent {error}") from error
    if configuration.cluster_id != s.configuration.cluster_id:
        raise PeerViolationError(f"{m.sender} sent a configuration of {configuration.cluster_id!r}")
    if not configuration.voters:
        raise PeerViolationError(f"{m.sender} sent a configuration without a voter")


def _check_chunk(s: CoreState, m: msg.SnapshotChunk) -> None:
    _check_position(m, m.meta.index, m.meta.term)
    if m.offset < 0 or not m.data or m.offset + len(m.data) > m.meta.size_bytes:
        raise PeerViolationError(f"{m.sender} sent bytes that its snapshot does not have")
    _check_configuration(s, m, m.meta.configuration)


def _check_reply(s: CoreState, leadership: Leadership, m: msg.Message) -> None:
    """An answer to this leadership must answer something that it sent."""
    index = sequence = read_counter = 0
    if isinstance(m, msg.AppendReply):
        index, sequence, read_counter = m.match_index, m.sequence, m.read_counter
    elif isinstance(m, msg.SnapshotReply):
        index, sequence, read_counter = m.index, m.sequence, m.read_counter
    elif isinstance(m, msg.HeartbeatReply):
        read_counter = m.read_counter
    if sequence > leadership.sequence or read_counter > leadership.read_counter:
        raise PeerViolationError(f"{m.sender} answers what was never sent")
    if not 0 <= index <= s.log.last_index:
        raise PeerViolationError(f"{m.sender} claims {index}, the log ends at {s.log.last_index}")
