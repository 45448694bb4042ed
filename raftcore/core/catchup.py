"""How new voters catch up before they count (thesis 4.2.1, rule 42).

A round brings a new voter everything that the log held when the round began. One that ends within
an election timeout shows that the voter is close enough not to hold up commits; to be *equal* to
the leader is never asked for, under load nobody is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raftcore.core.config import MS, CoreConfig
from raftcore.core.progress import Progress
from raftcore.core.types import Member, NodeId

#: A new voter that could not use so many whole snapshots is given up: the next one, which would
#: count as progress, is not likely to fare better.
MAX_FAILED_INSTALLS = 5


@dataclass(slots=True)
class Rounds:
    """The rounds of one new voter. After a good one they go on, so that it stays judged."""

    goal_index: int
    started_ns: int
    moved_ns: int  #: when it last came further, or was seen to have nothing left to do
    #: the furthest it was: what it holds, the snapshot it is being fed, and how much of that. To be
    #: fed the same snapshot from its beginning again is no progress.
    best: tuple[int, int, int] = (0, 0, 0)
    failed_installs: int = 0
    number: int = 1
    caught_up: bool = False

    def observe(self, progress: Progress, last_index: int, now_ns: int, timeout_ns: int) -> None:
        """Take in where the voter is now."""
        in_contact = now_ns - progress.last_contact_ns < timeout_ns
        reached = progress.counted_match >= self.goal_index and in_contact
        feed = progress.feed
        fed = (feed.meta.index, feed.offset) if feed is not None else (0, 0)
        position = (progress.counted_match, *fed)
        if reached or position > self.best:
            self.moved_ns, self.best = now_ns, max(self.best, position)
        self.failed_installs = progress.failed_installs
        in_time = now_ns - self.started_ns < timeout_ns
        self.caught_up = in_time and (reached or (self.caught_up and in_contact))
        if reached:
            self.number = 1 if in_time else self.number + 1
            self.goal_index, self.started_ns = last_index, now_ns

    def failure(self, config: CoreConfig, now_ns: int) -> str | None:
        """Why to give this voter up, if so."""
        if self.number > config.catch_up_rounds:
            return f"did not catch up in {config.catch_up_rounds} rounds"
        if self.failed_installs >= MAX_FAILED_INSTALLS:
            return f"could not install the snapshot {self.failed_installs} times"
        if now_ns - self.moved_ns >= config.catch_up_ms * MS:
            return f"made no progress for {config.catch_up_ms} ms"
        return None


@dataclass(slots=True)
class Staging:
    """What this leader has seen of the staging configuration at ``index``."""

    index: int
    rounds: dict[NodeId, Rounds] = field(default_factory=dict)
    handed_over: bool = False  #: it tried to, being about to lose its vote


@dataclass(frozen=True, slots=True)
class Departing:
    """A removed member, and until when it is still told that it is one."""

    member: Member
    index: int  #: of the configuration that removed it
    deadline_ns: int
