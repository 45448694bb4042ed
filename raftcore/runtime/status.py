"""What a node tells about itself, and what it gives to a proposer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raftcore.core.membership import stage_of
from raftcore.core.raft import PeerStatus, Status
from raftcore.core.types import Configuration, Member, NodeId
from raftcore.metrics import Counters
from raftcore.storage.base import StorageStats

__all__ = ["Counters", "DiskStatus", "NodeStatus", "Proposed", "SnapshotStatus"]


@dataclass(frozen=True, slots=True)
class Proposed:
    """A proposal took effect: the state machine's result and where in the log it stands."""

    result: Any
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """The log's disk.

    ``write_age_ms`` is the age of the oldest unfinished durable write and ``held_age_ms`` that of
    the oldest message that waits for one; 0 when there is none. ``free_bytes`` is None before the
    first look.
    """

    writes_waiting: int = 0
    write_age_ms: int = 0
    last_write_ms: float = 0.0
    held_messages: int = 0
    held_age_ms: int = 0
    free_bytes: int | None = None
    full: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """Snapshots of this run.

    ``last_index`` is that of the newest; its size and age are None if it is from an earlier run.
    ``taking_bytes`` is how much of the one being taken is written, ``receiving`` how much of the
    one being received is stored, and of how much.
    """

    last_index: int = 0
    last_bytes: int | None = None
    last_age_ms: int | None = None
    taking_bytes: int | None = None
    receiving: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A picture of the node that can say why: its core, its peers, its disk, its totals.

    ``configuration_version`` is the log index of ``configuration``; who states new members names
    it. ``quarantine`` says why this node counts for nothing (D3), ``removed`` why it takes no part
    any more, ``failed`` what ended it; each is None if it is not so. ``joiners`` asked to become
    members and were not admitted.
    """

    core: Status
    configuration: Configuration
    configuration_version: int
    connected: frozenset[NodeId]
    pending_proposals: int
    pending_waits: int
    disk: DiskStatus
    storage: StorageStats
    snapshot: SnapshotStatus
    apply_lag_ms: int
    staleness_ms: int | None
    oldest_entry_age_ms: int | None
    quarantine: str | None
    removed: str | None
    joiners: tuple[Member, ...]
    counters: Counters
    failed: str | None

    @property
    def held_messages(self) -> int:
        return self.disk.held_messages

    @property
    def stage(self) -> str:
        """Where a change of the members stands: ``stable``, ``staging`` or ``joint``."""
        return stage_of(self.configuration)

    @property
    def commit_waits_for(self) -> str | None:
        """Why the leader's last entry is not committed, or None if it is or nobody here knows."""
        core = self.core
        if core.role != "leader" or core.commit_index >= core.last_index:
            return None
        missing = [f"{voter} ({self._why_behind(voter)})" for voter in core.commit_waits_for]
        if not missing:
            return "its own bookkeeping: a quorum has the last entry"
        first, last = core.commit_index + 1, core.last_index
        return f"entries {first} to {last} on a quorum; not yet there: {', '.join(missing)}"

    def describe(self) -> str:
        """All of it, in lines for people."""
        return "\n".join(self._lines())

    # -- why ------------------------------------------------------------------------------------

    def _peer(self, node_id: NodeId) -> PeerStatus | None:
        return next((peer for peer in self.core.peers if peer.node_id == node_id), None)

    def _why_behind(self, voter: NodeId) -> str:
        if voter == self.core.node_id:
            return f"its own disk, for {self.disk.write_age_ms} ms"
        if voter not in self.connected:
            return "not connected"
        peer = self._peer(voter)
        if peer is not None and peer.quarantined:
            return "in quarantine: it counts for nothing"
        if peer is not None and peer.paused_because is not None:
            return peer.paused_because
        if peer is not None and peer.write_age_ms >= 1000:
            return f"its disk has finished nothing for {peer.write_age_ms} ms"
        if peer is not None and peer.contact_age_ms >= 1000:
            return f"silent for {peer.contact_age_ms} ms"
        return "its acknowledgement is on the way"

    def _lines(self) -> Iterator[str]:
        core = self.core
        yield f"node {core.node_id}: {core.role} in term {core.term}, {self._leader()}"
        for name, reason in (
            ("failed", self.failed),
            ("removed", self.removed),
            ("quarantine", self.quarantine),
            ("commit waits for", self.commit_waits_for),
            ("change of members waits for", self.core.change_waits_for),
        ):
            if reason is not None:
                yield f"{name}: {reason}"
        yield (
            f"log: {core.first_index}..{core.last_index}, durable {core.durable_index}, "
            f"committed {core.commit_index}, applied {core.applied_index} "
            f"({self.apply_lag_ms} ms behind)"
        )
        yield from self._member_lines()
        yield from self._disk_lines()
        yield (
            f"waiting: {self.pending_proposals} proposals, {core.pending_reads} reads, "
            f"{self.pending_waits} for an index"
        )
        yield (
            "local state: age unknown"
            if self.staleness_ms is None
            else f"local state: at most {self.staleness_ms} ms old"
        )

    def _leader(self) -> str:
        core = self.core
        if core.not_leader_because is None:
            return "leads"
        return core.not_leader_because

    def _member_lines(self) -> Iterator[str]:
        configuration = self.configuration
        yield (
            f"members: version {self.configuration_version}, {self.stage}, "
            f"feature level {configuration.level}"
        )
        for member in configuration.members:
            yield f"  {member.node_id} {self._member(member)}"
        if configuration.target is not None:
            wanted = configuration.target
            yield f"  wanted: voters {_names(wanted.voters)}, learners {_names(wanted.learners)}"
        if configuration.old_voters:
            yield f"  also needed: a majority of {_names(configuration.old_voters)}"
        if configuration.lease is not None:
            lease, left_ms = configuration.lease, self.core.lease_remaining_ms
            held = "not held here" if left_ms is None else f"held for {left_ms} ms yet"
            yield (
                f"lease: {lease.election_timeout_ms} ms, clocks within {lease.clock_error_ppm} "
                f"ppm, {held}"
            )
        for joiner in self.joiners:
            yield f"asks to join: {joiner.node_id} at {joiner.address}"

    def _member(self, member: Member) -> str:
        words = [member.address, "voter" if member.voter else "learner"]
        if member.node_id in self.configuration.leaving:
            words[-1] = "leaving"
        if member.node_id == self.core.node_id:
            return ", ".join([*words, "this node"])
        words.append("connected" if member.node_id in self.connected else "not connected")
        peer = self._peer(member.node_id)
        if peer is not None:
            words.append(f"{self.core.last_index - peer.match_index} behind")
            words.append(f"heard {peer.contact_age_ms} ms ago")
            if peer.quarantined:
                words.append("in quarantine")
            if peer.write_age_ms:
                words.append(f"its oldest write is {peer.write_age_ms} ms old")
            if peer.snapshot_offset is not None:
                words.append(f"snapshot at byte {peer.snapshot_offset}")
            if peer.catch_up is not None:
                words.append(f"catching up: {peer.catch_up}")
            if peer.paused_because is not None:
                words.append(f"paused: {peer.paused_because}")
        return ", ".join(words)

    def _disk_lines(self) -> Iterator[str]:
        disk, snapshot = self.disk, self.snapshot
        free = "unknown" if disk.free_bytes is None else f"{disk.free_bytes >> 20} MiB"
        yield (
            f"disk: {disk.writes_waiting} writes waiting, oldest {disk.write_age_ms} ms; "
            f"last {disk.last_write_ms:.1f} ms; {disk.held_messages} messages held, "
            f"oldest {disk.held_age_ms} ms; free {free}{', FULL' if disk.full else ''}"
        )
        stored, scrub = self.storage, self.storage.scrub
        yield (
            f"store: {stored.used_bytes >> 20} MiB used of at most {stored.limit_bytes >> 20} MiB; "
            f"opened {stored.runs} times; {scrub.entries} entries verified, {scrub.passes} passes"
        )
        words = [f"snapshot: at {self.core.snapshot_index}"]
        if snapshot.last_bytes is not None and snapshot.last_age_ms is not None:
            words.append(f"{snapshot.last_bytes} bytes, {snapshot.last_age_ms // 1000} s ago")
        if snapshot.taking_bytes is not None:
            words.append(f"taking one, {snapshot.taking_bytes} bytes so far")
        if snapshot.receiving is not None:
            words.append("receiving one, {} of {} bytes".format(*snapshot.receiving))
        yield ", ".join(words)


def _names(nodes: tuple[NodeId, ...]) -> str:
    return ", ".join(nodes) if nodes else "none"
