"""The handshake: who speaks, of which cluster, in which version.

The dialler sends HELLO, the acceptor answers WELCOME (the same about itself) or REFUSE (a code and
a text) and closes. Nothing else is read from a connection before that, so no term and no entry of a
stranger, of another cluster or of a wiped member is ever looked at (rules 43 and 52).

Founders that are forming a cluster (:mod:`raftcore.formation`) introduce themselves the same way
with ``forming`` set; a member of the formed cluster hands a late founder the configuration. A node
that wants to become a member (:mod:`raftcore.joining`) says ``joining``. Here is what is said; who
is let in is decided in :mod:`raftcore.transport.admission`.

An introduction states the versions that its sender speaks (:mod:`raftcore.transport.versions`).
Version 2 adds fields at the end, which a node of version 1 ignores.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgpack

from raftcore.core.types import FEATURE_LEVEL, FIRST_FEATURE_LEVEL, NodeId
from raftcore.storage.base import Identity
from raftcore.transport.address import parse_address
from raftcore.transport.checks import (
    INCARNATION_BYTES,
    MAX_ADDRESS_BYTES,
    MAX_CLUSTER_ID_BYTES,
    MAX_CONFIGURATION_BYTES,
    MAX_COUNTER,
    MAX_MEMBERS,
    MAX_SETTING,
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
from raftcore.transport.framing import ZLIB
from raftcore.transport.versions import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from raftcore.transport.wire import clip

MAGIC = b"raftcore"
#: A HELLO or REFUSE is never larger (the list of founders makes up most of it) ...
MAX_HELLO_BYTES = 64 << 10
#: ... and a WELCOME may carry a configuration.
MAX_WELCOME_BYTES = MAX_HELLO_BYTES + MAX_CONFIGURATION_BYTES
_MAX_CODE_BYTES = 64
_MAX_DETAIL_BYTES = 1024
_MAX_SUBJECT_BYTES = 1024
_MAX_COMPRESSIONS = 16
#: How many fields an introduction has in each version.
_FIELDS = {1: 9, 2: 14}


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
    REMOVED = "removed"  #: this incarnation was a member and is not any more (rule 43)
    CERTIFICATE = "certificate"  #: the certificate does not carry the node id that was said
    NOT_LEADER = "not_leader"  #: to a joiner: the leader has to be asked
    REFUSED = "refused"  #: to a joiner: it is not welcome


class HandshakeRefusedError(Exception):
    """The handshake ends here; ``code`` is a :class:`RefusalCode` (or a newer peer's own).

    ``subject`` is what a machine reads: of NOT_LEADER the leader's address (or nothing), of REMOVED
    who was removed, as :func:`removed_subject` writes it.
    """

    def __init__(self, code: str, detail: str, subject: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.subject = subject


@dataclass(frozen=True, slots=True)
class Founder:
    """A line of the founders' list: everything about a first member but its incarnation."""

    node_id: NodeId
    address: str
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node says of itself besides who it is.

    Args:
        feature_level: the newest feature level that its program knows.
        runs: how often its log has been opened. A number that goes back shows that an older copy of
            the directory was put in its place; 0 if the log does not count.
        election_timeout_ms: its setting; 0 if it does not say.
    """

    feature_level: int = FEATURE_LEVEL
    runs: int = 0
    election_timeout_ms: int = 0


@dataclass(frozen=True, slots=True)
class Joining:
    """What a node that wants to become a member says of the member it would be."""

    address: str
    voter: bool = True
    attributes: tuple[tuple[str, str], ...] = ()


#: What is assumed of a node of version 1, which says none of it.
SILENT = Facts(feature_level=FIRST_FEATURE_LEVEL)


@dataclass(frozen=True, slots=True)
class Introduction:
    """What HELLO and WELCOME say.

    ``founders`` and ``proposal`` (the cluster id this founder would found now, empty as long as it
    misses somebody) are said while forming; ``configuration`` (canonical bytes, or empty) by a
    formed member to a late founder or to a joiner that is a member. ``facts``, ``compressions``
    (those that may be sent to this node) and ``joining`` are said from version 2 on.
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
    facts: Facts = SILENT
    compressions: tuple[str, ...] = ()
    joining: Joining | None = None


def introduce(
    identity: Identity, facts: Facts = SILENT, version: int = PROTOCOL_VERSION
) -> Introduction:
    """What a member of a formed cluster says about itself."""
    spoken = (facts, (ZLIB,)) if version >= 2 else (SILENT, ())
    return Introduction(
        identity.node_id,
        identity.incarnation,
        identity.cluster_id,
        version=version,
        facts=spoken[0],
        compressions=spoken[1],
    )


def encode_introduction(introduction: Introduction) -> bytes:
    i = introduction
    founders = [[f.node_id, f.address, [list(p) for p in f.attributes]] for f in i.founders]
    fields: list[object] = [
        MAGIC, i.version, i.min_version, i.node_id, i.incarnation, i.cluster_id, i.forming,
        [founders, i.proposal], i.configuration,
    ]  # fmt: skip
    if i.version >= 2:
        joining = i.joining and [
            i.joining.address,
            i.joining.voter,
            [list(p) for p in i.joining.attributes],
        ]
        facts = i.facts
        fields += [
            facts.feature_level, facts.runs, facts.election_timeout_ms, list(i.compressions),
            joining,
        ]  # fmt: skip
    return msgpack.packb(fields)


def decode_introduction(raw: bytes, newest: int = PROTOCOL_VERSION) -> Introduction:
    """What the other side said, to one that speaks versions up to ``newest``.

    Raises:
        HandshakeRefusedError: it speaks no version known here, or no handshake at all.
    """
    try:
        return _decode_introduction(unpack_array(raw, max_array_len=MAX_MEMBERS), newest)
    except WireError as error:
        raise HandshakeRefusedError(RefusalCode.BAD_HELLO, str(error)) from error


def _decode_introduction(values: tuple[object, ...], newest: int) -> Introduction:
    if len(values) < 3 or values[0] != MAGIC:
        raise WireError("this is not a raftcore peer")
    version = check_integer(values[1], 1, MAX_SETTING)
    min_version = check_integer(values[2], 1, version)
    if min_version > newest or version < MIN_PROTOCOL_VERSION:
        raise HandshakeRefusedError(
            RefusalCode.PROTOCOL_VERSION,
            f"protocol versions {MIN_PROTOCOL_VERSION}..{newest} are spoken here, "
            f"{min_version}..{version} there",
        )
    count = _FIELDS[min(version, newest)]
    # A newer peer that still speaks our version may say more; what it adds comes at the end.
    if len(values) < count or (len(values) > count and version <= newest):
        raise WireError(f"an introduction of {len(values)} fields")
    facts, compressions, joining = _decode_additions(values[_FIELDS[1] : count])
    return _decode_fields(version, min_version, values[3:9], facts, compressions, joining)


def _decode_fields(
    version: int,
    min_version: int,
    values: tuple[object, ...],
    facts: Facts,
    compressions: tuple[str, ...],
    joining: Joining | None,
) -> Introduction:
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
        facts=facts,
        compressions=compressions,
        joining=joining,
    )


def _decode_additions(
    values: tuple[object, ...],
) -> tuple[Facts, tuple[str, ...], Joining | None]:
    """What version 2 says beyond version 1; nothing if nothing is there."""
    if not values:
        return SILENT, (), None
    level, runs, election_timeout_ms, compressions, joining = values
    facts = Facts(
        check_integer(level, 1, MAX_SETTING),
        check_integer(runs, 0, MAX_COUNTER),
        check_integer(election_timeout_ms, 0, MAX_SETTING),
    )
    names = tuple(
        check_text(name, _MAX_CODE_BYTES) for name in check_array(compressions, _MAX_COMPRESSIONS)
    )
    return facts, names, None if joining is None else _decode_joining(joining)


def _decode_joining(value: object) -> Joining:
    fields = check_array(value, 3)
    if len(fields) != 3:
        raise WireError(f"what a joiner says has {len(fields)} fields")
    address, voter, attributes = fields
    joining = Joining(
        check_text(address, MAX_ADDRESS_BYTES), check_flag(voter), check_attributes(attributes)
    )
    try:
        parse_address(joining.address)
    except ValueError as error:
        raise WireError(str(error)) from error
    return joining


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


def encode_refusal(error: HandshakeRefusedError, version: int = PROTOCOL_VERSION) -> bytes:
    """The refusal for a peer of that version: 1 knows no subject."""
    code, detail = clip(error.code, _MAX_CODE_BYTES), clip(error.detail, _MAX_DETAIL_BYTES)
    fields: list[object] = [MAGIC, code, detail]
    if error.subject and version >= 2:
        fields.append(clip(error.subject, _MAX_SUBJECT_BYTES))
    return msgpack.packb(fields)


def decode_refusal(raw: bytes) -> HandshakeRefusedError:
    """The refusal, as the error that it was on the other side.

    It does not say of which version its sender is: what comes after the subject is ignored.

    Raises:
        WireError: not a refusal.
    """
    values = unpack_array(raw, max_array_len=16)
    if len(values) < 3 or values[0] != MAGIC:
        raise WireError("not a refusal")
    return HandshakeRefusedError(
        check_text(values[1], _MAX_CODE_BYTES),
        check_text(values[2], _MAX_DETAIL_BYTES),
        check_text(values[3], _MAX_SUBJECT_BYTES) if len(values) > 3 else "",
    )


def removed_subject(cluster_id: str, incarnation: bytes) -> str:
    """Who was removed, in the subject of a REMOVED refusal."""
    return f"{cluster_id}/{incarnation.hex()}"
