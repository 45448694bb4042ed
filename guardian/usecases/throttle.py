"""Failed logins are counted in a sliding window, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from guardian.domain.problems import Problem

#: names remembered at most; beyond it the one that was quiet for longest is forgotten
MAX_NAMES: Final = 20_000


class FailureWindow:
    """At most ``limit`` failures per name in ``window_s`` seconds.

    An attempt is counted when it starts and taken back when it succeeds, so that attempts at the
    same time can not slip through together. One per process: several nodes together allow several
    times the limit.

    Args:
        limit: failures allowed per window.
        window_s: length of the window, seconds.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        limit: int,
        window_s: float,
        now_s: Callable[[], float],
        *,
        max_names: int = MAX_NAMES,
    ) -> None:
        assert limit >= 1
        self._limit = limit
        self._window_s = window_s
        self._now_s = now_s
        self._max_names = max_names
        self._attempts: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, name: str) -> None:
        """Raises ``Problem("rate_limited")`` with the seconds until the next attempt."""
        attempts = self._recent(name)
        if len(attempts) >= self._limit:
            wait_s = attempts[0] + self._window_s - self._now_s()
            raise Problem("rate_limited", retry_after_s=max(wait_s, 1.0))

    def begin(self, name: str) -> float:
        """Count an attempt; the returned stamp takes it back (:meth:`take_back`).

        Raises:
            Problem: ``rate_limited``; then nothing was counted.
        """
        self.check(name)
        stamp = self._now_s()
        self._attempts.setdefault(name, deque()).append(stamp)
        self._attempts.move_to_end(name)
        if len(self._attempts) > self._max_names:
            self._attempts.popitem(last=False)
        return stamp

    def take_back(self, name: str, stamp: float) -> None:
        """That attempt was no failure."""
        attempts = self._attempts.get(name)
        if attempts is None or stamp not in attempts:
            return  # it left the window, or the name was forgotten
        attempts.remove(stamp)
        if not attempts:
            del self._attempts[name]

    def clear(self, name: str) -> None:
        """Forget all failures of ``name``."""
        self._attempts.pop(name, None)

    def _recent(self, name: str) -> deque[float]:
        attempts = self._attempts.get(name)
        if attempts is None:
            return deque()
        since = self._now_s() - self._window_s
        while attempts and attempts[0] <= since:
            attempts.popleft()
        if not attempts:
            del self._attempts[name]
        return attempts
