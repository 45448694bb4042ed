"""What a leader knows of each peer: a machine of three states, and a window.

``match_index`` is proven by acknowledgements of this leadership and only grows (rule 22);
``next_index`` is a guess that may fall back, never to ``match_index`` or below.

* PROBE: one message at a time, to find where the logs agree.
* REPLICATE: messages are sent ahead of acknowledgements, up to the window in messages and bytes.
* SNAPSHOT: what the peer needs is compacted; it is fed the snapshot, one chunk at a time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from raftcore.core.messages import Health
from raftcore.core.types import SnapshotMeta


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class InFlight:
    """An append that was sent and not answered. ``sequence`` names it (rule 24)."""

    sequence: int
    prev_index: int
    last_index: int
    size_bytes: int
    proven: bool = False  #: its prev was acknowledged before it was sent
    sent_ns: int = 0


@dataclass(slots=True)
class SnapshotFeed:
    """Where the transfer of ``meta`` to a peer stands. ``waiting_since_ns`` None: send next.

    ``sequence`` names the last chunk that was sent: answers to earlier ones, of which a slow link
    may bring many, must not set off another chunk each.
    """

    meta: SnapshotMeta
    offset: int = 0
    waiting_since_ns: int | None = None
    sequence: int | None = None  #: of the chunk that is unanswered; None while one is being read
    complete: bool = False  #: that chunk is the last one
    resends: int = 0  #: of the chunk at ``offset``
    failures: int = 0  #: installs of the whole file that failed
    not_before_ns: int = 0  #: after a failure, when to start over
    due_ns: int | None = None  #: when the next chunk goes, if it only waits for its time

    def advance(self, offset: int) -> None:
        """The peer wants the bytes from ``offset`` on."""
        self.offset = offset
        self.resends = 0
        self.reopen()

    def reopen(self) -> None:
        """Nothing is under way any more: the chunk at ``offset`` may be sent now."""
        self.waiting_since_ns = self.due_ns = None
        self.sequence = None
        self.complete = False

    def start_over(self, not_before_ns: int) -> None:
        """All of it was sent and the peer could not use it: the same again, but not at once."""
        self.failures += 1
        self.not_before_ns = not_before_ns
        self.advance(0)


@dataclass(slots=True)
class Progress:
    """One peer, seen by the leader."""

    next_index: int
    last_contact_ns: int
    state: ProgressState = ProgressState.PROBE
    match_index: int = 0
    read_counter: int = 0
    inflight: deque[InFlight] = field(default_factory=deque)
    inflight_bytes: int = 0
    reading: int | None = None  #: request id of entries being read from storage for this peer
    feed: SnapshotFeed | None = None
    sent_commit: int = 0
    asked: int = 0  #: sequence of the newest empty append sent to find out what was lost
    asked_ns: int = 0
    #: answers to what was sent before are those of somebody else, who had its id (rule 24)
    after_sequence: int = -1
    #: the same of heartbeats: the newest read counter that was sent before
    after_counter: int = -1
    #: it rejected what it had acknowledged: it lost data, and counts for nothing any more
    regressed: bool = False
    #: what its newest reply said of it, and when that came
    health: Health = field(default_factory=Health)
    health_ns: int | None = None
    #: snapshots that were sent whole and could not be installed, since the last that was
    failed_installs: int = 0
    #: no snapshot chunk before this, by the limit on their rate
    paced_until_ns: int = 0

    @property
    def feature_level(self) -> int:
        """The newest level that it knows, as it said last; 0: nothing yet."""
        return 0 if self.health_ns is None else self.health.feature_level

    @property
    def counts(self) -> bool:
        """Whether its word counts towards quorums of any kind (D3)."""
        return not self.regressed and not self.health.quarantined

    @property
    def counted_match(self) -> int:
        """What counts towards a quorum."""
        return self.match_index if self.counts else 0

    def restart(self, sequence: int, counter: int) -> None:
        """It came back in quarantine: what it acknowledged before proves nothing any more, nor do
        answers under way to requests up to ``sequence`` and heartbeats up to ``counter``."""
        self.state = ProgressState.PROBE
        self._clear()
        self.match_index = self.sent_commit = 0
        self.after_sequence, self.after_counter = sequence, counter
        self.regressed = False

    def become_probe(self) -> None:
        self.state = ProgressState.PROBE
        self.next_index = self.match_index + 1
        self._clear()

    def become_replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.next_index = self.match_index + 1
        self._clear()

    def become_snapshot(self, meta: SnapshotMeta) -> None:
        self.state = ProgressState.SNAPSHOT
        self._clear()
        self.feed = SnapshotFeed(meta)

    def _clear(self) -> None:
        self.inflight.clear()
        self.inflight_bytes = 0
        self.reading = None
        self.feed = None

    def sent(self, message: InFlight) -> None:
        self.inflight.append(message)
        self.inflight_bytes += message.size_bytes

    def forget_through(self, sequence: int) -> None:
        """Answers come in the order of requests: everything up to this one is settled or lost."""
        while self.inflight and self.inflight[0].sequence <= sequence:
            self.inflight_bytes -= self.inflight.popleft().size_bytes

    def find(self, sequence: int) -> InFlight | None:
        for message in self.inflight:
            if message.sequence == sequence:
                return message
        return None

    @property
    def ask_outstanding(self) -> bool:
        """Whether the answer to the newest question may still come."""
        return bool(self.inflight) and self.inflight[0].sequence <= self.asked

    def window_open(self, max_messages: int, max_bytes: int) -> bool:
        return len(self.inflight) < max_messages and self.inflight_bytes < max_bytes

    def acknowledge(self, match_index: int) -> bool:
        """A positive answer; whether ``match_index`` grew."""
        if match_index <= self.match_index:
            return False
        self.match_index = match_index
        self.next_index = max(self.next_index, match_index + 1)
        return True

    def backtrack(self, next_index: int) -> None:
        """A rejection: probe from ``next_index``, but never at or below what is proven."""
        self.state = ProgressState.PROBE
        self._clear()
        self.next_index = max(min(next_index, self.next_index), self.match_index + 1)
