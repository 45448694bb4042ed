"""What happened to a node, as structured events with a stable schema.

The schema is the table :data:`EVENTS`; its version is :data:`TRACE_VERSION`. Within a version kinds
and fields may be added, never renamed, removed or given another meaning. Events come from the
driver, by what the core asked it to do; the core itself knows nothing of them.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from queue import SimpleQueue
from typing import Protocol, TextIO

TRACE_VERSION = 1

Value = bool | int | str | None | Sequence[str]


class Kind(StrEnum):
    """What happened."""

    NODE_STARTED = "node_started"
    NODE_STOPPED = "node_stopped"
    ROLE_CHANGED = "role_changed"
    TERM_CHANGED = "term_changed"
    LEADER_KNOWN = "leader_known"
    LEADER_LOST = "leader_lost"
    VOTE_GRANTED = "vote_granted"
    COMMIT_ADVANCED = "commit_advanced"
    CONFIGURATION_CHANGED = "configuration_changed"
    MEMBERSHIP_FINISHED = "membership_finished"
    REMOVED = "removed"
    JOINER_ASKED = "joiner_asked"
    TRANSFER_STARTED = "transfer_started"
    TRANSFER_FINISHED = "transfer_finished"
    SNAPSHOT_STARTED = "snapshot_started"
    SNAPSHOT_TAKEN = "snapshot_taken"
    SNAPSHOT_ABANDONED = "snapshot_abandoned"
    SNAPSHOT_SENDING = "snapshot_sending"
    SNAPSHOT_RECEIVING = "snapshot_receiving"
    SNAPSHOT_DAMAGED = "snapshot_damaged"
    SNAPSHOT_INSTALLED = "snapshot_installed"
    LOG_CUT = "log_cut"
    QUARANTINE_STARTED = "quarantine_started"
    QUARANTINE_ENDED = "quarantine_ended"
    GAVE_WAY = "gave_way"
    FOLLOWER_REGRESSED = "follower_regressed"
    DISK_FULL = "disk_full"
    NODE_FAILED = "node_failed"
    PEER_CONNECTED = "peer_connected"
    PEER_LOST = "peer_lost"
    PEER_VIOLATION = "peer_violation"
    SCRUB_FINISHED = "scrub_finished"


@dataclass(frozen=True, slots=True)
class Schema:
    """The fields of one kind, in order, with their types, and what the kind says."""

    help: str
    fields: tuple[tuple[str, str], ...] = ()


def _schema(text: str, **fields: str) -> Schema:
    return Schema(text, tuple(fields.items()))


#: The schema. ``int | null`` and the like are JSON types.
EVENTS: dict[Kind, Schema] = {
    Kind.NODE_STARTED: _schema(
        "The node recovered and takes part.",
        term="int", last_index="int", commit_index="int", rebuilt="bool",
    ),
    Kind.NODE_STOPPED: _schema("The node ended; why, if it failed.", failure="str | null"),
    Kind.ROLE_CHANGED: _schema("The role became another.", role="str", term="int"),
    Kind.TERM_CHANGED: _schema("The term grew.", term="int"),
    Kind.LEADER_KNOWN: _schema("A leader of this term is known.", leader="str", term="int"),
    Kind.LEADER_LOST: _schema("No leader is known any more.", term="int"),
    Kind.VOTE_GRANTED: _schema(
        "A vote left this node, after it was durable.", candidate="str", term="int"
    ),
    Kind.COMMIT_ADVANCED: _schema("The commit index grew.", index="int", term="int"),
    Kind.CONFIGURATION_CHANGED: _schema(
        "Another configuration is in force: `stable`, `staging` or `joint`.",
        index="int", stage="str", voters="list[str]", learners="list[str]",
    ),
    Kind.MEMBERSHIP_FINISHED: _schema(
        "A change of the members asked of this node ended.",
        outcome="str", version="int", detail="str",
    ),
    Kind.REMOVED: _schema("This node was removed from the cluster.", detail="str"),
    Kind.JOINER_ASKED: _schema(
        "A node asked to join.", joiner="str", address="str", voter="bool", admitted="bool"
    ),
    Kind.TRANSFER_STARTED: _schema("Leadership is to move.", target="str | null"),
    Kind.TRANSFER_FINISHED: _schema(
        "The transfer ended: `done`, `failed` or `unknown`.",
        target="str | null", outcome="str", detail="str",
    ),
    Kind.SNAPSHOT_STARTED: _schema("A snapshot is being taken.", index="int"),
    Kind.SNAPSHOT_TAKEN: _schema(
        "A snapshot is durable and pointed to.", index="int", bytes="int", duration_ms="int"
    ),
    Kind.SNAPSHOT_ABANDONED: _schema("A snapshot was given up.", reason="str"),
    Kind.SNAPSHOT_SENDING: _schema(
        "A peer is fed a snapshot from its beginning.", peer="str", index="int", bytes="int"
    ),
    Kind.SNAPSHOT_RECEIVING: _schema(
        "The first bytes of a leader's snapshot came.", index="int", bytes="int"
    ),
    Kind.SNAPSHOT_DAMAGED: _schema("A received snapshot does not verify.", index="int"),
    Kind.SNAPSHOT_INSTALLED: _schema(
        "Log and state now begin with a received snapshot.", index="int", bytes="int"
    ),
    Kind.LOG_CUT: _schema("Entries below this index are being deleted.", first_index="int"),
    Kind.QUARANTINE_STARTED: _schema(
        "This node lost something that it had said was durable (D3).", reason="str"
    ),
    Kind.QUARANTINE_ENDED: _schema("It holds everything up to there again.", index="int"),
    Kind.GAVE_WAY: _schema(
        "This node stopped leading because its disk hangs (rule 48).", write_age_ms="int"
    ),
    Kind.FOLLOWER_REGRESSED: _schema(
        "A peer denied what it had acknowledged (D3).", peer="str", match_index="int"
    ),
    Kind.DISK_FULL: _schema(
        "The disk is nearly full, or is not any more.", full="bool", free_bytes="int"
    ),
    Kind.NODE_FAILED: _schema("The first failure, which is final (rule 46).", error="str"),
    Kind.PEER_CONNECTED: _schema("A connection to a peer stands.", peer="str"),
    Kind.PEER_LOST: _schema("The connection to a peer broke.", peer="str"),
    Kind.PEER_VIOLATION: _schema("A message was impossible and was dropped.", detail="str"),
    Kind.SCRUB_FINISHED: _schema("The whole log was verified in the background.", entries="int"),
}  # fmt: skip

#: The fields that every line of a trace begins with.
COMMON_FIELDS = (
    ("v", "int", "Version of this schema."),
    ("node", "str", "The node that tells."),
    ("n", "int", "Number of the event in this run of the node, from 1."),
    ("t_ns", "int", "The node's monotonic clock in nanoseconds: only differences mean something."),
    ("event", "str", "The kind, from the table below."),
)


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event.

    ``number`` counts the events of one run of a node; ``fields`` are those of the schema.
    """

    kind: Kind
    node_id: str
    number: int
    time_ns: int
    fields: dict[str, Value]

    def to_json(self) -> str:
        """One line, without its end."""
        common = {
            "v": TRACE_VERSION,
            "node": self.node_id,
            "n": self.number,
            "t_ns": self.time_ns,
            "event": self.kind.value,
        }
        return json.dumps(common | self.fields, separators=(",", ":"))


class Tracer(Protocol):
    """Takes the events of a node, on its event loop's thread and in order. Must not block, and
    must not raise: what it raises ends the node."""

    def event(self, event: TraceEvent) -> None: ...


class MemoryTracer:
    """Keeps the newest events, and checks each against the schema.

    Args:
        limit: events kept.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.events: deque[TraceEvent] = deque(maxlen=limit)

    def event(self, event: TraceEvent) -> None:
        check(event)
        self.events.append(event)

    def of(self, *kinds: Kind) -> list[TraceEvent]:
        """The events of those kinds."""
        return [event for event in self.events if event.kind in kinds]


_TYPES: dict[str, Callable[[object], bool]] = {
    "int": lambda value: type(value) is int,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "null": lambda value: value is None,
    "list[str]": lambda value: (
        isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    ),
}


def check(event: TraceEvent) -> None:
    """Whether an event is as its schema says.

    Raises:
        ValueError: it is not.
    """
    wanted = dict(EVENTS[event.kind].fields)
    if list(event.fields) != list(wanted):
        raise ValueError(f"{event.kind} has the fields {list(wanted)}, not {list(event.fields)}")
    for name, kind in wanted.items():
        value = event.fields[name]
        if not any(_TYPES[choice](value) for choice in kind.split(" | ")):
            raise ValueError(f"{event.kind}: {name} is {kind}, not {value!r}")


class JsonLinesTracer:
    """Writes events as lines of JSON, on a thread of its own: the node never waits for the file.

    Args:
        file: an open text file; :meth:`close` flushes it, and leaves closing it to the caller.
        limit: events that may wait to be written; more are dropped and counted.
    """

    def __init__(self, file: TextIO, limit: int = 10_000) -> None:
        self.dropped = 0
        #: what ended the writing, if something did; every later event is dropped
        self.failure: OSError | None = None
        self._file = file
        self._limit = limit
        self._queue: SimpleQueue[TraceEvent | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raft-trace", daemon=True)
        self._thread.start()

    def event(self, event: TraceEvent) -> None:
        if self.failure is not None or self._queue.qsize() >= self._limit:
            self.dropped += 1
        else:
            self._queue.put(event)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            if self.failure is None:
                try:
                    self._file.write(event.to_json() + "\n")
                    if self._queue.empty():
                        self._file.flush()
                except OSError as error:
                    self.failure = error
