"""What must be true of the cluster, kept outside of the nodes and checked after every step.

The names I1 to I20 are those of the invariants' table in the documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from jepsen_like.sim.configurations import ConfigurationGhost
from jepsen_like.sim.disk import DurableImage
from jepsen_like.sim.errors import BrokenInvariantError, require
from jepsen_like.sim.machine import link
from raftcore.core import messages as msg
from raftcore.core.membership import decode_configuration
from raftcore.core.types import Configuration, Entry, NodeId

__all__ = ["BrokenInvariantError", "Committed", "Ghost", "Receiver", "require"]


class Receiver(Protocol):
    """What the ghost asks about the node that a message goes to."""

    def leads(self, node: NodeId, term: int) -> bool: ...

    def chain_of(self, node: NodeId, index: int) -> bytes | None:
        """Chain in that node's accepted log; None if compacted away or absent."""
        ...


@dataclass(slots=True)
class Committed:
    """One committed position: the chain there, and the term of the leader that committed it."""

    chain: bytes
    leader_term: int


@dataclass(slots=True)
class Ghost:
    """The true history, known to nobody in the cluster."""

    leaders: dict[int, NodeId] = field(default_factory=dict)
    votes_sent: dict[tuple[NodeId, int], NodeId] = field(default_factory=dict)
    term_spoken: dict[NodeId, int] = field(default_factory=dict)
    #: (index, term) -> chain of the only log prefix that may end there
    prefixes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    #: position i holds what is committed at index i
    committed: list[Committed] = field(default_factory=lambda: [Committed(b"", 0)])
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    configurations: ConfigurationGhost = field(default_factory=ConfigurationGhost)
    reads_served: int = 0

    @property
    def commit_index(self) -> int:
        return len(self.committed) - 1

    def founded(self, first: Entry) -> None:
        """The entry that every founder begins with."""
        chain = link(b"", first)
        self.prefixes[1, 1] = chain
        self.committed.append(Committed(chain, 1))
        self.configurations.committed.append((0, Configuration("sim", ())))
        self.configurations.committed.append((1, decode_configuration(first.data)))

    # -- elections ------------------------------------------------------------------------------

    def became_leader(
        self, node: NodeId, term: int, chain_of: Callable[[int], bytes | None]
    ) -> None:
        other = self.leaders.setdefault(term, node)
        require(other == node, "I1", f"{other} and {node} both lead term {term}")
        index = self.commit_index
        while index > 0 and self.committed[index].leader_term >= term:
            index -= 1
        # I6: everything committed in earlier terms is in the new leader's log
        chain = chain_of(index)
        require(
            chain == self.committed[index].chain,
            "I6",
            f"{node} leads term {term} without the committed entry {index}",
        )

    def vote_sent(self, node: NodeId, term: int, candidate: NodeId) -> None:
        other = self.votes_sent.setdefault((node, term), candidate)
        require(
            other == candidate, "I2", f"{node} votes for {other} and {candidate} in term {term}"
        )

    def restarted(self, node: NodeId, image: DurableImage) -> None:
        """What a node reads back must agree with all that it ever said."""
        state = image.hard_state
        spoken = self.term_spoken.get(node, 0)
        require(state.term >= spoken, "I3", f"{node} spoke in {spoken}, restarts in {state.term}")
        vote = self.votes_sent.get((node, state.term))
        require(
            vote in (None, state.vote),
            "I2",
            f"{node} voted for {vote} in term {state.term}, but reads back {state.vote}",
        )

    # -- the log --------------------------------------------------------------------------------

    def appended(self, node: NodeId, index: int, term: int, chain: bytes) -> None:
        known = self.prefixes.setdefault((index, term), chain)
        require(known == chain, "I4", f"{node} has another history up to ({index}, {term})")

    def leader_committed(self, index: int, term: int, chain: bytes) -> None:
        """A leader of ``term`` raised its commit index over ``index``."""
        if index <= self.commit_index:
            require(
                self.committed[index].chain == chain,
                "I7",
                f"two histories are committed up to {index}",
            )
            return
        require(index == self.commit_index + 1, "I8", f"commit {index} leaves a gap")
        self.committed.append(Committed(chain, term))
        self.configurations.committed_at(index, chain)

    def follower_committed(self, node: NodeId, index: int, chain: bytes | None) -> None:
        require(
            index <= self.commit_index,
            "I8",
            f"{node} commits {index}, but no leader has committed more than {self.commit_index}",
        )
        require(
            chain is None or chain == self.committed[index].chain,
            "I7",
            f"{node} commits another history up to {index}",
        )

    def applied(self, node: NodeId, index: int, chain: bytes) -> None:
        require(
            index <= self.commit_index and self.committed[index].chain == chain,
            "I7",
            f"{node} applied another history up to {index}",
        )

    def snapshot(self, node: NodeId, index: int, chain: bytes) -> None:
        require(
            index <= self.commit_index and self.committed[index].chain == chain,
            "I16",
            f"{node} has a snapshot at {index} that is not the state there",
        )

    # -- clients --------------------------------------------------------------------------------

    def acknowledge(self, index: int, chain: bytes) -> None:
        """A client was told that its write at ``index`` succeeded."""
        require(
            index <= self.commit_index and self.committed[index].chain == chain,
            "I11",
            f"the write at {index} was acknowledged, but is not what is committed there",
        )
        self.acknowledged[index] = chain

    def read_served(self, node: NodeId, applied: int, floor: int) -> None:
        self.reads_served += 1
        require(
            applied >= floor,
            "I12",
            f"{node} served a read at {applied}, {floor} was committed when it was asked",
        )

    # -- what leaves a node ---------------------------------------------------------------------

    def message_sent(
        self, node: NodeId, to: NodeId, m: msg.Message, image: DurableImage, receiver: Receiver
    ) -> None:
        """``m`` leaves now: whatever it asserts must be durable now (I17)."""
        if isinstance(m, msg.VoteRequest | msg.VoteReply) and m.pre_vote:
            return  # asserts nothing of this node's state
        require(
            image.hard_state.term >= m.term,
            "I17",
            f"{node} speaks in term {m.term}, {image.hard_state.term} is durable",
        )
        self.term_spoken[node] = max(self.term_spoken.get(node, 0), m.term)
        if isinstance(m, msg.VoteRequest):
            require((m.term, node) in image.votes, "I17", f"{node}'s own vote is not durable")
            self.vote_sent(node, m.term, node)
        elif isinstance(m, msg.VoteReply) and m.granted:
            require((m.term, to) in image.votes, "I17", f"{node}'s vote for {to} is not durable")
            self.vote_sent(node, m.term, to)
        elif isinstance(m, msg.AppendReply) and m.success:
            self._acknowledgement(node, to, m.term, m.match_index, image, receiver)
        elif isinstance(m, msg.SnapshotReply) and m.installed:
            self._acknowledgement(node, to, m.term, m.index, image, receiver)

    def _acknowledgement(
        self,
        node: NodeId,
        to: NodeId,
        term: int,
        index: int,
        image: DurableImage,
        receiver: Receiver,
    ) -> None:
        require(
            image.last_index >= index,
            "I17",
            f"{node} acknowledges {index}, only {image.last_index} is durable",
        )
        if not receiver.leads(to, term):
            return
        chain = receiver.chain_of(to, index)
        require(
            chain is None or image.holds(index, chain),
            "I17",
            f"{node} acknowledges {index} to {to}, but holds another entry there",
        )
