"""Exploration: it finds what is broken, finds nothing else, and its shortcuts are sound."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from jepsen_like.cli import main
from jepsen_like.explore import Bounds, Figures, Space, Violation, explore
from jepsen_like.explore.node import Node
from jepsen_like.explore.search import replay
from jepsen_like.explore.space import Action, State
from raftcore.core import change, election, inbox, membership, messages, quorum, replication
from raftcore.core import events as ev
from raftcore.core.log import RaftLog
from raftcore.core.messages import AppendReply, AppendRequest, Message, VoteReply, VoteRequest
from raftcore.core.state import CoreState, Leadership, WaitFor
from raftcore.core.types import NodeId, WriteMark

#: Without what only makes more of the same.
PLAIN = {"heartbeats": 0, "step_downs": 0, "duplicates": 0}

#: name -> bounds, most states, fewest elections and commits that must be seen
SCOPES: dict[str, tuple[Bounds, int, int, int]] = {
    "first election": (Bounds(terms=1, timeouts=1, entries=1, crashes=0, **PLAIN), 60_000, 1, 2),
    "everything": (Bounds(), 60_000, 3, 0),
    "next leader": (
        Bounds(start="elected", terms=1, timeouts=1, entries=1, crashes=0, **PLAIN),
        60_000, 1, 2,
    ),
    "figure 8": (
        Bounds(start="divided", terms=1, timeouts=1, entries=0, crashes=1, **PLAIN), 60_000, 1, 1,
    ),
    "transfer": (
        Bounds(start="elected", terms=1, timeouts=0, entries=1, crashes=0, transfers=1, **PLAIN),
        60_000, 3, 5,
    ),
    "removal": (
        Bounds(start="elected", terms=1, timeouts=1, entries=0, crashes=1, changes=1, **PLAIN),
        40_000, 1, 3,
    ),
    "replacement": (
        Bounds(
            start="elected", terms=1, timeouts=1, entries=0, crashes=0, changes=1, spares=1,
            batch=9, **PLAIN,
        ),
        40_000, 1, 3,
    ),
    "five nodes": (Bounds(nodes=5, terms=1, timeouts=1, entries=0, **PLAIN), 20_000, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("scope", SCOPES)
def test_every_invariant_holds_in_every_order(scope: str) -> None:
    bounds, limit, elections, commits = SCOPES[scope]
    figures = explore(bounds, limit)
    assert figures.violation is None, "\n".join(figures.path)
    assert figures.complete or figures.states >= limit
    assert figures.elections >= elections
    assert figures.commits >= commits


def test_small_bounds_are_explored_completely() -> None:
    figures = explore(Bounds(terms=1, timeouts=1, entries=0, crashes=0, **PLAIN), 10**6)
    assert figures.complete
    assert figures.states > 500
    assert figures.commits == 1, "the no-op of the only leader there can be"


def test_what_was_explored_does_not_depend_on_the_run() -> None:
    bounds = Bounds(start="elected", terms=1, timeouts=1, entries=1, crashes=0, **PLAIN)
    first, second = explore(bounds, 20_000), explore(bounds, 20_000)
    for name in ("states", "transitions", "depth", "node_states", "core_steps"):
        assert getattr(first, name) == getattr(second, name)


# -- what is broken is found --------------------------------------------------------------------


def sends_at_once(kind: type[Message]) -> Callable[[pytest.MonkeyPatch], None]:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        send = CoreState.send

        def early(s: CoreState, to: NodeId, m: Message, wait_for: WaitFor) -> None:
            send(s, to, m, WaitFor.NOTHING if isinstance(m, kind) else wait_for)

        patch.setattr(CoreState, "send", early)

    return mutate


def half_is_a_majority(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quorum, "majority_size", lambda voters: max(len(voters) // 2, 1))


def any_log_is_up_to_date(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(election, "up_to_date", lambda _s, _m: True)


def votes_twice(patch: pytest.MonkeyPatch) -> None:
    """The vote is forgotten when another candidate of the term asks (rule 3)."""
    vote = election.on_vote_request

    def forgetful(s: CoreState, m: VoteRequest) -> None:
        if s.vote != s.node_id:
            s.vote = None
        vote(s, m)

    patch.setattr(election, "on_vote_request", forgetful)


def commits_what_it_did_not_verify(patch: pytest.MonkeyPatch) -> None:
    """A follower takes the leader's commit index for its own log (rule 19)."""
    handle = replication.on_append_request

    def eager(s: CoreState, m: AppendRequest) -> None:
        handle(s, m)
        s.log.commit(min(m.commit, s.log.last_index))

    patch.setitem(inbox._MESSAGES, AppendRequest, inbox._leaders(eager))


def counts_entries_of_old_terms(patch: pytest.MonkeyPatch) -> None:
    def advance(s: CoreState, leadership: Leadership) -> None:
        matches = {peer: p.match_index for peer, p in leadership.progress.items()}
        matches[s.node_id] = s.log.durable
        s.log.commit(quorum.quorum_value(s.configuration, matches.__getitem__))

    patch.setattr(replication, "advance_commit", advance)


def counts_itself_too_early(patch: pytest.MonkeyPatch) -> None:
    def issued(log: RaftLog, _mark: WriteMark) -> None:
        log.durable = log.last_index

    patch.setattr(RaftLog, "write_issued", issued)


def applies_before_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RaftLog, "applicable", lambda log: (log.handed + 1, log.committed))


FRESH = Bounds(terms=1, entries=0, timeouts=2, **PLAIN)
ELECTED = Bounds(start="elected", terms=1, entries=1, timeouts=1, **PLAIN)
DIVIDED = Bounds(start="divided", terms=1, entries=0, timeouts=1, **PLAIN)


def joint_is_the_new_majority_only(patch: pytest.MonkeyPatch) -> None:
    count = quorum.quorum_value
    patch.setattr(
        replication, "quorum_value",
        lambda c, value_of: count(dataclasses.replace(c, old_voters=(), leaving=()), value_of),
    )  # fmt: skip


def changes_without_joint_mode(patch: pytest.MonkeyPatch) -> None:
    joint = membership.joint_of
    patch.setattr(change, "joint_of", lambda staging: membership.final_of(joint(staging)))


REPLACED = Bounds(
    start="elected", terms=1, timeouts=0, entries=0, crashes=0, changes=1, spares=1, batch=9,
    **PLAIN,
)  # fmt: skip
REPAIRED = Bounds(start="divided", terms=1, entries=0, timeouts=1, crashes=0, batch=9, **PLAIN)

MUTANTS = {
    "vote before it is durable": (sends_at_once(VoteReply), FRESH, {"I17"}),
    "campaign before it is durable": (sends_at_once(VoteRequest), FRESH, {"I17"}),
    "acknowledgement before it is durable": (sends_at_once(AppendReply), DIVIDED, {"I17"}),
    "half is a majority": (half_is_a_majority, FRESH, {"I1", "I9"}),
    "two votes in one term": (votes_twice, FRESH, {"I2"}),
    "any log is up to date": (any_log_is_up_to_date, ELECTED, {"I6"}),
    "old terms are counted": (counts_entries_of_old_terms, DIVIDED, {"I8"}),
    "commit of what was not verified": (commits_what_it_did_not_verify, REPAIRED, {"I7"}),
    "joint mode counts the new voters only": (joint_is_the_new_majority_only, REPLACED, {"I9"}),
    "voters change without joint mode": (changes_without_joint_mode, REPLACED, {"I14"}),
    "leader counts itself early": (counts_itself_too_early, FRESH, {"I17"}),
    "applied before durable": (applies_before_durable, ELECTED, {"I10"}),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_found_and_its_path_leads_there_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exploration that can not fail proves nothing."""
    mutate, bounds, invariants = MUTANTS[name]
    mutate(monkeypatch)
    figures = explore(bounds, 400_000)
    assert figures.violation is not None, f"{figures.states} states and nothing found"
    assert figures.violation.invariant in invariants, str(figures.violation)
    assert replay(bounds, figures.path) == figures.violation
    monkeypatch.undo()
    with contextlib.suppress(ValueError):  # the real core does not always come that far
        assert isinstance(replay(bounds, figures.path), State), "the real core breaks nothing"


# -- the shortcuts are sound --------------------------------------------------------------------


class DoubtingSpace(Space):
    """Whenever two nodes are taken for the same it asks whether they do the same."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self.compared = 0
        self._rng = random.Random(7)

    def _number(self, node: Node) -> int:
        known = len(self._known)
        number = super()._number(node)
        if number < known and self._rng.random() < 0.3:
            self._compare(self.node(number), node)
        return number

    def _compare(self, one: Node, other: Node) -> None:
        for act in self._events(one):
            left, right = one.clone(), other.clone()
            assert self._outcome(left, act) == self._outcome(right, act)
            self.compared += 1

    @staticmethod
    def _outcome(node: Node, act: Callable[[Node], None]) -> object:
        try:
            act(node)
        except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
            return type(error), str(error)
        return node.fingerprint(), node.facts

    def _events(self, node: Node) -> list[Callable[[Node], None]]:
        events: list[Callable[[Node], None]] = [Node.beat, lambda n: n.crash(0)]
        if node.pending:
            events.append(Node.persist)
        if not node.raft.is_leader:
            events.append(Node.time_out)
        ours = [m for to, _, m in self._messages if self.names[to] == node.name]
        some = self._rng.sample(ours, min(4, len(ours)))
        return events + [functools.partial(Node.receive, message=m) for m in some]


@pytest.mark.parametrize("start", ["fresh", "elected", "divided"])
def test_nodes_of_one_fingerprint_do_the_same(start: str) -> None:
    """Steps are looked up by fingerprint, which stands or falls with this."""
    space = DoubtingSpace(Bounds(start=start, entries=1))
    rng = random.Random(3)
    for _ in range(80):
        state = space.start()
        for _ in range(60):
            actions = list(space.actions(state))
            if not actions:
                break
            after = space.take(state, rng.choice(actions))
            assert isinstance(after, State)
            state = after
    assert space.compared > 1000


class KeepingSpace(Space):
    """Remembers the messages that were dropped because nothing could come of them any more."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self.dropped: set[int] = set()

    def _is_dead(self, message: int, nodes: tuple[int, ...]) -> bool:
        dead = super()._is_dead(message, nodes)
        if dead:
            self.dropped.add(message)
        return dead

    def deliver_all_the_same(self, state: State) -> int:
        """Whatever was dropped on the way here; returns how many messages that were."""
        for message in sorted(self.dropped):
            to, _, m = self._messages[message]
            node, twin = (self.node(state.nodes[to]).clone() for _ in range(2))
            node._step(ev.Tick(node.now_ns))  # after a restart any event brings what is committed
            twin.receive(m)
            assert twin.raft.fingerprint() == node.raft.fingerprint(), m
            assert (twin.pending, twin.chains) == (node.pending, node.chains)
            said = twin.facts.sent + [(send.to, send.message) for send in twin.waiting]
            for pair in said[len(node.facts.sent) :]:
                if pair in [(send.to, send.message) for send in node.waiting]:
                    continue
                answer = self._message_number(*pair)
                assert Space._is_dead(self, answer, state.nodes), self._messages[answer]
        return len(self.dropped)


@pytest.mark.parametrize("start", ["fresh", "elected", "divided"])
def test_what_is_taken_for_meaningless_changes_nothing_however_late_it_comes(start: str) -> None:
    """Messages are dropped once nothing can come of them: deliver them all the same."""
    space = KeepingSpace(Bounds(start=start, entries=1))
    rng = random.Random(5)
    delivered = 0
    for _ in range(60):
        state = space.start()
        space.dropped.clear()
        for _ in range(60):
            actions = list(space.actions(state))
            if not actions:
                break
            after = space.take(state, rng.choice(actions))
            assert isinstance(after, State)
            state = after
            delivered += space.deliver_all_the_same(state)
    assert delivered > 1000


def test_a_crash_loses_what_is_not_durable_and_keeps_what_is() -> None:
    space = Space(Bounds(entries=0))
    state = space.start()
    for words in ("time-out a", "at b", "at a"):
        state = must_take(space, state, words)
    assert space.node(state.nodes[0]).raft.term == 1
    terms = {}
    for survive in (0, 1):
        after = must_take(space, state, f"crash a:{survive}")
        terms[survive] = space.node(after.nodes[0]).raft.term
    assert terms == {0: 0, 1: 1}


def must_take(space: Space, state: State, words: str) -> State:
    for action in space.actions(state):
        if words in space.describe(action):
            after = space.take(state, action)
            assert isinstance(after, State)
            return after
    raise AssertionError(words)


def test_a_duplicate_stays_in_flight_and_counts() -> None:
    space = Space(Bounds(duplicates=1))
    state = must_take(space, space.start(), "time-out a")
    once = must_take(space, state, "duplicate")
    assert set(state.flight) < set(once.flight)
    assert not any(a.kind == "duplicate" for a in space.actions(once))


def test_a_silent_leader_is_not_believed_in_for_ever() -> None:
    """A vote request can come before and after the moment in which a follower gives up on it."""
    space = Space(Bounds(start="elected", timeouts=1))
    state = must_take(space, space.start(), "time-out b")
    asked = [a for a in space.actions(state) if a.kind.startswith("deliver")]
    assert {a.kind for a in asked if a.node == 2} == {"deliver", "deliver-late"}
    refused = must_take_action(space, state, Action("deliver", 2, asked_number(asked, 2)))
    granted = must_take_action(space, state, Action("deliver-late", 2, asked_number(asked, 2)))
    answers = [space.message(m)[1] for s in (refused, granted) for m in s.flight]
    grants = [m.granted for m in answers if isinstance(m, messages.VoteReply)]
    assert sorted(grants) == [False, True]


def asked_number(actions: list[Action], node: int) -> int:
    return next(a.number for a in actions if a.node == node)


def must_take_action(space: Space, state: State, action: Action) -> State:
    after = space.take(state, action)
    assert isinstance(after, State)
    return after


# -- bounds and command -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"nodes": 0}, {"nodes": 6}, {"terms": 0}, {"crashes": -1}, {"batch": 0}, {"start": "x"}],
    ids=str,
)
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Bounds(**wrong)


def test_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepsen_like.explore.search.REPORT_EVERY_S", 0.0)
    seen: list[int] = []
    explore(Bounds(), 2000, lambda figures: seen.append(figures.states))
    assert seen == sorted(seen)
    assert len(seen) > 10


def test_the_command_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--limit", "3000"]) == 0
    printed = capsys.readouterr().out
    assert "3,00" in printed
    assert "states/s" in printed
    assert "every path of" in printed
    words = "--nodes 1 --terms 1 --entries 1 --crashes 0 --duplicates 0 --step-downs 0"
    assert main(["explore", *words.split()]) == 0
    assert "complete" in capsys.readouterr().out


def test_the_command_prints_a_path_that_it_can_take_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    half_is_a_majority(monkeypatch)
    assert main(["explore", "--terms", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("VIOLATED I9:") for line in lines)
    path = tmp_path / "path"
    at = next(i for i, line in enumerate(lines) if "--replay" in line)
    path.write_text("\n".join(lines[at + 1 :]))
    assert main(["explore", "--terms", "1", "--replay", str(path)]) == 1
    assert capsys.readouterr().out.startswith("VIOLATED I9:")
    monkeypatch.undo()
    path.write_text("# the beginning\ntime-out a\n")
    assert main(["explore", "--replay", str(path)]) == 0
    assert "after 1 actions" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", ["--limit 0", "--nodes 9", "--replay /nowhere/at/all", "--start nowhere"]
)
def test_a_wrong_use_of_the_command_is_not_a_verdict(words: str) -> None:
    try:
        code = main(["explore", *words.split()])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 3


def test_a_path_that_does_not_fit_is_said_to_be_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "path"
    path.write_text("persist a\n")
    assert main(["explore", "--replay", str(path)]) == 3
    assert "may not happen here" in capsys.readouterr().err


def test_figures_know_their_rate() -> None:
    assert Figures(states=10, seconds=2.0).rate == 5.0
    assert str(Violation("I1", "two leaders")) == "I1: two leaders"
