"""What a node tells about itself, and what it gives to a proposer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raftcore.core.raft import Status
from raftcore.core.types import NodeId


@dataclass(frozen=True, slots=True)
class Proposed:
    """A proposal took effect: the state machine's result and where in the log it stands."""

    result: Any
    index: int
    term: int


@dataclass(slots=True)
class Counters:
    """Running totals, for metrics."""

    proposals: int = 0
    proposals_refused: int = 0
    writes: int = 0
    entries_written: int = 0
    write_seconds: float = 0.0
    last_write_ms: float = 0.0
    entries_applied: int = 0
    apply_batches: int = 0
    reads_confirmed: int = 0
    elections_won: int = 0
    snapshots_taken: int = 0
    snapshots_installed: int = 0
    peer_violations: int = 0


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A picture of the node: its core, its peers, its totals."""

    core: Status
    connected: frozenset[NodeId]
    pending_proposals: int
    held_messages: int
    counters: Counters
    failed: str | None
