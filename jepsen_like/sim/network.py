"""The simulated network: per directed link loss, duplication, delay, order and cuts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from jepsen_like.sim.scheduler import MS, Scheduler
from raftcore.core.messages import Message
from raftcore.core.types import NodeId

#: Messages on their way on one link; beyond it new ones are lost, as with a full socket.
LINK_CAPACITY = 512


@dataclass(slots=True)
class Link:
    in_flight: int = 0
    last_arrival_ns: int = 0


@dataclass(slots=True)
class Network:
    """Messages between nodes. ``deliver`` is called with (to, message) when one arrives."""

    scheduler: Scheduler
    rng: random.Random
    deliver: Callable[[NodeId, Message], None]
    drop: float = 0.0
    duplicate: float = 0.0
    delay_ms: float = 1.0
    heavy_tail: bool = False
    fifo: bool = False
    cuts: set[tuple[NodeId, NodeId]] = field(default_factory=set)
    links: dict[tuple[NodeId, NodeId], Link] = field(default_factory=dict)
    sent: int = 0
    lost: int = 0

    def send(self, to: NodeId, message: Message) -> None:
        self.sent += 1
        if (message.sender, to) in self.cuts or self.rng.random() < self.drop:
            self.lost += 1
            return
        self._carry(to, message)
        if self.rng.random() < self.duplicate:
            self._carry(to, message)

    def _carry(self, to: NodeId, message: Message) -> None:
        link = self.links.setdefault((message.sender, to), Link())
        if link.in_flight >= LINK_CAPACITY:
            self.lost += 1
            return
        link.in_flight += 1
        arrival = self.scheduler.now_ns + self._delay_ns()
        if self.fifo:
            arrival = max(arrival, link.last_arrival_ns)
        link.last_arrival_ns = arrival
        self.scheduler.at(arrival, lambda: self._arrive(link, to, message))

    def _delay_ns(self) -> int:
        delay_ms = self.rng.expovariate(1 / self.delay_ms)
        if self.heavy_tail and self.rng.random() < 0.02:
            delay_ms *= 100
        return int(delay_ms * MS)

    def _arrive(self, link: Link, to: NodeId, message: Message) -> None:
        link.in_flight -= 1
        if (message.sender, to) in self.cuts:
            self.lost += 1
        else:
            self.deliver(to, message)

    # -- faults ---------------------------------------------------------------------------------

    def separate(self, groups: Iterable[Iterable[NodeId]]) -> None:
        """Cut every link between different groups, both ways."""
        sides = [list(group) for group in groups]
        for side in sides:
            for other in sides:
                if other is not side:
                    self.cuts.update((a, b) for a in side for b in other)

    def heal(self) -> None:
        self.cuts.clear()

    def be_good(self, delay_ms: float) -> None:
        """No faults any more, for the liveness phase: links keep the order, as connections do. A
        log of hundreds of entries, sent one by one, would not catch up in time otherwise."""
        self.heal()
        self.drop = self.duplicate = 0.0
        self.heavy_tail = False
        self.fifo = True
        self.delay_ms = min(self.delay_ms, delay_ms)
        self.links.clear()  # a new connection does not wait behind what the old one still carries
