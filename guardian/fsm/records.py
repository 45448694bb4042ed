"""What the replicated state consists of: tables, keys and records.

Records are msgpack arrays in field order; a new field goes to the end with a default, a new table
to the end of :data:`TABLES`. Text in keys is joined by NUL, which no name may contain, so that a
prefix with its NUL selects exactly one project, config or schema; numbers are 8-byte big-endian, so
that key order is numeric order.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, Generic, TypeVar

import msgspec

from guardian.fsm.commands import AnyResult
from guardian.fsm.tables import StateCorruptError, View, WriteView

#: Version of the whole state: of its tables, keys and records, here and in snapshots.
STATE_FORMAT = 1

_U64 = struct.Struct(">Q")
_REVISION = struct.Struct(">QI")
_DUE = struct.Struct(">QQB")

_encode = msgspec.msgpack.Encoder().encode


class CoreRecord(msgspec.Struct, array_like=True, frozen=True):
    """Where the state stands. ``log_chain`` and ``history_chain`` are SHA-256 hash chains;
    ``revision_base`` is what is added to a log index to make a revision."""

    format: int = STATE_FORMAT
    revision_base: int = 0
    clock_ms: int = 0
    index: int = 0
    term: int = 0
    log_chain: bytes = b""
    history_chain: bytes = bytes(32)

    @property
    def revision(self) -> int:
        return self.index + self.revision_base


class ProjectRecord(msgspec.Struct, array_like=True, frozen=True):
    """``existed`` is False for an id that was deleted before it was created."""

    alive: bool
    existed: bool
    revision: int
    actor: str
    at_ms: int


class ProjectKeyRecord(msgspec.Struct, array_like=True, frozen=True):
    """A live API key of a project, by its id."""

    digest: bytes
    name: str
    created_by: str
    created_at_ms: int


class ApiKeyRecord(msgspec.Struct, array_like=True, frozen=True):
    """An API key by its digest; stays, dead, when the key is revoked, so that no digest returns."""

    project_id: str
    key_id: str
    alive: bool


class SchemaRecord(msgspec.Struct, array_like=True, frozen=True):
    version: int
    body_digest: bytes
    deleted: bool = False
    usage_count: int = 0
    usage_counter: int = 0


class AttemptRecord(msgspec.Struct, array_like=True, frozen=True):
    """How an attempt to put a schema ended: it won as ``version``, or it never may win."""

    won: bool
    revision: int
    version: int


class ConfigRecord(msgspec.Struct, array_like=True, frozen=True):
    """A live config. Its content is that of the revision of the same version."""

    schema_id: str
    schema_version: int
    version: int
    revision: int
    content_digest: bytes
    updated_by: str
    updated_at_ms: int


class TombstoneRecord(msgspec.Struct, array_like=True, frozen=True):
    """The version of the delete, from which a key created again goes on counting."""

    version: int


class RevisionRecord(msgspec.Struct, array_like=True, frozen=True):
    """One version of a config. Its content is in a table of its own, so that listing revisions does
    not read megabytes; a delete has none."""

    kind: str
    revision: int
    content_digest: bytes
    updated_by: str
    updated_at_ms: int
    schema_id: str
    schema_version: int


class HistoryRecord(msgspec.Struct, array_like=True, frozen=True):
    """One change, with the history's hash chain after it."""

    kind: str
    actor: str
    at_ms: int
    chain: bytes
    project_id: str = ""
    key: str = ""
    key_id: str = ""
    name: str = ""
    schema_id: str = ""
    schema_version: int = 0
    version: int = 0
    digest: bytes = b""


class ResultRecord(msgspec.Struct, array_like=True, frozen=True):
    """The first result of a command id."""

    result: AnyResult


class IdempotencyRecord(msgspec.Struct, array_like=True, frozen=True):
    """The result bound to an (actor, idempotency key)."""

    fingerprint: bytes
    result: AnyResult


class DueRecord(msgspec.Struct, array_like=True, frozen=True):
    """What to forget when its time has come: the key in the table that the due key names."""

    key: bytes


R = TypeVar("R", bound=msgspec.Struct)


class Table(Generic[R]):
    """Typed access to one table."""

    __slots__ = ("_decoder", "name", "number")

    def __init__(self, number: int, name: str, record: type[R]) -> None:
        self.number = number
        self.name = name
        self._decoder: msgspec.msgpack.Decoder[R] = msgspec.msgpack.Decoder(record)

    def decode(self, payload: memoryview | bytes) -> R:
        """The record of a verified payload."""
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StateCorruptError(f"a record of {self.name} is unreadable: {error}") from error

    def get(self, view: View, key: bytes) -> R | None:
        payload = view.get(self.number, key)
        return None if payload is None else self.decode(payload)

    def must(self, view: View, key: bytes) -> R:
        """A record that another record promises."""
        record = self.get(view, key)
        if record is None:
            raise StateCorruptError(f"a record of {self.name} is missing (key {key[:64]!r})")
        return record

    def put(self, view: WriteView, key: bytes, record: R) -> None:
        view.put(self.number, key, _encode(record))

    def delete(self, view: WriteView, key: bytes) -> bool:
        """Whether there was such a record."""
        return view.delete(self.number, key)


class BytesTable:
    """A table of plain bytes."""

    __slots__ = ("name", "number")

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name

    def get(self, view: View, key: bytes) -> bytes | None:
        payload = view.get(self.number, key)
        return None if payload is None else bytes(payload)

    def must(self, view: View, key: bytes) -> bytes:
        """Bytes that another record promises."""
        payload = self.get(view, key)
        if payload is None:
            raise StateCorruptError(f"a record of {self.name} is missing (key {key[:64]!r})")
        return payload

    def put(self, view: WriteView, key: bytes, content: bytes) -> None:
        view.put(self.number, key, content)

    def delete(self, view: WriteView, key: bytes) -> bool:
        """Whether there was such a record."""
        return view.delete(self.number, key)


class Presence(msgspec.Struct, array_like=True, frozen=True):
    """A record that says all by its key."""


PRESENT: Final = Presence()

CORE: Final = Table(0, "core", CoreRecord)
PROJECTS: Final = Table(1, "projects", ProjectRecord)
PURGES: Final = Table(2, "purges", Presence)
PROJECT_KEYS: Final = Table(3, "project_keys", ProjectKeyRecord)
API_KEYS: Final = Table(4, "api_keys", ApiKeyRecord)
SCHEMAS: Final = Table(5, "schemas", SchemaRecord)
ATTEMPTS: Final = Table(6, "attempts", AttemptRecord)
USAGES: Final = Table(7, "usages", Presence)
CONFIGS: Final = Table(8, "configs", ConfigRecord)
TOMBSTONES: Final = Table(9, "tombstones", TombstoneRecord)
REVISIONS: Final = Table(10, "revisions", RevisionRecord)
CONTENTS: Final = BytesTable(11, "contents")
HISTORY: Final = Table(12, "history", HistoryRecord)
RESULTS: Final = Table(13, "results", ResultRecord)
IDEMPOTENCY: Final = Table(14, "idempotency", IdempotencyRecord)
DUE: Final = Table(15, "due", DueRecord)

#: In the order of their numbers, which is the order of snapshots and of the state's hash.
TABLE_NAMES: Final[tuple[str, ...]] = tuple(
    table.name
    for table in (
        CORE,
        PROJECTS,
        PURGES,
        PROJECT_KEYS,
        API_KEYS,
        SCHEMAS,
        ATTEMPTS,
        USAGES,
        CONFIGS,
        TOMBSTONES,
        REVISIONS,
        CONTENTS,
        HISTORY,
        RESULTS,
        IDEMPOTENCY,
        DUE,
    )
)

CORE_KEY: Final = b"core"


def nameable(*parts: str) -> bool:
    """Whether ``parts``, which came from outside, can be names in keys at all."""
    return all("\0" not in part and len(part) <= 256 and _encodable(part) for part in parts)


def _encodable(text: str) -> bool:
    """No lone surrogates, which a URL can smuggle in."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def joined(*parts: str) -> bytes:
    """The key made of ``parts``."""
    return "\0".join(parts).encode()


def below(*parts: str) -> bytes:
    """The prefix of all keys that continue ``parts``."""
    return "\0".join((*parts, "")).encode()


def split(key: bytes) -> list[str]:
    """The parts of a key of text."""
    return key.decode().split("\0")


def version_key(config_key: bytes, version: int) -> bytes:
    """The key of one version of the config with ``config_key``."""
    return config_key + b"\0" + _U64.pack(version)


def version_of(key: bytes) -> int:
    """The version that a key made by :func:`version_key` names."""
    version: int = _U64.unpack_from(key, len(key) - _U64.size)[0]
    return version


def history_key(revision: int, ordinal: int) -> bytes:
    return _REVISION.pack(revision, ordinal)


def history_place(key: bytes) -> tuple[int, int]:
    """(revision, ordinal) of a key of history."""
    revision, ordinal = _REVISION.unpack(key)
    return revision, ordinal


def idempotency_id(actor: str, idempotency_key: str) -> bytes:
    """Where the result of an (actor, idempotency key) is kept; hashed, since the text is longer
    than a key may be. Any text has an id, also one that a command could not carry."""
    text = f"{actor}\0{idempotency_key}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def due_key(due_ms: int, index: int, table: int) -> bytes:
    """Orders what expires by time; ``index`` is that of the entry that stored it."""
    return _DUE.pack(due_ms, index, table)


def due_parts(key: bytes) -> tuple[int, int, int]:
    due_ms, index, table = _DUE.unpack(key)
    return due_ms, index, table
