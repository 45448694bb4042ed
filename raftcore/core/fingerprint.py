"""Copies and fingerprints of a core, for programs that try all that can happen to it.

Both walk the same tables. Each class of state lists every field it has: those that make two states
different, and those that do not, with the reason. A field in neither table fails a test, so state
that is added later can be forgotten neither by copies nor by fingerprints.

Two cores of one fingerprint do the same from then on when the same happens to them, up to what they
draw from their random source and when they next want to be called. Of times only that enters which
a rule can see at this moment: whether a leader was heard from lately, whether an answer is overdue.
Whoever explores lets timeouts happen by a ``Tick`` as late as it likes; the core needs no events of
its own for it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from raftcore.core import health, lease
from raftcore.core.catchup import Departing, Rounds, Staging
from raftcore.core.config import MS
from raftcore.core.election import is_sticky
from raftcore.core.log import RaftLog
from raftcore.core.membership import ConfigurationStack
from raftcore.core.progress import InFlight, Progress, SnapshotFeed
from raftcore.core.state import (
    Candidacy,
    CoreState,
    HandedOver,
    IncomingSnapshot,
    Leadership,
    PendingChange,
    PendingRead,
    Transfer,
)

if TYPE_CHECKING:
    import random

FINGERPRINT_BYTES = 16

_TIME = "a time; what rules see of it is in _moment"
_STAGED = "empty between steps"
_MARK = "a name; in _names relative to the next one"

#: What makes two states different.
HASHED: dict[type, tuple[str, ...]] = {
    CoreState: (
        "log", "configurations", "term", "vote", "role", "leader_id", "leadership", "candidacy",
        "incoming", "handed_over", "pending_change", "was_member", "removed", "judged_index",
        "quarantined", "quarantine_final", "release_index", "ending_quarantine", "verified",
        "remote_reads", "confirmed_reads", "announced_peers",
    ),
    RaftLog: (
        "first_index", "last_index", "snapshot", "durable", "committed", "handed", "applied",
        "_run_starts", "_run_terms", "_cache", "_cache_first",
    ),
    ConfigurationStack: ("_stack",),
    Leadership: (
        "progress", "first_index", "sequence", "read_counter", "reads", "reads_before_commit",
        "uncommitted", "transfer", "lease_broken", "staging", "span",
        "departing",
    ),
    Progress: (
        "next_index", "state", "match_index", "read_counter", "inflight", "feed", "sent_commit",
        "asked", "after_sequence", "after_counter", "health", "regressed", "failed_installs",
    ),
    InFlight: ("sequence", "prev_index", "last_index", "size_bytes", "proven"),
    SnapshotFeed: ("meta", "offset", "sequence", "complete", "resends", "failures"),
    PendingRead: ("counter", "index", "read_id", "requester"),
    PendingChange: ("token", "members", "lease", "index", "given_up"),
    Staging: ("index", "rounds", "handed_over"),
    Rounds: ("goal_index", "best", "failed_installs", "number", "caught_up"),
    Departing: ("member", "index"),
    Transfer: ("target", "timeout_now_sent", "requested"),
    HandedOver: ("target",),
    Candidacy: ("votes",),
    IncomingSnapshot: (
        "meta", "leader", "term", "next_offset", "storing", "installing", "sequence",
        "read_counter",
    ),
}  # fmt: skip

#: What does not, and why.
IGNORED: dict[type, dict[str, str]] = {
    CoreState: {
        "config": "the same as long as the node runs, but for its name, which is in _names",
        "node_id": "in _names",
        "rng": "what it draws are times",
        "now_ns": _TIME,
        "leader_contact_ns": _TIME,
        "election_deadline_ns": _TIME,
        "no_votes_until_ns": _TIME,
        "unfinished_writes": "the same writes as the log's; their times are in _moment",
        "reading_to_apply": _MARK,
        "next_request_id": "only names requests; what is open is in _names",
        "_effects": _STAGED,
        "_sends": _STAGED,
        "_new_entries": _STAGED,
        "_truncate_from": _STAGED,
        "_hard_state_changed": _STAGED,
        "_next_mark": "only names writes; what is open is in _names",
        "_hard_mark": _MARK,
        "_peers_key": "follows from the configurations and from what is announced",
        "_announced": "what observers were told; nothing is decided by it",
    },
    RaftLog: {
        "_pending": _MARK,
        "_cache_size": "follows from what is cached",
        "_cache_limit": "a setting",
        "_slice": "remembers an answer that would be the same again",
    },
    ConfigurationStack: dict.fromkeys(
        ("_last", "current", "current_index"), "the last ones of the stack"
    ),
    Leadership: {
        "heartbeat_deadline_ns": _TIME,
        "uncommitted_bytes": "follows from what is uncommitted",
        "rounds": _TIME,
    },
    Progress: {
        "last_contact_ns": _TIME,
        "inflight_bytes": "follows from what is in flight",
        "reading": _MARK,
        "asked_ns": _TIME,
        "health_ns": _TIME,
        "paced_until_ns": _TIME,
    },
    InFlight: {"sent_ns": _TIME},
    SnapshotFeed: {"waiting_since_ns": _TIME, "due_ns": _TIME, "not_before_ns": _TIME},
    PendingRead: {},
    PendingChange: {},
    Staging: {},
    Rounds: {"started_ns": _TIME, "moved_ns": _TIME},
    Departing: {"deadline_ns": _TIME},
    Transfer: {"deadline_ns": _TIME},
    HandedOver: {"deadline_ns": _TIME},
    Candidacy: {},
    IncomingSnapshot: {},
}

# -- copies -------------------------------------------------------------------------------------


def clone_state(s: CoreState, rng: random.Random | None = None) -> CoreState:
    """An independent copy between two steps; it draws from ``rng``, or from a copy of the source's.

    Values are shared, everything that can change is copied.
    """
    assert not s.staged, "a core is copied between steps"
    twin: CoreState = object.__new__(CoreState)
    for name in _FIELDS[CoreState]:
        setattr(twin, name, s.rng if name == "rng" else _copy(getattr(s, name)))
    twin.rng = copy.copy(s.rng) if rng is None else rng
    return twin


def _copy(value: Any) -> Any:
    return _copier(type(value))(value)


def _copier(kind: type) -> Callable[[Any], Any]:
    found = _COPIERS.get(kind)
    if found is None:
        if not (issubclass(kind, Enum) or _is_value(kind)):
            raise TypeError(f"{kind.__name__} is in no table of state")
        found = _COPIERS[kind] = _share
    return found


def _is_value(kind: type) -> bool:
    """Whether it is one of the frozen records."""
    return is_dataclass(kind) and bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _share(value: Any) -> Any:
    return value


def _copy_items(value: Any) -> Any:
    return type(value)(map(_copy, value))


def _copy_deque(value: deque[Any]) -> deque[Any]:
    return deque(map(_copy, value), value.maxlen)


def _copy_mapping(value: Any) -> Any:
    return type(value)((key, _copy(item)) for key, item in value.items())


def _copy_fields(value: Any) -> Any:
    kind = type(value)
    twin: Any = object.__new__(kind)
    for name in _FIELDS[kind]:
        setattr(twin, name, _copy(getattr(value, name)))
    return twin


_FIELDS: dict[type, tuple[str, ...]] = {
    kind: (*names, *IGNORED[kind]) for kind, names in HASHED.items()
}
_COPIERS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((int, bool, str, bytes, type(None), tuple), _share),
    **dict.fromkeys((list, set), _copy_items),
    deque: _copy_deque,
    **dict.fromkeys((dict, OrderedDict), _copy_mapping),
    **{kind: _share if _is_value(kind) else _copy_fields for kind in HASHED},
}

# -- fingerprints -------------------------------------------------------------------------------


def fingerprint_of(s: CoreState) -> bytes:
    """Sixteen bytes that stand for the state between two steps."""
    assert not s.staged, "a core has a fingerprint between steps"
    seen = (_names(s), _moment(s), canonical(s))
    return blake2b(repr(seen).encode(), digest_size=FINGERPRINT_BYTES).digest()


def _names(s: CoreState) -> Any:
    """Whose state it is, and what is open of that which this run has numbered, counted back from
    the next number: how many writes and requests there were before makes no difference."""
    hard = None if s._hard_mark is None else s._hard_mark.sequence - s._next_mark
    writes = [(mark.sequence - s._next_mark, mark.term, last) for mark, last in s.log._pending]
    reading = [s.reading_to_apply]
    if s.leadership is not None:
        reading += [progress.reading for progress in s.leadership.progress.values()]
    open_reads = [None if r is None else r - s.next_request_id for r in reading]
    return s.node_id, hard, writes, open_reads


def _moment(s: CoreState) -> Any:
    """What rules see of times at this moment."""
    own = (is_sticky(s), lease.binds(s), health.is_stalled(s))
    leadership = s.leadership
    if leadership is None:
        return own
    peers = [_moment_of(s, progress) for progress in leadership.progress.values()]
    rounds = [] if leadership.staging is None else leadership.staging.rounds.values()
    patience_ns = s.config.catch_up_ms * MS
    catching_up = [
        (s.now_ns - r.started_ns < s.election_timeout_ns, s.now_ns - r.moved_ns < patience_ns)
        for r in rounds
    ]
    told = [s.now_ns >= gone.deadline_ns for gone in leadership.departing.values()]
    return own, lease.is_valid(s), peers, catching_up, told


def _moment_of(s: CoreState, p: Progress) -> Any:
    """What a leader sees of the times of one peer."""
    timeout_ns, heartbeat_ns = s.election_timeout_ns, s.config.heartbeat_ms * MS
    feed = p.feed
    return (
        s.now_ns - p.last_contact_ns < timeout_ns,
        None if p.health_ns is None else s.now_ns - p.health_ns <= timeout_ns,
        bool(p.inflight) and s.now_ns - p.inflight[0].sent_ns >= heartbeat_ns,
        feed is not None and (feed.waiting_since_ns is not None, feed.due_ns is not None),
    )


def canonical(value: Any) -> Any:
    """``value`` as nested tuples of plain values, in an order that does not depend on its past."""
    kind = type(value)
    viewer = _VIEWERS.get(kind)
    if viewer is None:
        if issubclass(kind, Enum):
            viewer = _VIEWERS[kind] = _view_enum
        elif _is_value(kind):
            names = tuple(field.name for field in fields(kind) if field.compare)
            viewer = _VIEWERS[kind] = _viewer_of(names)
        else:
            raise TypeError(f"{kind.__name__} is in no table of state")
    return viewer(value)


def _view_enum(value: Any) -> Any:
    return value.value


def _view_items(value: Any) -> Any:
    return tuple(map(canonical, value))


def _view_set(value: Any) -> Any:
    return tuple(sorted(value))


def _view_mapping(value: Any) -> Any:
    return tuple((key, canonical(item)) for key, item in sorted(value.items()))


def _view_queue(value: Any) -> Any:
    return tuple(value.items())


def _viewer_of(names: tuple[str, ...]) -> Callable[[Any], Any]:
    def view(value: Any) -> Any:
        return tuple([canonical(getattr(value, name)) for name in names])

    return view


_VIEWERS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((int, bool, str, bytes, type(None)), _share),
    **dict.fromkeys((list, deque, tuple), _view_items),
    set: _view_set,
    dict: _view_mapping,
    OrderedDict: _view_queue,
    **{kind: _viewer_of(names) for kind, names in HASHED.items()},
}
