"""What the node, the log and the event loop say about themselves, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from guardian.adapters.postgres.projector import Projector
from guardian.fsm.state import StateReader
from guardian.telemetry import Metrics
from raftcore import Node, StoppedError

LAG_PROBE_S = 0.25


class NodeCollector(Collector):
    """Reads the node's picture when it is asked for; nothing is counted twice."""

    def __init__(self, node: Node, state: StateReader, projector: Projector) -> None:
        self._node = node
        self._state = state
        self._projector = projector

    def collect(self) -> Iterator[Metric]:
        try:
            status = self._node.status()
        except StoppedError:
            return
        core, totals = status.core, status.counters
        gauges = {
            "raft_term": ("Current term.", core.term),
            "raft_is_leader": ("1 on the leader.", int(core.role == "leader")),
            "raft_has_leader": ("1 when a leader is known.", int(core.leader_id is not None)),
            "raft_last_index": ("Last index of the log.", core.last_index),
            "raft_durable_index": ("Last index durable here.", core.durable_index),
            "raft_commit_index": ("Commit index.", core.commit_index),
            "raft_applied_index": ("Last index applied here.", core.applied_index),
            "raft_first_index": ("First index still in the log.", core.first_index),
            "raft_snapshot_index": ("Index of the newest snapshot.", core.snapshot_index),
            "raft_uncommitted_bytes": ("Appended, not committed.", core.uncommitted_bytes),
            "raft_pending_reads": ("Reads waiting.", core.pending_reads),
            "raft_pending_proposals": ("Proposals waiting.", status.pending_proposals),
            "raft_held_messages": ("Messages waiting for a write.", status.held_messages),
            "raft_connected_peers": ("Peers connected.", len(status.connected)),
            "raft_last_write_seconds": ("Last durable write.", totals.last_write_ms / 1000),
            "revision": ("Revision of the local state.", self._state.revision()),
            "projected_revision": ("Mirrored by this node.", self._projector.position[0]),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"guardian_{name}", text, value=value)
        counters = {
            "raft_proposals": ("Proposals.", totals.proposals),
            "raft_proposals_refused": ("Proposals refused.", totals.proposals_refused),
            "raft_writes": ("Durable transactions.", totals.writes),
            "raft_entries_written": ("Entries made durable.", totals.entries_written),
            "raft_write_seconds": ("Time in durable transactions.", totals.write_seconds),
            "raft_entries_applied": ("Entries applied.", totals.entries_applied),
            "raft_apply_batches": ("Batches applied.", totals.apply_batches),
            "raft_reads_confirmed": ("Read rounds confirmed.", totals.reads_confirmed),
            "raft_elections_won": ("Elections won.", totals.elections_won),
            "raft_snapshots_taken": ("Snapshots taken.", totals.snapshots_taken),
            "raft_snapshots_installed": ("Snapshots installed.", totals.snapshots_installed),
            "raft_peer_violations": ("Impossible messages dropped.", totals.peer_violations),
        }
        for name, (text, total) in counters.items():
            yield CounterMetricFamily(f"guardian_{name}", text, value=total)
        lag = GaugeMetricFamily(
            "guardian_raft_peer_lag_entries", "Entries a peer is behind.", labels=["peer"]
        )
        for peer in core.peers:
            lag.add_metric([peer.node_id], core.last_index - peer.match_index)
        yield lag


async def watch_loop_lag(metrics: Metrics) -> None:
    """How late the event loop is: nothing on it may run longer than 20 ms."""
    loop = asyncio.get_running_loop()
    lag = Gauge(
        "guardian_loop_lag_seconds", "Lateness of the event loop.", registry=metrics.registry
    )
    worst = Gauge(
        "guardian_loop_lag_max_seconds", "Worst lateness so far.", registry=metrics.registry
    )
    highest = 0.0
    while True:
        due = loop.time() + LAG_PROBE_S
        await asyncio.sleep(LAG_PROBE_S)
        late = max(loop.time() - due, 0.0)
        highest = max(highest, late)
        lag.set(late)
        worst.set(highest)
