"""Values that the whole library speaks: entries, positions, configurations.

Everything here is immutable and free of behaviour that could differ between machines. Times inside
entries are data stamped by a leader; nothing in the core decides by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

NodeId = str

#: Terms and indexes are bounded so that one hostile number cannot pin a cluster (rule 15).
MAX_TERM = 2**62
MAX_INDEX = 2**62
#: No cluster holds this many elections while one member is away.
MAX_TERM_JUMP = 2**32


class EntryType(IntEnum):
    """What an entry of the log means to the library."""

    NOOP = 0  #: appended by a new leader to commit what earlier terms left (thesis 3.6.2, 6.4)
    COMMAND = 1  #: bytes for the state machine
    CONFIGURATION = 2  #: an encoded :class:`Configuration`, in force from the moment it is appended


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the replicated log.

    ``client_id`` and ``sequence`` identify a command for exactly-once sessions (empty and 0 when
    unused); ``timestamp_ms`` is the leader's wall clock when it appended the entry, in Unix
    milliseconds; ``feature_level`` is the level the entry was written under. All of them are in the
    format from the first release on because they cannot be added later.
    """

    index: int
    term: int
    type: EntryType
    data: bytes = b""
    client_id: bytes = b""
    sequence: int = 0
    timestamp_ms: int = 0
    feature_level: int = 0

    @property
    def size_bytes(self) -> int:
        """What the entry costs in windows and batches: its payload plus a fixed header."""
        return len(self.data) + 64


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the log, ordered as elections compare logs: term first, then index (3.6.1)."""

    term: int
    index: int


@dataclass(frozen=True, slots=True)
class HardState:
    """What a node must remember across a crash before it says anything of that term (rule 2)."""

    term: int = 0
    vote: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A node as the configuration knows it.

    ``incarnation`` is the 16 random bytes drawn when the member's directory was made; (node id,
    incarnation) is never reused. ``attributes`` are opaque to the library (Guardian keeps a
    member's HTTP address there).
    """

    node_id: NodeId
    address: str
    incarnation: bytes
    voter: bool = True
    attributes: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        """For people: the incarnation is cut to what tells two of them apart."""
        shown = [repr(self.node_id), repr(self.address), f"incarnation={_short(self.incarnation)}"]
        if not self.voter:
            shown.append("voter=False")
        if self.attributes:
            shown.append(f"attributes={self.attributes!r}")
        return f"Member({', '.join(shown)})"


def _short(incarnation: object) -> str:
    """The first eight hex digits."""
    if not isinstance(incarnation, bytes):
        return repr(incarnation)
    return incarnation.hex()[:8] + ("..." if len(incarnation) > 4 else "")


#: The newest feature level of this program, and that of clusters made by release 0.1.
FEATURE_LEVEL = 2
FIRST_FEATURE_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Target:
    """Where a change of membership is heading while its new voters still catch up.

    Kept in the configuration, so that the next leader carries on when this one dies. Ids are
    sorted; a member in neither list is on its way out.
    """

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """What lease reads rest on, the same on all members (thesis 6.4.1, rule 35).

    While a configuration with a lease is in force no member takes a leader for dead in less than
    ``election_timeout_ms``, whatever its own setting. ``clock_error_ppm`` bounds how much faster
    one member's clock may run than another's, in millionths: only the operator can vouch for it.
    """

    election_timeout_ms: int
    clock_error_ppm: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who the members are. ``members`` is sorted by node id, each id at most once.

    ``cluster_id`` names the cluster and never changes. The stages of a change:

    * *stable*: neither ``target`` nor ``old_voters``.
    * *staging*: ``target`` says what is wanted; new voters catch up as learners meanwhile.
    * *joint* (thesis 4.3): ``old_voters`` are the voters before the change, and a majority of them
      is needed too. ``leaving`` are members that the change removes; they are not voters any more
      but for ``old_voters``, and stay members until joint mode is left.

    ``retired`` holds the incarnations of removed members, oldest first (rule 43: never used again);
    ``lease`` is None as long as lease reads are off; ``level`` is the feature level that all
    members have reached.
    """

    cluster_id: str
    members: tuple[Member, ...]
    old_voters: tuple[NodeId, ...] = ()
    leaving: tuple[NodeId, ...] = ()
    target: Target | None = None
    retired: tuple[bytes, ...] = ()
    lease: Lease | None = None
    level: int = FEATURE_LEVEL
    # What follows from the above, worked out once: every step of the core asks for it.
    voters: tuple[NodeId, ...] = field(init=False, repr=False, compare=False)
    learners: tuple[NodeId, ...] = field(init=False, repr=False, compare=False)
    _by_id: dict[NodeId, Member] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = [member.node_id for member in self.members]
        if ids != sorted(set(ids)):
            raise ValueError("members must be sorted by node id, without repeats")
        learners = (m for m in self.members if not m.voter and m.node_id not in self.leaving)
        known = {
            "voters": tuple(m.node_id for m in self.members if m.voter),
            "learners": tuple(m.node_id for m in learners),
            "_by_id": dict(zip(ids, self.members, strict=True)),
        }
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """For people: nothing that is as it mostly is, and incarnations cut short."""
        special = ("old_voters", "leaving", "target", "lease")
        shown = [repr(self.cluster_id), f"members={self.members!r}"]
        shown += [f"{name}={value!r}" for name in special if (value := getattr(self, name))]
        if self.retired:
            shown.append(f"retired=({', '.join(map(_short, self.retired))})")
        return f"Configuration({', '.join(shown)}, level={self.level})"

    def member(self, node_id: NodeId) -> Member | None:
        """The member of that id, or None."""
        return self._by_id.get(node_id)


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot stands for: the log up to and including ``index``.

    ``chain`` is the log's SHA-256 hash chain at ``index``; ``configuration`` the committed
    configuration there; ``size_bytes`` and ``digest`` (SHA-256) describe the whole file as it is
    transferred.
    """

    index: int
    term: int
    chain: bytes
    configuration: Configuration
    size_bytes: int
    digest: bytes

    @property
    def position(self) -> Position:
        return Position(self.term, self.index)


@dataclass(frozen=True, slots=True)
class WriteMark:
    """Names one durable write of this run: its place in the order of writes, and who wrote it.

    ``sequence`` grows by one per :class:`~raftcore.core.effects.Persist` and is never reused within
    a run, so a completion can never be taken for that of other bytes at the same log position (the
    ABA of rule 30); ``term`` is the term in which the write was issued.
    """

    sequence: int
    term: int
