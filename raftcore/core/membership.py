"""Configurations: their bytes, and the stack of those in force along the log.

A configuration is in force from the moment its entry is *appended* (thesis 4.1), and goes out of
force again if that entry is truncated, which is what the stack is for (rules 38, 39).
"""

from __future__ import annotations

import json
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
        ValueError: not a configuration of a format known here.
    """
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
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
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
        lease=lease and Lease(_number(lease[0]), _number(lease[1])),
        level=_number(body["level"]),
    )


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


class ConfigurationStack:
    """The configurations along the log, oldest first; the last one is in force.

    The bottom is the configuration at the snapshot (or an empty one before bootstrap). Entries
    above it are the configuration entries still in the log, by index.
    """

    def __init__(self, base_index: int, base: Configuration) -> None:
        self._stack: list[tuple[int, Configuration]] = [(base_index, base)]

    @property
    def current(self) -> Configuration:
        return self._stack[-1][1]

    @property
    def current_index(self) -> int:
        return self._stack[-1][0]

    def push(self, index: int, configuration: Configuration) -> None:
        assert index > self._stack[-1][0], "configuration entries are appended in order"
        self._stack.append((index, configuration))

    def truncate(self, from_index: int) -> bool:
        """Entries from ``from_index`` on are gone; True if the configuration in force changed."""
        changed = False
        while len(self._stack) > 1 and self._stack[-1][0] >= from_index:
            self._stack.pop()
            changed = True
        return changed

    def compact(self, index: int) -> None:
        """Everything up to ``index`` is in a snapshot: the last configuration there is the base."""
        while len(self._stack) > 1 and self._stack[1][0] <= index:
            del self._stack[0]

    def at(self, index: int) -> Configuration:
        """The configuration in force at ``index``, which is not below the base."""
        for position, configuration in reversed(self._stack):
            if position <= index:
                return configuration
        raise AssertionError(f"no configuration known at {index}")


def is_voter(configuration: Configuration, node_id: NodeId) -> bool:
    """Whether that node may vote and be counted under ``configuration``, joint or not."""
    member = configuration.member(node_id)
    return (member is not None and member.voter) or node_id in configuration.old_voters
