"""The states of a cluster within bounds, and what leads from one to the next.

The core is a pure function: the same node in the same state does the same with the same event. So
each step of the real core is taken once, remembered, and looked up wherever it comes again; nodes
and messages are numbered, and a state of the whole cluster is a handful of numbers. That is what
makes millions of states affordable.

The network is a set. A message stays in it until it is delivered, which may be never: a lost
message is one that nobody delivers.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

from jepsen_like.explore.bounds import Bounds
from jepsen_like.explore.history import History, Invariants
from jepsen_like.explore.node import ELECTION_TIMEOUT_MS, HEARTBEAT_MS, Facts, Node
from jepsen_like.sim.disk import DurableImage
from jepsen_like.sim.errors import BrokenInvariantError
from jepsen_like.sim.manual import configuration_of, incarnation_of, log_of, members_of
from raftcore.core import effects as ef
from raftcore.core import messages as msg
from raftcore.core.config import CoreConfig
from raftcore.core.errors import InvariantError, PeerViolationError
from raftcore.core.fingerprint import FINGERPRINT_BYTES, canonical
from raftcore.core.types import HardState, NodeId, WriteMark

#: What is left of the bounds, by position in a state's ``left``.
ENTRIES, CRASHES, DUPLICATES, TIMEOUTS, HEARTBEATS, STEP_DOWNS, TRANSFERS, CHANGES = range(8)


class State(NamedTuple):
    """A state of the cluster: numbers of nodes, of messages in flight (ascending), what is left of
    the bounds, and the number of the history so far."""

    nodes: tuple[int, ...]
    flight: tuple[int, ...]
    left: tuple[int, ...]
    history: int

    def fingerprint(self) -> bytes:
        numbers = array("I", (*self.nodes, *self.left, self.history, *self.flight))
        return blake2b(numbers.tobytes(), digest_size=FINGERPRINT_BYTES).digest()


class Action(NamedTuple):
    """Something that may happen next: what, at which node, and with which number.

    The number is that of a message, of writes that survive a crash, or of a transfer's target.
    """

    kind: str
    node: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold after some action."""

    invariant: str
    detail: str

    @staticmethod
    def of(error: BrokenInvariantError) -> Violation:
        return Violation(error.invariant, str(error).removeprefix(f"{error.invariant}: "))

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


@dataclass(slots=True)
class Known:
    """What is asked of a numbered node again and again."""

    node: Node
    term: int
    durable_term: int
    role: str
    sticky: bool
    leads: bool
    actions: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Outcome:
    """What one action does to one node: its next number, and the facts. Remembered."""

    node: int
    sent: tuple[int, ...]
    facts: Facts | None  #: None: nothing that an invariant asks about
    moved: bool  #: whether term or role changed, which can make messages meaningless
    violation: Violation | None = None


class Space:
    """Numbers everything, takes each step once."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.names = bounds.names
        self.invariants = Invariants(self)
        self._last_term = bounds.last_term
        self._known: list[Known] = []
        self._numbers: dict[bytes, int] = {}
        #: receiver, sender and message
        self._messages: list[tuple[int, int, msg.Message]] = []
        self._message_numbers: dict[tuple[NodeId, msg.Message], int] = {}
        self._outcomes: dict[tuple[int, str, int], Outcome] = {}
        self._dead: dict[tuple[int, int, int, str, bool], bool] = {}
        self.steps = 0

    def start(self) -> State:
        """The state that the bounds begin with.

        Raises:
            BrokenInvariantError: not even that can be reached without breaking one.
        """
        b = self.bounds
        configuration = configuration_of(b.founders)
        nodes = []
        for name in self.names:
            config = CoreConfig(
                node_id=name,
                incarnation=incarnation_of(name),
                heartbeat_ms=HEARTBEAT_MS,
                election_timeout_ms=ELECTION_TIMEOUT_MS,
                stall_ms=1 << 40,
                max_append_entries=b.batch,
            )
            base = configuration if name in b.founders else replace(configuration, members=())
            image = DurableImage(base)
            if b.start == "divided":
                term, log = _DIVIDED.get(name, _FOLLOWED)
                first = ef.Persist(WriteMark(0, 0), HardState(term), None, tuple(log_of(*log)), 0)
                image.persist(first)
            nodes.append(self._number(Node(config, image)))
        left = (
            b.entries, b.crashes, b.duplicates, b.timeouts, b.heartbeats, b.step_downs, b.transfers,
            b.changes,
        )  # fmt: skip
        state = State(tuple(nodes), (), left, self.invariants.number(History()))
        return self._elected(state) if b.start == "elected" else state

    def _elected(self, state: State) -> State:
        """Let the first node win and commit its no-op everywhere, at no cost to the bounds."""
        action: Action | None = Action("time-out", 0)
        left = state.left
        while action is not None:
            after = self.take(state, action)
            if isinstance(after, Violation):
                raise BrokenInvariantError(after.invariant, after.detail)
            state = after
            usual = (a for a in self.actions(state) if a.kind in ("persist", "deliver"))
            action = next(usual, None)
        return state._replace(left=left)

    # -- looking in -----------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        return self._known[number].node

    def leads(self, number: int, term: int) -> bool:
        known = self._known[number]
        return known.leads and known.term == term

    def index_of(self, name: NodeId) -> int:
        return self.names.index(name)

    @property
    def local_states(self) -> int:
        """How many different states of single nodes there were."""
        return len(self._known)

    def message(self, number: int) -> tuple[NodeId, msg.Message]:
        to, _, message = self._messages[number]
        return self.names[to], message

    # -- numbering ------------------------------------------------------------------------------

    def _number(self, node: Node) -> int:
        key = node.fingerprint()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._known)
            self._known.append(self._look_at(node))
        return number

    def _look_at(self, node: Node) -> Known:
        raft = node.raft
        actions: list[tuple[str, int]] = []
        if node.pending:
            actions.append(("persist", 0))
        if raft.is_leader:
            actions += [("beat", 0), ("miss-quorum", 0), ("propose", 0)]
            actions += [
                ("hand-over", target)
                for target, name in enumerate(self.names)
                if name != node.name and self.bounds.transfers
            ]
            wanted = self.bounds.wanted if self.bounds.changes else ()
            actions += [("change", which) for which in range(len(wanted))]
        elif raft.term < self._last_term:
            actions.append(("time-out", 0))
        actions += [("crash", durable) for durable in range(len(node.pending) + 1)]
        return Known(
            node=node,
            term=raft.term,
            durable_term=node.image.hard_state.term,
            role=raft.role.value,
            sticky=node.sticky,
            leads=raft.is_leader,
            actions=tuple(actions),
        )

    def _message_number(self, to: NodeId, message: msg.Message) -> int:
        key = (to, message)
        number = self._message_numbers.get(key)
        if number is None:
            number = self._message_numbers[key] = len(self._messages)
            self._messages.append((self.index_of(to), self.index_of(message.sender), message))
        return number

    # -- what may happen ------------------------------------------------------------------------

    def actions(self, state: State) -> Iterator[Action]:
        """Everything that may happen next, in an order that only depends on how it came here."""
        left = state.left
        for index, number in enumerate(state.nodes):
            for kind, extra in self._known[number].actions:
                budget = _BUDGETS.get(kind)
                if budget is None or left[budget] > 0:
                    yield Action(kind, index, extra)
        for message in state.flight:
            to, _, m = self._messages[message]
            yield Action("deliver", to, message)
            if left[DUPLICATES]:
                yield Action("duplicate", to, message)
            if type(m) is msg.VoteRequest and self._known[state.nodes[to]].sticky:
                yield Action("deliver-late", to, message)

    def first_actions(self, state: State) -> Iterator[Action]:
        """As :meth:`actions`, at the beginning. Where all nodes are alike but for their names,
        whoever times out first may as well be the first of them."""
        fresh = self.bounds.start == "fresh"
        return (a for a in self.actions(state) if not fresh or a.node == 0)

    def take(self, state: State, action: Action) -> State | Violation:
        """The state after ``action``, or the invariant that it breaks."""
        kind, index, number = action
        left = state.left
        extra = left[ENTRIES] if kind == "propose" else number
        key = (state.nodes[index], "deliver" if kind == "duplicate" else kind, extra)
        outcome = self._outcomes.get(key)
        if outcome is None:
            outcome = self._outcomes[key] = self._step(*key)
        if outcome.violation is not None:
            return outcome.violation
        nodes = (*state.nodes[:index], outcome.node, *state.nodes[index + 1 :])
        flight: tuple[int, ...] = state.flight
        if kind in ("deliver", "deliver-late"):
            flight = tuple([m for m in flight if m != number])
        if outcome.moved:
            flight = tuple([m for m in flight if not self._is_dead(m, nodes)])
        if outcome.sent:
            new = [m for m in outcome.sent if not self._is_dead(m, nodes)]
            flight = tuple(sorted({*flight, *new}))
        budget = _BUDGETS.get(kind)
        if budget is not None:
            left = (*left[:budget], left[budget] - 1, *left[budget + 1 :])
        history = state.history
        if outcome.facts is not None:
            try:
                history = self.invariants.check(history, index, nodes, outcome.facts)
            except BrokenInvariantError as error:
                return Violation.of(error)
        return State(nodes, flight, left, history)

    def _step(self, number: int, kind: str, extra: int) -> Outcome:
        """Take a step of the real core for the first time."""
        self.steps += 1
        before = self._known[number]
        node = before.node.clone()
        try:
            if kind in ("deliver", "deliver-late"):
                message = self._messages[extra][2]
                (node.receive if kind == "deliver" else node.receive_late)(message)
            elif kind == "propose":
                node.propose(b"%d" % extra)
            elif kind == "crash":
                node.crash(extra)
            elif kind == "hand-over":
                node.hand_over(self.names[extra])
            elif kind == "change":
                node.change(members_of(self.bounds.wanted[extra]))
            else:
                _STEPS[kind](node)
        except BrokenInvariantError as error:
            return Outcome(number, (), None, False, Violation.of(error))
        except InvariantError as error:
            return Outcome(number, (), None, False, Violation("core", str(error)))
        except PeerViolationError as error:
            return Outcome(number, (), None, False, Violation("protocol", str(error)))
        facts = node.facts
        sent = tuple(self._message_number(to, message) for to, message in facts.sent)
        facts.sent = [(to, m) for to, m in facts.sent if isinstance(m, msg.AppendReply)]
        changed = node.chains != before.node.chains
        asked = facts.led is not None or facts.commits or facts.sent or changed
        after = self._number(node)
        known = self._known[after]
        moved = (known.durable_term, known.term, known.role) != (
            before.durable_term, before.term, before.role,
        )  # fmt: skip
        return Outcome(after, sent, facts if asked else None, moved)

    # -- messages that mean nothing any more ----------------------------------------------------

    def _is_dead(self, message: int, nodes: tuple[int, ...]) -> bool:
        """Whether delivering it would never again change anything, however late it comes."""
        to, sender, m = self._messages[message]
        known = self._known[nodes[to]]
        asker = self._known[nodes[sender]]
        told = asker.durable_term >= self._last_term
        if told and asker.role == "candidate":
            told = type(m) is not msg.VoteRequest  # it counts each refusal that it hears
        key = (message, known.durable_term, known.term, known.role, told)
        dead = self._dead.get(key)
        if dead is None:
            last = self._last_term
            dead = self._dead[key] = _means_nothing(m, known, last, sender_knows_all_terms=told)
        return dead

    # -- words ----------------------------------------------------------------------------------

    def describe(self, action: Action) -> str:
        """A line of a path. Its first two words name the action in every run."""
        name = self.names[action.node]
        if action.kind in ("deliver", "deliver-late", "duplicate"):
            message = self._messages[action.number][2]
            return f"{action.kind} {self._token(action.number)}  # at {name}: {message}"
        if action.kind == "crash":
            return f"crash {name}:{action.number}  # {action.number} unfinished writes survive"
        if action.kind == "hand-over":
            return f"hand-over {name}:{self.names[action.number]}"
        if action.kind == "change":
            return f"change {name}:{','.join(self.bounds.wanted[action.number])}"
        return f"{action.kind} {name}"

    def _token(self, message: int) -> str:
        to, _, m = self._messages[message]
        seen = repr((to, type(m).__name__, canonical(m)))
        return blake2b(seen.encode(), digest_size=5).hexdigest()

    def find(self, state: State, words: str) -> Action:
        """The action that a line of a path names.

        Raises:
            ValueError: it may not happen here.
        """
        wanted = words.split()[:2]
        for action in self.actions(state):
            if self.describe(action).split()[:2] == wanted:
                return action
        raise ValueError(f"{' '.join(wanted)!r} may not happen here")


def _means_nothing(
    m: msg.Message, known: Known, last_term: int, *, sender_knows_all_terms: bool
) -> bool:
    """Whether the node of ``known`` will never again do anything for ``m``.

    A term that is durable never comes back, and nobody campaigns or leads twice in one term. What
    is left of a message of the past is an answer that tells its sender of a later term, and within
    the bounds there may be none that it does not know.
    """
    if isinstance(m, msg.VoteReply) and m.pre_vote:
        never_again = known.durable_term >= last_term  # does it ask for pre-votes
        return never_again or m.term < known.durable_term + m.granted
    if isinstance(m, _ANSWERS):
        # A candidate may lead yet, and hear then what was said to it before.
        wanted = ("candidate",) if isinstance(m, msg.VoteReply) else ("candidate", "leader")
        still = known.term == m.term and known.role in wanted
        return m.term <= known.durable_term and not still
    return sender_knows_all_terms and m.term < known.durable_term + _is_pre_vote(m)


def _is_pre_vote(m: msg.Message) -> bool:
    """Such a request speaks of the term after the one that its sender is in."""
    return isinstance(m, msg.VoteRequest) and m.pre_vote


#: Term and terms of the log. The first node led term 2 and the second one term 3, with the votes of
#: the rest; neither could replicate what it appended.
_DIVIDED = {"a": (2, (1, 2)), "b": (3, (1, 3))}
_FOLLOWED = (3, (1,))

_ANSWERS = (msg.VoteReply, msg.AppendReply, msg.HeartbeatReply)

_BUDGETS = {
    "propose": ENTRIES,
    "crash": CRASHES,
    "duplicate": DUPLICATES,
    "time-out": TIMEOUTS,
    "beat": HEARTBEATS,
    "miss-quorum": STEP_DOWNS,
    "hand-over": TRANSFERS,
    "change": CHANGES,
}

_STEPS: dict[str, Callable[[Node], None]] = {
    "persist": Node.persist,
    "time-out": Node.time_out,
    "beat": Node.beat,
    "miss-quorum": Node.miss_quorum,
}
