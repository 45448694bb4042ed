"""Where the logs of two nodes part, and whether that may be so.

Logs of one cluster that agree at a place agree in everything before it (log matching, thesis 3.5),
and the hash chain makes the same true of what was stored. So the first difference is found by
halving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from pathlib import Path

from raftcore.core.types import Position
from raftcore.errors import StorageError
from raftcore.storage.closed import ClosedLog
from raftcore.storage.plan import Link


class Relation(Enum):
    """How two logs stand to each other."""

    EQUAL = "equal"
    PREFIX = "prefix"  #: one is the beginning of the other
    DIVERGED = "diverged"  #: they part where not both have committed: elections settle it
    CONFLICT = "conflict"  #: a committed entry was replaced: data is corrupt
    NO_OVERLAP = "no_overlap"  #: one begins (compacted) after the other ends
    OTHER_CLUSTER = "other_cluster"


@dataclass(frozen=True, slots=True)
class Side:
    """One log of a comparison."""

    path: Path
    cluster_id: str
    node_id: str
    first_index: int
    last: Position
    term: int
    vote: str | None
    commit_hint: int
    snapshot_index: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Two logs compared. ``agree_to`` is the last index known to be equal (0 if none);
    ``differ_from`` the first that differs, None if none does. ``ahead`` is the node whose log wins
    an election between the two, None when they end alike. ``explanation`` is for humans."""

    a: str
    b: str
    relation: Relation
    agree_to: int
    differ_from: int | None
    term_a: int | None
    term_b: int | None
    ahead: str | None
    explanation: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sides, and each pair of them."""

    sides: tuple[Side, ...]
    differences: tuple[Difference, ...]

    @property
    def conflict(self) -> bool:
        return any(d.relation is Relation.CONFLICT for d in self.differences)


def side_of(path: Path, log: ClosedLog) -> Side:
    """What a comparison shows of one log."""
    records = log.records
    shape = records.shape
    return Side(
        path=path,
        cluster_id=str(records.format["cluster_id"]),
        node_id=str(records.format["node_id"]),
        first_index=shape.first_index,
        last=shape.tip.position,
        term=shape.hard_state.term,
        vote=shape.hard_state.vote,
        commit_hint=shape.commit_hint,
        snapshot_index=0 if records.pointer is None else records.pointer.index,
    )


def compare(logs: Sequence[tuple[Path, ClosedLog]]) -> Comparison:
    """Compare each log with each other.

    Raises:
        LogCorruptError: an entry that had to be looked at does not verify.
    """
    named = [(side_of(path, log), log) for path, log in logs]
    pairs = [_difference(a, b) for a, b in combinations(named, 2)]
    return Comparison(tuple(side for side, _ in named), tuple(pairs))


def _difference(a: tuple[Side, ClosedLog], b: tuple[Side, ClosedLog]) -> Difference:
    (side_a, log_a), (side_b, log_b) = a, b
    ahead = None
    if side_a.last != side_b.last:
        ahead = side_a.node_id if side_a.last > side_b.last else side_b.node_id
    low = max(side_a.first_index, side_b.first_index) - 1
    high = min(side_a.last.index, side_b.last.index)
    if side_a.cluster_id != side_b.cluster_id:
        relation, agree, differ = Relation.OTHER_CLUSTER, 0, None
    elif low > high:
        relation, agree, differ = Relation.NO_OVERLAP, 0, None
    else:
        agree, differ = _first_difference(log_a, log_b, low, high)
        relation = _relation(side_a, side_b, differ, _term(log_a, differ), _term(log_b, differ))
    term_a, term_b = _term(log_a, differ), _term(log_b, differ)
    text = _explain(side_a, side_b, relation, agree, differ, ahead)
    return Difference(
        side_a.node_id, side_b.node_id, relation, agree, differ, term_a, term_b, ahead, text
    )


def _first_difference(a: ClosedLog, b: ClosedLog, low: int, high: int) -> tuple[int, int | None]:
    """(last equal index, first different one or None) within ``low..high``, both known to both.

    When they differ at ``low`` already, the true place is somewhere below, in what was compacted.
    """
    if _same(a, b, high):
        return high, None
    if not _same(a, b, low):
        return 0, low
    while high - low > 1:
        middle = (low + high) // 2
        if _same(a, b, middle):
            low = middle
        else:
            high = middle
    return low, high


def _same(a: ClosedLog, b: ClosedLog, index: int) -> bool:
    return _link(a, index) == _link(b, index)


def _link(log: ClosedLog, index: int) -> Link:
    found = log.link_at(index)
    if found is None:
        raise StorageError(f"entry {index} is missing: verify the directory first")
    return found


def _term(log: ClosedLog, index: int | None) -> int | None:
    return None if index is None else _link(log, index).term


def _relation(
    a: Side, b: Side, differ: int | None, term_a: int | None, term_b: int | None
) -> Relation:
    """A conflict if both have committed the first difference, or if one has and a later leader
    than any it had heard of wrote something else there (leader completeness, thesis 3.6)."""
    if differ is None or term_a is None or term_b is None:
        return Relation.EQUAL if a.last == b.last else Relation.PREFIX
    by_a = max(a.commit_hint, a.snapshot_index) >= differ
    by_b = max(b.commit_hint, b.snapshot_index) >= differ
    impossible = (by_a and by_b) or (by_a and term_b > a.term) or (by_b and term_a > b.term)
    return Relation.CONFLICT if impossible else Relation.DIVERGED


def _explain(
    a: Side, b: Side, relation: Relation, agree: int, differ: int | None, ahead: str | None
) -> str:
    behind = b if ahead == a.node_id else a
    front = a if behind is b else b
    match relation:
        case Relation.EQUAL:
            return f"{a.node_id} and {b.node_id} hold the same log, up to {agree}."
        case Relation.PREFIX:
            missing = front.last.index - behind.last.index
            return (
                f"The log of {behind.node_id} is the beginning of that of {front.node_id}, which "
                f"has {missing} entries more. Nothing is wrong: {behind.node_id} will be sent them."
            )
        case Relation.DIVERGED:
            return (
                f"They are equal up to {agree} and part at {differ}; not both have committed that. "
                f"Nothing is wrong: two leaders wrote there, and {front.node_id}, which is ahead, "
                f"can be elected; what {behind.node_id} holds from {differ} on is then replaced."
            )
        case Relation.CONFLICT:
            return (
                f"CORRUPTION: at {differ} the entries differ although that index was committed. "
                f"At least one of the directories of {a.node_id} and {b.node_id} was changed, "
                f"copied from elsewhere, or put back to an older state. Start neither. Keep both."
            )
        case Relation.NO_OVERLAP:
            return (
                f"{a.node_id} holds {a.first_index}..{a.last.index} and {b.node_id} "
                f"{b.first_index}..{b.last.index}: no index is in both, so nothing can be "
                f"compared. {behind.node_id} will be sent a snapshot."
            )
        case Relation.OTHER_CLUSTER:
            return f"These are two clusters: {a.cluster_id} and {b.cluster_id}."
