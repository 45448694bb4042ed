"""The figures of a node: one table of names, and how their values are kept.

A node keeps its figures itself, in plain integers and fixed buckets, and whoever exports them reads
them with :meth:`raftcore.Node.figures`. No exporter is called while the node works, so none can
slow it down or make it fail; no gauge can be stale; and several readers see the same numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from raftcore.storage.base import StorageStats
from raftcore.transport.options import TransportStats

#: Distinct label values that one histogram keeps apart at most; further ones count as "other".
MAX_LABELS = 64
OTHER_LABEL = "other"


class Kind(Enum):
    COUNTER = "counter"  #: only grows while the process lives
    GAUGE = "gauge"  #: how it is now
    HISTOGRAM = "histogram"  #: how single values were spread


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: what it is called, what it says, and in which unit."""

    name: str
    kind: Kind
    unit: str
    help: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """A picture of a histogram. ``buckets`` are (upper bound, values up to it), ascending; values
    above the last bound are only in ``count``."""

    buckets: tuple[tuple[float, int], ...]
    count: int
    total: float

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """An upper bound of that quantile: the bound of the bucket it falls into."""
        for bound, below in self.buckets:
            if below >= share * self.count:
                return bound
        return float("inf")


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of a figure, for one value of its label if it has one."""

    figure: Figure
    value: float | HistogramValue
    label: str = ""


def _geometric(first: float, factor: float, count: int) -> tuple[float, ...]:
    return tuple(first * factor**power for power in range(count))


#: 50 µs to 26 s, and 1 to 2**20: wide enough for a good NVMe disk and for one that is dying.
SECONDS = _geometric(0.00005, 2, 20)
SIZES = _geometric(1, 2, 21)
BYTES = _geometric(64, 4, 13)
_BOUNDS = {"seconds": SECONDS, "bytes": BYTES, "entries": SIZES}


class Histogram:
    """Counts values in fixed buckets. Not for several threads."""

    __slots__ = ("_bounds", "_counts", "count", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.count += times
        self.total += value * times

    def value(self) -> HistogramValue:
        below, buckets = 0, []
        for bound, count in zip(self._bounds, self._counts, strict=False):
            below += count
            buckets.append((bound, below))
        return HistogramValue(tuple(buckets), self.count, self.total)


def _table(kind: Kind, *rows: tuple[str, str, str] | tuple[str, str, str, str]) -> list[Figure]:
    return [Figure(row[0], kind, row[1], row[2], row[3] if len(row) == 4 else "") for row in rows]


_COUNTERS = _table(
    Kind.COUNTER,
    ("proposals", "", "Proposals given to the core."),
    ("proposals_refused", "", "Proposals refused, by the error's code.", "code"),
    ("proposals_unknown", "", "Proposals whose proposer was told that the outcome is unknown."),
    ("writes", "", "Durable transactions of the log."),
    ("entries_written", "entries", "Entries made durable."),
    ("bytes_written", "bytes", "Payload of the entries made durable."),
    ("write_seconds_total", "seconds", "Time spent in durable transactions."),
    ("entries_applied", "entries", "Entries applied to the state machine."),
    ("apply_batches", "", "Batches applied."),
    ("reads_confirmed", "", "Read rounds confirmed."),
    ("reads_refused", "", "Reads refused, by the error's code.", "code"),
    ("reads_by_lease", "", "Read rounds asked for under a lease."),
    ("elections_started", "", "Campaigns begun, pre-votes not counted."),
    ("elections_won", "", "Times that this node became leader."),
    ("leadership_changes", "", "Times that the known leader became another one."),
    ("votes_granted", "", "Votes given to others."),
    ("transfers", "", "Leadership transfers asked of this node, by outcome.", "outcome"),
    ("gave_way", "", "Times that this node stopped leading because its disk hung (rule 48)."),
    ("followers_regressed", "", "Peers that denied what they had acknowledged (D3)."),
    ("membership_changes", "", "Changes of the members asked of this node, by outcome.", "outcome"),
    ("snapshots_taken", "", "Snapshots taken."),
    ("snapshots_abandoned", "", "Snapshots begun and not finished."),
    ("snapshots_installed", "", "Snapshots received and installed."),
    ("snapshots_damaged", "", "Received snapshots that did not verify."),
    ("snapshot_bytes_sent", "bytes", "Snapshot bytes read for peers."),
    ("snapshot_bytes_received", "bytes", "Snapshot bytes stored from a leader."),
    ("log_reads", "", "Entries for slow peers read from storage: misses of the entry cache."),
    ("appends_sent", "", "Messages with entries sent."),
    ("peer_violations", "", "Messages that no correct member sends, dropped."),
    ("peers_lost", "", "Connections to peers that broke.", "peer"),
)

_GAUGES = _table(
    Kind.GAUGE,
    ("term", "", "Current term."),
    ("is_leader", "", "1 on the leader."),
    ("has_leader", "", "1 when a leader is known."),
    ("leader_contact_age_seconds", "seconds", "Since the leader was heard last (followers)."),
    ("staleness_seconds", "seconds", "How old the local state may be at most."),
    ("last_index", "", "Last index of the log."),
    ("durable_index", "", "Last index durable here."),
    ("commit_index", "", "Commit index."),
    ("applied_index", "", "Last index applied here."),
    ("first_index", "", "First index still in the log."),
    ("snapshot_index", "", "Index of the newest snapshot."),
    ("log_entries", "entries", "Entries in the log."),
    ("oldest_entry_age_seconds", "seconds", "Age of the oldest entry in the log, where known."),
    ("apply_lag_entries", "entries", "Entries committed and not applied here."),
    (
        "apply_lag_seconds",
        "seconds",
        "How long the oldest batch handed to the state machine waits.",
    ),
    ("uncommitted_bytes", "bytes", "Appended on the leader, not committed."),
    ("pending_proposals", "", "Proposals waiting for their result."),
    ("pending_reads", "", "Reads waiting."),
    ("pending_waits", "", "Callers waiting for an index to be applied."),
    ("held_messages", "", "Messages waiting for a durable write."),
    ("held_message_age_seconds", "seconds", "How long the first of them waits."),
    ("writes_waiting", "", "Durable writes asked for and not finished."),
    ("write_age_seconds", "seconds", "Age of the oldest of them: how far the disk is behind."),
    ("stalled", "", "1 while the disk counts as stalled (rule 48)."),
    ("last_write_seconds", "seconds", "Duration of the last durable transaction."),
    ("disk_free_bytes", "bytes", "Space left on the log's disk when last looked at."),
    ("disk_full", "", "1 while proposals are refused because the disk is nearly full."),
    ("snapshot_taking_bytes", "bytes", "Written so far of the snapshot being taken."),
    ("snapshot_receiving_bytes", "bytes", "Stored so far of the snapshot being received."),
    ("snapshot_sending_bytes", "bytes", "How far a peer is with its snapshot.", "peer"),
    ("last_snapshot_bytes", "bytes", "Size of the newest snapshot of this run."),
    ("connected_peers", "", "Peers connected."),
    ("peer_lag_entries", "entries", "Entries of the leader's log that a peer has not.", "peer"),
    ("peer_contact_age_seconds", "seconds", "Since the leader heard a peer last.", "peer"),
    ("peer_inflight_bytes", "bytes", "Sent to a peer and not acknowledged.", "peer"),
    ("peer_write_age_seconds", "seconds", "How far a peer's disk is behind, as it says.", "peer"),
    ("peer_quarantined", "", "1 while a peer counts for nothing (D3).", "peer"),
    ("peer_paused", "", "1 while a peer is not sent more; the status says why.", "peer"),
    ("voters", "", "Voters of the configuration in force."),
    ("learners", "", "Learners of the configuration in force."),
    ("configuration_index", "", "Log index of the configuration in force: its version."),
    ("membership_stage", "", "0 stable, 1 staging, 2 joint."),
    ("lease_remaining_seconds", "seconds", "How long the leader's lease holds yet."),
    ("feature_level", "", "Feature level of the cluster."),
    ("pending_joiners", "", "Nodes that asked to join and were not admitted."),
    ("quarantined", "", "1 while this node counts for nothing because it lost something (D3)."),
    ("removed", "", "1 once this node was removed from the cluster."),
)

_HISTOGRAMS = _table(
    Kind.HISTOGRAM,
    ("write_seconds", "seconds", "Duration of a durable transaction."),
    ("write_queue_seconds", "seconds", "How long the oldest write of a transaction had waited."),
    ("write_entries", "entries", "Entries in a durable transaction."),
    ("write_bytes", "bytes", "Payload of a durable transaction."),
    ("apply_seconds", "seconds", "Time to apply a batch."),
    ("apply_entries", "entries", "Entries in a batch."),
    ("commit_seconds", "seconds", "From acceptance of a proposal until it commits."),
    ("proposal_seconds", "seconds", "From the proposal to its result."),
    ("read_seconds", "seconds", "From asking for a read barrier to its release."),
    ("snapshot_seconds", "seconds", "Time to take a snapshot."),
    ("snapshot_install_seconds", "seconds", "From the last chunk to the installed state."),
    (
        "peer_round_trip_seconds",
        "seconds",
        "From an append to its durable acknowledgement.",
        "peer",
    ),
)

#: Only nodes whose transport counts: TCP does.
_TRANSPORT = _table(
    Kind.COUNTER,
    ("transport_bytes_in", "bytes", "Bytes received from peers."),
    ("transport_bytes_out", "bytes", "Bytes sent to peers."),
    ("transport_messages_in", "", "Messages received."),
    ("transport_messages_out", "", "Messages taken into a peer's queue."),
    ("transport_requests_in", "", "Requests of other members' applications."),
    ("transport_requests_out", "", "Requests to other members' applications."),
    ("transport_writes", "", "Calls of the operating system's send."),
    ("transport_dropped", "", "Frames dropped.", "reason"),
    ("transport_connects", "", "Outgoing connections that were welcomed."),
    ("transport_connect_failures", "", "Outgoing connections that failed."),
    ("transport_losses", "", "Outgoing connections that broke."),
    ("transport_stalls", "", "Connections given up because they took no bytes."),
    ("transport_bad_frames", "", "Connections closed because of what came in."),
    ("transport_refused", "", "Handshakes that this node refused.", "code"),
    ("transport_rejected", "", "Handshakes in which this node was refused.", "code"),
)

#: What the log's store counts.
_STORAGE = [
    *_table(
        Kind.COUNTER,
        ("storage_commits", "", "Durable transactions of the store, with those of upkeep."),
        ("storage_commit_seconds_total", "seconds", "Time spent in them, syncs included."),
        ("floor_writes", "", "Times that FLOOR was written (D3)."),
        ("scrub_entries", "entries", "Entries verified in the background."),
        ("scrub_snapshots", "", "Snapshot files verified in the background."),
        ("scrub_passes", "", "Times that everything stored was verified in the background."),
    ),
    *_table(
        Kind.GAUGE,
        ("storage_used_bytes", "bytes", "Bytes of the log's file that hold something."),
        ("storage_free_bytes", "bytes", "Bytes of the log's file to be used again."),
        ("storage_map_bytes", "bytes", "Size of the log's memory map."),
        ("storage_limit_bytes", "bytes", "What the map may grow to."),
        ("storage_runs", "", "How often this directory was opened."),
    ),
]

#: Every figure, by name. Exporters put their own prefix before it.
FIGURES: dict[str, Figure] = {
    figure.name: figure for figure in (*_COUNTERS, *_GAUGES, *_HISTOGRAMS, *_STORAGE, *_TRANSPORT)
}


@dataclass(slots=True)
class Counters:
    """Running totals of a node; names are those of the figures."""

    proposals: int = 0
    proposals_refused_by: Counter[str] = field(default_factory=Counter)
    proposals_unknown: int = 0
    writes: int = 0
    entries_written: int = 0
    bytes_written: int = 0
    write_seconds: float = 0.0
    last_write_ms: float = 0.0
    entries_applied: int = 0
    apply_batches: int = 0
    reads_confirmed: int = 0
    reads_refused_by: Counter[str] = field(default_factory=Counter)
    reads_by_lease: int = 0
    elections_started: int = 0
    elections_won: int = 0
    leadership_changes: int = 0
    votes_granted: int = 0
    transfers_by: Counter[str] = field(default_factory=Counter)
    gave_way: int = 0
    followers_regressed: int = 0
    membership_changes_by: Counter[str] = field(default_factory=Counter)
    snapshots_taken: int = 0
    snapshots_abandoned: int = 0
    snapshots_installed: int = 0
    snapshots_damaged: int = 0
    snapshot_bytes_sent: int = 0
    snapshot_bytes_received: int = 0
    log_reads: int = 0
    appends_sent: int = 0
    peer_violations: int = 0
    peers_lost_by: Counter[str] = field(default_factory=Counter)

    @property
    def proposals_refused(self) -> int:
        return self.proposals_refused_by.total()

    def samples(self) -> Iterator[Sample]:
        """All counters, those with a label once for each of its values."""
        for figure in _COUNTERS:
            if figure.name == "write_seconds_total":
                yield Sample(figure, self.write_seconds)
            elif figure.label:
                by_label: Counter[str] = getattr(self, f"{figure.name}_by")
                for label, total in sorted(by_label.items()):
                    yield Sample(figure, total, label)
            else:
                yield Sample(figure, getattr(self, figure.name))


def storage_samples(stats: StorageStats) -> Iterator[Sample]:
    """What a store counted."""
    values = {
        "storage_commits": stats.commits,
        "storage_commit_seconds_total": stats.commit_seconds,
        "floor_writes": stats.floor_writes,
        "scrub_entries": stats.scrub.entries,
        "scrub_snapshots": stats.scrub.snapshots,
        "scrub_passes": stats.scrub.passes,
        "storage_used_bytes": stats.used_bytes,
        "storage_free_bytes": stats.free_bytes,
        "storage_map_bytes": stats.map_bytes,
        "storage_limit_bytes": stats.limit_bytes,
        "storage_runs": stats.runs,
    }
    for figure in _STORAGE:
        yield Sample(figure, values[figure.name])


def transport_samples(stats: TransportStats) -> Iterator[Sample]:
    """What a transport counted."""
    labelled: dict[str, Mapping[str, int]] = {
        "transport_refused": stats.refused,
        "transport_rejected": stats.rejected,
        "transport_dropped": {
            "queue_full": stats.dropped_full,
            "disconnected": stats.dropped_disconnected,
            "oversize": stats.dropped_oversize,
        },
    }
    for figure in _TRANSPORT:
        if figure.label:
            for label, total in sorted(labelled[figure.name].items()):
                yield Sample(figure, total, label)
        else:
            yield Sample(figure, getattr(stats, figure.name.removeprefix("transport_")))


class Measures:
    """The histograms of a node."""

    def __init__(self) -> None:
        self._plain = {
            figure.name: Histogram(_BOUNDS[figure.unit])
            for figure in _HISTOGRAMS
            if not figure.label
        }
        self._labelled: dict[str, dict[str, Histogram]] = {
            figure.name: {} for figure in _HISTOGRAMS if figure.label
        }

    def __getitem__(self, name: str) -> Histogram:
        """The histogram of that name."""
        return self._plain[name]

    def labelled(self, name: str, label: str) -> Histogram:
        """The histogram of that name and label."""
        family = self._labelled[name]
        found = family.get(label)
        if found is None:
            if len(family) >= MAX_LABELS:
                label = OTHER_LABEL
            found = family.setdefault(label, Histogram(_BOUNDS[FIGURES[name].unit]))
        return found

    def samples(self) -> Iterator[Sample]:
        for name, histogram in self._plain.items():
            yield Sample(FIGURES[name], histogram.value())
        for name, family in self._labelled.items():
            for label, histogram in sorted(family.items()):
                yield Sample(FIGURES[name], histogram.value(), label)
