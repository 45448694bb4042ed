"""Random changes of membership: what somebody might ask for, sensible or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from jepsen_like.sim.cluster import CoreCluster
from jepsen_like.sim.manual import incarnation_of
from jepsen_like.sim.node import SimNode
from jepsen_like.sim.scheduler import stream
from raftcore.core.types import Member, NodeId

#: Nodes that one run makes in addition to those it begins with.
NEWCOMERS = 4
#: Some of them are never there: whoever waits for them must give up.
DEAD = 0.15

Members = dict[NodeId, Member]


class Changes:
    """Asks for changes. Draws from a stream of its own: runs without it stay as they are."""

    def __init__(self, cluster: CoreCluster) -> None:
        self.cluster = cluster
        self.rng: random.Random = stream(cluster.seed, "membership")
        self.token = 0
        self.made = 0

    def once(self) -> None:
        """One request, mostly to a node that believes to lead."""
        nodes = list(self.cluster.nodes.values())
        believers = [n for n in nodes if n.up and n.raft.is_leader]
        node = self.rng.choice(believers if believers and self.rng.random() < 0.95 else nodes)
        if not node.up:
            return
        configuration = node.raft.configuration
        members = {
            m.node_id: m for m in configuration.members if m.node_id not in configuration.leaving
        }
        for _ in range(self.rng.choice((1, 1, 2))):
            kind = self.rng.choice(_KINDS)
            kind(self, node, members)
        if not any(m.voter for m in members.values()):
            return
        version = node.raft.configuration_index
        if self.rng.random() < 0.05:
            version -= 1
        self.token += 1
        wanted = tuple(members[name] for name in sorted(members))
        node.change(self.token, version, wanted)
        self.cluster.count("changes asked for")

    def _newcomer(self, members: Members, *, voter: bool) -> None:
        if self.made < NEWCOMERS:
            self.made += 1
            name = f"x{self.made}"
            if self.rng.random() >= DEAD:
                self.cluster.add_node(name)
            members[name] = Member(name, f"{name}:1", incarnation_of(name), voter)

    def _pick(self, members: Members, *, voter: bool) -> NodeId | None:
        names = sorted(name for name, m in members.items() if m.voter is voter)
        return self.rng.choice(names) if names else None

    def add_learner(self, _node: SimNode, members: Members) -> None:
        self._newcomer(members, voter=False)

    def add_voter(self, _node: SimNode, members: Members) -> None:
        self._newcomer(members, voter=True)

    def promote(self, _node: SimNode, members: Members) -> None:
        name = self._pick(members, voter=False)
        if name is not None:
            members[name] = replace(members[name], voter=True)

    def demote(self, _node: SimNode, members: Members) -> None:
        name = self._pick(members, voter=True)
        if name is not None:
            members[name] = replace(members[name], voter=False)

    def remove(self, _node: SimNode, members: Members) -> None:
        members.pop(self.rng.choice(sorted(members)), None) if members else None

    def remove_leader(self, node: SimNode, members: Members) -> None:
        members.pop(node.name, None)

    def replace(self, node: SimNode, members: Members) -> None:
        self.remove(node, members)
        self.add_voter(node, members)

    def move(self, _node: SimNode, members: Members) -> None:
        if members:
            name = self.rng.choice(sorted(members))
            members[name] = replace(members[name], address=f"{name}:{self.rng.randrange(9999)}")


_KINDS: tuple[Callable[[Changes, SimNode, Members], None], ...] = (
    Changes.add_learner, Changes.add_voter, Changes.promote, Changes.promote, Changes.demote,
    Changes.remove, Changes.remove_leader, Changes.replace, Changes.move,
)  # fmt: skip
