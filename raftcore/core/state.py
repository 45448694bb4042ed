"""The state that the modules of the core work on, and how effects leave it.

Modules stage messages and log changes while an event is handled; :meth:`CoreState.flush` then turns
all of it into one :class:`~raftcore.core.effects.Persist`, the sends, and everything else. That
order, and what each send waits for, is decided here and nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

from raftcore.core.catchup import Departing, Staging
from raftcore.core.config import MS, CoreConfig
from raftcore.core.effects import (
    ConfigurationChanged,
    Effect,
    LeadershipChanged,
    Notification,
    PeersChanged,
    Persist,
    Send,
)
from raftcore.core.errors import MisuseError
from raftcore.core.log import RaftLog
from raftcore.core.membership import ConfigurationStack, decode_configuration, target_of
from raftcore.core.messages import Message
from raftcore.core.progress import Progress
from raftcore.core.types import (
    Configuration,
    Entry,
    EntryType,
    HardState,
    Lease,
    Member,
    NodeId,
    Position,
    SnapshotMeta,
    Target,
    WriteMark,
)

if TYPE_CHECKING:
    import random


#: Rounds of heartbeats that are remembered for a lease: more than an election timeout holds.
LEASE_ROUNDS = 1024


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class WaitFor(IntEnum):
    """What must be durable before a message may leave."""

    NOTHING = 0  #: a leader's own messages: its term became durable before it was elected
    HARD_STATE = 1  #: term and vote
    EVERYTHING = 2  #: term, vote and all entries accepted so far


@dataclass(slots=True)
class PendingRead:
    """A read whose round is not confirmed. ``requester`` None: asked for on this node."""

    counter: int
    index: int
    read_id: int
    requester: NodeId | None


@dataclass(slots=True)
class Transfer:
    """A leadership transfer under way; dies with the leadership it belongs to (rule 50)."""

    target: NodeId
    deadline_ns: int
    timeout_now_sent: bool = False
    #: somebody waits for its outcome; False: a leader that loses its vote hands over by itself
    requested: bool = True


@dataclass(slots=True)
class HandedOver:
    """A transfer whose target was told to campaign and whose leadership is over."""

    target: NodeId
    deadline_ns: int


@dataclass(slots=True)
class PendingChange:
    """A membership request that was accepted here and whose end is not known yet."""

    token: int
    members: tuple[Member, ...]
    lease: Lease | None
    index: int  #: of the first configuration appended for it
    given_up: str | None = None

    @property
    def target(self) -> Target:
        """What a staging configuration for it says."""
        return target_of(self.members)


@dataclass(slots=True)
class Leadership:
    """Everything that exists only while this node leads a term."""

    progress: dict[NodeId, Progress]
    heartbeat_deadline_ns: int
    first_index: int  #: index of this term's no-op
    sequence: int = 0
    read_counter: int = 0
    reads: deque[PendingRead] = field(default_factory=deque)
    reads_before_commit: list[PendingRead] = field(default_factory=list)
    uncommitted: deque[tuple[int, int]] = field(default_factory=deque)
    uncommitted_bytes: int = 0
    transfer: Transfer | None = None
    #: read counters that rounds of heartbeats began with, and when: what a lease is reckoned from
    rounds: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=LEASE_ROUNDS))
    lease_broken: bool = False  #: a transfer was ordered: no lease in this term any more (rule 35)
    staging: Staging | None = None
    span: tuple[tuple[int, Configuration], ...] = ()  #: configurations that ``progress`` reflects
    #: members that a committed configuration has removed, told so for a while yet
    departing: dict[NodeId, Departing] = field(default_factory=dict)

    def next_sequence(self) -> int:
        self.sequence += 1
        return self.sequence

    def close_counter(self) -> int:
        """The newest read counter that was sent so far; what is sent from now on has a later one,
        so that its echoes can be told from those of before."""
        self.read_counter += 1
        return self.read_counter - 1


@dataclass(slots=True)
class Candidacy:
    """Votes of one election round: by voter, for exactly this term and phase (rule 6)."""

    votes: dict[NodeId, bool] = field(default_factory=dict)


@dataclass(slots=True)
class IncomingSnapshot:
    """A snapshot being received. ``storing`` is set while the driver writes a chunk."""

    meta: SnapshotMeta
    leader: NodeId
    term: int  #: in which the leader sent the newest chunk
    next_offset: int = 0
    storing: bool = False
    installing: bool = False
    sequence: int = 0
    read_counter: int = 0


class CoreState:
    """State of one node's core."""

    def __init__(
        self,
        config: CoreConfig,
        log: RaftLog,
        configurations: ConfigurationStack,
        hard_state: HardState,
        rng: random.Random,
        now_ns: int,
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.log = log
        self.configurations = configurations
        self.rng = rng
        self.now_ns = now_ns
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.leader_id: NodeId | None = None
        self.leader_contact_ns: int | None = None
        self.election_deadline_ns = now_ns
        self.leadership: Leadership | None = None
        self.candidacy: Candidacy | None = None
        self.incoming: IncomingSnapshot | None = None
        self.handed_over: HandedOver | None = None
        self.pending_change: PendingChange | None = None
        #: whether a committed configuration had this node, up to the one at ``judged_index``
        self.was_member = False
        self.removed = False
        self.judged_index = -1
        #: reads of this node waiting for the leader's answer
        self.remote_reads: set[int] = set()
        #: confirmed reads of this node waiting to be applied: index by read id, ascending; a
        #: reader that goes away is taken out of the middle
        self.confirmed_reads: OrderedDict[int, int] = OrderedDict()
        self.reading_to_apply: int | None = None
        self.next_request_id = 1
        #: durable writes under way: sequence and when it was issued, oldest first
        self.unfinished_writes: deque[tuple[int, int]] = deque()
        self.quarantined = False
        self.quarantine_final = False  #: nothing vouches for its term and vote: there is no way out
        self.release_index: int | None = None  #: what ends the quarantine, once a leader said it
        self.ending_quarantine = False
        #: how far an append of that term has shown the log to be its leader's, if this run began in
        #: quarantine
        self.verified: Position | None = None
        self.no_votes_until_ns = now_ns
        self._effects: list[Effect] = []
        self._sends: list[tuple[NodeId, Message, WaitFor]] = []
        self._new_entries: list[Entry] = []
        self._truncate_from: int | None = None
        self._hard_state_changed = False
        self._next_mark = 1
        self._hard_mark: WriteMark | None = None
        self._announced: tuple[Role, int, NodeId | None] = (Role.FOLLOWER, self.term, None)
        self._peers_key: object = None
        self.announced_peers = self.peers()

    # -- who we are -----------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration:
        return self.configurations.current

    @property
    def is_voter(self) -> bool:
        return self.is_voter_of(self.configuration)

    def is_voter_of(self, configuration: Configuration) -> bool:
        member = self._own_member(configuration)
        return member is not None and (member.voter or self.node_id in configuration.old_voters)

    def is_member_of(self, configuration: Configuration) -> bool:
        return self._own_member(configuration) is not None

    def _own_member(self, configuration: Configuration) -> Member | None:
        """None if it has our id under another incarnation: that was somebody else (rule 43)."""
        member, own = configuration.member(self.node_id), self.config.incarnation
        return None if member is not None and own and member.incarnation != own else member

    @property
    def election_timeout_ns(self) -> int:
        """The minimum; a lease in force may ask for more than this node's own setting (rule 35)."""
        lease = self.configuration.lease
        own_ms = self.config.election_timeout_ms
        return MS * (own_ms if lease is None else max(own_ms, lease.election_timeout_ms))

    def peers(self) -> tuple[Member, ...]:
        """Whom this node talks to: every member of the configurations from the last committed one
        to the one in force, and on a leader those who still have to learn that they are removed."""
        found: dict[NodeId, Member] = {}
        if self.leadership is not None:
            found |= {node: gone.member for node, gone in self.leadership.departing.items()}
        for _, configuration in self.configurations.since(self.log.committed):
            found |= {m.node_id: m for m in configuration.members}
        found.pop(self.node_id, None)
        return tuple(found[node] for node in sorted(found))

    @property
    def pending_reads(self) -> int:
        """Reads that wait for confirmation or to be applied."""
        pending = len(self.remote_reads) + len(self.confirmed_reads)
        if self.leadership is not None:
            pending += len(self.leadership.reads) + len(self.leadership.reads_before_commit)
        return pending

    def voters(self) -> list[NodeId]:
        configuration = self.configuration
        return sorted(set(configuration.voters) | set(configuration.old_voters))

    # -- staging --------------------------------------------------------------------------------

    def emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def send(self, to: NodeId, message: Message, wait_for: WaitFor) -> None:
        assert to != self.node_id, "a node does not send messages to itself"
        self._sends.append((to, message, wait_for))

    def set_hard_state(self, term: int, vote: NodeId | None) -> None:
        """Term and vote, as one record (rule 2). A vote is cleared only when the term grows."""
        assert term > self.term or (term == self.term and self.vote in (None, vote))
        self.term, self.vote = term, vote
        self._hard_state_changed = True

    def append(self, entries: tuple[Entry, ...]) -> None:
        self.log.append(entries)
        self._new_entries.extend(entries)
        for entry in entries:
            if entry.type is EntryType.CONFIGURATION:
                configuration = decode_configuration(entry.data)
                self.configurations.push(entry.index, configuration)
                self.emit(ConfigurationChanged(configuration, entry.index))

    def truncate(self, from_index: int) -> None:
        assert not self._new_entries, "truncation comes before the entries of one write"
        self.log.truncate(from_index)
        self._truncate_from = from_index
        if self.configurations.truncate(from_index):
            configurations = self.configurations
            self.emit(ConfigurationChanged(configurations.current, configurations.current_index))

    def write_durable(self, mark: WriteMark) -> None:
        if mark.sequence >= self._next_mark:
            raise MisuseError(f"write {mark.sequence} was never issued")
        self.log.write_durable(mark)
        while self.unfinished_writes and self.unfinished_writes[0][0] <= mark.sequence:
            self.unfinished_writes.popleft()
        if self._hard_mark is not None and self._hard_mark.sequence <= mark.sequence:
            self._hard_mark = None

    @property
    def hard_state_durable(self) -> bool:
        return self._hard_mark is None and not self._hard_state_changed

    def request_id(self) -> int:
        self.next_request_id += 1
        return self.next_request_id

    # -- leaving --------------------------------------------------------------------------------

    @property
    def staged(self) -> bool:
        """Whether the event being handled has had any effect so far."""
        changed = self._hard_state_changed or self._truncate_from is not None
        return bool(changed or self._effects or self._sends or self._new_entries)

    def flush(self) -> list[Effect]:
        """All effects of the event just handled: the write first, then whom to send to and what,
        then the rest in its order, notifications last.

        Durability must not hang on anything that is carried out before it, least of all on what
        somebody does when he is notified.
        """
        self._announce()
        effects: list[Effect] = []
        if self._hard_state_changed or self._new_entries or self._truncate_from is not None:
            effects.append(self._persist())
        effects += self._changed_peers()
        if self._sends:
            effects += self._marked_sends()
            self._sends = []
        if self._effects:
            effects += sorted(self._effects, key=_is_notification)  # otherwise in their order
            self._effects = []
        return effects

    def _changed_peers(self) -> list[Effect]:
        departing = self.leadership.departing if self.leadership is not None else ()
        key = (self.configurations.since(self.log.committed), tuple(departing))
        if key == self._peers_key:
            return []
        self._peers_key = key
        before, now = self.announced_peers, self.peers()
        ids = {m.node_id for m in now}
        last_words = {to for to, _, _ in self._sends} - ids
        if last_words:  # what this step still tells a former peer must find it
            now = (*now, *(m for m in before if m.node_id in last_words))
            now = tuple(sorted(now, key=lambda m: m.node_id))
            self._peers_key = None  # once more with the next step
        self.announced_peers = now
        return [PeersChanged(now)] if now != before else []

    def _marked_sends(self) -> list[Send]:
        """Messages with the write that each of them waits for.

        The marks do not ascend: term and vote may have been written long before the entries that
        an earlier message of the same step or of another waits for.
        """
        marks = (None, self._hard_mark, self.log.last_issued)  # by WaitFor
        return [Send(to, message, marks[wait_for]) for to, message, wait_for in self._sends]

    def _persist(self) -> Persist:
        mark = WriteMark(self._next_mark, self.term)
        self._next_mark += 1
        self.log.write_issued(mark)
        self.unfinished_writes.append((mark.sequence, self.now_ns))
        hard_state = None
        if self._hard_state_changed:
            hard_state = HardState(self.term, self.vote)
            self._hard_mark = mark
        write = Persist(
            mark,
            hard_state,
            self._truncate_from,
            tuple(self._new_entries),
            min(self.log.committed, self.log.durable),
        )
        self._hard_state_changed = False
        self._truncate_from = None
        self._new_entries = []
        return write

    def _announce(self) -> None:
        now = (self.role, self.term, self.leader_id)
        if now != self._announced:
            self._announced = now
            self.emit(LeadershipChanged(self.role.value, self.term, self.leader_id))


def _is_notification(effect: Effect) -> bool:
    return isinstance(effect, Notification)
