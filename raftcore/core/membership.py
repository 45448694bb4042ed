"""Configurations: which ones there can be, which follows which, their bytes, and the stack of those
in force along the log.

A configuration is in force from the moment its entry is *appended* (thesis 4.1), and goes out of
force again if that entry is truncated, which is what the stack is for (rules 38, 39).

A change of the voters goes from a stable configuration over staging (new voters catch up as
learners) and joint (both majorities decide) to the next stable one. The functions here are pure;
``change`` decides when a leader takes the next step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from raftcore.core.types import (
    FIRST_FEATURE_LEVEL,
    Configuration,
    Lease,
    Member,
    NodeId,
    Target,
)

#: Format 1 is that of feature level 1, which knew no changes; format 2 that of later levels.
CONFIGURATION_FORMATS = (1, 2)
#: Members of one configuration; it is written whole into every entry and snapshot.
MAX_MEMBERS = 64
#: What a change may begin with, encoded. Its later stages add some names and incarnations.
MAX_CHANGE_BYTES = 256 << 10
MAX_CLUSTER_ID_BYTES = 128
MAX_NODE_ID_BYTES = 255
MAX_ADDRESS_BYTES = 512
#: Attributes of one member, and the length of each name and each value.
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_BYTES = 4096
INCARNATION_BYTES = 16
#: Removed incarnations that a configuration remembers, the newest ones.
MAX_RETIRED = 1024
#: A cluster without a leader waits for the end of the lease, however long that is.
MAX_LEASE_MS = 60_000

# -- which configurations there can be ----------------------------------------------------------


def check_configuration(configuration: Configuration) -> None:
    """Raises ValueError if parts of ``configuration`` contradict each other.

    A configuration of nobody is the one a node begins with before it has heard of any other.
    """
    c = configuration
    ids = frozenset(m.node_id for m in c.members)
    if len(ids) > MAX_MEMBERS:
        raise ValueError(f"{len(ids)} members are more than {MAX_MEMBERS}")
    if c.members and not c.voters:
        raise ValueError("a configuration without a voter")
    _check_ids("old voters", c.old_voters, ids)
    _check_ids("leaving members", c.leaving, ids)
    if c.leaving and not c.old_voters:
        raise ValueError("members leave, but the configuration is not joint")
    if not frozenset(c.leaving).isdisjoint(c.voters):
        raise ValueError("a voter is said to leave")
    if c.target is not None:
        _check_target(c, c.target, ids)
    if len(set(c.retired)) != len(c.retired) or len(c.retired) > MAX_RETIRED:
        raise ValueError("retired incarnations repeat, or are too many")
    if not frozenset(c.retired).isdisjoint(m.incarnation for m in c.members):
        raise ValueError("a member has an incarnation that is retired")
    if c.level < FIRST_FEATURE_LEVEL:
        raise ValueError(f"{c.level} is not a feature level")
    if c.lease is not None:
        check_lease(c.lease)


def check_lease(lease: Lease) -> None:
    """Raises ValueError if those are no terms to hold a lease by."""
    _check_number("election_timeout_ms", lease.election_timeout_ms, 1, MAX_LEASE_MS)
    _check_number("clock_error_ppm", lease.clock_error_ppm, 0, 999_999)


def _check_number(what: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} of a lease must be a number from {low} to {high}, not {value!r}")


def _check_target(c: Configuration, target: Target, ids: frozenset[NodeId]) -> None:
    _check_ids("target voters", target.voters, ids)
    _check_ids("target learners", target.learners, ids)
    if c.old_voters:
        raise ValueError("a joint configuration has no target any more")
    if not target.voters or not frozenset(target.voters).isdisjoint(target.learners):
        raise ValueError("a target without a voter, or with a voter that is a learner too")


def _check_ids(what: str, found: tuple[NodeId, ...], ids: frozenset[NodeId]) -> None:
    if list(found) != sorted(set(found)) or not ids.issuperset(found):
        raise ValueError(f"{what} must be members, sorted, without repeats")


def check_wanted(current: Configuration, members: tuple[Member, ...]) -> None:
    """Raises ValueError if ``members`` can not be what ``current`` is changed to."""
    if type(members) is not tuple or len(members) > MAX_MEMBERS:
        raise ValueError(f"members must be a tuple, and no more than {MAX_MEMBERS}")
    for m in members:
        _check_shape(m)
    ids = [m.node_id for m in members]
    if ids != sorted(set(ids)) or not all(ids):
        raise ValueError("members must have ids and be sorted by them, without repeats")
    if not any(m.voter for m in members):
        raise ValueError("there must be a voter")
    if len({m.address for m in members}) < len(members) or not all(m.address for m in members):
        raise ValueError("each member needs an address of its own")
    if len({m.incarnation for m in members}) < len(members):
        raise ValueError("two members have the same incarnation")
    for m in members:
        known = current.member(m.node_id)
        if known is not None and known.incarnation != m.incarnation:
            raise ValueError(f"{m.node_id} is a member under another incarnation: remove it first")
        if m.incarnation in current.retired:
            raise ValueError(f"this incarnation of {m.node_id} was removed and never comes back")


def _check_shape(m: Member) -> None:
    """Raises ValueError if a member's parts are not of their types, or too large."""
    _check_text("a node id", m.node_id, MAX_NODE_ID_BYTES)
    _check_text(f"the address of {m.node_id}", m.address, MAX_ADDRESS_BYTES)
    if type(m.incarnation) is not bytes or len(m.incarnation) != INCARNATION_BYTES:
        raise ValueError(f"the incarnation of {m.node_id} must be {INCARNATION_BYTES} bytes")
    if type(m.voter) is not bool:
        raise ValueError(f"{m.node_id} must be a voter or not, not {m.voter!r}")
    if type(m.attributes) is not tuple or len(m.attributes) > MAX_ATTRIBUTES:
        raise ValueError(f"the attributes of {m.node_id} must be a tuple of {MAX_ATTRIBUTES} pairs")
    for pair in m.attributes:
        if type(pair) is not tuple or len(pair) != 2:
            raise ValueError(f"an attribute of {m.node_id} is not a pair")
        for text in pair:
            _check_text(f"an attribute of {m.node_id}", text, MAX_ATTRIBUTE_BYTES)


def _check_text(what: str, value: object, max_bytes: int) -> None:
    if type(value) is not str:
        raise ValueError(f"{what} must be text, not {value!r}")
    if len(value.encode()) > max_bytes:
        raise ValueError(f"{what} is longer than {max_bytes} bytes")


# -- which configuration follows which ----------------------------------------------------------


def is_stable(configuration: Configuration) -> bool:
    """Whether no change is under way."""
    return configuration.target is None and not configuration.old_voters


def stage_of(configuration: Configuration) -> str:
    """``stable``, ``staging`` or ``joint``."""
    if configuration.old_voters:
        return "joint"
    return "stable" if configuration.target is None else "staging"


def plan_change(
    current: Configuration, members: tuple[Member, ...], lease: Lease | None, leader: NodeId
) -> Configuration:
    """The first configuration on the way from ``current``, stable or staging, to ``members``.

    * The voters stay: the wanted one itself. All quorums are the same before and after.
    * Voters only go, and ``leader`` is not among them: joint.
    * Otherwise staging: new voters must catch up before they count, and a leader that is to lose
      its vote hands over first (thesis 4.2.1, 4.2.2).

    Raises:
        ValueError: ``members`` can not be.
    """
    check_wanted(current, members)
    first = _first_of(current, members, lease, leader)
    # What this leader could not read back, nobody can, and it would stop every node that tries.
    if decode_configuration(raw := encode_configuration(first)) != first:
        raise ValueError("these members do not come back from the log as they are")
    if len(raw) > MAX_CHANGE_BYTES:
        raise ValueError(f"a configuration of {len(raw)} bytes, more than {MAX_CHANGE_BYTES}")
    return first


def _first_of(
    current: Configuration, members: tuple[Member, ...], lease: Lease | None, leader: NodeId
) -> Configuration:
    wanted = {m.node_id: m for m in members}
    voters = tuple(m.node_id for m in members if m.voter)
    if voters == current.voters:
        gone = [m for m in current.members if m.node_id not in wanted]
        retired = _retire(current.retired, gone)
        return replace(current, members=members, target=None, retired=retired, lease=lease)
    every = {m.node_id: m for m in current.members} | wanted
    staging = replace(
        current,
        members=tuple(replace(every[node], voter=node in current.voters) for node in sorted(every)),
        target=target_of(members),
        lease=lease,
    )
    if leader in voters and set(voters) < set(current.voters):
        return joint_of(staging)
    return staging


def target_of(members: Iterable[Member]) -> Target:
    """The target that stands for ``members``."""
    members = tuple(members)
    return Target(
        tuple(m.node_id for m in members if m.voter),
        tuple(m.node_id for m in members if not m.voter),
    )


def joint_of(staging: Configuration) -> Configuration:
    """Where a staging configuration leads: the wanted voters and the old ones, both majorities."""
    target = staging.target
    assert target is not None, "only a staging configuration has a target"
    stay = {*target.voters, *target.learners}
    return replace(
        staging,
        members=tuple(replace(m, voter=m.node_id in target.voters) for m in staging.members),
        old_voters=staging.voters,
        leaving=tuple(m.node_id for m in staging.members if m.node_id not in stay),
        target=None,
    )


def final_of(joint: Configuration) -> Configuration:
    """Where a joint configuration leads: the new voters alone decide, who was leaving is gone."""
    return replace(
        joint,
        members=tuple(m for m in joint.members if m.node_id not in joint.leaving),
        old_voters=(),
        leaving=(),
        retired=_retire(joint.retired, (m for m in joint.members if m.node_id in joint.leaving)),
    )


def without_target(staging: Configuration) -> Configuration:
    """The change is given up: who was to become a voter stays a learner."""
    return replace(staging, target=None)


def _retire(retired: tuple[bytes, ...], gone: Iterable[Member]) -> tuple[bytes, ...]:
    return (*retired, *(m.incarnation for m in gone))[-MAX_RETIRED:]


# -- bytes --------------------------------------------------------------------------------------


def encode_configuration(configuration: Configuration) -> bytes:
    """Canonical bytes: compact JSON with sorted keys, so equal configurations are equal bytes.

    A configuration of feature level 1 keeps the bytes that release 0.1 gave it: its members must
    be able to read it, and the log's hash chain covers it.
    """
    body: dict[str, Any] = {
        "format": 1 if configuration.level == FIRST_FEATURE_LEVEL else 2,
        "cluster_id": configuration.cluster_id,
        "members": [
            {
                "node_id": m.node_id,
                "address": m.address,
                "incarnation": m.incarnation.hex(),
                "voter": m.voter,
                "attributes": [list(pair) for pair in m.attributes],
            }
            for m in configuration.members
        ],
        "old_voters": list(configuration.old_voters),
    }
    if configuration.level > FIRST_FEATURE_LEVEL:
        body |= _encode_additions(configuration)
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _encode_additions(configuration: Configuration) -> dict[str, Any]:
    """What format 2 says beyond format 1."""
    target, lease = configuration.target, configuration.lease
    return {
        "leaving": list(configuration.leaving),
        "target": target and {"voters": list(target.voters), "learners": list(target.learners)},
        "retired": [incarnation.hex() for incarnation in configuration.retired],
        "lease": lease and [lease.election_timeout_ms, lease.clock_error_ppm],
        "level": configuration.level,
    }


def decode_configuration(raw: bytes) -> Configuration:
    """The configuration of those bytes.

    Raises:
        ValueError: not a configuration of a format known here, or one that contradicts itself.
    """
    configuration = _decode(raw)
    check_configuration(configuration)
    return configuration


def _decode(raw: bytes) -> Configuration:
    try:
        body: dict[str, Any] = json.loads(raw)
        if body["format"] not in CONFIGURATION_FORMATS:
            raise ValueError(f"configuration format {body['format']} is not known here")
        members = tuple(
            Member(
                node_id=_text(m["node_id"]),
                address=_text(m["address"]),
                incarnation=bytes.fromhex(m["incarnation"]),
                voter=_flag(m["voter"]),
                attributes=tuple((_text(k), _text(v)) for k, v in m["attributes"]),
            )
            for m in body["members"]
        )
        old_voters = tuple(_text(voter) for voter in body["old_voters"])
        first = Configuration(
            _text(body["cluster_id"]), members, old_voters, level=FIRST_FEATURE_LEVEL
        )
        return first if body["format"] == 1 else _decode_additions(first, body)
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        # RecursionError: what is nested deeply enough is no configuration either.
        raise ValueError(f"not a configuration: {type(error).__name__}: {error}") from error


def _decode_additions(first: Configuration, body: dict[str, Any]) -> Configuration:
    target, lease = body["target"], body["lease"]
    return replace(
        first,
        leaving=tuple(_text(node) for node in body["leaving"]),
        target=target
        and Target(
            tuple(_text(node) for node in target["voters"]),
            tuple(_text(node) for node in target["learners"]),
        ),
        retired=tuple(bytes.fromhex(raw) for raw in body["retired"]),
        lease=lease and _decode_lease(lease),
        level=_number(body["level"]),
    )


def _decode_lease(raw: Any) -> Lease:
    election_timeout_ms, clock_error_ppm = raw
    return Lease(_number(election_timeout_ms), _number(clock_error_ppm))


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not a count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not a truth value")
    return value


# -- along the log ------------------------------------------------------------------------------


class ConfigurationStack:
    """The configurations along the log, oldest first; the last one is in force.

    The bottom is the configuration at the snapshot (or an empty one before bootstrap). Entries
    above it are the configuration entries still in the log, by index.
    """

    def __init__(self, base_index: int, base: Configuration) -> None:
        self._stack: list[tuple[int, Configuration]] = [(base_index, base)]
        self._look()

    def _look(self) -> None:
        """What every step asks for: the configuration in force."""
        self._last = (self._stack[-1],)
        self.current_index, self.current = self._stack[-1]

    def push(self, index: int, configuration: Configuration) -> None:
        assert index > self._stack[-1][0], "configuration entries are appended in order"
        self._stack.append((index, configuration))
        self._look()

    def truncate(self, from_index: int) -> bool:
        """Entries from ``from_index`` on are gone; True if the configuration in force changed."""
        changed = False
        while len(self._stack) > 1 and self._stack[-1][0] >= from_index:
            self._stack.pop()
            self._look()
            changed = True
        return changed

    def compact(self, index: int) -> None:
        """Everything up to ``index`` is in a snapshot: the last configuration there is the base."""
        while len(self._stack) > 1 and self._stack[1][0] <= index:
            del self._stack[0]

    def committed(self, committed: int) -> tuple[int, Configuration]:
        """The last configuration at or below ``committed``, which is not below the base."""
        return self.since(committed)[0]

    def since(self, committed: int) -> tuple[tuple[int, Configuration], ...]:
        """The last configuration at or below ``committed`` and all after it, oldest first."""
        if self.current_index <= committed:
            return self._last
        first = len(self._stack) - 1
        while first > 0 and self._stack[first][0] > committed:
            first -= 1
        return tuple(self._stack[first:])

    def between(self, after: int, last: int) -> tuple[tuple[int, Configuration], ...]:
        """The configurations above ``after`` up to ``last``, oldest first."""
        if self.current_index <= after:
            return ()
        return tuple(item for item in self._stack if after < item[0] <= last)

    def at(self, index: int) -> Configuration:
        """The configuration in force at ``index``, which is not below the base."""
        for position, configuration in reversed(self._stack):
            if position <= index:
                return configuration
        raise AssertionError(f"no configuration known at {index}")
