"""Messages: who may say what in which term, decided once for all of them.

What is impossible is refused before anything else; then terms are compared (thesis 3.3), and only
what belongs to the present term reaches the module that it is meant for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftcore.core import (
    election,
    health,
    reads,
    replication,
    snapshots,
    transfer,
    validation,
)
from raftcore.core import messages as msg
from raftcore.core.errors import InvariantError
from raftcore.core.events import MessageReceived
from raftcore.core.state import CoreState, Leadership, Role, WaitFor


def on_message(s: CoreState, event: MessageReceived) -> None:
    """Judge a message, compare the terms, and give it to whom it concerns."""
    m = event.message
    validation.check(s, m)
    if isinstance(m, msg.VoteRequest):
        _on_any_vote_request(s, m)
        return
    if isinstance(m, msg.VoteReply) and m.pre_vote and m.granted:
        election.on_vote_reply(s, m)
        return
    if m.term > s.term:
        leads = isinstance(m, msg.AppendRequest | msg.Heartbeat | msg.SnapshotChunk)
        election.become_follower(s, m.term, m.sender if leads else None)
    elif m.term < s.term:
        _answer_the_past(s, m)
        return
    _MESSAGES[type(m)](s, m)


def _on_any_vote_request(s: CoreState, m: msg.VoteRequest) -> None:
    if m.pre_vote:
        election.on_pre_vote_request(s, m)
        return
    if m.term > s.term:
        if election.is_sticky(s) and not m.transfer:
            # A leader is alive: not even the term is adopted (4.2.3, rule 11).
            election.refuse_vote(s, m)
            return
        election.become_follower(s, m.term, None)
    if m.term < s.term:
        election.refuse_vote(s, m)
    else:
        election.on_vote_request(s, m)


def _answer_the_past(s: CoreState, m: msg.Message) -> None:
    """A message of an earlier term changes nothing; a stale leader learns of the new term (8)."""
    if isinstance(m, msg.AppendRequest | msg.Heartbeat | msg.SnapshotChunk):
        reply = msg.HeartbeatReply(s.node_id, s.term, 0, health.own(s))
        s.send(m.sender, reply, WaitFor.HARD_STATE)
    elif isinstance(m, msg.ReadIndexRequest):
        refusal = msg.ReadIndexReply(s.node_id, s.term, m.read_id, -1)
        s.send(m.sender, refusal, WaitFor.HARD_STATE)


def _from_leader(s: CoreState, m: msg.Message) -> None:
    if s.role is Role.LEADER:
        raise InvariantError(f"{m.sender} leads term {m.term} too")  # rule 14
    if s.leader_id not in (None, m.sender) and s.leader_contact_ns is not None:
        raise InvariantError(f"{m.sender} and {s.leader_id} both lead term {m.term}")
    election.heard_from_leader(s, m.sender)


def _heard_from_peer(s: CoreState, leadership: Leadership, m: Any) -> None:
    progress = leadership.progress.get(m.sender)
    if progress is None:
        return
    health.note_reply(s, leadership, progress, m)
    if progress.counts:
        # Neither contact nor echoes of a peer that counts for nothing (D3).
        progress.last_contact_ns = s.now_ns
        progress.read_counter = max(progress.read_counter, m.read_counter)


def _answers_a_former_member(leadership: Leadership, m: Any) -> bool:
    """The request was sent before the peer came, or came back in quarantine: the answer is that of
    another incarnation, or of a run whose word does not hold any more."""
    progress = leadership.progress.get(m.sender)
    if progress is None:
        return False
    if isinstance(m, msg.HeartbeatReply):
        return m.read_counter <= progress.after_counter
    return bool(m.sequence <= progress.after_sequence)


def _leaders(
    handle: Callable[[CoreState, Any], None],
) -> Callable[[CoreState, Any], None]:
    """For messages that only the term's leader sends."""

    def handler(s: CoreState, m: Any) -> None:
        _from_leader(s, m)
        handle(s, m)

    return handler


def _replies(
    handle: Callable[[CoreState, Leadership, Any], None],
) -> Callable[[CoreState, Any], None]:
    """For answers to a leader; they mean nothing to anybody else."""

    def handler(s: CoreState, m: Any) -> None:
        leadership = s.leadership
        if leadership is not None and not _answers_a_former_member(leadership, m):
            _heard_from_peer(s, leadership, m)
            handle(s, leadership, m)

    return handler


def _on_snapshot_reply(s: CoreState, leadership: Leadership, m: msg.SnapshotReply) -> None:
    progress = leadership.progress.get(m.sender)
    if progress is not None:
        snapshots.on_reply(s, progress, m)
        # The next chunk, or the entries after the snapshot, without waiting for a heartbeat.
        replication.send_append(s, leadership, m.sender, progress)


def _on_timeout_now(s: CoreState, _m: msg.TimeoutNow) -> None:
    transfer.on_timeout_now(s)


_MESSAGES: dict[type[msg.Message], Callable[[CoreState, Any], None]] = {
    msg.VoteReply: election.on_vote_reply,
    msg.AppendRequest: _leaders(replication.on_append_request),
    msg.AppendReply: _replies(replication.on_append_reply),
    msg.Heartbeat: _leaders(replication.on_heartbeat),
    msg.HeartbeatReply: _replies(replication.on_heartbeat_reply),
    msg.SnapshotChunk: _leaders(snapshots.on_chunk),
    msg.SnapshotReply: _replies(_on_snapshot_reply),
    msg.TimeoutNow: _leaders(_on_timeout_now),
    msg.ReadIndexRequest: reads.on_read_index_request,
    msg.ReadIndexReply: reads.on_read_index_reply,
}
