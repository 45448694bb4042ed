"""Virtual time and randomness: one heap in a total order, one stream of numbers per concern."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable

MS = 1_000_000
"""Nanoseconds in a millisecond."""


def stream(seed: int, name: str) -> random.Random:
    """The random numbers of one concern, derived from SHA-256(seed, name).

    Each concern has its own stream so that switching one fault class off does not shift the draws
    of all others; without that a failing seed could not be made smaller.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))  # noqa: S311 - reproducible


class Scheduler:
    """Runs callbacks in the order of (virtual time, order of scheduling)."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.steps = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._counter = 0

    def at(self, time_ns: int, action: Callable[[], None]) -> None:
        """Run ``action`` at ``time_ns``, or now if that has passed."""
        self._counter += 1
        heapq.heappush(self._heap, (max(time_ns, self.now_ns), self._counter, action))

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.at(self.now_ns + delay_ns, action)

    def step(self) -> bool:
        """Run the next action; False if there is none."""
        if not self._heap:
            return False
        self.now_ns, _, action = heapq.heappop(self._heap)
        self.steps += 1
        action()
        return True

    def run_until(self, time_ns: int) -> None:
        """Run everything up to ``time_ns`` and stand there."""
        while self._heap and self._heap[0][0] <= time_ns:
            self.step()
        self.now_ns = max(self.now_ns, time_ns)


class Worker:
    """A thread of a node: jobs one after the other, each taking time. Bounded by its owner.

    A crash abandons what has not happened; the job in progress is the owner's to decide.
    """

    def __init__(self, scheduler: Scheduler, duration_ns: Callable[[], int], batch: int) -> None:
        self._scheduler = scheduler
        self._duration_ns = duration_ns
        self._batch = batch
        self._queue: list[Callable[[], None]] = []
        self._busy: list[Callable[[], None]] = []
        self._generation = 0
        self._running = False

    def submit(self, job: Callable[[], None]) -> None:
        self._queue.append(job)
        if not self._running:
            self._start()

    @property
    def backlog(self) -> int:
        return len(self._queue) + len(self._busy)

    def abandon(self) -> list[Callable[[], None]]:
        """Forget everything; returns the jobs that were in progress."""
        self._generation += 1
        self._running = False
        started, self._busy, self._queue = self._busy, [], []
        return started

    def _start(self) -> None:
        self._busy, self._queue = self._queue[: self._batch], self._queue[self._batch :]
        self._running = bool(self._busy)
        if self._running:
            generation = self._generation
            self._scheduler.after(self._duration_ns(), lambda: self._finish(generation))

    def _finish(self, generation: int) -> None:
        if generation != self._generation:
            return
        while self._busy:
            self._busy.pop(0)()
            if generation != self._generation:
                return  # the owner crashed in the middle
        self._start()
