"""Settings of the core, validated once."""

from __future__ import annotations

from dataclasses import dataclass

from raftcore.core.types import FEATURE_LEVEL

MS = 1_000_000
"""Nanoseconds in a millisecond: deadlines are in nanoseconds, settings in milliseconds."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Timing, windows and bounds of one node.

    Args:
        node_id: this node's id; must be a member for the node ever to campaign.
        heartbeat_ms: how often a leader contacts each peer.
        election_timeout_ms: minimum; each draw is uniform between it and twice it (thesis 3.4).
        max_append_bytes: payload of one append message (a single larger entry still goes alone).
        max_append_entries: entries of one append message.
        max_inflight_messages: append messages in flight per peer.
        max_inflight_bytes: bytes in flight per peer.
        max_uncommitted_bytes: bytes appended by this leader and not yet both committed and durable
            here; beyond it proposals are refused as overloaded.
        max_apply_bytes: entries handed to the state machine at once.
        max_pending_reads: reads waiting for confirmation or apply, and callers that may wait for
            them; beyond it they are refused.
        entry_cache_bytes: recent entries kept in memory to feed followers and the state machine;
            what is not durable yet is kept beyond it.
        snapshot_chunk_bytes: size of one snapshot chunk.
        trailing_entries: entries kept behind the newest snapshot for slow followers.
        snapshot_bytes_per_s: how fast one peer is fed a snapshot at most; 0 for no limit.
        stall_ms: a durable write unfinished for this long, and no shorter than the election
            timeout, means that this node's disk is stalled (rule 48).
        catch_up_rounds: rounds in which a new voter may catch up (thesis 4.2.1).
        catch_up_ms: a new voter that makes no progress for this long is given up.
        incarnation: of this node's directory; configurations that have its id under another one
            mean somebody else. Empty: not known.
        feature_level: the newest feature level this node says it knows; lower only in tests of
            mixed clusters.
    """

    node_id: str
    heartbeat_ms: int = 60
    election_timeout_ms: int = 300
    max_append_bytes: int = 1 << 20
    max_append_entries: int = 4096
    max_inflight_messages: int = 64
    max_inflight_bytes: int = 16 << 20
    max_uncommitted_bytes: int = 64 << 20
    max_apply_bytes: int = 4 << 20
    max_pending_reads: int = 65536
    entry_cache_bytes: int = 32 << 20
    snapshot_chunk_bytes: int = 256 << 10
    trailing_entries: int = 10240
    snapshot_bytes_per_s: int = 0
    stall_ms: int = 500
    catch_up_rounds: int = 10
    catch_up_ms: int = 60_000
    incarnation: bytes = b""
    feature_level: int = FEATURE_LEVEL

    def __post_init__(self) -> None:
        if not isinstance(self.node_id, str) or not self.node_id:
            raise ValueError("node_id must be text and not empty")
        if self.heartbeat_ms < 1:
            raise ValueError(f"heartbeat_ms must be at least 1, not {self.heartbeat_ms}")
        if self.election_timeout_ms < 2 * self.heartbeat_ms:
            raise ValueError(
                f"election_timeout_ms ({self.election_timeout_ms}) must be at least twice "
                f"heartbeat_ms ({self.heartbeat_ms}): one lost heartbeat must not cost an election"
            )
        for name in (
            "max_append_bytes", "max_append_entries", "max_inflight_messages",
            "max_inflight_bytes", "max_uncommitted_bytes", "max_apply_bytes",
            "max_pending_reads", "entry_cache_bytes", "snapshot_chunk_bytes", "stall_ms",
            "catch_up_rounds", "catch_up_ms", "feature_level",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("trailing_entries", "snapshot_bytes_per_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
