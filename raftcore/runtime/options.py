"""What surrounds a core at run time: its settings, and where time, chance and threads come from."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from raftcore.runtime.workers import ThreadWorker, Worker


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Settings of the runtime around the core.

    Args:
        snapshot_entries: applied entries after which a snapshot is taken.
        snapshot_bytes: applied bytes after which a snapshot is taken.
        max_entry_bytes: largest proposal.
        max_pending_proposals: proposals waiting for their result at once.
        min_free_bytes: with less space than this on the log's disk new proposals are refused, so
            that what is needed to recover still fits.
        handover_timeout_s: how long a clean stop waits for leadership to move.
        lease_reads: read barriers are content with a valid lease unless they say otherwise. Only
            with a lease in the configuration does this change anything.
        max_pending_waits: callers that may wait for an index at once.
        max_pending_joiners: nodes that asked to join and are remembered; one more pushes out the
            one that asked longest ago.
        scrub_interval_s: how long one background pass over the whole log takes; 0 for none.
    """

    snapshot_entries: int = 8192
    snapshot_bytes: int = 64 << 20
    max_entry_bytes: int = 8 << 20
    max_pending_proposals: int = 65536
    min_free_bytes: int = 64 << 20
    handover_timeout_s: float = 3.0
    lease_reads: bool = False
    max_pending_waits: int = 10_000
    max_pending_joiners: int = 64
    scrub_interval_s: float = 86_400.0

    def __post_init__(self) -> None:
        for name in (
            "snapshot_entries", "snapshot_bytes", "max_entry_bytes", "max_pending_proposals",
            "max_pending_waits", "max_pending_joiners",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("min_free_bytes", "handover_timeout_s", "scrub_interval_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")


@dataclass(slots=True)
class Runtime:
    """Where time, chance and threads come from; replaced as a whole by a simulator."""

    clock_ns: Callable[[], int] = time.monotonic_ns
    wall_clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    rng: random.Random = field(default_factory=random.SystemRandom)
    start_worker: Callable[[str, Callable[[BaseException], None]], Worker] = ThreadWorker
