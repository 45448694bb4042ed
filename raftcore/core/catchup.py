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


@dataclass(slots=True)
class Rounds:
    """The rounds of one new voter. After a good one they go on, so that it stays judged."""

    goal_index: int
    started_ns: int
    moved_ns: int  #: when it last came further, or was seen to have nothing left to do
    position: tuple[int, int] = (0, 0)
    number: int = 1
    caught_up: bool = False

    def observe(self, progress: Progress, last_index: int, now_ns: int, timeout_ns: int) -> None:
        """Take in where the voter is now."""
        in_contact = now_ns - progress.last_contact_ns < timeout_ns
        reached = progress.counted_match >= self.goal_index and in_contact
        position = (progress.counted_match, progress.feed.offset if progress.feed else 0)
        if reached or position != self.position:
            self.moved_ns, self.position = now_ns, position
        in_time = now_ns - self.started_ns < timeout_ns
        self.caught_up = in_time and (reached or (self.caught_up and in_contact))
        if reached:
            self.number = 1 if in_time else self.number + 1
            self.goal_index, self.started_ns = last_index, now_ns

    def failure(self, config: CoreConfig, now_ns: int) -> str | None:
        """Why to give this voter up, if so."""
        if self.number > config.catch_up_rounds:
            return f"did not catch up in {config.catch_up_rounds} rounds"
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
