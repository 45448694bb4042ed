"""How much may happen in an exploration."""

from __future__ import annotations

from dataclasses import dataclass

#: Where an exploration begins, and the last term that there has been by then.
STARTS = {
    "fresh": 0,  #: nobody has said anything yet
    "elected": 1,  #: the first node leads, all have committed its no-op, nothing is under way
    "divided": 3,  #: logs as two leaders leave them that crash before they commit (Figure 3.7)
}
#: Names of nodes are single letters.
MAX_NODES = 5


@dataclass(frozen=True, slots=True)
class Bounds:
    """What makes the space finite. Everything is counted along one history.

    Args:
        nodes: voters at the beginning.
        terms: how many may begin.
        entries: commands that clients propose.
        crashes: nodes that lose what is not durable and start again.
        duplicates: messages that arrive twice.
        timeouts: election timeouts of nodes that do not lead.
        heartbeats: rounds of heartbeats of a leader.
        step_downs: leaders that miss their quorum and let go.
        transfers: leaderships that are handed over on request.
        changes: requests for other members: without one of them, or with a new one for another.
        spares: nodes that are members of nothing at the beginning.
        batch: entries of one append message.
        start: where to begin, one of :data:`STARTS`.
    """

    nodes: int = 3
    terms: int = 2
    entries: int = 2
    crashes: int = 1
    duplicates: int = 1
    timeouts: int = 3
    heartbeats: int = 1
    step_downs: int = 1
    transfers: int = 0
    changes: int = 0
    spares: int = 0
    batch: int = 1
    start: str = "fresh"

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.nodes + self.spares > MAX_NODES:
            raise ValueError(f"there must be between 1 and {MAX_NODES} nodes")
        if self.start not in STARTS:
            raise ValueError(f"{self.start!r} is not a start; there are {', '.join(STARTS)}")
        if self.terms < 1 or self.batch < 1:
            raise ValueError("without a term or entries in messages there is nothing to explore")
        budgets = (
            self.entries, self.crashes, self.duplicates, self.timeouts, self.heartbeats,
            self.step_downs, self.transfers, self.changes, self.spares,
        )  # fmt: skip
        if min(budgets) < 0:
            raise ValueError("bounds must not be negative")

    @property
    def last_term(self) -> int:
        """Nobody campaigns beyond it."""
        return STARTS[self.start] + self.terms

    @property
    def names(self) -> tuple[str, ...]:
        return tuple("abcde"[: self.nodes + self.spares])

    @property
    def founders(self) -> tuple[str, ...]:
        return self.names[: self.nodes]

    @property
    def wanted(self) -> tuple[tuple[str, ...], ...]:
        """Voters that may be asked for."""
        without = [tuple(n for n in self.founders if n != gone) for gone in self.founders]
        if self.spares:
            without = [(*some, self.names[self.nodes]) for some in without]
        return tuple(without)
