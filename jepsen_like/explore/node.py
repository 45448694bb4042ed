"""One node of an exploration: the real core, a disk, and what has not become durable yet.

A node is never changed once it is part of a state: an action works on a copy. Disks take one write
after the other, each as an action of its own, so that a crash can come between any two of them, and
between a write and all that waits for it. Machines apply at once, storage is read at once: neither
says anything to others, and a crash forgets both.

Clocks stand still but for the actions that need time: those move the clock of the one node by as
much as it takes. That clocks of different nodes do not agree is what the protocol assumes anyway.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from jepsen_like.sim.configurations import Trail, in_order
from jepsen_like.sim.disk import DurableImage
from jepsen_like.sim.errors import require
from jepsen_like.sim.machine import ChainMachine, link
from raftcore.core import effects as ef
from raftcore.core import events as ev
from raftcore.core import messages as msg
from raftcore.core.config import MS, CoreConfig
from raftcore.core.fingerprint import FINGERPRINT_BYTES, canonical
from raftcore.core.membership import decode_configuration
from raftcore.core.raft import Raft
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Member,
    NodeId,
    Position,
)

HEARTBEAT_MS = 1
#: So much longer than a heartbeat that no bound of heartbeats adds up to it.
ELECTION_TIMEOUT_MS = 1_000_000
#: Later than every deadline of a node that does not lead.
FAR_NS = 8 * ELECTION_TIMEOUT_MS * MS


class LatestTimeouts(random.Random):
    """Draws the latest deadline. A timeout is an action of its own and comes when it is chosen;
    this leaves room before it for the moment in which a silent leader stops being believed in."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        assert stop is None, "timeouts are drawn between the minimum and twice it"
        return start - step


_RNG = LatestTimeouts()


@dataclass(slots=True)
class Facts:
    """What others must know of an action: what it sent, and what the invariants ask about."""

    sent: list[tuple[NodeId, msg.Message]] = field(default_factory=list)
    #: the term in which the node became leader
    led: int | None = None
    #: commit indexes that were reached; those of leaders with the configuration they counted by
    commits: list[tuple[int, Configuration | None]] = field(default_factory=list)


class Node:
    """One node. See the module."""

    def __init__(self, config: CoreConfig, image: DurableImage) -> None:
        self.config = config
        self.image = image
        self.now_ns = 0
        self._start()

    def _start(self) -> None:
        self.machine = ChainMachine()
        self.pending: list[ef.Persist] = []
        self.waiting: list[ef.Send] = []
        self.released = 0
        #: chain and term at every index of the accepted log, from 0 on
        self.chains = list(self.image.chains)
        self.terms = [0, *(entry.term for entry in self.image.entries)]
        self.facts = Facts()
        recovered = self.image.recover(0)
        #: configurations of the accepted log
        self.trail: Trail = [
            (recovered.base_index, recovered.base_configuration), *recovered.configurations
        ]  # fmt: skip
        self.raft = Raft(self.config, recovered, _RNG, self.now_ns)

    def clone(self) -> Node:
        twin = Node.__new__(Node)
        twin.config, twin.now_ns, twin.released = self.config, self.now_ns, self.released
        twin.image = replace(
            self.image,
            entries=list(self.image.entries),
            chains=list(self.image.chains),
            votes=set(),
        )
        twin.machine = self.machine.copy()
        twin.pending, twin.waiting = list(self.pending), list(self.waiting)
        twin.chains, twin.terms = list(self.chains), list(self.terms)
        twin.trail = list(self.trail)
        twin.facts = Facts()
        twin.raft = self.raft.clone(_RNG)
        return twin

    def fingerprint(self) -> bytes:
        """Of all that decides what the node does next, also after a crash."""
        writes = [
            (w.hard_state and (w.hard_state.term, w.hard_state.vote), w.truncate_from,
             canonical(w.entries), w.commit_hint)
            for w in self.pending
        ]  # fmt: skip
        waiting = [
            (s.to, type(s.message).__name__, canonical(s.message), s.after.sequence - self.released)
            for s in self.waiting
            if s.after is not None
        ]
        disk = (canonical(self.image.hard_state), self.image.chains, self.image.commit_hint)
        seen = (self.raft.fingerprint(), writes, waiting, disk, self.machine.index, self.chains)
        return blake2b(repr(seen).encode(), digest_size=FINGERPRINT_BYTES).digest()

    @property
    def name(self) -> NodeId:
        return self.config.node_id

    @property
    def sticky(self) -> bool:
        """Whether it follows a leader that it believes to be alive."""
        status = self.raft.status()
        age = status.leader_contact_age_ms
        return (
            not self.raft.is_leader
            and status.leader_id is not None
            and age is not None
            and age < ELECTION_TIMEOUT_MS
        )

    # -- actions --------------------------------------------------------------------------------

    def receive(self, message: msg.Message) -> None:
        self._step(ev.MessageReceived(self.now_ns, message))

    def receive_late(self, message: msg.Message) -> None:
        """Receive it after the leader has been silent for the minimum timeout."""
        self.now_ns += ELECTION_TIMEOUT_MS * MS
        self.receive(message)

    def time_out(self) -> None:
        """The election timeout of a node that does not lead."""
        self.now_ns += FAR_NS
        self._step(ev.Tick(self.now_ns))

    def beat(self) -> None:
        """A round of heartbeats of a leader."""
        self.now_ns += HEARTBEAT_MS * MS
        self._step(ev.Tick(self.now_ns))

    def miss_quorum(self) -> None:
        """A leader that nobody answers for an election timeout."""
        self.now_ns += ELECTION_TIMEOUT_MS * MS
        self._step(ev.Tick(self.now_ns))

    def propose(self, data: bytes) -> None:
        self._step(ev.Propose(self.now_ns, (ev.Proposal(0, data),)))

    def hand_over(self, target: NodeId) -> None:
        self._step(ev.TransferRequested(self.now_ns, target))

    def change(self, members: tuple[Member, ...]) -> None:
        version = self.raft.configuration_index
        self._step(ev.MembershipRequested(self.now_ns, 0, version, members))

    def persist(self) -> None:
        """The oldest write becomes durable: what waited for it leaves, then the core hears of it.

        There is no crash between the two that could not as well come before the write's messages
        are delivered.
        """
        write = self.pending.pop(0)
        self._write(write)
        self.released = write.mark.sequence
        ready = [s for s in self.waiting if s.after and s.after.sequence <= self.released]
        self.waiting = [s for s in self.waiting if s not in ready]
        for send in ready:
            self._leave(send)
        self._step(ev.WriteDurable(self.now_ns, write.mark))

    def crash(self, durable: int) -> None:
        """Lose all but the oldest ``durable`` writes, which nobody was told of, and start again."""
        for write in self.pending[:durable]:
            self._write(write)
        self._start()
        if self.raft.commit_index:
            self.facts.commits.append((self.raft.commit_index, None))

    def _write(self, write: ef.Persist) -> None:
        before, after = self.image.hard_state, write.hard_state
        if after is not None:
            require(after.term >= before.term, "I3", f"{self.name} goes back to term {after.term}")
            kept = after.term > before.term or before.vote in (None, after.vote)
            require(kept, "I2", f"{self.name} votes for {before.vote} and {after.vote}")
        self.image.persist(write)

    # -- steps ----------------------------------------------------------------------------------

    def _step(self, event: ev.Event) -> None:
        raft, facts = self.raft, self.facts
        term, led, commit = raft.term, raft.is_leader, raft.commit_index
        counted_by = raft.configuration
        effects = raft.step(event)
        require(raft.term >= term, "I3", f"{self.name} goes back to term {raft.term}")
        leads_on = led and raft.is_leader and raft.term == term
        for effect in effects:
            if isinstance(effect, ef.Persist):
                self._accept(effect, leads_on=leads_on)
        if raft.is_leader and not leads_on:
            facts.led = raft.term
        if raft.commit_index != commit:
            require(raft.commit_index > commit, "I8", f"{self.name} goes back in commit")
            require(raft.commit_index < len(self.chains), "I8", f"{self.name} commits too far")
            # A leader that its own commit removes steps down in the same step.
            as_leader = raft.is_leader or (led and raft.term == term)
            facts.commits.append((raft.commit_index, counted_by if as_leader else None))
        for effect in effects:
            handle = _EFFECTS.get(type(effect))
            if handle is not None:
                handle(self, effect)
            else:
                assert isinstance(effect, _UNHEARD), f"{effect} does not belong here"

    def _accept(self, write: ef.Persist, *, leads_on: bool) -> None:
        if write.truncate_from is not None:
            require(not leads_on, "I5", f"{self.name} truncates its log while it leads")
            del self.chains[write.truncate_from :], self.terms[write.truncate_from :]
            self.trail = [item for item in self.trail if item[0] < write.truncate_from]
        for entry in write.entries:
            self.chains.append(link(self.chains[-1], entry))
            self.terms.append(entry.term)
            if entry.type is EntryType.CONFIGURATION:
                self._accept_configuration(entry)
        self.pending.append(write)

    def _accept_configuration(self, entry: Entry) -> None:
        """I14: voters change through joint mode only, one uncommitted configuration at a time, and
        not before something of the leader's term is committed."""
        (last, before), configuration = self.trail[-1], decode_configuration(entry.data)
        detail = f"{self.name} holds at {entry.index} {configuration} after {before}"
        require(in_order(before, configuration), "I14", detail)
        if self.raft.is_leader and entry.term == self.raft.term:
            committed = self.raft.commit_index
            detail = f"{self.name} appends a configuration at {entry.index}, "
            require(last <= committed, "I14", f"{detail}that at {last} is not committed")
            own = self.terms[committed] == entry.term
            require(own, "I14", f"{detail}nothing of its term is committed")
        self.trail.append((entry.index, configuration))

    @property
    def accepted_position(self) -> Position:
        return self.raft.last_position

    @property
    def durable_position(self) -> Position:
        entries = self.image.entries
        return Position(entries[-1].term, entries[-1].index) if entries else Position(0, 0)

    def lacks(self, index: int, chain: bytes) -> bool:
        return index >= len(self.chains) or self.chains[index] != chain

    def _send(self, send: ef.Send) -> None:
        send = replace(send, message=_without_age(send.message))
        if send.after is not None and send.after.sequence > self.released:
            self.waiting.append(send)
        else:
            self._leave(send)

    def _leave(self, send: ef.Send) -> None:
        """A message leaves now: whatever it asserts must be durable now (I17)."""
        m, durable = send.message, self.image.hard_state
        self.facts.sent.append((send.to, m))
        if isinstance(m, msg.VoteRequest | msg.VoteReply) and m.pre_vote:
            return  # asserts nothing of this node's state
        require(durable.term >= m.term, "I17", f"{self.name} speaks in term {m.term} too early")
        if isinstance(m, msg.VoteRequest):
            self._require_vote(HardState(m.term, self.name))
        elif isinstance(m, msg.VoteReply) and m.granted:
            self._require_vote(HardState(m.term, send.to))
        elif isinstance(m, msg.AppendReply) and m.success:
            enough = self.image.last_index >= m.match_index
            require(enough, "I17", f"{self.name} acknowledges {m.match_index} before it is durable")

    def _require_vote(self, vote: HardState) -> None:
        require(self.image.hard_state == vote, "I17", f"{self.name}: {vote} is not durable")

    def _apply(self, effect: ef.Apply) -> None:
        for entry in effect.entries:
            self._apply_one(entry)
        self._step(ev.Applied(self.now_ns, self.machine.index))

    def _apply_one(self, entry: Entry) -> None:
        require(entry.index == self.machine.index + 1, "I10", f"{self.name} skips entries")
        self.machine.apply(entry)
        durable = self.image.chain_at(entry.index) == self.machine.chain
        require(durable, "I10", f"{self.name} applies {entry.index}, which is not durable")

    def _read(self, effect: ef.ReadEntries) -> None:
        found = self.image.read(effect.first, effect.last, effect.max_bytes)
        self._step(ev.EntriesRead(self.now_ns, effect.request_id, found))


def _without_age(m: msg.Message) -> msg.Message:
    """No disk is slow here: how old a write is means nothing when clocks jump."""
    if isinstance(m, msg.AppendReply | msg.HeartbeatReply) and m.health.write_age_ms:
        return replace(m, health=replace(m.health, write_age_ms=0))
    return m


_EFFECTS: dict[type[ef.Effect], Callable[[Node, Any], None]] = {
    ef.Send: Node._send,
    ef.Apply: Node._apply,
    ef.ReadEntries: Node._read,
}

#: What needs no answer here.
_UNHEARD = (
    ef.Persist, ef.Notification, ef.PeersChanged, ef.ProposalAccepted, ef.ProposalRefused,
)  # fmt: skip
