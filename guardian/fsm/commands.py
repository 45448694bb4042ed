"""What can be written into the log, and what the state machine answers.

A command carries everything its outcome depends on; the only other input is the entry's index and
the leader's timestamp in the entry's header. Commands and results are arrays on the wire, in field
order; a new field goes to the end with a default, a new command gets a new tag. ``FORMAT`` leads
the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import msgspec

FORMAT = 1


class Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Common to every command.

    Args:
        command_id: 16 random bytes, the same for every retry of one request; the state machine
            answers a repeat with the first result, so that forwarding can retry (rule 49).
        actor: ``user:<id>``, ``key:<id>`` or ``system:<what>``.
        idempotency_key: the client's Idempotency-Key, or empty.
        fingerprint: SHA-256 over what the client asked for (method, path, body); the same key with
            another fingerprint is refused.
    """

    command_id: bytes
    actor: str
    idempotency_key: str = ""
    fingerprint: bytes = b""


class Command(
    msgspec.Struct, array_like=True, frozen=True, tag_field="t", forbid_unknown_fields=True
):
    """Base of all commands.

    A command with more fields than this release knows is malformed, not half understood: ignoring
    the rest would let nodes of two releases reach two states from one entry, and skipping deeply
    nested values would make the verdict depend on how deep the caller's stack is.
    """

    head: Envelope


class CreateProject(Command, frozen=True, tag=1):
    """A project begins to exist for the log, with its first API key."""

    project_id: str
    key_id: str
    key_digest: bytes
    key_name: str = ""


class DeleteProject(Command, frozen=True, tag=2):
    """The project and its keys are dead from here on. Also ends a creation that never finished:
    an id that is deleted before it was created can never be created (reconciliation)."""

    project_id: str


class PurgeProject(Command, frozen=True, tag=3):
    """Removes up to ``limit`` configs (with revisions and schema usage) of a deleted project."""

    project_id: str
    limit: int


class CreateKey(Command, frozen=True, tag=4):
    project_id: str
    key_id: str
    key_digest: bytes
    key_name: str = ""


class RevokeKey(Command, frozen=True, tag=5):
    project_id: str
    key_id: str


class PutSchema(Command, frozen=True, tag=6):
    """Version ``expected_version + 1`` of a schema has the body with ``body_digest``.

    ``expected_version`` 0 creates. ``usage_seen`` is the schema's usage counter as the proposer
    read it before checking all configs that use it; if a config changed its use meanwhile the
    command is refused with ``schema_usage_changed``.
    """

    schema_id: str
    expected_version: int
    body_digest: bytes
    attempt_id: str
    usage_seen: int = 0


class DeleteSchema(Command, frozen=True, tag=7):
    schema_id: str


class AbortSchemaAttempt(Command, frozen=True, tag=8):
    """A PutSchema of this attempt that has not been applied yet never will be (reconciliation)."""

    schema_id: str
    attempt_id: str


class CreateConfig(Command, frozen=True, tag=9):
    project_id: str
    key: str
    schema_id: str
    schema_version: int
    content: bytes


class UpdateConfig(Command, frozen=True, tag=10):
    project_id: str
    key: str
    schema_id: str
    schema_version: int
    content: bytes
    expected_version: int


class DeleteConfig(Command, frozen=True, tag=11):
    project_id: str
    key: str
    expected_version: int


class RollbackConfig(Command, frozen=True, tag=12):
    """A new version with the content of ``to_version``; the proposer validated that content
    against ``schema_version`` of ``schema_id``."""

    project_id: str
    key: str
    to_version: int
    expected_version: int
    schema_id: str
    schema_version: int


AnyCommand = (
    CreateProject
    | DeleteProject
    | PurgeProject
    | CreateKey
    | RevokeKey
    | PutSchema
    | DeleteSchema
    | AbortSchemaAttempt
    | CreateConfig
    | UpdateConfig
    | DeleteConfig
    | RollbackConfig
)


class Result(msgspec.Struct, array_like=True, frozen=True, tag_field="t"):
    """Base of all results. ``revision`` is that of the entry that decided."""

    revision: int


class Done(Result, frozen=True, tag=1):
    """It happened. ``count`` is how many things it touched; ``subject`` is the id of the project,
    key or schema, so that a replay can name what the first request made."""

    count: int = 0
    replayed: bool = False
    subject: str = ""


class ConfigWritten(Result, frozen=True, tag=2):
    """The config's new state, without the content."""

    project_id: str
    key: str
    schema_id: str
    schema_version: int
    version: int
    content_digest: bytes
    updated_by: str
    updated_at_ms: int
    replayed: bool = False


class Refused(Result, frozen=True, tag=3):
    """Nothing changed. ``code`` is one of :data:`REFUSALS`."""

    code: str
    current_version: int = 0
    detail: str = ""
    replayed: bool = False


AnyResult = Done | ConfigWritten | Refused


@dataclass(frozen=True, slots=True)
class Remembered:
    """A result kept under an Idempotency-Key, with the fingerprint of what was asked."""

    fingerprint: bytes
    result: AnyResult


class Refusals:
    """Codes of :class:`Refused`."""

    VERSION_CONFLICT: ClassVar = "version_conflict"
    ALREADY_EXISTS: ClassVar = "already_exists"
    NOT_FOUND: ClassVar = "not_found"
    PROJECT_GONE: ClassVar = "project_gone"
    KEY_TAKEN: ClassVar = "key_taken"
    SCHEMA_STALE: ClassVar = "schema_stale"  #: the command names an older or deleted schema
    SCHEMA_IN_USE: ClassVar = "schema_in_use"
    SCHEMA_USAGE_CHANGED: ClassVar = "schema_usage_changed"
    ATTEMPT_ABORTED: ClassVar = "attempt_aborted"
    NO_CHANGE: ClassVar = "no_change"
    IDEMPOTENCY_KEY_REUSED: ClassVar = "idempotency_key_reused"
    MALFORMED: ClassVar = "malformed"  #: bytes that are not a command; decided alike everywhere


_command_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
_result_decoder: msgspec.msgpack.Decoder[AnyResult] = msgspec.msgpack.Decoder(AnyResult)
_encoder = msgspec.msgpack.Encoder()


class UndecodableError(ValueError):
    """The bytes are not a command or result of a format known here."""


def encode_command(command: AnyCommand) -> bytes:
    return bytes((FORMAT,)) + _encoder.encode(command)


def decode_command(raw: bytes) -> AnyCommand:
    """The command of those bytes.

    Raises:
        UndecodableError: unknown format or shape.
    """
    if not raw or raw[0] != FORMAT:
        raise UndecodableError("command format is not known here")
    try:
        return _command_decoder.decode(memoryview(raw)[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UndecodableError(str(error)) from error


def encode_result(result: AnyResult) -> bytes:
    return _encoder.encode(result)


def decode_result(raw: bytes) -> AnyResult:
    try:
        return _result_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UndecodableError(str(error)) from error
