"""Counts, measures and traces what one driver does. Told by the driver, on the event loop.

Nothing here has a say in what the core does: the driver works the same without it. Only a tracer
that raises, which it must not, ends the node.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping

from raftcore.core import effects as fx
from raftcore.core.membership import stage_of
from raftcore.core.messages import AppendReply, AppendRequest, Message, VoteReply
from raftcore.core.types import Configuration, NodeId
from raftcore.metrics import MAX_LABELS, OTHER_LABEL, Counters, Measures
from raftcore.runtime.workers import Written
from raftcore.trace import Kind, TraceEvent, Tracer, Value

logger = logging.getLogger(__name__)

EventCallback = Callable[[TraceEvent], None]


class Observer:
    """What one node counts, measures and traces.

    Args:
        callbacks: called with each event, each on its own turn of the loop; may grow.
    """

    def __init__(
        self,
        node_id: NodeId,
        counters: Counters,
        clock_ns: Callable[[], int],
        tracer: Tracer | None,
        callbacks: list[EventCallback],
    ) -> None:
        self.counters = counters
        self.measures = Measures()
        self._node_id = node_id
        self._clock_ns = clock_ns
        self._tracer = tracer
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        self._events = 0
        self._role = "follower"
        self._term = 0
        self._leader: NodeId | None = None
        self._last_leader: NodeId | None = None
        self._commit = 0
        self._connected: frozenset[NodeId] = frozenset()
        #: one unanswered append per peer is timed: its sequence, and when it left
        self._timed: dict[NodeId, tuple[int, int]] = {}
        #: batches at the state machine: their last index, and when they were handed over
        self._applying: deque[tuple[int, int]] = deque()

    def trace(self, kind: Kind, **fields: Value) -> None:
        """Tell the tracer and the callbacks. Costs nothing if there are none."""
        if self._tracer is None and not self._callbacks:
            return
        self._events += 1
        event = TraceEvent(kind, self._node_id, self._events, self._clock_ns(), fields)
        if self._tracer is not None:
            self._tracer.event(event)
        for callback in self._callbacks:
            # On its own turn of the loop: a caller's defect is not the core's.
            self._loop.call_soon(callback, event)

    # -- life -----------------------------------------------------------------------------------

    def started(
        self, term: int, last_index: int, commit: int, rebuilt: bool, quarantine: str | None
    ) -> None:
        self._term, self._commit = term, commit
        self.trace(
            Kind.NODE_STARTED,
            term=term, last_index=last_index, commit_index=commit, rebuilt=rebuilt,
        )  # fmt: skip
        if quarantine is not None:
            self.trace(Kind.QUARANTINE_STARTED, reason=quarantine)

    # -- messages -------------------------------------------------------------------------------

    def sent(self, to: NodeId, message: Message) -> None:
        """A message was given to the transport."""
        if type(message) is AppendRequest:
            if message.entries:
                self.counters.appends_sent += 1
                if to not in self._timed:
                    self._timed[to] = (message.sequence, self._clock_ns())
        elif type(message) is VoteReply and message.granted and not message.pre_vote:
            self.counters.votes_granted += 1
            self.trace(Kind.VOTE_GRANTED, candidate=to, term=message.term)

    def heard(self, message: Message) -> None:
        """A message came in."""
        if type(message) is AppendReply:
            timed = self._timed.get(message.sender)
            if timed is not None and timed[0] <= message.sequence:
                del self._timed[message.sender]
                if timed[0] == message.sequence and message.success:
                    seconds = (self._clock_ns() - timed[1]) / 1e9
                    family = self.measures.labelled("peer_round_trip_seconds", message.sender)
                    family.observe(seconds)

    def peer_lost(self, peer: NodeId, *, member: bool) -> None:
        self._timed.pop(peer, None)
        self._connected -= {peer}
        lost_by = self.counters.peers_lost_by
        # Strangers choose their names, and members come and go: both must not add labels for ever.
        own_label = member and (peer in lost_by or len(lost_by) < MAX_LABELS)
        lost_by[peer if own_label else OTHER_LABEL] += 1
        self.trace(Kind.PEER_LOST, peer=peer)

    def connected(self, peers: frozenset[NodeId]) -> None:
        """Looked at now and then: a transport tells only of losses."""
        for peer in sorted(peers - self._connected):
            self.trace(Kind.PEER_CONNECTED, peer=peer)
        self._connected = peers

    # -- what the core asks for -----------------------------------------------------------------

    def stepped(self, commit: int, term: int) -> None:
        if commit > self._commit:
            self._commit = commit
            self.trace(Kind.COMMIT_ADVANCED, index=commit, term=term)

    def written(self, written: Written) -> None:
        counters, measures = self.counters, self.measures
        counters.writes += 1
        counters.entries_written += written.entries
        counters.bytes_written += written.size_bytes
        counters.write_seconds += written.duration_ns / 1e9
        counters.last_write_ms = written.duration_ns / 1e6
        measures["write_seconds"].observe(written.duration_ns / 1e9)
        measures["write_queue_seconds"].observe(written.waited_ns / 1e9)
        measures["write_entries"].observe(written.entries)
        measures["write_bytes"].observe(written.size_bytes)

    def took(self, name: str, began: Mapping[int, int] | Mapping[int | None, int]) -> None:
        """What began at those times, so many each, has ended now."""
        now_ns, histogram = self._clock_ns(), self.measures[name]
        for began_ns, times in began.items():
            if began_ns is not None:
                histogram.observe((now_ns - began_ns) / 1e9, times)

    def applying(self, last_index: int) -> None:
        self._applying.append((last_index, self._clock_ns()))

    def applied(self, last_index: int, entries: int, duration_ns: int) -> None:
        while self._applying and self._applying[0][0] <= last_index:
            self._applying.popleft()
        self.counters.entries_applied += entries
        self.counters.apply_batches += 1
        self.measures["apply_entries"].observe(entries)
        self.measures["apply_seconds"].observe(duration_ns / 1e9)

    def apply_age_ns(self) -> int:
        """How long the oldest batch at the state machine is there."""
        return self._clock_ns() - self._applying[0][1] if self._applying else 0

    def leadership(self, effect: fx.LeadershipChanged) -> None:
        logger.info(
            "node %s is %s in term %d, leader %s",
            self._node_id, effect.role, effect.term, effect.leader_id,
        )  # fmt: skip
        counters = self.counters
        if effect.term != self._term:
            self._term = effect.term
            self.trace(Kind.TERM_CHANGED, term=effect.term)
        if effect.role != self._role:
            self._role = effect.role
            self._timed.clear()  # sequences are those of one leadership
            counters.elections_started += effect.role == "candidate"
            counters.elections_won += effect.role == "leader"
            self.trace(Kind.ROLE_CHANGED, role=effect.role, term=effect.term)
        if effect.leader_id != self._leader:
            self._leader = effect.leader_id
            if effect.leader_id is None:
                self.trace(Kind.LEADER_LOST, term=effect.term)
            else:
                counters.leadership_changes += effect.leader_id != self._last_leader
                self._last_leader = effect.leader_id
                self.trace(Kind.LEADER_KNOWN, leader=effect.leader_id, term=effect.term)

    def configuration(self, configuration: Configuration, index: int) -> None:
        self.trace(
            Kind.CONFIGURATION_CHANGED,
            index=index,
            stage=stage_of(configuration),
            voters=list(configuration.voters),
            learners=list(configuration.learners),
        )

    def membership(self, effect: fx.MembershipFinished) -> None:
        logger.info(
            "change of members: %s, version %d: %s",
            effect.outcome.value, effect.version, effect.detail,
        )  # fmt: skip
        self.counters.membership_changes_by[effect.outcome.value] += 1
        self.trace(
            Kind.MEMBERSHIP_FINISHED,
            outcome=effect.outcome.value, version=effect.version, detail=effect.detail,
        )  # fmt: skip

    def transfer(self, effect: fx.TransferFinished) -> None:
        outcome = "unknown" if effect.unknown else "done" if effect.succeeded else "failed"
        self.counters.transfers_by[outcome] += 1
        self.trace(
            Kind.TRANSFER_FINISHED, target=effect.target, outcome=outcome, detail=effect.detail
        )

    # -- what an operator should see ------------------------------------------------------------

    def removed(self, detail: str) -> None:
        logger.warning("node %s was removed: %s", self._node_id, detail)
        self.trace(Kind.REMOVED, detail=detail)

    def follower_regressed(self, effect: fx.FollowerRegressed) -> None:
        logger.error(
            "%s denies entries up to %d, which it had acknowledged: it lost data",
            effect.peer, effect.match_index,
        )  # fmt: skip
        self.counters.followers_regressed += 1
        self.trace(Kind.FOLLOWER_REGRESSED, peer=effect.peer, match_index=effect.match_index)

    def gave_way(self, effect: fx.GaveWay) -> None:
        logger.error(
            "node %s gives way: its disk finished nothing for %d ms",
            self._node_id, effect.write_age_ms,
        )  # fmt: skip
        self.counters.gave_way += 1
        self.trace(Kind.GAVE_WAY, write_age_ms=effect.write_age_ms)

    def quarantine_ended(self, index: int) -> None:
        logger.warning("node %s holds everything again, up to %d", self._node_id, index)
        self.trace(Kind.QUARANTINE_ENDED, index=index)

    def peer_violation(self, error: Exception) -> None:
        logger.warning("dropped a message: %s", error)
        self.counters.peer_violations += 1
        self.trace(Kind.PEER_VIOLATION, detail=str(error))
