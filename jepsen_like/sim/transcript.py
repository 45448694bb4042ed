"""Transcripts: a scenario in a small language, and beside each command all that it leads to.

A transcript is a text file. Lines that begin with ``>`` are commands, lines that begin with ``#``
and empty lines are for the reader; all other lines are what the cores did, and are written by
:func:`rewrite`. A change in behaviour is then a change in a text that reads like a textbook.

Commands (a node is named by its number; ``1->2`` stands for what 1 says to 2, either may be left
out; a kind is the first word of a message, ``#7`` the request of that number)::

    nodes 3 [learners=4] [log.1=1,1,2] [term.1=3] [lease=300] [setting=value]   a new cluster
    campaign 1             all clocks move to the election deadline of 1, which ticks
    elect 1                the same, and all that follows; only its outcome is shown
    tick 1 [100ms]         its clock moves, it ticks
    time 100ms             all clocks move, nobody ticks
    pass 100ms             all tick when due and messages arrive, without being shown
    deliver [1->2] [kind] [#7] [once]   what is on the wire, and what that leads to
    drop [1->2] [kind] [#7]     lose it
    repeat [1->2] [kind] [#7]   deliver it, and keep it on the wire
    propose 1 x y          commands for the log; several are one batch
    read 1 7 [lease]       a read named 7
    transfer 1 [2]         hand leadership over
    abort 1                give that up
    join 4                 a new node that knows nobody
    change 1 voters=1,2 [learners=4] [lease=300]   ask 1 for these members
    hold 1 disk|apply      from now on its writes, or entries to apply, wait
    persist 1 [n], apply 1 let them go on: the oldest n writes, or all
    release 1              nothing waits any more
    snapshot 1             of its state machine as it is
    crash 1, restart 1     what is not durable is lost
    rollback 1 5           the disk of a crashed node goes back to index 5, and says so (D3)
    isolate 1, cut 1 2, heal       connections
    unreachable 1 2        the transport of 1 reports that it lost 2
    status [1], log [1], wire      look
"""

from __future__ import annotations

from collections.abc import Callable

from jepsen_like.sim.manual import ManualCluster, ManualNode
from jepsen_like.sim.words import effect_words, message_words, status_words
from raftcore.core import events as ev
from raftcore.core.config import MS
from raftcore.core.errors import InvariantError
from raftcore.core.messages import Message
from raftcore.core.types import Lease, NodeId

MAX_ROUNDS = 200
CLOCK_ERROR_PPM = 500
Filter = Callable[[NodeId, Message], bool]


class TranscriptError(ValueError):
    """A line that is no command, or a command that can not be carried out."""


def rewrite(text: str) -> str:
    """``text`` with everything that its commands lead to.

    Raises:
        TranscriptError: naming the line.
    """
    scenario = Scenario()
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(">"):
            try:
                found = scenario.run(line[1:].split())
            except TranscriptError as error:
                raise TranscriptError(f"line {number}: {error}") from error
            lines += [line, *found]
        elif not line or line.startswith("#"):
            lines.append(line)
    return "\n".join(lines) + "\n"


class Scenario:
    """A cluster stepped by commands. See the module for what there is."""

    def __init__(self) -> None:
        self._cluster: ManualCluster | None = None
        self._lines: list[str] = []
        self._shown: dict[NodeId, int] = {}
        self._down: set[NodeId] = set()

    def run(self, words: list[str]) -> list[str]:
        """Carry out one command; returns what was seen."""
        if not words or words[0] not in _COMMANDS:
            raise TranscriptError(f"{' '.join(words)!r} is no command")
        self._lines = []
        try:
            _COMMANDS[words[0]](self, words[1:])
        except TranscriptError:
            raise
        except (AssertionError, IndexError, KeyError, ValueError) as error:
            raise TranscriptError(f"{' '.join(words)!r}: {error!r}") from error
        if self._cluster is not None:
            self._cluster.collect()
        return self._lines

    # -- showing --------------------------------------------------------------------------------

    @property
    def cluster(self) -> ManualCluster:
        if self._cluster is None:
            raise TranscriptError("there are no nodes yet")
        return self._cluster

    def node(self, name: NodeId) -> ManualNode:
        if name not in self.cluster.nodes:
            raise TranscriptError(f"there is no node {name}")
        if name in self._down:
            raise TranscriptError(f"{name} is down")
        return self.cluster[name]

    def _say(self, line: str) -> None:
        self._lines.append(f"  {line}")

    def _act(self, name: NodeId, act: Callable[[ManualNode], object]) -> None:
        """Let a node do something and show what came of it."""
        node = self.node(name)
        try:
            act(node)
        except InvariantError as error:
            self._say(f"{name} STOPS: {error}")
            self._down.add(name)
        self._show(name)

    def _show(self, name: NodeId) -> None:
        effects = self.cluster[name].effects
        for effect in effects[self._shown.get(name, 0) :]:
            self._say(f"{name} {effect_words(effect)}")
        self._shown[name] = len(effects)

    # -- the cluster ----------------------------------------------------------------------------

    def nodes(self, words: list[str]) -> None:
        options = dict(word.split("=", 1) for word in words[1:])
        count = int(words[0])
        learners = [name for name in options.pop("learners", "").split(",") if name]
        names = [str(number) for number in range(1, count + 1)]
        logs: dict[NodeId, list[int]] = {}
        terms: dict[NodeId, int] = {}
        settings: dict[str, int] = {}
        for key, value in options.items():
            kind, _, name = key.partition(".")
            if kind == "log":
                logs[name] = [int(term) for term in value.split(",")]
            elif kind == "term":
                terms[name] = int(value)
            else:
                settings[key] = int(value)
        lease = settings.pop("lease", 0)
        self._cluster = ManualCluster(
            names,
            learners=learners,
            lease=Lease(lease, CLOCK_ERROR_PPM) if lease else None,
            logs=logs,
            terms=terms,
            **settings,
        )
        self._shown, self._down = {}, set()

    def hold(self, words: list[str]) -> None:
        name, what = words
        setattr(self.node(name), {"disk": "hold_disk", "apply": "hold_apply"}[what], True)

    def persist(self, words: list[str]) -> None:
        count = int(words[1]) if len(words) > 1 else None
        self._act(words[0], lambda node: node.flush(count))

    def apply(self, words: list[str]) -> None:
        self._act(words[0], ManualNode.apply_now)

    def release(self, words: list[str]) -> None:
        node = self.node(words[0])
        node.hold_disk = node.hold_apply = False
        self._act(words[0], ManualNode.flush)
        self._act(words[0], ManualNode.apply_now)

    def snapshot(self, words: list[str]) -> None:
        self._act(words[0], ManualNode.take_snapshot)

    def crash(self, words: list[str]) -> None:
        node = self.node(words[0])
        lost = [w.mark.sequence for w in node.pending]
        node.outbox.clear()
        self._down.add(words[0])
        if lost:
            self._say(f"{words[0]} loses {' '.join(f'w{number}' for number in lost)}")

    def rollback(self, words: list[str]) -> None:
        if words[0] not in self._down:
            raise TranscriptError(f"{words[0]} is up")
        self.cluster[words[0]].image.roll_back(int(words[1]))

    def restart(self, words: list[str]) -> None:
        (name,) = words
        if name not in self._down:
            raise TranscriptError(f"{name} is up")
        self._down.discard(name)
        node = self.cluster[name]
        node.hold_disk = node.hold_apply = False
        node.start()
        self.status(words)

    # -- time -----------------------------------------------------------------------------------

    def campaign(self, words: list[str]) -> None:
        deadline = self.node(words[0]).raft.next_deadline_ns
        self.cluster.set_time(max(self.cluster.now_ns, deadline))
        self._act(words[0], ManualNode.tick)

    def elect(self, words: list[str]) -> None:
        self.cluster.elect(words[0])
        self._forget_shown()
        self.status(words)

    def tick(self, words: list[str]) -> None:
        node = self.node(words[0])
        node.now_ns = max(node.now_ns, self.cluster.now_ns)
        if len(words) > 1:
            node.now_ns += _milliseconds(words[1]) * MS
        self._act(words[0], ManualNode.tick)

    def time(self, words: list[str]) -> None:
        self.cluster.set_time(self.cluster.now_ns + _milliseconds(words[0]) * MS)

    def let_pass(self, words: list[str]) -> None:
        self.cluster.advance(_milliseconds(words[0]))
        self._forget_shown()

    def _forget_shown(self) -> None:
        """What has happened so far is not to be shown."""
        for name, node in self.cluster.nodes.items():
            self._shown[name] = len(node.effects)

    # -- messages -------------------------------------------------------------------------------

    def deliver(self, words: list[str]) -> None:
        once = "once" in words
        wanted = _filter([word for word in words if word != "once"])
        for _ in range(1 if once else MAX_ROUNDS):
            chosen = self._take(wanted)
            if not chosen:
                return
            for to, message in chosen:
                self._deliver_one(to, message)
        if not once:
            raise TranscriptError("messages go round for ever")

    def _take(self, wanted: Filter) -> list[tuple[NodeId, Message]]:
        wire = self.cluster.collect()
        chosen = [pair for pair in wire if wanted(*pair)]
        self.cluster.wire = [pair for pair in wire if not wanted(*pair)]
        return chosen

    def _deliver_one(self, to: NodeId, message: Message) -> None:
        said = f"{to} <- {message.sender}: {message_words(message)}"
        gone = to in self._down or to not in self.cluster.nodes
        if gone or (message.sender, to) in self.cluster.cuts:
            self._say(f"{said}  [lost]")
            return
        self._say(said)
        self._act(to, lambda node: node.receive(message))

    def drop(self, words: list[str]) -> None:
        for to, message in self._take(_filter(words)):
            self._say(f"{to} <- {message.sender}: {message_words(message)}  [lost]")

    def repeat(self, words: list[str]) -> None:
        chosen = self._take(_filter(words))
        for to, message in chosen:
            self._deliver_one(to, message)
        self.cluster.wire.extend(chosen)

    def wire(self, _words: list[str]) -> None:
        for to, message in self.cluster.wire:
            self._say(f"{message.sender} -> {to}: {message_words(message)}")

    def cut(self, words: list[str]) -> None:
        self.cluster.cut(words[0], words[1])

    def isolate(self, words: list[str]) -> None:
        self.cluster.isolate(words[0])

    def heal(self, _words: list[str]) -> None:
        self.cluster.heal()

    def unreachable(self, words: list[str]) -> None:
        self._act(words[0], lambda n: n.step(ev.PeerUnreachable(n.now_ns, words[1])))

    # -- requests -------------------------------------------------------------------------------

    def propose(self, words: list[str]) -> None:
        self._act(words[0], lambda node: node.propose(*(word.encode() for word in words[1:])))

    def read(self, words: list[str]) -> None:
        by_lease = "lease" in words[2:]
        self._act(words[0], lambda node: node.read(int(words[1]), by_lease=by_lease))

    def transfer(self, words: list[str]) -> None:
        target = words[1] if len(words) > 1 else None
        self._act(words[0], lambda n: n.step(ev.TransferRequested(n.now_ns, target)))

    def abort(self, words: list[str]) -> None:
        self._act(words[0], lambda n: n.step(ev.TransferAborted(n.now_ns)))

    def join(self, words: list[str]) -> None:
        self.cluster.join(words[0])

    def change(self, words: list[str]) -> None:
        wanted = dict(word.split("=", 1) for word in words[1:])
        learners = [name for name in wanted.get("learners", "").split(",") if name]
        lease = Lease(int(wanted["lease"]), CLOCK_ERROR_PPM) if "lease" in wanted else None
        voters = wanted["voters"].split(",")
        self._act(words[0], lambda node: node.change(voters, learners, lease=lease))

    # -- looking --------------------------------------------------------------------------------

    def status(self, words: list[str]) -> None:
        for name in words or self.cluster.nodes:
            if name in self._down:
                self._say(f"{name} is down")
                continue
            first, *rest = status_words(self.node(name).raft.status())
            self._say(f"{name} {first}")
            for line in rest:
                self._say(line)

    def log(self, words: list[str]) -> None:
        for name in words or self.cluster.nodes:
            image = self.cluster.nodes[name].image
            places = " ".join(f"{entry.index}@{entry.term}" for entry in image.entries)
            self._say(f"{name} has durably {places or 'nothing'}")


def _filter(words: list[str]) -> Filter:
    """Which messages are meant: by who speaks to whom, and by kind."""
    sender = receiver = kind = name = ""
    for word in words:
        if "->" in word:
            sender, _, receiver = word.partition("->")
        elif word.startswith("#"):
            name = f" {word}:"
        else:
            kind = word

    def wanted(to: NodeId, message: Message) -> bool:
        return (
            receiver in ("", to)
            and sender in ("", message.sender)
            and message_words(message).startswith(kind)
            and name in message_words(message)
        )

    return wanted


def _milliseconds(word: str) -> int:
    if not word.endswith("ms"):
        raise TranscriptError(f"{word!r} is no time; 100ms would be one")
    return int(word.removesuffix("ms"))


_COMMANDS: dict[str, Callable[[Scenario, list[str]], None]] = {
    name: getattr(Scenario, {"pass": "let_pass"}.get(name, name))
    for name in (
        "nodes", "join", "campaign", "elect", "tick", "time", "pass", "deliver", "drop", "repeat",
        "propose", "read", "transfer", "abort", "change", "hold", "persist", "apply", "release",
        "snapshot", "crash", "rollback", "restart", "isolate", "cut", "heal", "unreachable",
        "status", "log", "wire",
    )
}  # fmt: skip
