"""Messages and effects of the core in a few words, for transcripts that people read.

A place in the log is ``index@term``; ``t3`` is a term, ``#7`` names a request within a leadership.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raftcore.core import effects as ef
from raftcore.core import messages as msg
from raftcore.core.membership import decode_configuration
from raftcore.core.status import Status
from raftcore.core.types import Configuration, Entry, EntryType, SnapshotMeta


def entry_words(entry: Entry) -> str:
    """Where it stands and what it is."""
    what = entry.data.decode("ascii", "replace")
    if entry.type is EntryType.NOOP:
        what = "no-op"
    elif entry.type is EntryType.CONFIGURATION:
        what = f"({configuration_words(decode_configuration(entry.data))})"
    place = f"{entry.index}@{entry.term}"
    return place if what == place else f"{place} {what}"


def _entries(entries: Sequence[Entry]) -> str:
    return ", ".join(map(entry_words, entries))


def configuration_words(c: Configuration) -> str:
    """Who may vote, who learns, and what is on its way."""
    words = [f"voters {' '.join(c.voters)}"]
    if c.old_voters:
        words.append(f"old voters {' '.join(c.old_voters)}")
    if c.learners:
        words.append(f"learners {' '.join(c.learners)}")
    if c.leaving:
        words.append(f"leaving {' '.join(c.leaving)}")
    if c.target is not None:
        words.append(f"wanted {' '.join(c.target.voters)}")
    if c.lease is not None:
        words.append(f"lease {c.lease.election_timeout_ms} ms")
    return ", ".join(words)


def message_words(m: msg.Message) -> str:
    """What a message says; who says it to whom is not part of it."""
    return _MESSAGES[type(m)](m)


def _vote_request(m: msg.VoteRequest) -> str:
    kind = "pre-vote?" if m.pre_vote else "vote?"
    asked = " (the leader asked for it)" if m.transfer else ""
    return f"{kind} t{m.term}, log ends at {m.last_index}@{m.last_term}{asked}"


def _vote_reply(m: msg.VoteReply) -> str:
    kind = "pre-vote" if m.pre_vote else "vote"
    return f"{kind} {'granted' if m.granted else 'refused'}, t{m.term}"


def _append(m: msg.AppendRequest) -> str:
    entries = _entries(m.entries) or "nothing"
    place = f"after {m.prev_index}@{m.prev_term}"
    return f"append t{m.term} #{m.sequence}: {place} {entries}; commit {m.commit}"


def _append_reply(m: msg.AppendReply) -> str:
    if m.success:
        return f"appended t{m.term} #{m.sequence}: match {m.match_index}{_health(m.health)}"
    at = f"{m.conflict_index}@{m.conflict_term}"
    return f"rejected t{m.term} #{m.sequence}: perhaps at {at}{_health(m.health)}"


def _health(health: msg.Health) -> str:
    words = ", in quarantine" if health.quarantined else ""
    if health.write_age_ms:
        words += f", a write is {health.write_age_ms} ms old"
    return words


def _round(counter: int) -> str:
    return f", round {counter}" if counter else ""


def _heartbeat(m: msg.Heartbeat) -> str:
    release = f", released at {m.release_index}" if m.release_index else ""
    return f"heartbeat t{m.term}: commit {m.commit}{_round(m.read_counter)}{release}"


def _heartbeat_reply(m: msg.HeartbeatReply) -> str:
    return f"alive t{m.term}{_round(m.read_counter)}{_health(m.health)}"


def _meta(meta: SnapshotMeta) -> str:
    return f"snapshot {meta.index}@{meta.term}"


def _chunk(m: msg.SnapshotChunk) -> str:
    end = m.offset + len(m.data)
    return f"{_meta(m.meta)} t{m.term} #{m.sequence}: bytes {m.offset}-{end} of {m.meta.size_bytes}"


def _snapshot_reply(m: msg.SnapshotReply) -> str:
    how_far = "installed" if m.installed else f"next byte {m.next_offset}"
    return f"snapshot {m.index} t{m.term} #{m.sequence}: {how_far}"


def _read_reply(m: msg.ReadIndexReply) -> str:
    position = "refused" if m.index < 0 else f"at {m.index}"
    return f"read {m.read_id} {position}, t{m.term}"


_MESSAGES: dict[type[msg.Message], Callable[[Any], str]] = {
    msg.VoteRequest: _vote_request,
    msg.VoteReply: _vote_reply,
    msg.AppendRequest: _append,
    msg.AppendReply: _append_reply,
    msg.Heartbeat: _heartbeat,
    msg.HeartbeatReply: _heartbeat_reply,
    msg.SnapshotChunk: _chunk,
    msg.SnapshotReply: _snapshot_reply,
    msg.TimeoutNow: lambda m: f"campaign now, t{m.term}",
    msg.ReadIndexRequest: lambda m: f"read {m.read_id}? t{m.term}",
    msg.ReadIndexReply: _read_reply,
}

# -- effects ------------------------------------------------------------------------------------


def effect_words(effect: ef.Effect) -> str:
    """What a node does; its name comes before it."""
    words = _EFFECTS.get(type(effect))
    return words(effect) if words is not None else repr(effect)


def _persist(e: ef.Persist) -> str:
    parts = []
    if e.hard_state is not None:
        vote = f", vote for {e.hard_state.vote}" if e.hard_state.vote else ""
        parts.append(f"t{e.hard_state.term}{vote}")
    if e.truncate_from is not None:
        parts.append(f"cut from {e.truncate_from}")
    if e.entries:
        parts.append(_entries(e.entries))
    return f"writes (w{e.mark.sequence}) {'; '.join(parts)}"


def _send(e: ef.Send) -> str:
    after = f"  [after w{e.after.sequence}]" if e.after is not None else ""
    return f"-> {e.to}: {message_words(e.message)}{after}"


def _leadership(e: ef.LeadershipChanged) -> str:
    role = e.role.replace("_", "-")
    of = f" of {e.leader_id}" if e.leader_id is not None and e.role == "follower" else ""
    return f"is {role}{of} in t{e.term}"


def _proposal_refused(e: ef.ProposalRefused) -> str:
    return f"refuses the proposal: {e.reason.value}{_hint(e.leader_id)}"


def _hint(leader: str | None) -> str:
    return f", ask {leader}" if leader is not None else ""


def _store(e: ef.StoreSnapshotChunk) -> str:
    return f"stores bytes {e.offset}-{e.offset + len(e.data)} of {_meta(e.meta)}"


def _transfer(e: ef.TransferFinished) -> str:
    outcome = "succeeded" if e.succeeded else "is of unknown outcome" if e.unknown else "failed"
    return f"transfer to {e.target} {outcome}: {e.detail}"


_EFFECTS: dict[type[ef.Effect], Callable[[Any], str]] = {
    ef.Persist: _persist,
    ef.Send: _send,
    ef.Apply: lambda e: f"applies {_entries(e.entries)}",
    ef.ReadEntries: lambda e: f"reads {e.first}-{e.last} from disk",
    ef.ReadReleased: lambda e: f"serves read {e.read_id} at {e.index}",
    ef.ReadRefused: lambda e: f"refuses read {e.read_id}: {e.reason.value}{_hint(e.leader_id)}",
    ef.ProposalAccepted: lambda e: f"accepts the proposal as {e.index}@{e.term}",
    ef.ProposalRefused: _proposal_refused,
    ef.LeadershipChanged: _leadership,
    ef.ConfigurationChanged: lambda e: f"has {configuration_words(e.configuration)} from {e.index}",
    ef.PeersChanged: lambda e: f"talks to {' '.join(m.node_id for m in e.peers)}",
    ef.MembershipFinished: lambda e: f"change is {e.outcome.value} at {e.version}: {e.detail}",
    ef.Removed: lambda e: f"is removed for good by {e.index}",
    ef.FollowerRegressed: lambda e: f"sees that {e.peer} lost what it had up to {e.match_index}",
    ef.GaveWay: lambda e: f"gives way: a write is {e.write_age_ms} ms old",
    ef.EndQuarantine: lambda e: f"leaves quarantine at {e.index}",
    ef.Compact: lambda e: f"deletes its log below {e.first_index}",
    ef.StoreSnapshotChunk: _store,
    ef.ReadSnapshotChunk: lambda e: f"reads {_meta(e.meta)} from byte {e.offset} for {e.to}",
    ef.TransferFinished: _transfer,
}

# -- states -------------------------------------------------------------------------------------


def status_words(s: Status) -> list[str]:
    """A node in one line, and each peer of a leader in one more."""
    known = f", follows {s.leader_id}" if s.leader_id and s.role == "follower" else ""
    lines = [
        f"{s.role.replace('_', '-')} t{s.term}{known}: log {s.first_index}-{s.last_index}, durable "
        f"{s.durable_index}, commit {s.commit_index}, applied {s.applied_index}"
    ]
    for p in s.peers:
        why = f"; {p.paused_because}" if p.paused_because else ""
        lines.append(
            f"  {p.node_id}: {p.state}, match {p.match_index}, next {p.next_index}, "
            f"{p.inflight_messages} in flight{why}"
        )
    return lines
