"""The ordering monitor: nothing leaves a socket before its durable write (rules O1, O2, O4).

It does not trust the node. What the node says is decoded from the bytes it hands to the kernel;
what it holds durably is read from a copy of its log that only ever received synced bytes. The
thread that sends stands still while the two are compared.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jepsen_like.durability.durable_log import LogState
from jepsen_like.durability.ptrace import Completion
from jepsen_like.durability.streams import InboundStream, PeerStream, Reply, Said, Stream, classify
from raftcore.core.messages import (
    AppendReply,
    AppendRequest,
    Message,
    SnapshotReply,
    VoteReply,
    VoteRequest,
)
from raftcore.transport.handshake import HandshakeRefusedError
from raftcore.transport.wire import WireError

#: Kinds of promise, as they are counted.
VOTE_REQUEST = "vote_request"
VOTE = "vote"
APPEND_ACK = "append_ack"
SNAPSHOT_ACK = "snapshot_ack"
CLIENT_REPLY = "client_reply"
TERM = "term"
#: What proves something; a term alone is stated by every heartbeat.
PROMISES = (VOTE_REQUEST, VOTE, APPEND_ACK, SNAPSHOT_ACK, CLIENT_REPLY)

#: Violations kept in full; the rest is only counted.
MAX_VIOLATIONS = 100
MAX_STREAMS = 4096
#: Append requests remembered until they are acknowledged.
MAX_REQUESTS = 4096

Record = Callable[[Mapping[str, object]], None]


class Log(Protocol):
    """Where the monitor learns what is durable."""

    def state(self) -> LogState: ...

    def term_at(self, index: int) -> int | None: ...


@dataclass(frozen=True, slots=True)
class RaftOrdering:
    """Which rules to check on a node.

    Args:
        log: the log's directory, relative to the watched one.
        revision_base: what a response's ``X-Guardian-Revision`` exceeds the Raft index by, to check
            that no client is answered before its write is durable *on this node*. None switches it
            off, as is right in a cluster: a follower may pass on the leader's answer.
        require: kinds of promise (``append_ack`` ...) that must have been seen at least once.
    """

    log: str = "log"
    revision_base: int | None = None
    require: Sequence[str] = ()

    def __post_init__(self) -> None:
        unknown = set(self.require) - set(PROMISES)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are not among {PROMISES}")


@dataclass(slots=True)
class _Judged:
    """A promise and what is wrong with it (empty if nothing)."""

    kind: str
    end: int
    wrong: str


@dataclass(frozen=True, slots=True)
class _Request:
    """What an append request asked to hold: the terms from ``prev_index`` on."""

    prev_index: int
    terms: tuple[int, ...]

    @property
    def last_index(self) -> int:
        return self.prev_index + len(self.terms) - 1


class OrderingMonitor:
    """Judges each promise at the moment it is handed to the kernel.

    Args:
        rules: what to check.
        log: the durable log of the node.
        record: is given one mapping per promise, for the event file.
    """

    def __init__(
        self,
        rules: RaftOrdering,
        log: Log,
        record: Record | None = None,
    ) -> None:
        self._rules = rules
        self._log = log
        self._record = record
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self._inbound: OrderedDict[str, InboundStream] = OrderedDict()
        self._requests: OrderedDict[tuple[str, int, int], _Request] = OrderedDict()
        self._handed_over: list[list[_Judged]] = []
        self.checked: Counter[str] = Counter()
        self.violations: list[str] = []
        self.violation_count = 0

    # -- the socket side ----------------------------------------------------------------------

    def sending(self, stream: str, data: bytes) -> Completion:
        found = self._streams.get(stream)
        if found is None:
            found = classify(data)
            self._streams[stream] = found
            while len(self._streams) > MAX_STREAMS:
                name, dropped = self._streams.popitem(last=False)
                if isinstance(dropped, PeerStream):
                    self._violate(f"{name}: too many streams to follow this one any longer")
        else:
            self._streams.move_to_end(stream)
        try:
            judged = [self._judge(stream, said) for said in found.parse(data)]
        except (WireError, HandshakeRefusedError) as error:
            judged = []
            self._violate(f"{stream}: what the node sends does not decode: {error}")
        self._handed_over.append(judged)
        return lambda result: self._sent(found, data, judged, result)

    def received(self, stream: str, data: bytes) -> None:
        inbound = self._inbound.setdefault(stream, InboundStream())
        for message in inbound.feed(data):
            if isinstance(message, AppendRequest):
                terms = (message.prev_term, *(entry.term for entry in message.entries))
                key = (message.sender, message.term, message.sequence)
                self._requests[key] = _Request(message.prev_index, terms)
        _bound(self._inbound, 2 * MAX_STREAMS)
        _bound(self._requests, MAX_REQUESTS)

    def bypassed(self, stream: str, call: str) -> None:
        """Bytes leave unseen: fine for a page of a website, a fault between peers."""
        found = self._streams.get(stream)
        if found is not None and isinstance(found, PeerStream):
            self._violate(f"{stream}: bytes to a peer leave through {call}, unseen")

    def _sent(self, stream: Stream, data: bytes, judged: list[_Judged], result: int) -> None:
        self._handed_over = [other for other in self._handed_over if other is not judged]
        if result <= 0:
            return
        stream.sent(data[:result])
        for promise in judged:
            if promise.end <= result:
                self._count(promise)

    def _count(self, promise: _Judged) -> None:
        self.checked[promise.kind] += 1
        if promise.wrong:
            self._violate(f"{promise.kind}: {promise.wrong}")
        if self._record is not None:
            self._record({"event": promise.kind, "wrong": promise.wrong})

    def _violate(self, text: str) -> None:
        self.violation_count += 1
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"{time.monotonic_ns()} {text}")

    # -- the rules ----------------------------------------------------------------------------

    def _judge(self, stream: str, said: Said) -> _Judged:
        state, what = self._log.state(), said.what
        if isinstance(what, Reply):
            kind, wrong = self._judge_reply(what, state)
        else:
            kind, wrong = self._judge_message(stream, what, state)
        if wrong and state.missing:
            wrong += f" ({state.missing})"
        return _Judged(kind, said.end, wrong)

    def _judge_reply(self, reply: Reply, state: LogState) -> tuple[str, str]:
        """O4: a client hears of a write only when it is durable."""
        base = self._rules.revision_base
        if base is None:
            return "unjudged", ""
        index = reply.revision - base
        held = max(state.last_index, state.snapshot_index)
        wrong = f"index {index} is answered, {held} is durable" if index > held else ""
        return CLIENT_REPLY, wrong

    def _judge_message(self, stream: str, said: Message, state: LogState) -> tuple[str, str]:
        if isinstance(said, VoteRequest | VoteReply) and said.pre_vote:
            return "unjudged", ""  # promises nothing and changes nothing (thesis 9.6)
        if said.term > state.term:
            return self._kind(said), f"term {said.term} is said, {state.term} is durable"
        kind = self._kind(said)
        if kind == VOTE:
            return kind, self._judge_vote(said, state, self._peer(stream))
        if kind == VOTE_REQUEST:
            return kind, self._judge_vote(said, state, said.sender)
        if isinstance(said, AppendReply) and kind == APPEND_ACK:
            return kind, self._judge_ack(said, state, self._peer(stream))
        held = max(state.last_index, state.snapshot_index)
        if isinstance(said, SnapshotReply) and kind == SNAPSHOT_ACK and said.index > held:
            return kind, f"snapshot {said.index} is acknowledged, {held} is durable"
        return kind, ""

    def _judge_ack(self, said: AppendReply, state: LogState, leader: str) -> str:
        """O2, and that the durable entry is the one that was sent, not an older one (O3)."""
        held, index = max(state.last_index, state.snapshot_index), said.match_index
        if index > held:
            return f"index {index} is acknowledged, {held} is durable"
        request = self._requests.get((leader, said.term, said.sequence))
        if request is None:
            return ""
        if index > request.last_index:
            return f"index {index} is acknowledged, the request ended at {request.last_index}"
        if index < request.prev_index or index <= max(state.before_index, state.snapshot_index):
            return ""  # its entry has been compacted, or was settled by an earlier request
        sent = request.terms[index - request.prev_index]
        durable = self._log.term_at(index)
        if durable != sent:
            return f"index {index} of term {sent} is acknowledged, durable is one of {durable}"
        return ""

    def _judge_vote(self, said: Message, state: LogState, candidate: str) -> str:
        """O1 and I2. A candidate's own request is its vote for itself."""
        if said.term < state.term:
            return ""  # it was durable before the term that is durable now
        if state.vote is None:
            return f"a vote in term {said.term} is given, none is durable"
        if candidate and candidate != state.vote:
            return f"a vote in term {said.term} for {candidate}; durable is one for {state.vote}"
        return ""

    def _kind(self, said: Message) -> str:
        if isinstance(said, VoteRequest):
            return VOTE_REQUEST
        if isinstance(said, VoteReply) and said.granted:
            return VOTE
        if isinstance(said, AppendReply) and said.success:
            return APPEND_ACK
        if isinstance(said, SnapshotReply) and said.installed:
            return SNAPSHOT_ACK
        return TERM

    def _peer(self, stream: str) -> str:
        """Who is at the other end, as it introduced itself; empty if it has not."""
        inbound = self._inbound.get(stream)
        return "" if inbound is None else inbound.peer

    # -- the verdict --------------------------------------------------------------------------

    def finish(self) -> None:
        """The node is dead. What it was handing to the kernel then may have gone out: it counts."""
        for judged in self._handed_over:
            for promise in judged:
                self._count(promise)
        self._handed_over = []

    def missing(self) -> list[str]:
        """What was not seen although the run is worth nothing without it."""
        missing = [f"no {kind} was seen" for kind in self._rules.require if not self.checked[kind]]
        if not any(self.checked[kind] for kind in PROMISES):
            missing.append("no promise was seen at all: a monitor that saw nothing proves nothing")
        return missing


def _bound(mapping: OrderedDict[Any, Any], limit: int) -> None:
    while len(mapping) > limit:
        mapping.popitem(last=False)
