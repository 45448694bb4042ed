"""Breadth first through a space: the first violation found has the shortest path there is."""

from __future__ import annotations

import resource
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jepsen_like.explore.bounds import Bounds
from jepsen_like.explore.space import Action, Space, State, Violation
from jepsen_like.sim.errors import BrokenInvariantError

REPORT_EVERY_S = 5.0


@dataclass(slots=True)
class Figures:
    """What an exploration came to. ``complete``: there was nothing left within the bounds.

    Every path of ``depth`` actions has been taken, some of ``deepest``. ``elections`` and
    ``commits`` count the different ones: they show that something happened at all.
    """

    states: int = 0
    transitions: int = 0
    depth: int = 0
    deepest: int = 0
    seconds: float = 0.0
    node_states: int = 0
    core_steps: int = 0
    elections: int = 0
    commits: int = 0
    complete: bool = False
    violation: Violation | None = None
    path: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.states / max(self.seconds, 1e-9)

    @property
    def memory_mib(self) -> int:
        """The most memory that this process has used."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak >> (20 if sys.platform == "darwin" else 10)


class Search:
    """One exploration. Of each state seen only its fingerprint is kept, and how it was reached."""

    def __init__(self, bounds: Bounds, limit: int) -> None:
        self.space = Space(bounds)
        self.limit = limit
        self.figures = Figures()
        self._seen: set[bytes] = set()
        #: per state seen: the one it was reached from, and the number of the action
        self._from = array("I")
        self._by = array("I")
        self._actions: list[Action] = []
        self._action_numbers: dict[Action, int] = {}

    def run(self, report: Callable[[Figures], None] = lambda _figures: None) -> Figures:
        """Explore until there is nothing new, ``limit`` states are known, or one is wrong."""
        started = last = time.monotonic()
        figures = self.figures
        try:
            start = self.space.start()
        except BrokenInvariantError as error:
            figures.violation = Violation.of(error)
            return figures
        self._add(start, 0, Action("start", 0))
        frontier: list[tuple[int, State]] = [(0, start)]
        first = True
        while frontier and not self._over():
            found: list[tuple[int, State]] = []
            for number, state in frontier:
                actions = self.space.first_actions if first else self.space.actions
                self._expand(number, state, list(actions(state)), found)
                first = False
                if found:
                    figures.deepest = figures.depth + 1
                if self._over():
                    break
                if time.monotonic() - last >= REPORT_EVERY_S:
                    last = time.monotonic()
                    self._measure(last - started)
                    report(figures)
            if not self._over():
                figures.depth = figures.deepest
            frontier = found
        figures.complete = not self._over()
        self._measure(time.monotonic() - started)
        return figures

    def _over(self) -> bool:
        return self.figures.violation is not None or len(self._seen) >= self.limit

    def _measure(self, seconds: float) -> None:
        figures = self.figures
        figures.seconds = seconds
        figures.states = len(self._seen)
        space = self.space
        figures.node_states, figures.core_steps = space.local_states, space.steps
        figures.elections, figures.commits = space.invariants.elections, space.invariants.commits

    def _expand(
        self,
        number: int,
        state: State,
        actions: Sequence[Action],
        found: list[tuple[int, State]],
    ) -> None:
        take, figures = self.space.take, self.figures
        for action in actions:
            figures.transitions += 1
            after = take(state, action)
            if isinstance(after, Violation):
                figures.violation = after
                figures.path = [*self._path_to(number), self.space.describe(action)]
                return
            if self._add(after, number, action):
                found.append((len(self._from) - 1, after))

    def _add(self, state: State, reached_from: int, action: Action) -> bool:
        """Whether ``state`` is new."""
        known = len(self._seen)
        self._seen.add(state.fingerprint())
        if len(self._seen) == known:
            return False
        by = self._action_numbers.get(action)
        if by is None:
            by = self._action_numbers[action] = len(self._actions)
            self._actions.append(action)
        self._from.append(reached_from)
        self._by.append(by)
        return True

    def _path_to(self, number: int) -> list[str]:
        path = []
        while number:
            path.append(self.space.describe(self._actions[self._by[number]]))
            number = self._from[number]
        return path[::-1]


def explore(
    bounds: Bounds, limit: int, report: Callable[[Figures], None] = lambda _figures: None
) -> Figures:
    """Explore all that can happen within ``bounds``, up to ``limit`` different states."""
    return Search(bounds, limit).run(report)


def replay(bounds: Bounds, path: Sequence[str]) -> Violation | State:
    """Take the actions of a path, one after the other, from the beginning.

    Raises:
        ValueError: an action may not happen where the path asks for it.
    """
    space = Space(bounds)
    state = space.start()
    for words in path:
        after = space.take(state, space.find(state, words))
        if isinstance(after, Violation):
            return after
        state = after
    return state
