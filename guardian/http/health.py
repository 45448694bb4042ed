"""This node's health, as the probes see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from guardian.domain.problems import Problem
from guardian.usecases.ports import Log

#: A node whose disk hangs still reads, passes writes on, and may be over it in a moment.
DISK_STALLED = "disk_stalled"


@dataclass(frozen=True, slots=True)
class HealthReport:
    """This node's state of health.

    Args:
        recovered: local state is open and serves reads.
        knows_leader: a leader is known.
        caught_up: what was committed when the node came up has been applied here.
        draining: the node is on its way out and wants no new work.
        out: why this node does not take part: ``not_a_member``, ``removed``, ``quarantined``.
        degraded: parts that are away although the node serves: ``postgres``, ``disk_stalled``.
    """

    recovered: bool
    knows_leader: bool
    caught_up: bool
    draining: bool = False
    out: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()

    def ready(self, *, local: bool) -> bool:
        """Whether to send work here; ``local`` asks only for reads of local state."""
        if not self.recovered or self.draining:
            return False
        return local or (self.knows_leader and self.caught_up and not self.out)

    def reasons(self, *, local: bool) -> list[str]:
        """Why not, for administrators."""
        reasons = list(self.out)
        if not self.recovered:
            reasons.append("recovering")
        if self.draining:
            reasons.append("draining")
        if not local and not self.knows_leader:
            reasons.append("no_leader")
        if not local and not self.caught_up:
            reasons.append("catching_up")
        return reasons


class Health(Protocol):
    """Answers at once, from memory."""

    def report(self) -> HealthReport: ...


class NodeHealth:
    """Health from the log's picture of the cluster.

    Args:
        log: of this node.
        database_is_up: whether PostgreSQL answered lately.
    """

    def __init__(self, log: Log, database_is_up: Callable[[], bool]) -> None:
        self._log = log
        self._database_is_up = database_is_up
        self._target: int | None = None  #: commit index to reach, as first heard of a leader
        self._caught_up = False
        self._draining = False

    def drain(self) -> None:
        """Not ready from here on; called first thing on the way out."""
        self._draining = True

    def _shows_local_state(self) -> bool:
        """False while local reads are refused because the state is being rebuilt."""
        try:
            self._log.require_local()
        except Problem:
            return False
        return True

    def report(self) -> HealthReport:
        view = self._log.cluster()
        knows_leader = view.leader_id is not None
        # "what was committed" is fixed when a leader is first known: under load the commit index
        # runs ahead of the applied one for ever, which must not make readiness flap
        if knows_leader and not self._caught_up:
            if self._target is None:
                self._target = view.commit_index
            self._caught_up = view.applied_index >= self._target
        return HealthReport(
            recovered=self._shows_local_state(),
            knows_leader=knows_leader,
            caught_up=self._caught_up,
            draining=self._draining,
            out=tuple(c for c in view.conditions if c != DISK_STALLED),
            degraded=(
                *(() if self._database_is_up() else ("postgres",)),
                *((DISK_STALLED,) if DISK_STALLED in view.conditions else ()),
            ),
        )
