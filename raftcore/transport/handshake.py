"""The handshake: who speaks, of which cluster, in which version.

The dialler sends HELLO, the acceptor answers WELCOME (the same about itself) or REFUSE (a code and
a text) and closes. Nothing else is read from a connection before that, so no term and no entry of a
stranger, of another cluster or of a wiped member is ever looked at (rules 43 and 52).

Founders that are forming a cluster (:mod:`raftcore.formation`) introduce themselves the same way
with ``forming`` set; a member of the formed cluster hands a late founder the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import msgpack

from raftcore.core.membership import encode_configuration
from raftcore.core.types import Configuration, NodeId
from raftcore.storage.base import Identity
from raftcore.transport.checks import (
    INCARNATION_BYTES,
    MAX_ADDRESS_BYTES,
    MAX_CLUSTER_ID_BYTES,
    MAX_CONFIGURATION_BYTES,
    MAX_MEMBERS,
    WireError,
    check_array,
    check_attributes,
    check_bytes,
    check_exact_bytes,
    check_flag,
    check_integer,
    check_node_id,
    check_text,
    unpack_array,
)
from raftcore.transport.wire import clip

MAGIC = b"raftcore"
#: The newest protocol spoken here, and the oldest still understood.
PROTOCOL_VERSION = 1
MIN_PROTOCOL_VERSION = 1
#: A HELLO or REFUSE is never larger (the list of founders makes up most of it) ...
MAX_HELLO_BYTES = 64 << 10
#: ... and a WELCOME may carry a configuration.
MAX_WELCOME_BYTES = MAX_HELLO_BYTES + MAX_CONFIGURATION_BYTES
_MAX_CODE_BYTES = 64
_MAX_DETAIL_BYTES = 1024
_FIELDS = 9


class RefusalCode(StrEnum):
    """Why a connection was not taken; stable names, used as metric labels."""

    BAD_HELLO = "bad_hello"  #: not a handshake at all
    PROTOCOL_VERSION = "protocol_version"
    CLUSTER_ID = "cluster_id"
    UNKNOWN_NODE = "unknown_node"
    INCARNATION = "incarnation"
    WRONG_NODE = "wrong_node"  #: another node answers at that address
    FORMING = "forming"  #: the acceptor has no cluster yet
    ALREADY_BOOTSTRAPPED = "already_bootstrapped"
    HELLO_TIMEOUT = "hello_timeout"
    TOO_MANY = "too_many_handshakes"


class HandshakeRefusedError(Exception):
    """The handshake ends here; ``code`` is a :class:`RefusalCode` (or a newer peer's own)."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Founder:
    """A line of the founders' list: everything about a first member but its incarnation."""

    node_id: NodeId
    address: str
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Introduction:
    """What HELLO and WELCOME say.

    ``founders`` and ``proposal`` (the cluster id this founder would found now, empty as long as it
    misses somebody) are said while forming; ``configuration`` (canonical bytes, or empty) by a
    formed member to a late founder.
    """

    node_id: NodeId
    incarnation: bytes
    cluster_id: str = ""
    forming: bool = False
    founders: tuple[Founder, ...] = ()
    proposal: str = ""
    configuration: bytes = b""
    version: int = PROTOCOL_VERSION
    min_version: int = MIN_PROTOCOL_VERSION


def encode_introduction(introduction: Introduction) -> bytes:
    i = introduction
    founders = [[f.node_id, f.address, [list(p) for p in f.attributes]] for f in i.founders]
    return msgpack.packb(
        [
            MAGIC, i.version, i.min_version, i.node_id, i.incarnation, i.cluster_id, i.forming,
            [founders, i.proposal], i.configuration,
        ]
    )  # fmt: skip


def decode_introduction(raw: bytes) -> Introduction:
    """What the other side said.

    Raises:
        HandshakeRefusedError: it speaks no version known here, or no handshake at all.
    """
    try:
        return _decode_introduction(unpack_array(raw, max_array_len=MAX_MEMBERS))
    except WireError as error:
        raise HandshakeRefusedError(RefusalCode.BAD_HELLO, str(error)) from error


def _decode_introduction(values: tuple[object, ...]) -> Introduction:
    if len(values) < 3 or values[0] != MAGIC:
        raise WireError("this is not a raftcore peer")
    version = check_integer(values[1], 1, 2**31)
    min_version = check_integer(values[2], 1, version)
    if min_version > PROTOCOL_VERSION or version < MIN_PROTOCOL_VERSION:
        raise HandshakeRefusedError(
            RefusalCode.PROTOCOL_VERSION,
            f"protocol versions {MIN_PROTOCOL_VERSION}..{PROTOCOL_VERSION} are spoken here, "
            f"{min_version}..{version} there",
        )
    # A newer peer that still speaks our version may say more; what it adds comes at the end.
    if len(values) < _FIELDS or (len(values) > _FIELDS and version == PROTOCOL_VERSION):
        raise WireError(f"an introduction of {len(values)} fields")
    return _decode_fields(version, min_version, values[3:_FIELDS])


def _decode_fields(version: int, min_version: int, values: tuple[object, ...]) -> Introduction:
    node_id, incarnation, cluster_id, forming, founding, configuration = values
    pair = check_array(founding, 2)
    if len(pair) != 2:
        raise WireError("what a founder says is a list and a proposal")
    return Introduction(
        node_id=check_node_id(node_id),
        incarnation=check_exact_bytes(incarnation, INCARNATION_BYTES),
        cluster_id=check_text(cluster_id, MAX_CLUSTER_ID_BYTES),
        forming=check_flag(forming),
        founders=tuple(_decode_founder(f) for f in check_array(pair[0], MAX_MEMBERS)),
        proposal=check_text(pair[1], MAX_CLUSTER_ID_BYTES),
        configuration=check_bytes(configuration),
        version=version,
        min_version=min_version,
    )


def _decode_founder(value: object) -> Founder:
    fields = check_array(value, 3)
    if len(fields) != 3:
        raise WireError(f"a founder of {len(fields)} fields")
    node_id, address, attributes = fields
    return Founder(
        check_node_id(node_id),
        check_text(address, MAX_ADDRESS_BYTES),
        check_attributes(attributes),
    )


def encode_refusal(error: HandshakeRefusedError) -> bytes:
    code, detail = clip(error.code, _MAX_CODE_BYTES), clip(error.detail, _MAX_DETAIL_BYTES)
    return msgpack.packb([MAGIC, code, detail])


def decode_refusal(raw: bytes) -> HandshakeRefusedError:
    """The refusal, as the error that it was on the other side.

    Raises:
        WireError: not a refusal.
    """
    values = unpack_array(raw, max_array_len=3)
    if len(values) != 3 or values[0] != MAGIC:
        raise WireError("not a refusal")
    return HandshakeRefusedError(
        check_text(values[1], _MAX_CODE_BYTES), check_text(values[2], _MAX_DETAIL_BYTES)
    )


# -- what a member of a formed cluster asks of the other side ---------------------------------


def introduce(identity: Identity) -> Introduction:
    """What a member of a formed cluster says about itself."""
    return Introduction(identity.node_id, identity.incarnation, identity.cluster_id)


def answer_hello(
    hello: Introduction,
    identity: Identity,
    configuration: Configuration,
    founding: Configuration,
) -> Introduction:
    """The WELCOME that a formed member gives.

    Raises:
        HandshakeRefusedError: the dialler is not a member of this cluster as we know it.
    """
    if hello.forming:
        return _answer_founder(hello, identity, configuration, founding)
    check_member(hello, identity, configuration)
    return introduce(identity)


def _answer_founder(
    hello: Introduction,
    identity: Identity,
    configuration: Configuration,
    founding: Configuration,
) -> Introduction:
    """A founder that missed the end of the formation gets the result; anybody else must not vote.

    Another incarnation means that the founder's directory was wiped: what it had acknowledged is
    gone, so it may come back only as a new member (rule 43).
    """
    for known in (founding, configuration):
        member = known.member(hello.node_id)
        if member is None or member.incarnation != hello.incarnation:
            raise HandshakeRefusedError(
                RefusalCode.ALREADY_BOOTSTRAPPED,
                f"cluster {identity.cluster_id} exists and does not have {hello.node_id} "
                f"with incarnation {hello.incarnation.hex()}",
            )
    return replace(introduce(identity), configuration=encode_configuration(founding))


def check_member(other: Introduction, identity: Identity, configuration: Configuration) -> None:
    """Whether ``other`` is a member of our cluster, with the incarnation that we know.

    Raises:
        HandshakeRefusedError: it is not.
    """
    if other.forming:
        raise HandshakeRefusedError(RefusalCode.FORMING, f"{other.node_id} has no cluster yet")
    if other.cluster_id != identity.cluster_id:
        raise HandshakeRefusedError(
            RefusalCode.CLUSTER_ID,
            f"this is cluster {identity.cluster_id}, not {other.cluster_id}",
        )
    member = configuration.member(other.node_id)
    if member is None or other.node_id == identity.node_id:
        raise HandshakeRefusedError(
            RefusalCode.UNKNOWN_NODE, f"{other.node_id} is not one of {identity.node_id}'s peers"
        )
    if member.incarnation != other.incarnation:
        raise HandshakeRefusedError(
            RefusalCode.INCARNATION,
            f"{other.node_id} is known with another incarnation; a node whose directory was lost "
            "comes back as a new member",
        )


def check_welcome(
    welcome: Introduction, expected: NodeId, identity: Identity, configuration: Configuration
) -> None:
    """Whether the one who answered is the member that was dialled.

    Raises:
        HandshakeRefusedError: it is somebody else.
    """
    if welcome.node_id != expected:
        raise HandshakeRefusedError(
            RefusalCode.WRONG_NODE, f"{welcome.node_id} answers where {expected} should be"
        )
    check_member(welcome, identity, configuration)
