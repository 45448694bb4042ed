"""What must be true of configurations, kept outside of the nodes (I14, I15 of the table).

The majorities here are counted by other code than that of the core, on purpose. Configurations in
force on *different* nodes need not have quorums that meet; what must hold is that nobody who lacks
a committed entry could win an election under the configuration that its own log ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jepsen_like.sim.errors import require
from raftcore.core.types import Configuration, NodeId, Position

#: (index, configuration) along one log, oldest first
Trail = list[tuple[int, Configuration]]
#: Up to so many nodes every possible candidate is tried after every commit.
BRUTE_FORCE_NODES = 7


class Candidate(Protocol):
    """What the ghost asks of a node that might stand for election."""

    @property
    def name(self) -> NodeId: ...

    @property
    def trail(self) -> Trail: ...

    @property
    def accepted_position(self) -> Position: ...

    @property
    def durable_position(self) -> Position: ...

    def lacks(self, index: int, chain: bytes) -> bool: ...


def decides(configuration: Configuration, nodes: set[NodeId]) -> bool:
    """Whether ``nodes`` hold every majority that ``configuration`` asks for."""
    halves = [configuration.voters, configuration.old_voters]
    return all(2 * len(nodes.intersection(half)) > len(half) for half in halves if half)


def with_learners(configuration: Configuration, nodes: set[NodeId]) -> bool:
    """Whether it would be so if everybody counted."""
    everybody = {m.node_id for m in configuration.members}
    return 2 * len(nodes & everybody) > len(everybody)


def in_order(before: Configuration, after: Configuration) -> bool:
    """Whether ``after`` may follow ``before``: voters change through joint mode only."""
    if before.old_voters:
        return not after.old_voters and after.target is None and after.voters == before.voters
    if after.old_voters:
        return after.old_voters == before.voters
    return after.voters == before.voters or not before.members


@dataclass(slots=True)
class ConfigurationGhost:
    """The true history of configurations."""

    committed: Trail = field(default_factory=list)
    by_chain: dict[bytes, Configuration] = field(default_factory=dict)

    def at(self, index: int) -> Configuration:
        """What was in force at the committed ``index``."""
        return [c for at, c in self.committed if at <= index][-1]

    def appended(
        self, node: NodeId, trail: Trail, index: int, configuration: Configuration, chain: bytes
    ) -> None:
        """Some node accepted this entry after those of ``trail``."""
        self.by_chain[chain] = configuration
        before = trail[-1][1]
        require(
            in_order(before, configuration),
            "I14",
            f"{node} holds at {index} {configuration} after {before} (b)",
        )

    def leader_appends(
        self, node: NodeId, trail: Trail, commit_index: int, of_own_term: bool, index: int
    ) -> None:
        """A leader wrote the configuration at ``index`` when it had committed ``commit_index``."""
        last = trail[-1][0]
        require(
            last <= commit_index,
            "I14",
            f"{node} appends a configuration at {index}, that at {last} is not committed (a)",
        )
        require(
            of_own_term,
            "I14",
            f"{node} appends a configuration at {index}, nothing of its term is committed (a)",
        )

    def elected(self, node: NodeId, trail: Trail, voters: set[NodeId], commit_index: int) -> None:
        """``voters`` are all who gave ``node`` their vote, itself perhaps among them."""
        latest = trail[-1][1]
        require(
            decides(latest, voters),
            "I15" if with_learners(latest, voters) else "I14",
            f"{node} won with {sorted(voters)} under {latest} (c)",
        )
        open_ones = [index for index, _ in trail if index > commit_index]
        require(len(open_ones) <= 1, "I14", f"{node} leads with {open_ones} uncommitted (d)")

    def counted(
        self, node: NodeId, latest: Configuration, holders: set[NodeId], index: int
    ) -> None:
        """A leader committed ``index``, which ``holders`` have durably (I9)."""
        require(
            decides(latest, holders),
            "I15" if with_learners(latest, holders) else "I9",
            f"{node} commits {index}, durable on {sorted(holders)} only, under {latest}",
        )

    def committed_at(self, index: int, chain: bytes) -> None:
        configuration = self.by_chain.get(chain)
        if configuration is not None:
            self.committed.append((index, configuration))

    def snapshot(self, node: NodeId, index: int, configuration: Configuration) -> None:
        require(
            configuration == self.at(index),
            "I14",
            f"{node} has a snapshot at {index} with another configuration: {configuration}",
        )

    def nobody_else_could_win(
        self, nodes: Sequence[Candidate], commit_index: int, chain: bytes
    ) -> None:
        """(e), by trying: whoever lacks what is committed is offered to everybody."""
        if len(nodes) > BRUTE_FORCE_NODES:
            return
        for candidate in nodes:
            if not candidate.lacks(commit_index, chain):
                continue
            offered = candidate.accepted_position
            granted = {n.name for n in nodes if n.durable_position <= offered}
            latest = candidate.trail[-1][1]
            require(
                not latest.members or not decides(latest, granted | {candidate.name}),
                "I14",
                f"{candidate.name} lacks {commit_index} and could win with {sorted(granted)} (e)",
            )
