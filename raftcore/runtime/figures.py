"""The gauges of a node, read off its status when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from raftcore.metrics import FIGURES, Sample
from raftcore.runtime.status import NodeStatus

_STAGES = {"stable": 0, "staging": 1, "joint": 2}


def gauges(status: NodeStatus) -> Iterator[Sample]:
    """Every gauge that has a value now."""
    values = _core(status) | _waiting(status) | _disk(status) | _members(status)
    for name, value in values.items():
        if value is not None:
            yield Sample(FIGURES[name], value)
    yield from _peers(status)


def _core(status: NodeStatus) -> dict[str, float | None]:
    core = status.core
    return {
        "term": core.term,
        "is_leader": core.role == "leader",
        "has_leader": core.leader_id is not None,
        "leader_contact_age_seconds": _seconds(core.leader_contact_age_ms),
        "staleness_seconds": _seconds(status.staleness_ms),
        "last_index": core.last_index,
        "durable_index": core.durable_index,
        "commit_index": core.commit_index,
        "applied_index": core.applied_index,
        "first_index": core.first_index,
        "snapshot_index": core.snapshot_index,
        "log_entries": core.last_index - core.first_index + 1,
        "oldest_entry_age_seconds": _seconds(status.oldest_entry_age_ms),
        "apply_lag_entries": core.commit_index - core.applied_index,
        "apply_lag_seconds": _seconds(status.apply_lag_ms),
    }


def _waiting(status: NodeStatus) -> dict[str, float | None]:
    core = status.core
    return {
        "uncommitted_bytes": core.uncommitted_bytes,
        "pending_proposals": status.pending_proposals,
        "pending_reads": core.pending_reads,
        "pending_waits": status.pending_waits,
    }


def _disk(status: NodeStatus) -> dict[str, float | None]:
    disk, snapshot = status.disk, status.snapshot
    return {
        "held_messages": disk.held_messages,
        "held_message_age_seconds": _seconds(disk.held_age_ms),
        "writes_waiting": disk.writes_waiting,
        "write_age_seconds": _seconds(disk.write_age_ms),
        "stalled": status.core.stalled,
        "last_write_seconds": _seconds(disk.last_write_ms),
        "disk_free_bytes": disk.free_bytes,
        "disk_full": disk.full,
        "snapshot_taking_bytes": snapshot.taking_bytes,
        "snapshot_receiving_bytes": snapshot.receiving[0] if snapshot.receiving else None,
        "last_snapshot_bytes": snapshot.last_bytes,
    }


def _members(status: NodeStatus) -> dict[str, float | None]:
    configuration = status.configuration
    return {
        "connected_peers": len(status.connected),
        "voters": len(configuration.voters),
        "learners": len(configuration.learners),
        "configuration_index": status.configuration_version,
        "membership_stage": _STAGES[status.stage],
        "lease_remaining_seconds": _seconds(status.core.lease_remaining_ms),
        "feature_level": configuration.level,
        "pending_joiners": len(status.joiners),
        "quarantined": status.quarantine is not None,
        "removed": status.removed is not None,
    }


def _peers(status: NodeStatus) -> Iterator[Sample]:
    for peer in status.core.peers:
        values: dict[str, float | None] = {
            "peer_lag_entries": status.core.last_index - peer.match_index,
            "peer_contact_age_seconds": _seconds(peer.contact_age_ms),
            "peer_inflight_bytes": peer.inflight_bytes,
            "peer_write_age_seconds": _seconds(peer.write_age_ms),
            "peer_quarantined": peer.quarantined,
            "peer_paused": peer.paused_because is not None,
            "snapshot_sending_bytes": peer.snapshot_offset,
        }
        for name, value in values.items():
            if value is not None:
                yield Sample(FIGURES[name], value, peer.node_id)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
