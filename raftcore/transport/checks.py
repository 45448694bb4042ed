"""Reading what a peer wrote: every value is checked before anything else sees it.

Bytes from the network are parsed as msgpack arrays of plain values: no maps, no extension types,
bounded lengths. Each check takes the raw value, returns it typed, or raises :class:`WireError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from raftcore.core import membership
from raftcore.core.errors import PeerViolationError
from raftcore.core.membership import MAX_RETIRED, decode_configuration
from raftcore.core.types import MAX_INDEX, MAX_TERM, Configuration, Lease, Member, Target

#: Request numbers, sequences and counters: grow by one, so 63 bits never end.
MAX_COUNTER = 2**63 - 1
# What a configuration may hold is one matter, for whoever sends it and for whoever reads it.
MAX_NODE_ID_BYTES = membership.MAX_NODE_ID_BYTES
MAX_CLUSTER_ID_BYTES = membership.MAX_CLUSTER_ID_BYTES
MAX_ADDRESS_BYTES = membership.MAX_ADDRESS_BYTES
MAX_MEMBERS = membership.MAX_MEMBERS
MAX_ATTRIBUTES = membership.MAX_ATTRIBUTES
MAX_ATTRIBUTE_BYTES = membership.MAX_ATTRIBUTE_BYTES
INCARNATION_BYTES = membership.INCARNATION_BYTES
#: More than a change may begin with: its later stages are longer.
MAX_CONFIGURATION_BYTES = 1 << 20
#: Feature levels, protocol versions and settings in milliseconds.
MAX_SETTING = 2**31

Check = Callable[[object], Any]


class WireError(PeerViolationError):
    """The peer's bytes are not what a correct peer sends; the connection is of no further use."""

    code = "peer_violation"


def unpack_array(raw: bytes | memoryview, *, max_array_len: int) -> tuple[object, ...]:
    """The msgpack array that ``raw`` is, exactly, as a tuple (nested arrays are tuples too).

    Raises:
        WireError: not one msgpack array, or with maps, extension types or too many elements.
    """
    try:
        value = msgpack.unpackb(
            raw,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_array_len=max_array_len,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {error}") from error
    if type(value) is not tuple:
        raise WireError(f"expected an array, got {type(value).__name__}")
    return value


def check_integer(value: object, low: int, high: int) -> int:
    # type() and not isinstance: True is an int to Python, but never a number on the wire.
    if type(value) is not int:
        raise WireError(f"expected an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise WireError(f"the number {value} is outside {low}..{high}")
    return value


def check_term(value: object) -> int:
    return check_integer(value, 0, MAX_TERM)


def check_index(value: object) -> int:
    return check_integer(value, 0, MAX_INDEX)


def check_index_or_none(value: object) -> int:
    """An index, or -1 for "there is none"."""
    return check_integer(value, -1, MAX_INDEX)


def check_counter(value: object) -> int:
    return check_integer(value, 0, MAX_COUNTER)


def check_flag(value: object) -> bool:
    if type(value) is not bool:
        raise WireError(f"expected a boolean, got {type(value).__name__}")
    return value


def check_bytes(value: object) -> bytes:
    """Any bytes: the frame's cap has bounded them already."""
    if type(value) is not bytes:
        raise WireError(f"expected bytes, got {type(value).__name__}")
    return value


def check_exact_bytes(value: object, size: int) -> bytes:
    raw = check_bytes(value)
    if len(raw) != size:
        raise WireError(f"expected {size} bytes, got {len(raw)}")
    return raw


def check_text(value: object, max_bytes: int) -> str:
    if type(value) is not str:
        raise WireError(f"expected text, got {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:  # JSON can spell lone surrogates
        raise WireError("a text is not Unicode") from error
    if size > max_bytes:
        raise WireError(f"a text is longer than {max_bytes} bytes")
    return value


def check_node_id(value: object) -> str:
    node_id = check_text(value, MAX_NODE_ID_BYTES)
    if not node_id:
        raise WireError("a node id is empty")
    return node_id


def check_array(value: object, max_len: int) -> tuple[object, ...]:
    if type(value) is not tuple:
        raise WireError(f"expected an array, got {type(value).__name__}")
    if len(value) > max_len:
        raise WireError(f"an array is longer than {max_len}")
    return value


def check_attributes(value: object) -> tuple[tuple[str, str], ...]:
    pairs = []
    for item in check_array(value, MAX_ATTRIBUTES):
        pair = check_array(item, 2)
        if len(pair) != 2:
            raise WireError("an attribute is not a pair")
        name, text = pair
        pairs.append((check_text(name, MAX_ATTRIBUTE_BYTES), check_text(text, MAX_ATTRIBUTE_BYTES)))
    return tuple(pairs)


def check_configuration(value: object) -> Configuration:
    """A configuration from its canonical bytes, with every field checked."""
    raw = check_bytes(value)
    if len(raw) > MAX_CONFIGURATION_BYTES:
        raise WireError(f"a configuration of {len(raw)} bytes")
    try:
        configuration = decode_configuration(raw)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise WireError(f"not a configuration: {error}") from error
    # JSON has no types to rely on: what decoded may still hold a number where an id belongs.
    check_text(configuration.cluster_id, MAX_CLUSTER_ID_BYTES)
    check_array(configuration.members, MAX_MEMBERS)
    for member in configuration.members:
        check_member(member)
    for node_ids in (configuration.old_voters, configuration.leaving):
        _check_node_ids(node_ids)
    for incarnation in check_array(configuration.retired, MAX_RETIRED):
        check_exact_bytes(incarnation, INCARNATION_BYTES)
    check_integer(configuration.level, 1, MAX_SETTING)
    _check_stage(configuration.target, configuration.lease)
    return configuration


def _check_stage(target: object, lease: object) -> None:
    if target is not None:
        if not isinstance(target, Target):
            raise WireError("a configuration's target is not one")
        _check_node_ids(target.voters)
        _check_node_ids(target.learners)
    if lease is not None:
        if not isinstance(lease, Lease):
            raise WireError("a configuration's lease is not one")
        check_integer(lease.election_timeout_ms, 1, MAX_SETTING)
        check_integer(lease.clock_error_ppm, 0, 1_000_000)


def _check_node_ids(value: object) -> None:
    for node_id in check_array(value, MAX_MEMBERS):
        check_node_id(node_id)


def check_member(member: Member) -> None:
    """Every field of ``member`` is of its type and within its bounds."""
    check_node_id(member.node_id)
    check_text(member.address, MAX_ADDRESS_BYTES)
    check_flag(member.voter)
    # Empty: a configuration may be written before the member's directory exists.
    if member.incarnation:
        check_exact_bytes(member.incarnation, INCARNATION_BYTES)
    check_attributes(member.attributes)
