"""The bytes of protocol messages, requests and responses.

A message is one msgpack array ``[version, type, term, fields...]``: arrays, because maps cost half
as much again and field names would have to be checked. The fields of each type, their order and
their checks are one table below; its numbers are final once released. ``sender`` is not in the
bytes: it is who the connection was authenticated as (rule 52). ``version`` is the protocol version
of the connection (:mod:`raftcore.transport.versions`): fields that came later are left out.

Entries travel as their canonical bytes (:mod:`raftcore.encoding`), the very ones that go into the
log and its hash chain.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import msgpack

from raftcore.core.membership import encode_configuration
from raftcore.core.messages import (
    AppendReply,
    AppendRequest,
    Health,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftcore.core.types import Entry, NodeId, SnapshotMeta
from raftcore.encoding import EncodingError, decode_entry, encode_entry
from raftcore.errors import RefusedError
from raftcore.naming import MAX_NODE_ID_BYTES
from raftcore.transport.checks import (
    MAX_COUNTER,
    MAX_SETTING,
    Check,
    WireError,
    check_array,
    check_bytes,
    check_configuration,
    check_counter,
    check_exact_bytes,
    check_flag,
    check_index,
    check_index_or_none,
    check_integer,
    check_term,
    check_text,
    unpack_array,
)
from raftcore.transport.versions import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION

__all__ = [
    "MAX_BATCH_ENTRIES",
    "MessageEncoder",
    "Request",
    "Response",
    "ResponseStatus",
    "UnknownMessageError",
    "WireError",
    "decode_message",
    "decode_request",
    "decode_response",
    "encode_message",
    "encode_request",
    "encode_response",
]

#: Requests and responses are the same in all protocol versions so far.
_REQUEST_FORMAT = 1
#: Entries of one append message; far above what a leader packs into one.
MAX_BATCH_ENTRIES = 1 << 16
_CHAIN_BYTES = 32


class UnknownMessageError(Exception):
    """A message of a type that only a newer release knows: to be dropped and counted."""


# -- messages ---------------------------------------------------------------------------------


def _check_entries(value: object) -> tuple[Entry, ...]:
    try:
        return tuple(
            decode_entry(check_bytes(raw)) for raw in check_array(value, MAX_BATCH_ENTRIES)
        )
    except EncodingError as error:
        raise WireError(str(error)) from error


def _check_meta(value: object) -> SnapshotMeta:
    fields = check_array(value, 6)
    if len(fields) != 6:
        raise WireError(f"snapshot metadata of {len(fields)} fields")
    index, term, chain, configuration, size_bytes, digest = fields
    return SnapshotMeta(
        index=check_index(index),
        term=check_term(term),
        chain=check_exact_bytes(chain, _CHAIN_BYTES),
        configuration=check_configuration(configuration),
        size_bytes=check_counter(size_bytes),
        digest=check_exact_bytes(digest, _CHAIN_BYTES),
    )


def _check_health(value: object) -> Health:
    fields = check_array(value, 3)
    if len(fields) != 3:
        raise WireError(f"health of {len(fields)} fields")
    age_ms, quarantined, level = fields
    return Health(
        check_counter(age_ms), check_flag(quarantined), check_integer(level, 1, MAX_SETTING)
    )


def _plain_health(health: Health) -> list[object]:
    return [health.write_age_ms, health.quarantined, health.feature_level]


def _plain_meta(meta: SnapshotMeta) -> list[object]:
    configuration = encode_configuration(meta.configuration)
    return [meta.index, meta.term, meta.chain, configuration, meta.size_bytes, meta.digest]


class _Field(NamedTuple):
    """A field of a message; ``since`` is the protocol version that brought it."""

    name: str
    check: Check
    since: int = 1


@dataclass(frozen=True, slots=True)
class _Layout:
    """One message type on the wire: its number, and its fields after the term, in order.

    Fields that came later are last, and have defaults in the message's class.
    """

    number: int
    make: Callable[..., Message]
    fields: tuple[_Field, ...]

    def fields_of(self, version: int) -> tuple[_Field, ...]:
        return tuple(field for field in self.fields if field.since <= version)


def _layout(number: int, make: type[Message], *fields: tuple[str, Check] | _Field) -> _Layout:
    return _Layout(number, make, tuple(_Field(*field) for field in fields))


_LAYOUTS: dict[type[Message], _Layout] = {
    VoteRequest: _layout(
        1,
        VoteRequest,
        ("last_index", check_index),
        ("last_term", check_term),
        ("pre_vote", check_flag),
        ("transfer", check_flag),
    ),
    VoteReply: _layout(2, VoteReply, ("granted", check_flag), ("pre_vote", check_flag)),
    AppendRequest: _layout(
        3,
        AppendRequest,
        ("prev_index", check_index),
        ("prev_term", check_term),
        ("commit", check_index),
        ("sequence", check_counter),
        ("read_counter", check_counter),
        ("entries", _check_entries),  # last, see MessageEncoder
    ),
    AppendReply: _layout(
        4,
        AppendReply,
        ("success", check_flag),
        ("match_index", check_index),
        ("conflict_index", check_index),
        ("conflict_term", check_term),
        ("sequence", check_counter),
        ("read_counter", check_counter),
        _Field("health", _check_health, since=2),
    ),
    Heartbeat: _layout(
        5,
        Heartbeat,
        ("commit", check_index),
        ("read_counter", check_counter),
        ("leader_commit", check_index),
        _Field("release_index", check_index, since=2),
    ),
    HeartbeatReply: _layout(
        6,
        HeartbeatReply,
        ("read_counter", check_counter),
        _Field("health", _check_health, since=2),
    ),
    SnapshotChunk: _layout(
        7,
        SnapshotChunk,
        ("meta", _check_meta),
        ("offset", check_counter),
        ("data", check_bytes),
        ("sequence", check_counter),
        ("read_counter", check_counter),
    ),
    SnapshotReply: _layout(
        8,
        SnapshotReply,
        ("index", check_index),
        ("next_offset", check_counter),
        ("installed", check_flag),
        ("sequence", check_counter),
        ("read_counter", check_counter),
    ),
    TimeoutNow: _layout(9, TimeoutNow),
    ReadIndexRequest: _layout(10, ReadIndexRequest, ("read_id", check_counter)),
    ReadIndexReply: _layout(
        11, ReadIndexReply, ("read_id", check_counter), ("index", check_index_or_none)
    ),
}
#: What each type consists of in each version, by version and number.
_BY_NUMBER = {
    (version, layout.number): (layout, layout.fields_of(version))
    for version in range(MIN_PROTOCOL_VERSION, PROTOCOL_VERSION + 1)
    for layout in _LAYOUTS.values()
}


class MessageEncoder:
    """Encodes messages; a batch of entries that goes to several followers is encoded once.

    The core hands the same ``entries`` tuple to every follower, so the encoded batch is found by
    the tuple's identity. The cache keeps the tuple alive, hence an id is never taken for that of
    another; it is bounded in batches and in bytes.

    Args:
        cached_batches: how many encoded batches to keep.
        cached_bytes: how many encoded bytes to keep; a larger batch is not kept at all.
    """

    def __init__(self, cached_batches: int = 8, cached_bytes: int = 16 << 20) -> None:
        self._cached_batches = cached_batches
        self._cached_bytes = cached_bytes
        self._batches: OrderedDict[int, tuple[tuple[Entry, ...], bytes]] = OrderedDict()
        self._size_bytes = 0
        self.hits = 0

    def encode(self, message: Message, version: int = PROTOCOL_VERSION) -> bytes:
        """The bytes of ``message`` in that version of the protocol, without its sender.

        A batch of entries has the same bytes in all versions, so it is encoded once whatever the
        followers speak.
        """
        layout, present = _BY_NUMBER[version, _LAYOUTS[type(message)].number]
        fields: list[object] = [version, layout.number, message.term]
        if isinstance(message, AppendRequest):
            fields += (
                message.prev_index,
                message.prev_term,
                message.commit,
                message.sequence,
                message.read_counter,
            )
            # The array is put together by hand so that the batch's bytes can be reused: a header
            # for one element more than `fields`, those elements, and the batch as the last one.
            return b"%c%b%b" % (
                0x90 | (len(fields) + 1),
                msgpack.packb(fields)[1:],
                self._batch(message.entries),
            )
        for field in present:
            value = getattr(message, field.name)
            if isinstance(value, SnapshotMeta):
                value = _plain_meta(value)
            elif isinstance(value, Health):
                value = _plain_health(value)
            fields.append(value)
        return msgpack.packb(fields)

    def _batch(self, entries: tuple[Entry, ...]) -> bytes:
        if not entries:
            return b"\x90"
        key = id(entries)
        found = self._batches.get(key)
        if found is not None:
            self.hits += 1
            return found[1]
        packed = msgpack.packb([encode_entry(entry) for entry in entries])
        if len(packed) <= self._cached_bytes:
            self._batches[key] = (entries, packed)
            self._size_bytes += len(packed)
            while (
                len(self._batches) > self._cached_batches or self._size_bytes > self._cached_bytes
            ):
                _, (_, dropped) = self._batches.popitem(last=False)
                self._size_bytes -= len(dropped)
        return packed


def encode_message(message: Message, version: int = PROTOCOL_VERSION) -> bytes:
    """The bytes of one message; see :class:`MessageEncoder` for many."""
    return MessageEncoder(cached_batches=0).encode(message, version)


def decode_message(
    raw: bytes | memoryview,
    sender: NodeId,
    *,
    newest: int = PROTOCOL_VERSION,
    newer_peer: bool = False,
) -> Message:
    """The message of those bytes, said by ``sender``.

    Args:
        newest: the newest version taken: the one that the connection speaks.
        newer_peer: the sender knows a newer version than we do, see
            :mod:`raftcore.transport.versions`.

    Raises:
        WireError: an unknown version or type, a field of the wrong type or out of range, entries
            that do not continue ``prev_index`` or whose terms run backwards.
        UnknownMessageError: a type that only a newer peer knows.
    """
    values = unpack_array(raw, max_array_len=MAX_BATCH_ENTRIES)
    if len(values) < 3:
        raise WireError("a message is shorter than its header")
    version, number, term = values[:3]
    if type(version) is not int or not MIN_PROTOCOL_VERSION <= version <= newest:
        raise WireError(f"message version {version!r} is not spoken here")
    found = _BY_NUMBER.get((version, check_integer(number, 0, 255)))
    if found is None:
        if newer_peer:
            raise UnknownMessageError(f"message type {number}")
        raise WireError(f"message type {number} is not known here")
    layout, fields = found
    said = values[3:]
    if len(said) < len(fields) or (len(said) > len(fields) and not newer_peer):
        raise WireError(f"a message of type {number} has {len(values)} fields")
    checked = [field.check(value) for field, value in zip(fields, said, strict=False)]
    message = layout.make(sender, check_term(term), *checked)
    if isinstance(message, AppendRequest):
        _check_batch(message)
    elif isinstance(message, SnapshotChunk):
        _check_chunk(message)
    return message


def _check_batch(message: AppendRequest) -> None:
    """Entry k has index ``prev_index + 1 + k`` (rule 29), and terms never decrease along a log."""
    index, term = message.prev_index, message.prev_term
    for entry in message.entries:
        index += 1
        if entry.index != index:
            raise WireError(f"entry {entry.index} where {index} should be")
        if entry.term < term:
            raise WireError(f"entry {index} of term {entry.term} after one of term {term}")
        term = entry.term
    if term > message.term:
        raise WireError(f"a log of term {term} from a leader of term {message.term}")


def _check_chunk(message: SnapshotChunk) -> None:
    if message.offset + len(message.data) > message.meta.size_bytes:
        raise WireError("a snapshot chunk reaches beyond the snapshot's end")


# -- requests and responses -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """An application's question to a peer; ``timeout_ms`` is how long the asker will wait."""

    request_id: int
    timeout_ms: int
    payload: bytes


class ResponseStatus(IntEnum):
    OK = 0
    REFUSED = 1  #: the application refused before doing anything
    UNKNOWN = 2  #: the application cannot say whether it took effect


@dataclass(frozen=True, slots=True)
class Response:
    """``payload`` if OK, else ``code`` and ``detail``; ``leader_id`` is a hint, or empty."""

    request_id: int
    status: ResponseStatus
    payload: bytes = b""
    code: str = ""
    detail: str = ""
    leader_id: str = ""


_MAX_CODE_BYTES = 128
_MAX_DETAIL_BYTES = 4096
_MAX_TIMEOUT_MS = 2**31


def bounded_timeout_s(timeout_s: float) -> float:
    """A timeout as it fits a request: from nothing to some weeks.

    Raises:
        RefusedError: it is not a number.
    """
    if math.isnan(timeout_s):
        raise RefusedError("the timeout of a request is not a number")
    return min(max(timeout_s, 0.0), _MAX_TIMEOUT_MS / 1000)


def encode_request(request: Request) -> bytes:
    return msgpack.packb([_REQUEST_FORMAT, request.request_id, request.timeout_ms, request.payload])


def decode_request(raw: bytes | memoryview) -> Request:
    """Raises :class:`WireError` unless ``raw`` is a request."""
    request_id, timeout_ms, payload = _numbered(raw, 3)
    return Request(
        check_counter(request_id),
        check_integer(timeout_ms, 0, _MAX_TIMEOUT_MS),
        check_bytes(payload),
    )


def encode_response(response: Response) -> bytes:
    return msgpack.packb(
        [
            _REQUEST_FORMAT,
            response.request_id,
            int(response.status),
            response.payload,
            clip(response.code, _MAX_CODE_BYTES),
            clip(response.detail, _MAX_DETAIL_BYTES),
            clip(response.leader_id, MAX_NODE_ID_BYTES),
        ]
    )


def decode_response(raw: bytes | memoryview) -> Response:
    """Raises :class:`WireError` unless ``raw`` is a response."""
    request_id, status, payload, code, detail, leader_id = _numbered(raw, 6)
    return Response(
        check_integer(request_id, 0, MAX_COUNTER),
        ResponseStatus(check_integer(status, 0, max(ResponseStatus))),
        check_bytes(payload),
        check_text(code, _MAX_CODE_BYTES),
        check_text(detail, _MAX_DETAIL_BYTES),
        check_text(leader_id, MAX_NODE_ID_BYTES),
    )


def clip(text: str, max_bytes: int) -> str:
    """``text`` cut to ``max_bytes`` of UTF-8; what cannot be encoded at all is replaced."""
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")


def _numbered(raw: bytes | memoryview, count: int) -> tuple[object, ...]:
    """The ``count`` values after a leading version number."""
    values = unpack_array(raw, max_array_len=count + 1)
    if len(values) != count + 1:
        raise WireError(f"{len(values)} fields where {count + 1} should be")
    if values[0] != _REQUEST_FORMAT or type(values[0]) is not int:
        raise WireError(f"version {values[0]!r} is not known here")
    return values[1:]
