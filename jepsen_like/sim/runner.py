"""One seed from beginning to end: faults and load, then healing, then proof of life."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from jepsen_like.sim.changes import Changes
from jepsen_like.sim.cluster import CATCH_UP_MS, ELECTION_TIMEOUT_MS, CoreCluster
from jepsen_like.sim.ghost import BrokenInvariantError, require
from jepsen_like.sim.node import SimNode
from jepsen_like.sim.options import SimOptions
from jepsen_like.sim.scheduler import MS, stream
from raftcore.core import events as ev
from raftcore.core.errors import CoreError
from raftcore.core.membership import is_stable

#: Within this time after healing, and what the work left over takes: a leader, equal logs, a write
#: and a read everywhere.
LIVENESS_MS = 20 * ELECTION_TIMEOUT_MS


@dataclass(frozen=True, slots=True)
class SeedResult:
    """Outcome of one seed. ``failure`` None: every invariant held and the cluster recovered."""

    seed: int
    options: SimOptions
    failure: str | None
    invariant: str | None
    trace_hash: str
    steps: int
    counters: dict[str, int] = field(default_factory=dict)


def run_seed(seed: int, options: SimOptions | None = None) -> SeedResult:
    """Run ``seed``; the same seed and options give the same trace hash, always."""
    options = options or SimOptions.draw(seed)
    cluster = CoreCluster(seed, options)
    failure = invariant = None
    try:
        Run(cluster).whole()
    except BrokenInvariantError as error:
        failure, invariant = str(error), error.invariant
    except (CoreError, AssertionError) as error:
        # The core noticed by itself that something is wrong, which in a run without damaged
        # disks is as much a failure as an invariant of ours.
        where = traceback.extract_tb(error.__traceback__)[-1]
        invariant = type(error).__name__
        failure = f"{invariant}: {error} ({where.name})"
    return SeedResult(
        seed,
        options,
        failure,
        invariant,
        cluster.trace_hash,
        cluster.scheduler.steps,
        dict(sorted(cluster.counters.items())),
    )


class Run:
    """The schedule of one seed."""

    def __init__(self, cluster: CoreCluster) -> None:
        self.cluster = cluster
        self.changes = Changes(cluster)
        self.faults = stream(cluster.seed, "faults")
        self.work = stream(cluster.seed, "workload")
        self.health = stream(cluster.seed, "health")
        self.token = 0
        self.end_ns = cluster.options.duration_ms * MS

    def whole(self) -> None:
        o, scheduler = self.cluster.options, self.cluster.scheduler
        self._repeat(self.work, o.write_every_ms, self.write)
        self._repeat(self.work, o.read_every_ms, self.read)
        self._repeat(self.faults, o.crash_ms, self.crash)
        self._repeat(self.faults, o.partition_ms, self.partition)
        self._repeat(self.faults, o.pause_ms, self.pause)
        self._repeat(self.faults, o.transfer_ms, self.transfer)
        self._repeat(self.health, o.hang_ms, self.hang)
        self._repeat(self.health, o.rollback_ms, self.roll_back)
        self._repeat(self.changes.rng, o.change_ms, self.changes.once)
        scheduler.run_until(self.end_ns)
        self.cluster.be_good()
        self.prove_life()

    def _repeat(self, rng: random.Random, mean_ms: float, action: Callable[[], None]) -> None:
        if mean_ms <= 0:
            return
        scheduler = self.cluster.scheduler

        def again() -> None:
            if scheduler.now_ns < self.end_ns:
                action()
                scheduler.after(int(rng.expovariate(1 / mean_ms) * MS), again)

        scheduler.after(int(rng.expovariate(1 / mean_ms) * MS), again)

    @property
    def names(self) -> list[str]:
        return list(self.cluster.nodes)

    # -- load -----------------------------------------------------------------------------------

    def _somebody(self) -> SimNode:
        """Mostly a node that believes to lead, paused and deposed ones too: anywhere else a write
        is only refused, and there histories part and reads go stale."""
        nodes = list(self.cluster.nodes.values())
        believers = [node for node in nodes if node.up and node.raft.is_leader]
        return self.work.choice(believers if believers and self.work.random() < 0.8 else nodes)

    def write(self) -> None:
        node = self._somebody()
        for _ in range(self.work.choice((1, 1, 1, 3, 10))):
            self.token += 1
            size = self.work.randrange(self.cluster.options.entry_bytes)
            data = f"w{self.token}".encode().ljust(size)
            if node.up:
                node.propose(self.token, data)

    def read(self) -> None:
        by_lease = self.cluster.options.lease and self.work.random() < 0.7
        self._somebody().read(by_lease=by_lease)

    # -- faults ---------------------------------------------------------------------------------

    def crash(self) -> None:
        up = [n for n in self.cluster.nodes.values() if n.up]
        leader = self.cluster.leader
        count = self.faults.choice((1, 1, 1, 2, len(up)))
        chosen = self.faults.sample(up, min(count, len(up)))
        if leader is not None and count == 1 and self.faults.random() < 0.6:
            chosen = [leader]
        for node in chosen:
            node.crash()
            self.cluster.count("crashes")

    def partition(self) -> None:
        network = self.cluster.network
        network.heal()
        self.cluster.count("partitions")
        shape = self.faults.randrange(6)
        names = self.faults.sample(self.names, len(self.names))
        middle = self.faults.randrange(len(names) + 1)
        leader = self.cluster.leader
        if shape == 0 and leader is not None:
            network.separate([[leader.name], [n for n in names if n != leader.name]])
        elif shape == 1:
            network.separate([names[:middle], names[middle:]])
        elif shape == 2 and len(names) > 2:  # a bridge: one node sees both sides
            network.separate([names[1 : 1 + middle], names[1 + middle :]])
        elif shape == 3:  # one-way cuts
            for one in names:
                for other in names:
                    if one != other and self.faults.random() < 0.3:
                        network.cuts.add((one, other))
        elif shape == 4 and leader is not None:  # the leader speaks but does not hear
            network.cuts.update((n, leader.name) for n in names if n != leader.name)
        if self.faults.random() < 0.5:
            self._report_cuts()

    def _report_cuts(self) -> None:
        """Some transports notice that a connection is gone."""
        for one, other in sorted(self.cluster.network.cuts):
            node = self.cluster.nodes[one]
            node.give(lambda now, peer=other: ev.PeerUnreachable(now, peer))  # type: ignore[misc]

    def pause(self) -> None:
        node = self.cluster.nodes[self.faults.choice(self.names)]
        node.pause()
        self.cluster.count("pauses")
        delay = int(self.faults.expovariate(1 / 400) * MS)
        self.cluster.scheduler.after(delay, node.resume)

    def transfer(self) -> None:
        leader = self.cluster.leader
        if leader is not None:
            target = self.faults.choice([None, *self.names])
            leader.give(lambda now: ev.TransferRequested(now, target))

    def hang(self) -> None:
        """A disk takes no write for a while; mostly the leader's, sometimes all at once."""
        leader, nodes = self.cluster.leader, list(self.cluster.nodes.values())
        dice = self.health.random()
        chosen = nodes if dice < 0.1 else [self.health.choice(nodes)]
        if leader is not None and dice > 0.5:
            chosen = [leader]
        until_ns = self.cluster.scheduler.now_ns + self.health.randrange(2500 * MS)
        for node in chosen:
            node.hung_until_ns = until_ns
        self.cluster.count("disks that hang")

    def roll_back(self) -> None:
        """A crash after which the log ends earlier than what was acknowledged, and FLOOR tells."""
        node = self.health.choice(list(self.cluster.nodes.values()))
        if not node.up or not self.cluster.may_roll_back(node.name):
            return
        node.crash()
        image = node.image
        keep = image.snapshot.meta.index if image.snapshot else 1  # it was founded long ago
        keep = max(keep, image.before_first.index)
        if keep < image.last_index:
            image.roll_back(self.health.randrange(keep, image.last_index))
            self.cluster.count("disks that went back")

    # -- liveness -------------------------------------------------------------------------------

    def prove_life(self) -> None:
        """After healing: one leader, no change under way, a fresh write, a read on every member,
        and all of them equal."""
        cluster, scheduler = self.cluster, self.cluster.scheduler
        deadline = scheduler.now_ns + LIVENESS_MS * MS + cluster.left_to_do_ns
        if cluster.options.change_ms:  # first a change may have to end, or a voter be given up
            deadline += 2 * CATCH_UP_MS * MS
        served_before = {node.name: node.reads_served for node in cluster.nodes.values()}
        written = False
        unread = list(cluster.nodes.values())
        while scheduler.now_ns < deadline:
            scheduler.run_until(scheduler.now_ns + 20 * MS)
            leader = cluster.leader
            if leader is not None and not written:
                written = self._fresh_write(leader, deadline)
            nodes = self._members()
            unread = [n for n in nodes if n.reads_served == served_before[n.name]]
            if written and not unread and self._all_equal() and self._settled():
                return
            for node in unread if written else ():
                if not node.reads_pending:
                    node.read()
        require(written, "liveness", f"no write went through: {self._picture()}")
        require(self._settled(), "liveness", f"a change does not end: {self._picture()}")
        require(self._all_equal(), "liveness", f"nodes did not become equal: {self._picture()}")
        names = [node.name for node in unread]
        require(not names, "liveness", f"no read was served on {names}: {self._picture()}")

    def _fresh_write(self, leader: SimNode, deadline_ns: int) -> bool:
        """Whether a new write is acknowledged before leadership changes."""
        scheduler, counters = self.cluster.scheduler, self.cluster.counters
        before, term = counters["writes acknowledged"], leader.raft.term
        refused = counters["writes refused"]
        self.token += 1
        leader.propose(self.token, b"after healing")
        while scheduler.now_ns < deadline_ns and self.cluster.leads(leader.name, term):
            if counters["writes refused"] > refused:
                return False
            scheduler.run_until(scheduler.now_ns + 10 * MS)
            if counters["writes acknowledged"] > before:
                return True
        return False

    def _members(self) -> list[SimNode]:
        """The nodes of the last committed configuration; a member may never have come to be."""
        ghost = self.cluster.ghost
        members = ghost.configurations.at(ghost.commit_index).members
        found = [self.cluster.nodes.get(m.node_id) for m in members]
        return [node for node in found if node is not None]

    def _settled(self) -> bool:
        leader = self.cluster.leader
        return leader is not None and is_stable(leader.raft.configuration)

    def _all_equal(self) -> bool:
        nodes = self._members()
        states = {(n.machine.index, n.machine.chain, n.raft.commit_index) for n in nodes}
        return len(states) == 1 and states.pop()[0] == self.cluster.ghost.commit_index

    def _picture(self) -> str:
        return ", ".join(
            f"{n.name} {s.role} term {s.term} last {s.last_index} durable {s.durable_index} "
            f"commit {s.commit_index} applied {n.machine.index} of {n.raft.configuration}"
            for n in self.cluster.nodes.values()
            for s in [n.raft.status()]
        )
