"""A whole cluster of bare cores under virtual time."""

from __future__ import annotations

import hashlib
from collections import Counter

from jepsen_like.sim.disk import DurableImage
from jepsen_like.sim.ghost import Ghost, require
from jepsen_like.sim.manual import configuration_of, incarnation_of
from jepsen_like.sim.network import Network
from jepsen_like.sim.node import Clock, SimNode
from jepsen_like.sim.options import SimOptions
from jepsen_like.sim.scheduler import MS, Scheduler, stream
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core.config import CoreConfig
from raftcore.core.membership import encode_configuration
from raftcore.core.messages import Message
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Lease,
    NodeId,
    WriteMark,
)

ELECTION_TIMEOUT_MS = 300
#: What a node knows that is a member of nothing yet.
NOBODY = Configuration("sim", ())
#: A new voter that stands still for this long is given up.
CATCH_UP_MS = 1500


class CoreCluster:
    """Nodes, network, disks and the ghost that watches them; everything follows from ``seed``."""

    def __init__(self, seed: int, options: SimOptions) -> None:
        self.seed = seed
        self.options = options
        self.scheduler = Scheduler()
        self.ghost = Ghost()
        self.counters: Counter[str] = Counter()
        self.crash_rng = stream(seed, "crash")
        self.node_rng = stream(seed, "node")
        self._disk_rng = stream(seed, "disk")
        self._disk_ms = options.disk_ms
        self._crash_in_step = options.crash_in_step
        self._crash_new_leader = options.crash_new_leader
        self._digest = hashlib.sha256()
        self.healed = False
        self.network = Network(
            self.scheduler,
            stream(seed, "network"),
            self._deliver,
            drop=options.drop,
            duplicate=options.duplicate,
            delay_ms=options.delay_ms,
            heavy_tail=options.heavy_tail,
            fifo=options.fifo,
        )
        names = [f"n{i}" for i in range(1, options.nodes + options.learners + 1)]
        lease = Lease(ELECTION_TIMEOUT_MS, options.clock_error_ppm) if options.lease else None
        configuration = configuration_of(
            names[: options.nodes], names[options.nodes :], lease=lease
        )
        first = Entry(1, 1, EntryType.CONFIGURATION, encode_configuration(configuration))
        self.ghost.founded(first)
        self._clock_rng = stream(seed, "clock")
        self.nodes: dict[NodeId, SimNode] = {}
        for name in names:
            self.add_node(name, first)

    def add_node(self, name: NodeId, first: Entry | None = None) -> None:
        """A founder, which begins with the configuration as entry 1 in term 1, committed; or a
        node that has heard of nobody yet."""
        drift = self._clock_rng.randint(-self.options.drift_ppm, self.options.drift_ppm)
        clock = Clock(1 + drift / 1e6)
        image = DurableImage(NOBODY)
        if first is not None:
            image.persist(ef.Persist(WriteMark(0, 0), HardState(1), None, (first,), 1))
        self.nodes[name] = SimNode(self, self._config(name), image, clock)

    def _config(self, name: NodeId) -> CoreConfig:
        o = self.options
        return CoreConfig(
            node_id=name,
            incarnation=incarnation_of(name),
            heartbeat_ms=60,
            election_timeout_ms=ELECTION_TIMEOUT_MS,
            max_inflight_messages=o.window,
            max_append_entries=o.append_entries,
            max_append_bytes=8 << 10,
            max_uncommitted_bytes=64 << 10,
            max_pending_reads=64,
            entry_cache_bytes=o.cache_bytes,
            snapshot_chunk_bytes=400,
            trailing_entries=o.trailing_entries,
            catch_up_ms=CATCH_UP_MS,
        )

    # -- what nodes ask of their surroundings ---------------------------------------------------

    def trace(self, line: str) -> None:
        """Everything that happens goes into one hash: equal seeds, equal hashes."""
        self._digest.update(f"{self.scheduler.now_ns} {line}\n".encode())

    @property
    def trace_hash(self) -> str:
        return self._digest.hexdigest()

    def count(self, what: str) -> None:
        self.counters[what] += 1

    def disk_time_ns(self) -> int:
        return int(self._disk_rng.expovariate(1 / self._disk_ms) * MS)

    def apply_time_ns(self) -> int:
        return int(self._disk_rng.expovariate(1 / self._disk_ms) * MS)

    def crashes_here(self) -> bool:
        return self._crash_in_step > 0 and self.crash_rng.random() < self._crash_in_step

    def crashes_soon(self) -> bool:
        return self._crash_new_leader > 0 and self.crash_rng.random() < self._crash_new_leader

    def _deliver(self, to: NodeId, message: Message) -> None:
        node = self.nodes.get(to)
        if node is not None:  # a member that never came to be
            node.give(lambda now: ev.MessageReceived(now, message))

    # -- what the ghost asks --------------------------------------------------------------------

    def leads(self, node: NodeId, term: int) -> bool:
        n = self.nodes.get(node)
        return n is not None and n.up and n.raft.is_leader and n.raft.term == term

    def chain_of(self, node: NodeId, index: int) -> bytes | None:
        return self.nodes[node].chain_of(index)

    def may_roll_back(self, node: NodeId) -> bool:
        """Whether a quorum stays out of quarantine: with more faults than that it is for ever."""
        voters = self.nodes[node].raft.configuration.voters
        images = {name: n.image for name, n in self.nodes.items()}
        bad = sum(1 for name in voters if images[name].quarantined or name == node)
        return not images[node].quarantined and bad <= (len(voters) - 1) // 2

    def check_elected(self, leader: SimNode, term: int) -> None:
        """I14, I15: it can have won with the votes that were given, by those who have one."""
        votes = self.ghost.votes_sent
        voters = {name for name in self.nodes if votes.get((name, term)) == leader.name}
        if (term, leader.name) in leader.image.votes:
            voters.add(leader.name)
        commit = self.ghost.commit_index
        self.ghost.configurations.elected(leader.name, leader.trail, voters, commit)

    def check_commit_quorum(
        self, leader: SimNode, configuration: Configuration, index: int, term: int
    ) -> None:
        """I8 and I9: an entry of this term, durable on a quorum at this very moment."""
        chain = leader.chains[index]
        of_this_term = self.ghost.prefixes.get((index, term)) == chain
        require(of_this_term, "I8", f"{leader.name} commits an entry of an earlier term by count")
        holders = {name for name, node in self.nodes.items() if node.image.promised(index, chain)}
        configurations = self.ghost.configurations
        configurations.counted(leader.name, configuration, holders, index)
        able = [node for node in self.nodes.values() if not node.image.quarantined]
        configurations.nobody_else_could_win(able, index, chain)

    # -- faults ---------------------------------------------------------------------------------

    def be_good(self) -> None:
        """End of the safety phase: everything heals and everybody is up."""
        self.healed = True
        self.network.be_good(5.0)
        self._crash_in_step = self._crash_new_leader = 0.0
        self._disk_ms = min(self._disk_ms, 5.0)
        for node in self.nodes.values():
            node.hung_until_ns = 0
            node.resume()
            if not node.up:
                node.start()
            for peer in self.nodes:
                if peer != node.name:  # new connections: what the old ones carried is gone
                    self._reconnected(node, peer)

    @property
    def left_to_do_ns(self) -> int:
        """What writing and applying takes on average for the member that is furthest behind."""
        index = min(node.machine.index for node in self.nodes.values())
        batches = -(-(self.ghost.commit_index - index) // self.options.append_entries)
        return int(2 * batches * self._disk_ms * MS)

    @staticmethod
    def _reconnected(node: SimNode, peer: NodeId) -> None:
        node.give(lambda now: ev.PeerUnreachable(now, peer))

    @property
    def leader(self) -> SimNode | None:
        """The leader of the highest term among those that are up."""
        leading = [n for n in self.nodes.values() if n.up and n.raft.is_leader]
        return max(leading, key=lambda n: n.raft.term) if leading else None
