"""What was once true in an exploration, and the invariants that ask for it.

Names are those of the invariants' table in the documentation, as in :mod:`jepsen_like.sim.ghost`.
The ghost of the simulation keeps all that ever happened; here it must be as small as the invariants
allow, because it is part of every state. I2, I3, I5, I10 and I17 are looked at in the node itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jepsen_like.explore.node import Facts, Node
from jepsen_like.sim.configurations import ConfigurationGhost
from jepsen_like.sim.errors import BrokenInvariantError, require
from raftcore.core.messages import AppendReply

if TYPE_CHECKING:
    from jepsen_like.explore.space import Space
    from raftcore.core.types import Configuration


@dataclass(frozen=True, slots=True)
class History:
    """Who led which term, and what is committed: per index the chain, and the term of the leader
    that committed it. Position i of ``committed`` is index i + 1."""

    leaders: tuple[tuple[int, int], ...] = ()
    committed: tuple[tuple[bytes, int], ...] = ()


class Invariants:
    """Checks what an action did, and carries the history on."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._histories: list[History] = []
        self._numbers: dict[History, int] = {}
        self._configurations = ConfigurationGhost()
        self._matching: set[tuple[int, int]] = set()

    def number(self, history: History) -> int:
        number = self._numbers.get(history)
        if number is None:
            number = self._numbers[history] = len(self._histories)
            self._histories.append(history)
        return number

    @property
    def elections(self) -> int:
        """How many different (term, leader) there were."""
        return len({election for h in self._histories for election in h.leaders})

    @property
    def commits(self) -> int:
        """How many different histories were committed, the empty one not counted."""
        return len({h.committed for h in self._histories if h.committed})

    def check(self, number: int, index: int, nodes: tuple[int, ...], facts: Facts) -> int:
        """The number of the history after an action of node ``index``.

        Raises:
            BrokenInvariantError: naming the invariant.
        """
        history = before = self._histories[number]
        node = self._space.node(nodes[index])
        self._logs_match(nodes[index], nodes)
        if facts.led is not None:
            history = self._led(history, index, node, facts.led)
        for commit, counted_by in facts.commits:
            history = self._committed(history, node, nodes, commit, counted_by)
        for to, m in facts.sent:
            if isinstance(m, AppendReply) and m.success:
                self._acknowledged(node, nodes[self._space.index_of(to)], m)
        return number if history is before else self.number(history)

    def _logs_match(self, changed: int, nodes: tuple[int, ...]) -> None:
        """I4: where two logs have an entry of one index and term they are equal up to there."""
        for other in nodes:
            pair = (changed, other)
            if other == changed or pair in self._matching:
                continue
            ours, theirs = self._space.node(changed), self._space.node(other)
            for at in range(1, min(len(ours.chains), len(theirs.chains))):
                same = ours.terms[at] == theirs.terms[at]
                equal = ours.chains[at] == theirs.chains[at]
                detail = f"{ours.name} and {theirs.name} differ up to ({at}, {ours.terms[at]})"
                require(equal or not same, "I4", detail)
            self._matching.add(pair)

    @staticmethod
    def _led(history: History, index: int, node: Node, term: int) -> History:
        """I1: one leader per term. I6: it holds everything committed in earlier terms."""
        for known_term, leader in history.leaders:
            detail = f"{node.name} leads term {term}, which has a leader"
            require(known_term != term or leader == index, "I1", detail)
        for at, (chain, leader_term) in enumerate(history.committed, start=1):
            holds = at < len(node.chains) and node.chains[at] == chain
            detail = f"{node.name} leads term {term} without the committed entry {at}"
            require(holds or leader_term >= term, "I6", detail)
        leaders = tuple(sorted({*history.leaders, (term, index)}))
        return replace(history, leaders=leaders)

    def _committed(
        self,
        history: History,
        node: Node,
        nodes: tuple[int, ...],
        index: int,
        counted_by: Configuration | None,
    ) -> History:
        """I7: one history is committed. I8: by leaders only, and in order."""
        known = history.committed
        for at in range(1, min(index, len(known)) + 1):
            detail = f"{node.name} commits another history up to {at}"
            require(node.chains[at] == known[at - 1][0], "I7", detail)
        if index <= len(known):
            return history
        if counted_by is None:
            detail = f"{node.name} commits {index}, which no leader has committed"
            raise BrokenInvariantError("I8", detail)
        term = node.raft.term
        detail = f"{node.name} commits {index}, an entry of an earlier term, by counting"
        require(node.terms[index] == term, "I8", detail)
        self._durable_on_quorum(node, nodes, index, counted_by)
        more = tuple((node.chains[at], term) for at in range(len(known) + 1, index + 1))
        return replace(history, committed=known + more)

    def _durable_on_quorum(
        self, leader: Node, nodes: tuple[int, ...], index: int, counted_by: Configuration
    ) -> None:
        """I9: what is committed is durable on a quorum at this very moment. I14: nobody who lacks
        it could win an election from now on."""
        chain = leader.chains[index]
        cluster = [self._space.node(number) for number in nodes]
        holders = {node.name for node in cluster if node.image.holds(index, chain)}
        self._configurations.counted(leader.name, counted_by, holders, index)
        self._configurations.nobody_else_could_win(cluster, index, chain)

    def _acknowledged(self, node: Node, to: int, m: AppendReply) -> None:
        """I17: whoever leads that term may count on it that this node holds the same entries."""
        if self._space.leads(to, m.term):
            chain = self._space.node(to).chains[m.match_index]
            holds = node.image.holds(m.match_index, chain)
            detail = f"{node.name} acknowledges {m.match_index}, but holds something else there"
            require(holds, "I17", detail)
